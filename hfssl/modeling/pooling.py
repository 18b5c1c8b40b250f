"""From the outputs of an image encoder to one vector an image."""

import torch
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from ..errors import UserError
from .trial import layout


POOLINGS = ("cls", "mean", "cls+mean", "last4")


def num_own_tokens(config: PreTrainedConfig) -> int:
    """How many tokens an encoder puts before those of the patches: CLS, distillation token, registers."""
    return layout(config).num_own


def is_convolutional(config: PreTrainedConfig) -> bool:
    """Whether an encoder ends in a map of features instead of tokens."""
    return layout(config).is_map


def default_pooling(config: PreTrainedConfig) -> str:
    """`"cls"` where the encoder has such a token, else `"mean"`."""
    return "cls" if layout(config).has_cls else "mean"


def outputs_for(pooling: str | None) -> dict[str, bool]:
    """What an encoder is to be asked for, so that [`pool_features`] has what a pooling needs."""
    return {"output_hidden_states": True} if pooling == "last4" else {}


def feature_size(config: PreTrainedConfig, pooling: str | None = None) -> int:
    """Size of a pooled feature."""
    return layout(config).dim * {"cls+mean": 2, "last4": 4}.get(check_pooling(config, pooling), 1)


def check_pooling(config: PreTrainedConfig, pooling: str | None = None) -> str:
    """The pooling that `pooling` means for an encoder, the default one where it is `None`.

    Raises:
        UserError: where the encoder has no such feature.
    """
    if pooling is None:
        return default_pooling(config)
    if pooling not in POOLINGS:
        raise UserError(f"There is no pooling {pooling!r}. Choose one of {', '.join(POOLINGS)}.")
    if pooling != "mean" and not layout(config).has_cls:
        raise UserError(f"The pooling {pooling!r} needs a CLS token, and a {config.model_type} has none. Choose mean.")
    if pooling == "last4" and (hasattr(config, "hidden_sizes") or getattr(config, "num_hidden_layers", 0) < 4):
        raise UserError(
            f"The pooling 'last4' needs four blocks of one width, and this {config.model_type} has none such. Choose "
            "cls+mean."
        )
    return pooling


def masked_mean(tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The mean over the tokens of each row that count.

    Args:
        tokens (`torch.Tensor` of shape `(batch_size, length, dim)`):
            Of samples, or of patches.
        mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*):
            1 or `True` where a token counts; at least one in each row. All do when left out.

    Returns:
        `torch.Tensor` of shape `(batch_size, dim)`.
    """
    if mask is None:
        return tokens.mean(1)
    if mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"A mask says of each token whether it counts: it has shape {tuple(mask.shape)}, expected "
            f"{tuple(tokens.shape[:2])}."
        )
    there = mask[..., None].to(tokens.dtype)
    return (tokens * there).sum(1) / there.sum(1)


def pool_features(
    outputs: ModelOutput, config: PreTrainedConfig, pooling: str | None = None, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """One vector an image.

    - `cls`: the CLS token after the last norm, what DINO and MoCo v3 evaluate;
    - `mean`: the mean over the patches, without CLS and register tokens; of a convolutional encoder, the global
      average as its own classifier gets it (after the norm, where there is one);
    - `cls+mean`: both side by side;
    - `last4`: the CLS tokens of the last four blocks side by side, the last one after the last norm.

    Args:
        outputs (`ModelOutput`):
            Of the encoder, for a batch; with `hidden_states` for `last4` (`output_hidden_states=True`).
        config (`PreTrainedConfig`):
            Of the encoder.
        pooling (`str`, *optional*):
            One of the above; the encoder's default when left out.
        mask (`torch.Tensor` of shape `(batch_size, num_patches)`, *optional*):
            1 or `True` for the patches, or places of a map in reading order, that count in a mean. All do when left
            out.

    Returns:
        `torch.Tensor` of shape `(batch_size, dim)`, where `dim` is [`feature_size`].

    Raises:
        UserError: where the encoder has no such feature.
    """
    pooling = check_pooling(config, pooling)
    hidden = outputs.last_hidden_state
    if hidden.ndim == 4:  # (batch_size, dim, height, width)
        if mask is not None:
            return masked_mean(hidden.flatten(2).mT, mask)
        pooled = outputs.get("pooler_output")
        return hidden.mean((2, 3)) if pooled is None else pooled.flatten(1)
    own = num_own_tokens(config)
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "mean":
        return masked_mean(hidden[:, own:], mask)
    if pooling == "cls+mean":
        return torch.cat([hidden[:, 0], masked_mean(hidden[:, own:], mask)], dim=-1)
    return torch.cat([*(state[:, 0] for state in outputs.hidden_states[-4:-1]), hidden[:, 0]], dim=-1)


def pooling_code(config: PreTrainedConfig, pooling: str | None = None) -> tuple[str, str]:
    """Python that makes of the `outputs` of an encoder what [`pool_features`] makes of them, for cards.

    Args:
        config (`PreTrainedConfig`), pooling (`str`, *optional*):
            See [`pool_features`].

    Returns:
        `tuple[str, str]`: an expression, and what the call of the encoder has to have at its end.
    """
    pooling = check_pooling(config, pooling)
    cls, patches = (
        "outputs.last_hidden_state[:, 0]",
        f"outputs.last_hidden_state[:, {num_own_tokens(config)}:].mean(1)",
    )
    if is_convolutional(config):
        made = "pooler_output.flatten(1)" if layout(config).is_pooled else "last_hidden_state.mean((2, 3))"
        return f"outputs.{made}", ""
    if pooling == "last4":
        of_blocks = "*(state[:, 0] for state in outputs.hidden_states[-4:-1])"
        return f"torch.cat([{of_blocks}, {cls}], dim=-1)", ", output_hidden_states=True"
    return {"cls": cls, "mean": patches, "cls+mean": f"torch.cat([{cls}, {patches}], dim=-1)"}[pooling], ""
