"""HuBERT: cluster the frames of all recordings, hide spans of sound, and say which clusters were there.

Paper: HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units, Hsu et al., 2021
(https://huggingface.co/papers/2106.07447). Reference code: https://github.com/facebookresearch/fairseq
(examples/hubert, models/hubert/hubert.py); transformers has the encoder and no loss.

The first iteration clusters cepstral coefficients (MFCC, 100 frames a second), the second the frames of a layer of the
encoder that the first has trained, and begins anew. Before the first step a pass over the corpus makes the features
and k-means their units; what a run goes on with, the units of each recording, lies in its checkpoints, and the
centroids in the model, so that held-out recordings have units too.

Also around `WavLMModel`: WavLM's loss is this one (https://huggingface.co/papers/2110.13900); what it mixes into the
recordings is not here.

Departures from the paper and its code: masks are drawn from the key of each recording and not for the batch; the loss
is divided by the hidden frames of the whole batch, over processes and accumulation steps; k-means sees at most
`kmeans_frames` frames instead of a tenth of the data; no layer is left out at random (LayerDrop), because processes
would wait for its gradients.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...errors import UserError
from ...losses import hubert_loss, perplexity_of, unit_logits
from ...modeling import units as unit_makers
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
from ...modeling.base import evaluating
from ...modeling.convolutions import channels_last_convolutions
from ...modeling.corpus_targets import NO_TARGET, CorpusTargetsMixin
from ...modeling.filter_banks import HOP, WINDOW, mfcc
from ...modeling.grouped import keep_narrow_groups_exact
from ...modeling.method import LearningRates, LossContext, Method


logger = logging.getLogger(__name__)

NUM_COEFFICIENTS = 39
# Terms of the loss that say which unit is there.
_NAMES = ("masked", "unmasked")


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    return {
        "constant": "it gives one answer to everything: lower `--learning_rate` or raise `--warmup_steps`, and look "
        "at the shares of the units in the log: where nearly all frames are in one, recordings are silent or alike",
        "one target": f"nearly all frames are in one of {config.num_units} units: recordings are silent or alike "
        "(`recipes/show_views.py --method hubert` plays some), or the frames are that units of an encoder are made of "
        "(`--unit_layer`)",
        "few directions": f"`num_units={config.num_units}` hold few frames apart: pass more, or go on with a second "
        "iteration (`--iterations 2`)",
    }


def _chance(config: PreTrainedConfig, context: LossContext) -> dict[str, float]:
    # where the convolutions give next to nothing
    entropy = context.entropy_of(config.num_units)
    levels = {f"loss_{name}": entropy for name in _NAMES if getattr(config, f"{name}_weight")}
    return {"loss": sum(getattr(config, f"{name[5:]}_weight") * level for name, level in levels.items()), **levels}


def _fitting(encoder: PreTrainedConfig) -> dict[str, Any]:
    """Units of the layer in the middle, the 6th of 12; convolutions that are normalised layer by layer learn as fast
    as the rest, as those of the paper's large models do."""
    fields = {"unit_layer": encoder.num_hidden_layers // 2}
    return fields | ({"feature_grad_mult": 1.0} if getattr(encoder, "feat_extract_norm", None) == "layer" else {})


METHOD = Method(
    title="HuBERT",
    modality="audio",
    learning_rates=LearningRates(narrow=1e-3, wide=5e-4, checkpoint=1e-4, per_256_samples=False),
    # small encoders in short runs learn of the frames they see what units are, before they can foretell any
    narrow_heads={"projection_dim": 64, "unmasked_weight": 1.0},
    fresh_encoder=_fitting,
    embedded_config={"speech": {"kmeans_restarts": 3}},
    collapse_hints=_collapse_hints,
    chance=_chance,
)


@strict
class HubertPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`HubertForPreTraining`]. The defaults are those of the first iteration of the base model
    (Section 4.2 and the authors' configuration).

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: one of waveforms, such as HuBERT, which it is when left out, or WavLM.
        unit_features (`str`, *optional*, defaults to `"mfcc"`):
            What units are clusters of: mfcc, the first iteration, or layer, the next: the frames of a layer of an
            encoder that was trained before ([`HubertForPreTraining.take_unit_encoder`]).
        unit_layer (`int`, *optional*, defaults to `6`):
            After which layer, of those of that encoder; 9 for the large model.
        unit_dim (`int`, *optional*):
            Width of that encoder. Left out, that of the encoder that is trained.
        unit_hop (`int`, *optional*):
            Samples from one of its frames to the next. Left out, as in the encoder that is trained.
        num_units (`int`, *optional*, defaults to `100`):
            Units, at least 2; 500 in the second iteration.
        kmeans_frames (`int`, *optional*, defaults to `2000000`):
            Frames that k-means sees, at most.
        kmeans_restarts (`int`, *optional*, defaults to `20`):
            Starts of k-means of which the best is taken.
        projection_dim (`int`, *optional*, defaults to `256`):
            Size of what is compared with the embeddings of the units.
        temperature (`float`, *optional*, defaults to `0.1`):
            Divisor of the cosines (τ), above 0.
        masked_weight, unmasked_weight, penalty_weight (`float`, *optional*, default to `1.0`, `0.0` and `10.0`):
            Weights of the terms: of hidden frames (α), of the others (1 - α), and of the mean square of the output of
            the convolutions.
        feature_grad_mult (`float`, *optional*, defaults to `0.1`):
            Factor of the gradient that reaches the convolutions; 1 for large models, and in the recipe for encoders
            with layer norm in the convolutions.
        mask_ratio (`float`, *optional*, defaults to `0.8`):
            Share of the frames in hidden spans, where these do not overlap, in (0, 1).
        mask_length (`int`, *optional*, defaults to `10`):
            Frames of a span: 200 ms.
        min_masks (`int`, *optional*, defaults to `2`):
            Spans of a recording at least.
        dropout (`float`, *optional*):
            Dropout during pre-training, everywhere in the encoder, in [0, 1). The exported encoder keeps its own
            configuration. Left out, the encoder's own values are used.
    """

    model_type = "hfssl_hubert"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="hubert")}

    encoder_config: dict | PreTrainedConfig | None = None
    unit_features: Literal["mfcc", "layer"] = "mfcc"
    unit_layer: int = 6
    unit_dim: int | None = None
    unit_hop: int | None = None
    num_units: int = 100
    kmeans_frames: int = 2_000_000
    kmeans_restarts: int = 20
    projection_dim: int = 256
    temperature: float = 0.1
    masked_weight: float = 1.0
    unmasked_weight: float = 0.0
    penalty_weight: float = 10.0
    feature_grad_mult: float = 0.1
    mask_ratio: float = 0.8
    mask_length: int = 10
    min_masks: int = 2
    dropout: float | None = None

    def validate_numbers(self):
        least = {"num_units": 2, "unit_layer": 0, "kmeans_frames": 1, "kmeans_restarts": 1, "projection_dim": 1,
                 "mask_length": 1, "min_masks": 0}  # fmt: skip
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(f"`{name}` must be at least {number}, got {getattr(self, name)}.")

    def validate_shares(self):
        if not self.temperature > 0.0:
            raise ValueError(f"`temperature` must be above 0, got {self.temperature}.")
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(f"`mask_ratio` is the share of frames to hide, between 0 and 1, got {self.mask_ratio}.")
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` is a probability in [0, 1), got {self.dropout}.")
        for name in ("masked_weight", "unmasked_weight", "penalty_weight", "feature_grad_mult"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        if self.masked_weight == self.unmasked_weight == 0.0:
            raise ValueError("`masked_weight` and `unmasked_weight` are both 0: nothing would be learned. Raise one.")

    @property
    def masking(self) -> dict[str, Any]:
        """The arguments of [`~hfssl.functional.spans.frame_masks`] that this method sets."""
        return {name: getattr(self, name) for name in ("mask_ratio", "mask_length", "min_masks")}


@dataclass
class HubertOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            The weighted sum of the terms.
        loss_terms (`dict[str, torch.FloatTensor]` of shape `()`):
            Without gradient, of those that have a weight: `masked` and `unmasked`, mean cross-entropy (nats) over the
            hidden frames and over the others, of which the entropy of the units is chance, and `penalty`.
        figures (`dict[str, torch.FloatTensor]` of shape `()`):
            Of the hidden frames: `unit_accuracy`, the share whose unit is the likeliest, and `unit_perplexity`, how
            many units are said to be there.
        logits (`torch.FloatTensor` of shape `(num_masked, num_units)`):
            Cosines divided by the temperature, of the hidden frames in the order of the flattened batch. Left out in
            training mode.
        units (`torch.LongTensor` of shape `(batch_size, num_frames)`):
            The unit of each frame, -100 for none. Left out in training mode.
    """

    loss: torch.FloatTensor | None = None
    loss_terms: dict[str, torch.FloatTensor] | None = None
    figures: dict[str, torch.FloatTensor] | None = None
    logits: torch.FloatTensor | None = None
    units: torch.LongTensor | None = None


class HubertForPreTraining(CorpusTargetsMixin, SSLAudioModel):
    config_class = HubertPreTrainingConfig
    method = METHOD
    figures = ("unit_accuracy", "unit_perplexity")
    paper = {
        "title": "HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units",
        "id": "2106.07447",
        "citation": "@article{hsu2021hubert,\n  title = {{HuBERT}: Self-Supervised Speech Representation Learning by "
        "Masked Prediction of Hidden Units},\n  author = {Hsu, Wei-Ning and Bolte, Benjamin and Tsai, Yao-Hung Hubert "
        "and Lakhotia, Kushal and Salakhutdinov, Ruslan and Mohamed, Abdelrahman},\n  journal = {IEEE/ACM "
        "Transactions on Audio, Speech, and Language Processing},\n  year = {2021}\n}",
    }

    def __init__(self, config: HubertPreTrainingConfig):
        super().__init__(config)
        encoder = config.encoder_config
        if not reads_waveforms(encoder):
            raise UserError(
                f"HuBERT makes units of waveforms, and a {encoder.model_type} reads filter banks. Choose an encoder "
                "of waveforms (hubert, wavlm), or pre-train this one with `recipes/best_rq.py`."
            )
        self.encoder = build_audio_encoder(encoder, config.dropout)
        self.final_proj = nn.Linear(encoder.hidden_size, config.projection_dim)
        self.unit_embeddings = nn.Parameter(torch.empty(config.num_units, config.projection_dim))
        dim = NUM_COEFFICIENTS if config.unit_features == "mfcc" else config.unit_dim or encoder.hidden_size
        self.register_buffer("unit_centroids", torch.empty(config.num_units, dim))
        # the same in all processes, and DDP would send them around before every forward
        self._ddp_params_and_buffers_to_ignore = ["unit_centroids"]
        units = {**dict.fromkeys(_NAMES, "nats"), "penalty": "square"}
        self.loss_units = {name: unit for name, unit in units.items() if getattr(config, f"{name}_weight")}
        self._unit_encoder: list[PreTrainedModel] = []  # in a list: it is no part of this model, and is not saved
        self.track_targets()
        self.post_init()

    @torch.no_grad()
    def initialize_weights(self):
        super().initialize_weights()
        init.uniform_(self.unit_embeddings)
        init.zeros_(self.unit_centroids)

    @property
    def num_targets(self) -> tuple[int, int]:
        return 1, self.config.num_units

    def targets_of(self, outputs: HubertOutput) -> torch.LongTensor:
        return outputs.units[outputs.units != NO_TARGET].unsqueeze(1)

    def loss_items(self, batch: dict[str, Any]) -> dict[str, torch.Tensor] | None:
        masked = super().loss_items(batch)
        if masked is None:
            return None
        mask, items = (
            batch["mask_time_indices"],
            {"masked": masked, "penalty": torch.tensor(len(batch["input_values"]))},
        )
        if "unmasked" in self.loss_units:
            items["unmasked"] = self._seen(mask, batch.get("attention_mask")).sum()
        return {name: items[name] for name in self.loss_units}

    def forward(
        self,
        input_values: torch.FloatTensor,
        attention_mask: torch.LongTensor | None = None,
        mask_time_indices: torch.BoolTensor | None = None,
        targets: torch.LongTensor | None = None,
        starts: torch.LongTensor | None = None,
        masked_positions: torch.LongTensor | None = None,
        num_items_in_batch: dict[str, torch.Tensor] | None = None,
        return_loss: bool = True,
    ) -> HubertOutput:
        r"""
        Args:
            input_values (`torch.FloatTensor` of shape `(batch_size, num_samples)`):
                Waveforms at 16 kHz.
            attention_mask (`torch.LongTensor` of shape `(batch_size, num_samples)`, *optional*):
                1 = sound, 0 = padding.
            mask_time_indices (`torch.BoolTensor` of shape `(batch_size, num_frames)`):
                Frames that are hidden and predicted; none of padding.
            targets (`torch.LongTensor` of shape `(batch_size, num_unit_frames)`, *optional*):
                Units of each recording, one every 160 samples of MFCC, or every `unit_hop` samples; -100 for none.
                `SSLTrainer` knows them. Left out in evaluation, they are made of the waveforms.
            starts (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                At which sample of its recording each waveform begins; at the first where left out.
            masked_positions (`torch.LongTensor` of shape `(num_masked,)`, *optional*):
                Indices of the hidden frames in the flattened batch. Found when left out, which makes a GPU wait for
                the CPU.
            num_items_in_batch (`dict[str, torch.Tensor]`, *optional*):
                For each term of the loss what it is divided by: frames, and recordings, of the whole batch (all
                processes, all accumulation steps).
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        config, items = self.config, num_items_in_batch or {}
        check_mask(mask_time_indices, "HuBERT")
        batch_size, length = mask_time_indices.shape
        if targets is None:
            if self.training:
                raise UserError(
                    "HuBERT learns the units of all recordings, and the batch does not say which ones its frames "
                    "have. Train it with `SSLTrainer` on an `ExactStream`, which makes them; in a loop of your own "
                    "pass `targets` of shape (batch_size, num_unit_frames) and call `model.take_targets`."
                )
            targets, starts = self.units_of(input_values, attention_mask), None
        units = self.units_of_frames(targets, length, starts)
        positions = masked_positions_of(mask_time_indices, masked_positions)
        frames = self.encode(input_values, attention_mask, mask_time_indices, config.feature_grad_mult)
        hidden, flat_units = self.final_proj(frames.hidden).flatten(0, 1), units.flatten()

        at_masked, right = hidden.index_select(0, positions), flat_units.index_select(0, positions)
        num_masked = max(positions.numel(), 1)
        terms, everywhere = {}, torch.ones_like(right)
        if "masked" in self.loss_units:
            divisor = items.get("masked", num_masked)
            terms["masked"] = hubert_loss(
                at_masked, self.unit_embeddings, right, everywhere, config.temperature, divisor
            )
        if "unmasked" in self.loss_units:
            seen = self._seen(mask_time_indices, attention_mask).flatten()
            divisor = items["unmasked"] if "unmasked" in items else seen.sum().clamp(min=1)
            terms["unmasked"] = hubert_loss(
                hidden, self.unit_embeddings, flat_units, seen, config.temperature, divisor
            )
        if "penalty" in self.loss_units:
            terms["penalty"] = self.feature_penalty(frames, attention_mask, items.get("penalty", batch_size))
        with torch.no_grad():
            logits = unit_logits(at_masked, self.unit_embeddings, config.temperature)
            likeliest = logits.argmax(-1)
            figures = {
                "unit_accuracy": (likeliest == right).sum() / num_masked,
                "unit_perplexity": perplexity_of(likeliest, config.num_units),
            }
        kept = {} if self.training else {"logits": logits, "units": units}
        return HubertOutput(**self.sum_terms(terms), figures=figures, **kept)

    def _seen(self, mask: torch.BoolTensor, attention_mask: torch.Tensor | None) -> torch.BoolTensor:
        """Frames of sound that are not hidden."""
        if attention_mask is None:
            return ~mask
        return ~mask & frames_of_sound(self.config.encoder_config, attention_mask, mask.shape[1])

    def units_of_frames(
        self, targets: torch.LongTensor, length: int, starts: torch.LongTensor | None = None
    ) -> torch.LongTensor:
        """The unit of each frame of the encoder: that which begins with its first sample, or the last before it.

        Args:
            targets (`torch.LongTensor` of shape `(batch_size, num_unit_frames)`):
                Units of whole recordings.
            length (`int`):
                Frames.
            starts (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                The sample with which the first frame begins.

        Returns:
            `torch.LongTensor` of shape `(batch_size, length)`: -100 of frames behind the last unit.
        """
        first = samples_per_frame(self.config.encoder_config) * torch.arange(length, device=targets.device)
        samples = first.expand(len(targets), -1)
        if starts is not None:
            samples = samples + starts.unsqueeze(1)
        places = samples.div(self.unit_hop, rounding_mode="floor")
        last = targets.shape[1] - 1
        return targets.gather(1, places.clamp(max=last)).masked_fill(places > last, NO_TARGET)

    @property
    def unit_hop(self) -> int:
        """Samples from one unit to the next."""
        if self.config.unit_features == "mfcc":
            return HOP
        return self.config.unit_hop or samples_per_frame(self.config.encoder_config)

    # -- units ----------------------------------------------------------------------------------------------------

    @property
    def num_target_passes(self) -> int:
        return 1

    def take_unit_encoder(self, encoder: PreTrainedModel | str | Path) -> None:
        """Say whose frames units are made of, with `unit_features="layer"`: an encoder, or the folder of one.

        It is no part of this model, and not saved with it: once units are made only held-out recordings need it.
        """
        if not isinstance(encoder, PreTrainedModel):
            encoder = AutoModel.from_pretrained(encoder, dtype=torch.float32)
        config, wanted = encoder.config, self.unit_centroids.shape[1]
        if not reads_waveforms(config) or config.hidden_size != wanted:
            raise UserError(
                f"Units are to be made of frames that are {wanted} wide, by an encoder of waveforms, and this is a "
                f"{config.model_type} that is {config.hidden_size} wide. Pass its width as `unit_dim`, or another one."
            )
        if config.num_hidden_layers < self.config.unit_layer or samples_per_frame(config) != self.unit_hop:
            raise UserError(
                f"Units are to be made after layer {self.config.unit_layer}, one every {self.unit_hop} samples, and "
                f"this encoder has {config.num_hidden_layers} layers and a frame every {samples_per_frame(config)} "
                "samples. Pass `unit_layer` and `unit_hop` that fit it."
            )
        keep_narrow_groups_exact(encoder)
        self._unit_encoder = [encoder.requires_grad_(False).eval()]

    @torch.no_grad()
    def corpus_features(self, batch: dict[str, torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        """What units are clusters of: for each recording `(num_unit_frames, dim)`."""
        waveforms, attention_mask = batch["input_values"], batch.get("attention_mask")
        lengths = [waveforms.shape[1]] * len(waveforms)
        if attention_mask is not None:
            lengths = attention_mask.sum(1).tolist()
        if self.config.unit_features == "mfcc":
            waveforms = waveforms.float().cpu()
            features = [
                mfcc(waveform[:length]) if length >= WINDOW else torch.zeros(0, NUM_COEFFICIENTS)
                for waveform, length in zip(waveforms, lengths, strict=True)
            ]
            return {"frames": features}
        if not self._unit_encoder:
            raise UserError(
                "Units are to be made of the frames of an encoder, and there is none: call "
                "`model.take_unit_encoder(folder)` with the result of the first iteration. "
                '`recipes/hubert.py --iterations 2` does both, and `unit_features="mfcc"` needs none.'
            )
        [encoder] = self._unit_encoder
        encoder.to(self.device)
        with channels_last_convolutions(encoder):
            hidden = encoder(waveforms.to(self.device), attention_mask=attention_mask, output_hidden_states=True)
        frames = hidden.hidden_states[self.config.unit_layer].half()
        counts = [max(num_frames(encoder.config, length), 0) for length in lengths]
        return {"frames": [rows[:count] for rows, count in zip(frames, counts, strict=True)]}

    def make_targets(self, features: dict[str, Any], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        clips, config = features["frames"], self.config
        frames = unit_makers.sample_of_frames(clips, config.kmeans_frames, seed)
        centroids = unit_makers.fit_units(frames, config.num_units, seed, config.kmeans_restarts)
        targets = [unit_makers.nearest_units(np.asarray(clip), centroids) for clip in clips]
        logger.info("%s, from %s frames.", unit_makers.describe_units(targets, config.num_units), f"{len(frames):,}")
        return {"targets": targets}, {"unit_centroids": centroids}

    def units_of(self, input_values: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.LongTensor:
        """Units of waveforms by the centroids of the training, `(batch_size, num_unit_frames)`; -100 is none."""
        inputs = {"input_values": input_values}
        inputs |= {} if attention_mask is None else {"attention_mask": attention_mask}
        with evaluating(self):
            clips = self.corpus_features(inputs)["frames"]
        centroids = self.unit_centroids.float().cpu().numpy()
        units = [torch.from_numpy(unit_makers.nearest_units(clip.cpu().numpy(), centroids)) for clip in clips]
        padded = nn.utils.rnn.pad_sequence(units, batch_first=True, padding_value=NO_TARGET)
        return padded.to(input_values.device)
