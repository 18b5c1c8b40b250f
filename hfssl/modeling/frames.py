"""From the outputs of an audio encoder to one vector a clip, and one for each of its layers."""

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..errors import UserError
from .audio import frames_of_sound, reads_waveforms
from .pooling import masked_mean
from .trial import is_grid


POOLINGS = ("mean", "cls")


def check_pooling(config: PreTrainedConfig, pooling: str | None = None) -> str:
    """The pooling that `pooling` means for an audio encoder: `"mean"` over the frames where it is `None`.

    Raises:
        UserError: where the encoder has no such feature.
    """
    pooling = pooling or "mean"
    if pooling not in POOLINGS:
        raise UserError(f"There is no pooling {pooling!r} of recordings. Choose one of {', '.join(POOLINGS)}.")
    if pooling == "cls" and not is_grid(config):
        raise UserError(f"The pooling 'cls' needs a CLS token, and a {config.model_type} has none. Choose mean.")
    return pooling


def frame_mask(
    model: PreTrainedModel, num_frames: int, attention_mask: torch.Tensor | None, seconds: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Which frames are of the clips, and not of padding.

    Args:
        model (`PreTrainedModel`):
            The encoder.
        num_frames (`int`):
            Of its outputs, without tokens of its own.
        attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*):
            1 for what of the inputs is of a clip; `None` where all of it is.
        seconds (`torch.Tensor` of shape `(batch_size,)`, *optional*):
            How long the clips are, for encoders that see spectrograms of one size.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_frames)`, `None` where all count.
    """
    config = model.config
    if is_grid(config):
        if seconds is None:
            return None
        rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        columns = num_frames // rows
        # spectrograms have 100 frames a second; a patch counts that is over the clip as a whole, the first one always
        there = ((100 * seconds - config.patch_size) // config.time_stride + 1).clamp(1, columns)
        mask = torch.arange(columns, device=seconds.device) < there[:, None]
        return mask.repeat(1, rows)  # patches are in the order of frequencies, of times within them
    if attention_mask is None:
        return None
    if attention_mask.shape[1] != num_frames and not reads_waveforms(config):
        # of other convolutions what the stock heads pool by
        return model._get_feature_vector_attention_mask(num_frames, attention_mask)
    return frames_of_sound(config, attention_mask, num_frames)


def layer_features(
    model: PreTrainedModel,
    outputs: ModelOutput,
    attention_mask: torch.Tensor | None = None,
    seconds: torch.Tensor | None = None,
    pooling: str = "mean",
) -> torch.Tensor:
    """One vector a clip and layer.

    The first is of what comes into the first block, the last of what the encoder gives (after its last norm).

    Args:
        model (`PreTrainedModel`):
            The encoder.
        outputs (`ModelOutput`):
            Of the encoder, with `hidden_states` (`output_hidden_states=True`).
        attention_mask, seconds (*optional*):
            See [`frame_mask`].
        pooling (`str`, *optional*, defaults to `"mean"`):
            See [`check_pooling`].

    Returns:
        `torch.Tensor` of shape `(batch_size, num_layers + 1, hidden_size)`.
    """
    layers = list(outputs.hidden_states)
    # of blocks that normalise what they are given, the norm after the last one; an adapter has frames of its own
    if layers[-1].shape == outputs.last_hidden_state.shape:
        layers[-1] = outputs.last_hidden_state
    own = own_tokens(model.config, layers[0].shape[1])
    if pooling == "cls":
        return torch.stack([hidden[:, 0] for hidden in layers], dim=1).float()
    mask = frame_mask(model, layers[0].shape[1] - own, attention_mask, seconds)
    return torch.stack([masked_mean(hidden[:, own:].float(), mask) for hidden in layers], dim=1)


def own_tokens(config: PreTrainedConfig, length: int) -> int:
    """Tokens that an encoder puts before those of the sound: CLS and distillation token of an AST."""
    if not is_grid(config):
        return 0
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    columns = (config.max_length - config.patch_size) // config.time_stride + 1
    return length - rows * columns
