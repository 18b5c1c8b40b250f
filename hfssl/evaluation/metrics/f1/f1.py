"""F1: the harmonic mean of precision and recall of one class."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Harmonic mean of precision and recall of the class `pos_label`: 1 is perfect. 0 where that class is neither
predicted nor present, as scikit-learn has it.
"""


class F1(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions and references, one class index per row",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, pos_label=1):
        predicted = np.asarray(predictions) == pos_label
        present = np.asarray(references) == pos_label
        total = predicted.sum() + present.sum()
        return {"f1": float(2 * (predicted & present).sum() / total) if total else 0.0}
