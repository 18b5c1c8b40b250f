"""Methods for speech, measured against others: the contenders of [`~hfssl.benchmarks.base.measure`].

- ours: what `recipes/wav2vec2.py` and `recipes/hubert.py` build, [`SSLTrainer`] on an [`ExactStream`];
- theirs, wav2vec 2.0: `Wav2Vec2ForPreTraining` in the loop of transformers' `run_wav2vec2_pretraining_no_trainer.py`,
  masks and negatives drawn by its collator for the whole batch, clips padded to the longest;
- theirs, HuBERT: torchaudio's `hubert_pretrain_model` in the loop of its example, units of MFCC made beforehand, clips
  of like length together, as many as make the seconds of a batch, cut to the shortest.

All take the same recordings, encoder, heads, masking, optimizer, learning rate and precision. What is counted are
seconds of sound without padding. Logging, evaluation and checkpoints are off on all sides. What the others prepare
before they train (decoded sound, units) is made before their processes start and is read from a file: it counts
neither for their time nor for their memory.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from ..cli.audio.data import AudioDataArguments
from ..cli.audio.encoders import AudioEncoderArguments
from ..cli.audio.presets import AUDIO_PRESETS
from ..cli.encoders import fresh_config
from ..data.audio.decode import DamagedAudio, decode_audio
from ..data.audio.rows import AudioFormat, normalized
from ..data.audio.streams import recordings
from ..errors import UserError
from ..machine import choose_precision, num_cores
from ..modeling import units
from ..modeling.audio import num_frames
from ..modeling.filter_banks import SAMPLING_RATE, mfcc
from .arguments import BenchmarkArguments
from .base import Contender, Pace, count_flops_of, disturbance, measure, num_positions, ratio, ratio_line, table
from .training import NOTHING_BESIDE, Timed


# Both sides, as the recipes have it.
TRAINING = {
    "weight_decay": 0.01, "adam_beta2": 0.98, "adam_epsilon": 1e-6, "max_grad_norm": 1.0, "warmup_steps": 5,
    "optim": "adamw_torch_fused", **NOTHING_BESIDE,
}  # fmt: skip
# Who has each method.
AGAINST = {"wav2vec2": "transformers", "hubert": "torchaudio"}
MOST_RECORDINGS = 2000
RECORDINGS = "recordings.parquet"


@dataclass
class SpeechBenchmark(BenchmarkArguments):
    r"""
    > Benchmark

    Args:
        against (`str`, *optional*):
            Whom to measure against: transformers for wav2vec2, torchaudio for hubert.
        encoder (`str`, *optional*):
            wav2vec2- or hubert- mini, small or base, or a config file. Left out: small.
        learning_rate (`float`, *optional*, defaults to `0.0005`):
            Peak learning rate of both sides.
        steps_per_block (`int`, *optional*, defaults to `5`):
            Steps of a turn.
    """

    against: str | None = None
    encoder: str | None = None
    learning_rate: float = 5e-4
    steps_per_block: int = 5

    def __post_init__(self):
        super().__post_init__()
        self.require_scratch("encoder", AUDIO_PRESETS)


def run_speech_benchmark(
    method: str, arguments: SpeechBenchmark, data: AudioDataArguments
) -> tuple[str, dict[str, Any]]:
    """Prepare the recordings, measure, and return what to read and what `--json` prints.

    Args:
        method (`str`):
            wav2vec2 or hubert.
        arguments ([`SpeechBenchmark`]), data ([`~hfssl.cli.audio.data.AudioDataArguments`]):
            What the user asked for.
    """
    if arguments.against not in (None, AGAINST[method]):
        raise UserError(
            f"`--against {arguments.against}` has no {method} to measure against: pass {AGAINST[method]}, or leave it "
            "out."
        )
    threads = arguments.take_threads()
    with tempfile.TemporaryDirectory(prefix="hfssl-benchmark-") as folder:
        sides, prepared = contenders(method, arguments, data, folder)
        figures = measure(
            sides, blocks=arguments.blocks, steps_per_block=arguments.steps_per_block, threads=threads,
            device=arguments.device,
        )  # fmt: skip
    settings = sides[0].settings
    report = {"method": method, "against": AGAINST[method], "encoder": settings["encoder"]}
    report |= {"precision": settings["precision"], **figures}
    peaks = [figures[side].get("peak_gpu_mb" if arguments.on_gpu else "peak_mb") for side in ("ours", "theirs")]
    report |= {"ratio": ratio(figures, "ours", "theirs"), "memory_ratio": round(peaks[0] / peaks[1], 4)}
    report |= {"batch_seconds": data.batch_seconds, "threads": threads}
    report |= {"blocks": arguments.blocks, "steps_per_block": arguments.steps_per_block, **prepared}
    return _text(report, figures), report


def contenders(
    method: str, arguments: SpeechBenchmark, data: AudioDataArguments, folder: str
) -> tuple[list[Contender], dict[str, Any]]:
    """Both sides, and what is said of the recordings, which are prepared in `folder`."""
    precision = choose_precision(arguments.precision, arguments.use_cpu)
    settings = {
        "method": method, "encoder": arguments.encoder or f"{method}-small", "arguments": arguments, "data": data,
        "folder": folder, "precision": precision,
    }  # fmt: skip
    prepared = prepare(settings)
    settings["clips_a_step"] = prepared["clips_a_step"]
    theirs = train_transformers if method == "wav2vec2" else train_torchaudio
    return [
        Contender("ours", "hfssl", precision, train_ours, settings, "seconds"),
        Contender("theirs", AGAINST[method], precision, theirs, settings, "seconds"),
    ], prepared


def prepare(settings: dict[str, Any]) -> dict[str, Any]:
    """Write the recordings as one file, those that are neither damaged nor too short, and what the other side has made
    of them before it trains: decoded sound (what is too long is cut off), and for HuBERT units."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ..data.sources import open_source

    data, folder = settings["data"], Path(settings["folder"])
    encoder, method = _configs(settings)
    # refuses what our side would refuse later
    AudioFormat(encoder, max_seconds=data.max_seconds, min_seconds=data.min_seconds)
    if settings["method"] == "wav2vec2" and not (
        encoder.feat_extract_norm == "layer" and encoder.do_stable_layer_norm
    ):
        raise UserError(
            "transformers' script trains no wav2vec 2.0 but those with `feat_extract_norm=layer` and "
            "`do_stable_layer_norm=true`: pass an `--encoder` that has them, such as wav2vec2-small."
        )
    source = open_source(
        data.dataset, modality="audio", column=data.audio_column, config=data.dataset_config, split=data.split,
        streaming=data.streaming,
    )  # fmt: skip
    most = round(data.max_seconds * SAMPLING_RATE)
    kept, lengths, frames, decoded = [], [], [], 0.0
    with open(folder / Sounds.SAMPLES, "wb") as file:
        for _, sample in recordings(source, MOST_RECORDINGS):
            begin = time.perf_counter()
            try:
                sound = decode_audio(sample, SAMPLING_RATE)[:most]
            except DamagedAudio:
                continue
            # as in our stream: of silence nothing is learned
            if len(sound) < data.min_seconds * SAMPLING_RATE or sound.min() == sound.max():
                continue
            normalized(sound).tofile(file)
            if settings["method"] == "hubert":
                frames.append(mfcc(torch.from_numpy(sound)).numpy())
            decoded += time.perf_counter() - begin
            kept.append(sample)
            lengths.append(len(sound))
    if not kept:
        raise UserError(f"No recording of {source.description} can be used. Pass other data.")
    pq.write_table(pa.table({"audio": kept}), folder / RECORDINGS, row_group_size=100)
    np.save(folder / Sounds.LENGTHS, np.array(lengths))
    if frames:
        begin, seed = time.perf_counter(), settings["arguments"].seed
        sample = units.sample_of_frames(frames, method.kmeans_frames, seed)
        centroids = units.fit_units(sample, method.num_units, seed, method.kmeans_restarts)
        # one for each frame of the encoder, of every other one of the MFCC
        of_clips = [units.nearest_units(of_clip, centroids)[::2] for of_clip in frames]
        np.savez(folder / Sounds.UNITS, *of_clips)
        decoded += time.perf_counter() - begin
    mean = float(np.mean(lengths)) / SAMPLING_RATE
    return {
        "recordings": source.description, "num_recordings": len(kept), "mean_seconds": mean,
        "clips_a_step": max(round(data.batch_seconds / mean), 1), "prepared_s": round(decoded, 2),
    }  # fmt: skip


