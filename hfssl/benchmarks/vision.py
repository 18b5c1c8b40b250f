"""Methods for images, measured against `lightly` and `transformers`: contenders of [`~.base.measure`].

- ours: what `recipes/{simclr,mae,byol,dino,dinov2,swav}.py` build, [`SSLTrainer`] on an [`ExactStream`] of [`Views`];
- theirs: what lightly's examples build (`hfssl.benchmarks.lightly`), or for MAE `run_mae.py` of transformers:
  `Trainer` with `ViTMAEForPreTraining`;
- ours in their configuration: the attention implementation that theirs has;
- ours crop by crop (`hfssl.benchmarks.by_crop`): what joining crops and leaving out what is dropped is worth;
- a bare loop around our model and stream, without any trainer.

All read the same folder of image files, make views with the same parameters and train the same encoder with the same
optimizer. Logging, evaluation and checkpoints are off on all sides.
"""

import dataclasses
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from transformers import PreTrainedConfig

from ..cli.image.data import ImageData, ImageDataArguments
from ..cli.image.encoders import AUTO
from ..cli.image.presets import VISION_PRESETS
from ..data.image.decode import DamagedImage, image_header
from ..data.image.views import Views
from ..data.sources import Source, open_source
from ..errors import UserError
from ..functional import keyed
from ..functional.keyed import Use
from ..machine import choose_precision, num_cores
from ..methods import METHODS
from ..modeling.vision import uses_attention
from .arguments import BenchmarkArguments
from .base import Contender, disturbance, measure, ratio, ratio_line, table
from .training import NOTHING_BESIDE, plain_run
from .vision_training import build_benchmark_model, make_benchmark_views, train_bare, train_ours, train_run_mae


logger = logging.getLogger(__name__)

# All sides: the optimizer of the papers' successors with ViTs.
_OPTIMIZER = {"weight_decay": 0.05, "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_epsilon": 1e-8}
_TRAINING = {
    **_OPTIMIZER, "max_grad_norm": 1.0, "warmup_steps": 5, "optim": "adamw_torch_fused", **NOTHING_BESIDE,
}  # fmt: skip
# More would only take room on the disk.
MOST_IMAGES = 10_000


@dataclass
class VisionBenchmark(BenchmarkArguments):
    r"""
    > Benchmark

    Args:
        against (`str`, *optional*, defaults to `"lightly"`):
            Whom to measure against: lightly, or for MAE transformers. none: nobody, only what the trainer costs beside
            a bare loop (`--bare`).
        encoder (`str`, *optional*):
            A preset of the recipe or a config file. Left out, vit-tiny-patch4 for MAE, vit-mini-patch4 for the others.
        image_size (`int`, *optional*):
            Height and width of a view in pixels. Left out, that of the encoder.
        attention (`str`, *optional*, defaults to `"auto"`):
            Attention of ours: auto, eager, sdpa or flash_attention_2.
        batch_size (`int`, *optional*, defaults to `256`):
            Images a step.
        defaults (`bool`, *optional*, defaults to `False`):
            Each side at the precision that it has by default: ours auto, theirs fp32.
        bare (`bool`, *optional*, defaults to `False`):
            Also a bare loop around our model and stream: what the trainer costs.
        by_crop (`bool`, *optional*, defaults to `False`):
            Of DINO and DINOv2 also ours with one forward pass and one call of the head for each crop, and dropped
            paths computed and multiplied by 0: what the step saves by doing otherwise.
        learning_rate (`float`, *optional*, defaults to `0.0005`):
            Peak learning rate of all sides.
        num_workers (`int`, *optional*, defaults to `-1`):
            Processes that prepare data, on all sides. -1: none on a CPU, beside a GPU one for each core but one.
    """

    against: Literal["lightly", "transformers", "none"] = "lightly"
    encoder: str | None = None
    image_size: int | None = None
    attention: str = "auto"
    batch_size: int = 256
    defaults: bool = False
    bare: bool = False
    by_crop: bool = False
    learning_rate: float = 5e-4
    num_workers: int = -1

    def __post_init__(self):
        super().__post_init__()
        self.require(batch_size=2)
        if self.encoder != AUTO:
            self.require_scratch("encoder", VISION_PRESETS)
        self.bare = self.bare or (self.against == "none" and not self.by_crop)
        if self.defaults and self.precision != "auto":
            raise UserError(
                "`--defaults` compares each side at its own precision, `--precision` sets one for both: leave one of "
                "them out."
            )
        if self.num_workers < 0:
            self.num_workers = self.default_workers


