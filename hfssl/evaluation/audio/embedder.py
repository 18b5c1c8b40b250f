"""Recordings of which an encoder makes features again and again while it trains."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ...data.audio.collate import batches_by_length
from ..extraction import MAX_BAD_FRACTION
from .clips import Clips
from .encoder import LEAST_SECONDS, encode_layers
from .features import SECONDS_AT_ONCE


# Of a recording: its beginning says what it is like.
MAX_SECONDS = 10


class AudioEmbedder:
    """Recordings, of which as many as there is room for are decoded once; an [`~hfssl.evaluation.modality.Embedder`].

    Args:
        samples (`Sequence[bytes]`):
            Encoded recordings.
        processor:
            Feature extractor that goes with the encoder.
        transform (*optional*):
            Of the run's stream, where they are held-out samples of it: that says itself what is damaged.
        batch_size (`int`, *optional*, defaults to `64`):
            Most recordings a forward pass.
    """

    def __init__(self, samples: Sequence[bytes], processor: Any, transform: Any = None, batch_size: int = 64):
        self.processor, rate = processor, processor.sampling_rate
        bounds = {"least": round(LEAST_SECONDS * rate), "most": MAX_SECONDS * rate}
        borne = MAX_BAD_FRACTION if transform is None else 1.0
        self.clips = Clips(samples, rate, **bounds, name="those to measure on", max_bad_fraction=borne)
        # feature extractors of encoders with group norm, of which padding is sound, say that they give no mask
        only_equal = not getattr(processor, "return_attention_mask", True)
        self.rows = batches_by_length(self.clips.lengths, SECONDS_AT_ONCE * rate, batch_size, only_equal)

    @property
    def num_batches(self) -> int:
        return len(self.rows)

    def __call__(self, encoder: PreTrainedModel, index: int, pooling: str | None = None) -> torch.Tensor:
        clips = [self.clips[row] for row in self.rows[index]]
        return encode_layers(encoder, self.processor, clips, pooling or "mean")[:, -1]
