"""`recipes/{hubert,wav2vec2,best_rq,cpc}.py` as commands."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from recipe_process import recipe_server
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining

import hfssl.methods  # noqa: F401 - what the result folders hold is registered
from hfssl.modeling.base import load_plain_encoder, read_encoder_config


WAVE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
BANKS = {name: value for name, value in WAVE.items() if "conv" not in name}
SETTINGS = {
    "hubert": {"encoder_config": WAVE, "num_units": 8, "kmeans_restarts": 1},
    "wav2vec2": {"encoder_config": WAVE, "num_codes": 8, "num_negatives": 5},
    "best_rq": {"encoder_config": BANKS, "num_codes": 16},
    "cpc": {"encoder_config": {"conv_dim": [8] * 5, "hidden_size": 8}, "num_negatives": 5, "num_steps": 2},
}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Hisses of half a second or a little more."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for i in range(70):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.standard_normal(8_000 + 40 * i), 16_000)
    return folder


def run(method, folder, recordings, drawn=True, **settings):
    settings = {
        "dataset": recordings, "max_steps": 2, "save_steps": 2, "eval_steps": 2, "report_to": "none", "precision": "fp32",
        "batch_seconds": 4, "max_seconds": 2, "max_held_out": 6, "output_dir": folder / "out", **SETTINGS[method], **settings,
    }  # fmt: skip
    words = []
    for name, value in settings.items():
        if value is None:
            continue
        words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else value]
    return recipe_server().run(folder, *words, script=f"recipes/{method}.py", drawn=drawn)


def test_two_iterations_of_hubert(tmp_path, recordings):
    # in halves: what units are made of comes out of the encoder so too
    done = run("hubert", tmp_path, recordings, iterations=2, precision="bf16")
    assert done.poll() == 0, done.stderr
    out, before = tmp_path / "out", tmp_path / "out-iteration-1"
    folders = [folder / "pretraining" for folder in (before, out)]
    first, second = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert (first["unit_features"], second["unit_features"], second["unit_layer"]) == ("mfcc", "layer", 1)
    dims = [load_file(folder / "model.safetensors")["unit_centroids"].shape for folder in folders]
    assert dims == [(8, 39), (8, 32)]
    assert done.stderr.count("8 units in use") == 2 and "Iteration 2 of 2" in done.stderr
    # a batch is so many seconds, not samples
    assert "learning_rate 0.001 (of wide encoders 0.0005)" in done.stderr
    assert type(AutoModel.from_pretrained(out)).__name__ == "HubertModel"
    assert AutoFeatureExtractor.from_pretrained(out).sampling_rate == 16_000

    # the same command goes on from the first, whatever the log is to be like
    again = run("hubert", tmp_path, recordings, iterations=2, precision="bf16", logging_steps=1)
    assert again.poll() == 0, again.stderr
    assert "Iteration 1 of 2 is done" in again.stderr and "The run is finished" in again.stderr
    # another one does not
    others = tmp_path / recordings.name
    shutil.copytree(recordings, others)
    (others / "1.wav").write_bytes((others / "2.wav").read_bytes())
    changed = {"learning_rate": 0.01, "seed": 7, "max_steps": 3, "dataset": others}
    other = run("hubert", tmp_path, recordings, iterations=2, precision="bf16", **changed)
    assert other.poll() == 1
    assert f"{before} holds an earlier iteration that this command would not make" in other.stderr
    for words in (
        "learning_rate was 0.001, is 0.01",
        "seed was 42, is 7",
        "max_steps was 2, is 3",
        "the digest of the",
    ):
        assert words in other.stderr
    assert f"--unit_encoder {before} --iterations 1" in other.stderr


def test_hubert_around_wavlm(tmp_path, recordings):
    done = run("hubert", tmp_path, recordings, encoder_config={**WAVE, "model_type": "wavlm"})
    assert done.poll() == 0, done.stderr
    again = AutoModelForPreTraining.from_pretrained(tmp_path / "out" / "pretraining")
    encoder = AutoModel.from_pretrained(tmp_path / "out")
    assert type(encoder).__name__ == type(again.encoder).__name__ == "WavLMModel"
    for name, tensor in again.encoder.state_dict().items():
        assert tensor.equal(encoder.state_dict()[name])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["wav2vec2", "best_rq", "cpc"])
def test_from_recordings_to_an_encoder(tmp_path, recordings, method):
    done = run(method, tmp_path, recordings)
    assert done.poll() == 0, done.stderr
    out = tmp_path / "out"
    again = AutoModelForPreTraining.from_pretrained(out / "pretraining")
    encoder = load_plain_encoder(out) if method == "cpc" else AutoModel.from_pretrained(out)
    for name, tensor in again.encoder.state_dict().items():
        assert tensor.equal(encoder.state_dict()[name])
    assert (out / "config.json").exists() == (method != "cpc")
    assert "def load_encoder(folder)" in (out / "README.md").read_text() or method != "cpc"


@pytest.mark.parametrize(
    "method, changes, refused",
    [
        ("cpc", {"conv_stride": [4, 4, 2, 2, 2]}, {"hidden_size": 16}),
        ("best_rq", {"hidden_dropout": 0.25}, {"num_hidden_layers": 5}),
    ],
)
def test_a_result_is_continued(tmp_path, recordings, method, changes, refused):
    """CPC's has no configuration that transformers knows."""
    assert run(method, tmp_path, recordings, max_steps=1, drawn=False).poll() == 0
    stated = {"encoder": tmp_path / "out", "encoder_config": changes, "max_steps": 1}
    done = run(method, tmp_path / "on", recordings, drawn=False, **stated)
    assert done.poll() == 0, done.stderr
    assert json.loads((tmp_path / "on" / "out" / "run.json").read_text())["base_model"].endswith("out")
    made = read_encoder_config(tmp_path / "on" / "out").to_dict()
    assert {name: list(made[name]) if name == "conv_stride" else made[name] for name in changes} == changes
    for other, words in [
        (refused, "asks for other weights than"),
        ({"nonsense": 1}, "out has no field 'nonsense'"),
        ({"model_type": "hubert"}, "Pass one of them"),
        *([] if method == "cpc" else [({"layerdrop": 0.5}, "layers are never left out in training")]),
    ]:
        done = run(method, tmp_path / "no", recordings, **{**stated, "encoder_config": other})
        assert done.poll() == 1 and words in done.stderr, done.stderr
