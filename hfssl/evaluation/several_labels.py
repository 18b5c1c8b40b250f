"""Figures of labels of which a sample has several, or none: int64 of 0 and 1, of shape `(num_rows, num_classes)`."""

from typing import TYPE_CHECKING

import numpy as np

from .evaluator import EvaluationError


if TYPE_CHECKING:
    from ..data.labelled import LabelledData


def aligned(train: "LabelledData", test: "LabelledData") -> tuple[np.ndarray, np.ndarray]:
    """Labels of both splits, with the classes of `train`.

    Raises:
        EvaluationError: where a split has one label for each sample, the other several, where they have other
        classes, or where there is nothing to tell apart.
    """
    train_y, test_y = (np.asarray(data.labels, dtype=np.int64) for data in (train, test))
    if train_y.ndim != test_y.ndim:
        one, other = (train, test) if train_y.ndim == 2 else (test, train)
        raise EvaluationError(
            f"Samples of {one.name} have several labels, those of {other.name} one each: name others."
        )
    place = {name: i for i, name in enumerate(test.class_names)}
    strange = sorted(set(test.class_names) - set(train.class_names))
    if strange:
        raise EvaluationError(
            f"{test.name} has {len(strange)} class(es) that {train.name} has none of, such as {strange[0]!r}: take "
            "both splits of the same data set."
        )
    columns = [
        test_y[:, place[name]] if name in place else np.zeros(len(test_y), np.int64) for name in train.class_names
    ]
    if not told_apart(train_y).any():
        raise EvaluationError(
            f"Each class of {train.name} applies to all of its samples, or to none: a probe needs one that tells some "
            "of them from others."
        )
    return train_y, np.stack(columns, axis=1)


def told_apart(labels: np.ndarray) -> np.ndarray:
    """Which classes some of the rows have and others have not, `bool` of shape `(num_classes,)`."""
    return (labels.min(0) == 0) & (labels.max(0) == 1)


def scores(logits: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """What each class is worth on its own, and all labels together.

    Args:
        logits (`np.ndarray` of shape `(num_rows, num_classes)`):
            How much speaks for each class; above 0 it is taken to apply.
        references (`np.ndarray` of shape `(num_rows, num_classes)`):
            The labels.

    Returns:
        `dict[str, float]`: `auroc` (area under the ROC curve) and `mean_average_precision`, means over the classes
        that some rows have and others have not; `micro_f1` over all labels, and `macro_f1`, its mean over the classes.
    """
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    references = references.astype(np.int64)
    there = told_apart(references)
    if not there.any():
        raise EvaluationError("Each class applies to all samples to measure on, or to none: name another split.")
    logits = np.nan_to_num(logits, nan=0.0, posinf=1e9, neginf=-1e9)
    predicted = (logits > 0).astype(np.int64)
    return {
        "auroc": float(roc_auc_score(references[:, there], logits[:, there], average="macro")),
        "mean_average_precision": float(
            average_precision_score(references[:, there], logits[:, there], average="macro")
        ),
        "micro_f1": float(f1_score(references, predicted, average="micro", zero_division=0.0)),
        "macro_f1": float(f1_score(references[:, there], predicted[:, there], average="macro", zero_division=0.0)),
    }


def logits_of_shares(shares: np.ndarray) -> np.ndarray:
    """Logits of probabilities."""
    shares = np.clip(shares, 1e-7, 1 - 1e-7)
    return np.log(shares / (1 - shares))
