"""The order in which fine-tuning goes through labelled rows."""

from collections.abc import Sequence

import numpy as np

from ..functional import keyed
from ..functional.keyed import Use


class KeyedOrder:
    """Epoch after epoch in one sequence of positions, each in an order of its own that the seed alone decides."""

    def __init__(self, rows: np.ndarray, seed: int):
        self.rows, self.seed = rows, seed
        self._epoch: tuple[int, np.ndarray] = (-1, rows)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Epoch and row at a position."""
        epoch, at = divmod(position, len(self.rows))
        if self._epoch[0] != epoch:
            order = keyed.permutation(len(self.rows), Use.FINETUNE_ORDER, self.seed, epoch)
            self._epoch = (epoch, self.rows[order])
        return epoch, int(self._epoch[1][at])


# What becomes of damaged samples of train: nothing is known of them but a label.
LEFT_OUT = "not learned from"


def readable(rows: np.ndarray, bad: Sequence[int]) -> np.ndarray:
    """Rows to learn from, without those that are damaged."""
    return rows[~np.isin(rows, bad)]


def label_of(label: np.ndarray | int) -> int | list[float]:
    """What a classifier learns of a sample: its class, or, where it may have several, 1 and 0 for each."""
    return np.asarray(label, dtype=np.float32).tolist() if np.ndim(label) else int(label)
