"""From the outputs of an image encoder to one vector an image."""

import torch
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from ..errors import UserError


POOLINGS = ("cls", "mean", "cls+mean", "last4")

# Tokens of their own before those of the patches, the first of which is a CLS token; what is not here has none.
_OWN_TOKENS = {
    "vit": 1, "vit_msn": 1, "vit_mae": 1, "dinov2": 1, "dinov2_with_registers": 1, "dinov3_vit": 1, "deit": 2,
    "beit": 1, "data2vec-vision": 1, "clip_vision_model": 1, "dinov3_convnext": 1,
}  # fmt: skip


def num_own_tokens(config: PreTrainedConfig) -> int:
    """How many tokens an encoder puts before those of the patches: CLS, distillation token, registers."""
    own = _OWN_TOKENS.get(config.model_type, 0)
    return own + (getattr(config, "num_register_tokens", 0) or 0 if own else 0)


def is_convolutional(config: PreTrainedConfig) -> bool:
    """Whether an encoder ends in a map of features instead of tokens."""
    return hasattr(config, "hidden_sizes") and config.model_type not in _OWN_TOKENS


def default_pooling(config: PreTrainedConfig) -> str:
    """`"cls"` where the encoder has such a token, else `"mean"`."""
    return "cls" if num_own_tokens(config) else "mean"


def outputs_for(pooling: str | None) -> dict[str, bool]:
    """What an encoder is to be asked for, so that [`pool_features`] has what a pooling needs."""
    return {"output_hidden_states": True} if pooling == "last4" else {}


def feature_size(config: PreTrainedConfig, pooling: str | None = None) -> int:
    """Size of a pooled feature."""
    size = config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size
    return size * {"cls+mean": 2, "last4": 4}.get(check_pooling(config, pooling), 1)


def check_pooling(config: PreTrainedConfig, pooling: str | None = None) -> str:
    """The pooling that `pooling` means for an encoder, the default one where it is `None`.

    Raises:
        UserError: where the encoder has no such feature.
    """
    if pooling is None:
        return default_pooling(config)
    if pooling not in POOLINGS:
        raise UserError(f"There is no pooling {pooling!r}. Choose one of {', '.join(POOLINGS)}.")
    if pooling != "mean" and not num_own_tokens(config):
        raise UserError(f"The pooling {pooling!r} needs a CLS token, which {config.model_type} has not. Choose mean.")
    if pooling == "last4" and (hasattr(config, "hidden_sizes") or config.num_hidden_layers < 4):
        raise UserError(
            f"The pooling 'last4' needs four blocks of one width, which this {config.model_type} has not. Choose "
            "cls+mean."
        )
    return pooling


def pool_features(outputs: ModelOutput, config: PreTrainedConfig, pooling: str | None = None) -> torch.Tensor:
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

    Returns:
        `torch.Tensor` of shape `(batch_size, dim)`, where `dim` is [`feature_size`].

    Raises:
        UserError: where the encoder has no such feature.
    """
    pooling = check_pooling(config, pooling)
    hidden = outputs.last_hidden_state
    if hidden.ndim == 4:  # (batch_size, dim, height, width)
        pooled = outputs.get("pooler_output")
        return hidden.mean((2, 3)) if pooled is None else pooled.flatten(1)
    own = num_own_tokens(config)
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "mean":
        return hidden[:, own:].mean(1)
    if pooling == "cls+mean":
        return torch.cat([hidden[:, 0], hidden[:, own:].mean(1)], dim=-1)
    return torch.cat([*(state[:, 0] for state in outputs.hidden_states[-4:-1]), hidden[:, 0]], dim=-1)
