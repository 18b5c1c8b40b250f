"""How deep parameters lie: by the order of a forward pass, not by that in which a model declares its parts."""

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    GPT2Config,
    HubertConfig,
    ViTConfig,
    Wav2Vec2Config,
)

from hfssl.modeling import depth
from hfssl.modeling.depth import depths, digest_of_depths


SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
SPEECH = {
    **SMALL, "conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


@pytest.mark.parametrize("config_class", [HubertConfig, Wav2Vec2Config])
@pytest.mark.parametrize("is_last", [False, True])
def test_a_norm_is_where_it_is_applied(config_class, is_last):
    """Both variants declare it before the blocks; the large one applies it after them."""
    model = AutoModel.from_config(config_class(**SPEECH, do_stable_layer_norm=is_last, feat_extract_norm="layer"))
    found, number = depths(model)
    assert number == 3 and found["encoder.layer_norm.weight"] == (4 if is_last else 0)
    assert found["feature_projection.projection.weight"] == found["feature_extractor.conv_layers.0.conv.weight"] == 0
    assert found["encoder.layers.2.attention.q_proj.weight"] == 3
    # after the blocks for sure: it sees what they make
    norm, seen = model.encoder.layer_norm, []
    model.encoder.layers[0].register_forward_pre_hook(lambda *_: seen.append("block"))
    norm.register_forward_pre_hook(lambda *_: seen.append("norm"))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 400))
    assert (seen.index("norm") > seen.index("block")) == is_last


def test_heads_come_last_wherever_they_are_declared():
    config = HubertConfig(**SPEECH, do_stable_layer_norm=True, feat_extract_norm="layer", num_labels=3)
    found, _ = depths(AutoModelForAudioClassification.from_config(config))
    assert found["classifier.weight"] == found["projector.weight"] == found["hubert.encoder.layer_norm.bias"] == 4
    assert found["hubert.feature_projection.layer_norm.weight"] == 0
    found, _ = depths(AutoModelForSequenceClassification.from_config(GPT2Config(n_embd=32, n_layer=2, n_head=2)))
    assert found["score.weight"] == found["transformer.ln_f.weight"] == 3 and found["transformer.wte.weight"] == 0


def test_what_all_blocks_take_in_comes_before_them():
    """Declared after the blocks; and the architecture asks for numbers, which `meta` has none of."""
    config = DebertaV2Config(**SMALL, relative_attention=True, norm_rel_ebd="layer_norm", vocab_size=50)
    found, number = depths(AutoModel.from_config(config))
    assert number == 3 and found["encoder.LayerNorm.weight"] == 0 and found["encoder.layer.2.output.dense.bias"] == 3


@pytest.mark.parametrize(
    "config",
    [ViTConfig(**SMALL, image_size=32, patch_size=16), AlbertConfig(**SMALL, embedding_size=16, vocab_size=50)],
    ids=["vit", "albert"],
)
def test_the_digest_follows_the_depths(config, monkeypatch):
    before = digest_of_depths(config)
    assert before and before == digest_of_depths(type(config).from_dict(config.to_dict()))
    monkeypatch.setattr(depth, "depths", lambda model: ({"weight": 1}, 1))
    assert digest_of_depths(config) not in (before, "")


def test_what_runs_on_no_blank_input_goes_by_its_declaration(monkeypatch):
    config = ViTConfig(**SMALL, image_size=32, patch_size=16)
    model = AutoModel.from_config(config)
    monkeypatch.setattr(depth, "after_the_blocks", lambda config: {})
    assert depths(model)[0]["layernorm.weight"] == 4
    assert depths(nn.Sequential(nn.Linear(2, 2)))[0] == {"0.weight": 1, "0.bias": 1}
