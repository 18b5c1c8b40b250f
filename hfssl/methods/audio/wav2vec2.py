"""wav2vec 2.0: hide spans of sound, and tell the learned codes of what was there from those of other hidden spans.

Paper: wav2vec 2.0: A Framework for Self-Supervised Learning of Speech Representations, Baevski et al., 2020
(https://huggingface.co/papers/2006.11477). Reference code: https://github.com/facebookresearch/fairseq
(models/wav2vec/wav2vec2.py); `Wav2Vec2ForPreTraining` in transformers gives the same loss, summed over hidden frames.

The output of the convolutions is turned into codes: one of each of several codebooks, chosen by Gumbel softmax. From
what the transformer makes of the sound with spans hidden, the code of each hidden frame is to be told from those of
other hidden frames of the same recording. A second term keeps all codes in use.

Departures from the paper and its code: masks, negatives and Gumbel noise are drawn from the key of each recording and
not for the batch, so that no recording loses masks because of its neighbours; both terms are divided by the hidden
frames of the whole batch, over processes and accumulation steps; codes are chosen, and counted for the second term, at
hidden frames only, as in transformers; no layer is left out at random (LayerDrop), because processes would wait for
its gradients.
"""

import math
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

from ...errors import UserError
from ...functional.keyed import Use
from ...functional.keyed_tensors import gumbel
from ...losses import at_least_float32, code_perplexity, full_precision, wav2vec2_loss
from ...modeling.audio import (
    SSLAudioModel,
    build_audio_encoder,
    check_mask,
    masked_positions_of,
    reads_waveforms,
)
from ...modeling.distributed import all_reduce_with_grad, world_size
from ...modeling.method import LearningRates, Method
from ...modeling.progress import ProgressMixin


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    few_codes = (
        "few codes are in use (`code_perplexity` in the log), so that negatives are the same as what is to be found: "
        f"raise `--diversity_weight` (it is {config.diversity_weight}), lower `--learning_rate` or raise "
        "`--warmup_steps`"
    )
    return {
        "constant": few_codes,
        "one target": few_codes,
        "few directions": "the codes tell few frames apart: train for longer, raise `--num_negatives` "
        f"(it is {config.num_negatives}), or put more seconds of sound into a step",
    }


def _chance(config: PreTrainedConfig, context: Any) -> dict[str, float]:
    # where all codes are in use equally often, and the convolutions give next to nothing
    contrastive = math.log(1 + config.num_negatives)
    return {"loss": config.contrastive_weight * contrastive, "loss_contrastive": contrastive}


def _as_large_models(encoder: PreTrainedConfig) -> dict[str, float]:
    """Of encoders whose convolutions are normalised layer by layer, as the paper's large ones are."""
    is_large = getattr(encoder, "feat_extract_norm", None) == "layer"
    return {} if not is_large else {"penalty_weight": 0.0, "feature_grad_mult": 1.0}


METHOD = Method(
    title="wav2vec 2.0",
    modality="audio",
    learning_rates=LearningRates(narrow=1e-3, wide=5e-4, checkpoint=1e-4, per_256_samples=False),
    narrow_heads={"num_codes": 64, "code_dim": 64, "projection_dim": 64},
    fresh_encoder=_as_large_models,
    collapse_hints=_collapse_hints,
    chance=_chance,
)


