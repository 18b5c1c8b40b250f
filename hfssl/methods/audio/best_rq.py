"""BEST-RQ: hide spans of sound, and say to which of many random codes what was there is nearest.

Paper: Self-supervised Learning with Random-projection Quantizer for Speech Recognition, Chiu et al., 2022
(https://huggingface.co/papers/2202.01855). The authors gave no code; SpeechBrain has a recipe
(https://github.com/speechbrain/speechbrain, recipes/LibriSpeech/self-supervised-learning/BEST-RQ).

Targets come from the filter banks themselves: of each clip they are normalised over time, without which few codes are
in use; a random matrix projects those of a frame, and the nearest of random codes is the target. Neither the matrix
nor the codes learn. There is no teacher, no codebook to train and no second pass: one linear layer on the encoder.

Departures from the paper: hidden frames are a learned vector after the first projection, as stock encoders hide them,
instead of noise in the filter banks; `Wav2Vec2BertModel` reads two filter banks of 10 ms as one frame of 20 ms, where
the paper's encoder made frames of 40 ms, so that targets are of 20 ms too. An encoder of waveforms, such as
`Wav2Vec2ConformerModel`, gets its targets from filter banks that begin where its frames do.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...losses import at_least_float32, cross_entropy_sum, full_precision, perplexity_of
from ...modeling.audio import (
    SSLAudioModel,
    build_audio_encoder,
    check_mask,
    frames_of_sound,
    masked_positions_of,
    num_frames,
    reads_waveforms,
    samples_per_frame,
)
from ...modeling.distributed import convert_batch_norm
from ...modeling.filter_banks import HOP, normalised_over_time, stacked_log_mel
from ...modeling.method import LearningRates, Method


NUM_MEL_BINS = 80


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    return {
        "constant": "it gives one answer to everything: lower `--learning_rate` or raise `--warmup_steps`, and look "
        f"at `code_perplexity` in the log: where few of the {config.num_codes} codes are targets, clips are too "
        "short or silent to be normalised",
        "one target": f"nearly all frames have one of the {config.num_codes} codes: clips are silent, or too short to "
        "be normalised over time. Raise `--min_seconds`, or pass other recordings",
        "few directions": f"few of the {config.num_codes} codes are told apart: train for longer, or pass fewer "
        f"`--num_codes` or a smaller `--mask_ratio` than {config.mask_ratio}",
    }


METHOD = Method(
    title="BEST-RQ",
    modality="audio",
    learning_rates=LearningRates(narrow=1e-3, wide=5e-4, checkpoint=1e-4, per_256_samples=False),
    narrow_heads={"num_codes": 1024},
    collapse_hints=_collapse_hints,
    chance=lambda config, context: {"loss": context.entropy_of(config.num_codes)},
)


@strict
class BestRqPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`BestRqForPreTraining`]. The defaults are those of the paper (Section 4.1).

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: any of [`~hfssl.modeling.audio.build_audio_encoder`], such as Wav2Vec2-BERT, which it
            is when left out, or Wav2Vec2-Conformer.
        num_codes (`int`, *optional*, defaults to `8192`):
            Random codes, at least 2.
        code_dim (`int`, *optional*, defaults to `16`):
            Size of a code and of what filter banks are projected to.
        mask_ratio (`float`, *optional*, defaults to `0.4`):
            Share of the frames in hidden spans, where these do not overlap, in (0, 1): 0.01 for each 10 ms to be the
            beginning of a span of 400 ms.
        mask_length (`int`, *optional*, defaults to `20`):
            Frames of a span: 400 ms.
        min_masks (`int`, *optional*, defaults to `2`):
            Spans of a clip at least.
        dropout (`float`, *optional*):
            Dropout during pre-training, everywhere in the encoder, in [0, 1). The exported encoder keeps its own
            configuration. Left out, the encoder's own values are used.
    """

    model_type = "hfssl_best_rq"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="wav2vec2-bert")}

    encoder_config: dict | PreTrainedConfig | None = None
    num_codes: int = 8192
    code_dim: int = 16
    mask_ratio: float = 0.4
    mask_length: int = 20
    min_masks: int = 2
    dropout: float | None = None

    def validate_numbers(self):
        for name, least in {"num_codes": 2, "code_dim": 1, "mask_length": 1, "min_masks": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")

    def validate_shares(self):
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(f"`mask_ratio` is the share of frames to hide, between 0 and 1, got {self.mask_ratio}.")
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` is a probability in [0, 1), got {self.dropout}.")

    @property
    def masking(self) -> dict[str, Any]:
        """The arguments of [`~hfssl.functional.spans.frame_masks`] that this method sets."""
        return {name: getattr(self, name) for name in ("mask_ratio", "mask_length", "min_masks")}


@dataclass
class BestRqOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Mean cross-entropy (nats) over the hidden frames. The entropy of the codes is chance.
        figures (`dict[str, torch.FloatTensor]` of shape `()`):
            `code_perplexity`, how many codes are targets of this batch, and `code_accuracy`, the share of the hidden
            frames whose code is the likeliest.
        logits (`torch.FloatTensor` of shape `(num_masked, num_codes)`):
            Predictions at the hidden frames, in the order of the flattened batch. Left out in training mode.
        targets (`torch.LongTensor` of shape `(num_masked,)`):
            The codes of the hidden frames.
    """

    loss: torch.FloatTensor | None = None
    figures: dict[str, torch.FloatTensor] | None = None
    logits: torch.FloatTensor | None = None
    targets: torch.LongTensor | None = None


class RandomProjectionQuantizer(nn.Module):
    """The number of the code that is nearest to the projection of features; nothing of it learns.

    Args:
        dim (`int`):
            Size of the features, each with a mean of 0 and a variance of 1.
        code_dim (`int`):
            Size of a code.
        num_codes (`int`):
            Codes.
    """

    def __init__(self, dim: int, code_dim: int, num_codes: int):
        super().__init__()
        self.register_buffer("projection", torch.empty(dim, code_dim))
        self.register_buffer("codes", torch.empty(num_codes, code_dim))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        init.xavier_uniform_(self.projection)
        init.normal_(self.codes)
        init.copy_(self.codes, F.normalize(self.codes, dim=-1))

    @torch.no_grad()
    def forward(self, features: torch.Tensor) -> torch.LongTensor:
        """Features `(num_frames, dim)` to numbers of codes `(num_frames,)`."""
        with full_precision(features):
            projected = at_least_float32(features).to(self.projection.dtype) @ self.projection
            # codes have a length of 1: the nearest to a vector of any length is the one with the largest product
            return (projected @ self.codes.T).argmax(-1)


class BestRqForPreTraining(SSLAudioModel):
    config_class = BestRqPreTrainingConfig
    method = METHOD
    figures = ("code_perplexity", "code_accuracy")
    paper = {
        "title": "Self-supervised Learning with Random-projection Quantizer for Speech Recognition",
        "id": "2202.01855",
        "citation": "@inproceedings{chiu2022self,\n  title = {Self-supervised Learning with Random-projection "
        "Quantizer for Speech Recognition},\n  author = {Chiu, Chung-Cheng and Qin, James and Zhang, Yu and Yu, "
        "Jiahui and Wu, Yonghui},\n  booktitle = {ICML},\n  year = {2022}\n}",
    }

    def __init__(self, config: BestRqPreTrainingConfig):
        super().__init__(config)
        encoder = config.encoder_config
        self.encoder = build_audio_encoder(encoder, config.dropout)
        self.classifier = nn.Linear(encoder.hidden_size, config.num_codes)
        if reads_waveforms(encoder):
            dim = NUM_MEL_BINS * samples_per_frame(encoder) // HOP
        else:
            dim = encoder.feature_projection_input_dim
        self.quantizer = RandomProjectionQuantizer(dim, config.code_dim, config.num_codes)
        # the same in all processes, and DDP would send them around before every forward
        self._ddp_params_and_buffers_to_ignore = ["quantizer.projection", "quantizer.codes"]
        convert_batch_norm(self)
        self.post_init()

    @torch.no_grad()
    def initialize_weights(self):
        super().initialize_weights()
        self.quantizer.reset_parameters()

    @property
    def num_targets(self) -> tuple[int, int]:
        return 1, self.config.num_codes

    def targets_of(self, outputs: BestRqOutput) -> torch.LongTensor:
        return outputs.targets.unsqueeze(1)

    def forward(
        self,
        input_features: torch.FloatTensor | None = None,
        input_values: torch.FloatTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        mask_time_indices: torch.BoolTensor | None = None,
        masked_positions: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        return_loss: bool = True,
    ) -> BestRqOutput:
        r"""
        Args:
            input_features (`torch.FloatTensor` of shape `(batch_size, num_frames, dim)`, *optional*):
                Filter banks, for an encoder that reads them.
            input_values (`torch.FloatTensor` of shape `(batch_size, num_samples)`, *optional*):
                Waveforms at 16 kHz, for an encoder that reads them.
            attention_mask (`torch.LongTensor`, *optional*):
                1 = sound, 0 = padding, of frames where the encoder reads filter banks, else of samples.
            mask_time_indices (`torch.BoolTensor` of shape `(batch_size, num_frames)`):
                Frames that are hidden and predicted; none of padding.
            masked_positions (`torch.LongTensor` of shape `(num_masked,)`, *optional*):
                Indices of the hidden frames in the flattened batch. Found when left out, which makes a GPU wait for
                the CPU.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Hidden frames in the whole batch (all processes, all accumulation steps), by which the loss is divided
                instead of by their number here.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        inputs = self._inputs(input_features, input_values)
        check_mask(mask_time_indices, "BEST-RQ")
        positions = masked_positions_of(mask_time_indices, masked_positions)
        targets = self.quantizer(self._filter_banks(inputs, attention_mask).flatten(0, 1).index_select(0, positions))
        hidden = self.encode(inputs, attention_mask, mask_time_indices).hidden
        logits = self.classifier(hidden.flatten(0, 1).index_select(0, positions))
        num_masked = max(positions.numel(), 1)
        loss = cross_entropy_sum(logits, targets) / (num_masked if num_items_in_batch is None else num_items_in_batch)
        return BestRqOutput(
            loss=loss, figures=self._figures(logits.detach(), targets), logits=None if self.training else logits,
            targets=targets,
        )  # fmt: skip

    def _inputs(self, input_features: torch.Tensor | None, input_values: torch.Tensor | None) -> torch.Tensor:
        wanted = "input_values" if reads_waveforms(self.config.encoder_config) else "input_features"
        given = {"input_values": input_values, "input_features": input_features}
        if given[wanted] is None:
            raise ValueError(
                f"A {type(self.encoder).__name__} reads `{wanted}`, and the batch has none. Its feature extractor "
                "(`AutoFeatureExtractor`) makes them."
            )
        return given[wanted]

    def _filter_banks(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """What targets are made of, `(batch_size, num_frames, dim)`."""
        encoder = self.config.encoder_config
        if reads_waveforms(encoder):
            length = num_frames(encoder, inputs.shape[1])
            inputs = stacked_log_mel(inputs, NUM_MEL_BINS, samples_per_frame(encoder), length)
        sound = None if attention_mask is None else frames_of_sound(encoder, attention_mask, inputs.shape[1])
        return normalised_over_time(inputs, sound)

    @torch.no_grad()
    def _figures(self, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        num_masked = max(len(targets), 1)
        return {
            "code_perplexity": perplexity_of(targets, self.config.num_codes),
            "code_accuracy": (logits.argmax(-1) == targets).sum() / num_masked,
        }
