"""How fast one GPU trains: a row for each method, at the sizes of the papers, beside another library if there is one.

Each row is one run of [`~hfssl.benchmarks.base.measure`]: the sides train in turn, each in a process of its own, from
files to optimizer step. Text is the embedded corpus; images are JPEG files of 500 x 375 pixels, and recordings wav
files of 10 s, that are made here: nothing has to be downloaded. A row that cannot run says why, and the others go on.
"""

import dataclasses
import importlib.util
import json
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers

from ..cli.audio.data import AudioDataArguments
from ..cli.image.data import ImageDataArguments
from ..cli.multimodal.data import PairDataArguments
from ..cli.text.data import TextDataArguments
from ..data.text.tokenizer import load_tokenizer, train_bpe_tokenizer
from ..errors import UserError
from ..evaluation.results import commit
from ..machine import choose_precision, num_cores, use_one_gpu
from ..modeling.filter_banks import SAMPLING_RATE
from ..modeling.tokenizer import table_size
from . import mlm, pairs, speech, vision
from .arguments import BenchmarkArguments
from .base import Contender, Pace, disturbance, measure
from .training import Timed


logger = logging.getLogger(__name__)

# Height and width of a typical photo of ImageNet.
PHOTO = (375, 500)
# At least so many, and twice the largest batch: they stay in memory, and each is decoded anew whenever it is read.
NUM_PHOTOS = 1024
# Of recordings: how long one is, and how many are made, of which HuBERT makes its units before the first step.
SECONDS, NUM_RECORDINGS = 10, 64
# Entries of GPT-2's vocabulary, rounded up to a multiple of 64, and of BERT's.
CAUSAL_VOCABULARY, VOCABULARY = 50_304, 30_528


@dataclass
class GpuBenchmark(BenchmarkArguments):
    r"""
    > Benchmark

    Args:
        rows (`list[str]`, *optional*):
            Which rows: bert, modernbert, gpt2, simclr, moco, dino, mae, swav, dinov2, clip, siglip, wav2vec2, hubert.
            All when left out.
        against (`str`, *optional*, defaults to `"auto"`):
            auto: beside lightly and transformers' Trainer where they are installed and train the same. none: alone.
        batch_scale (`float`, *optional*, defaults to `1.0`):
            Factor of all batch sizes, which are those of a GPU with 80 GB.
        blocks (`int`, *optional*, defaults to `3`):
            Turns of each side.
        steps_per_block (`int`, *optional*, defaults to `8`):
            Steps of a turn.
        minutes (`float`, *optional*, defaults to `5.0`):
            No row begins later than this.
        tiny (`bool`, *optional*, defaults to `False`):
            Tiny models and images, to see whether everything runs.
        use_cpu (`bool`, *optional*, defaults to `False`):
            Leave a GPU alone; with `--tiny`.
    """

    rows: list[str] | None = None
    against: Literal["auto", "none"] = "auto"
    batch_scale: float = 1.0
    blocks: int = 3
    steps_per_block: int = 8
    minutes: float = 5.0
    tiny: bool = False
    use_cpu: bool = False

    def __post_init__(self):
        unknown = [row for row in self.rows or () if row not in ROWS]
        if unknown:
            raise UserError(f"`--rows {unknown[0]}` is unknown. Choose some of {', '.join(ROWS)}.")
        super().__post_init__()
        if not (self.batch_scale > 0 and self.minutes > 0):
            raise UserError(
                f"`--batch_scale` and `--minutes` must be above 0, got {self.batch_scale:g} and {self.minutes:g}."
            )
        if not self.tiny and not self.on_gpu:
            raise UserError(
                "PyTorch reaches no GPU through CUDA, and models of these sizes take hours on a CPU. Pass `--tiny`, "
                "or run `recipes/benchmark.py mlm` and the like, which are for CPUs too."
            )


