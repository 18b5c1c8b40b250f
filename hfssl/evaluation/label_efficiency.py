"""Label efficiency: what do 1 %, 10 % and all of the labels give, with and without pre-training?

Protocol "label_efficiency", version 1. For each share of the labels, as many of each class (one at least), drawn by
keys: a linear probe (protocol "linear") on frozen features, fine-tuning (protocol "finetune"), and the same
architecture trained from scratch on the same labels, which is the baseline `random_init` of fine-tuning. With all
labels there is one draw, and the seeds are those of the training.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from ..functional import keyed
from ..functional.keyed import Use
from ..machine import compute_device, process_state
from .evaluator import EvaluationError, Evaluator, encoder_source, name_of
from .finetune import FinetuneRun, FinetuneSettings
from .frozen import aligned_labels, classification_scores, features_of, make_results
from .linear_probe import linear_probe_logits
from .probe_features import ENCODER, RANDOM_INIT, ProbeFeatures
from .results import Result, write_results


if TYPE_CHECKING:
    from ..data.labelled import LabelledData

logger = logging.getLogger(__name__)

LINEAR, FINETUNE = "linear probe", "fine-tuning"


@dataclass
class LabelEfficiencyEvaluator(Evaluator):
    r"""
    Probe, fine-tuning and training from scratch on shares of the labels. The protocol stands at the top of the module.

    Args:
        train, test ([`~hfssl.data.labelled.LabelledData`]):
            Labelled images to train and to measure on.
        fractions (`tuple[float, ...]`, *optional*, defaults to `(0.01, 0.1, 1.0)`):
            Shares of the labels.
        settings ([`FinetuneSettings`], *optional*):
            Of the trainings; its `seeds` are also the number of draws.
        pooling, batch_size, precision, cache_dir (*optional*):
            See [`~hfssl.evaluation.frozen.FrozenEvaluator`].
    """

    protocol: ClassVar[str] = "label_efficiency"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "label efficiency"
    primary_metric = "accuracy"

    train: "LabelledData"
    test: "LabelledData"
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    settings: FinetuneSettings = field(default_factory=FinetuneSettings)
    pooling: str | None = None
    batch_size: int = 256
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    cache_dir: str | Path | None = None

    def __post_init__(self):
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise EvaluationError(f"Shares of the labels are above 0 and at most 1, got {self.fractions}.")
        self.labels = aligned_labels(self.train, self.test)
        self.draws = {
            fraction: {seed: draw_fraction(self.labels[0], fraction, seed) for seed in range(self.settings.seeds)}
            for fraction in self.fractions
        }
        # before hours of training on the first of them
        for draws in self.draws.values():
            self.settings.samples_a_process(len(draws[0]))

    def __call__(
        self,
        encoder: str | Path | PreTrainedModel,
        processor: Any = None,
        *,
        output_dir: str | Path | None = None,
        command: str | None = None,
        name: str | None = None,
        features: ProbeFeatures | None = None,
    ) -> list[Result]:
        from .image.pictures import plot_label_efficiency

        name = name or name_of(encoder)
        is_main = process_state().is_main_process
        cache_dir = self.cache_dir or (Path(output_dir) / "features" if output_dir is not None else None)
        features = features or features_of(self.train)(
            encoder, processor, self.train, self.test, pooling=self.pooling, batch_size=self.batch_size,
            precision=self.precision, cache_dir=cache_dir,
        )  # fmt: skip
        results = []
        with encoder_source(encoder, processor) as source:
            run = FinetuneRun(self, source, processor, name, output_dir)
            for draws in self.draws.values():
                run.check(len(draws[0]))
            run.plan(
                [
                    (kind, seed, rows)
                    for draws in self.draws.values()
                    for kind in (ENCODER, RANDOM_INIT)
                    for seed, rows in draws.items()
                ]
            )
            for fraction, draws in self.draws.items():
                probed = [self._probe(features, fraction, draws, command) if is_main else None]
                results += broadcast_object_list(probed)[0]
                results += self._finetune(run, fraction, draws, command)
                if output_dir is not None and is_main:
                    write_results(Path(output_dir) / "results.json", results)
        if output_dir is not None and is_main:
            plot_label_efficiency(results, Path(output_dir) / "assets" / "label_efficiency.png")
        return results

    def get_config_dict(self) -> dict[str, Any]:
        return super().get_config_dict() | {"train": self.train.name, "test": self.test.name}

    def _finetune(
        self, run: FinetuneRun, fraction: float, draws: dict[int, np.ndarray], command: str | None
    ) -> list[Result]:
        title = f"[{100 * fraction:g} % of the labels]"
        scores = {
            kind: {seed: run.scores(kind, seed, rows, title) for seed, rows in draws.items()}
            for kind in (ENCODER, RANDOM_INIT)
        }
        return make_results(
            self, scores, self.labels, model=run.name, num_train=len(draws[0]), command=command,
            hyperparameters=run.hyperparameters() | {"fraction": fraction, "method": FINETUNE},
        )  # fmt: skip

    def _probe(
        self, features: ProbeFeatures, fraction: float, draws: dict[int, np.ndarray], command: str | None
    ) -> list[Result]:
        train_y, test_y = self.labels
        # all labels are one draw, and the optimum is unique
        draws = {0: draws[0]} if fraction == 1 else draws
        scores: dict[str, dict[int, dict[str, float]]] = {kind: {} for kind in features.train}
        strengths = []
        for kind, train_x in features.train.items():
            for seed, rows in draws.items():
                logits, strength = linear_probe_logits(
                    train_x[rows], train_y[rows], features.test[kind], device=compute_device()
                )
                scores[kind][seed] = classification_scores(logits.argmax(1), test_y, logits)
                strengths += [strength] * (kind == ENCODER)
        return make_results(
            self, scores, self.labels, model=features.model, num_train=len(draws[0]), command=command,
            hyperparameters=features.settings | {"fraction": fraction, "method": LINEAR},
            details={"strength": strengths},
        )  # fmt: skip


def draw_fraction(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Rows of a share of each class, one at least, in ascending order. A smaller share is part of a larger one."""
    parts = []
    # where a row may have several classes, a share of them all
    labels = np.zeros(len(labels), dtype=np.int64) if labels.ndim == 2 else labels
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order = keyed.permutation(len(rows), Use.LABELLED_FRACTION, seed, int(label))
        parts.append(rows[order[: max(1, round(fraction * len(rows)))]])
    return np.sort(np.concatenate(parts))
