"""Both sides of the benchmark of speech train the same model on the same sound."""

import json
import subprocess
import sys

import pytest
import torch
from paces import Steps
from recipe_process import ROOT
from sounds import tone, wav
from transformers import HubertConfig, Wav2Vec2Config

from hfssl.benchmarks import speech
from hfssl.benchmarks.speech import SpeechBenchmark, prepare, run_speech_benchmark
from hfssl.cli.audio.data import AudioDataArguments
from hfssl.errors import UserError


SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "conv_bias": True,
    "feat_extract_norm": "layer", "do_stable_layer_norm": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for row in range(40):
        (folder / f"{row}.wav").write_bytes(wav(tone(row, 0.5 + 0.05 * (row % 5))))
    (folder / "torn.wav").write_bytes(b"no sound")
    Wav2Vec2Config(**SMALL).to_json_file(folder / "wav2vec2.json")
    HubertConfig(**SMALL).to_json_file(folder / "hubert.json")
    return folder


@pytest.mark.parametrize("method, theirs", [
    ("wav2vec2", speech.train_transformers), ("hubert", speech.train_torchaudio),
])  # fmt: skip
def test_both_sides_train_the_same_model(recordings, tmp_path, monkeypatch, method, theirs):
    built = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, most: built.append(list(parameters)))
    data = AudioDataArguments(dataset=str(recordings / "*.wav"), batch_seconds=4.0, max_seconds=1.0)
    prepared = prepare(data, tmp_path)
    assert prepared["num_recordings"] == 40 and prepared["mean_seconds"] == pytest.approx(0.6)
    settings = {
        "method": method, "encoder": str(recordings / f"{method}.json"), "data": data, "folder": str(tmp_path),
        "arguments": SpeechBenchmark(use_cpu=True), "precision": "fp32", "clips_a_step": 6,
    }  # fmt: skip
    pace = Steps(2)
    assert theirs(pace, settings) > 0 and len(pace.losses) == 2
    assert 0.8 * pace.positions < pace.seconds <= pace.positions
    encoder, config = speech._configs(settings)
    ours = speech_model(method, config)
    wanted = sum(parameter.numel() for parameter in ours.parameters() if parameter.requires_grad)
    found = sum(parameter.numel() for parameter in built[0])
    # heads and what stands for hidden frames may be laid out otherwise
    assert abs(found - wanted) < 0.02 * wanted
    assert ours.encoder.config.hidden_size == encoder.hidden_size


def speech_model(method, config):
    from hfssl.methods import METHODS

    return METHODS[method](config)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["wav2vec2", "hubert"])
def test_ends_with_a_table_and_one_line_of_json(recordings, method):
    flags = [
        method, "--dataset", recordings / "*.wav", "--encoder", recordings / f"{method}.json", "--batch_seconds", 4,
        "--max_seconds", 1, "--blocks", 2, "--steps_per_block", 1, "--precision", "fp32", "--use_cpu", "--json",
    ]  # fmt: skip
    command = [sys.executable, "recipes/benchmark.py", *map(str, flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    ours, theirs = report["ours"], report["theirs"]
    assert report["ratio"] == pytest.approx(ours["items_per_s"] / theirs["items_per_s"], rel=1e-3)
    assert "seconds of sound/s (without padding)" in done.stdout and "memory_ratio" in done.stdout
    assert 0 <= ours["padding"] < 0.2 and ours["flops_per_position"] > 0


def test_who_has_no_such_method_is_refused():
    with pytest.raises(UserError, match="--against torchaudio` has no wav2vec2 .*: pass transformers"):
        run_speech_benchmark("wav2vec2", SpeechBenchmark(against="torchaudio"), AudioDataArguments())
    for settings, said in (
        ({"blocks": 0}, "--blocks"), ({"precision": "int8"}, "int8"), ({"encoder": "org/name"}, "from scratch: choose"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            SpeechBenchmark(**settings)
