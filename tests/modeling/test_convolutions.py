"""Convolutions over samples with channels last: the numbers of stock code, and only where they can be had."""

import pytest
import tiny_audio
import torch
from transformers import AutoModel

from hfssl.modeling.convolutions import channels_last_convolutions, has_layer_norms


def encoder_of(name, **config):
    torch.manual_seed(0)
    return AutoModel.from_config(tiny_audio.ENCODERS[name](**config))


@pytest.mark.parametrize("name", ["hubert", "wavlm", "wav2vec2"])
def test_channels_last_gives_the_features_and_gradients_of_stock_code(name):
    encoder = encoder_of(name, feat_extract_norm="layer", conv_bias=True)
    extractor, waveforms = encoder.feature_extractor, torch.randn(3, 4000)
    assert has_layer_norms(extractor)
    figures = []
    for context in (None, channels_last_convolutions(encoder)):
        if context is not None:
            context.__enter__()
        extractor.zero_grad()
        features = extractor(waveforms)
        features.square().sum().backward()
        figures.append([features.detach(), *(parameter.grad.clone() for parameter in extractor.parameters())])
        if context is not None:
            assert features.transpose(1, 2).is_contiguous()  # the other layout was really used
            context.__exit__(None, None, None)
    for stock, fast in zip(*figures, strict=True):
        torch.testing.assert_close(fast, stock, rtol=1e-4, atol=1e-5)
    assert "forward" not in vars(extractor)


@pytest.mark.parametrize("reason", ["group norm", "checkpointing"])
def test_others_are_left_as_they_are(reason):
    encoder = encoder_of("wav2vec2", feat_extract_norm="group" if reason == "group norm" else "layer").train()
    if reason == "checkpointing":
        encoder.gradient_checkpointing_enable()
    assert not has_layer_norms(encoder.feature_extractor)
    with channels_last_convolutions(encoder):
        assert "forward" not in vars(encoder.feature_extractor)
