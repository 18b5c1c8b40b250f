"""Small encoders of sound, and batches for them."""

import numpy as np
import torch
from transformers import (
    HubertConfig,
    PreTrainedConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    WavLMConfig,
)

from hfssl.functional import keyed
from hfssl.functional.keyed import Use
from hfssl.functional.spans import frame_masks
from hfssl.methods.audio.cpc import CpcEncoderConfig


SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
# a frame every 320 samples, each of 400, as the large ones have it, in three layers
CONVOLUTIONS = {
    "conv_dim": (16, 16, 16), "conv_kernel": (20, 3, 10), "conv_stride": (10, 4, 8), "feat_extract_norm": "layer",
    "conv_bias": True, "num_feat_extract_layers": 3,
}  # fmt: skip


def hubert(**fields) -> HubertConfig:
    return HubertConfig(**SMALL | CONVOLUTIONS | {"do_stable_layer_norm": True} | fields)


def wavlm(**fields) -> WavLMConfig:
    return WavLMConfig(**SMALL | CONVOLUTIONS | {"do_stable_layer_norm": True} | fields)


def wav2vec2(**fields) -> Wav2Vec2Config:
    heads = {"codevector_dim": 8, "proj_codevector_dim": 8, "num_codevectors_per_group": 6, "num_negatives": 5}
    return Wav2Vec2Config(**SMALL | CONVOLUTIONS | heads | {"do_stable_layer_norm": True} | fields)


def conformer(**fields) -> Wav2Vec2ConformerConfig:
    return Wav2Vec2ConformerConfig(**SMALL | CONVOLUTIONS | {"conv_depthwise_kernel_size": 5} | fields)


def wav2vec2_bert(**fields) -> Wav2Vec2BertConfig:
    small = {name: value for name, value in SMALL.items() if "conv" not in name}
    return Wav2Vec2BertConfig(**small | {"feature_projection_input_dim": 8, "conv_depthwise_kernel_size": 5} | fields)


def cpc(**fields) -> CpcEncoderConfig:
    small = {"conv_dim": (16, 16, 16), "conv_kernel": (10, 8, 4), "conv_stride": (8, 8, 4), "hidden_size": 32}
    return CpcEncoderConfig(**small | fields)


ENCODERS = {"hubert": hubert, "wavlm": wavlm, "wav2vec2": wav2vec2, "conformer": conformer}


def masks(rows: int, num_frames: int, seed: int = 7, **masking) -> dict[str, torch.Tensor]:
    """Masks of clips of one length, and negatives where they are asked for."""
    settings = {"mask_ratio": 0.4, "mask_length": 3} | masking
    keys = keyed.key(Use.SAMPLE, seed, np.arange(rows))
    columns = frame_masks([num_frames] * rows, keys, **settings)
    return {name: torch.stack([torch.from_numpy(row) for row in column]) for name, column in columns.items()}


def waveforms(rows: int = 6, num_samples: int = 4000) -> torch.Tensor:
    """Noise, each clip louder or softer and with a tone of its own."""
    time = torch.arange(num_samples) / 16_000
    tones = torch.sin(2 * torch.pi * time * (200 + 300 * torch.arange(rows)[:, None]))
    return 0.1 * torch.randn(rows, num_samples) + 0.1 * tones


def frames_of(config: PreTrainedConfig, num_samples: int) -> int:
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        num_samples = (num_samples - kernel) // stride + 1
    return num_samples
