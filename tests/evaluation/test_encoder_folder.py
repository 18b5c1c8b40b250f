"""Checkpoints of a run, named where an encoder is wanted."""

import json

import pytest
import torch
from huggingface_hub import HfApi
from labelled import processor
from tiny_vision import two_layers
from transformers import AutoImageProcessor, AutoModel

from hfssl import SimclrForPreTraining, SimclrPreTrainingConfig
from hfssl.evaluation import EvaluationError
from hfssl.evaluation.encoder_folder import stock_folder, trained_pooling, weights_digest
from hfssl.evaluation.facts import read_facts
from hfssl.evaluation.modality import modality_of_encoder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has not ended, as Trainer leaves it."""
    folder = tmp_path_factory.mktemp("run")
    for step in (9, 10):
        torch.manual_seed(step)
        model = SimclrForPreTraining(SimclrPreTrainingConfig(encoder_config=two_layers(), pooling="cls"))
        model.save_pretrained(folder / f"checkpoint-{step}")
        processor().save_pretrained(folder / f"checkpoint-{step}")
        manifest = {"settings": {"dataset": "digits"}, "files": {}}
        (folder / f"checkpoint-{step}" / "manifest.json").write_text(json.dumps(manifest))
    return folder, model


def test_a_checkpoint_gives_its_encoder(run, caplog):
    folder, model = run
    (folder / "checkpoint-9").rename(folder / "checkpoint-9-copy")  # none of the run
    caplog.set_level("INFO", logger="hfssl")
    for named in (folder / "checkpoint-10", folder):
        found = stock_folder(str(named))
        encoder = AutoModel.from_pretrained(found)
        for name, tensor in model.encoder.state_dict().items():
            assert torch.equal(encoder.state_dict()[name], tensor)
        assert AutoImageProcessor.from_pretrained(found).size["height"] == 16
        assert trained_pooling(found) == "cls" and modality_of_encoder(found).name == "image"
        assert read_facts(found)["dataset"] == "digits" and found.endswith("checkpoint-10")
    assert f"{folder} holds a run that has not ended: its newest checkpoint is taken, checkpoint-10" in caplog.text
    assert sorted(path.name for path in (folder / "checkpoint-10").iterdir()) == [
        "config.json", "manifest.json", "model.safetensors", "preprocessor_config.json",
    ]  # fmt: skip
    (folder / "checkpoint-9-copy").rename(folder / "checkpoint-9")


def test_all_else_is_left_as_it_is(run, tmp_path):
    assert stock_folder("facebook/dinov2-small") == "facebook/dinov2-small"
    assert stock_folder(str(tmp_path)) == str(tmp_path)
    model = run[1]
    model.export_encoder(tmp_path / "result", processor=processor())
    model.save_pretrained(tmp_path / "result" / "pretraining")
    assert stock_folder(str(tmp_path / "result")) == str(tmp_path / "result")
    assert stock_folder(str(tmp_path / "result" / "pretraining")) == str(tmp_path / "result")
    assert AutoImageProcessor.from_pretrained(tmp_path / "result").size["height"] == 16


def test_a_damaged_checkpoint_is_a_sentence(run, tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    text = (run[0] / "checkpoint-9" / "config.json").read_text()
    (tmp_path / "checkpoint-1" / "config.json").write_text(text)
    (tmp_path / "checkpoint-1" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(EvaluationError, match="Cannot load the checkpoint .*checkpoint-1"):
        stock_folder(str(tmp_path))


def test_a_repository_of_the_hub_says_the_pooling_as_a_folder_does(hub_here, tmp_path):
    api = HfApi(endpoint=hub_here.url, token="hf_rw")
    model = SimclrForPreTraining(SimclrPreTrainingConfig(encoder_config=two_layers(), pooling="mean"))
    model.config.save_pretrained(tmp_path / "pretraining")
    for name in ("alice/pooled-by-mean", "alice/of-another-library"):
        api.create_repo(name)
    api.upload_folder(repo_id="alice/pooled-by-mean", folder_path=tmp_path)
    assert trained_pooling(str(tmp_path)) == trained_pooling("alice/pooled-by-mean") == "mean"
    assert trained_pooling("alice/of-another-library") is None


def test_what_else_lies_beside_the_weights_does_not_change_which_they_are(tmp_path):
    assert weights_digest(tmp_path) is None
    (tmp_path / "pytorch_model.bin").write_bytes(b"old")
    old = weights_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"new")
    digest = weights_digest(tmp_path)
    (tmp_path / "training_args.bin").write_bytes(b"no weights")
    assert weights_digest(tmp_path) == digest != old
