"""Macro-F1: the mean over the classes of the harmonic mean of precision and recall."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Mean of each class's F1, every class counting the same however rare it is: 1 is perfect. The classes are those that
occur in predictions or references; one that is never right counts 0, as scikit-learn has it.
"""


class MacroF1(evaluate.Metric):
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
        both = np.concatenate([predictions, references])
        classes, at = np.unique(both, return_inverse=True)
        predicted, present = np.split(at, 2)
        right = np.bincount(present[predicted == present], minlength=len(classes))
        # every class occurs at least once, so that nothing is divided by 0
        return {"macro_f1": float(np.mean(2 * right / np.bincount(at, minlength=len(classes))))}
