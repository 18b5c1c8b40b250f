"""What encoders are found to do when they run on a blank image."""

import pytest
import torch
from tiny_vision import ENCODERS
from transformers import AutoConfig, AutoModel, BertConfig
from transformers.modeling_outputs import BaseModelOutput

from hfssl import SimclrForPreTraining, SimclrPreTrainingConfig
from hfssl.errors import UserError
from hfssl.modeling.pooling import check_pooling, is_convolutional, num_own_tokens, pool_features
from hfssl.modeling.trial import Layout, layout
from hfssl.modeling.vision import (
    build_vision_encoder,
    encode_visible,
    image_features,
    takes_visible_tokens,
    transformer_blocks,
    unused_parameters,
)


SIZE = {"image_size": 16, "patch_size": 4}
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}

MORE = {
    "chinese_clip_vision_model": {**BLOCKS, **SIZE},
    "clip_vision_model": {**BLOCKS, **SIZE},
    "siglip_vision_model": {**BLOCKS, **SIZE, "vision_use_head": False},
    "internvl_vision": {**BLOCKS, "image_size": [16, 16], "patch_size": [4, 4]},
    "dpt": {**BLOCKS, **SIZE},
    "beit": {**BLOCKS, **SIZE, "use_relative_position_bias": True},
    "data2vec-vision": {**BLOCKS, **SIZE},
    "hiera": {"embed_dim": 8, "image_size": [32, 32], "depths": [1, 1], "num_heads": [1, 1], "query_stride": [2, 2],
              "masked_unit_size": [2, 2], "num_query_pool": 1, "patch_stride": [4, 4]},
}  # fmt: skip
CONFIGS = {**ENCODERS, **{name: lambda name=name: AutoConfig.for_model(name, **MORE[name]) for name in MORE}}

# tokens of its own, and the size of an image of which something is left
OWN = {
    "vit": 1, "vit_msn": 1, "deit": 2, "ijepa": 0, "dinov2": 1, "dinov2_with_registers": 3, "dinov3_vit": 3, "swin": 0,
    "dinov3_convnext": 1, "chinese_clip_vision_model": 1, "clip_vision_model": 1, "siglip_vision_model": 0,
    "internvl_vision": 1, "dpt": 1, "beit": 1, "data2vec-vision": 1, "hiera": 0, "resnet": 0, "convnextv2": 0,
}  # fmt: skip
MAPS = ("resnet", "convnextv2")


def build(name):
    torch.manual_seed(0)
    return AutoModel.from_config(CONFIGS[name]()).eval()


def images_for(name, rows=2):
    size = {"dinov3_convnext": 32, "hiera": 32}.get(name, 16)
    return torch.randn(rows, 3, size, size)


@pytest.mark.parametrize("name", CONFIGS)
def test_own_tokens_are_found_without_touching_the_random_state(name):
    config = CONFIGS[name]()
    state, words = torch.get_rng_state(), config.to_json_string()
    found = layout(config)
    assert torch.equal(torch.get_rng_state(), state) and config.to_json_string() == words
    with torch.no_grad():
        hidden = build(name)(images_for(name)).last_hidden_state
    dim, is_pooled = hidden.shape[1 if name in MAPS else 2], name in MAPS
    assert found == Layout(OWN[name], OWN[name] > 0, name in MAPS, dim, is_pooled)
    assert is_convolutional(config) == (name in MAPS) == (hidden.ndim == 4)


