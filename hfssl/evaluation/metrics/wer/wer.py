"""Word error rate: how many words have to be changed, put in or taken out, for each that was said."""

import datasets
import evaluate
import numpy as np


_DESCRIPTION = """
Edits of words that turn the predictions into their references, summed over all, divided by the words of the
references: 0 is perfect, and more than 1 is possible. 0 where there is nothing to say and nothing is said.
"""


class Wer(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description="predictions and references, one text per row",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        pairs = [(str.split(said), str.split(right)) for said, right in zip(predictions, references, strict=True)]
        edits, total = sum(_distance(*pair) for pair in pairs), sum(len(right) for _, right in pairs)
        return {"wer": float(edits / max(total, 1))}


def _distance(first, second):
    """Fewest changes, insertions and deletions from one sequence to the other."""
    numbers = {}
    first, second = (np.array([numbers.setdefault(part, len(numbers)) for part in parts]) for parts in (first, second))
    places = np.arange(len(second) + 1)
    row = places
    for index, part in enumerate(first, start=1):
        # of the row before: the same or changed, or left out
        best = np.concatenate([[index], np.minimum(row[:-1] + (second != part), row[1:] + 1)])
        # then put in: one more for each place to the right
        row = np.minimum.accumulate(best - places) + places
    return int(row[-1])
