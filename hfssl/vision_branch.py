"""What student and teacher are in the methods for images: an encoder, its pooled feature, and a projector."""

import copy
import inspect

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .pooling import is_convolutional
from .vision_modeling import build_vision_encoder, image_features, side, transformer_blocks


class VisionBranch(nn.Module):
    """Encoder and projector.

    Args:
        encoder (`PreTrainedModel`):
            A stock encoder of images.
        projector (`nn.Module`):
            From features to the space of the loss.
        config (`PreTrainedConfig`):
            Of the encoder.
        pooling (`str`, *optional*):
            See [`~hfssl.pooling.pool_features`].
    """

    def __init__(
        self, encoder: PreTrainedModel, projector: nn.Module, config: PreTrainedConfig, pooling: str | None = None
    ):
        super().__init__()
        self.encoder, self.projector = encoder, projector
        self.encoder_config, self.pooling = config, pooling
        self.is_convolutional = is_convolutional(config)
        # encoders that take other sizes than their own without being told have no such argument
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(encoder.forward).parameters

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pooled features: images `(n, num_channels, height, width)` to `(n, dim)`."""
        if self.is_convolutional:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        options = {}
        if self.interpolates and pixel_values.shape[-1] != side(self.encoder_config.image_size):
            options["interpolate_pos_encoding"] = True
        return image_features(self.encoder, pixel_values, self.pooling, **options)

    def forward(self, *pixel_values: torch.Tensor) -> torch.Tensor:
        """Projections of images of one or more sizes: one pass of the encoder for each, one of the projector for all.

        Args:
            pixel_values (`torch.Tensor` of shape `(n, num_channels, height, width)`):
                Images of one size.

        Returns:
            `torch.Tensor` of shape `(sum of n, projector_output_dim)`.
        """
        return self.projector(torch.cat([self.features(images) for images in pixel_values]))


class DropPath(nn.Module):
    """Stochastic depth: drops what a residual branch adds, for a share `rate` of the rows, and scales up the others.

    Paper: Deep Networks with Stochastic Depth, Huang et al., 2016 (https://huggingface.co/papers/1603.09382).
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return hidden
        kept = hidden.new_empty(len(hidden), *[1] * (hidden.ndim - 1)).bernoulli_(1.0 - self.rate)
        return hidden * kept / (1.0 - self.rate)


def build_with_drop_path(config: PreTrainedConfig, rate: float) -> PreTrainedModel:
    """A fresh encoder with stochastic depth.

    Encoders that have it themselves get it at `rate`, spread over their depth as they do; the others of the ViT kind
    at a rate that grows linearly with the depth, from 0 to `rate`. A ResNet has no branch that it could do without.
    """
    if hasattr(config, "drop_path_rate"):
        config = copy.deepcopy(config)
        config.drop_path_rate = rate
        return build_vision_encoder(config)
    encoder = build_vision_encoder(config)
    blocks = transformer_blocks(encoder)
    for i, block in enumerate(blocks):
        # both branches of a block go through it, one after the other, before they are added
        if isinstance(getattr(block, "dropout", None), nn.Dropout):
            block.dropout = nn.Sequential(block.dropout, DropPath(rate * i / max(len(blocks) - 1, 1)))
    return encoder


def check_two_views(pixel_values: torch.Tensor, method: str) -> None:
    """Refuse a batch that is not two views of each image.

    Raises:
        ValueError: unless its shape is `(batch_size, 2, num_channels, height, width)`.
    """
    if pixel_values.ndim != 5 or pixel_values.shape[1] != 2:
        raise ValueError(
            f"{method} compares 2 views of each image: `pixel_values` has shape {tuple(pixel_values.shape)}, expected "
            "(batch_size, 2, num_channels, height, width). `Views` makes them."
        )
