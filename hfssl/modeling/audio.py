"""Encoders of sound: built for pre-training, and run with frames that are hidden by masks from the batch.

All masking is that of the batch. What encoders of transformers have of their own would come on top of it: they hide
frames and features in training mode (`apply_spec_augment`), drawn for the batch as a whole from the ambient generator,
and also in padding; and they leave out layers (`layerdrop`), whose parameters then have no gradient, for which DDP
would wait. Both are off here; the exported encoder keeps its configuration as it was given.
"""

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..errors import UserError
from ..losses import at_least_float32
from .base import SSLPreTrainedModel, drop_pooler, with_changes, with_dropout
from .convolutions import channels_last_convolutions
from .grouped import keep_narrow_groups_exact
from .trial import FAILURES, once_per_config


logger = logging.getLogger(__name__)


@dataclass
class Frames:
    r"""
    What an encoder of sound makes of a batch.

    Args:
        hidden (`torch.Tensor` of shape `(batch_size, num_frames, hidden_size)`):
            Its last hidden state.
        features (`torch.Tensor` of shape `(batch_size, num_frames, dim)`):
            What goes into it frame by frame, before frames are hidden: the normalised output of the convolutions, or
            the normalised filter banks. `None` of an encoder that does not normalise them.
        squares (`torch.Tensor` of shape `(batch_size, num_frames)`):
            Mean square of what the convolutions give for each frame. `None` of an encoder without any.
    """

    hidden: torch.Tensor
    features: torch.Tensor | None = None
    squares: torch.Tensor | None = None


class SSLAudioModel(SSLPreTrainedModel):
    """Base of methods around one encoder of sound that hide frames."""

    base_model_prefix = "encoder"
    main_input_name = "input_values"
    # losses are means over masked frames
    accepts_loss_kwargs = True

    def post_init(self):
        self._unused = unused_audio_parameters(self.encoder.config)
        super().post_init()

    def freeze(self) -> None:
        """Also take out what the encoder does not use: DDP would wait for the gradients forever."""
        super().freeze()
        for name, parameter in self.encoder.named_parameters():
            if name in self._unused:
                parameter.requires_grad_(False)

    @classmethod
    def check_encoder_changes(cls, changes: Mapping[str, Any]) -> None:
        super().check_encoder_changes(changes)
        if "layerdrop" in changes:
            raise UserError(
                "`--encoder_config`: layers are never left out in training, whatever `layerdrop` says. Leave it out."
            )

    @classmethod
    def from_encoder(
        cls, name_or_path: str, encoder_changes: Mapping[str, Any] | None = None, **config: Any
    ) -> "SSLAudioModel":
        """Continue from a stock checkpoint.

        Args:
            name_or_path (`str`):
                Folder or Hub id.
            encoder_changes (`dict`, *optional*):
                Fields of the encoder's configuration that are to be others, see
                [`~hfssl.modeling.base.with_changes`].
            config (`dict`, *optional*):
                Fields of the method's config beside `encoder_config`.
        """
        stock = AutoModel.from_pretrained(name_or_path, dtype=torch.float32)
        encoder_config = with_changes(stock.config, encoder_changes, name_or_path, build_audio_encoder)
        model = cls(cls.config_class(encoder_config=encoder_config, **config))
        # a checkpoint may have been written without the vector that stands in place of hidden frames
        missing, unknown = model.encoder.load_state_dict(stock.state_dict(), strict=False)
        lost = [name for name in missing if name != "masked_spec_embed"]
        if lost or [name for name in unknown if not name.startswith("pooler.")]:
            raise UserError(f"{name_or_path} does not hold the weights of its own encoder: {(lost + unknown)[0]}.")
        return model

    @property
    def num_targets(self) -> tuple[int, int]:
        """Codebooks, and codes of each, that targets are of; 0 of a method that has none."""
        return 0, 0

    def targets_of(self, outputs: ModelOutput) -> torch.LongTensor:
        """The targets in an output in evaluation mode: `(num_frames, num_codebooks)`, numbers of codes."""
        raise NotImplementedError

    def loss_items(self, batch: dict[str, Any]) -> torch.Tensor | dict[str, torch.Tensor] | None:
        return num_masked(batch)

    def encode(
        self,
        inputs: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mask: torch.BoolTensor | None = None,
        feature_grad_mult: float = 1.0,
    ) -> Frames:
        """One pass of the encoder.

        Args:
            inputs (`torch.Tensor` of shape `(batch_size, num_samples)` or `(batch_size, num_frames, dim)`):
                Waveforms, or what else the encoder takes.
            attention_mask (`torch.Tensor` of shape `(batch_size, num_samples)` or `(batch_size, num_frames)`):
                1 = sound, 0 = padding.
            mask (`torch.BoolTensor` of shape `(batch_size, num_frames)`, *optional*):
                Frames that the encoder does not see.
            feature_grad_mult (`float`, *optional*, defaults to `1.0`):
                Factor of the gradient that reaches the convolutions.
        """
        seen: dict[str, torch.Tensor] = {}
        with _hooks(self.encoder, seen, mask, feature_grad_mult), channels_last_convolutions(self.encoder):
            outputs = self.encoder(inputs, attention_mask=attention_mask)
        return Frames(outputs.last_hidden_state, seen.get("features"), seen.get("squares"))

    def feature_penalty(
        self, frames: Frames, attention_mask: torch.Tensor | None, num_clips: torch.Tensor | int
    ) -> torch.Tensor:
        """Mean square of the output of the convolutions: of each clip over its frames, over `num_clips` clips."""
        sound = None
        if attention_mask is not None:
            sound = frames_of_sound(self.encoder.config, attention_mask, frames.squares.shape[1])
        return mean_over_sound(frames.squares, sound).sum() / num_clips


