"""Features of recordings by a frozen encoder, of each of its layers, see [`~hfssl.evaluation.extraction`].

The feature of a clip is the mean over its frames, never over padding. Encoders whose features of a clip depend on
what it is padded with (group norm over time) get clips of equal length together, and all others alone.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ...data.audio.collate import batches_by_length
from ...machine import choose_precision, process_state
from ...modeling.base import evaluating
from ...modeling.filter_banks import SAMPLING_RATE, mfcc
from ...modeling.frames import check_pooling
from ...modeling.grouped import keep_narrow_groups_exact
from .. import extraction
from ..feature_files import digest as make_digest
from ..probe_features import ENCODER, MFCC_STATISTICS, RANDOM_INIT, ProbeFeatures
from .encoder import (
    LEAST_SECONDS,
    AudioEncoder,
    clip_limits,
    encode_layers,
    lengthened,
    pads_exactly,
)


if TYPE_CHECKING:
    from ...data.labelled import LabelledData

logger = logging.getLogger(__name__)

# Of sound that goes through an encoder at once: the first convolution of HuBERT makes half a gigabyte of it.
SECONDS_AT_ONCE = 64


class EncoderLayers:
    r"""
    Pooled features of a stock encoder by each of its layers.

    Args:
        encoder ([`AudioEncoder`]):
            Gives the feature extractor.
        model ([`~transformers.PreTrainedModel`]):
            The model itself: trained, or with new weights.
        pooling (`str`, *optional*):
            See [`~hfssl.modeling.frames.check_pooling`].
        precision (`str`, *optional*, defaults to `"fp32"`):
            Autocast to bf16 or not.
        batch_size (`int`, *optional*, defaults to `64`):
            Most clips a forward pass; of long ones fewer.
    """

    def __init__(
        self,
        encoder: AudioEncoder,
        model: PreTrainedModel,
        pooling: str | None = None,
        precision: str = "fp32",
        batch_size: int = 64,
    ):
        self.processor, self.model, self.batch_size = encoder.processor, model, batch_size
        keep_narrow_groups_exact(model)
        self.pooling = check_pooling(model.config, pooling)
        self.precision = choose_precision(precision, use_cpu=process_state().device.type == "cpu")
        self.digest = make_digest("audio layers", encoder.digest(model), self.pooling, self.precision)
        # a model that was given as an object stays where it is
        self.device = model.device if encoder.model is model else process_state().device
        self.least, self.most = clip_limits(self.processor, model.config)
        self.only_equal = not pads_exactly(model, self.processor)
        if self.only_equal:
            logger.info(
                "The features that %s makes of a clip depend on what it is padded with: clips of other lengths go "
                "through it one by one.",
                encoder.name,
            )

    def layers(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Waveforms to features of shape `(len(clips), num_layers + 1, dim)`."""
        windows, counts = [], []
        for clip in clips:
            pieces = np.array_split(clip, -(-max(len(clip), 1) // self.most))
            counts.append(len(pieces))
            windows += [lengthened(piece, self.least) for piece in pieces]
        lengths = np.array([len(window) for window in windows])
        self.model.to(self.device)
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        most, made = SECONDS_AT_ONCE * self.processor.sampling_rate, {}
        with evaluating(self.model), autocast:
            for rows in batches_by_length(lengths, most, self.batch_size, self.only_equal):
                found = encode_layers(self.model, self.processor, [windows[row] for row in rows], self.pooling)
                made |= dict(zip(rows.tolist(), found.cpu().numpy(), strict=True))
        features = np.stack([made[row] for row in range(len(windows))])
        first = np.cumsum(counts) - counts
        weighted = np.add.reduceat(features.astype(np.float64) * lengths[:, None, None], first)
        return (weighted / np.add.reduceat(lengths, first)[:, None, None]).astype(np.float32)

    def __call__(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """Waveforms to features of shape `(len(clips), (num_layers + 1) * dim)`, layer by layer."""
        made = self.layers(clips)
        return made.reshape(len(made), -1)


class MfccStatistics:
    """Mean and deviation over a clip of 39 numbers every 10 ms: 13 MFCC, their changes and the changes of those.

    What an encoder has to be better than, where labels are about more than the sound as a whole.

    Args:
        sampling_rate (`int`):
            Of the clips.
    """

    def __init__(self, sampling_rate: int):
        self.sampling_rate = sampling_rate
        self.digest = make_digest("mfcc statistics", sampling_rate)

    def __call__(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        from ...data.audio.decode import resampled

        least = round(LEAST_SECONDS * SAMPLING_RATE)
        clips = (lengthened(resampled(clip, self.sampling_rate, SAMPLING_RATE), least) for clip in clips)
        frames = [mfcc(torch.from_numpy(clip)) for clip in clips]
        return torch.stack([torch.cat([each.mean(0), each.std(0, correction=0)]) for each in frames]).numpy()


class AudioReader:
    """How recordings are decoded: a [`~hfssl.evaluation.extraction.Reader`].

    Args:
        sampling_rate (`int`):
            What they are resampled to.
    """

    samples, blank_words = "recordings", "silent"

    def __init__(self, sampling_rate: int):
        self.sampling_rate, self.key = sampling_rate, (sampling_rate,)
        self.blank = np.zeros(sampling_rate, np.float32)

    def batches(
        self, samples: Sequence[bytes], starts: Sequence[int], batch_size: int
    ) -> Iterator[list[np.ndarray | None]]:
        return extraction.in_threads(self.decode, samples, starts, batch_size)

    def damage(self, sample: bytes) -> str | None:
        from ...data.audio.decode import DamagedAudio, decode_audio

        try:
            decode_audio(sample, self.sampling_rate)
        except DamagedAudio as error:
            return str(error)
        return None

    def decode(self, sample: bytes) -> np.ndarray | None:
        """The waveform, `None` of a damaged one."""
        from ...data.audio.decode import DamagedAudio, decode_audio

        try:
            return decode_audio(sample, self.sampling_rate)
        except DamagedAudio as error:
            logger.debug("A recording cannot be decoded: %s", error)
            return None


def probe_features(
    encoder: str | Path | PreTrainedModel,
    processor: Any,
    train: "LabelledData",
    test: "LabelledData",
    *,
    pooling: str | None = None,
    batch_size: int = 64,
    precision: str = "fp32",
    cache_dir: str | Path | None = None,
) -> ProbeFeatures:
    """Features of both splits by the encoder and its random initialisation (seed 0), of all layers, and of MFCC."""
    audio = AudioEncoder(encoder, processor)
    trained = EncoderLayers(audio, audio.load(), pooling, precision, batch_size)
    untrained = EncoderLayers(audio, audio.random_init(seed=0), trained.pooling, precision, batch_size)
    rate = audio.sampling_rate
    extractors = {ENCODER: trained, RANDOM_INIT: untrained, MFCC_STATISTICS: MfccStatistics(rate)}
    train_x, test_x = (
        extraction.extract(split, extractors, AudioReader(rate), cache_dir=cache_dir, title=name)
        for name, split in {"train": train, "test": test}.items()
    )
    # in units of their own deviation: else the cosine that k-NN goes by is that of the loudness
    mean, deviation = train_x[MFCC_STATISTICS].mean(0), train_x[MFCC_STATISTICS].std(0) + 1e-6
    for x in (train_x, test_x):
        x[MFCC_STATISTICS] = (x[MFCC_STATISTICS] - mean) / deviation
    layers = {}
    num_layers = trained.layers([np.zeros(rate, np.float32)]).shape[1]
    for kind in (ENCODER, RANDOM_INIT):
        by_layer = [x[kind].reshape(len(x[kind]), num_layers, -1) for x in (train_x, test_x)]
        layers[kind] = (by_layer[0], by_layer[1])
        train_x[kind], test_x[kind] = (each[:, -1] for each in by_layer)
    settings = {
        "pooling": trained.pooling, "dim": train_x[ENCODER].shape[1], "sampling_rate": rate,
        "precision": trained.precision,
    }  # fmt: skip
    return ProbeFeatures(audio.name, train_x, test_x, settings, layers)
