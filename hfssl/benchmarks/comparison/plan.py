"""How good the encoders are that methods, and another library, train: same images, weights, steps and probes.

A cell is one training: a method, a side and a seed. All start from the same weights of the encoder and train on the
same files, for as many steps of as many images, with AdamW, warm-up and cosine in one precision; views, learning rate
and heads are those of the method. The two sides of a method share these too, and groups of weights and clipping. Ours
is what the recipe builds ([`SSLTrainer`] on an [`ExactStream`]); theirs is lightly's model, loss and views
(`hfssl.benchmarks.lightly`) in a plain loop over its data set. What remains different is what the libraries are: order
of the images, pixels of the views, heads.

After each pass, or fifth of `--steps`, the clock stands still while the encoder is measured: k-NN, the health of ours,
and at the end the linear probe, all as in `hfssl.evaluation`. Each cell writes one JSON file when it has finished and
is not run again; `cells.py` beside this trains and measures, `report.py` makes the table of the cells that are there.
"""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ... import methods
from ...cli.image.encoders import is_checkpoint
from ...cli.image.presets import VISION_PRESETS
from ...errors import UserError
from ...evaluation.results import read_json


logger = logging.getLogger(__name__)

OURS, BASELINES = "hfssl", "baselines"


# Methods for images that say how they are measured beside others.
METHODS = {
    name: model_class.method
    for name, model_class in methods.METHODS.items()
    if model_class.method.views is not None and model_class.method.benchmark is not None
}
# Of a run that is given in steps.
POINTS = 5
# Of both sides, where the method says nothing else.
_TRAINING = {
    "weight_decay": 0.05, "weight_decay_end": None, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
}  # fmt: skip


