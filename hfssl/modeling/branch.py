"""What student and teacher are in the methods for images: an encoder, its pooled feature, and a projector."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..errors import UserError
from .distributed import all_reduce_with_grad, world_size
from .pooling import outputs_for, pool_features
from .vision import SSLVisionModel, arranged, side


class VisionBranch(nn.Module):
    """Encoder and projector: images -> [`encode`] -> [`pool`] -> `projector`.

    These are steps of their own for methods that mask patches, or with losses of patches or of features.

    Args:
        encoder (`PreTrainedModel`):
            A stock encoder of images.
        projector (`nn.Module`):
            From features to the space of the loss.
        config (`PreTrainedConfig`):
            Of the encoder.
        pooling (`str`, *optional*):
            See [`~hfssl.modeling.pooling.pool_features`].
    """

    def __init__(
        self, encoder: PreTrainedModel, projector: nn.Module, config: PreTrainedConfig, pooling: str | None = None
    ):
        super().__init__()
        self.encoder, self.projector = encoder, projector
        self.encoder_config, self.pooling = config, pooling
        # encoders that take other sizes than their own without being told have no such argument
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(encoder.forward).parameters

    def encode(self, pixel_values: torch.Tensor, **options: Any) -> ModelOutput:
        """One pass of the encoder.

        Args:
            pixel_values (`torch.Tensor` of shape `(n, num_channels, height, width)`):
                Images of one size, of the encoder's own or another.
            options (`dict`, *optional*):
                Of the encoder: `bool_masked_pos` of shape `(n, num_patches)` for those that have a mask token.

        Returns:
            `ModelOutput`: the encoder's; its `last_hidden_state` has shape `(n, num_own + num_patches, dim)`, or that
            of a map of features.
        """
        pixel_values = arranged(self.encoder, pixel_values)
        if self.interpolates and pixel_values.shape[-1] != side(self.encoder_config.image_size):
            options["interpolate_pos_encoding"] = True
        return self.encoder(pixel_values, **options, **outputs_for(self.pooling))

    def pool(self, outputs: ModelOutput) -> torch.Tensor:
        """Outputs of [`encode`] to features `(n, dim)`."""
        return pool_features(outputs, self.encoder_config, self.pooling)

    def features(self, *pixel_values: torch.Tensor) -> torch.Tensor:
        """Features of images of one or more sizes, one pass of the encoder for each: `(sum of n, dim)`."""
        return torch.cat([self.pool(self.encode(images)) for images in pixel_values])

    def forward(self, *pixel_values: torch.Tensor) -> torch.Tensor:
        """Projections of images of one or more sizes: one pass of the encoder for each, one of the projector for all.

        Args:
            pixel_values (`torch.Tensor` of shape `(n, num_channels, height, width)`):
                Images of one size.

        Returns:
            `torch.Tensor` of shape `(sum of n, projector_output_dim)`.
        """
        return self.projector(self.features(*pixel_values))


class OneBranchModel(SSLVisionModel):
    """Base of methods without a teacher that send all views through one `branch`, which a subclass builds."""

    base_model_prefix = "branch"

    branch: VisionBranch

    @property
    def encoder(self) -> PreTrainedModel:
        """The stock module that is evaluated and exported."""
        return self.branch.encoder

    @property
    def all_reduce(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Sums over processes for a loss while it trains, as part of the graph; evaluation goes on in each alone."""
        return all_reduce_with_grad if self.training and world_size() > 1 else None

    def require_several_images(self, batch_size: int) -> None:
        """Refuse to train on a single image.

        Raises:
            UserError: if the batches of all processes together are one image.
        """
        if self.training and batch_size * world_size() == 1:
            raise UserError(
                f"{self.method.title} needs more than one image, as its batch norm does, but the batch has 1. Pass a "
                "larger `--per_device_train_batch_size`."
            )

    def compared_embeddings(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Projections of two views, `(batch_size, 2, projector_output_dim)`."""
        return torch.stack([self.branch(view) for view in batch["pixel_values"].unbind(1)[:2]], dim=1)


def crop_by_crop(crops: torch.Tensor) -> torch.Tensor:
    """Crops `(batch_size, num_crops, ...)` as rows, so that those of an image are `batch_size` rows apart."""
    return crops.transpose(0, 1).flatten(0, 1)


def with_unit_length(projections: torch.Tensor) -> torch.Tensor:
    """Projections that are compared by their distance, for figures that go by cosine similarity.

    Each gets one more number, the length of a projection whose dimensions have a standard deviation of 1. So
    projections that shrink to a point are alike, whatever the directions from 0 to them.

    Args:
        projections (`torch.Tensor` of shape `(..., dim)`):
            Of which those of different samples are to lie as far apart as normal numbers.

    Returns:
        `torch.Tensor` of shape `(..., dim + 1)`.
    """
    return F.pad(projections, (0, 1), value=projections.shape[-1] ** 0.5)


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
