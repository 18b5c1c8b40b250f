"""Accuracy: the fraction of predictions that are right."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
The fraction of predictions that equal their reference: 1 is perfect.
"""


class Accuracy(evaluate.Metric):
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
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}
