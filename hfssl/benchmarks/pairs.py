"""CLIP and SigLIP, measured against `transformers`: the contenders of [`~hfssl.benchmarks.base.measure`].

- ours: what `recipes/{clip,siglip}.py` build, [`SSLTrainer`] on an [`ExactStream`] of pairs;
- theirs: what `run_clip.py` of transformers builds, `Trainer` with `CLIPModel` or `SiglipModel`, which begins with our
  weights, captions padded to the length of the text encoder;
- or open_clip's model in open_clip's loop, see [`~hfssl.benchmarks.open_clip`];
- with `--contrastive_batch_size` ours has a gradient cache of micro-batches of `--batch_size`, transformers all these
  pairs at once, open_clip its `--accum-freq`; a third side is ours without a cache: plain steps of `--batch_size`.

All read the same image files and captions with the same tokenizer, and take the same optimizer, learning rate and
precision. Logging, evaluation and checkpoints are off on all sides.
"""

import dataclasses
import importlib.util
import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import CLIPModel

from ..cli.multimodal.data import EMBEDDED, PairData, PairDataArguments
from ..cli.multimodal.encoders import PairEncoderArguments, build_pair, pair_rows
from ..cli.multimodal.presets import PRESETS
from ..data.caption.captions import texts_of
from ..data.image.decode import DamagedImage, image_header
from ..data.image.views import ViewArguments
from ..data.multimodal.rows import PairRows, pair_inputs
from ..data.sources import Source, open_source
from ..errors import UserError
from ..functional import keyed
from ..functional.keyed import Use
from ..machine import choose_precision, num_cores, use_one_gpu
from ..methods import METHODS
from ..modeling.pair_processor import PairProcessor
from ..modeling.pairs import PairModel
from .arguments import BenchmarkArguments
from .base import WARM_UP_STEPS, Contender, Pace, disturbance, measure, ratio, ratio_line, table
from .open_clip import model_settings
from .open_clip import train as train_open_clip
from .training import NOTHING_BESIDE, Timed, plain_run


PAIR = "image,text"
# All sides: CLIP's optimizer, as the recipe has it.
TRAINING = {
    "weight_decay": 0.2, "adam_beta2": 0.98, "adam_epsilon": 1e-6, "max_grad_norm": 1.0, "warmup_steps": 5,
    "optim": "adamw_torch_fused", **NOTHING_BESIDE,
}  # fmt: skip
# More would only take room on the disk.
MOST_PAIRS = 10_000
_OF_PEERS = {
    "transformers": "transformers begins with our weights, has its own choice of attention (sdpa), pads captions to "
    "the length of the text encoder and crops the middle of an image; ours takes the attention that is fastest here, "
    "pads to about the longest of a batch where the encoder allows it, and crops at random.",
    "open_clip": "open_clip has weights of its own and pads captions to the length of the text encoder; ours pads to "
    "the longest of a batch. With `--contrastive_batch_size` all pairs are compared once for each part.",
}
# What torchvision's `read_image`, which theirs reads files with, takes without asking for more.
_READABLE = ("png", "jpeg")