def build_audio_encoder(config: PreTrainedConfig, dropout: float | None = None) -> PreTrainedModel:
    """The encoder that `config` describes, with random weights, for pre-training: nothing is hidden or left out but
    what a method says.

    Args:
        config (`PreTrainedConfig`):
            Of the encoder.
        dropout (`float`, *optional*):
            Everywhere in it; its own where left out.

    Raises:
        UserError: if it has no frames that could be hidden.
    """
    config = with_dropout(config, dropout)
    if getattr(config, "add_adapter", False):
        raise UserError(
            "The encoder has an adapter, which makes fewer frames of those that are hidden. Pass a configuration with "
            "`add_adapter=False`; an adapter is for fine-tuning."
        )
    config.apply_spec_augment, config.layerdrop = False, 0.0
    # it has a vector for hidden frames only where one of these is not 0
    config.mask_time_prob = max(getattr(config, "mask_time_prob", 0.0), 0.05)
    encoder = drop_pooler(AutoModel.from_config(config))
    if not hasattr(encoder, "feature_projection") or not hasattr(encoder, "masked_spec_embed"):
        raise UserError(
            f"Frames of sound cannot be hidden from a {type(encoder).__name__}: it has no `feature_projection` and "
            "`masked_spec_embed`. HuBERT, WavLM, wav2vec 2.0, Wav2Vec2-BERT and Wav2Vec2-Conformer have them."
        )
    keep_narrow_groups_exact(encoder)
    return encoder


@once_per_config
def unused_audio_parameters(config: PreTrainedConfig) -> frozenset[str]:
    """The parameters of an encoder that have no part in its last hidden state, where frames are hidden.

    Such as convolutions for positions in a Conformer that has positions of another kind. Found by a backward pass
    through one layer.
    """
    one_layer = copy.deepcopy(config)
    one_layer.num_hidden_layers = 1
    try:
        with torch.random.fork_rng(devices=[]):
            encoder = AutoModel.from_config(one_layer).float().eval()
            if reads_waveforms(config):
                samples = samples_per_frame(config) * 4
                while num_frames(config, samples) < 4:
                    samples += samples_per_frame(config)
                inputs = torch.randn(1, samples)
            else:
                inputs = torch.randn(1, 4, config.feature_projection_input_dim)
            length = num_frames(config, inputs.shape[1]) if reads_waveforms(config) else inputs.shape[1]
            with _hooks(encoder, {}, torch.ones(1, length, dtype=torch.bool), 1.0):
                encoder(inputs).last_hidden_state.sum().backward()
    except FAILURES as error:
        logger.warning(
            "What a %s does not use was not found (%s): all its parameters are trained.", config.model_type, error
        )
        return frozenset()
    unused = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    layers = range(config.num_hidden_layers)
    return frozenset(name.replace("layers.0.", f"layers.{i}.") for name in unused for i in layers)


def reads_waveforms(config: PreTrainedConfig) -> bool:
    """Whether an encoder takes waveforms (`input_values`), not filter banks (`input_features`)."""
    return getattr(config, "conv_stride", None) is not None and hasattr(config, "feat_extract_norm")


