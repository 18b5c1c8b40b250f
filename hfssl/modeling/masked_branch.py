"""A branch some of whose patches are masked: the encoder sees a learned token in their place."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..errors import UserError
from .branch import VisionBranch
from .pooling import num_own_tokens
from .trial import FAILURES, blank_copy, blank_image, image_model_options, layout, once_per_config, sizes_to_try
from .vision import PATCH_EMBEDDINGS


@once_per_config
def has_mask_token(config: PreTrainedConfig) -> bool:
    """Whether an encoder has a learned token of its own for masked patches, which `bool_masked_pos` puts in place."""
    return isinstance(getattr(getattr(blank_copy(config), "embeddings", None), "mask_token", None), nn.Parameter)


@once_per_config
def takes_masked_patches(config: PreTrainedConfig) -> bool:
    """Whether patches of an encoder can be masked, by trying it: by its own token, or where it embeds its patches.

    Either way there has to be a token for each patch in the end, which windows that are merged (Swin) and convolutions
    do not leave.
    """
    try:
        image_model_options(config)
    except UserError:
        return False
    for size in sizes_to_try(config):
        try:
            encoder, image = blank_copy(config), blank_image(config, size)
            branch = MaskedBranch(encoder, nn.Identity(), config).to("meta")
            hidden = branch.encode(image).last_hidden_state
            if hidden.ndim != 3:
                return False
            num_patches = hidden.shape[1] - branch.num_own
            mask = torch.ones(1, num_patches, dtype=torch.bool, device="meta")
            return branch.encode(image, bool_masked_pos=mask).last_hidden_state.shape == hidden.shape
        except (UserError, *FAILURES):
            continue
    return False


def _patch_embedding(encoder: PreTrainedModel) -> nn.Module:
    """The module of a Vision Transformer that makes tokens of patches."""
    return encoder.get_submodule(PATCH_EMBEDDINGS[hasattr(encoder, "timm_model")])


def mask_of(masked_patches: torch.Tensor, num_views: int, num_patches: int) -> torch.BoolTensor:
    """Which patches are masked.

    Args:
        masked_patches (`torch.LongTensor` of shape `(batch_size, most)`):
            Those of each image, counted through the patches of all its views, view by view; -1 only fills up.
        num_views (`int`), num_patches (`int`):
            Views of an image, and patches of a view.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, num_views, num_patches)`.
    """
    last = num_views * num_patches
    mask = torch.zeros(len(masked_patches), last + 1, dtype=torch.bool, device=masked_patches.device)
    # one more place, for what only fills up
    mask.scatter_(1, masked_patches.long().where(masked_patches >= 0, last), True)
    return mask[:, :-1].unflatten(1, (num_views, num_patches))


class MaskedBranch(VisionBranch):
    """[`VisionBranch`] whose [`encode`] takes `bool_masked_pos` whatever the encoder.

    An encoder without a mask token of its own is given one, which lies beside it: so it is exported as it is.
    """

    def __init__(
        self, encoder: PreTrainedModel, projector: nn.Module, config: PreTrainedConfig, pooling: str | None = None
    ):
        super().__init__(encoder, projector, config, pooling)
        self.mask_token: nn.Parameter | None = None
        self._bool_masked_pos: torch.Tensor | None = None
        self.num_own = num_own_tokens(config)
        if not has_mask_token(config):
            self.mask_token = nn.Parameter(torch.zeros(1, 1, layout(config).dim))
            _patch_embedding(encoder).register_forward_hook(self._put_mask_token)

    def encode(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None, **options: Any
    ) -> ModelOutput:
        """One pass of the encoder.

        Args:
            pixel_values (`torch.Tensor` of shape `(n, num_channels, height, width)`):
                Images of one size.
            bool_masked_pos (`torch.BoolTensor` of shape `(n, num_patches)`, *optional*):
                `True` for patches that are not to be seen.
            options (`dict`, *optional*):
                Of the encoder.
        """
        if bool_masked_pos is None:
            return super().encode(pixel_values, **options)
        if self.mask_token is None:
            return super().encode(pixel_values, bool_masked_pos=bool_masked_pos, **options)
        self._bool_masked_pos = bool_masked_pos
        try:
            return super().encode(pixel_values, **options)
        finally:
            self._bool_masked_pos = None

    def _put_mask_token(self, embeddings: nn.Module, args: tuple, patches: torch.Tensor) -> torch.Tensor | None:
        if self._bool_masked_pos is None:
            return None
        # in timm they are a map (n, height, width, dim) where images may have any size
        mask = self._bool_masked_pos.view(*patches.shape[:-1], 1)
        return torch.where(mask, self.mask_token.view(-1).to(patches.dtype), patches)

    def parameters_below_heads(self) -> list[nn.Parameter]:
        """What of the branch is in no head, and learns."""
        own = [] if self.mask_token is None else [self.mask_token]
        return [parameter for parameter in (*self.encoder.parameters(), *own) if parameter.requires_grad]

    def patches_at(self, outputs: ModelOutput, places: torch.LongTensor) -> torch.Tensor:
        """Features of some patches.

        Args:
            outputs (`ModelOutput`):
                Of [`encode`] for `n` images.
            places (`torch.LongTensor` of shape `(number,)`):
                Which, counted through the patches of all images.

        Returns:
            `torch.Tensor` of shape `(number, dim)`.
        """
        hidden = outputs.last_hidden_state  # (n, num_own + num_patches, dim)
        length = hidden.shape[1]
        num_patches = length - self.num_own
        rows = places // num_patches * length + self.num_own + places % num_patches
        # whole rows are several times as fast as a gather of single numbers
        return hidden.flatten(0, 1).index_select(0, rows)