def run_vision_benchmark(
    method: str, arguments: VisionBenchmark, data: ImageDataArguments
) -> tuple[str, dict[str, Any]]:
    """Prepare the images, measure, and return what to read and what `--json` prints.

    Args:
        method (`str`):
            simclr, mae, byol, dino or swav.
        arguments ([`VisionBenchmark`]):
            What to measure.
        data ([`ImageDataArguments`]):
            The images.
    """
    settings = METHODS[method].method.benchmark
    if arguments.against not in (*settings.against, "none"):
        others = " or ".join(f"`--against {name}`" for name in settings.against)
        raise UserError(f"{arguments.against} has nothing that trains {method}. Pass {others}.")
    if arguments.against == "lightly":
        require_lightly()
    threads = arguments.take_threads()
    # small encoders: what the data and the trainer cost shows best beside them
    encoder = arguments.encoder or settings.encoder or "vit-mini-patch4"
    arguments = dataclasses.replace(arguments, encoder=encoder)
    with tempfile.TemporaryDirectory(prefix="hfssl-benchmark-") as folder:
        prepared = prepare(data, Path(folder) / "images", arguments)
        sides = contenders(method, arguments, data, Path(folder))
        figures = measure(
            sides,
            blocks=arguments.blocks,
            steps_per_block=arguments.steps_per_block,
            threads=threads,
            device=arguments.device,
        )
    report = {"method": method, "against": arguments.against, "precision": figures["ours"]["precision"]} | figures
    if "theirs" in figures:
        report["ratio"] = ratio(figures, "ours", "theirs")
        report["memory_ratio"] = round(figures["ours"]["peak_mb"] / figures["theirs"]["peak_mb"], 4)
    if "ours_same_config" in figures:
        report["ratio_same_config"] = ratio(figures, "ours_same_config", "theirs")
    if "by_crop" in figures:
        report["ratio_by_crop"] = ratio(figures, "ours", "by_crop")
    if "bare" in figures:
        report["overhead"] = round(ratio(figures, "bare", "ours") - 1, 4)
    views, local = sides[0].settings["views"], sides[0].settings["local_view"]
    protocol = {"encoder": arguments.encoder, "image_size": views[0]["size"], "batch_size": arguments.batch_size}
    if local is not None:
        protocol |= {"local_crops": sides[0].settings["num_local"], "local_size": local["size"]}
    protocol |= {"num_workers": arguments.num_workers, "blocks": arguments.blocks, "threads": threads}
    report |= protocol | {"steps_per_block": arguments.steps_per_block} | prepared
    return _text(arguments, report, figures), report


def require_lightly() -> None:
    """Say how to install lightly where it is missing."""
    try:
        import lightly.transforms  # noqa: F401
    except ImportError:
        raise UserError(
            'The benchmark measures against lightly, which is not installed. Run `pip install -e ".[benchmark]"`, or '
            "pass `--against none`."
        ) from None


def prepare(data: ImageDataArguments, folder: Path, arguments: VisionBenchmark) -> dict[str, Any]:
    """Write the images as files into one folder, for all sides."""
    folder.mkdir()
    source = open_source(
        data.dataset,
        modality="image",
        column=data.image_column,
        config=data.dataset_config,
        split=data.split,
        streaming=data.streaming,
    )
    number = _write_images(source, folder)
    # some are held out, and a data loader that drops its last batch needs a whole one
    needed = 2 * arguments.batch_size
    if number < needed:
        raise UserError(
            f"{source.description} has {number} images that can be decoded, the benchmark needs {needed} at "
            f"`--batch_size {arguments.batch_size}`. Pass a smaller one, or more images."
        )
    return {"corpus": source.description, "num_images": number}


def _write_images(source: Source, folder: Path) -> int:
    """Up to `MOST_IMAGES` of a source, from all over it, by the names that tell their formats."""
    number = 0
    for piece in keyed.permutation(len(source.pieces), Use.BENCHMARK_PIECES):
        for image in source.samples(source.read(int(piece))):
            try:
                extension = image_header(image).format.lower()
            except DamagedImage:
                continue
            (folder / f"{number:06d}.{extension}").write_bytes(image)
            number += 1
            if number == MOST_IMAGES:
                return number
    return number