@dataclass(frozen=True)
class Row:
    """A model and its batch: those of the paper, and tiny ones."""

    method: str
    encoder: str
    tiny_encoder: str
    batch_size: int
    length: int  # tokens a row, pixels a side, or seconds of a recording
    peer: str | None = None
    text_encoder: str | None = None  # of pairs

    def sized(self, arguments: GpuBenchmark) -> "Row":
        if arguments.tiny:
            return self.tiny()
        return dataclasses.replace(self, batch_size=max(2, round(self.batch_size * arguments.batch_scale)))

    def tiny(self) -> "Row":
        length = {224: 32, 512: 64, SECONDS: 2}.get(self.length, self.length)
        text_encoder = self.text_encoder and self.text_encoder.replace("base", "mini")
        return dataclasses.replace(
            self, encoder=self.tiny_encoder, batch_size=4, length=length, text_encoder=text_encoder
        )


# `bert-base` and the like are presets; names with a dot are files that are written here.
ROWS = {
    "bert": Row("mlm", "bert-base", "bert-tiny", 64, 512, "transformers"),
    "modernbert": Row("mlm", "modernbert.json", "modernbert-mini", 64, 512, "transformers"),
    "gpt2": Row("clm", "gpt2-base", "gpt2-tiny", 32, 512, "transformers"),
    "simclr": Row("simclr", "vit-small-patch16", "vit-mini-patch4", 256, 224, "lightly"),
    "moco": Row("moco", "vit-small-patch16", "vit-mini-patch4", 256, 224),
    "dino": Row("dino", "vit-small-patch16", "vit-mini-patch4", 128, 224, "lightly"),
    "mae": Row("mae", "vit-base-patch16", "vit-mini-patch4", 256, 224, "transformers"),
    "swav": Row("swav", "vit-small-patch16", "vit-mini-patch4", 128, 224, "lightly"),
    "dinov2": Row("dinov2", "vit-small-patch16", "vit-mini-patch4", 64, 224, "lightly"),
    "clip": Row(
        "clip", "clip-image-base-patch32", "clip-image-mini-patch4", 512, 224, "transformers", "clip-text-base"
    ),
    "siglip": Row(
        "siglip", "siglip-image-base-patch16", "siglip-image-mini-patch4", 128, 224, "transformers", "siglip-text-base"
    ),
    "wav2vec2": Row("wav2vec2", "wav2vec2-base", "wav2vec2-mini", 16, SECONDS, "transformers"),
    "hubert": Row("hubert", "hubert-base", "hubert-mini", 16, SECONDS, "torchaudio"),
}
# What photos are of, in captions of as many words as those on the web.
_WORDS = ("red", "green", "old", "small", "house", "river", "dog", "street", "two", "people", "under", "beside", "a")


def run_gpu_benchmark(arguments: GpuBenchmark) -> tuple[str, dict[str, Any]]:
    """Measure row after row, and return what to read and what `--json` prints."""
    threads = arguments.take_threads()
    report = {
        "benchmark": "gpu", "device": torch.cuda.get_device_name() if arguments.on_gpu else "cpu",
        "cores": num_cores(), "torch": torch.__version__, "transformers": transformers.__version__,
        "commit": commit(), "tiny": arguments.tiny, "rows": {},
    }  # fmt: skip
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hfssl-benchmark-") as folder:
        for name in arguments.rows or ROWS:
            row = ROWS[name].sized(arguments)
            report["rows"][name] = entry = {**dataclasses.asdict(row)}
            if time.monotonic() - began > 60 * arguments.minutes:
                entry["error"] = f"not run: `--minutes {arguments.minutes:g}` were over"
                continue
            try:
                sides = sides_of(row, arguments, Path(folder))
                entry |= measure(
                    sides, blocks=arguments.blocks, steps_per_block=arguments.steps_per_block, threads=threads,
                    device=arguments.device,
                )  # fmt: skip
            except Exception as error:  # the other rows are worth having all the same
                entry["error"] = (str(error).strip() or type(error).__name__).splitlines()[-1]
                logger.warning("%s: %s", name, error)
    return _text(report), report


def sides_of(row: Row, arguments: GpuBenchmark, folder: Path) -> list[Contender]:
    """Ours, and theirs where it is installed."""
    makers: dict[str, Callable] = {
        "mlm": _mlm_sides, "clm": _clm_sides, "clip": _pair_sides, "siglip": _pair_sides, "wav2vec2": _speech_sides,
        "hubert": _speech_sides,
    }  # fmt: skip
    # the images of all peers are torchvision's
    needed = [row.peer, *([] if row.method in ("mlm", "clm", "wav2vec2", "hubert") else ["torchvision"])]
    is_compared = bool(arguments.against == "auto" and row.peer and all(map(importlib.util.find_spec, needed)))
    # what prepares the other side may need what is not installed
    row = row if is_compared else dataclasses.replace(row, peer=None)
    sides = makers.get(row.method, _vision_sides)(row, arguments, folder)
    wanted = ("ours", "theirs") if is_compared else ("ours",)
    return [side for side in sides if side.name in wanted]


