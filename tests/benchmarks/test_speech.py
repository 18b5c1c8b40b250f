"""Both sides of the benchmark of speech train the same model on the same sound."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from paces import Steps
from recipe_process import ROOT
from sounds import tone, wav
from transformers import HubertConfig, Wav2Vec2Config

from hfssl.benchmarks import speech
from hfssl.benchmarks.speech import LikeLength, Sounds, SpeechBenchmark, prepare, run_speech_benchmark
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
        (folder / f"{row}.wav").write_bytes(wav(tone(row, 0.3 + 0.1 * (row % 8))))
    (folder / "torn.wav").write_bytes(b"no sound")
    Wav2Vec2Config(**SMALL).to_json_file(folder / "wav2vec2.json")
    Wav2Vec2Config(**{**SMALL, "feat_extract_norm": "group"}).to_json_file(folder / "group.json")
    HubertConfig(**SMALL).to_json_file(folder / "hubert.json")
    return folder


@pytest.fixture
def quick_units(monkeypatch):
    """K-means of one start: how good units are is nothing to a benchmark."""
    fit_units = speech.units.fit_units
    monkeypatch.setattr(speech.units, "fit_units", lambda frames, number, seed, _: fit_units(frames, number, seed, 1))


@pytest.mark.usefixtures("quick_units")
@pytest.mark.parametrize("method, theirs", [
    ("wav2vec2", speech.train_transformers), ("hubert", speech.train_torchaudio),
])  # fmt: skip
def test_both_sides_train_the_same_model(recordings, tmp_path, monkeypatch, method, theirs):
    built = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, most: built.append(list(parameters)))
    settings = settings_of(recordings, tmp_path, method)
    prepared = prepare(settings)
    assert prepared["num_recordings"] == 40 and prepared["mean_seconds"] == pytest.approx(0.65)
    settings["clips_a_step"] = prepared["clips_a_step"]
    assert settings["clips_a_step"] == 6
    pace = Steps(2)
    assert theirs(pace, settings) > 0 and len(pace.losses) == 2
    if method == "hubert":  # clips of like length: nothing is padded, and little cut off of the 4 s of a batch
        assert sum(pace.seconds) == pace.positions and min(pace.seconds) > 0.74 * 4.0
    else:  # drawn evenly, and padded
        assert 0.4 * pace.positions < sum(pace.seconds) < pace.positions
    encoder, config = speech._configs(settings)
    ours = speech_model(method, config)
    wanted = sum(parameter.numel() for parameter in ours.parameters() if parameter.requires_grad)
    found = sum(parameter.numel() for parameter in built[0])
    # heads and what stands for hidden frames may be laid out otherwise
    assert abs(found - wanted) < 0.02 * wanted
    assert ours.encoder.config.hidden_size == encoder.hidden_size


def settings_of(recordings, folder, method, encoder=None):
    data = AudioDataArguments(dataset=str(recordings / "*.wav"), batch_seconds=4.0, max_seconds=1.0)
    return {
        "method": method, "encoder": str(recordings / f"{encoder or method}.json"), "data": data,
        "folder": str(folder), "arguments": SpeechBenchmark(use_cpu=True), "precision": "fp32",
    }  # fmt: skip


def speech_model(method, config):
    from hfssl.methods import METHODS

    return METHODS[method](config)


def test_the_other_side_of_hubert_has_batches_of_like_length():
    lengths = np.random.default_rng(0).permutation(np.repeat(np.arange(1, 11), 20))
    sampler = LikeLength(lengths, 40, seed=0)
    first, second = list(sampler), list(sampler)
    assert first != second
    for batches in (first, second):
        assert sorted(row for batch in batches for row in batch) == list(range(200))
        assert all(lengths[batch].sum() <= 40 for batch in batches)
        assert all(np.ptp(lengths[batch]) <= 1 for batch in batches)
        # what is cut off of them is little, and nearly all are full
        assert sum(lengths[batch].min() * len(batch) for batch in batches) > 0.95 * lengths.sum()
        assert np.median([lengths[batch].sum() for batch in batches]) > 0.85 * 40
    # the order is not that of the lengths
    assert np.mean(np.diff([lengths[batch[0]] for batch in first]) >= 0) < 0.8
    assert list(LikeLength(np.array([50, 3]), 40, seed=0)) in ([[0], [1]], [[1], [0]])


@pytest.mark.usefixtures("quick_units")
def test_sound_of_the_other_side_is_read_from_a_file(recordings, tmp_path):
    prepare(settings_of(recordings, tmp_path, "hubert"))
    sounds = Sounds(tmp_path)
    assert len(sounds) == 40 and sorted(set(sounds.lengths // 1600)) == [3, 4, 5, 6, 7, 8, 9, 10]
    for row in (0, 39):
        sound, of_frames = sounds[row]
        assert len(sound) == sounds.lengths[row] and abs(sound.mean()) < 1e-3
        assert np.square(sound).mean() == pytest.approx(1.0, abs=1e-2)
        assert of_frames.min() >= 0 and len(of_frames) == pytest.approx(50 * len(sound) / 16_000, abs=2)


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
    assert 0.6 * 4 < theirs["items_per_step"] < 1.4 * 4 and 0.6 * 4 < ours["items_per_step"] <= 4
    assert 0 <= ours["padding"] < 0.2 and ours["flops_per_position"] > 0


def test_what_the_other_side_does_not_train_is_refused(recordings, tmp_path):
    with pytest.raises(UserError, match="feat_extract_norm=layer.* such as wav2vec2-small"):
        prepare(settings_of(recordings, tmp_path, "wav2vec2", "group"))


def test_who_has_no_such_method_is_refused():
    with pytest.raises(UserError, match="--against torchaudio` has no wav2vec2 .*: pass transformers"):
        run_speech_benchmark("wav2vec2", SpeechBenchmark(against="torchaudio"), AudioDataArguments())
    for settings, said in (
        ({"blocks": 0}, "--blocks"), ({"precision": "int8"}, "int8"), ({"encoder": "org/name"}, "from scratch: choose"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            SpeechBenchmark(**settings)