class Sounds(torch.utils.data.Dataset):
    """Recordings that are decoded and normalised, each read from one file when it is asked for: so neither side holds
    them in memory. With units, where these were made: `(sound, units)`."""

    SAMPLES, LENGTHS, UNITS = "samples.f32", "lengths.npy", "units.npz"

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / self.SAMPLES
        self.lengths = np.load(Path(folder) / self.LENGTHS)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.units: list[np.ndarray] = []
        if (made := Path(folder) / self.UNITS).exists():
            with np.load(made) as rows:
                self.units = [rows[f"arr_{i}"] for i in range(len(self.lengths))]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        sound = np.fromfile(self.path, np.float32, int(self.lengths[row]), offset=4 * int(self.starts[row]))
        return (sound, self.units[row]) if self.units else sound


class LikeLength:
    """Batches of clips of like length, as torchaudio's example draws them: in the order of their lengths, equal ones
    in any, as many as have `most_samples` together; the batches in any order, other ones in each pass."""

    def __init__(self, lengths: np.ndarray, most_samples: int, seed: int):
        self.lengths, self.most_samples, self.rng = lengths, most_samples, np.random.default_rng(seed)

    def __iter__(self) -> Iterator[list[int]]:
        batches: list[list[int]] = [[]]
        total = 0
        for row in np.lexsort((self.rng.random(len(self.lengths)), self.lengths)).tolist():
            total += self.lengths[row]
            if total > self.most_samples and batches[-1]:
                batches.append([])
                total = self.lengths[row]
            batches[-1].append(row)
        yield from (batches[i] for i in self.rng.permutation(len(batches)))


