"""What the probes of a frozen encoder share: features in, figures out, beside the same figures of three baselines.

A probe is a function from labelled features to predictions; it does not know what the features are of. Each figure
stands beside that of the same architecture at random initialisation, of the raw input, and of the answer that is
always the most frequent class.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from accelerate.utils import broadcast_object_list
from scipy.special import softmax
from transformers import PreTrainedModel

from ..data.modality import modality
from ..machine import compute_device, process_state
from . import metrics, several_labels
from .class_figures import class_figures, confusions
from .evaluator import EvaluationError, Evaluator
from .groups import error_gap, right_rows
from .modality import evaluation_modality
from .probe_features import ENCODER, MAJORITY, ProbeFeatures
from .progress import Progress
from .results import Result, command_line, versions, write_results


# Of an answer that is always the same.
CHANCE_AUROC = 0.5

if TYPE_CHECKING:
    from ..data.labelled import LabelledData


@dataclass
class Measured:
    """Predictions of one variant of a probe.

    Args:
        variant (`dict[str, Any]`):
            What sets it apart from the protocol's other variants, such as `{"k": 20}`.
        predictions (`dict[int, np.ndarray]`):
            By seed, the predicted class of each row of test, of shape `(num_test,)`.
        num_train (`int`):
            Labelled rows that were used.
        details (`dict[str, Any]`, *optional*):
            What was chosen on the way, or has to be said.
        logits (`dict[int, np.ndarray]`, *optional*):
            By seed, how much speaks for each class, of shape `(num_test, num_classes)`; -inf for one that was not
            learned.
    """

    variant: dict[str, Any]
    predictions: dict[int, np.ndarray]
    num_train: int
    details: dict[str, Any] = field(default_factory=dict)
    logits: dict[int, np.ndarray] = field(default_factory=dict)


@dataclass
class FrozenEvaluator(Evaluator):
    r"""
    A probe of a frozen encoder. A subclass implements [`~FrozenEvaluator.predict`].

    Args:
        train, test ([`~hfssl.data.labelled.LabelledData`]):
            Labelled samples to fit and to measure on. Nothing is chosen by looking at `test`.
        pooling (`str`, *optional*):
            How a feature is made of the encoder's outputs, see [`~hfssl.modeling.pooling.pool_features`]; what fits
            the architecture when left out.
        batch_size (`int`, *optional*, defaults to `256`):
            Images, or windows of text, a forward pass.
        precision (`str`, *optional*, defaults to `"fp32"`):
            Autocast to bf16 or not; `auto` takes bf16 where the hardware computes in it. Features that lie close
            together, as those of an untrained encoder, are told apart in fp32 only.
        cache_dir (`str` or `Path`, *optional*):
            Folder to keep features in. `features/` of the output folder when left out.
    """

    primary_metric = "accuracy"
    # the protocol's name in a table
    title: ClassVar[str]
    # whether the record says how each class fares
    tells_classes: ClassVar[bool] = False

    train: "LabelledData"
    test: "LabelledData"
    pooling: str | None = None
    batch_size: int = 256
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    cache_dir: str | Path | None = None

    def __post_init__(self):
        self.labels = aligned_labels(self.train, self.test)

    @abstractmethod
    def predict(self, train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> list[Measured]:
        """Predict the classes of `test_x`, by each variant of the protocol.

        Args:
            train_x (`np.ndarray` or sparse, of shape `(num_train, dim)`):
                Features to fit to.
            train_y (`np.ndarray` of shape `(num_train,)`):
                Their classes.
            test_x (`np.ndarray` or sparse, of shape `(num_test, dim)`):
                Features to classify. Sparse ones are taken as they are, neither centred nor scaled.
        """

    def __call__(
        self,
        encoder: str | Path | PreTrainedModel,
        processor: Any = None,
        *,
        output_dir: str | Path | None = None,
        command: str | None = None,
    ) -> list[Result]:
        cache_dir = self.cache_dir or (Path(output_dir) / "features" if output_dir is not None else None)
        features = features_of(self.train)(
            encoder, processor, self.train, self.test, pooling=self.pooling, batch_size=self.batch_size,
            precision=self.precision, cache_dir=cache_dir,
        )  # fmt: skip
        results = self.results(features, command)
        if output_dir is not None and process_state().is_main_process:
            write_results(Path(output_dir) / "results.json", results)
        return results

    def results(self, features: ProbeFeatures, command: str | None = None) -> list[Result]:
        """The records of this probe on features that are there already; the same in all processes."""
        made = [self._results(features, command) if process_state().is_main_process else None]
        return broadcast_object_list(made)[0]

    def measured(self, features: ProbeFeatures) -> dict[str, list[Measured]]:
        """The predictions of each variant of the protocol, by what they are made from."""
        found = {}
        with Progress(len(features.train), self.title, " kinds of features") as progress:
            for kind, x in features.train.items():
                found[kind] = self.predict(x, self.labels[0], features.test[kind])
                progress.update()
        return found

    def draw(self, results: Sequence[Result], folder: Path) -> None:
        """Write a picture of the protocol's own into a folder, where it has one."""

    def get_config_dict(self) -> dict[str, Any]:
        config = super().get_config_dict()
        return {**config, "train": self.train.name, "test": self.test.name, "cache_dir": str(self.cache_dir)}

    def _results(self, features: ProbeFeatures, command: str | None) -> list[Result]:
        test_y = self.labels[1]
        measured = self.measured(features)
        results = []
        for variants in zip(*measured.values(), strict=True):
            by_kind = dict(zip(measured, variants, strict=True))
            of_encoder = by_kind[ENCODER]
            scores = {
                kind: {
                    seed: classification_scores(rows, test_y, variant.logits.get(seed))
                    for seed, rows in variant.predictions.items()
                }
                for kind, variant in by_kind.items()
            }
            made = make_results(
                self, scores, self.labels, model=features.model, num_train=of_encoder.num_train,
                hyperparameters=features.settings | of_encoder.variant, details=of_encoder.details, command=command,
            )  # fmt: skip
            if self.tells_classes and test_y.ndim == 1:
                counts = {
                    kind: {seed: confusions(test_y, rows) for seed, rows in variant.predictions.items()}
                    for kind, variant in by_kind.items()
                }
                made[0].details = made[0].details | {"classes": class_figures(counts, self.train.class_names)}
            if self.tells_classes and not results:  # by group, of the variant that tables show first
                right = {
                    kind: np.mean(
                        [right_rows(p, test_y, variant.logits.get(seed)) for seed, p in variant.predictions.items()], 0
                    )
                    for kind, variant in by_kind.items()
                }
                made += [error_gap(made[0], column, right, of) for column, of in self.test.compared_by.items()]
            results += made
        return results


