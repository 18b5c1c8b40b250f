"""CPC: predict what comes next in a recording, told from other moments of it.

Paper: Representation Learning with Contrastive Predictive Coding, van den Oord et al., 2018
(https://huggingface.co/papers/1807.03748). Settings are those of Unsupervised Pretraining Transfers Well Across
Languages, Rivière et al., 2020 (https://huggingface.co/papers/2002.02848); its code:
https://github.com/facebookresearch/CPC_audio.

Convolutions make a frame of every 10 ms, and a recurrent network a context of all frames up to each. From the context
one linear layer for each of the next 12 frames predicts that frame, to be told from others of the recording by its
product with them. The encoder sees nothing that comes after a frame: it can follow a recording while it is made.

transformers has no class for this encoder: it is exported as weights, settings, and a few lines that load them.

Departures from the papers: negatives are other frames of the same recording, drawn from its key, instead of frames of
the batch by the same speaker; convolutions have no padding, so that each frame is made of sound alone; predictors are
linear as in the first paper.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...errors import UserError
from ...losses import cpc_loss
from ...modeling.audio import num_frames
from ...modeling.base import SSLPreTrainedModel, load_plain_encoder, with_changes
from ...modeling.convolutions import convolve
from ...modeling.method import LearningRates, Method


@strict
class CpcEncoderConfig(PreTrainedConfig):
    r"""
    Configuration of [`CpcEncoder`].

    Args:
        conv_dim (`list[int]`, *optional*, defaults to `[256, 256, 256, 256, 256]`):
            Channels of the convolutions.
        conv_kernel, conv_stride (`list[int]`, *optional*, default to `[10, 8, 4, 4, 4]` and `[5, 4, 2, 2, 2]`):
            Their widths and steps: a frame every 160 samples.
        hidden_size (`int`, *optional*, defaults to `256`):
            Width of the recurrent network.
        num_hidden_layers (`int`, *optional*, defaults to `1`):
            Its layers.
    """

    model_type = "hfssl_cpc_encoder"

    conv_dim: list[int] | tuple[int, ...] = (256, 256, 256, 256, 256)
    conv_kernel: list[int] | tuple[int, ...] = (10, 8, 4, 4, 4)
    conv_stride: list[int] | tuple[int, ...] = (5, 4, 2, 2, 2)
    hidden_size: int = 256
    num_hidden_layers: int = 1
    # each frame is normalised by itself: padding changes nothing of what is beside it
    feat_extract_norm: str = "layer"

    def validate_convolutions(self):
        lengths = {len(self.conv_dim), len(self.conv_kernel), len(self.conv_stride)}
        if len(lengths) > 1 or lengths == {0}:
            raise ValueError(
                "`conv_dim`, `conv_kernel` and `conv_stride` say one number for each convolution, got "
                f"{len(self.conv_dim)}, {len(self.conv_kernel)} and {len(self.conv_stride)}."
            )


@dataclass
class CpcEncoderOutput(ModelOutput):
    r"""
    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_frames, hidden_size)`):
            The context of each frame: all up to it.
        extract_features (`torch.FloatTensor` of shape `(batch_size, num_frames, conv_dim[-1])`):
            The frames themselves.
        hidden_states (`tuple[torch.FloatTensor]`):
            With `output_hidden_states`, what is `hidden_size` wide: the frames where they are, then the contexts.
    """

    last_hidden_state: torch.FloatTensor | None = None
    extract_features: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class CpcEncoder(PreTrainedModel):
    """Convolutions over waveforms at 16 kHz, and a recurrent network over their output."""

    config_class = CpcEncoderConfig
    base_model_prefix = "cpc"
    main_input_name = "input_values"

    def __init__(self, config: CpcEncoderConfig):
        super().__init__(config)
        dims = [1, *config.conv_dim]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(*dims[i : i + 2], config.conv_kernel[i], config.conv_stride[i]) for i in range(len(dims) - 1)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in config.conv_dim)
        self.context = nn.GRU(dims[-1], config.hidden_size, config.num_hidden_layers, batch_first=True)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # as torch draws them: deviations of 0.02 would make nothing of a waveform
        if isinstance(module, nn.Conv1d | nn.GRU | nn.LayerNorm):
            module.reset_parameters()

    def forward(
        self,
        input_values: torch.FloatTensor,
        attention_mask: torch.LongTensor | None = None,
        output_hidden_states: bool = False,
    ) -> CpcEncoderOutput:
        r"""
        Args:
            input_values (`torch.FloatTensor` of shape `(batch_size, num_samples)`):
                Waveforms at 16 kHz.
            attention_mask (`torch.LongTensor` of shape `(batch_size, num_samples)`, *optional*):
                Is not needed: what comes after a frame changes nothing of it.
            output_hidden_states (`bool`, *optional*, defaults to `False`):
                Also give `hidden_states`.
        """
        frames = input_values.unsqueeze(-1)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            frames = norm(convolve(convolution, frames)).relu()
        contexts, _ = self.context(frames)
        if not output_hidden_states:
            return CpcEncoderOutput(contexts, frames)
        # as in transformers, hidden states are of one width
        layers = tuple(layer for layer in (frames, contexts) if layer.shape[-1] == self.config.hidden_size)
        return CpcEncoderOutput(contexts, frames, layers)


AutoConfig.register(CpcEncoderConfig.model_type, CpcEncoderConfig, exist_ok=True)
AutoModel.register(CpcEncoderConfig, CpcEncoder, exist_ok=True)


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    return {
        "constant": "it gives one answer to everything: lower `--learning_rate` or raise `--warmup_steps`",
        "few directions": "few moments are told apart: train for longer, raise `--num_negatives` (it is "
        f"{config.num_negatives}) or predict further with `--num_steps` (it is {config.num_steps})",
    }


METHOD = Method(
    title="CPC",
    modality="audio",
    learning_rates=LearningRates(narrow=1e-3, wide=2e-4, checkpoint=1e-4, per_256_samples=False),
    collapse_hints=_collapse_hints,
    chance=lambda config, context: {"loss": math.log(1 + config.num_negatives)},
)


@strict
class CpcPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`CpcForPreTraining`]. The defaults are those of the second paper.

    Args:
        encoder_config (`dict` or [`CpcEncoderConfig`], *optional*):
            Convolutions and recurrent network; those of the paper when left out.
        num_steps (`int`, *optional*, defaults to `12`):
            Frames into the future that are predicted (K), 10 ms each.
        num_negatives (`int`, *optional*, defaults to `128`):
            Other frames of the recording that each is told from.
    """

    model_type = "hfssl_cpc"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="hfssl_cpc_encoder")}

    encoder_config: dict | PreTrainedConfig | None = None
    num_steps: int = 12
    num_negatives: int = 128

    def validate_numbers(self):
        for name in ("num_steps", "num_negatives"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    @property
    def masking(self) -> dict[str, Any]:
        """The arguments of [`~hfssl.functional.spans.frame_masks`] that this method sets: it hides nothing."""
        return {"mask_ratio": 0.0, "mask_length": 1, "num_negatives": self.num_negatives}


@dataclass
class CpcOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Cross-entropy (nats), mean over steps, recordings and the frames of each. log(1 + num_negatives) is chance.
        figures (`dict[str, torch.FloatTensor]` of shape `()`):
            `contrastive_accuracy`, the share of the predictions to which the right frame is the nearest.
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, num_frames, hidden_size)`):
            Contexts. Left out in training mode.
    """

    loss: torch.FloatTensor | None = None
    figures: dict[str, torch.FloatTensor] | None = None
    last_hidden_state: torch.FloatTensor | None = None


class CpcForPreTraining(SSLPreTrainedModel):
    config_class = CpcPreTrainingConfig
    method = METHOD
    base_model_prefix = "encoder"
    main_input_name = "input_values"
    figures = ("contrastive_accuracy",)
    export_kind = "plain"
    paper = {
        "title": "Representation Learning with Contrastive Predictive Coding",
        "id": "1807.03748",
        "citation": "@article{oord2018representation,\n  title = {Representation Learning with Contrastive Predictive "
        "Coding},\n  author = {van den Oord, Aaron and Li, Yazhe and Vinyals, Oriol},\n  journal = "
        "{arXiv:1807.03748},\n  year = {2018}\n}",
    }
    loader = """import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn


