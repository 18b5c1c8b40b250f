"""Views of recordings: log-mel spectrograms of pieces that are made louder, noisier, mixed and masked, for contrast.

Of the waveform a piece is cut out, its loudness changed, noise of a random color and another recording of its block
laid under it; of its spectrogram spans of time and of frequency are hidden. What is not hidden is what
[`~transformers.ASTFeatureExtractor`] makes of the piece. All that is drawn about a view comes from the key of its
recording, also which of the block is laid under it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import ASTFeatureExtractor, PreTrainedConfig

from ...errors import UserError
from ...functional import keyed
from ...functional.keyed import Use
from ...modeling.filter_banks import HOP, SAMPLING_RATE, WINDOW
from ...modeling.frames import is_grid
from ..device import Beside, send
from ..stream import Block, Rows
from .decode import decode_all, is_heard


NUM_VIEWS = 2
# What of a recording is shorter gives no spectrogram of a patch.
MIN_SECONDS = 0.2


def check_takes_spectrograms(encoder: PreTrainedConfig) -> None:
    """Refuse an encoder that views of recordings are nothing for.

    Raises:
        UserError: if it takes no spectrograms.
    """
    if not is_grid(encoder):
        raise UserError(
            f"Views of recordings are spectrograms, and a {encoder.model_type} takes none. Choose an encoder that "
            "does: an AST, such as ast-mini."
        )


@dataclass
class AudioViewArguments:
    r"""
    > Views

    Args:
        crop_scale (`tuple[float, float]`, *optional*, defaults to `(0.6, 1.0)`):
            Smallest and largest share of a recording, or of what the encoder takes of a long one, that a view hears.
        gain (`float`, *optional*, defaults to `6.0`):
            Largest change of loudness in dB.
        noise_probability (`float`, *optional*, defaults to `0.5`):
            How many views get noise.
        noise_level (`tuple[float, float]`, *optional*, defaults to `(-30.0, -5.0)`):
            Lowest and highest loudness of the noise beside the recording, in dB.
        mix_probability (`float`, *optional*, defaults to `0.5`):
            How many views get another recording laid under them.
        mix_level (`tuple[float, float]`, *optional*, defaults to `(-30.0, -8.0)`):
            Its lowest and highest loudness beside the recording, in dB.
        time_mask (`float`, *optional*, defaults to `0.2`):
            Largest share of the time that is hidden.
        frequency_mask (`float`, *optional*, defaults to `0.2`):
            Largest share of the mel bins that are hidden.
    """

    crop_scale: tuple[float, float] = (0.6, 1.0)
    gain: float = 6.0
    noise_probability: float = 0.5
    noise_level: tuple[float, float] = (-30.0, -5.0)
    mix_probability: float = 0.5
    mix_level: tuple[float, float] = (-30.0, -8.0)
    time_mask: float = 0.2
    frequency_mask: float = 0.2

    def __post_init__(self):
        low, high = self.crop_scale
        if not 0.0 < low <= high <= 1.0:
            raise UserError(
                "`--crop_scale` takes the smallest and the largest share of a recording, above 0 and at most 1, got "
                f"{low:g} {high:g}."
            )
        for name in ("noise_probability", "mix_probability", "time_mask", "frequency_mask"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"`--{name}` is between 0 and 1, got {getattr(self, name):g}.")
        for name in ("noise_level", "mix_level"):
            low, high = getattr(self, name)
            if low > high:
                raise UserError(f"`--{name}` takes the lowest and the highest loudness in dB, got {low:g} {high:g}.")
        if self.gain < 0.0:
            raise UserError(f"`--gain` is the largest change of loudness in dB, at least 0, got {self.gain:g}.")


class AudioViews:
    """Two views of each recording: what a worker makes of a block, and what the model gets.

    The batch has `input_values` `(batch_size, 2, max_length, num_mel_bins)`, what an `ASTModel` takes of each view.

    Args:
        encoder (`PreTrainedConfig`):
            Of the encoder, which says the size of a spectrogram.
        arguments ([`AudioViewArguments`], *optional*):
            How views differ.
        extractor ([`~transformers.ASTFeatureExtractor`], *optional*):
            That goes with the encoder: says by which mean and standard deviation spectrograms are normalised. Left
            out, those of the stock one.

    Raises:
        UserError: if the encoder takes no spectrograms.
    """

    def __init__(
        self,
        encoder: PreTrainedConfig,
        arguments: AudioViewArguments | None = None,
        extractor: ASTFeatureExtractor | None = None,
    ):
        check_takes_spectrograms(encoder)
        self.arguments = arguments or AudioViewArguments()
        self.num_frames, self.num_mel_bins = encoder.max_length, encoder.num_mel_bins
        extractor = extractor or ASTFeatureExtractor()
        # the stock one makes a standard deviation of 0.5
        self.mean, self.std = (extractor.mean, 2 * extractor.std) if extractor.do_normalize else (0.0, 1.0)
        self.num_samples = (self.num_frames - 1) * HOP + WINDOW

    def rows(self, block: Block) -> Rows:
        """Views of a block, a pure function of it."""
        decoded, bad = decode_all(block.columns["audio"], SAMPLING_RATE)
        heard = [(sample, sound) for sample, sound in decoded if is_heard(sound, round(MIN_SECONDS * SAMPLING_RATE))]
        kept, sounds = [sample for sample, _ in heard], [sound for _, sound in heard]
        num_empty = len(decoded) - len(heard)
        values = np.empty((len(kept), NUM_VIEWS, self.num_frames, self.num_mel_bins), np.float32)
        for row, sample in enumerate(kept):
            for view in range(NUM_VIEWS):
                key = int(keyed.key(Use.VIEW, block.keys[sample], view))
                values[row, view] = self._view(sounds, row, np.random.Generator(np.random.Philox(key=key)))
        seconds = np.array([len(sound) / SAMPLING_RATE for sound in sounds])
        kept = np.array(kept, np.int64)
        return Rows({"input_values": values}, seconds, bad, block.places[kept], num_empty=num_empty)

    def _view(self, sounds: list[np.ndarray], row: int, generator: np.random.Generator) -> np.ndarray:
        a = self.arguments
        sound = sounds[row]
        length = min(len(sound), self.num_samples) * generator.uniform(*a.crop_scale)
        piece = _piece(sound, max(round(length), WINDOW), generator)
        loudness = np.sqrt(np.mean(piece**2) + 1e-12)
        # drawn in any case: what one flag says changes nothing of what is drawn for another
        mixed, noisy = generator.random(2) < (a.mix_probability, a.noise_probability)
        levels = 10 ** (np.array([generator.uniform(*a.mix_level), generator.uniform(*a.noise_level)]) / 20)
        other = sounds[(row + 1 + generator.integers(max(len(sounds) - 1, 1))) % len(sounds)]
        under, hiss = _piece(other, len(piece), generator), _noise(len(piece), generator)
        if mixed and len(sounds) > 1:
            piece = piece + _as_loud(under, loudness * levels[0])
        if noisy:
            piece = piece + _as_loud(hiss, loudness * levels[1])
        piece = piece * 10 ** (generator.uniform(-a.gain, a.gain) / 20)
        spectrogram = self.spectrogram(piece.astype(np.float32))
        frames = 1 + (len(piece) - WINDOW) // HOP
        for axis, size, share in ((0, frames, a.time_mask), (1, self.num_mel_bins, a.frequency_mask)):
            width = int(size * share * generator.random())
            start = int(generator.integers(size - width + 1))
            hidden = slice(start, start + width)
            # the mean of what the encoder was made for
            spectrogram[(hidden, slice(None)) if axis == 0 else (slice(None), hidden)] = 0.0
        return spectrogram

    def spectrogram(self, sound: np.ndarray) -> np.ndarray:
        """What the stock feature extractor makes of a sound of up to `num_samples`: `(num_frames, num_mel_bins)`."""
        from torchaudio.compliance.kaldi import fbank

        banks = fbank(
            torch.from_numpy(sound)[None], sample_frequency=SAMPLING_RATE, window_type="hanning",
            num_mel_bins=self.num_mel_bins,
        ).numpy()  # fmt: skip
        padded = np.zeros((self.num_frames, self.num_mel_bins), np.float32)
        padded[: len(banks)] = banks[: self.num_frames]
        return (padded - self.mean) / self.std

    def collator(self, device: torch.device | str) -> Callable[[dict[str, Any]], dict[str, torch.Tensor]]:
        """Makes a batch on a device of the columns of some rows."""
        beside = Beside(torch.device(device))

        def collate(columns: dict[str, Any]) -> dict[str, torch.Tensor]:
            values = np.ascontiguousarray(columns["input_values"])
            return beside(lambda: {"input_values": send(values, beside.device)})

        return collate

    @property
    def settings(self) -> dict[str, Any]:
        """What of the views makes a run this run."""
        spectrogram = [self.num_frames, self.num_mel_bins, self.mean, self.std]
        return {"views": vars(self.arguments), "spectrogram": spectrogram}

    @property
    def description(self) -> str:
        """The views in words."""
        a = self.arguments
        return (
            f"2 × {a.crop_scale[0]:g} to {a.crop_scale[1]:g} of a recording, at most {self.num_frames / 100:g} s, "
            f"± {a.gain:g} dB, noise {a.noise_probability:g}, mixed {a.mix_probability:g}, hidden of time up to "
            f"{a.time_mask:g}, of frequency up to {a.frequency_mask:g}"
        )


def _piece(sound: np.ndarray, length: int, generator: np.random.Generator) -> np.ndarray:
    """A piece of a sound, from its beginning and with silence behind it where it is shorter."""
    start = int(generator.integers(max(len(sound) - length, 0) + 1))
    piece = sound[start : start + length]
    return np.pad(piece, (0, length - len(piece)))


def _noise(length: int, generator: np.random.Generator) -> np.ndarray:
    """Noise whose loudness rises or falls with frequency, by at most 6 dB an octave."""
    spectrum = np.fft.rfft(generator.standard_normal(length))
    octaves = np.log2(np.maximum(np.linspace(0, SAMPLING_RATE / 2, len(spectrum)), 60.0) / 1000)
    return np.fft.irfft(spectrum * 10 ** (6 * generator.uniform(-1, 1) * octaves / 20), length)


def _as_loud(sound: np.ndarray, loudness: float) -> np.ndarray:
    return sound * (loudness / np.sqrt(np.mean(sound**2) + 1e-12))