def num_frames(config: PreTrainedConfig, num_samples: Any) -> Any:
    """Frames that the convolutions of an encoder make of so many samples, which may be an array or a tensor.

    0, or less than that, of samples that are fewer than a frame.
    """
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        num_samples = (num_samples - kernel) // stride + 1
    return num_samples


def samples_per_frame(config: PreTrainedConfig) -> int:
    """Samples from one frame to the next: 320 for the encoders of the papers, 20 ms at 16 kHz."""
    stride = 1
    for factor in config.conv_stride:
        stride *= factor
    return stride


def frames_of_sound(config: PreTrainedConfig, attention_mask: torch.Tensor, length: int) -> torch.BoolTensor:
    """Which frames are no padding: `(batch_size, length)`, by the mask of the samples or of the frames themselves."""
    if not reads_waveforms(config):
        return attention_mask.bool()
    lengths = num_frames(config, attention_mask.sum(-1))
    return torch.arange(length, device=attention_mask.device) < lengths.unsqueeze(1)


def mean_over_sound(values: torch.Tensor, is_sound: torch.BoolTensor | None) -> torch.Tensor:
    """Of each clip the mean over its frames, those of padding aside: `(batch_size, num_frames)` to `(batch_size,)`."""
    if is_sound is None:
        return values.mean(1)
    return torch.where(is_sound, values, 0.0).sum(1) / is_sound.sum(1).clamp(min=1)


def masked_positions_of(mask: torch.BoolTensor, positions: torch.LongTensor | None) -> torch.LongTensor:
    """Indices of hidden frames in the flattened batch; to find them makes a GPU wait, so collators know them."""
    return mask.flatten().nonzero().squeeze(1) if positions is None else positions


def num_masked(batch: dict[str, Any]) -> torch.Tensor | None:
    """How many frames of a batch are hidden."""
    if "masked_positions" in batch:
        return torch.tensor(batch["masked_positions"].numel())
    return batch["mask_time_indices"].sum() if "mask_time_indices" in batch else None


def check_mask(mask: torch.Tensor | None, method: str, num_frames: int | None = None) -> None:
    """Refuse a batch without a mask, or with one for other frames.

    Raises:
        UserError: if there is none.
        ValueError: if it is none of `num_frames` frames.
    """
    if mask is None:
        raise UserError(
            f"{method} predicts frames that are hidden, and the batch does not say which: `mask_time_indices` is "
            "missing. `hfssl.functional.spans.frame_masks(lengths, keys, **model.config.masking)` draws them."
        )
    if num_frames is not None and mask.shape[1] != num_frames:
        raise ValueError(
            f"`mask_time_indices` has shape {tuple(mask.shape)}, but the encoder makes {num_frames} frames of each "
            "clip: expected (batch_size, num_frames). `hfssl.modeling.audio.num_frames` says how many there are."
        )


@contextmanager
def _hooks(
    encoder: PreTrainedModel, seen: dict[str, torch.Tensor], mask: torch.Tensor | None, feature_grad_mult: float
) -> Iterator[None]:
    """Hide frames from the layers of an encoder, and keep what goes into them.

    Not by its argument `mask_time_indices`: that is the assignment of a vector to places that are looked for on the
    CPU, for which a GPU is waited for.
    """

    def convolved(module, args, output):
        # mean squares of the channels, in the precision of losses: halves overflow
        seen["squares"] = at_least_float32(output).square().mean(1)
        if feature_grad_mult == 1.0 or not output.requires_grad:
            return output
        return _ScaleGradient.apply(output, feature_grad_mult)

    def normalised(module, args, output):
        seen["features"] = output

    def projected(module, args, output):
        hidden, *rest = output if isinstance(output, tuple) else (output,)
        if mask is not None:
            check_mask(mask, type(encoder).__name__, hidden.shape[1])
            hidden = torch.where(mask.unsqueeze(-1), encoder.masked_spec_embed.to(hidden.dtype), hidden)
        return (hidden, *rest) if isinstance(output, tuple) else hidden

    projection = encoder.feature_projection
    # some variants of HuBERT project without a norm
    normed = getattr(projection, "layer_norm", None)
    handles = [projection.register_forward_hook(projected)]
    if isinstance(normed, nn.Module):
        handles.append(normed.register_forward_hook(normalised))
    if hasattr(encoder, "feature_extractor"):
        handles.append(encoder.feature_extractor.register_forward_hook(convolved))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient * ctx.factor, None
