"""Rows of sound to batches."""

from typing import Any

import numpy as np
import torch


class AudioCollator:
    """Turns the columns of some rows into a batch.

    `input_values` `(batch_size, num_samples)` or `input_features` `(batch_size, num_frames, dim)`, padded with 0 to
    the longest; `attention_mask` of the samples, or of the frames, only where lengths differ, so that nobody has to
    look for padding where there is none. Where rows have them, `mask_time_indices` `(batch_size, num_frames)` and
    `negative_indices` `(batch_size, num_frames, num_negatives)`, see [`~hfssl.functional.spans.frame_masks`], and with
    them `masked_positions` `(num_masked,)`, the flat indices of the hidden frames: known here on the CPU, they save
    the model a synchronisation. Numbers of which a row has one, such as its key, go as they are.
    """

    def __call__(self, columns: dict[str, Any]) -> dict[str, torch.Tensor]:
        batch: dict[str, np.ndarray] = {}
        for name, rows in columns.items():
            values, lengths = (rows, None) if isinstance(rows, np.ndarray) and rows.dtype != object else _padded(rows)
            batch[name] = values
            if name in ("input_values", "input_features") and lengths is not None and lengths.min() < lengths.max():
                batch["attention_mask"] = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        if "mask_time_indices" in batch:
            batch["masked_positions"] = np.flatnonzero(batch["mask_time_indices"])
        return {name: _tensor(values) for name, values in batch.items()}


def _padded(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of different lengths, with 0 behind the shorter ones, and their lengths."""
    lengths = np.array([len(row) for row in rows])
    values = np.zeros((len(rows), lengths.max(), *np.shape(rows[0])[1:]), np.asarray(rows[0]).dtype)
    for row, length, target in zip(rows, lengths, values, strict=True):
        target[:length] = row
    return values, lengths


def _tensor(values: np.ndarray) -> torch.Tensor:
    # torch has few operations for integers without a sign: a key keeps its bits
    values = values.view(np.int64) if values.dtype == np.uint64 else values
    return torch.from_numpy(np.ascontiguousarray(values))
