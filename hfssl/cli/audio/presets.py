"""Encoders of sound to train from scratch, by name."""

from transformers import ASTConfig, HubertConfig, PreTrainedConfig, Wav2Vec2BertConfig, Wav2Vec2Config, WavLMConfig

from ...methods.audio.cpc import CpcEncoderConfig


def _waveforms(kind: type[PreTrainedConfig], layers: int, width: int, convolutions: int) -> PreTrainedConfig:
    """With layer norm in each convolution and before each block, as the large models of the papers have it: padding
    changes nothing then, and clips need not be cut."""
    return kind(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width,
        conv_dim=(convolutions,) * 7, conv_bias=True, feat_extract_norm="layer", do_stable_layer_norm=True,
        num_conv_pos_embeddings=128 if width >= 512 else 64, classifier_proj_size=256,
    )  # fmt: skip


def _filter_banks(layers: int, width: int) -> Wav2Vec2BertConfig:
    return Wav2Vec2BertConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width,
        classifier_proj_size=256,
    )  # fmt: skip


def _spectrograms(layers: int, width: int, frames: int, num_mel_bins: int, stride: int) -> ASTConfig:
    return ASTConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width,
        max_length=frames, num_mel_bins=num_mel_bins, frequency_stride=stride, time_stride=stride,
        layer_norm_eps=1e-6,  # of the paper's code; transformers has 1e-12
    )  # fmt: skip


# The convolutions over samples cost most in small models: they have half the width of the blocks.
AUDIO_PRESETS = {
    "hubert-mini": lambda: _waveforms(HubertConfig, 4, 192, 96),
    "hubert-small": lambda: _waveforms(HubertConfig, 6, 384, 192),
    "hubert-base": lambda: _waveforms(HubertConfig, 12, 768, 512),
    "wavlm-mini": lambda: _waveforms(WavLMConfig, 4, 192, 96),
    "wavlm-small": lambda: _waveforms(WavLMConfig, 6, 384, 192),
    "wavlm-base": lambda: _waveforms(WavLMConfig, 12, 768, 512),
    "wav2vec2-mini": lambda: _waveforms(Wav2Vec2Config, 4, 192, 96),
    "wav2vec2-small": lambda: _waveforms(Wav2Vec2Config, 6, 384, 192),
    "wav2vec2-base": lambda: _waveforms(Wav2Vec2Config, 12, 768, 512),
    "wav2vec2-bert-mini": lambda: _filter_banks(4, 192),
    "wav2vec2-bert-small": lambda: _filter_banks(6, 384),
    "wav2vec2-bert-base": lambda: _filter_banks(12, 768),
    # patches side by side; those of the stock size overlap, as in the paper
    "ast-mini": lambda: _spectrograms(4, 192, 128, 64, 16),
    "ast-small": lambda: _spectrograms(12, 384, 512, 128, 16),
    "ast-base": lambda: _spectrograms(12, 768, 1024, 128, 10),
    "cpc-mini": lambda: CpcEncoderConfig(conv_dim=(96,) * 5, hidden_size=96),
    "cpc-base": CpcEncoderConfig,
}