def seconds_of(batch: dict[str, torch.Tensor]) -> torch.Tensor | float:
    """Sound of a batch, padding left out."""
    if "attention_mask" in batch:
        return batch["attention_mask"].sum() / SAMPLING_RATE
    return num_positions(batch)


def train_ours(pace: Pace, settings: dict[str, Any]) -> float:
    """The recipe without its evaluation and its result."""
    from ..cli.audio.data import AudioData
    from ..cli.audio.encoders import make_processor
    from ..cli.modality import build_method
    from ..methods import METHODS
    from ..training.arguments import SSLTrainingArguments
    from ..training.trainer import SSLTrainer

    class TimedTrainer(Timed, SSLTrainer):
        pass

    arguments = settings["arguments"]
    args = SSLTrainingArguments(
        output_dir=tempfile.mkdtemp(dir=settings["folder"]), max_steps=pace.num_steps, seed=arguments.seed,
        use_cpu=arguments.use_cpu, learning_rate=arguments.learning_rate, precision=settings["precision"],
        cpu_threads=torch.get_num_threads(), **TRAINING,
    )  # fmt: skip
    pace.data_is_readable()
    path = str(Path(settings["folder"]) / RECORDINGS)
    here = {"dataset": path, "dataset_config": None, "split": "train", "eval_split": "auto", "audio_column": "audio"}
    data = AudioData(dataclasses.replace(settings["data"], **here, streaming=True))
    recipe = AudioEncoderArguments(settings["encoder"])
    model = build_method(METHODS[settings["method"]], recipe, {}, data, args, set())
    processor = make_processor(recipe, model)
    stream = data.stream(args, model, processor)
    trainer = TimedTrainer(pace, seconds_of, model, args, stream, settings=data.settings, processing_class=processor)
    trainer.train()
    return trainer.flops()


