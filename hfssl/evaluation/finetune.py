"""Fine-tuning: train the whole encoder on labels, and the same architecture from random initialisation beside it.

Protocol "finetune", version 1. Stock `AutoModelForImageClassification`, AdamW (0.9, 0.999), weight decay 0.05 (none on
norms and biases), a tenth of the steps to warm up, then half a cosine to 0. The pre-trained encoder gets a lower
learning rate than the one from scratch, and the lower the nearer a block is to the pixels (layer-wise decay, as MAE is
fine-tuned, https://huggingface.co/papers/2111.06377); drop path, mixup and the like are left out. Images are shifted
by up to an eighth at random, and mirrored only where asked for: a mirrored digit is another digit.

The score is that of the last step on test: no epoch, seed or setting is chosen by looking at it. Order and shifts
depend on the seed alone, so that encoder and baseline see the same.
"""

import hashlib
import json
import logging
import math
import re
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedModel

from ..functional import keyed
from ..functional.keyed import Use
from ..machine import choose_precision, process_state
from .cells import Cells, CellTrainer, training_arguments
from .evaluator import EvaluationError, Evaluator, encoder_source
from .frozen import aligned_labels, classification_scores, make_results
from .image.encoder import VisionEncoder, size_arguments
from .image.features import normalized, resized_images
from .probe_features import ENCODER, RANDOM_INIT
from .results import Result, write_results


if TYPE_CHECKING:
    from ..data.labelled import LabelledImages

logger = logging.getLogger(__name__)

# resized images up to this many bytes are kept in memory, more in a file
_MAX_KEPT_BYTES = 2 << 30


@dataclass
class FinetuneSettings:
    r"""
    > Fine-tuning

    Args:
        seeds (`int`, *optional*, defaults to `3`):
            Number of trainings, with seeds 0, 1, 2 …: mean and standard deviation are over these.
        epochs (`float`, *optional*, defaults to `20`):
            Passes over the labelled images.
        min_steps (`int`, *optional*, defaults to `200`):
            Steps at least, where few images make few of them.
        train_batch_size (`int`, *optional*, defaults to `64`):
            Images a step over all processes; fewer where there are fewer images.
        learning_rate (`float`, *optional*, defaults to `0.0005`):
            Peak learning rate of the head on a pre-trained encoder, whose blocks learn slower.
        scratch_learning_rate (`float`, *optional*, defaults to `0.001`):
            Peak learning rate of all blocks from scratch.
        layer_decay (`float`, *optional*, defaults to `0.75`):
            A pre-trained block learns by this factor slower than the one after it; 1 is no decay.
        weight_decay (`float`, *optional*, defaults to `0.05`):
            Of all but norms and biases.
        shift (`float`, *optional*, defaults to `0.125`):
            Images are shifted at random by up to this share of their size.
        flip (`bool`, *optional*, defaults to `False`):
            Mirror half of the images, left to right.
        random_init (`bool`, *optional*, defaults to `True`):
            Train the same architecture from scratch as well.
    """

    seeds: int = 3
    epochs: float = 20.0
    min_steps: int = 200
    train_batch_size: int = 64
    learning_rate: float = 5e-4
    scratch_learning_rate: float = 1e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    shift: float = 0.125
    flip: bool = False
    random_init: bool = True

    def __post_init__(self):
        for name in ("seeds", "epochs", "min_steps", "train_batch_size", "learning_rate", "scratch_learning_rate"):
            if not getattr(self, name) > 0:
                raise EvaluationError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        if not 0 < self.layer_decay <= 1:
            raise EvaluationError(f"`layer_decay` must be above 0 and at most 1, got {self.layer_decay}.")
        if not 0 <= self.shift < 1:
            raise EvaluationError(f"`shift` must be at least 0 and below 1, got {self.shift}.")

    def images_a_process(self, num_labels: int) -> int:
        """The images of a step that each process gets of so many labelled ones, see [`images_a_process`]."""
        return images_a_process(min(self.train_batch_size, num_labels), process_state().num_processes)

    def hyperparameters(self) -> dict[str, Any]:
        """All that decides what comes out of a training, apart from its seed."""
        chosen = {name: value for name, value in asdict(self).items() if name not in ("seeds", "random_init")}
        fixed = {"optimizer": "adamw", "adam_betas": [0.9, 0.999], "schedule": "cosine", "warmup_ratio": 0.1}
        return chosen | fixed | {"max_grad_norm": 1.0, "evaluated": "last step"}


