"""Towers: a stock encoder of any modality, one vector a sample, and a projection to where modalities are compared."""

import inspect
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2TextConfig,
    Siglip2TextModel,
    SiglipTextConfig,
    SiglipTextModel,
)
from transformers.utils import ModelOutput

from ..errors import UserError
from .audio import build_audio_encoder, frames_of_sound, num_frames, reads_waveforms
from .base import drop_pooler
from .lighter import lighten
from .pooling import check_pooling, is_convolutional, masked_mean, num_own_tokens, outputs_for, pool_features
from .trial import FAILURES, blank_image, is_grid, once_per_config, sizes_to_try
from .vision import load_vision_encoder, select


logger = logging.getLogger(__name__)

# The vector of a sample that the encoder itself makes, as CLIP and SigLIP, ViT and BERT do.
POOLER = "pooler"
# Of texts that are read by their last token: they have to be as long as the encoder was made for, padding included.
_READ_BY_LAST_TOKEN = ("siglip_text_model", "siglip2_text_model")
# Encoders that `AutoModel` does not know.
_OF_CONFIG = {SiglipTextConfig: SiglipTextModel, Siglip2TextConfig: Siglip2TextModel}
_MODALITIES = ("image", "text", "audio")


@dataclass(frozen=True)
class TowerLayout:
    """What an encoder gives.

    Args:
        pooling (`str`):
            How its vector of a sample is made.
        dim (`int`):
            Size of that vector.
        is_flat (`bool`):
            Whether the encoder gives it as it is, so that stock models of two encoders take it.
        unused (`frozenset[str]`):
            Parameters that have no part in it.
    """

    pooling: str
    dim: int
    is_flat: bool
    unused: frozenset[str]


