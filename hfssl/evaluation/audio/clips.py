"""Waveforms in no more memory than is stated, and what else is made of recordings again and again."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from ..extraction import MAX_BAD_FRACTION, check_damage
from .features import AudioReader


# Of waveforms at 16 kHz that is over an hour.
KEPT_BYTES = 256 << 20
# Recordings that are decoded at once.
_AT_ONCE = 64


class Kept:
    """What is made of a key: kept as long as there is room, and made again when it is asked for after that.

    Args:
        make (`Callable[[Hashable], Any]`):
            Makes it.
        num_bytes (`Callable[[Any], int]`):
            Its size.
        most_bytes (`int`, *optional*):
            Room for all that is kept.
    """

    def __init__(self, make: Callable[[Hashable], Any], num_bytes: Callable[[Any], int], most_bytes: int = KEPT_BYTES):
        self.make, self.num_bytes, self.left = make, num_bytes, most_bytes
        self.kept: dict[Hashable, Any] = {}

    def __call__(self, key: Hashable) -> Any:
        return self.kept[key] if key in self.kept else self.keep(key, self.make(key))

    def keep(self, key: Hashable, value: Any) -> Any:
        """Keep what was made, if there is room."""
        size = self.num_bytes(value)
        if size <= self.left:
            self.kept[key], self.left = value, self.left - size
        return value


class Clips(Sequence):
    """Encoded recordings as waveforms, decoded when they are asked for; damaged ones are silent.

    All are decoded once at the beginning: then it is known how long each is, and which are damaged.

    Args:
        samples (`Sequence[bytes]`):
            Encoded recordings.
        sampling_rate (`int`):
            What they are resampled to.
        least (`int`, *optional*, defaults to 0):
            Samples to which shorter ones are lengthened with silence.
        most (`int`, *optional*):
            Samples after which longer ones are cut off.
        name (`str`, *optional*):
            Of the data, for messages.
        max_bad_fraction (`float`, *optional*):
            Share of damaged ones that is borne.
        most_bytes (`int`, *optional*):
            Room for those that are kept.
        are (`str`, *optional*):
            What damaged ones are, see [`~hfssl.evaluation.extraction.check_damage`].

    Attributes:
        bad (`list[int]`):
            Which are damaged.
        lengths (`np.ndarray` of shape `(num_clips,)`):
            In samples.

    Raises:
        EvaluationError: if too many are damaged.
    """

    def __init__(
        self,
        samples: Sequence[bytes],
        sampling_rate: int,
        *,
        least: int = 0,
        most: int | None = None,
        name: str = "the data",
        max_bad_fraction: float = MAX_BAD_FRACTION,
        most_bytes: int = KEPT_BYTES,
        are: str | None = None,
    ):
        self.samples, self.least, self.most = samples, least, most
        self.reader = AudioReader(sampling_rate)
        self._kept = Kept(self._decoded, _num_bytes, most_bytes)
        lengths, self.bad = [], []
        for batch in self.reader.batches(samples, range(0, len(samples), _AT_ONCE), _AT_ONCE):
            for clip in batch:
                if clip is None:
                    self.bad.append(len(lengths))
                lengths.append(len(self._kept.keep(len(lengths), self._fitted(clip))))
        self.lengths = np.array(lengths, np.int64)
        check_damage(samples, self.bad, name, self.reader, max_bad_fraction, are)

    def _fitted(self, clip: np.ndarray | None) -> np.ndarray:
        clip = (self.reader.blank if clip is None else clip)[: self.most]
        # a copy, or the whole of it would be kept
        return np.pad(clip, (0, max(self.least - len(clip), 0)))

    def _decoded(self, row: int) -> np.ndarray:
        return self._fitted(self.reader.decode(self.samples[row]))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._kept(range(len(self))[row])


def _num_bytes(clip: np.ndarray) -> int:
    return clip.nbytes