@dataclass
class FinetuneEvaluator(Evaluator):
    r"""
    Fine-tunes an image encoder. The protocol stands at the top of the module.

    Args:
        train, test ([`~hfssl.data.labelled.LabelledImages`]):
            Labelled images to train and to measure on.
        settings ([`FinetuneSettings`], *optional*):
            Lengths, learning rates and the like.
        precision (`str`, *optional*, defaults to `"auto"`):
            Autocast to bf16 or not; `auto` takes bf16 where the hardware computes in it.
    """

    protocol: ClassVar[str] = "finetune"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "fine-tuning"
    primary_metric = "accuracy"

    train: "LabelledImages"
    test: "LabelledImages"
    settings: FinetuneSettings = field(default_factory=FinetuneSettings)
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def __post_init__(self):
        self.settings.images_a_process(len(self.train.labels))

    def __call__(
        self,
        encoder: str | Path | PreTrainedModel,
        processor: Any = None,
        *,
        output_dir: str | Path | None = None,
        command: str | None = None,
    ) -> list[Result]:
        name = str(encoder) if isinstance(encoder, (str, Path)) else encoder.name_or_path or type(encoder).__name__
        with encoder_source(encoder, processor) as source:
            run = FinetuneRun(self, source, processor, name, output_dir)
            run.check(len(run.train_y))
            kinds = [ENCODER, RANDOM_INIT] if self.settings.random_init else [ENCODER]
            todo = [(kind, seed) for seed in range(self.settings.seeds) for kind in kinds]
            scores: dict[str, dict[int, dict[str, float]]] = {kind: {} for kind in kinds}
            for position, (kind, seed) in enumerate(todo, start=1):
                scores[kind][seed] = run.scores(kind, seed, position=f"[{position}/{len(todo)}]")
            results = make_results(
                self, scores, run.labels, model=name, num_train=len(run.labels[0]),
                hyperparameters=run.hyperparameters(), command=command,
            )  # fmt: skip
        if output_dir is not None and run.state.is_main_process:
            write_results(Path(output_dir) / "results.json", results)
        return results

    def get_config_dict(self) -> dict[str, Any]:
        return super().get_config_dict() | {"train": self.train.name, "test": self.test.name}