@dataclass
class PairsBenchmark(BenchmarkArguments):
    r"""
    > Benchmark

    Args:
        against (`str`, *optional*, defaults to `"transformers"`):
            Whom to measure against: transformers, or for CLIP open_clip. none: nobody, only what the gradient cache
            costs beside plain steps.
        image_encoder, text_encoder (`str`, *optional*):
            Presets of the recipe or config files. Left out, the small ones that the recipe has by default.
        batch_size (`int`, *optional*, defaults to `64`):
            Pairs a step, or with `contrastive_batch_size` those that are embedded at once.
        contrastive_batch_size (`int`, *optional*):
            Pairs that are compared at once: ours by a gradient cache, theirs as one batch.
        learning_rate (`float`, *optional*, defaults to `0.0005`):
            Peak learning rate of all sides.
        num_workers (`int`, *optional*, defaults to `-1`):
            Processes that prepare data, on all sides. -1: none on a CPU, beside a GPU one for each core but one.
    """

    against: Literal["transformers", "open_clip", "none"] = "transformers"
    image_encoder: str | None = None
    text_encoder: str | None = None
    batch_size: int = 64
    contrastive_batch_size: int | None = None
    learning_rate: float = 5e-4
    num_workers: int = -1

    def __post_init__(self):
        super().__post_init__()
        self.require(batch_size=2)
        size = self.contrastive_batch_size
        if size is not None and (size <= self.batch_size or size % self.batch_size):
            raise UserError(
                f"`--contrastive_batch_size {size}` has to be several times `--batch_size {self.batch_size}`, the "
                f"pairs that are embedded at once. Pass {self.batch_size * max(round(size / self.batch_size), 2)}."
            )
        for side in ("image", "text"):
            self.require_scratch(f"{side}_encoder", PRESETS[side])
        if self.num_workers < 0:
            self.num_workers = self.default_workers

    @property
    def step_size(self) -> int:
        """Pairs of a step that are compared with each other."""
        return self.contrastive_batch_size or self.batch_size


def run_pairs_benchmark(method: str, arguments: PairsBenchmark, data: PairDataArguments) -> tuple[str, dict[str, Any]]:
    """Prepare the pairs, measure, and return what to read and what `--json` prints.

    Args:
        method (`str`):
            clip or siglip.
        arguments ([`PairsBenchmark`]), data ([`~hfssl.cli.multimodal.data.PairDataArguments`]):
            What the user asked for.
    """
    if arguments.against == "open_clip":
        _require_open_clip(method)
    threads = arguments.take_threads()
    with tempfile.TemporaryDirectory(prefix="hfssl-benchmark-") as folder:
        prepared = prepare(data, Path(folder), max(2 * arguments.batch_size, arguments.step_size))
        sides = contenders(method, arguments, data, Path(folder))
        figures = measure(
            sides, blocks=arguments.blocks, steps_per_block=arguments.steps_per_block, threads=threads,
            device=arguments.device,
            # a step of thousands of pairs takes a minute, and settles what there is to settle
            warm_up_steps=WARM_UP_STEPS if arguments.contrastive_batch_size is None else 1,
        )  # fmt: skip
    memory = "peak_gpu_mb" if arguments.on_gpu else "peak_above_start_mb"
    report = {"method": method, "against": arguments.against, "precision": figures["ours"]["precision"], **figures}
    if "theirs" in figures:
        report["ratio"] = ratio(figures, "ours", "theirs")
        report["memory_ratio"] = round(figures["ours"][memory] / figures["theirs"][memory], 4)
    if "plain" in figures:
        report["time_ratio_plain"] = ratio(figures, "plain", "ours")
        report["memory_ratio_plain"] = round(figures["ours"][memory] / figures["plain"][memory], 4)
    made = sides[0].settings
    report |= {name: made[name] for name in ("image_encoder", "text_encoder", "max_length")}
    for name in ("batch_size", "contrastive_batch_size", "num_workers", "blocks", "steps_per_block"):
        report[name] = getattr(arguments, name)
    report |= {"threads": threads, **prepared}
    return _text(arguments, report, figures), report


def _require_open_clip(method: str) -> None:
    if method != "clip":
        raise UserError(
            f"open_clip is measured at CLIP, not at {METHODS[method].method.title}. Leave `--against` out."
        )
    if importlib.util.find_spec("open_clip") is None:
        raise UserError(
            "The benchmark measures against open_clip, which is not installed. Run `pip install open_clip_torch`, or "
            "leave `--against` out."
        )


def prepare(data: PairDataArguments, folder: Path, needed: int) -> dict[str, Any]:
    """Write the images as files into one folder, and their captions into tables, for all sides."""
    source = open_source(
        data.dataset or EMBEDDED["image", "text"],
        inputs=pair_inputs(PAIR, {"image": data.image_column, "text": data.caption_column}),
        config=data.dataset_config, split=data.split, streaming=data.streaming,
    )  # fmt: skip
    number = write_pairs(islice(_pairs(source), max(MOST_PAIRS, needed)), folder)
    if number < needed:
        raise UserError(
            f"{source.description} has {number} pairs that can be used, the benchmark needs {needed}. Pass a smaller "
            "`--batch_size` and `--contrastive_batch_size`, or more pairs."
        )
    return {"corpus": source.description, "num_pairs": number}


