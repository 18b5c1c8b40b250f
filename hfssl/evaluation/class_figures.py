"""Which classes a probe tells apart, and what it takes the others for: kept in the `details` of its figure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .probe_features import ENCODER


# Of more classes than these only what each is taken for most often is kept.
MOST_CLASSES, MOST_TAKEN_FOR = 50, 5

Counts = Sequence[Sequence[int]]


def confusions(references: np.ndarray, predictions: np.ndarray) -> list[list[int]]:
    """How often each class is taken for each: class, what it is taken for, and how often, where that is not 0."""
    pairs, counts = np.unique(np.stack([references, predictions]), axis=1, return_counts=True)
    return np.vstack([pairs, counts]).T.tolist()


def class_figures(counts: Mapping[str, Mapping[int, Counts]], names: Sequence[str]) -> list[dict[str, Any]]:
    """How each class fares, over all seeds.

    Args:
        counts (`Mapping[str, Mapping[int, Counts]]`):
            [`confusions`] by what they are of (`"encoder"` and baselines) and by seed.
        names (`Sequence[str]`):
            Of the classes; their numbers where there are none.

    Returns:
        `list[dict]`: for each class that is there its `name`, `rows`, how many are `right`, what the others are
        `taken_for` (counts by name, the most frequent first), and the share of right ones in the `baselines`.
    """

    def name(label: int) -> str:
        return str(names[label]) if label < len(names) else str(label)

    rows, right = {}, {}
    taken_for: dict[int, Counter] = {}
    for kind, by_seed in counts.items():
        rows[kind], right[kind] = Counter(), Counter()
        for label, said, count in (each for of_seed in by_seed.values() for each in of_seed):
            rows[kind][label] += count
            right[kind][label] += count * (label == said)
            if kind == ENCODER and label != said:
                taken_for.setdefault(label, Counter())[name(said)] += count
    most = None if len(rows[ENCODER]) <= MOST_CLASSES else MOST_TAKEN_FOR
    return [
        {
            "name": name(label), "rows": rows[ENCODER][label], "right": right[ENCODER][label],
            "taken_for": dict(taken_for.get(label, Counter()).most_common(most)),
            "baselines": {
                kind: round(right[kind][label] / rows[kind][label], 4)
                for kind in counts
                if kind != ENCODER and rows[kind][label]
            },
        }
        for label in sorted(rows[ENCODER])
    ]  # fmt: skip