def train_transformers(pace: Pace, settings: dict[str, Any]) -> float:
    """`examples/pytorch/speech-pretraining/run_wav2vec2_pretraining_no_trainer.py` of transformers."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining
    from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices

    encoder, method = _configs(settings)
    config = Wav2Vec2Config(**{
        **encoder.to_dict(), "num_codevectors_per_group": method.num_codes, "codevector_dim": method.code_dim,
        "num_codevector_groups": method.num_codebooks, "proj_codevector_dim": method.projection_dim,
        "num_negatives": method.num_negatives, "mask_time_prob": method.mask_ratio,
        "mask_time_length": method.mask_length, "layerdrop": 0.0,
    })  # fmt: skip
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    sounds = _begin(pace, settings)
    model = Wav2Vec2ForPreTraining(config)

    def collate(clips: list[np.ndarray]) -> dict[str, torch.Tensor]:
        rows = [{"input_values": clip} for clip in clips]
        batch = dict(extractor.pad(rows, padding="longest", return_tensors="pt"))
        length = int(model._get_feat_extract_output_lengths(batch["input_values"].shape[1]))
        sound = model._get_feature_vector_attention_mask(length, batch["attention_mask"])
        shape = (len(rows), length)
        masks = _compute_mask_indices(shape, config.mask_time_prob, config.mask_time_length, attention_mask=sound)
        negatives = _sample_negative_indices(shape, config.num_negatives, mask_time_indices=masks)
        batch["mask_time_indices"] = torch.tensor(masks, dtype=torch.long)
        batch["sampled_negative_indices"] = torch.tensor(negatives, dtype=torch.long)
        return batch

    def loss_of(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return model(**batch).loss, batch["mask_time_indices"].sum()

    rows = settings["clips_a_step"]
    loader = DataLoader(sounds, rows, shuffle=True, collate_fn=collate, drop_last=len(sounds) > rows)
    return _train_loop(pace, settings, model, loader, loss_of)


def train_torchaudio(pace: Pace, settings: dict[str, Any]) -> float:
    """`examples/self_supervised_learning` of torchaudio: HuBERT on units of MFCC."""
    from torchaudio.models import hubert_pretrain_model

    from ..training.arguments import SSLTrainingArguments

    encoder, method = _configs(settings)
    convolutions = list(zip(encoder.conv_dim, encoder.conv_kernel, encoder.conv_stride, strict=True))
    sounds = _begin(pace, settings)
    scale = method.feature_grad_mult if method.feature_grad_mult < 1.0 else None
    is_layer = encoder.feat_extract_norm == "layer"
    model = hubert_pretrain_model(
        extractor_mode="layer_norm" if is_layer else "group_norm", extractor_conv_layer_config=convolutions,
        extractor_conv_bias=encoder.conv_bias, encoder_embed_dim=encoder.hidden_size,
        encoder_projection_dropout=encoder.feat_proj_dropout, encoder_pos_conv_kernel=encoder.num_conv_pos_embeddings,
        encoder_pos_conv_groups=encoder.num_conv_pos_embedding_groups, encoder_num_layers=encoder.num_hidden_layers,
        encoder_num_heads=encoder.num_attention_heads, encoder_attention_dropout=encoder.attention_dropout,
        encoder_ff_interm_features=encoder.intermediate_size, encoder_ff_interm_dropout=encoder.activation_dropout,
        encoder_dropout=encoder.hidden_dropout, encoder_layer_norm_first=encoder.do_stable_layer_norm,
        encoder_layer_drop=0.0, mask_prob=method.mask_ratio, mask_selection="static", mask_other=0.0,
        mask_length=method.mask_length, no_mask_overlap=False, mask_min_space=1, mask_channel_prob=0.0,
        mask_channel_selection="static", mask_channel_other=0.0, mask_channel_length=10, no_mask_channel_overlap=False,
        mask_channel_min_space=1, skip_masked=False, skip_nomask=False, num_classes=method.num_units,
        final_dim=method.projection_dim, feature_grad_mult=scale,
    )  # fmt: skip

    def loss_of(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, None]:
        masked, _, penalty = model(batch["input_values"], batch["labels"], batch["lengths"])
        right = torch.zeros(len(masked), dtype=torch.long, device=masked.device)
        return F.cross_entropy(masked.float(), right) + method.penalty_weight * penalty, None

    arguments, data = settings["arguments"], settings["data"]
    batches = LikeLength(sounds.lengths, round(data.batch_seconds * SAMPLING_RATE), arguments.seed)
    # processes that prepare the batches, as the example has them, where ours have them too
    ours = SSLTrainingArguments(
        output_dir=settings["folder"], use_cpu=arguments.use_cpu, cpu_threads=torch.get_num_threads()
    )
    workers = ours.dataloader_num_workers
    loader = DataLoader(
        sounds, batch_sampler=batches, collate_fn=CutToShortest(encoder), num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    return _train_loop(pace, settings, model, loader, loss_of)


class CutToShortest:
    """Clips and their units to a batch without padding."""

    def __init__(self, encoder: Any):
        self.encoder = encoder

    def __call__(self, rows: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
        shortest = min(len(sound) for sound, _ in rows)
        length = num_frames(self.encoder, shortest)
        labels = [torch.from_numpy(np.pad(of[:length], (0, max(length - len(of), 0)), mode="edge")) for _, of in rows]
        return {
            "input_values": torch.stack([torch.from_numpy(sound[:shortest]) for sound, _ in rows]),
            "labels": torch.stack(labels).long(), "lengths": torch.full((len(rows),), shortest),
        }  # fmt: skip


def _configs(settings: dict[str, Any]) -> tuple[Any, Any]:
    """The configuration of the encoder from scratch, and the one that our recipe makes of the method for it."""
    from ..methods import METHODS

    encoder = fresh_config(settings["encoder"], AUDIO_PRESETS)
    method = METHODS[settings["method"]]
    return encoder, method.config_class(encoder_config=encoder, **method.method.fields_for(encoder, set()))


def _begin(pace: Pace, settings: dict[str, Any]) -> Sounds:
    pace.data_is_readable()
    torch.manual_seed(settings["arguments"].seed)
    # the functions of transformers draw from it
    np.random.seed(settings["arguments"].seed)
    return Sounds(settings["folder"])


def _train_loop(
    pace: Pace,
    settings: dict[str, Any],
    model: torch.nn.Module,
    loader: DataLoader,
    loss_of: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, Any]],
) -> float:
    """The loop of both scripts: gradients are divided by the number that a loss comes with, where it is a sum. Returns
    FLOPs a second."""
    from transformers import get_linear_schedule_with_warmup

    arguments = settings["arguments"]
    device = torch.device(arguments.device)
    model.to(device).train()
    trained = list(model.parameters())
    optimizer = torch.optim.AdamW(
        trained, arguments.learning_rate, betas=(0.9, TRAINING["adam_beta2"]), eps=TRAINING["adam_epsilon"],
        weight_decay=TRAINING["weight_decay"], fused=True,
    )  # fmt: skip
    schedule = get_linear_schedule_with_warmup(optimizer, TRAINING["warmup_steps"], pace.num_steps)
    batches = iter(loader)
    for _ in range(pace.num_steps):
        begin, mark = time.perf_counter(), pace.mark()
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        pace.fetched(time.perf_counter() - begin, seconds_of(batch), num_positions(batch), (mark, pace.mark()))
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=settings["precision"] == "bf16"):
            loss, number = loss_of(batch)
        loss.backward()
        if number is not None:
            loss = loss / number
            for parameter in trained:
                if parameter.grad is not None:
                    parameter.grad.data.mul_(1 / number)
        torch.nn.utils.clip_grad_norm_(trained, TRAINING["max_grad_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        pace.stepped(loss.detach())
    return count_flops_of(lambda: loss_of(batch)[0]) / num_positions(batch)


def _text(report: dict[str, Any], figures: dict[str, Any]) -> str:
    peer = report["against"]
    takes, has_made = f"takes {report['clips_a_step']} of them a step, drawn evenly, and pads them", "decoded them"
    if report["method"] == "hubert":
        takes = "takes those of like length together, as many as make these seconds, and cuts them to the shortest"
        has_made = "decoded them and made their units"
    lines = [
        f"{report['method']}: {report['encoder']}, about {report['batch_seconds']:g} s of sound a step, "
        f"{report['threads']} of {num_cores()} cores.",
        f"Recordings: {report['recordings']}; {report['num_recordings']:,}, of {report['mean_seconds']:.1f} s in the "
        f"mean; {peer} {takes}.",
        f"In turn, {report['blocks']} blocks of {report['steps_per_block']} steps each; medians over the blocks.",
        "",
        table(figures),
        "",
        *ratio_line(report, figures, "ratio", "ours", "theirs", f"hfssl over {peer}, seconds of sound a second"),
        f"memory_ratio: {report['memory_ratio']:.2f}: peak, hfssl over {peer}",
        "",
        "Not comparable, or to be known:",
        "- Losses: other clips and other masks, and of hfssl all terms together are a mean.",
        f"- {peer}'s side has {has_made} before its process starts ({report['prepared_s']:.1f} s), and reads them "
        "from a file; hfssl does it in its own: decoding is a part of its speed, and units of its time to the first "
        "step and of its memory.",
        "- No layer is left out at random (LayerDrop) on either side.",
    ]
    if report["method"] == "hubert":
        lines.append(
            "- As its example has it, torchaudio's model is told the lengths of clips, which makes a mask for "
            "attention, and compares frames that are not hidden with the units too, though their weight is 0."
        )
    return "\n".join([*lines, *(f"- {note}" for note in disturbance(figures))])
