"""The order in which fine-tuning goes through labelled rows."""

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


def label_of(labels: np.ndarray, row: int) -> int | list[float]:
    """What a classifier learns of a row: its class, or, where it may have several, 1 and 0 for each."""
    return labels[row].astype(np.float32).tolist() if labels.ndim == 2 else int(labels[row])