# -- text -------------------------------------------------------------------------------------------------------------


def _mlm_benchmark(row: Row, arguments: GpuBenchmark, folder: Path) -> tuple[mlm.MlmBenchmark, TextDataArguments]:
    encoder = row.encoder
    if encoder.endswith(".json"):  # the default of transformers is ModernBERT-base
        encoder = str(folder / encoder)
        Path(encoder).write_text(json.dumps({"model_type": Path(encoder).stem}))
    benchmark = mlm.MlmBenchmark(
        encoder=encoder, batch_size=row.batch_size, precision=arguments.precision, blocks=arguments.blocks,
        steps_per_block=arguments.steps_per_block, seed=arguments.seed, use_cpu=arguments.use_cpu,
    )  # fmt: skip
    return benchmark, TextDataArguments(max_length=row.length, vocab_size=2_000 if arguments.tiny else VOCABULARY)


def _mlm_sides(row: Row, arguments: GpuBenchmark, folder: Path) -> list[Contender]:
    benchmark, data = _mlm_benchmark(row, arguments, folder)
    text = folder / "text"
    if not text.exists():  # for all rows of this kind
        text.mkdir()
        mlm.prepare(data, text)
    return mlm.contenders(benchmark, data, text)


def _clm_sides(row: Row, arguments: GpuBenchmark, folder: Path) -> list[Contender]:
    import pyarrow.parquet as pq

    text = folder / "causal"
    if not text.exists():
        text.mkdir()
        benchmark, data = _mlm_benchmark(row, arguments, folder)
        mlm.prepare(dataclasses.replace(data, vocab_size=2_000), text)
        texts = pq.read_table(text / "corpus.parquet")["text"].to_pylist()
        size = 2_000 if arguments.tiny else CAUSAL_VOCABULARY
        train_bpe_tokenizer(texts, size, model_max_length=1024).save_pretrained(text / "tokenizer")
        _fill_up(text / "tokenizer", size)
    precision = choose_precision(arguments.precision, arguments.use_cpu)
    settings = {
        "row": dataclasses.asdict(row), "folder": str(text), "precision": precision, "seed": arguments.seed,
        "use_cpu": arguments.use_cpu,
    }  # fmt: skip
    return [
        Contender("ours", "hfssl", precision, train_clm, settings),
        Contender("theirs", "transformers", precision, train_run_clm, settings),
    ]


def _fill_up(folder: Path, size: int) -> None:
    """Speed depends on the size of the vocabulary, which a small corpus does not fill."""
    file = folder / "tokenizer.json"
    description = json.loads(file.read_text(encoding="utf-8"))
    learned = table_size(load_tokenizer(str(folder)))
    description["model"]["vocab"] |= {f"[unused{i}]": i for i in range(learned, size)}
    file.write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")


