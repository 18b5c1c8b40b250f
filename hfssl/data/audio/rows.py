"""From recordings to rows: decode, cut long ones into windows, draw what is hidden.

A recording that is longer than `max_seconds` becomes the fewest windows of equal length that are not; so none is a
short rest, and a window has a place of its own. What is shorter than `min_seconds`, and a window in which all samples
are equal (digital silence), is left out: of these nothing could be learned. Background noise, however low, is kept.

What encoders make of padding decides how rows become batches. With layer norm in the convolutions, or filter banks,
padding that is masked changes nothing of what is beside it: rows are padded. With group norm in the first layer, as
HuBERT-base and wav2vec 2.0-base have it, each frame depends on the mean over all of the batch's padding: rows are cut
to the shortest of their batch, at a place that is drawn from the key of each, and nothing is padded.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from ...errors import UserError
from ...functional import keyed
from ...functional.keyed import Use
from ...functional.spans import frame_masks
from ...modeling.audio import num_frames, reads_waveforms, samples_per_frame
from ...modeling.filter_banks import HOP, SAMPLING_RATE, WINDOW, log_mel
from ..stream import Block, Rows
from .decode import decode_all, is_heard


logger = logging.getLogger(__name__)

# Added to a variance, as stock feature extractors do.
_EPSILON = 1e-7
# Of the sound of a block, how much padding its batches may add, or how much of it may be cut away.
_MOST_WASTE = 0.05
# What an encoder has to make of the shortest clip: one frame to hide and one to see.
_MIN_FRAMES = 2


@dataclass(frozen=True)
class AudioFormat:
    """What an encoder and a method want of a row.

    Args:
        encoder (`PreTrainedConfig`):
            Of the encoder: one that reads waveforms, or the filter banks of Wav2Vec2-BERT.
        masking (`dict[str, Any]`, *optional*):
            Arguments of [`~hfssl.functional.spans.frame_masks`]: `model.config.masking`. Left out, nothing is hidden.
        takes (`frozenset[str]`, *optional*):
            What the method takes beside sound and masks: `sample_keys`, the key of each row, and `starts`, where it
            was cut out of its window.
        max_seconds, min_seconds (`float`, *optional*, defaults to 15.6 and 0.1):
            Longest and shortest row; 15.6 is what HuBERT and wav2vec 2.0 take.
        normalize (`bool`, *optional*, defaults to `True`):
            Whether a waveform gets a mean of 0 and a variance of 1, as the feature extractors of most checkpoints do.

    Raises:
        UserError: if the encoder makes no frames of the shortest row that could be hidden.
    """

    encoder: PreTrainedConfig
    masking: dict[str, Any] = field(default_factory=dict)
    takes: frozenset[str] = frozenset()
    max_seconds: float = 15.6
    min_seconds: float = 0.1
    normalize: bool = True

    def __post_init__(self):
        if not 0 < self.min_seconds <= self.max_seconds:
            raise UserError(
                "A recording is used from `--min_seconds` on, in windows of at most `--max_seconds`, got "
                f"{self.min_seconds:g} and {self.max_seconds:g}."
            )
        samples = self.min_samples
        if self.frames(samples) < _MIN_FRAMES:
            while self.frames(samples) < _MIN_FRAMES:
                samples += HOP
            raise UserError(
                f"Of {self.min_seconds:g} s (`--min_seconds`) a {self.encoder.model_type} makes "
                f"{max(int(self.frames(self.min_samples)), 0)} frames, and a frame is to be hidden beside one that is "
                f"seen. Pass `--min_seconds {samples / SAMPLING_RATE:.2f}` or more."
            )

    @property
    def max_samples(self) -> int:
        return round(self.max_seconds * SAMPLING_RATE)

    @property
    def min_samples(self) -> int:
        return round(self.min_seconds * SAMPLING_RATE)

    @property
    def is_waveform(self) -> bool:
        return reads_waveforms(self.encoder)

    @property
    def is_cut(self) -> bool:
        """Whether rows are cut to equal length, because padding would change their features."""
        return self.is_waveform and self.encoder.feat_extract_norm == "group"

    @property
    def main_input(self) -> str:
        """What the encoder calls what it takes."""
        return "input_values" if self.is_waveform else "input_features"

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return samples_per_frame(self.encoder) if self.is_waveform else HOP * filter_bank_stack(self.encoder)

    def frames(self, num_samples: Any) -> Any:
        """Frames that the encoder makes of so many samples, which may be an array."""
        if self.is_waveform:
            return num_frames(self.encoder, num_samples)
        return (1 + (num_samples - WINDOW) // HOP) // filter_bank_stack(self.encoder)

    def inputs(self, sound: np.ndarray) -> np.ndarray:
        """What the encoder takes of a sound, `(num_samples,)` to itself or to `(num_frames, dim)`."""
        if not self.is_waveform:
            return filter_banks(sound, filter_bank_stack(self.encoder))
        return normalized(sound) if self.normalize else sound

    def columns(self, sounds: list[np.ndarray], keys: np.ndarray, starts: np.ndarray) -> dict[str, Any]:
        """The columns of some rows, each of its final length."""
        columns: dict[str, Any] = {self.main_input: [self.inputs(sound) for sound in sounds]}
        if self.masking:
            lengths = self.frames(np.array([len(sound) for sound in sounds], np.int64))
            columns |= frame_masks(lengths, keys, **self.masking)
        given = {"sample_keys": keys, "starts": starts}
        return columns | {name: values for name, values in given.items() if name in self.takes}


class AudioRows:
    """Turns a block of encoded recordings into rows: a pure function of the block.

    Where rows are padded, their columns are `input_values` or `input_features`, and what masks and keys the format
    wants. Where they are cut, which is done when they meet ([`~hfssl.data.audio.collate.CutCollator`]), they are
    `sounds` and `keys`.

    Args:
        format ([`AudioFormat`]):
            What is wanted.
    """

    def __init__(self, format: AudioFormat):
        self.format = format

    def __call__(self, block: Block) -> Rows:
        windows, bad = self.decoded(block)
        num_empty = len(block.columns["audio"]) - len(bad) - len({sample for sample, _, _ in windows})
        samples = np.array([sample for sample, _, _ in windows], np.int64)
        numbers = np.array([number for _, number, _ in windows], np.int64)
        sounds = [sound for _, _, sound in windows]
        keys = keyed.key(Use.WINDOW, block.keys[samples], numbers)
        places = block.places[samples]
        places[:, 3] = numbers
        # or the windows of a recording would follow each other
        order = keyed.permutation(len(sounds), Use.ORDER_OF_ROWS, block.key)
        sounds, keys = [sounds[i] for i in order], keys[order]
        lengths = np.array([len(sound) for sound in sounds], np.int64)
        if self.format.is_cut:
            columns = {"sounds": sounds, "keys": keys}
        else:
            columns = self.format.columns(sounds, keys, np.zeros(len(keys), np.int64))
        return Rows(
            columns, lengths / SAMPLING_RATE, bad, places[order], costs=lengths, num_empty=num_empty,
            most_waste=_MOST_WASTE, is_cut=self.format.is_cut,
        )  # fmt: skip

    def decoded(self, block: Block) -> tuple[list[tuple[int, int, np.ndarray]], list[tuple[int, str]]]:
        """Of each window its sample, its number and its sound; and `(sample, reason)` of what is damaged."""
        sounds, bad = decode_all(block.columns["audio"], SAMPLING_RATE)
        windows = [(sample, *window) for sample, sound in sounds for window in enumerate(self.windows(sound))]
        return windows, bad

    def windows(self, sound: np.ndarray) -> list[np.ndarray]:
        """A sound, or windows of it that are short enough, without those that nothing can be learned from."""
        number = max(-(-len(sound) // self.format.max_samples), 1)
        edges = np.arange(number + 1) * len(sound) // number
        windows = [sound[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]
        return [window for window in windows if is_heard(window, self.format.min_samples)]


def normalized(sound: np.ndarray) -> np.ndarray:
    """A sound with a mean of 0 and a variance of 1, as [`~transformers.Wav2Vec2FeatureExtractor`] makes it."""
    centred = sound - sound.mean(dtype=np.float64)
    return (centred / np.sqrt(np.mean(centred**2) + _EPSILON)).astype(np.float32)


def filter_bank_stack(encoder: PreTrainedConfig) -> int:
    """How many filter banks a frame of an encoder has side by side.

    Raises:
        UserError: if it does not read those of Wav2Vec2-BERT.
    """
    stack, rest = divmod(getattr(encoder, "feature_projection_input_dim", 1), 80)
    if rest or not stack:
        raise UserError(
            f"A {encoder.model_type} reads neither waveforms nor stacked filter banks of 80 mel bins, which is what "
            "is made of recordings. HuBERT, WavLM, wav2vec 2.0, Wav2Vec2-BERT and Wav2Vec2-Conformer do."
        )
    return stack


def filter_banks(sound: np.ndarray, stack: int) -> np.ndarray:
    """Filter banks, normalised over time and stacked, as [`~transformers.SeamlessM4TFeatureExtractor`] makes them.

    Args:
        sound (`np.ndarray` of shape `(num_samples,)`):
            At 16 kHz.
        stack (`int`):
            Filter banks a frame; those at the end that fill no frame are left out, as the extractor masks them.

    Returns:
        `np.ndarray` of dtype `float32` and shape `(num_frames, 80 * stack)`.
    """
    banks = log_mel(torch.from_numpy(sound)[None])[0].numpy()
    deviation = np.sqrt(banks.var(axis=0, ddof=1) + _EPSILON)
    banks = (banks - banks.mean(axis=0)) / deviation
    number = len(banks) // stack
    return banks[: number * stack].reshape(number, -1)
