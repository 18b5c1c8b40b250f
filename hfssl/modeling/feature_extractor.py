"""The stock feature extractor that goes with an encoder of sound: how a recording becomes what it was trained on."""

from transformers import (
    ASTFeatureExtractor,
    FeatureExtractionMixin,
    PreTrainedConfig,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
)

from .audio import reads_waveforms
from .filter_banks import SAMPLING_RATE
from .frames import is_grid


def build_feature_extractor(config: PreTrainedConfig) -> FeatureExtractionMixin:
    """A feature extractor that `AutoFeatureExtractor` loads.

    Args:
        config (`PreTrainedConfig`):
            Of the encoder: of waveforms, each gets a mean of 0 and a variance of 1; of filter banks or spectrograms,
            those that its stock class was made for.
    """
    if reads_waveforms(config):
        # with group norm in the first layer, padding is sound, and who pads must not say otherwise
        return Wav2Vec2FeatureExtractor(
            sampling_rate=SAMPLING_RATE, do_normalize=True, return_attention_mask=config.feat_extract_norm == "layer"
        )
    if is_grid(config):
        return ASTFeatureExtractor(max_length=config.max_length, num_mel_bins=config.num_mel_bins)
    return SeamlessM4TFeatureExtractor(stride=config.feature_projection_input_dim // 80)
