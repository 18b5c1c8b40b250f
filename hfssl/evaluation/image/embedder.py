"""Images of which an encoder makes features again and again while it trains."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ...modeling.pooling import check_pooling
from .features import encode, normalized, resized_images


class ImageEmbedder:
    """Images, resized once and kept as `uint8`; an [`~hfssl.evaluation.modality.Embedder`].

    Args:
        samples (`Sequence[bytes]`):
            Encoded images.
        processor:
            Image processor that goes with the encoder.
        transform (*optional*):
            Of the run's stream; not needed.
        batch_size (`int`, *optional*, defaults to `64`):
            Images a forward pass.
    """

    def __init__(self, samples: Sequence[bytes], processor: Any, transform: Any = None, batch_size: int = 64):
        self.processor = processor
        self.batches = resized_images(processor, samples).split(batch_size)
        self.rows = np.split(np.arange(len(samples)), range(batch_size, len(samples), batch_size))

    @property
    def num_batches(self) -> int:
        return len(self.batches)

    def __call__(self, encoder: PreTrainedModel, index: int, pooling: str | None = None) -> torch.Tensor:
        device = next(encoder.parameters()).device
        pixel_values = normalized(self.processor, self.batches[index], device)
        # the CLS token of a method without a pooling, such as one that fills in patches, is in no loss
        return encode(encoder, pixel_values, check_pooling(encoder.config, pooling or "mean"))
