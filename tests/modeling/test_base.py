"""What a method says of its encoders, its export and its losses, and what is refused so far."""

import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModel, BertModel, PreTrainedConfig, ViTModel

from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.errors import UserError
from hfssl.modeling.base import SSLPreTrainedModel


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