class FinetuneRun:
    """The trainings of one evaluation. Scores of finished ones stay on disk, and are not trained for again."""

    def __init__(
        self,
        evaluator: Any,
        source: str,
        processor: Any = None,
        name: str | None = None,
        output_dir: str | Path | None = None,
    ):
        self.state = process_state()
        self.settings: FinetuneSettings = evaluator.settings
        self.train, self.test = evaluator.train, evaluator.test
        self.labels = self.train_y, self.test_y = aligned_labels(self.train, self.test)
        self.precision = choose_precision(evaluator.precision, use_cpu=self.state.device.type == "cpu")
        self.encoder = VisionEncoder(source, processor)
        self.name = name or self.encoder.name
        models = {ENCODER: self.encoder.load(), RANDOM_INIT: self.encoder.random_init()}
        self.digests = {kind: self.encoder.digest(model) for kind, model in models.items()}
        self.has_batch_norm = any(isinstance(module, _BatchNorm) for module in models[ENCODER].modules())
        self.cells = Cells(output_dir, self.name)
        self._images: dict[str, _Images] = {}

    def check(self, num_labels: int) -> None:
        """Refuse a number of labels that the encoder cannot be trained on, before the trainings on other numbers."""
        if self.has_batch_norm and self.settings.images_a_process(num_labels) == 1:
            processes = self.state.num_processes
            raise EvaluationError(
                f"The batch norm of {self.name} needs more than one image in each process, but a step has "
                f"{processes} in {processes}: pass a larger `--train_batch_size`, or more labels."
            )

    def scores(self, kind: str, seed: int, rows: np.ndarray | None = None, position: str = "") -> dict[str, float]:
        """Scores on test after training on `rows` of train (all, when left out)."""
        rows = np.arange(len(self.train_y)) if rows is None else rows
        title = f"{kind.replace('_', ' ')}, {len(rows):,} labels, seed {seed}"
        cell = self.cells.run(self._key(kind, seed, rows), lambda: self._train(kind, seed, rows, title))
        figures = ", ".join(f"{metric} {value:.3f}" for metric, value in cell["metrics"].items())
        logger.info("%s %s: %s · %.0f s", position, title, figures, cell["seconds"])
        return cell["metrics"]

    def hyperparameters(self) -> dict[str, Any]:
        return self.settings.hyperparameters() | {"precision": self.precision}

    def _key(self, kind: str, seed: int, rows: np.ndarray) -> str:
        parts = [
            FinetuneEvaluator.version, self.hyperparameters(), self.digests[kind],
            self.train.fingerprint, self.test.fingerprint, hashlib.sha256(rows.astype(np.int64).tobytes()).hexdigest(),
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        return f"finetune/{kind}/{len(rows)}-labels/seed-{seed}/{digest}"

    def _pixels(self, split: str) -> "_Images":
        if split not in self._images:
            self._images[split] = _Images(self.encoder.processor, getattr(self, split).images)
        return self._images[split]

    def _train(self, kind: str, seed: int, rows: np.ndarray, title: str) -> dict[str, float]:
        settings, num_processes = self.settings, self.state.num_processes
        names = [str(name) for name in self.train.class_names] or [str(i) for i in range(self.train_y.max() + 1)]
        model = self.encoder.classifier(names, seed, random_init=kind == RANDOM_INIT)
        batch_size = settings.images_a_process(len(rows))
        num_steps = max(settings.min_steps, int(np.ceil(settings.epochs * len(rows) / (batch_size * num_processes))))
        train = _TrainingRows(
            self._pixels("train"), self.train_y, rows, num_steps * batch_size * num_processes, seed, settings
        )
        decay = settings.layer_decay if kind == ENCODER else 1.0
        learning_rate = settings.learning_rate if kind == ENCODER else settings.scratch_learning_rate
        groups = layer_groups(model, learning_rate, decay, settings.weight_decay)
        with tempfile.TemporaryDirectory() as scratch:
            args = training_arguments(
                scratch,
                self.precision,
                per_device_train_batch_size=batch_size,
                per_device_eval_batch_size=256,
                max_steps=num_steps,
                learning_rate=learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,
                max_grad_norm=1.0,
                seed=seed,
                remove_unused_columns=False,
            )
            trainer = _InOrderTrainer(
                model,
                args,
                train_dataset=train,
                data_collator=_Collator(self.encoder.processor, model),
                optimizers=(torch.optim.AdamW(groups, lr=learning_rate), None),
                title=title,
            )
            trainer.train()
            logits, labels = trainer.logits_and_labels(_TestRows(self._pixels("test"), self.test_y))
        return classification_scores(logits.argmax(-1), labels)


def images_a_process(images: int, num_processes: int) -> int:
    """The images of a step that each process gets.

    Raises:
        EvaluationError: if they cannot be shared evenly: the figure would be that of another batch than is recorded.
    """
    if images % num_processes:
        fitting = ", ".join(str(number) for number in range(1, images + 1) if images % number == 0)
        fewer = images // num_processes * num_processes
        raise EvaluationError(
            f"A step has {images} images (`--train_batch_size`, or all where there are fewer), which {num_processes} "
            f"processes cannot share evenly. Launch one of {fitting} processes"
            + (f", or pass `--train_batch_size {fewer}`." if fewer else ".")
        )
    return images // num_processes


def layer_groups(
    model: PreTrainedModel, learning_rate: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    r"""
    Parameter groups with layer-wise decay: the head and what follows the last block learn at `learning_rate`, a block
    by `layer_decay` slower than the next one, the embeddings slowest. Stages count as blocks where there are stages.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A classifier around an encoder.
        learning_rate (`float`):
            Of the head.
        layer_decay (`float`):
            Above 0; 1 gives all the same rate.
        weight_decay (`float`):
            Of matrices; norms, biases and single tokens get none.
    """
    prefix = f"{model.base_model_prefix}."
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    numbers = {name: _block_number(name.removeprefix(prefix)) for name, _ in parameters if name.startswith(prefix)}
    num_blocks = max((number for number in numbers.values() if number is not None), default=-1) + 1
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    seen_block = False
    for name, parameter in parameters:
        number = numbers.get(name)
        seen_block = seen_block or number is not None
        # before the first block come the embeddings, after the last one a norm, then the head
        depth = number + 1 if number is not None else (num_blocks + 1 if seen_block or name not in numbers else 0)
        decays = parameter.squeeze().ndim > 1
        group = groups.setdefault(
            (depth, decays),
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (num_blocks + 1 - depth),
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def _block_number(name: str) -> int | None:
    match = re.search(r"(?:^|\.)(?:layers?|blocks?|stages?)\.(\d+)\.", name)
    return int(match.group(1)) if match else None


class _Images:
    """Resized images by row, `uint8` of shape `(3, height, width)`: in memory, or in a file where they are many."""

    def __init__(self, processor: Any, images: Any):
        shape = (len(images), *resized_images(processor, images, rows=[0]).shape[1:])
        size = math.prod(shape)
        if size <= _MAX_KEPT_BYTES:
            self.pixels = torch.empty(shape, dtype=torch.uint8)
        else:
            self.file = tempfile.NamedTemporaryFile(prefix="hfssl-images-")  # noqa: SIM115 - as long as it is mapped
            self.pixels = torch.from_file(self.file.name, shared=True, size=size, dtype=torch.uint8).view(shape)
        for start in range(0, len(images), 1024):
            rows = range(start, min(start + 1024, len(images)))
            self.pixels[rows.start : rows.stop] = resized_images(processor, images, rows)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.pixels[row]


class _TrainingRows(Dataset):
    """Epoch after epoch in one sequence: what comes at a position depends on it and on the seed alone."""

    def __init__(
        self, images: _Images, labels: np.ndarray, rows: np.ndarray, length: int, seed: int, settings: FinetuneSettings
    ):
        self.images, self.labels, self.rows, self.length = images, labels, rows, length
        self.seed, self.shift, self.flip = seed, settings.shift, settings.flip
        self.order: tuple[int, np.ndarray] = (-1, rows)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, at = divmod(position, len(self.rows))
        if self.order[0] != epoch:
            order = keyed.permutation(len(self.rows), Use.FINETUNE_ORDER, self.seed, epoch)
            self.order = (epoch, self.rows[order])
        row = int(self.order[1][at])
        u = keyed.uniform(keyed.key(Use.FINETUNE_AUGMENTATION, self.seed, epoch, row, np.arange(3)))
        pixels = self.images[row]
        if self.shift:
            for axis in (1, 2):
                size = pixels.shape[axis]
                by = round((2 * u[axis - 1] - 1) * self.shift * size)
                # what comes in at the border repeats it
                pixels = pixels.index_select(axis, (torch.arange(size) + by).clamp(0, size - 1))
        if self.flip and u[2] < 0.5:
            pixels = pixels.flip(-1)
        return {"pixel_values": pixels, "labels": int(self.labels[row])}


class _TestRows(Dataset):
    def __init__(self, images: _Images, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"pixel_values": self.images[row], "labels": int(self.labels[row])}


class _Collator:
    def __init__(self, processor: Any, model: PreTrainedModel):
        self.processor, self.model = processor, model

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        pixel_values = normalized(self.processor, torch.stack([item["pixel_values"] for item in items]))
        labels = torch.tensor([item["labels"] for item in items])
        size = size_arguments(self.model, *pixel_values.shape[-2:])
        return {"pixel_values": pixel_values, "labels": labels, **size}


class _InOrderTrainer(CellTrainer):
    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler | None:
        # the data set has the order in it
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)