@dataclass
class Comparison:
    r"""
    > Comparison

    Args:
        methods (`str`, *optional*, defaults to `"simclr,dino"`):
            Methods to train, with commas between them.
        against (`str`, *optional*, defaults to `"none"`):
            lightly trains those of the methods that it has too, beside ours; or none.
        seeds (`str`, *optional*, defaults to `"0,1"`):
            Seeds of weights, views and order.
        cell (`str`, *optional*):
            Only this one, such as dino,lightly,1, or baselines. Left out, all that are missing, one after the other.
        table (`bool`, *optional*, defaults to `False`):
            Train nothing: only the table of what is there.
        output_dir (`str`, *optional*, defaults to `"outputs/compare"`):
            Folder for the cells, their encoders, the table and the picture.

    > Data

    Args:
        dataset (`str`, *optional*):
            Labelled images: a Hub id, a folder with a folder for each class, parquet or arrow files. Left out:
            the embedded letters.
        split (`str`, *optional*, defaults to `"train"`):
            Split to train on, without labels, and that the probes learn from.
        test_split (`str`, *optional*, defaults to `"test"`):
            Split that the probes are measured on.
        max_images (`int`, *optional*, defaults to `20000`):
            Train on so many images, drawn at random.
        max_train_samples (`int`, *optional*, defaults to `10000`):
            Images that the probes learn from.
        max_test_samples (`int`, *optional*, defaults to `2000`):
            Images that they are measured on.
        image_size (`int`, *optional*):
            Height and width of a view in pixels. Left out, that of the encoder.
        local_crops (`int`, *optional*, defaults to `6`):
            Small crops of an image, for methods that have them.
        local_size (`int`, *optional*):
            Their height and width in pixels. Left out, 3/7 of the others', rounded up to a multiple of 8, and
            24 at least for encoders without patches.

    > Training

    Args:
        encoder (`str`, *optional*, defaults to `"resnet-mini"`):
            A preset of the recipes or a config file, of all methods. Those that fill in hidden patches need a Vision
            Transformer, such as vit-mini-patch4.
        encoder_config (`dict`, *optional*):
            Fields of it that differ, such as '{"depths": [1, 1, 2, 1]}'.
        passes (`int`, *optional*, defaults to `5`):
            Passes over the images; each is a point of the curve.
        steps (`int`, *optional*):
            Steps to train instead; each fifth of them is a point of the curve.
        batch_size (`int`, *optional*, defaults to `256`):
            Images a step.
        learning_rate (`float`, *optional*):
            Peak learning rate of all methods. Left out, that of each method's recipe.
        warmup (`float`, *optional*, defaults to `0.1`):
            Share of the steps over which the learning rate rises; then it falls along half a cosine, to 0.
        precision (`str`, *optional*, defaults to `"auto"`):
            fp32 or bf16, of both sides. auto takes bf16 where the hardware has it natively. Probes are always fp32.
        method_config (`dict`, *optional*):
            Fields of the methods' configs for both sides, such as '{"dino": {"num_prototypes": 2048}}'.
        num_workers (`int`, *optional*, defaults to `0`):
            Processes that prepare data.
        cpu_threads (`int`, *optional*):
            Threads of a cell. Left out, all cores.
        use_cpu (`bool`, *optional*, defaults to `False`):
            Leave a GPU alone.
    """

    methods: str = "simclr,dino"
    against: Literal["lightly", "none"] = "none"
    seeds: str = "0,1"
    cell: str | None = None
    table: bool = False
    output_dir: str = "outputs/compare"
    dataset: str | None = None
    split: str = "train"
    test_split: str = "test"
    max_images: int = 20_000
    max_train_samples: int = 10_000
    max_test_samples: int = 2_000
    image_size: int | None = None
    local_crops: int = 6
    local_size: int | None = None
    encoder: str = "resnet-mini"
    encoder_config: dict[str, Any] | None = None
    passes: int = 5
    steps: int | None = None
    batch_size: int = 256
    learning_rate: float | None = None
    warmup: float = 0.1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    method_config: dict[str, Any] = field(default_factory=dict)
    num_workers: int = 0
    cpu_threads: int | None = None
    use_cpu: bool = False

    def __post_init__(self):
        for name, least in (
            ("passes", 1), ("steps", 1), ("batch_size", 2), ("max_train_samples", 2), ("max_test_samples", 1),
        ):  # fmt: skip
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise UserError(f"`--{name}` must be at least {least}, got {getattr(self, name)}.")
        if self.max_images < self.batch_size:
            raise UserError(
                f"`--max_images {self.max_images}` is less than a step has: pass at least `--batch_size`, "
                f"{self.batch_size}."
            )
        if is_checkpoint(self.encoder):
            raise UserError(
                f"`--encoder {self.encoder}` would be a checkpoint, and all cells train from scratch: choose "
                f"{', '.join(VISION_PRESETS)} or a config file that ends in .json."
            )
        for name in _words(self.methods):
            if name not in METHODS:
                raise UserError(f"`--methods` names {name!r}: choose among {', '.join(METHODS)}.")
        for name in self.method_config:
            if name not in METHODS:
                raise UserError(f"`--method_config` is by method ({', '.join(METHODS)}), got {name!r}.")
        if not _words(self.methods) or not self.seed_list:
            raise UserError("A comparison needs a method and a seed: pass `--methods` and `--seeds`.")
        if self.cell is not None:
            self.one_cell  # noqa: B018 - says what is wrong with it

    @cached_property
    def seed_list(self) -> list[int]:
        try:
            return [int(seed) for seed in _words(self.seeds)]
        except ValueError:
            raise UserError(f"`--seeds` are numbers with commas between them, got {self.seeds!r}.") from None

    @cached_property
    def cells(self) -> list["Cell"]:
        """All of them, the baselines first and then seed by seed, so that a half-done table has all methods."""
        found = [Cell(BASELINES)]
        for seed in self.seed_list:
            for method in _words(self.methods):
                has_two = self.against in METHODS[method].benchmark.against
                found += [Cell(method, side, seed) for side in (OURS, self.against)[: 1 + has_two]]
        return found

    @cached_property
    def one_cell(self) -> "Cell":
        """That of `--cell`."""
        for cell in self.cells:
            if ",".join(_words(self.cell)) == ",".join(cell.name.split("-")):
                return cell
        named = " ".join(cell.name.replace("-", ",") for cell in self.cells)
        raise UserError(f"There is no cell {self.cell!r}; with these flags there are: {named}.")

    def num_steps(self, num_images: int) -> int:
        """Steps of a training on so many images."""
        return self.steps or self.passes * (num_images // self.batch_size)

    def points(self, num_steps: int) -> list[int]:
        """After which steps it is measured."""
        parts = POINTS if self.steps else self.passes
        return sorted({max(1, round(num_steps * (i + 1) / parts)) for i in range(parts)})

    def config(self, method: str) -> dict[str, Any]:
        """Fields of a method's config that differ from its recipe's defaults."""
        settings = METHODS[method].benchmark
        return {**settings.config, **settings.short_config, **self.method_config.get(method, {})}

    def training(self, method: str) -> dict[str, Any]:
        """Settings of optimizer and clipping, of both sides."""
        return {**_TRAINING, **METHODS[method].benchmark.short_training}

    def protocol(self, method: str) -> dict[str, Any]:
        """What a cell has to share with the others of its table."""
        names = (
            "dataset", "split", "test_split", "max_images", "max_train_samples", "max_test_samples", "image_size",
            "encoder", "encoder_config", "passes", "steps", "batch_size", "learning_rate", "warmup", "precision",
        )  # fmt: skip
        shared = {name: getattr(self, name) for name in names}
        if method == BASELINES:  # nothing is trained for them
            return {name: shared[name] for name in names[: names.index("passes")] if name != "max_images"}
        if METHODS[method].views.local is not None:
            shared |= {"local_crops": self.local_crops, "local_size": self.local_size}
        return shared | {"config": self.config(method), "training": self.training(method)}


@dataclass(frozen=True)
class Cell:
    """One training: what is written as `<name>.json`, and its encoder into the folder `<name>`."""

    method: str
    side: str = ""
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.method}-{self.side}-{self.seed}" if self.side else self.method


def cell_path(arguments: Comparison, cell: Cell) -> Path:
    return Path(arguments.output_dir) / f"{cell.name}.json"


def read_cell(arguments: Comparison, cell: Cell) -> dict[str, Any] | None:
    """What a finished cell has found; `None` where it is not finished.

    Raises:
        UserError: if it was made with other settings than those of `arguments`.
    """
    path = cell_path(arguments, cell)
    record = read_json(path, default=None)
    if record is None:
        return None
    for name, value in arguments.protocol(cell.method).items():
        found = record["protocol"].get(name)
        if found != value:
            raise UserError(
                f"{path} was made with {name} = {found}, this command says {value}: pass what it was, or another "
                "`--output_dir`."
            )
    return record


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