def write_pairs(pairs: Iterable[tuple[str, bytes, str]], folder: Path) -> int:
    """Write extensions and bytes of images with their captions: `pairs/` for ours, `train.json` for theirs."""
    images, number = folder / "pairs", 0
    images.mkdir()
    with open(images / "metadata.jsonl", "w") as ours, open(folder / "train.json", "w") as theirs:
        for number, (extension, image, caption) in enumerate(pairs, 1):
            path = images / f"{number:06d}.{extension}"
            path.write_bytes(image)
            ours.write(json.dumps({"file_name": path.name, "caption": caption}) + "\n")
            theirs.write(json.dumps({"image_path": str(path), "caption": caption}) + "\n")
    return number


def _pairs(source: Source) -> Iterator[tuple[str, bytes, str]]:
    """The pairs of a source, from all over it: extension and bytes of the image, and the first caption."""
    for piece in keyed.permutation(len(source.pieces), Use.BENCHMARK_PIECES):
        for pair in source.samples(source.read(int(piece))):
            image, captions = pair["image"], texts_of(pair["text"])
            try:
                extension = image_header(image).format.lower()
            except DamagedImage:
                continue
            if extension not in _READABLE:
                written = io.BytesIO()
                Image.open(io.BytesIO(image)).convert("RGB").save(written, "png")
                extension, image = "png", written.getvalue()
            if captions:
                yield extension, image, captions[0]


def contenders(method: str, arguments: PairsBenchmark, data: PairDataArguments, folder: Path) -> list[Contender]:
    """The sides of this benchmark, in the order of their turns."""
    precision = choose_precision(arguments.precision, arguments.use_cpu)
    # the same files for all sides; nothing else of how to read them applies any more
    here = {"dataset": str(folder / "pairs"), "dataset_config": None, "split": "train", "eval_split": "auto"}
    here |= {"image_column": None, "caption_column": "caption", "streaming": True}
    settings = {
        "method": method, "folder": str(folder), "precision": precision,
        "image_encoder": arguments.image_encoder or f"{method}-image-mini-patch4",
        "text_encoder": arguments.text_encoder or f"{method}-text-mini", "data": dataclasses.replace(data, **here),
    }  # fmt: skip
    for name in ("batch_size", "contrastive_batch_size", "learning_rate", "num_workers", "seed", "use_cpu"):
        settings[name] = getattr(arguments, name)
    _, model, rows, processor = _our_parts(settings, plain_run(arguments))
    stock = model.joint_model()
    if (stock is None and arguments.against == "transformers") or (
        not isinstance(stock, CLIPModel) and arguments.against == "open_clip"
    ):
        raise UserError(
            f"{arguments.against} has no class that holds {settings['image_encoder']} and {settings['text_encoder']} "
            "and trains them. Choose other encoders, or pass `--against none`."
        )
    if stock is not None:
        stock.save_pretrained(folder / "stock")
    processor.save_pretrained(folder / "stock")
    # one tokenizer for all
    settings["data"] = dataclasses.replace(settings["data"], tokenizer=str(folder / "stock"))
    settings["max_length"] = rows.sides["text"].max_length
    views = rows.sides["image"]
    settings |= {"image_size": views.image_size, "mean": views.mean, "std": views.std, "training": TRAINING}
    if arguments.against == "open_clip":
        settings["open_clip"] = model_settings(model)
    title = "hfssl" if arguments.contrastive_batch_size is None else "hfssl, gradient cache"
    sides = [Contender("ours", title, precision, train_ours, settings, "pairs")]
    theirs = {"transformers": train_run_clip, "open_clip": train_open_clip}.get(arguments.against)
    if theirs is not None:
        sides.append(Contender("theirs", arguments.against, precision, theirs, settings, "pairs"))
    if arguments.contrastive_batch_size is not None:
        plain, times = settings | {"contrastive_batch_size": None}, arguments.step_size // arguments.batch_size
        name = f"hfssl, steps of {arguments.batch_size}"
        sides.append(Contender("plain", name, precision, train_ours, plain, "pairs", steps_as_one=times))
    return sides