def contenders(method: str, arguments: VisionBenchmark, data: ImageDataArguments, folder: Path) -> list[Contender]:
    """The sides of this benchmark, in the order of their turns.

    The settings of each are plain values: what another library's process unpickles imports nothing of ours.
    """
    precision = choose_precision(arguments.precision, arguments.use_cpu)
    recipe = {"encoder": arguments.encoder, "attention": arguments.attention}
    # the same folder for all sides; nothing else of how to read it applies any more
    ours = {"dataset": str(folder / "images"), "dataset_config": None, "split": "train", "eval_split": "auto"}
    ours |= {"image_column": None, "streaming": True}
    data = dataclasses.replace(data, **ours)
    views = make_benchmark_views(method, recipe, ImageData(data), arguments.image_size)
    config = build_benchmark_model(method, recipe, views, plain_run(arguments)).config
    settings = {
        "method": method, "recipe": recipe, "data": dataclasses.asdict(data), "images": ours["dataset"],
        "folder": str(folder), "model": config.to_dict(), "training": _TRAINING, "device": arguments.device,
        **_plain_views(views),
    }  # fmt: skip
    for name in ("batch_size", "learning_rate", "num_workers", "seed", "use_cpu"):
        settings[name] = getattr(arguments, name)

    def side(name: str, title: str, train: Any, precision: str, **changes: Any) -> Contender:
        return Contender(name, title, precision, train, settings | changes | {"precision": precision}, unit="images")

    sides = [side("ours", "hfssl", train_ours, precision)]
    if arguments.against != "none":
        train = _theirs(config, arguments.against)
        sides.append(side("theirs", arguments.against, train, "fp32" if arguments.defaults else precision))
        if uses_attention(SimpleNamespace(config=config.encoder_config)):
            same = recipe | {"attention": "sdpa"}
            sides.append(side("ours_same_config", "hfssl, sdpa", train_ours, precision, recipe=same))
    if arguments.by_crop:
        if not hasattr(config, "drop_path_rate"):
            raise UserError(f"`--by_crop` is for DINO and DINOv2; {method} has another step. Leave it out.")
        sides.append(side("by_crop", "hfssl, crop by crop", train_ours, precision, by_crop=True))
    if arguments.bare:
        sides.append(side("bare", "hfssl, bare loop", train_bare, precision))
    return sides


def _theirs(config: PreTrainedConfig, against: str) -> Callable:
    if hasattr(config, "decoder_hidden_size") and config.encoder_config.model_type != "vit":
        raise UserError(
            f"The masked autoencoder of {against} has a ViT as its encoder, not a {config.encoder_config.model_type}. "
            "Pass `--against none`."
        )
    if against == "transformers":
        return train_run_mae
    from .lightly import train

    return train


def _plain_views(views: Views) -> dict[str, Any]:
    return {
        "views": [dataclasses.asdict(view) for view in views.views], "num_local": views.num_local,
        "local_view": dataclasses.asdict(views.local) if views.num_local else None,
        "mean": views.mean, "std": views.std,
    }  # fmt: skip


def _text(arguments: VisionBenchmark, report: dict[str, Any], figures: dict[str, Any]) -> str:
    size, workers = f"{report['image_size']}×{report['image_size']} pixels", arguments.num_workers
    title = METHODS[report["method"]].method.title
    if report.get("local_crops"):
        local = f"{report['local_size']}×{report['local_size']}"
        size = f"2 crops of {size} and {report['local_crops']} of {local}"
    lines = [
        f"{title}: {arguments.encoder}, {arguments.batch_size} images a step, {size}, "
        f"{report['threads']} of {num_cores()} cores, {workers or 'no'} data worker{'s' if workers != 1 else ''}.",
        f"Images: {report['corpus']}; {report['num_images']:,} of them, as files in a folder.",
        f"In turn, {arguments.blocks} blocks of {arguments.steps_per_block} steps each; medians over the blocks.",
        "",
        table(figures),
        "",
    ]
    lines += ratio_line(report, figures, "ratio", "ours", "theirs", "each side as its recipe or example builds it")
    lines += ratio_line(
        report, figures, "ratio_same_config", "ours_same_config", "theirs", "the same attention implementation (sdpa)"
    )
    lines += ratio_line(
        report, figures, "ratio_by_crop", "ours", "by_crop", "beside one forward pass and one head call a crop"
    )  # fmt: skip
    if "memory_ratio" in report:
        lines.append(
            f"memory_ratio: {report['memory_ratio']:.2f}: peak of the process, hfssl over {arguments.against}"
        )
    if "overhead" in report:
        lines.append(f"overhead: {report['overhead']:.1%}: what SSLTrainer takes beside the bare loop")
    lines += ["", "Not comparable, or to be known:", *(f"- {note}" for note in _notes(arguments, report, figures))]
    return "\n".join(lines)


def _notes(arguments: VisionBenchmark, report: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    notes = [
        "FLOPs are counted with torch.utils.flop_counter on one step of each side: of the matrix products and "
        "convolutions of the model. A higher utilisation is not a higher speed.",
        "Peak memory is the resident size of the process, files that it maps included. The time to the first step is "
        "without imports.",
        "Waiting for data is all that is done for a batch before the model gets it, colour and blur included.",
    ]
    if "theirs" in figures:
        notes.append("Losses of different sides: other views and other weights.")
    if arguments.against == "lightly":
        notes.append(
            "lightly's loop clips no gradients and has no schedule of the learning rate; its encoder is the same "
            "module, which takes one view at a time, and sdpa is its default."
        )
        notes.append("The views have the same parameters; lightly's go through bytes of Pillow from step to step.")
    note = METHODS[report["method"]].method.benchmark.notes.get(arguments.against)
    notes += [note] if note else []
    if arguments.defaults:
        notes.append("The precisions differ: each side has its default.")
    elif figures["ours"]["precision"] == "bf16" and choose_precision("auto", arguments.use_cpu) != "bf16":
        notes.append("This machine has no native bf16: it is emulated, on all sides.")
    return notes + disturbance(figures)
