"""What the methods for images share: building and loading a stock encoder, and running it on some of its patches."""

import copy
import logging
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, ViTConfig

from ..errors import UserError
from .base import SSLPreTrainedModel, drop_pooler, with_changes
from .channels import with_num_channels
from .heads import DinoHead, MlpHead
from .lighter import lighten
from .pooling import check_pooling, is_convolutional, num_own_tokens, outputs_for, pool_features
from .trial import (
    FAILURES,
    blank_copy,
    blank_image,
    image_model_options,
    is_grid,
    num_channels_of,
    once_per_config,
    patch_size_of,
    sizes_to_try,
    small_copy,
    trial_images,
)


logger = logging.getLogger(__name__)

# Where in a Vision Transformer its patches become tokens: in those of transformers, and in those of timm.
PATCH_EMBEDDINGS = ("embeddings.patch_embeddings", "timm_model.patch_embed")


class SSLVisionModel(SSLPreTrainedModel):
    """Base of the methods for images."""

    main_input_name = "pixel_values"

    # Whether the loss replaces patches by the encoder's mask token (`bool_masked_pos`), so that it learns.
    uses_mask_token = False
    # Whether its encoder may be one of spectrograms too.
    takes_spectrograms = False

    def post_init(self):
        trained = getattr(self, "student", self).encoder
        self._unused = unused_parameters(trained.config, self.uses_mask_token, getattr(self.config, "pooling", None))
        super().post_init()
        lighten(self)

    @property
    def modality(self) -> str:
        return "audio" if self.takes_spectrograms and is_grid(self.encoder.config) else super().modality

    def freeze(self) -> None:
        """Also take out what the encoder does not use: DDP would wait for the gradients forever."""
        super().freeze()
        trained = getattr(self, "student", self).encoder
        for name, parameter in trained.named_parameters():
            if name in self._unused:
                parameter.requires_grad_(False)

    @torch.no_grad()
    def initialize_weights(self):
        super().initialize_weights()
        # `_init_weights` is not called on a module without weights of its own, where a checkpoint lacks a head
        for head in self.modules():
            if isinstance(head, MlpHead | DinoHead):
                head.init_weights()

    @classmethod
    def from_encoder(
        cls,
        name_or_path: str,
        image_size: int | None = None,
        num_channels: int | None = None,
        colors: Sequence[int] | None = None,
        trained_colors: Sequence[int] | None = None,
        encoder_changes: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> "SSLVisionModel":
        """Continue from a stock checkpoint.

        Args:
            name_or_path (`str`):
                Folder or Hub id, see [`load_vision_encoder`].
            image_size (`int`, *optional*):
                Height and width of the images; the checkpoint's own when left out.
            num_channels (`int`, *optional*), colors, trained_colors (`Sequence[int]`, *optional*):
                Channels of the images, and which of them are red, green and blue, here and to the checkpoint; see
                [`~hfssl.modeling.channels.with_num_channels`].
            encoder_changes (`dict`, *optional*):
                Fields of the encoder's configuration that are to be others, such as dropout; see
                [`~hfssl.modeling.base.with_changes`]. To an `image_size` positions are interpolated; that of the
                argument goes before it.
            config (`dict`, *optional*):
                Fields of the method's config beside `encoder_config`.
        """
        changes = dict(encoder_changes or {})
        if "image_size" in changes:
            image_size = changes["image_size"] = image_size or side(changes["image_size"])
        stock = load_vision_encoder(name_or_path, image_size, cls.takes_spectrograms)
        stock = with_num_channels(stock, num_channels, colors, trained_colors)
        build = partial(build_vision_encoder, spectrograms=cls.takes_spectrograms)
        encoder_config = with_changes(stock.config, changes, name_or_path, build)
        model = cls(cls.config_class(encoder_config=encoder_config, **config))
        model.encoder.load_state_dict(stock.state_dict())
        return model


def build_vision_encoder(config: PreTrainedConfig, spectrograms: bool = False) -> PreTrainedModel:
    """The encoder that `config` describes, with random weights and without a pooler; with `spectrograms` it may be
    one of these.

    Raises:
        UserError: if it is none for images.
    """
    return drop_pooler(AutoModel.from_config(config, **image_model_options(config, spectrograms)))


def load_vision_encoder(
    name_or_path: str, image_size: int | None = None, spectrograms: bool = False
) -> PreTrainedModel:
    """The encoder of a checkpoint in float32, without its pooler, for images of a size; with `spectrograms` it may be
    one of these.

    A `ViTMAEModel` hides patches in every forward pass; it is loaded as the `ViTModel` that it otherwise is.

    Raises:
        UserError: if it is none for images, or if its positions do not fit them.
    """
    config = AutoConfig.from_pretrained(name_or_path)
    if config.model_type == "vit_mae":
        fields = config.to_dict()
        known = set(ViTConfig().to_dict()) - {"model_type", "architectures", "transformers_version"}
        config = ViTConfig(**{name: value for name, value in fields.items() if name in known})
    encoder = AutoModel.from_pretrained(
        name_or_path, config=config, dtype=torch.float32, **image_model_options(config, spectrograms)
    )
    return with_image_size(drop_pooler(encoder), image_size)


def side(value: Any) -> int:
    """One number of a size that transformers keeps as a number or as a pair.

    Raises:
        UserError: if height and width differ.
    """
    values = {value} if isinstance(value, int) else set(value)
    if len(values) != 1:
        raise UserError(f"Images and patches are squares here, got {tuple(value)}. Give both sides the same length.")
    return values.pop()


def patches_a_side(config: PreTrainedConfig) -> int:
    """How many patches stand in a row of an image."""
    return side(config.image_size) // side(config.patch_size)


def with_image_size(encoder: PreTrainedModel, image_size: int | None) -> PreTrainedModel:
    """An encoder for images of `image_size`: learned positions are interpolated (bicubic) to the new grid of patches.

    Encoders without positions of their own for each patch (convolutions, rotary positions) are returned as they are.

    Raises:
        UserError: if the architecture keeps positions in a way that cannot be interpolated here.
    """
    config = encoder.config
    if image_size is None or not hasattr(config, "image_size") or side(config.image_size) == image_size:
        return encoder
    refusal = UserError(
        f"The positions of this {config.model_type} are those of {side(config.image_size)} pixels and cannot be "
        f"interpolated to {image_size}. Pass `--image_size {side(config.image_size)}`."
    )
    if _positions(encoder) is None:
        if any("embeddings.position" in name for name, _ in encoder.named_parameters()):
            raise refusal
        return encoder
    fitted = copy.deepcopy(config)
    fitted.image_size = image_size
    before, after = patches_a_side(config), patches_a_side(fitted)
    state = encoder.state_dict()
    positions = state["embeddings.position_embeddings"]  # (1, num_own + before², hidden_size)
    num_own = positions.shape[1] - before**2
    grid = positions[:, num_own:].unflatten(1, (before, before)).permute(0, 3, 1, 2)
    # as the stock models do it when they are asked to
    antialias = config.model_type == "dinov2_with_registers"
    grid = F.interpolate(grid, (after, after), mode="bicubic", align_corners=False, antialias=antialias)
    state["embeddings.position_embeddings"] = torch.cat([positions[:, :num_own], grid.flatten(2).mT], dim=1)
    resized = build_vision_encoder(fitted)
    try:
        resized.load_state_dict(state)
    except RuntimeError as error:  # other tables depend on the grid too
        raise refusal from error
    return resized


def _positions(encoder: PreTrainedModel) -> torch.Tensor | None:
    """Learned positions `(1, num_own + num_patches, dim)`, where an encoder keeps them as a ViT does."""
    positions = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    if not isinstance(positions, nn.Parameter) or positions.ndim != 3:
        return None
    return positions if positions.shape[1] >= patches_a_side(encoder.config) ** 2 else None


def arranged(encoder: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Images as they are to lie in memory for an encoder: for convolutions with the channels of a pixel side by side.

    `encoder.channels_last`, where it has been set, says otherwise.
    """
    if getattr(encoder, "channels_last", is_convolutional(encoder.config)):
        return pixel_values.contiguous(memory_format=torch.channels_last)
    return pixel_values


@once_per_config
@torch.no_grad()
def takes_visible_tokens(config: PreTrainedConfig) -> bool:
    """Whether [`encode_visible`] works for an encoder, by trying it on a small copy.

    It has to add its positions before the first block, and its blocks have to take tokens in any number and order.
    Rotary positions (DINOv3) and windows (Swin) need the whole grid, convolutions the whole picture.
    """
    try:
        encoder = small_copy(config)
        if _positions(encoder) is None or not isinstance(encoder.embeddings.patch_embeddings.projection, nn.Conv2d):
            return False
        images, num_own = trial_images(encoder), num_own_tokens(encoder.config)
        stock = encoder(images).last_hidden_state
        order = torch.tensor([[7, 2, 8, 0, 5, 1, 4, 3, 6], [3, 4, 0, 6, 8, 2, 1, 5, 7]])
        shuffled = encode_visible(encoder, images, order)
        some = encode_visible(encoder, images, order[:, :4])
        # what the others show must not matter
        others = images.clone()
        side_length = images.shape[-1] // 3
        for row, hidden in enumerate(order[:, 4:].tolist()):
            for patch in hidden:
                down, right = side_length * (patch // 3), side_length * (patch % 3)
                others[row, :, down : down + side_length, right : right + side_length] = 0.0
        same = encode_visible(encoder, others, order[:, :4])
    except (UserError, *FAILURES):
        return False
    close = {"rtol": 1e-3, "atol": 1e-4}
    return (
        shuffled.shape == stock.shape
        and some.shape == (2, num_own + 4, stock.shape[2])
        and torch.allclose(shuffled, select(stock, order, num_own), **close)
        and torch.allclose(some, same, **close)
        and not torch.allclose(stock[:, num_own], stock[:, num_own + 1], **close)  # else any order would do
    )


def encode_visible(encoder: PreTrainedModel, pixel_values: torch.Tensor, visible: torch.LongTensor) -> torch.Tensor:
    """Run a ViT-like encoder on some patches of each image; the others cost nothing but their embedding.

    Args:
        encoder (`PreTrainedModel`):
            One of those that [`takes_visible_tokens`] names.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Images.
        visible (`torch.LongTensor` of shape `(batch_size, num_visible)`):
            Which patches, in the order in which they are wanted.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_own + num_visible, hidden_size)`: CLS and the like, then the patches.
    """
    hidden = encoder.embeddings(pixel_values)  # (batch_size, num_own + num_patches, hidden_size)
    hidden = select(hidden, visible, num_own_tokens(encoder.config))
    for block in transformer_blocks(encoder):
        hidden = block(hidden)
    return encoder.layernorm(hidden)


def image_features(
    encoder: PreTrainedModel, pixel_values: torch.Tensor, pooling: str | None = None, **options: Any
) -> torch.Tensor:
    """One vector an image.

    Args:
        encoder (`PreTrainedModel`):
            Any encoder of images.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Images.
        pooling (`str`, *optional*):
            See [`~hfssl.modeling.pooling.pool_features`].
        options (`dict`, *optional*):
            Of the encoder: `interpolate_pos_encoding`.

    Returns:
        `torch.Tensor` of shape `(batch_size, dim)`, where `dim` is [`~hfssl.modeling.pooling.feature_size`].
    """
    config = encoder.config
    pooling = check_pooling(config, pooling)
    return pool_features(encoder(pixel_values, **options, **outputs_for(pooling)), config, pooling)


@once_per_config
def unused_parameters(
    config: PreTrainedConfig, uses_mask_token: bool = False, pooling: str | None = None
) -> frozenset[str]:
    """The parameters of an encoder that have no part in its feature of an image, by a backward pass from there.

    Such as a mask token that nothing masks with, a norm that only a pooler applies, or the pooler itself.

    Args:
        config (`PreTrainedConfig`):
            Of the encoder.
        uses_mask_token (`bool`, *optional*, defaults to `False`):
            Whether some of its patches are masked (`bool_masked_pos`).
        pooling (`str`, *optional*):
            How the feature is made, see [`~hfssl.modeling.pooling.pool_features`].

    Returns:
        `frozenset[str]`: their names within the encoder.
    """
    reason = None
    for size in sizes_to_try(config):
        try:
            encoder, masked = blank_copy(config), {}
            if uses_mask_token:
                masked["bool_masked_pos"] = torch.ones(1, patches_a_side(config) ** 2, dtype=torch.bool, device="meta")
            outputs = encoder(blank_image(config, size), **masked, **outputs_for(pooling))
            pool_features(outputs, config, pooling).sum().backward()
        except FAILURES as error:
            reason = reason or error
            continue
        unused = frozenset(name for name, parameter in encoder.named_parameters() if parameter.grad is None)
        if unused:
            logger.debug("Not trained, for want of a part in the loss: %s.", ", ".join(sorted(unused)))
        return unused
    logger.warning(
        "What a %s does not use was not found (%s): all its parameters are trained.", config.model_type, reason
    )
    return frozenset()


def frozen_patch_embed(model: nn.Module, prefix: str, freeze: bool | None) -> tuple[str, ...]:
    """The parameters that project the patches of a Vision Transformer, if they are to stay as they were drawn.

    This makes its training stable (MoCo v3, Section 4.2; https://huggingface.co/papers/2104.02057).

    Args:
        model (`nn.Module`):
            Has `config.encoder_config`.
        prefix (`str`):
            Where its encoder lies, such as `"student.encoder"`.
        freeze (`bool`, *optional*):
            Left out: wherever there are such parameters, but in convolutional encoders.

    Raises:
        UserError: if they were to stay as they are, and there are none.
    """
    config = model.config.encoder_config
    prefixes = tuple(f"{prefix}.{path}." for path in PATCH_EMBEDDINGS)
    names = tuple(name for name, _ in model.named_parameters() if name.startswith(prefixes))
    if freeze and not names:
        raise UserError(
            f"`freeze_patch_embed` is for encoders of patches, and a {config.model_type} has none. Leave it out."
        )
    return names if freeze or (freeze is None and not is_convolutional(config)) else ()


def transformer_blocks(encoder: PreTrainedModel) -> Sequence[nn.Module]:
    """The blocks of an encoder that is a stack of them: its list of `num_hidden_layers` modules.

    None of any other: the stages of a hierarchical encoder, which may be as many, hold lists of blocks themselves.
    """
    number = getattr(encoder.config, "num_hidden_layers", None)
    lists = (part for part in encoder.modules() if isinstance(part, nn.ModuleList) and len(part) == number)
    blocks = next(lists, ())
    return () if any(isinstance(part, nn.ModuleList) for block in blocks for part in block.modules()) else blocks


def select(tokens: torch.Tensor, indices: torch.LongTensor, num_own: int = 0) -> torch.Tensor:
    """Tokens of each row by their indices, each of which stands there once.

    Args:
        tokens (`torch.Tensor` of shape `(batch_size, num_own + length, dim)`):
            Of which the first `num_own` are all taken.
        indices (`torch.LongTensor` of shape `(batch_size, n)`):
            Which of the others, counted from 0.
        num_own (`int`, *optional*, defaults to 0):
            How many tokens at the beginning are taken without being named in `indices`.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_own + n, dim)`.
    """
    batch_size, length, _ = tokens.shape
    own = torch.arange(num_own, device=indices.device).expand(batch_size, -1)
    first = torch.arange(0, batch_size * length, length, device=indices.device)
    rows = torch.cat([own, num_own + indices], dim=1) + first[:, None]
    # whole rows are several times as fast as a gather of single numbers
    return tokens.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape)


def sine_positions(patches_a_side: int, dim: int, num_own: int = 0) -> torch.Tensor:
    """Fixed 2-D sine-cosine positions as in MAE and MoCo v3: `(1, num_own + patches_a_side², dim)`, zeros first.

    A quarter of the numbers each: sine and cosine of the column, sine and cosine of the row.
    """
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(patches_a_side, dtype=torch.float64)[:, None] * frequencies  # (side, dim / 4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = waves[None].expand(patches_a_side, -1, -1)
    rows = waves[:, None].expand(-1, patches_a_side, -1)
    positions = torch.cat([columns, rows], dim=-1).flatten(0, 1).float()
    return torch.cat([positions.new_zeros(num_own, dim), positions])[None]


def patchify(images: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Images `(batch, channels, height, width)` as patches `(batch, num_patches, patch_size² * channels)`.

    Patches stand in reading order; the numbers of a patch are those of its pixels, channel by channel within a pixel.
    """
    b, c, h, w = images.shape
    grid = images.reshape(b, c, h // patch_size, patch_size, w // patch_size, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch_size**2 * c)


def unpatchify(patches: torch.Tensor, patch_size: int) -> torch.Tensor:
    """The square images of [`patchify`] again."""
    b, n, dim = patches.shape
    rows, channels = int(n**0.5), dim // patch_size**2
    grid = patches.reshape(b, rows, rows, patch_size, patch_size, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(b, channels, rows * patch_size, rows * patch_size)


def try_on_an_image(encoder: PreTrainedModel, image_size: int, num_channels: int = 3) -> None:
    """Run an encoder on one blank image, as the surest way to know whether it takes images of that size.

    Raises:
        UserError: if it does not, or if nothing is left of the image before the last convolution that shrinks it.
    """
    config = encoder.config
    patch = patch_size_of(config) or 1
    if image_size % side(patch):
        raise UserError(
            f"`--image_size {image_size}` is no multiple of the patches of this {config.model_type}, which have "
            f"{side(patch)} pixels. Pass {max(round(image_size / side(patch)), 1) * side(patch)}."
        )
    channels = num_channels_of(config)
    if channels != num_channels:
        raise UserError(
            f"The encoder takes images of {channels} channels, the images here have {num_channels}. Choose "
            f"another, or pass `--num_channels {channels}`."
        )
    was_training = encoder.training
    encoder.eval()
    weight = next(encoder.parameters())
    try:
        with torch.no_grad(), pixels_required(encoder):
            encoder(torch.zeros(1, channels, image_size, image_size, dtype=weight.dtype, device=weight.device))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(". ")
        raise UserError(
            f"This {config.model_type} does not take images of {image_size} pixels ({reason}). Pass another "
            "`--image_size`, or another `--encoder`."
        ) from error
    encoder.train(was_training)


@contextmanager
def pixels_required(encoder: nn.Module):
    """Within it, an encoder refuses (`ValueError`) images so small that a convolution with a stride gets one pixel.

    There is nothing to shrink then; and with bfloat16 on CPU the gradient of its 3 x 3 weights would be garbage.
    """

    def refuse(convolution: nn.Conv2d, args: tuple) -> None:
        if max(args[0].shape[-2:]) == 1 and max(convolution.kernel_size) > 1:
            raise ValueError("only one pixel is left before the last convolution that shrinks images")

    shrinking = [part for part in encoder.modules() if isinstance(part, nn.Conv2d) and max(part.stride) > 1]
    handles = [part.register_forward_pre_hook(refuse) for part in shrinking]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def uses_attention(module: nn.Module) -> bool:
    """Whether an encoder has an implementation of attention to choose."""
    return hasattr(getattr(module, "config", None), "num_attention_heads")
