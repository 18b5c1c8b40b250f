"""Spearman's rank correlation coefficient."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Correlation of the ranks, in [-1, 1]: 1 is perfect; equal values share their mean rank. Defined as 0 where predictions
or references are constant, since such predictions say nothing.
"""


class Spearmanr(evaluate.Metric):
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
        x, y = self._ranks(predictions), self._ranks(references)
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            return {"spearmanr": 0.0}
        return {"spearmanr": float(np.corrcoef(x, y)[0, 1])}

    def _ranks(self, values):
        _, indices, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        return (last - (counts - 1) / 2)[indices]
