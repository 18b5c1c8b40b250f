"""Few-shot: how much do 1, 5 or 10 labels a class teach, given the frozen features?

Protocol "few_shot", version 1, the classifier of "Rethinking Few-Shot Image Classification" (Tian et al., 2020,
https://huggingface.co/papers/2003.11539): multinomial logistic regression, scikit-learn's C = 1, on features of length
1, which have their mean over train (without labels) taken off before, as in SimpleShot (Wang et al., 2019,
https://huggingface.co/papers/1911.04623): else what all images have in common would be most of a feature.
Labels are drawn from train, 10 times, by keys: every encoder and baseline gets the same ones. All classes are told
apart at once, and all of test is classified. Mean and standard deviation are over the draws.
"""

import logging
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.sparse import csr_matrix, issparse

from ..functional import keyed
from ..functional.keyed import Use
from ..machine import compute_device
from .evaluator import EvaluationError
from .frozen import FrozenEvaluator, Measured, check_features
from .knn import unit_rows
from .linear_probe import LogisticRegression, logits_of_all


logger = logging.getLogger(__name__)


@dataclass
class FewShotEvaluator(FrozenEvaluator):
    r"""
    Classification with few labels a class on frozen features. The protocol stands at the top of the module.

    Arguments: see [`~hfssl.evaluation.frozen.FrozenEvaluator`], and

    Args:
        shots (`tuple[int, ...]`, *optional*, defaults to `(1, 5, 10)`):
            Labels a class, one figure for each.
        draws (`int`, *optional*, defaults to `10`):
            How often labels are drawn.
    """

    protocol: ClassVar[str] = "few_shot"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "few-shot"

    shots: tuple[int, ...] = (1, 5, 10)
    draws: int = 10

    def __post_init__(self):
        super().__post_init__()
        if min(self.shots) < 1 or self.draws < 1:
            raise EvaluationError(f"Few-shot needs a label and a draw at least, got {self.shots} and {self.draws}.")

    def predict(self, train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> list[Measured]:
        measured = []
        if train_y.ndim == 2:
            names, counts = np.arange(train_y.shape[1]), train_y.sum(0)
        else:
            names, counts = np.unique(train_y, return_counts=True)
        for shots in self.shots:
            details = {}
            short = counts < shots
            if short.any():
                details["classes_with_fewer_labels"] = int(short.sum())
                logger.info(
                    "%d of the %d classes have fewer than %d labels: all that they have are used.",
                    short.sum(), len(names), shots,
                )  # fmt: skip
            logits = {
                draw: few_shot_logits(train_x, train_y, test_x, shots, seed=draw, device=compute_device())
                for draw in range(self.draws)
            }
            predictions = {draw: values.argmax(1) for draw, values in logits.items()}
            num_train = len(draw_rows(train_y, shots, seed=0))
            measured.append(
                Measured({"shots": shots}, predictions, num_train=num_train, details=details, logits=logits)
            )
        return measured


def few_shot_logits(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    shots: int,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """How much speaks for each class, of shape `(num_test, num_classes)`, by `shots` labels of each."""
    check_features(train_x, train_y, test_x)
    rows = draw_rows(train_y, shots, seed)
    classifier = LogisticRegression(1.0 / len(rows), standardize=False, device=device)
    if not issparse(train_x):  # which it would be no more
        mean = train_x.mean(0)
        train_x, test_x = train_x - mean, test_x - mean
    classifier.fit(_unit(train_x[rows]), train_y[rows])
    return logits_of_all(classifier, _unit(test_x), train_y)


def draw_rows(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Rows of `shots` labels of each class, or of all that it has, in ascending order.

    A draw of fewer labels is part of a draw of more with the same seed. Where a row may have several classes, it is
    that many rows with each, and as many with none of them.
    """
    parts = []
    if labels.ndim == 2:
        rows_of = {label: np.flatnonzero(labels[:, label]) for label in range(labels.shape[1])}
        rows_of[labels.shape[1]] = np.flatnonzero(labels.sum(1) == 0)
    else:
        rows_of = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}
    for label, rows in rows_of.items():
        parts.append(rows[keyed.permutation(len(rows), Use.FEW_SHOT, seed, int(label))[:shots]])
    return np.unique(np.concatenate(parts))


def _unit(x: np.ndarray | csr_matrix) -> np.ndarray | csr_matrix:
    if issparse(x):
        return unit_rows(x)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
