"""Rows of sound to batches."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ...functional import keyed
from ...functional.keyed import Use
from .rows import AudioFormat


def batches_by_length(
    lengths: np.ndarray, most: float, batch_size: int | None = None, only_equal: bool = False
) -> list[np.ndarray]:
    """Clips that go through an encoder together: about equally long ones, so that there is little padding.

    Args:
        lengths (`np.ndarray` of shape `(num_clips,)`):
            Of the clips, in samples or seconds.
        most (`float`):
            Most of that in a batch, padding included, unless it is one clip.
        batch_size (`int`, *optional*):
            Most clips of a batch.
        only_equal (`bool`, *optional*, defaults to `False`):
            Whether all clips of a batch must be of one length.

    Returns:
        `list[np.ndarray]`: the numbers of the clips of each batch, the shortest clips first.
    """
    batches: list[list[int]] = []
    for row in np.argsort(lengths, kind="stable").tolist():
        last = batches[-1] if batches else []
        fits = last and len(last) != batch_size and lengths[row] * (len(last) + 1) <= most
        if fits and not (only_equal and lengths[last[0]] != lengths[row]):
            last.append(row)
        else:
            batches.append([row])
    return [np.array(batch) for batch in batches]


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
        format = self.format
        values = columns["sounds" if format.is_cut else format.main_input]
        costs = np.array([len(row) for row in values]) * (1 if format.is_waveform else format.hop)
        for rows in batches_by_length(costs, self.batch_cost, only_equal=format.is_cut):
            inputs = [format.inputs(values[i]) if format.is_cut else values[i] for i in rows]
            yield rows, super().__call__({format.main_input: inputs})


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
