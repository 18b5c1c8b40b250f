"""A method is added by its file and one line of registration: this one, written to a temporary module, goes all the way."""

import importlib.util
import json
import sys

import pytest
import tiny_vision
from transformers import AutoModel, AutoModelForPreTraining

from hfssl import SSLTrainer, SSLTrainingArguments, methods
from hfssl.cli.image.data import ImageData, ImageDataArguments
from hfssl.cli.image.encoders import VisionEncoderArguments, make_views
from hfssl.cli.image.finish import finish_images
from hfssl.cli.image.probes import image_evaluators
from hfssl.cli.modality import build_method
from hfssl.cli.probes import ProbeArguments
from hfssl.data.image.views import ViewArguments


# what the file of a method holds, as short as it can be
METHOD_FILE = '''
from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from hfssl.functional.views import View, ViewPreset
from hfssl.modeling.method import LearningRates, Method
from hfssl.modeling.pooling import feature_size
from hfssl.modeling.vision import SSLVisionModel, build_vision_encoder, image_features


@strict
class ToyPreTrainingConfig(PreTrainedConfig):
    """Config of a toy.

    Args:
        toy_dim (`int`, *optional*, defaults to `64`):
            Size of a projection.
    """

    model_type = "hfssl_toy"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")}

    encoder_config: dict | PreTrainedConfig | None = None
    pooling: str | None = "mean"
    toy_dim: int = 64


_VIEW = View(scale=(0.5, 1.0))

METHOD = Method(
    title="Toy",
    modality="image",
    views=ViewPreset((_VIEW, _VIEW)),
    learning_rates=LearningRates(narrow=2e-3, wide=1e-3, checkpoint=5e-4),
    narrow_heads={"toy_dim": 8},
    embedded_views={"digits": {"jitter": (0.1, 0.1, 0.0, 0.0)}},
    collapse_hints=lambda config: {"constant": f"lower `toy_dim={config.toy_dim}`", "few directions": "`raise it`"},
    chance=lambda config, num_samples: {"loss": 1.0},
)


@dataclass
class ToyOutput(ModelOutput):
    loss: torch.FloatTensor | None = None
    projections: torch.FloatTensor | None = None


class ToyForPreTraining(SSLVisionModel):
    config_class = ToyPreTrainingConfig
    method = METHOD
    base_model_prefix = "encoder"
    paper = {"title": "A toy", "id": "0000.00000", "citation": "@misc{toy}"}

    def __init__(self, config):
        super().__init__(config)
        self.encoder = build_vision_encoder(config.encoder_config)
        self.projector = nn.Linear(feature_size(config.encoder_config, config.pooling), config.toy_dim)
        self.post_init()

    def forward(self, pixel_values: torch.FloatTensor, return_loss: bool = True) -> ToyOutput:
        z = self.projector(image_features(self.encoder, pixel_values.flatten(0, 1), self.config.pooling))
        z1, z2 = z.unflatten(0, (-1, 2)).unbind(1)
        loss = 1 - torch.nn.functional.cosine_similarity(z1, z2).mean() + (1 - z.std(0)).relu().mean()
        return ToyOutput(loss=loss, projections=torch.stack([z1, z2], dim=1))

    def compared_embeddings(self, batch):
        return self(batch["pixel_values"]).projections
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    path = tmp_path / "toy.py"
    path.write_text(METHOD_FILE)
    spec = importlib.util.spec_from_file_location("toy_method", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "toy_method", module)
    spec.loader.exec_module(module)
    methods.register(module.ToyForPreTraining)  # the one line
    yield module.ToyForPreTraining
    del methods.METHODS["toy"]


def test_a_method_is_added_by_its_file_and_one_line(toy, tmp_path, capsys):
    args = SSLTrainingArguments(
        str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=16, precision="fp32", report_to="none",
        use_cpu=True, eval_steps=1, logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    data = ImageData(ImageDataArguments(dataset="digits", max_held_out=40))
    recipe = VisionEncoderArguments()
    config = {"encoder_config": tiny_vision.vit().to_dict()}
    views = make_views(toy, recipe, config, data, ViewArguments(), set())
    # what differs on the embedded images, and what does not
    assert [view.jitter[0] for view in views.views] == [0.1, 0.1] and views.views[0].flip_probability == 0.0
    model = build_method(toy, recipe, config, views, args, set())
    assert model.config.toy_dim == 8 and args.learning_rate == pytest.approx(2e-3 * 16 / 256)
    processor = views.image_processor()
    evaluators = image_evaluators(model, data, views, processor, ProbeArguments(probe_max_samples=60), args)
    trainer = SSLTrainer(
        model, args, data.stream(args, views), evaluators=evaluators, settings=data.settings | views.settings,
        held_out=data.held_out, processing_class=processor,
    )  # fmt: skip
    trainer.train()
    finish_images(trainer, data, views)
    said = capsys.readouterr().out
    assert "chance 1.0000" in said and "toy.py" in said and "--dataset digits" in said
    assert [entry["step"] for entry in trainer.state.log_history if "health_verdict" in entry] == [0, 1, 2]
    facts = json.loads((tmp_path / "out" / "hfssl.json").read_text())
    assert facts["method"] == "toy" and facts["pooling"] == "mean" and facts["image_size"] == 32
    card = (tmp_path / "out" / "README.md").read_text()
    assert "A toy" in card and "toy_dim=8" in card
    assert type(AutoModel.from_pretrained(tmp_path / "out")).__name__ == "ViTModel"
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path / "out" / "pretraining"), toy)


def test_a_hint_of_a_method_reaches_the_log(toy):
    hints = toy.method.collapse_hints(toy.config_class(toy_dim=3))
    assert hints["constant"] == "lower `toy_dim=3`"
