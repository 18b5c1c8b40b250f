"""HuBERT's iterations on the command line."""

import json
import re
import sys

import pytest
import tiny_audio
from transformers import HubertModel

from hfssl import HubertForPreTraining, HubertPreTrainingConfig, RecipeParser, SSLTrainingArguments
from hfssl.cli.audio.data import AudioDataArguments
from hfssl.cli.audio.encoders import AudioEncoderArguments
from hfssl.cli.audio.iterations import IterationArguments, each_iteration
from hfssl.cli.audio.probes import AudioProbeArguments
from hfssl.errors import UserError


def fields(monkeypatch, tmp_path, *words):
    """Fields of the config of the first iteration, and the encoder of its units."""
    monkeypatch.setattr(sys, "argv", ["hubert.py", "--output_dir", str(tmp_path / "out"), "--use_cpu", *words])
    parser = RecipeParser(
        AudioEncoderArguments, AudioDataArguments, IterationArguments, HubertPreTrainingConfig, AudioProbeArguments,
        SSLTrainingArguments, description="", defaults={"encoder": "hubert-mini"},
    )  # fmt: skip
    parsed, source = next(each_iteration(parser))
    return parsed[3], source, parser.given


def test_units_of_an_encoder_of_another_shape_need_no_more_than_its_name(monkeypatch, tmp_path):
    made_by = HubertModel(tiny_audio.hubert(hidden_size=16, num_hidden_layers=4))
    made_by.save_pretrained(tmp_path / "before")
    config, source, given = fields(monkeypatch, tmp_path, "--unit_encoder", str(tmp_path / "before"))
    assert (config["unit_features"], config["num_units"]) == ("layer", 500)
    assert (
        config["unit_layer"] == 2 and {"unit_layer", "num_units"} <= given
    )  # not that of the encoder that is trained
    model = HubertForPreTraining(HubertPreTrainingConfig(encoder_config=tiny_audio.hubert(hidden_size=32), **{
        name: config[name] for name in ("unit_features", "unit_layer", "unit_dim", "unit_hop", "num_units")
    }))  # fmt: skip
    model.take_unit_encoder(source)

    words = ("--unit_encoder", str(tmp_path / "before"), "--unit_layer", "3", "--num_units", "9")
    config, _, _ = fields(monkeypatch, tmp_path, *words)
    assert (config["unit_layer"], config["num_units"]) == (3, 9)


def test_a_folder_without_an_encoder_of_waveforms(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=re.escape(f"`--unit_encoder {tmp_path / 'none'}` is no folder with an enc")):
        fields(monkeypatch, tmp_path, "--unit_encoder", str(tmp_path / "none"))
    tiny_audio.wav2vec2_bert().save_pretrained(tmp_path / "banks")
    with pytest.raises(UserError, match="is a wav2vec2-bert, and units are made by an encoder of waveforms"):
        fields(monkeypatch, tmp_path, "--unit_encoder", str(tmp_path / "banks"))


def test_an_iteration_that_is_done_is_not_done_again(monkeypatch, tmp_path, caplog):
    before = tmp_path / "out-iteration-1"
    HubertModel(tiny_audio.hubert()).save_pretrained(before)
    # a record has the names of folders, not where they lie
    (before / "run.json").write_text(json.dumps({"settings": {"data": {"dataset": "my calls", "split": "train"}}}))
    words = ("--iterations", "2", "--dataset", str(tmp_path / "my calls") + "/")
    config, source, _ = fields(monkeypatch, tmp_path, *words)
    assert source == str(before) and config["unit_features"] == "layer"
    # of a result that is moved to where it belongs, this is the last
    (before / "config.json").unlink()
    config, source, _ = fields(monkeypatch, tmp_path, *words)
    assert source is None and config.get("unit_features") != "layer"


@pytest.mark.parametrize("words", [("--dataset", "birds"), ("--dataset", "calls", "--split", "validation"), ()])
def test_an_iteration_of_other_recordings_is_refused(monkeypatch, tmp_path, words):
    before = tmp_path / "out-iteration-1"
    HubertModel(tiny_audio.hubert()).save_pretrained(before)
    (before / "run.json").write_text(json.dumps({"settings": {"data": {"dataset": "calls", "split": "train"}}}))
    with pytest.raises(UserError, match="-iteration-1 was trained with `--(dataset calls|split train)`") as refused:
        fields(monkeypatch, tmp_path, "--iterations", "3", *words)
    # what it advises
    advised = re.search("`(--unit_encoder [^`]+)`", str(refused.value))[1].split()
    assert advised[-2:] == ["--iterations", "2"]
    advised += ["--output_dir", str(tmp_path / "another")]
    assert fields(monkeypatch, tmp_path, *words, *advised)[1] == str(before)
