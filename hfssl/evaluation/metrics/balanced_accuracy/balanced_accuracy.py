"""Balanced accuracy: the mean over the classes of the share of each that is right."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Mean over the classes that occur in references of the share of their rows that is predicted right: 1 is perfect, and
one over the number of classes is what a single answer gives, however frequent it is.
"""


class BalancedAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions and references, one class index per row",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        predictions, references = np.asarray(predictions), np.asarray(references)
        _, at, counts = np.unique(references, return_inverse=True, return_counts=True)
        right = np.bincount(at, weights=predictions == references)
        return {"balanced_accuracy": float(np.mean(right / counts))}