@strict
class Wav2vec2PreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`Wav2vec2ForPreTraining`]. The defaults are those of the base model (Section 4.2 and the authors'
    configuration).

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: one of waveforms, such as wav2vec 2.0, which it is when left out, or
            Wav2Vec2-Conformer.
        num_codebooks (`int`, *optional*, defaults to `2`):
            Codebooks (G), of each of which a frame gets a code.
        num_codes (`int`, *optional*, defaults to `320`):
            Codes of each (V).
        code_dim (`int`, *optional*, defaults to `256`):
            Size of the codes of a frame side by side, a multiple of `num_codebooks`.
        projection_dim (`int`, *optional*, defaults to `256`):
            Size of what is compared.
        num_negatives (`int`, *optional*, defaults to `100`):
            Hidden frames of the same recording that each is told from (K).
        temperature (`float`, *optional*, defaults to `0.1`):
            Divisor of the cosines (κ), above 0.
        gumbel_start, gumbel_end (`float`, *optional*, default to `2.0` and `0.5`):
            Temperature of the choice of codes at the start, and at the end of its way down; 0.1 for large models.
        gumbel_share (`float`, *optional*, defaults to `0.7`):
            Share of the run in which it goes from one to the other, by the same factor in each step: 277,000 of
            400,000 steps with the paper's factor of 0.999995.
        contrastive_weight, diversity_weight, penalty_weight (`float`, *optional*, default to `1.0`, `0.1` and `10.0`):
            Weights of the terms: what is found, the use of the codes (α), and the mean square of the output of the
            convolutions; 0 for large models, and in the recipe for encoders with layer norm in the convolutions.
        feature_grad_mult (`float`, *optional*, defaults to `0.1`):
            Factor of the gradient that reaches the convolutions; 1 for large models, and in the recipe likewise.
        mask_ratio (`float`, *optional*, defaults to `0.65`):
            Share of the frames in hidden spans, where these do not overlap, in (0, 1).
        mask_length (`int`, *optional*, defaults to `10`):
            Frames of a span: 200 ms.
        min_masks (`int`, *optional*, defaults to `2`):
            Spans of a recording at least.
        dropout (`float`, *optional*):
            Dropout during pre-training, everywhere in the encoder and on the features that become codes, in [0, 1).
            The exported encoder keeps its own configuration. Left out, the encoder's own values are used, 0.1 for the
            features.
    """

    model_type = "hfssl_wav2vec2"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="wav2vec2")}

    encoder_config: dict | PreTrainedConfig | None = None
    num_codebooks: int = 2
    num_codes: int = 320
    code_dim: int = 256
    projection_dim: int = 256
    num_negatives: int = 100
    temperature: float = 0.1
    gumbel_start: float = 2.0
    gumbel_end: float = 0.5
    gumbel_share: float = 0.7
    contrastive_weight: float = 1.0
    diversity_weight: float = 0.1
    penalty_weight: float = 10.0
    feature_grad_mult: float = 0.1
    mask_ratio: float = 0.65
    mask_length: int = 10
    min_masks: int = 2
    dropout: float | None = None

    def validate_numbers(self):
        least = {"num_codebooks": 1, "num_codes": 2, "projection_dim": 1, "num_negatives": 1, "mask_length": 1}
        for name, number in {**least, "min_masks": 0}.items():
            if getattr(self, name) < number:
                raise ValueError(f"`{name}` must be at least {number}, got {getattr(self, name)}.")
        if self.code_dim < 1 or self.code_dim % self.num_codebooks:
            raise ValueError(
                f"`code_dim` is divided among the {self.num_codebooks} codebooks: pass a multiple of "
                f"`num_codebooks`, got {self.code_dim}."
            )

    def validate_temperatures(self):
        for name in ("temperature", "gumbel_start", "gumbel_end"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")

    def validate_shares(self):
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(f"`mask_ratio` is the share of frames to hide, between 0 and 1, got {self.mask_ratio}.")
        if not 0.0 < self.gumbel_share <= 1.0:
            raise ValueError(f"`gumbel_share` is a share of the run, above 0 and up to 1, got {self.gumbel_share}.")
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` is a probability in [0, 1), got {self.dropout}.")
        for name in ("contrastive_weight", "diversity_weight", "penalty_weight", "feature_grad_mult"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")

    @property
    def masking(self) -> dict[str, Any]:
        """The arguments of [`~hfssl.functional.spans.frame_masks`] that this method sets."""
        names = ("mask_ratio", "mask_length", "min_masks", "num_negatives")
        return {name: getattr(self, name) for name in names}


@dataclass
class Wav2vec2Output(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            The weighted sum of the terms.
        loss_terms (`dict[str, torch.FloatTensor]` of shape `()`):
            Without gradient: `contrastive`, mean cross-entropy (nats) over the hidden frames, of which
            log(1 + num_negatives) is chance; `diversity`, the share of the codes that are not in use; and `penalty`,
            where it has a weight.
        figures (`dict[str, torch.FloatTensor]` of shape `()`):
            `code_perplexity`, how many codes of all codebooks are in use, `contrastive_accuracy`, the share of the
            hidden frames to which the right one is the nearest, and `gumbel_temperature`.
        projected_states (`torch.FloatTensor` of shape `(batch_size, num_frames, projection_dim)`):
            What is said of hidden frames. Left out in training mode.
        codes (`torch.LongTensor` of shape `(num_masked, num_codebooks)`):
            The codes of the hidden frames, in the order of the flattened batch.
    """

    loss: torch.FloatTensor | None = None
    loss_terms: dict[str, torch.FloatTensor] | None = None
    figures: dict[str, torch.FloatTensor] | None = None
    projected_states: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None


