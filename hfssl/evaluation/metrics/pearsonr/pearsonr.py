"""Pearson's correlation coefficient."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Linear correlation, in [-1, 1]: 1 is perfect. Defined as 0 where predictions or references are constant, since such
predictions say nothing.
"""


class Pearsonr(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions and references, one number per row",
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions, references):
        x = np.asarray(predictions, dtype=np.float64)
        y = np.asarray(references, dtype=np.float64)
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            return {"pearsonr": 0.0}
        return {"pearsonr": float(np.corrcoef(x, y)[0, 1])}