def _run(pace: Pace, settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a trainer, ours or theirs."""
    return {
        "output_dir": tempfile.mkdtemp(dir=settings["folder"]), "max_steps": pace.num_steps, "seed": settings["seed"],
        "use_cpu": settings["use_cpu"] or not torch.cuda.is_available(), "learning_rate": 5e-4,
        "per_device_train_batch_size": settings["row"]["batch_size"], **mlm.TRAINING,
    }  # fmt: skip


def train_clm(pace: Pace, settings: dict[str, Any]) -> float:
    """`recipes/clm.py` without its evaluation and its result."""
    from ..cli.modality import build_method
    from ..cli.text.data import TextData
    from ..cli.text.encoders import CausalEncoderArguments
    from ..methods.text.clm import ClmForPreTraining
    from ..training.arguments import SSLTrainingArguments
    from ..training.trainer import SSLTrainer

    class TimedTrainer(Timed, SSLTrainer):
        pass

    row, folder = settings["row"], Path(settings["folder"])
    args = SSLTrainingArguments(**_run(pace, settings), precision=settings["precision"])
    pace.data_is_readable()
    file, tokenizer = str(folder / "corpus.parquet"), str(folder / "tokenizer")
    arguments = TextDataArguments(file, text_column="text", tokenizer=tokenizer, max_length=row["length"])
    data = TextData(arguments, causal=True)
    model = build_method(ClmForPreTraining, CausalEncoderArguments(row["encoder"]), {}, data, args, set())
    trainer = TimedTrainer(
        pace, mlm.num_tokens, model, args, data.stream(args), settings=data.settings, processing_class=data.tokenizer
    )
    trainer.train()
    return trainer.flops()


def train_run_clm(pace: Pace, settings: dict[str, Any]) -> float:
    """`examples/pytorch/language-modeling/run_clm.py` of transformers, training from scratch."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator, set_seed

    from ..cli.text.encoders import text_encoder_config

    class TimedTrainer(Timed, Trainer):
        pass

    row, folder, length = settings["row"], Path(settings["folder"]), settings["row"]["length"]
    args = TrainingArguments(**_run(pace, settings), bf16=settings["precision"] == "bf16")
    use_one_gpu(args)  # as our side
    set_seed(args.seed)
    pace.data_is_readable()
    cache = tempfile.mkdtemp(dir=folder)
    raw = load_dataset("parquet", data_files={"train": str(folder / "corpus.parquet")}, cache_dir=cache)["train"]
    tokenizer = load_tokenizer(str(folder / "tokenizer"))

    def group_texts(examples):
        joined = {name: list(chain(*rows)) for name, rows in examples.items()}
        total = len(joined["input_ids"]) // length * length
        rows = {name: [values[i : i + length] for i in range(0, total, length)] for name, values in joined.items()}
        return rows | {"labels": rows["input_ids"]}

    tokenized = raw.map(lambda examples: tokenizer(examples["text"]), batched=True, remove_columns=["text"])
    dataset = tokenized.map(group_texts, batched=True)
    model = AutoModelForCausalLM.from_config(text_encoder_config(row["encoder"], tokenizer, causal=True))
    trainer = TimedTrainer(
        pace, mlm.num_tokens, model=model, args=args, train_dataset=dataset, processing_class=tokenizer,
        data_collator=default_data_collator,
    )  # fmt: skip
    trainer.train()
    return trainer.flops()


# -- images -----------------------------------------------------------------------------------------------------------


def _photos(row: Row, arguments: GpuBenchmark, folder: Path) -> Path:
    """The photos of all rows."""
    photos = folder / "images"
    if not photos.exists():
        photos.mkdir()
        largest = max(each.sized(arguments).batch_size for each in [row, *ROWS.values()])
        number = 64 if arguments.tiny else max(NUM_PHOTOS, 2 * largest)
        write_photos(photos, number, (48, 64) if arguments.tiny else PHOTO)
    return photos


def _vision_sides(row: Row, arguments: GpuBenchmark, folder: Path) -> list[Contender]:
    benchmark = vision.VisionBenchmark(
        against=row.peer or "none", encoder=row.encoder, image_size=row.length, batch_size=row.batch_size,
        precision=arguments.precision, seed=arguments.seed, use_cpu=arguments.use_cpu,
    )  # fmt: skip
    photos = ImageDataArguments(dataset=str(_photos(row, arguments, folder)))
    return vision.contenders(row.method, benchmark, photos, folder)


def _pair_sides(row: Row, arguments: GpuBenchmark, folder: Path) -> list[Contender]:
    captioned, random = folder / row.method, np.random.default_rng(0)
    captioned.mkdir()
    photos = sorted(_photos(row, arguments, folder).iterdir())
    captions = (" ".join(random.choice(_WORDS, random.integers(6, 20))) for _ in photos)
    pairs.write_pairs((("jpeg", p.read_bytes(), c) for p, c in zip(photos, captions, strict=True)), captioned)
    benchmark = pairs.PairsBenchmark(
        against=row.peer or "none", image_encoder=row.encoder, text_encoder=row.text_encoder,
        batch_size=row.batch_size, precision=arguments.precision, seed=arguments.seed, use_cpu=arguments.use_cpu,
    )  # fmt: skip
    return pairs.contenders(row.method, benchmark, PairDataArguments(), captioned)


def write_photos(folder: Path, number: int, size: tuple[int, int]) -> None:
    """JPEG files of about the bytes that photos of this size have."""
    random = np.random.default_rng(0)
    for i in range(number):
        photo(random, size).save(folder / f"{i:05d}.jpeg", quality=90)


def photo(random: np.random.Generator, size: tuple[int, int]) -> Any:
    """What takes as long to decode as a photo: coarse shapes, and noise on them."""
    from PIL import Image

    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(size[::-1], Image.BICUBIC)
    noise = random.normal(0, 12, (*size, 1)).astype(np.float32)
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


# -- recordings -------------------------------------------------------------------------------------------------------


def _speech_sides(row: Row, arguments: GpuBenchmark, folder: Path) -> list[Contender]:
    recordings, prepared = folder / "recordings", folder / row.method
    if not recordings.exists():
        recordings.mkdir()
        write_recordings(recordings, 8 if arguments.tiny else max(NUM_RECORDINGS, 2 * row.batch_size), row.length)
    prepared.mkdir()
    benchmark = speech.SpeechBenchmark(
        encoder=row.encoder, precision=arguments.precision, seed=arguments.seed, use_cpu=arguments.use_cpu
    )
    data = AudioDataArguments(
        dataset=str(recordings), batch_seconds=float(row.batch_size * row.length), max_seconds=float(row.length)
    )
    sides, _ = speech.contenders(row.method, benchmark, data, str(prepared))
    return sides


def write_recordings(folder: Path, number: int, seconds: int) -> None:
    """wav files of tones that glide through noise: what costs as much as speech, if it says nothing."""
    import soundfile

    random = np.random.default_rng(0)
    for i in range(number):
        time_s = np.arange(seconds * SAMPLING_RATE) / SAMPLING_RATE
        pitch = 120 + 60 * np.sin(2 * np.pi * random.uniform(0.2, 2) * time_s)
        sound = 0.2 * np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE) + random.normal(0, 0.05, len(time_s))
        soundfile.write(folder / f"{i:05d}.wav", sound.astype(np.float32), SAMPLING_RATE)