def make_results(
    evaluator: Any,
    scores: Mapping[str, Mapping[int, Mapping[str, float]]],
    labels: tuple[np.ndarray, np.ndarray],
    *,
    model: str,
    num_train: int,
    hyperparameters: dict[str, Any],
    details: dict[str, Any] | None = None,
    command: str | None = None,
) -> list[Result]:
    """A record for each metric, from the scores by kind, seed and metric, beside the most frequent class."""
    train_y, test_y = labels
    train, test = evaluator.train, evaluator.test
    data = {
        "train": train.name, "test": test.name, "fingerprints": [train.fingerprint, test.fingerprint],
        "classes": train_y.shape[1] if train_y.ndim == 2 else len(np.unique(train_y)),
    }  # fmt: skip
    constant = constant_scores(train_y, test_y)
    results = []
    measured = [each for seeds in scores.values() for each in seeds.values()]
    for metric in [name for name in measured[0] if all(name in each for each in measured)]:
        majority = constant.get(metric, CHANCE_AUROC)
        figures = {kind: {seed: s[metric] for seed, s in seeds.items()} for kind, seeds in scores.items()}
        results.append(
            Result.from_scores(
                figures.pop(ENCODER),
                figures | {MAJORITY: majority},
                protocol=evaluator.protocol,
                version=evaluator.version,
                model=model,
                task=test.name,
                split="test",
                metric=metric,
                num_train=num_train,
                num_eval=len(test_y),
                hyperparameters=data | hyperparameters,
                details=details or {},
                command=command or command_line(),
                versions=versions() | {"device": compute_device().type},
            )
        )
    return results


def features_of(data: "LabelledData") -> Callable[..., ProbeFeatures]:
    """What makes features of labelled data of its modality.

    Raises:
        EvaluationError: where nothing does.
    """
    made = evaluation_modality(data.modality).probe_features
    if made is None:
        raise EvaluationError(f"Probes of frozen features are not there for the modality {data.modality!r} yet.")
    return made


