"""HuBERT's iterations on the command line."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import tiny_audio
from transformers import HubertModel

from hfssl import HubertForPreTraining, HubertPreTrainingConfig, RecipeParser, SSLTrainingArguments
from hfssl.cli.audio.data import AudioDataArguments
from hfssl.cli.audio.encoders import AudioEncoderArguments
from hfssl.cli.audio.iterations import DoneIteration, IterationArguments, each_iteration, encoders_begun_with
from hfssl.cli.audio.probes import AudioProbeArguments
from hfssl.errors import UserError
from hfssl.training.record import identity_of


def fields(monkeypatch, tmp_path, *words):
    """Fields of the config of the first iteration that is to be trained, and the encoder of its units."""
    monkeypatch.setattr(sys, "argv", ["hubert.py", "--output_dir", str(tmp_path / "out"), "--use_cpu", *words])
    parser = RecipeParser(
        AudioEncoderArguments, AudioDataArguments, IterationArguments, HubertPreTrainingConfig, AudioProbeArguments,
        SSLTrainingArguments, description="", defaults={"encoder": "hubert-mini"},
    )  # fmt: skip
    parsed, source, _ = next(each for each in each_iteration(parser) if each[2] is None)
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


def test_an_iteration_that_is_done_is_not_done_again(monkeypatch, tmp_path):
    before = tmp_path / "out-iteration-1"
    HubertModel(tiny_audio.hubert()).save_pretrained(before)
    config, source, _ = fields(monkeypatch, tmp_path, "--iterations", "2")
    assert source == str(before) and config["unit_features"] == "layer"
    # of a result that is moved to where it belongs, this is the last
    (before / "config.json").unlink()
    config, source, _ = fields(monkeypatch, tmp_path, "--iterations", "2")
    assert source is None and config.get("unit_features") != "layer"


SETTINGS = {
    "learning_rate": 1e-3, "dataset": "train", "batches_per_step": 1, "lr_scheduler_type": "linear",
    **encoders_begun_with(None, None),
}  # fmt: skip


def run_of(data="1a", processes=1, base_learning_rate=None, **settings):
    """What is asked of a trainer."""
    args = SimpleNamespace(world_size=processes, base_learning_rate=base_learning_rate)
    return SimpleNamespace(
        settings=SETTINGS | settings,
        stream=SimpleNamespace(layout=lambda: {"data": data, "batch_cost": None}),
        args=args,
    )


def check_against(folder, then, now):
    folder.mkdir(exist_ok=True)
    record = {} if then is None else {"identity": identity_of(then)}
    (folder / "run.json").write_text(json.dumps(record))
    DoneIteration(folder, 1, 3).check(now)


def test_what_an_earlier_iteration_is_reused_for(tmp_path):
    check_against(tmp_path / "before", run_of(), run_of())
    # the same recordings, moved; and what a run may go on with
    check_against(tmp_path / "before", run_of(), run_of(dataset="moved"))
    check_against(tmp_path / "before", run_of(), run_of(processes=2, batches_per_step=2))
    fourfold = {"processes": 4, "batches_per_step": 4, "base_learning_rate": 1e-3, "learning_rate": 4e-3}
    check_against(tmp_path / "before", run_of(base_learning_rate=1e-3), run_of(**fourfold))


@pytest.mark.parametrize(
    "now, words",
    [
        (run_of(learning_rate=1e-4), "learning_rate was 0.001, is 0.0001. Pass"),
        (run_of(batches_per_step=2), "is 2. Pass"),
        (
            run_of("2b", dataset="birds"),
            "the digest of the data was '1a', is '2b'; dataset was 'train', is 'birds'. Pass",
        ),
        # folders of one name
        (run_of("2b"), "the digest of the data was '1a', is '2b'. Pass"),
        (run_of(encoder="e4"), "encoder was 'from scratch', is 'e4'. Pass"),
        (run_of(unit_encoder="0f"), "unit_encoder was 'none', is '0f'. Pass"),
    ],
)
def test_what_it_is_not_reused_for(tmp_path, now, words):
    with pytest.raises(UserError, match=f"before holds an earlier iteration.*{words}.*--iterations 2"):
        check_against(tmp_path / "before", run_of(), now)


def test_an_earlier_iteration_that_does_not_say_what_it_was_made_with_is_used(tmp_path, caplog):
    check_against(tmp_path / "before", None, run_of())
    assert f"It is not known with which settings {tmp_path / 'before'} was made" in caplog.text
    assert "It is used as iteration 1 of 3" in caplog.text


def test_encoders_are_known_by_their_weights(tmp_path):
    HubertModel(tiny_audio.hubert()).save_pretrained(tmp_path / "a" / "encoder")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    HubertModel(tiny_audio.hubert()).save_pretrained(tmp_path / "c" / "encoder")
    a, b, c = (encoders_begun_with(None, str(tmp_path / name / "encoder")) for name in "abc")
    assert a == b != c and len(a["unit_encoder"]) == 16
    assert encoders_begun_with("org/name", None) == {"encoder": "org/name", "unit_encoder": "none"}
    assert encoders_begun_with(None, None) == {"encoder": "from scratch", "unit_encoder": "none"}