def num_pairs(batch: dict[str, torch.Tensor]) -> int:
    return len(batch["pixel_values"])


def _our_parts(settings: dict[str, Any], args: Any) -> tuple[PairData, PairModel, PairRows, PairProcessor]:
    """Data, model, rows and processor of the recipe."""
    # what the run finds out about the data is its own
    data = PairData(dataclasses.replace(settings["data"]), PAIR)
    recipe = PairEncoderArguments(image_encoder=settings["image_encoder"], text_encoder=settings["text_encoder"])
    model_class = METHODS[settings["method"]]
    config = model_class.config_class(pair=PAIR)
    fields = {"pair": PAIR, "projection_dim": config.projection_dim}
    views = ViewArguments()
    model = build_pair(model_class, recipe, fields, data, views, args, set())
    rows, processor = pair_rows(model, recipe, data, views, set())
    return data, model, rows, processor


def _run(pace: Pace, settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a trainer, ours or theirs, but for its batch."""
    return {
        "output_dir": tempfile.mkdtemp(dir=settings["folder"]), "max_steps": pace.num_steps, "seed": settings["seed"],
        "use_cpu": settings["use_cpu"] or not torch.cuda.is_available(), "learning_rate": settings["learning_rate"],
        "dataloader_num_workers": settings["num_workers"], **TRAINING,
    }  # fmt: skip


def train_ours(pace: Pace, settings: dict[str, Any]) -> float:
    """`recipes/clip.py` or `siglip.py` without its evaluation and its result."""
    from ..training.arguments import SSLTrainingArguments
    from ..training.trainer import SSLTrainer

    class TimedTrainer(Timed, SSLTrainer):
        pass

    args = SSLTrainingArguments(
        **_run(pace, settings), per_device_train_batch_size=settings["batch_size"],
        contrastive_batch_size=settings["contrastive_batch_size"], precision=settings["precision"],
        cpu_threads=torch.get_num_threads(),
    )  # fmt: skip
    pace.data_is_readable()
    data, model, rows, processor = _our_parts(settings, args)
    trainer = TimedTrainer(
        pace, num_pairs, model, args, data.stream(args, rows), settings=data.settings, processing_class=processor
    )
    trainer.train()
    return trainer.flops()


def train_run_clip(pace: Pace, settings: dict[str, Any]) -> float:
    """`examples/pytorch/contrastive-image-text/run_clip.py` of transformers."""
    from datasets import load_dataset
    from torchvision.io import ImageReadMode, read_image
    from torchvision.transforms import CenterCrop, Compose, ConvertImageDtype, Normalize, Resize
    from torchvision.transforms.functional import InterpolationMode
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, Trainer, TrainingArguments, set_seed

    class TimedTrainer(Timed, Trainer):
        pass

    batch_size = settings["contrastive_batch_size"] or settings["batch_size"]
    args = TrainingArguments(
        **_run(pace, settings), per_device_train_batch_size=batch_size, bf16=settings["precision"] == "bf16",
        remove_unused_columns=False,
    )  # fmt: skip
    use_one_gpu(args)  # as our side
    stock, captions = Path(settings["folder"]) / "stock", str(Path(settings["folder"]) / "train.json")
    pace.data_is_readable()
    # a cache of its own: as on the first run on these data
    cache = tempfile.mkdtemp(dir=settings["folder"])
    dataset = load_dataset("json", data_files={"train": captions}, cache_dir=cache)["train"]
    tokenizer, processor = AutoTokenizer.from_pretrained(stock), AutoImageProcessor.from_pretrained(stock)
    model = AutoModel.from_pretrained(stock)
    set_seed(args.seed)
    size = settings["image_size"]
    transforms = Compose(
        [
            Resize([size], interpolation=InterpolationMode.BICUBIC, antialias=True), CenterCrop(size),
            ConvertImageDtype(torch.float), Normalize(processor.image_mean, processor.image_std),
        ]
    )  # fmt: skip

    def tokenize_captions(examples):
        return tokenizer(
            list(examples["caption"]), max_length=settings["max_length"], padding="max_length", truncation=True
        )

    def transform_images(examples):
        images = [read_image(path, mode=ImageReadMode.RGB) for path in examples["image_path"]]
        examples["pixel_values"] = [transforms(image) for image in images]
        return examples

    def collate(examples):
        names = [name for name in ("input_ids", "attention_mask") if name in examples[0]]
        batch = {name: torch.tensor([example[name] for example in examples], dtype=torch.long) for name in names}
        return {"pixel_values": torch.stack([e["pixel_values"] for e in examples]), **batch, "return_loss": True}

    dataset = dataset.map(tokenize_captions, batched=True, remove_columns=["caption"])
    dataset.set_transform(transform_images)
    trainer = TimedTrainer(pace, num_pairs, model=model, args=args, train_dataset=dataset, data_collator=collate)
    trainer.train()
    few = settings["batch_size"]  # as many as ours embeds at once: similarities are no great part
    trainer.batch = {name: value if value is True else value[:few] for name, value in trainer.batch.items()}
    return trainer.flops()


def _text(arguments: PairsBenchmark, report: dict[str, Any], figures: dict[str, Any]) -> str:
    title, workers = METHODS[report["method"]].method.title, arguments.num_workers
    size = f"{arguments.batch_size:,} pairs a step"
    if arguments.contrastive_batch_size is not None:
        size = f"{arguments.step_size:,} pairs a step, of which {arguments.batch_size:,} are embedded at once"
    lines = [
        f"{title}: {report['image_encoder']} and {report['text_encoder']}, {size}, captions of up to "
        f"{report['max_length']} tokens, {report['threads']} of {num_cores()} cores, {workers or 'no'} data "
        f"worker{'s' if workers != 1 else ''}.",
        f"Pairs: {report['corpus']}; {report['num_pairs']:,} of them, as files in a folder.",
        f"In turn, {arguments.blocks} blocks of {arguments.steps_per_block} steps each; medians over the blocks.",
        "",
        table(figures),
        "",
        *ratio_line(report, figures, "ratio", "ours", "theirs", "each side as its recipe or script builds it"),
    ]
    memory = "on the GPU" if arguments.on_gpu else "above the start"
    if "memory_ratio" in report:
        lines.append(f"memory_ratio: {report['memory_ratio']:.2f}: peak {memory}, hfssl over {arguments.against}")
    if "plain" in figures:
        plain = f"with the gradient cache over plain steps of {arguments.batch_size}"
        lines += ratio_line(report, figures, "time_ratio_plain", "plain", "ours", f"time a pair, {plain}")
        lines.append(f"memory_ratio_plain: {report['memory_ratio_plain']:.2f}: peak {memory}, {plain}")
    notes = [
        "FLOPs are counted with torch.utils.flop_counter on a batch of each side, forward and backward once: what the "
        "gradient cache embeds a second time is no part of them. A higher utilisation is not a higher speed.",
        "Peak memory is the resident size of the process, files that it maps included; above the start is what came "
        "after the imports.",
        "Of a step of several batches the first waits for the data of all.",
    ]
    if "theirs" in figures:
        notes.append("Losses of different sides: other crops and another order.")
        notes.append(_OF_PEERS[arguments.against])
    if figures["ours"]["precision"] == "bf16" and choose_precision("auto", arguments.use_cpu) != "bf16":
        notes.append("This machine has no native bf16: it is emulated, on all sides.")
    notes += disturbance(figures)
    return "\n".join([*lines, "", "Not comparable, or to be known:", *(f"- {note}" for note in notes)])