class GumbelQuantizer(nn.Module):
    """Chooses a code from each codebook. Its weights have the names and shapes of transformers' quantizer.

    Args:
        dim (`int`):
            Size of what codes are chosen by.
        num_codebooks, num_codes, code_dim (`int`):
            See [`Wav2vec2PreTrainingConfig`].
    """

    def __init__(self, dim: int, num_codebooks: int, num_codes: int, code_dim: int):
        super().__init__()
        self.num_codebooks, self.num_codes = num_codebooks, num_codes
        self.codevectors = nn.Parameter(torch.empty(1, num_codebooks * num_codes, code_dim // num_codebooks))
        self.weight_proj = nn.Linear(dim, num_codebooks * num_codes)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        init.normal_(self.weight_proj.weight)
        init.zeros_(self.weight_proj.bias)
        init.uniform_(self.codevectors)

    def forward(
        self, features: torch.Tensor, noise: torch.Tensor | None = None, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor, torch.LongTensor]:
        """Choose codes.

        Args:
            features (`torch.Tensor` of shape `(num_frames, dim)`):
                What they are chosen by.
            noise (`torch.Tensor` of shape `(num_frames, num_codebooks * num_codes)`, *optional*):
                Gumbel noise. Left out, the likeliest code is chosen, by which no gradient goes.
            temperature (`float`, *optional*, defaults to `1.0`):
                Of the distribution by which the gradient goes.

        Returns:
            `tuple`: the codes side by side, `(num_frames, code_dim)`; the distributions of which they are drawn,
            `(num_frames, num_codebooks, num_codes)`, without noise the choice itself; and the numbers of the codes,
            `(num_frames, num_codebooks)`.
        """
        with full_precision(features):
            # in halves another code would often be the likeliest
            weight, bias = (at_least_float32(each) for each in (self.weight_proj.weight, self.weight_proj.bias))
            scores = F.linear(at_least_float32(features), weight, bias)
            scores = scores.unflatten(1, (self.num_codebooks, self.num_codes))
            if noise is None:
                numbers = scores.argmax(-1)
                chosen = shares = _one_hot(numbers, scores)
            else:
                soft = ((scores + noise.view_as(scores)) / temperature).softmax(-1)
                numbers = soft.argmax(-1)
                # the choice itself forward, the distribution backward
                chosen = _one_hot(numbers, scores) + (soft - soft.detach())
                shares = scores.softmax(-1)
            books = at_least_float32(self.codevectors).unflatten(1, (self.num_codebooks, self.num_codes))[0]
            vectors = torch.einsum("ngv,gvd->ngd", chosen, books)
        return vectors.flatten(1), shares, numbers


def _one_hot(numbers: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
    # torch's own looks at the numbers first, for which a GPU is waited for
    return torch.zeros_like(scores).scatter_(-1, numbers.unsqueeze(-1), 1.0)


class Wav2vec2ForPreTraining(ProgressMixin, SSLAudioModel):
    config_class = Wav2vec2PreTrainingConfig
    method = METHOD
    figures = ("code_perplexity", "contrastive_accuracy", "gumbel_temperature")
    paper = {
        "title": "wav2vec 2.0: A Framework for Self-Supervised Learning of Speech Representations",
        "id": "2006.11477",
        "citation": "@inproceedings{baevski2020wav2vec,\n  title = {wav2vec 2.0: A Framework for Self-Supervised "
        "Learning of Speech Representations},\n  author = {Baevski, Alexei and Zhou, Henry and Mohamed, Abdelrahman "
        "and Auli, Michael},\n  booktitle = {NeurIPS},\n  year = {2020}\n}",
    }

    def __init__(self, config: Wav2vec2PreTrainingConfig):
        super().__init__(config)
        encoder = config.encoder_config
        if not reads_waveforms(encoder):
            raise UserError(
                f"wav2vec 2.0 makes codes of the output of convolutions, and a {encoder.model_type} has none: it "
                "reads filter banks. Choose an encoder of waveforms (wav2vec2, wav2vec2-conformer), or pre-train this "
                "one with `recipes/best_rq.py`."
            )
        self.encoder = build_audio_encoder(encoder, config.dropout)
        self.dropout_features = nn.Dropout(0.1 if config.dropout is None else config.dropout)
        dim = encoder.conv_dim[-1]
        self.quantizer = GumbelQuantizer(dim, config.num_codebooks, config.num_codes, config.code_dim)
        self.project_hid = nn.Linear(encoder.hidden_size, config.projection_dim)
        self.project_q = nn.Linear(config.code_dim, config.projection_dim)
        self.loss_units = {"contrastive": "nats", "diversity": "share"}
        if config.penalty_weight:
            self.loss_units["penalty"] = "square"
        self.track_progress()
        self.post_init()

    @torch.no_grad()
    def initialize_weights(self):
        super().initialize_weights()
        self.quantizer.reset_parameters()
        for layer in (self.project_hid, self.project_q):  # as a linear layer begins; 0.02 would make all alike
            bound = 1 / math.sqrt(layer.in_features)
            init.uniform_(layer.weight, -bound, bound)
            init.uniform_(layer.bias, -bound, bound)

    def schedules(self, progress: float) -> dict[str, float]:
        config = self.config
        share = min(progress / config.gumbel_share, 1.0)
        return {"gumbel_temperature": config.gumbel_start * (config.gumbel_end / config.gumbel_start) ** share}

    @property
    def num_targets(self) -> tuple[int, int]:
        return self.config.num_codebooks, self.config.num_codes

    def targets_of(self, outputs: Wav2vec2Output) -> torch.LongTensor:
        return outputs.codes

    def loss_items(self, batch: dict[str, Any]) -> dict[str, torch.Tensor] | None:
        masked = super().loss_items(batch)
        if masked is None:
            return None
        items = {"contrastive": masked, "diversity": masked}
        return items | ({"penalty": torch.tensor(len(batch["input_values"]))} if self.config.penalty_weight else {})

    def forward(
        self,
        input_values: torch.FloatTensor,
        attention_mask: torch.LongTensor | None = None,
        mask_time_indices: torch.BoolTensor | None = None,
        negative_indices: torch.Tensor | None = None,
        sample_keys: torch.LongTensor | None = None,
        masked_positions: torch.LongTensor | None = None,
        num_items_in_batch: dict[str, torch.Tensor] | None = None,
        return_loss: bool = True,
    ) -> Wav2vec2Output:
        r"""
        Args:
            input_values (`torch.FloatTensor` of shape `(batch_size, num_samples)`):
                Waveforms at 16 kHz.
            attention_mask (`torch.LongTensor` of shape `(batch_size, num_samples)`, *optional*):
                1 = sound, 0 = padding.
            mask_time_indices (`torch.BoolTensor` of shape `(batch_size, num_frames)`):
                Frames that are hidden and predicted; none of padding.
            negative_indices (`torch.Tensor` of shape `(batch_size, num_frames, num_negatives)`):
                For each hidden frame the numbers of other hidden frames of its recording.
            sample_keys (`torch.LongTensor` of shape `(batch_size,)`):
                Key of each recording for this pass, from which the noise of the choice of codes is drawn. Needed in
                training mode.
            masked_positions (`torch.LongTensor` of shape `(num_masked,)`, *optional*):
                Indices of the hidden frames in the flattened batch. Found when left out, which makes a GPU wait for
                the CPU.
            num_items_in_batch (`dict[str, torch.Tensor]`, *optional*):
                For each term of the loss what it is divided by: hidden frames, and recordings, of the whole batch (all
                processes, all accumulation steps).
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        self.require_advanced()
        config = self.config
        check_mask(mask_time_indices, "wav2vec 2.0")
        self._check(negative_indices, sample_keys)
        positions = masked_positions_of(mask_time_indices, masked_positions)
        batch_size, length = mask_time_indices.shape
        frames = self.encode(input_values, attention_mask, mask_time_indices, config.feature_grad_mult)
        predictions = self.project_hid(frames.hidden)

        features = self.dropout_features(frames.features).flatten(0, 1).index_select(0, positions)
        noise = None
        temperature = self.schedules(self.progress)["gumbel_temperature"]
        if self.training:
            recordings = positions.div(length, rounding_mode="floor")
            keys = sample_keys.index_select(0, recordings)
            noise = gumbel(Use.GUMBEL, keys, positions.remainder(length), config.num_codebooks * config.num_codes)
        vectors, shares, numbers = self.quantizer(features, noise, temperature)
        targets = self._spread(self.project_q(vectors.to(self.project_q.weight.dtype)), positions, batch_size, length)
        places = config.num_codes ** torch.arange(config.num_codebooks, device=numbers.device)
        codes = self._spread((numbers * places).sum(1), positions, batch_size, length)

        items = num_items_in_batch or {}
        num_masked = max(positions.numel(), 1)
        contrastive, is_nearest = wav2vec2_loss(
            predictions, targets, negative_indices, positions, config.temperature, codes, items.get("contrastive")
        )
        # codes of the processes are counted together, those of accumulation steps apart
        summed = all_reduce_with_grad if self.training and world_size() > 1 else None
        perplexity = code_perplexity(shares, summed).sum()
        total = config.num_codebooks * config.num_codes
        terms = {
            "contrastive": contrastive,
            "diversity": (total - perplexity) / total * num_masked / items.get("diversity", num_masked),
        }
        if config.penalty_weight:
            terms["penalty"] = self.feature_penalty(frames, attention_mask, items.get("penalty", batch_size))
        return Wav2vec2Output(
            **self.sum_terms(terms),
            figures={
                "code_perplexity": perplexity.detach(),
                "contrastive_accuracy": is_nearest.sum() / num_masked,
                "gumbel_temperature": torch.full((), temperature, device=perplexity.device),
            },
            projected_states=None if self.training else predictions,
            codes=numbers,
        )

    def _check(self, negative_indices: torch.Tensor | None, sample_keys: torch.Tensor | None) -> None:
        if negative_indices is None:
            raise UserError(
                "wav2vec 2.0 tells hidden frames from others, and the batch does not say from which: "
                "`negative_indices` is missing. `hfssl.functional.spans.frame_masks(lengths, keys, "
                "**model.config.masking)` draws them with the masks."
            )
        if self.training and sample_keys is None:
            raise UserError(
                "wav2vec 2.0 draws the noise by which codes are chosen from the key of each recording, and the batch "
                "has no `sample_keys` of shape (batch_size,). `hfssl.functional.keyed.key` makes some, new ones for "
                "each pass over the data."
            )

    @staticmethod
    def _spread(rows: torch.Tensor, positions: torch.Tensor, batch_size: int, length: int) -> torch.Tensor:
        """Rows of hidden frames to `(batch_size, length, ...)`, with 0 at the others."""
        spread = rows.new_zeros(batch_size * length, *rows.shape[1:])
        return spread.index_copy(0, positions, rows).unflatten(0, (batch_size, length))