def aligned_labels(train: "LabelledData", test: "LabelledData") -> tuple[np.ndarray, np.ndarray]:
    """Class indices of both splits, in the numbering of `train`.

    Raises:
        EvaluationError: where labels are missing, where there is nothing to tell apart, or where `test` has a class
        that `train` has none of.
    """
    kind = modality(train.modality).samples
    for data in (train, test):
        if len(data.labels) == 0:
            raise EvaluationError(f"{data.name} holds no {kind} to probe on: name another split.")
        if len(data.labels) != len(data.samples):
            raise EvaluationError(f"{data.name} has {len(data.samples):,} {kind}, but {len(data.labels):,} labels.")
        missing = int((np.asarray(data.labels) < 0).sum())
        if missing:
            raise EvaluationError(
                f"{missing:,} of the {len(data.labels):,} {kind} of {data.name} have no label (-1): a probe needs one "
                "for each, so name a split that has them."
            )
    train_y, test_y = (np.asarray(data.labels, dtype=np.int64) for data in (train, test))
    if train_y.ndim == 2 or test_y.ndim == 2:
        return several_labels.aligned(train, test)
    position = {name: index for index, name in enumerate(train.class_names)}
    known = set(np.unique(train_y).tolist())
    if len(known) < 2:
        only = train.class_names[train_y[0]] if train.class_names else train_y[0]
        raise EvaluationError(
            f'All {len(train_y):,} {kind} of {train.name} have the label "{only}": a probe needs two classes or more.'
        )
    # two folders or files may number the same classes differently
    renumbered = {index: position.get(name, -1) for index, name in enumerate(test.class_names)}
    strange = [index for index in np.unique(test_y).tolist() if renumbered.get(index, index) not in known]
    if strange:
        names = ", ".join(f'"{test.class_names[i]}"' if i < len(test.class_names) else str(i) for i in strange[:5])
        raise EvaluationError(
            f"{test.name} has {len(strange)} class(es) that {train.name} has none of, such as {names}: take both "
            "splits of the same data set, and enough of train."
        )
    return train_y, np.array([renumbered.get(index, index) for index in test_y.tolist()], dtype=np.int64)


def check_features(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> None:
    """Refuse features that no probe can be fitted to.

    Raises:
        EvaluationError: for other than two axes, numbers of rows or dimensions that do not fit, or a single class.
    """
    if train_x.ndim != 2 or test_x.ndim != 2 or train_x.shape[1] != test_x.shape[1]:
        raise EvaluationError(
            f"Features of train and test must be of shape (num_rows, dim) with equal dim, got {train_x.shape} and "
            f"{test_x.shape}: make both with the same encoder and pooling."
        )
    if train_x.shape[0] != len(train_y):
        raise EvaluationError(f"There must be a label for each feature, got {len(train_y)} for {train_x.shape[0]}.")
    if train_y.ndim == 1 and len(np.unique(train_y)) < 2:
        raise EvaluationError("A probe needs features of two classes or more, got those of one.")


def classification_scores(
    predictions: np.ndarray, references: np.ndarray, logits: np.ndarray | None = None
) -> dict[str, float]:
    """`accuracy`, of labels of shape `(num_rows,)`; beside it, where one class is more than twice as frequent in
    `references` as another, `balanced_accuracy`, `macro_f1` and, of logits of shape `(num_rows, num_classes)`,
    `auroc`. Of labels of that shape see [`~hfssl.evaluation.several_labels.scores`]."""
    if references.ndim == 2:
        return several_labels.scores(predictions if logits is None else logits, references)
    counts = np.unique(references, return_counts=True)[1]
    # by more than the luck of a small sample
    uneven = counts.max() > 2 * counts.min() + 3 * np.sqrt(counts.max())
    names = ["accuracy", "balanced_accuracy", "macro_f1"] if uneven else ["accuracy"]
    scores: dict[str, float] = {}
    for name in names:
        scores |= _metric(name).compute(predictions=predictions, references=references)
    if uneven and logits is not None:
        scores["auroc"] = area_under_roc(logits, references)
    return scores


def constant_scores(train_y: np.ndarray, test_y: np.ndarray) -> dict[str, float]:
    """What the answer that is always the same has: the most frequent class, or how frequent each is."""
    if train_y.ndim == 2:
        shares = np.tile(train_y.mean(0), (len(test_y), 1))
        return several_labels.scores(several_labels.logits_of_shares(shares), test_y)
    return classification_scores(np.full_like(test_y, np.bincount(train_y).argmax()), test_y)


def area_under_roc(logits: np.ndarray, references: np.ndarray) -> float:
    """Mean over the classes in `references` of the area under the curve of each against the rest."""
    from sklearn.metrics import roc_auc_score

    shares = softmax(logits.astype(np.float64), axis=1)
    areas = [roc_auc_score(references == label, shares[:, label]) for label in np.unique(references)]
    return float(np.mean(areas))


@cache
def _metric(name: str) -> Any:
    # few-shot figures ask for hundreds, and each load reads a module from disk
    return metrics.load(name)
