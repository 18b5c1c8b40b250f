"""What a method says of its encoders, its export and its losses, and what is refused so far."""

import pytest
import tiny
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    BertModel,
    Dinov2Config,
    GPT2Config,
    HubertConfig,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    ViTModel,
)

from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.errors import UserError
from hfssl.modeling.base import SSLPreTrainedModel, with_changes


class PairConfig(PreTrainedConfig):
    model_type = "pair_for_tests"
    sub_configs = {"text_config": AutoConfig, "image_config": AutoConfig}

    def __init__(self, text_config=None, image_config=None, **kwargs):
        self.text_config, self.image_config = text_config, image_config
        super().__init__(**kwargs)


class PairForPreTraining(SSLPreTrainedModel):
    config_class = PairConfig

    def __init__(self, config):
        super().__init__(config)
        self.towers = torch.nn.ModuleDict(
            {"text": BertModel(config.text_config), "image": ViTModel(config.image_config)}
        )
        self.post_init()

    @property
    def encoders(self):
        return dict(self.towers.items())


def pair():
    from tiny_vision import vit

    return PairForPreTraining(PairConfig(tiny.bert_config(), vit()))


def test_one_encoder_has_both_names():
    model = tiny.mlm()
    assert model.encoders == {"encoder": model.encoder}
    with pytest.raises(AttributeError, match="has no attribute 'decoder'"):
        model.decoder  # noqa: B018


def test_several_encoders_have_names_only():
    model = pair()
    assert list(model.encoders) == ["text", "image"] and not hasattr(model, "encoder")
    with pytest.raises(AttributeError, match=r"several encoders \(text, image\).*model.encoders"):
        model.encoder  # noqa: B018


@pytest.mark.parametrize("sharded", [False, True])
def test_one_of_several_encoders_is_exported_by_its_name(tmp_path, sharded):
    model = pair()
    state = {name: tensor + 1.0 for name, tensor in model.state_dict().items()} if sharded else None
    model.export_encoder(tmp_path / "text", "text", state)
    stock = AutoModel.from_pretrained(tmp_path / "text")
    assert type(stock) is BertModel
    for name, tensor in model.encoders["text"].state_dict().items():
        torch.testing.assert_close(stock.state_dict()[name], tensor + 1.0 if sharded else tensor)
    for name, words in ((None, "none is chosen"), ("sound", "no 'sound'")):
        with pytest.raises(UserError, match=f"encoders text, image, and {words}.*pass its `name`"):
            model.export_encoder(tmp_path / "all", name)
    assert not (tmp_path / "all").exists()


def test_a_kind_of_export_that_cannot_be_written_is_refused(tmp_path):
    model = tiny.mlm()
    model.export_kind = "onnx"
    with pytest.raises(UserError, match=r"exported as 'onnx'.*cannot be written: only 'stock', 'stock \+ extras'"):
        model.export_encoder(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_losses_with_parameters_of_their_own_are_refused(tmp_path):
    model = tiny.mlm()
    model.loss_groups = {"judge": ("judge.",), "maker": ("encoder.",)}
    with pytest.raises(UserError, match=r"train different parameters \(judge, maker\)"):
        SSLTrainer(model, SSLTrainingArguments(output_dir=str(tmp_path), max_steps=1), tiny.stream())


@pytest.mark.parametrize(
    "config, changes",
    [
        (LlamaConfig(num_hidden_layers=1), {"pad_token_id": 0, "head_dim": 8}),
        (LlamaConfig(), {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
        (LlamaConfig(), {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}),
        (ModernBertConfig(), {"local_attention": 64, "classifier_pooling": "mean"}),
        (GPT2Config(), {"hidden_size": 48, "n_inner": 96}),
        (GPT2Config(), {"n_embd": 48, "max_position_embeddings": 64}),
        (HubertConfig(), {"mask_time_prob": 0.5, "conv_bias": True}),
        (Dinov2Config(), {"image_size": 28, "use_swiglu_ffn": True}),
    ],
)
def test_fields_by_all_their_names_are_changed(config, changes):
    changed = with_changes(config, changes, "mine")
    for field, value in changes.items():
        assert getattr(config, field) != value
        assert getattr(changed, field) == value


@pytest.mark.parametrize(
    "field", ["to_dict", "model_types", "attribute_map", "use_return_dict", "_attn_implementation"]
)
def test_names_that_are_no_fields(field):
    with pytest.raises(UserError, match=f"mine has no field '{field}'"):
        with_changes(GPT2Config(), {field: 1}, "mine")
