"""Fine-tuning: train the whole encoder on labels, and the same architecture from random initialisation beside it.

Protocol "finetune", version 1. Stock `AutoModelForImageClassification` or `AutoModelForSequenceClassification` (of
image encoders that have none, such as DINOv3's, one linear layer on the feature of an image), AdamW (0.9, 0.999),
weight decay 0.05 (none on norms and biases), a tenth of the steps to warm up, then half a cosine to 0.
The pre-trained encoder gets a lower learning rate than the one from scratch, and the lower the nearer a block is to
the input (layer-wise decay, as MAE is fine-tuned, https://huggingface.co/papers/2111.06377); drop path, mixup and the
like are left out. Images are shifted by up to an eighth at random, and mirrored only where asked for: a mirrored digit
is another digit. Texts are cut off after 128 tokens.

The score is that of the last step on test: no epoch, seed or setting is chosen by looking at it. Order and shifts
depend on the seed alone, so that encoder and baseline see the same. The classifier that stays is that of seed 0.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedModel

from ..machine import choose_precision, process_state
from ..modeling.depth import depths, digest_of_depths
from .cells import Cells, CellTrainer, training_arguments
from .class_figures import class_figures, confusions
from .classifier_folder import KEPT_SEED, save_classifier, write_classifier_card
from .evaluator import EvaluationError, Evaluator, encoder_source, name_of
from .finetune_settings import FinetuneSettings
from .frozen import aligned_labels, classification_scores, make_results
from .modality import evaluation_modality
from .probe_features import ENCODER, RANDOM_INIT
from .results import Result, write_results


if TYPE_CHECKING:
    from ..data.labelled import LabelledData
    from .modality import Finetuning

logger = logging.getLogger(__name__)

# of the output folder, where the classifier stays
MODEL = "model"
# of a training in the file of finished ones: what each class was taken for
_CONFUSIONS = "confusions"


@dataclass
class FinetuneEvaluator(Evaluator):
    r"""
    Fine-tunes an encoder. The protocol stands at the top of the module.

    Args:
        train, test ([`~hfssl.data.labelled.LabelledData`]):
            Labelled samples to train and to measure on.
        settings ([`FinetuneSettings`], *optional*):
            Lengths, learning rates and the like.
        precision (`str`, *optional*, defaults to `"auto"`):
            Autocast to bf16 or not; `auto` takes bf16 where the hardware computes in it.
    """

    protocol: ClassVar[str] = "finetune"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "fine-tuning"
    primary_metric = "accuracy"

    train: "LabelledData"
    test: "LabelledData"
    settings: FinetuneSettings = field(default_factory=FinetuneSettings)
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def __post_init__(self):
        self.settings.samples_a_process(len(self.train.labels))

    def __call__(
        self,
        encoder: str | Path | PreTrainedModel,
        processor: Any = None,
        *,
        output_dir: str | Path | None = None,
        command: str | None = None,
        name: str | None = None,
    ) -> list[Result]:
        name = name or name_of(encoder)
        with encoder_source(encoder, processor) as source:
            keep = self.settings.save_model and output_dir is not None
            run = FinetuneRun(self, source, processor, name, output_dir, Path(output_dir) / MODEL if keep else None)
            run.check(len(run.train_y))
            kinds = [ENCODER, RANDOM_INIT] if self.settings.random_init else [ENCODER]
            todo = [(kind, seed) for seed in range(self.settings.seeds) for kind in kinds]
            run.plan([(kind, seed, None) for kind, seed in todo])
            scores: dict[str, dict[int, dict[str, float]]] = {kind: {} for kind in kinds}
            for position, (kind, seed) in enumerate(todo, start=1):
                scores[kind][seed] = run.scores(kind, seed, position=f"[{position}/{len(todo)}]")
            results = make_results(
                self, scores, run.labels, model=name, num_train=len(run.labels[0]),
                hyperparameters=run.hyperparameters(), command=command,
            )  # fmt: skip
            results[0].details = run.class_figures()
        if output_dir is not None and run.state.is_main_process:
            write_results(Path(output_dir) / "results.json", results)
            if run.model_dir is not None:
                write_classifier_card(run.model_dir, results, encoder=name, task=run.finetuning.task)
        return results

    def get_config_dict(self) -> dict[str, Any]:
        return super().get_config_dict() | {"train": self.train.name, "test": self.test.name}


class FinetuneRun:
    """The trainings of one evaluation. Scores of finished ones stay on disk, and are not trained for again.

    The classifier that comes of the encoder with seed 0 is saved in `model_dir`, where there is one.
    """

    def __init__(
        self,
        evaluator: Any,
        source: str,
        processor: Any = None,
        name: str | None = None,
        output_dir: str | Path | None = None,
        model_dir: Path | None = None,
    ):
        self.state = process_state()
        self.model_dir = model_dir
        self.train, self.test = evaluator.train, evaluator.test
        modality = evaluation_modality(self.train.modality)
        if modality.finetuning is None:
            raise EvaluationError(f"Fine-tuning is not there for the modality {self.train.modality!r} yet.")
        self.defaults = modality.finetune_defaults
        self.settings: FinetuneSettings = evaluator.settings.filled(self.defaults)
        self.labels = self.train_y, self.test_y = aligned_labels(self.train, self.test)
        self.precision = choose_precision(evaluator.precision, use_cpu=self.state.device.type == "cpu")
        self.finetuning = modality.finetuning(source, processor, self.train, self.test, self.settings)
        self.name = name or source
        self.cells = Cells(output_dir, self.name)
        self.told: dict[tuple[str, int], dict[str, Any]] = {}
        self.steps_to_come: dict[str, int] = {}  # of trainings that are not done, by their key

    def plan(self, trainings: Sequence[tuple[str, int, np.ndarray | None]]) -> None:
        """Say which trainings are to come, each by kind, seed and rows: how long all take is said in the first."""
        for kind, seed, rows in trainings:
            rows = np.arange(len(self.train_y)) if rows is None else rows
            key = self._key(kind, seed, rows)
            if key not in self.cells.done:
                self.steps_to_come[key] = steps_of(self.settings, len(rows))

    def check(self, num_labels: int) -> None:
        """Refuse a number of labels that the encoder cannot be trained on, before the trainings on other numbers."""
        if self.finetuning.has_batch_norm and self.settings.samples_a_process(num_labels) == 1:
            processes = self.state.num_processes
            raise EvaluationError(
                f"The batch norm of {self.name} needs more than one sample in each process, but a step has "
                f"{processes} in {processes}: pass a larger `--train_batch_size`, or more labels."
            )

    def scores(self, kind: str, seed: int, rows: np.ndarray | None = None, position: str = "") -> dict[str, float]:
        """Scores on test after training on `rows` of train (all, when left out)."""
        rows = np.arange(len(self.train_y)) if rows is None else rows
        title = f"{kind.replace('_', ' ')}, {len(rows):,} labels, seed {seed}"
        key = self._key(kind, seed, rows)
        self.cells.forget_unless_saved(key, self._model_dir(kind, seed))
        told: dict[str, Any] = {}
        cell = self.cells.run(key, lambda: self._train(kind, seed, rows, title, told), beside=told)
        self.told[kind, seed] = cell
        figures = ", ".join(f"{metric} {value:.3f}" for metric, value in cell["metrics"].items())
        logger.info("%s %s: %s · %.0f s", position, title, figures, cell["seconds"])
        return cell["metrics"]

    def hyperparameters(self) -> dict[str, Any]:
        return self.settings.hyperparameters(self.defaults) | {"precision": self.precision}

    def _model_dir(self, kind: str, seed: int) -> Path | None:
        """Where the classifier of a training is to stay, if it is."""
        return kept_folder(self.model_dir, kind, seed)

    def _key(self, kind: str, seed: int, rows: np.ndarray) -> str:
        parts = [
            FinetuneEvaluator.version, self.hyperparameters(), *what_learns(self.finetuning, kind, self.settings),
            self.train.fingerprint, self.test.fingerprint, hashlib.sha256(rows.astype(np.int64).tobytes()).hexdigest(),
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        return f"finetune/{kind}/{len(rows)}-labels/seed-{seed}/{digest}"

    def class_figures(self) -> dict[str, Any]:
        """How each class fares after the trainings whose scores were asked for, for the details of their figure."""
        counts: dict[str, dict[int, Any]] = {}
        for (kind, seed), cell in self.told.items():
            if _CONFUSIONS not in cell:  # several labels a sample, or trained by an older version
                return {}
            counts.setdefault(kind, {})[seed] = cell[_CONFUSIONS]
        return {"classes": class_figures(counts, self.train.class_names)}

    def _train(self, kind: str, seed: int, rows: np.ndarray, title: str, told: dict[str, Any]) -> dict[str, float]:
        names = [str(name) for name in self.train.class_names] or [str(i) for i in range(self.train_y.max() + 1)]
        model = self.finetuning.classifier(names, seed, random_init=kind == RANDOM_INIT)
        if self.train_y.ndim == 2:
            model.config.problem_type = "multi_label_classification"
        self.steps_to_come.pop(self._key(kind, seed, rows), None)
        then = sum(self.steps_to_come.values())
        self.steps_to_come.clear()  # it is said once
        trainer = train_whole(
            model, len(rows), lambda length: self.finetuning.training_rows(self.train_y, rows, length, seed),
            self.finetuning.collator(model), self.settings, self.precision, kind, seed, title,
            then=then, eval_batch_size=self.finetuning.eval_batch_size,
        )  # fmt: skip
        logits, labels = trainer.logits_and_labels(self.finetuning.test_rows(self.test_y))
        folder = self._model_dir(kind, seed)
        if folder is not None and self.state.is_main_process:
            save_classifier(folder, model, self.finetuning.processor, self._key(kind, seed, rows))
        if labels.ndim == 1:
            told[_CONFUSIONS] = confusions(labels, logits.argmax(-1))
        return classification_scores(logits.argmax(-1), labels, logits)


def kept_folder(model_dir: Path | None, kind: str, seed: int) -> Path | None:
    """Where the model of a training is to stay, if it is."""
    return model_dir if (kind, seed) == (ENCODER, KEPT_SEED) else None


def steps_of(settings: FinetuneSettings, num_labelled: int) -> int:
    """Steps of a training on so many labelled samples."""
    at_once = settings.samples_a_process(num_labelled) * process_state().num_processes
    return max(settings.min_steps, int(np.ceil(settings.epochs * num_labelled / at_once)))


def train_whole(
    model: PreTrainedModel,
    num_labelled: int,
    rows: Callable[[int], Dataset],
    collator: Callable,
    settings: FinetuneSettings,
    precision: str,
    kind: str,
    seed: int,
    title: str,
    then: int = 0,
    eval_batch_size: int = 256,
) -> CellTrainer:
    r"""
    Train a whole model as the protocol says, and return what trained it.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            An encoder with a head.
        num_labelled (`int`):
            Labelled samples that there are.
        rows (`Callable[[int], Dataset]`):
            So many of them, epoch after epoch.
        collator (`Callable`):
            Makes batches.
        settings ([`FinetuneSettings`]):
            With nothing left out.
        precision (`str`):
            `"fp32"`, or `"bf16"` for autocast to it.
        kind (`str`):
            `"encoder"` or `"random_init"`: they learn at different rates.
        seed (`int`):
            Of what is drawn on the way.
        title (`str`):
            Of the bar on a terminal.
        then (`int`, *optional*, defaults to 0):
            How many steps of other trainings come after these.
        eval_batch_size (`int`, *optional*, defaults to `256`):
            Samples a forward pass where nothing is trained.
    """
    num_processes = process_state().num_processes
    batch_size, num_steps = settings.samples_a_process(num_labelled), steps_of(settings, num_labelled)
    decay = settings.layer_decay if kind == ENCODER else 1.0
    learning_rate = settings.learning_rate if kind == ENCODER else settings.scratch_learning_rate
    groups = layer_groups(model, learning_rate, decay, settings.weight_decay)
    with tempfile.TemporaryDirectory() as scratch:
        args = training_arguments(
            scratch,
            precision,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=eval_batch_size,
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
            train_dataset=rows(num_steps * batch_size * num_processes),
            data_collator=collator,
            optimizers=(torch.optim.AdamW(groups, lr=learning_rate), None),
            title=title,
            then=then,
        )
        trainer.train()
    return trainer


def what_learns(finetuning: "Finetuning", kind: str, settings: FinetuneSettings) -> list[str]:
    """Digests of what a training begins with and, where blocks learn at different rates, of which has which."""
    begins = [finetuning.digests[kind]]
    if kind != ENCODER or settings.layer_decay == 1.0:
        return begins
    return [*begins, digest_of_depths(finetuning.encoder.config)]


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
    of_name, num_blocks = depths(model)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = of_name[name]
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


class _InOrderTrainer(CellTrainer):
    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler | None:
        # the data set has the order in it
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)
