"""A checkpoint for other channels: an image whose channels are alike gives what it gave."""

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModel,
    ConvNextV2Config,
    Dinov2Config,
    DINOv3ViTConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
)

from hfssl.errors import UserError
from hfssl.modeling.channels import with_num_channels


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS = {
    "vit": ViTConfig(**SMALL, image_size=16, patch_size=8),
    "dinov2": Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8),
    "dinov3_vit": DINOv3ViTConfig(**SMALL, image_size=16, patch_size=8),
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "convnextv2": ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], patch_size=4, num_stages=2),
    "swin": SwinConfig(embed_dim=8, depths=[1], num_heads=[2], window_size=2, image_size=16, patch_size=4),
}


def encoder_of(kind, **fields):
    torch.manual_seed(0)
    config = CONFIGS[kind]
    return AutoModel.from_config(type(config)(**{**config.to_diff_dict(), **fields})).eval()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("channels", [1, 4, 10])
def test_channels_that_are_alike_give_the_same_features(kind, channels):
    encoder = encoder_of(kind)
    adapted = with_num_channels(encoder, channels)
    assert adapted.config.num_channels == channels and encoder.config.num_channels == 3
    grey = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        before = encoder(grey.expand(-1, 3, -1, -1)).last_hidden_state
        after = adapted(grey.expand(-1, channels, -1, -1)).last_hidden_state
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert not adapted.training


def test_stated_colours_keep_their_weights_in_proportion():
    encoder = encoder_of("vit")
    before = encoder.embeddings.patch_embeddings.projection.weight
    after = with_num_channels(encoder, 4, (2, 1, 0)).embeddings.patch_embeddings.projection.weight
    torch.testing.assert_close(after[:, [2, 1, 0]], before * 3 / 4)
    torch.testing.assert_close(after[:, 3], before.mean(1) * 3 / 4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_three_channels_in_another_order_are_the_same_colours(kind):
    encoder, pixels = encoder_of(kind), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = encoder(pixels).last_hidden_state
        # red is in channel 2 now, green in 0, blue in 1
        turned = with_num_channels(encoder, 3, (2, 0, 1))
        found = turned(pixels[:, [1, 2, 0]]).last_hidden_state
        torch.testing.assert_close(found, expected)
        # of one that was trained so nothing changes, and back it finds them where they were
        assert with_num_channels(turned, 3, (2, 0, 1), (2, 0, 1)) is turned
        torch.testing.assert_close(turned(pixels[:, [1, 2, 0]]).last_hidden_state, expected)
        back = with_num_channels(turned, 3, (0, 1, 2), (2, 0, 1))
        torch.testing.assert_close(back(pixels).last_hidden_state, expected)


def test_the_number_that_it_takes_changes_nothing():
    encoder = encoder_of("vit")
    assert with_num_channels(encoder, 3) is encoder and with_num_channels(encoder, None) is encoder
    back = with_num_channels(encoder_of("vit", num_channels=4), 3, (0, 1, 2))
    assert back.config.num_channels == 3


def test_an_encoder_that_says_no_number_is_refused():
    encoder = encoder_of("vit")
    encoder.config = SimpleNamespace(model_type="vit")
    with pytest.raises(UserError, match="configuration of this vit says no number of channels"):
        with_num_channels(encoder, 4)
