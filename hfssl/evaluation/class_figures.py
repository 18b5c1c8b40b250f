"""Which classes a probe tells apart, and what it takes the others for: kept in the `details` of its figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .probe_features import ENCODER


# Of more classes than these only what each is taken for most often is kept.
MOST_CLASSES, MOST_TAKEN_FOR = 50, 5


def class_figures(
    references: np.ndarray, predictions: Mapping[str, Mapping[int, np.ndarray]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """How each class fares, over all seeds.

    Args:
        references (`np.ndarray` of shape `(num_rows,)`):
            The class of each row.
        predictions (`Mapping[str, Mapping[int, np.ndarray]]`):
            By what they are made from (`"encoder"` and baselines) and by seed, what each row is taken for.
        names (`Sequence[str]`):
            Of the classes; their numbers where there are none.

    Returns:
        `list[dict]`: for each class of `references` its `name`, `rows`, how many are `right`, what the others are
        `taken_for` (counts by name, the most frequent first), and how many are right in the `baselines`.
    """

    def name(label: int) -> str:
        return str(names[label]) if label < len(names) else str(label)

    found, present = [], np.unique(references)
    most = None if len(present) <= MOST_CLASSES else MOST_TAKEN_FOR
    for label in present.tolist():
        rows = references == label
        said = np.concatenate([each[rows] for each in predictions[ENCODER].values()])
        others, counts = np.unique(said[said != label], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:most]
        found.append(
            {
                "name": name(label), "rows": len(said), "right": int((said == label).sum()),
                "taken_for": {name(int(others[i])): int(counts[i]) for i in order},
                "baselines": {
                    kind: int(sum((each[rows] == label).sum() for each in by_seed.values()))
                    for kind, by_seed in predictions.items()
                    if kind != ENCODER and len(by_seed) == len(predictions[ENCODER])
                },
            }
        )  # fmt: skip
    return found
