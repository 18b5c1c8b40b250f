"""Rows of sound to batches."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ...functional import keyed
from ...functional.keyed import Use
from ...modeling.filter_banks import HOP
from .rows import AudioFormat, filter_bank_stack


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


class CutCollator(AudioCollator):
    """Cuts the rows of a batch to the shortest of them, at a place that is drawn from the key of each, before they are
    a batch: for encoders whose features padding would change.

    Args:
        format ([`~hfssl.data.audio.rows.AudioFormat`]):
            What encoder and method want.
    """

    def __init__(self, format: AudioFormat):
        self.format = format

    def __call__(self, columns: dict[str, Any]) -> dict[str, torch.Tensor]:
        sounds, keys = columns["sounds"], columns["keys"]
        lengths = np.array([len(sound) for sound in sounds])
        shortest = int(lengths.min())
        starts = (keyed.uniform(keyed.key(Use.CROP, keys)) * (lengths - shortest + 1)).astype(np.int64)
        pieces = [sound[start : start + shortest] for sound, start in zip(sounds, starts, strict=True)]
        rest = {name: values for name, values in columns.items() if name not in ("sounds", "keys")}
        return super().__call__(self.format.columns(pieces, keys, starts) | rest)


class WholeCollator(AudioCollator):
    """Batches of whole rows, for a pass over the corpus: of about the same length, or of the same where an encoder
    bears no padding.

    Args:
        format ([`~hfssl.data.audio.rows.AudioFormat`]):
            What encoder and method want.
        batch_cost (`int`):
            Samples in a batch, padding included.
    """

    def __init__(self, format: AudioFormat, batch_cost: int):
        self.format, self.batch_cost = format, batch_cost

    def __call__(self, columns: dict[str, Any]) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
        name = next(name for name in ("sounds", "input_values", "input_features") if name in columns)
        lengths = np.array([len(row) for row in columns[name]])
        costs = lengths * (1 if self.format.is_waveform else HOP * filter_bank_stack(self.format.encoder))
        order = np.argsort(-lengths, kind="stable")
        begin = 0
        while begin < len(order):
            end = begin + max(int(self.batch_cost // costs[order[begin]]), 1)
            if self.format.is_cut:
                end = min(end, begin + int((lengths[order[begin:]] == lengths[order[begin]]).sum()))
            rows = order[begin:end]
            inputs = [columns[name][i] for i in rows]
            key = name
            if name == "sounds":
                key, inputs = "input_values", [self.format.inputs(sound) for sound in inputs]
            yield rows, super().__call__({key: inputs})
            begin = end


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
