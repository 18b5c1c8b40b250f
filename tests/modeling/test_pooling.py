"""One vector an image, from every kind of encoder."""

import pytest
import torch
from tiny_vision import ENCODERS, build
from transformers.modeling_outputs import BaseModelOutput

from hfssl.errors import UserError
from hfssl.modeling.pooling import check_pooling, default_pooling, feature_size, num_own_tokens, pool_features
from hfssl.modeling.vision import image_features


@pytest.mark.parametrize("name", ENCODERS)
def test_every_pooling_has_the_size_that_it_says(name):
    encoder = build(name).eval()
    config = encoder.config
    with torch.no_grad():
        # four halvings leave nothing of 16 pixels
        size = 32 if name == "dinov3_convnext" else 16
        outputs = encoder(torch.randn(2, 3, size, size), output_hidden_states=True)
    has_cls = name not in ("resnet", "convnextv2", "swin", "ijepa")
    assert default_pooling(config) == ("cls" if has_cls else "mean")
    for pooling in ("cls", "mean", "cls+mean", "last4") if has_cls else ("mean",):
        if pooling == "last4" and name == "dinov3_convnext":
            continue
        assert pool_features(outputs, config, pooling).shape == (2, feature_size(config, pooling)), pooling
    assert torch.equal(pool_features(outputs, config), pool_features(outputs, config, default_pooling(config)))


@pytest.mark.parametrize(
    "name, own", [("vit", 1), ("deit", 2), ("dinov2", 1), ("dinov2_with_registers", 3), ("dinov3_vit", 3), ("swin", 0)]
)
def test_the_mean_is_that_of_the_patches(name, own):
    config = ENCODERS[name]()
    assert num_own_tokens(config) == own
    hidden = torch.randn(2, own + 16, 32)
    patches = hidden[:, own:].mean(1)
    torch.testing.assert_close(pool_features(BaseModelOutput(hidden), config, "mean"), patches)
    if own:
        both = pool_features(BaseModelOutput(hidden), config, "cls+mean")
        torch.testing.assert_close(both, torch.cat([hidden[:, 0], patches], dim=1))


@pytest.mark.parametrize("name", ["vit", "dinov2", "resnet", "swin"])
def test_features_are_pooled_outputs(name):
    encoder = build(name).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        outputs = encoder(images, output_hidden_states=True)
        for pooling in ("cls", "mean", "cls+mean", "last4") if num_own_tokens(encoder.config) else (None,):
            torch.testing.assert_close(
                image_features(encoder, images, pooling), pool_features(outputs, encoder.config, pooling)
            )


def test_the_last_four_blocks_end_with_the_normed_one():
    encoder = build("vit").eval()
    with torch.no_grad():
        outputs = encoder(torch.randn(2, 3, 16, 16), output_hidden_states=True)
    four = pool_features(outputs, encoder.config, "last4").unflatten(1, (4, 32))
    assert len(outputs.hidden_states) == 5
    torch.testing.assert_close(four[:, 0], outputs.hidden_states[1][:, 0])
    torch.testing.assert_close(four[:, 3], outputs.last_hidden_state[:, 0])


def test_convolutions_give_what_their_classifier_gets():
    for name in ("resnet", "convnextv2"):
        encoder = build(name).eval()
        with torch.no_grad():
            outputs = encoder(torch.randn(2, 3, 16, 16))
        torch.testing.assert_close(pool_features(outputs, encoder.config), outputs.pooler_output.flatten(1))


@pytest.mark.parametrize(
    "name, pooling, words",
    [
        ("vit", "max", "no pooling 'max'. Choose one of cls, mean"),
        ("resnet", "cls", "needs a CLS token, and a resnet has none. Choose mean"),
        ("swin", "cls+mean", "needs a CLS token, and a swin has none"),
        ("dinov3_convnext", "last4", "needs four blocks of one width"),
    ],
)
def test_features_that_an_encoder_has_not(name, pooling, words):
    with pytest.raises(UserError, match=words.replace("+", r"\+")):
        check_pooling(ENCODERS[name](), pooling)


@pytest.mark.parametrize("name", ["dinov2_with_registers", "resnet"])
def test_a_mean_takes_a_mask_of_the_patches(name):
    encoder = build(name).eval()
    with torch.no_grad():
        outputs = encoder(torch.randn(2, 3, 16, 16))
    hidden = outputs.last_hidden_state
    patches = hidden.flatten(2).mT if hidden.ndim == 4 else hidden[:, 3:]
    mask = torch.arange(patches.shape[1]).expand(2, -1) % 3 != torch.tensor([[0], [1]])
    expected = torch.stack([row[there].mean(0) for row, there in zip(patches, mask, strict=True)])
    assert 0 < mask.sum() < mask.numel()
    for kind in (mask, mask.long()):
        torch.testing.assert_close(pool_features(outputs, encoder.config, "mean", kind), expected)
    everything = pool_features(outputs, encoder.config, "mean", torch.ones_like(mask))
    torch.testing.assert_close(everything, pool_features(outputs, encoder.config, "mean"))
    if name != "resnet":
        both = pool_features(outputs, encoder.config, "cls+mean", mask)
        torch.testing.assert_close(both, torch.cat([hidden[:, 0], expected], dim=1))
    with pytest.raises(ValueError, match=r"has shape \(2, 2\), expected"):
        pool_features(outputs, encoder.config, "mean", torch.ones(2, 2))
