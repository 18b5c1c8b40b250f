"""Matthews correlation coefficient, for any number of classes."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Correlation of predicted and true classes, in [-1, 1]: 1 is perfect, 0 is chance. 0 where either is constant, as
scikit-learn has it. For more than two classes it is Gorodkin's R_K.
"""


class MatthewsCorrelation(evaluate.Metric):
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
        classes, indices = np.unique(np.concatenate([predictions, references]), return_inverse=True)
        predicted, true = np.eye(len(classes))[indices.reshape(2, -1)]
        predicted = predicted - predicted.mean(axis=0)
        true = true - true.mean(axis=0)
        variance = (predicted * predicted).sum() * (true * true).sum()
        return {"matthews_correlation": float((predicted * true).sum() / np.sqrt(variance)) if variance > 0 else 0.0}