class Encoder(nn.Module):
    def __init__(self, conv_dim, conv_kernel, conv_stride, hidden_size, num_hidden_layers):
        super().__init__()
        dims = [1, *conv_dim]
        shapes = zip(dims, conv_dim, conv_kernel, conv_stride)
        self.convolutions = nn.ModuleList(nn.Conv1d(*shape) for shape in shapes)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in conv_dim)
        self.context = nn.GRU(dims[-1], hidden_size, num_hidden_layers, batch_first=True)

    def forward(self, waveforms):  # (batch_size, num_samples) at 16 kHz
        hidden = waveforms.unsqueeze(1)
        for convolution, norm in zip(self.convolutions, self.norms):
            hidden = norm(convolution(hidden).transpose(1, 2)).relu().transpose(1, 2)
        return self.context(hidden.transpose(1, 2))[0]  # (batch_size, num_frames, hidden_size)


def load_encoder(folder):
    settings = json.loads((Path(folder) / "encoder.json").read_text())
    names = ("conv_dim", "conv_kernel", "conv_stride", "hidden_size", "num_hidden_layers")
    encoder = Encoder(*(settings[name] for name in names))
    encoder.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return encoder.eval()


encoder = load_encoder("{name}")"""

    def __init__(self, config: CpcPreTrainingConfig):
        super().__init__(config)
        encoder = config.encoder_config
        if encoder.model_type != CpcEncoderConfig.model_type:
            raise UserError(
                "CPC predicts what comes next from what was before, and its encoder must not see more: a "
                f"{encoder.model_type} sees the whole recording. Pass a `CpcEncoderConfig`, or pre-train this one "
                "with `recipes/wav2vec2.py` or `recipes/hubert.py`."
            )
        self.encoder = AutoModel.from_config(encoder)
        dims = (encoder.hidden_size, encoder.conv_dim[-1])
        self.predictors = nn.ModuleList(nn.Linear(*dims, bias=False) for _ in range(config.num_steps))
        self.post_init()

    @classmethod
    def from_encoder(
        cls, name_or_path: str, encoder_changes: Mapping[str, Any] | None = None, **config: Any
    ) -> "CpcForPreTraining":
        """Continue from the result folder of a run: `config` are the fields of the method's config beside
        `encoder_config`, and of that `encoder_changes` are those that are to be others."""
        encoder = load_plain_encoder(name_or_path)
        encoder_config = with_changes(encoder.config, encoder_changes, name_or_path, AutoModel.from_config)
        model = cls(cls.config_class(encoder_config=encoder_config, **config))
        model.encoder.load_state_dict(encoder.state_dict())
        return model

    def forward(
        self,
        input_values: torch.FloatTensor,
        attention_mask: torch.LongTensor | None = None,
        negative_indices: torch.Tensor | None = None,
        return_loss: bool = True,
    ) -> CpcOutput:
        r"""
        Args:
            input_values (`torch.FloatTensor` of shape `(batch_size, num_samples)`):
                Waveforms at 16 kHz.
            attention_mask (`torch.LongTensor` of shape `(batch_size, num_samples)`, *optional*):
                1 = sound, 0 = padding.
            negative_indices (`torch.Tensor` of shape `(batch_size, num_frames, num_negatives)`):
                For each frame the numbers of other frames of its recording.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        if negative_indices is None:
            raise UserError(
                "CPC tells frames from others, and the batch does not say from which: `negative_indices` is missing. "
                "`hfssl.functional.spans.frame_masks(lengths, keys, **model.config.masking)` draws them."
            )
        out = self.encoder(input_values)
        length = out.last_hidden_state.shape[1]
        if negative_indices.shape[1] != length:
            raise ValueError(
                f"`negative_indices` has shape {tuple(negative_indices.shape)}, but the encoder makes {length} frames "
                "of each recording: expected (batch_size, num_frames, num_negatives)."
            )
        if length < 2:
            raise UserError(
                f"A recording of {input_values.shape[1]} samples is {length} frame(s), and nothing comes after it. "
                "Pass longer ones."
            )
        ends = None if attention_mask is None else num_frames(self.config.encoder_config, attention_mask.sum(1))
        predictions = torch.stack([predictor(out.last_hidden_state) for predictor in self.predictors])
        loss, accuracy = cpc_loss(predictions, out.extract_features, negative_indices, ends)
        kept = {} if self.training else {"last_hidden_state": out.last_hidden_state}
        return CpcOutput(loss=loss, figures={"contrastive_accuracy": accuracy.detach()}, **kept)