@pytest.mark.parametrize("name", ["chinese_clip_vision_model", "clip_vision_model", "internvl_vision", "dpt", "beit"])
def test_cls_and_mean_of_encoders_that_no_list_named(name):
    encoder, images = build(name), images_for(name)
    with torch.no_grad():
        hidden = encoder(images).last_hidden_state
        assert check_pooling(encoder.config) == "cls"
        torch.testing.assert_close(image_features(encoder, images, "cls"), hidden[:, 0])
        torch.testing.assert_close(image_features(encoder, images, "mean"), hidden[:, 1:].mean(1))
        assert not torch.allclose(image_features(encoder, images, "mean"), hidden.mean(1))
        assert image_features(encoder, images, "last4").shape == (2, 4 * 32)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_size_of_the_images_does_not_change_what_is_found(size):
    config = CONFIGS["dinov2_with_registers"]()
    config.image_size = size
    assert num_own_tokens(config) == 3
    config.num_register_tokens = 5
    assert num_own_tokens(config) == 6  # a changed config is another one
    hidden = torch.randn(2, 6 + (size // 4) ** 2, 32)
    torch.testing.assert_close(pool_features(BaseModelOutput(hidden), config, "mean"), hidden[:, 6:].mean(1))


def test_what_is_no_encoder_of_images_is_refused():
    with pytest.raises(UserError, match="A bert is no encoder of images alone"):
        layout(BertConfig())
    assert not takes_visible_tokens(BertConfig())
    with pytest.raises(UserError, match="vivit does not run on an image"):
        layout(AutoConfig.for_model("vivit", num_hidden_layers=1, image_size=32))


TAKE_VISIBLE = {"vit", "vit_msn", "deit", "ijepa", "dinov2", "dinov2_with_registers", "internvl_vision"}


@pytest.mark.parametrize("name", CONFIGS)
def test_visible_tokens_are_taken_where_a_trial_shows_it(name):
    state = torch.get_rng_state()
    assert takes_visible_tokens(CONFIGS[name]()) == (name in TAKE_VISIBLE)
    assert torch.equal(torch.get_rng_state(), state)
    blocks = transformer_blocks(build(name))
    assert len(blocks) == (0 if name in (*MAPS, "swin", "hiera", "dinov3_convnext") else 4)
    if name in TAKE_VISIBLE:
        encoder, images = build(name), images_for(name)
        with torch.no_grad():
            everything = encode_visible(encoder, images, torch.arange(16).expand(2, -1))
            torch.testing.assert_close(everything, encoder(images).last_hidden_state)


UNUSED = {
    **{name: {"embeddings.mask_token"} for name in ("dinov2", "dinov3_vit")},
    # only the pooled output passes them
    "clip_vision_model": {"post_layernorm.weight", "post_layernorm.bias"},
}


@pytest.mark.parametrize("name", ["vit", "resnet", "swin", "dinov3_vit", "dinov2", "clip_vision_model"])
def test_what_an_encoder_does_not_use_is_found_as_a_real_backward_pass_shows_it(name, caplog):
    state = torch.get_rng_state()
    with caplog.at_level("DEBUG", "hfssl.modeling.vision"):
        unused = unused_parameters(CONFIGS[name]())
    assert torch.equal(torch.get_rng_state(), state)
    assert unused == UNUSED.get(name, set())
    encoder = build_vision_encoder(CONFIGS[name]()).train()
    image_features(encoder, images_for(name)).sum().backward()
    assert {key for key, parameter in encoder.named_parameters() if parameter.grad is None} == unused


@pytest.mark.parametrize("name", ["dinov2", "dinov3_vit"])
def test_the_mask_token_learns_where_a_method_says_that_it_uses_it(name):
    class WithMasks(SimclrForPreTraining):
        uses_mask_token = True

    models = [
        kind(SimclrPreTrainingConfig(encoder_config=CONFIGS[name]())).train()
        for kind in (SimclrForPreTraining, WithMasks)
    ]
    for model, trains in zip(models, (False, True), strict=True):
        token = model.encoder.embeddings.mask_token
        assert token.requires_grad == trains and model.frozen == ()
        assert all(parameter.requires_grad for parameter in model.parameters() if parameter is not token)
    masked = torch.arange(16).expand(2, -1) % 2 == 0
    models[1].encoder(images_for(name), bool_masked_pos=masked).last_hidden_state.sum().backward()
    assert models[1].encoder.embeddings.mask_token.grad.any()
