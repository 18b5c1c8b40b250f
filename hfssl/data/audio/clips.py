"""Recordings as a side of pairs: one row of each, whole or a part of it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ...functional import keyed
from ...functional.keyed import Use
from ..stream import Block, Rows
from .collate import AudioCollator, CutCollator
from .decode import decode_all, is_heard
from .rows import SAMPLING_RATE, AudioFormat


class ClipRows:
    """Turns recordings into rows: of one that is longer than the format's `max_seconds` a part, which is drawn from
    the key of the sample and is another one in each pass.

    Args:
        format ([`~hfssl.data.audio.rows.AudioFormat`]):
            What the encoder takes.
    """

    has_mask = True

    def __init__(self, format: AudioFormat):
        self.format = format

    def rows(self, block: Block) -> Rows:
        """A row of each sample that is neither damaged nor silent."""
        draws = keyed.uniform(keyed.key(Use.WINDOW, block.keys))
        kept, sounds = [], []
        decoded, bad = decode_all(block.columns["audio"], SAMPLING_RATE)
        for i, sound in decoded:
            start = int(draws[i] * max(len(sound) - self.format.max_samples + 1, 1))
            sound = sound[start : start + self.format.max_samples]
            if is_heard(sound, self.format.min_samples):
                kept.append(i)
                sounds.append(sound)
        keys = block.keys[kept]
        if self.format.is_cut:
            columns = {"sounds": sounds, "keys": keys}
        else:
            columns = self.format.columns(sounds, keys, np.zeros(len(kept), np.int64))
        num_empty = len(block.keys) - len(kept) - len(bad)
        return Rows(columns, np.ones(len(kept), np.int64), bad, block.places[kept], num_empty=num_empty)

    def collator(self, device: torch.device | str = "cpu") -> Callable[[dict[str, Any]], dict[str, torch.Tensor]]:
        """What makes `input_values` or `input_features` of the columns of some rows, and a mask where they differ in
        length."""
        collate = CutCollator(self.format) if self.format.is_cut else AudioCollator()
        names = ("sounds", "keys") if self.format.is_cut else ("input_values", "input_features")
        return lambda columns: collate({name: columns[name] for name in names if name in columns})