# -- what is said -----------------------------------------------------------------------------------------------------


def _text(report: dict[str, Any]) -> str:
    where = f"{report['device']}, {report['cores']} cores, torch {report['torch']}, transformers "
    lines = [
        f"{where}{report['transformers']}, commit {report['commit'] or 'unknown'}"
        + (", tiny models: these are no figures" if report["tiny"] else "") + ".",
        "",
        "| row | encoder, batch | precision | ms a step | items/s | MFU | GPU waits for data | GPU memory | beside |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    figures = {}
    for name, entry in report["rows"].items():
        model = f"{Path(entry['encoder']).stem}, {entry['batch_size']} × {entry['length']}"
        if "error" in entry:
            lines.append(f"| {name} | {model} | {entry['error']} | | | | | | |")
            continue
        ours, theirs = entry["ours"], entry.get("theirs")
        figures[name] = ours
        beside = "" if theirs is None else (
            f"{ours['items_per_s'] / theirs['items_per_s']:.2f} × {theirs['title']} ({theirs['items_per_s']:,.0f}/s)"
        )  # fmt: skip
        waits = f"{ours['gpu_wait']:.1%}" if "gpu_wait" in ours else f"CPU: {ours['data_wait']:.1%}"
        memory = f"{ours['peak_gpu_mb'] / 1024:.1f} GB" if "peak_gpu_mb" in ours else ""
        lines.append(
            f"| {name} | {model} | {ours['precision']} | {1000 * ours['step_s']:.0f} | {ours['items_per_s']:,.0f} "
            f"{ours['unit']} | {ours['utilisation']:.1%} | {waits} | {memory} | {beside} |"
        )
    lines += ["", *(f"- {note}" for note in [*_NOTES, *(disturbance(figures) if figures else [])])]
    return "\n".join(lines)


_NOTES = (
    "Medians over the blocks; the sides of a row in turn, each in a process of its own, data included.",
    "MFU: matrix products and convolutions of a step, as a share of a matrix product's rate that was measured between "
    "the blocks, at the same precision.",
    "The GPU waits for data from the end of a step to the moment at which the next one may begin, by its events.",
    "Tokens are those that are not padding. Each side has the attention, dropout and packing of its recipe or script.",
)
