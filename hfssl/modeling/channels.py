"""A checkpoint for images with other channels than it was trained on: what its first convolution becomes."""

import copy
from collections.abc import Sequence

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from ..errors import UserError
from .base import drop_pooler
from .trial import blank_copy, image_model_options, num_channels_of


def with_num_channels(
    encoder: PreTrainedModel,
    num_channels: int | None,
    colors: Sequence[int] | None = None,
    trained_colors: Sequence[int] | None = None,
) -> PreTrainedModel:
    """An encoder for images of `num_channels` channels.

    Each new channel has the mean of the weights of the old ones; those that are `colors` keep the weights of red,
    green and blue. All are scaled by old / new channels: so an image whose channels are all alike gives what it gave
    before. Where there are three as before, the weights of red, green and blue go where these are now.

    Args:
        encoder (`PreTrainedModel`):
            Whose patch embedding, stem or first convolution takes `config.num_channels` channels.
        num_channels (`int`, *optional*):
            Left out: as it is.
        colors (`Sequence[int]`, *optional*):
            Which of the new channels are red, green and blue, of an encoder that takes these three.
        trained_colors (`Sequence[int]`, *optional*):
            Which of its own three channels are; in this order when left out.

    Raises:
        UserError: if its configuration says no number of channels, or other weights depend on it.
    """
    config = encoder.config
    old = num_channels_of(config)
    order = list(trained_colors or range(3))
    if num_channels is None or num_channels == old:
        if old == 3 and colors and num_channels is not None and list(colors) != order:
            _reorder(encoder, order, list(colors))
        return encoder
    fitted = with_channels(config, num_channels)
    if num_channels_of(fitted) != num_channels:
        raise UserError(
            f"The configuration of this {config.model_type} says no number of channels, so that it takes no images of "
            f"{num_channels}. Choose another encoder, such as vit, dinov2, resnet or convnextv2."
        )
    has_pooler = any(name.startswith("pooler.") for name in encoder.state_dict())
    with torch.random.fork_rng(devices=[]):  # its weights are replaced
        model = AutoModel.from_config(fitted, **({} if has_pooler else image_model_options(fitted)))
    model = (model if has_pooler else drop_pooler(model)).to(next(encoder.parameters()).dtype)
    wanted, state = model.state_dict(), encoder.state_dict()
    for name, tensor in state.items():
        if name in wanted and wanted[name].shape != tensor.shape:
            state[name] = _adapted(tensor, wanted[name].shape, old, num_channels, colors, order)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"The weights of this {config.model_type} for {old} channels cannot be made those for {num_channels}. "
            "Choose another encoder, or pass images of its channels."
        ) from error
    return model.train(encoder.training)


def with_channels(config: PreTrainedConfig, num_channels: int) -> PreTrainedConfig:
    """A copy of a configuration for images of so many channels."""
    fitted = copy.deepcopy(config)
    if hasattr(fitted, "num_channels"):
        fitted.num_channels = num_channels
    elif hasattr(fitted, "model_args"):  # of timm
        fitted.model_args = {**(fitted.model_args or {}), "in_chans": num_channels}
    return fitted


@torch.no_grad()
def _reorder(encoder: PreTrainedModel, order: list[int], colors: list[int]) -> None:
    """Let an encoder of three channels find red, green and blue in other places."""
    others = blank_copy(with_channels(encoder.config, 4)).state_dict()  # which weights depend on the channels
    for name, weight in encoder.state_dict().items():
        if name in others and weight.ndim == 4 and weight.shape[1] == 3 and others[name].shape[1] == 4:
            weight[:, colors] = weight[:, order].clone()


def _adapted(
    weight: torch.Tensor, shape: torch.Size, old: int, new: int, colors: Sequence[int] | None, order: list[int]
) -> torch.Tensor:
    """The weight `(out, old, height, width)` of a convolution for `new` channels; as it is where it is none."""
    if weight.ndim != 4 or weight.shape[1] != old or shape != (weight.shape[0], new, *weight.shape[2:]):
        return weight
    adapted = weight.mean(1, keepdim=True).repeat(1, new, 1, 1)
    if colors and old == 3:
        adapted[:, list(colors)] = weight[:, order]
    return adapted * (old / new)