class Tower(nn.Module):
    """An encoder, its vector of a sample, and a projection.

    Args:
        modality (`str`):
            image, text or audio.
        config (`PreTrainedConfig`):
            Of the encoder.
        pooling (`str`, *optional*):
            See [`tower_layout`].
        projection_dim (`int`, *optional*):
            Size of an embedding. Left out, the encoder's vector is one.
        is_frozen (`bool`, *optional*, defaults to `False`):
            Whether the encoder stays as it is: in evaluation mode, without gradient. The projection learns.
        patch_dropout (`float`, *optional*, defaults to 0.0):
            Share of the patches of each image that are left out in training.
    """

    def __init__(
        self,
        modality: str,
        config: PreTrainedConfig,
        pooling: str | None = None,
        projection_dim: int | None = None,
        is_frozen: bool = False,
        patch_dropout: float = 0.0,
    ):
        super().__init__()
        layout = tower_layout(config, modality, pooling)
        self.modality, self.pooling, self.is_frozen = modality, layout.pooling, is_frozen
        self.encoder_config, self.is_flat, self.unused = config, layout.is_flat, layout.unused
        self.encoder = _build(config, modality, layout.pooling)
        lighten(self.encoder)
        self.main_input = self.encoder.main_input_name
        self.reads_last_token = config.model_type in _READ_BY_LAST_TOKEN
        # SigLIP sees padding as it sees words, and its tokenizers give no mask; CLIP reads texts up to their end, and
        # to look for padding behind it would make a GPU wait
        self.takes_mask = (
            modality != "image"
            and not self.reads_last_token
            and config.model_type != "clip_text_model"
            and "attention_mask" in inspect.signature(self.encoder.forward).parameters
        )
        self.projection = nn.Linear(layout.dim, projection_dim, bias=False) if projection_dim else nn.Identity()
        self.dim = projection_dim or layout.dim
        self.is_convolutional = modality == "image" and is_convolutional(config)
        # without this token CLIP reads the first one instead, which is the same in every text
        self.end_token = config.eos_token_id if config.model_type == "clip_text_model" else None
        if self.end_token is not None and self.end_token >= config.vocab_size:
            raise UserError(
                f"The text encoder reads the vector of a text from its end token {self.end_token}, which its "
                f"vocabulary of {config.vocab_size} tokens has not. Pass the tokenizer's `eos_token_id` in its "
                "configuration."
            )
        self._has_seen_texts = False
        if patch_dropout:
            _check_patch_dropout(config, modality)
            self.encoder.embeddings.register_forward_hook(_PatchDropout(patch_dropout, num_own_tokens(config)))

    def train(self, mode: bool = True):
        super().train(mode)
        if self.is_frozen:
            self.encoder.eval()
        return self

    def forward(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Samples to embeddings `(batch_size, dim)`.

        Args:
            inputs (`torch.Tensor` of shape `(batch_size, ...)`):
                What the encoder calls its main input.
            attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*):
                1 = content, 0 = padding.
        """
        options: dict[str, Any] = {}
        if self.takes_mask and attention_mask is not None:
            options["attention_mask"] = attention_mask
        if self.modality == "text":
            self._check_texts(inputs)
        if self.is_convolutional:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.no_grad() if self.is_frozen else nullcontext():
            outputs = self.encoder(inputs, **options, **outputs_for(self.pooling))
            features = _pool(outputs, self.encoder_config, self.modality, self.pooling, options.get("attention_mask"))
        return self.projection(features)

    def _check_texts(self, input_ids: torch.Tensor) -> None:
        """Refuse texts that the encoder would read wrongly, and say nothing."""
        length = input_ids.shape[1]
        if self.reads_last_token and length != self.encoder_config.max_position_embeddings:
            raise UserError(
                f"This {self.encoder_config.model_type} reads a text by its last token and was made for "
                f"{self.encoder_config.max_position_embeddings} tokens, got {length}. Pad all texts to that length: "
                '`tokenizer(..., padding="max_length")`.'
            )
        # 2 stands for the highest token, whatever it is, in the oldest checkpoints
        if self.end_token not in (None, 2) and not self._has_seen_texts:
            self._has_seen_texts = True  # once: it makes a GPU wait
            self._check_ends(input_ids)

    @torch.compiler.disable
    def _check_ends(self, input_ids: torch.Tensor) -> None:
        without = int((input_ids != self.end_token).all(1).sum())
        if without:
            raise UserError(
                f"{without} of {len(input_ids)} texts lack the token {self.end_token} at which the text encoder reads "
                "them: they were made by another tokenizer, or cut without it. Pass the tokenizer that goes with the "
                "encoder, or its `eos_token_id` in the configuration of the encoder."
            )


@once_per_config
def tower_layout(config: PreTrainedConfig, modality: str, pooling: str | None = None) -> TowerLayout:
    """What an encoder gives, by running it on a blank sample and going back from there.

    Args:
        config (`PreTrainedConfig`):
            Of the encoder.
        modality (`str`):
            image, text or audio.
        pooling (`str`, *optional*):
            pooler takes the vector that the encoder itself makes; the others are those of
            [`~hfssl.modeling.pooling.pool_features`], of texts and recordings mean alone. Left out: pooler where there
            is one, else the default of the encoder for images, and mean for texts and recordings.

    Raises:
        UserError: if it has none such, or does not run.
    """
    if modality not in _MODALITIES:
        raise UserError(f"There are no encoders of {modality!r} here. Choose two of {', '.join(_MODALITIES)}.")
    reasons = []
    for device in ("meta", "cpu"):
        for size in sizes_to_try(config) if modality == "image" else (0,):
            try:
                return _layout(config, modality, pooling, device, size)
            except FAILURES as error:
                reasons.append(error)
    if isinstance(reasons[0], UserError):
        raise reasons[0]
    reason = " ".join(str(reasons[-1]).split())[:200].rstrip(". ")
    raise UserError(f"This {config.model_type} does not run on a sample of {modality} ({reason}). Choose another.")


def _layout(config: PreTrainedConfig, modality: str, pooling: str | None, device: str, size: int) -> TowerLayout:
    with torch.random.fork_rng(devices=[]), torch.device(device):
        encoder = _build(config, modality, pooling).float().eval()
        outputs = encoder(_blank(config, modality, size), **outputs_for(pooling))
    own = outputs.get("pooler_output")
    if pooling is None and own is not None and own.flatten(1).shape[0] == 1:
        pooling = POOLER
    elif pooling is None:
        pooling = check_pooling(config) if modality == "image" else "mean"
    if pooling == POOLER and own is None:
        raise UserError(f"A {config.model_type} makes no vector of a sample by itself. Choose mean.")
    features = _pool(outputs, config, modality, pooling)
    features.sum().backward()
    unused = frozenset(name for name, parameter in encoder.named_parameters() if parameter.grad is None)
    pooler = getattr(encoder, "pooler", None)
    if pooling != POOLER and pooler is not None:  # it is left out
        unused = frozenset(name for name in unused if not name.startswith("pooler."))
    return TowerLayout(pooling, features.shape[1], pooling == POOLER and own.ndim == 2, unused)


def _build(config: PreTrainedConfig, modality: str, pooling: str | None) -> PreTrainedModel:
    if modality == "audio" and not is_grid(config):
        return build_audio_encoder(config)
    encoder = _OF_CONFIG[type(config)](config) if type(config) in _OF_CONFIG else AutoModel.from_config(config)
    return encoder if pooling in (None, POOLER) else drop_pooler(encoder)


def _blank(config: PreTrainedConfig, modality: str, size: int) -> torch.Tensor:
    if modality == "image" or is_grid(config):
        return blank_image(config, size, None)
    if modality == "text":
        return torch.zeros(1, 4, dtype=torch.long)
    if not reads_waveforms(config):
        return torch.zeros(1, 8, config.feature_projection_input_dim)
    length = 400
    while num_frames(config, length) < 4:
        length *= 2
    return torch.zeros(1, length)


def _pool(
    outputs: ModelOutput,
    config: PreTrainedConfig,
    modality: str,
    pooling: str,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    if pooling == POOLER:
        return outputs.pooler_output.flatten(1)
    if modality == "image":
        return pool_features(outputs, config, pooling)
    if pooling != "mean":
        raise UserError(f"Of {modality} there are the poolings pooler and mean, got {pooling!r}.")
    hidden = outputs.last_hidden_state
    if modality == "audio" and attention_mask is not None:
        attention_mask = frames_of_sound(config, attention_mask, hidden.shape[1])
    return masked_mean(hidden, attention_mask)


class _PatchDropout:
    """Hook on the embeddings of a Vision Transformer: some patches of each image, with their positions, go on."""

    def __init__(self, rate: float, num_own: int):
        self.rate, self.num_own = rate, num_own

    def __call__(self, embeddings: nn.Module, args: tuple, tokens: torch.Tensor) -> torch.Tensor:
        if not embeddings.training:
            return tokens
        batch_size, length, _ = tokens.shape
        number = length - self.num_own
        kept = max(round(number * (1 - self.rate)), 1)
        order = torch.rand(batch_size, number, device=tokens.device).argsort(1)
        return select(tokens, order[:, :kept], self.num_own)


def _check_patch_dropout(config: PreTrainedConfig, modality: str) -> None:
    refusal = UserError(
        f"`patch_dropout` is for Vision Transformers that take any number of patches, such as vit, dinov2 or CLIP's "
        f"and SigLIP's, and a {config.model_type} is none. Leave it out."
    )
    if modality != "image":
        raise refusal
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            encoder = AutoModel.from_config(config).train()
            encoder.embeddings.register_forward_hook(_PatchDropout(0.5, num_own_tokens(config)))
            encoder(blank_image(config, sizes_to_try(config)[0]))
    except FAILURES as error:
        raise refusal from error


def load_tower(name_or_path: str, modality: str, pooling: str | None = None) -> tuple[PreTrainedModel, str | None]:
    """The encoder of a checkpoint in float32, and the pooling that goes with it.

    Args:
        name_or_path (`str`):
            Folder or Hub id: an encoder, or two of which this is the one.
        modality (`str`):
            image, text or audio.
        pooling (`str`, *optional*):
            See [`tower_layout`]. Left out, a pooler that the checkpoint has no weights for is not used.
    """
    config = AutoConfig.from_pretrained(name_or_path)
    side = {"image": "vision_model", "text": "text_model", "audio": "audio_model"}[modality]
    if config.model_type == "vit_mae":
        return load_vision_encoder(name_or_path), pooling
    model_class = _OF_CONFIG.get(type(config), AutoModel)
    encoder, said = model_class.from_pretrained(name_or_path, dtype=torch.float32, output_loading_info=True)
    if hasattr(config, side.replace("model", "config")) and hasattr(encoder, side):
        return getattr(encoder, side), pooling
    lacks_pooler = any(name.startswith("pooler.") for name in said["missing_keys"])
    if pooling is None and lacks_pooler:
        pooling = check_pooling(config) if modality == "image" else "mean"
        logger.info("%s has no weights of a pooler: its feature of a sample is %s.", name_or_path, pooling)
    return encoder, pooling
