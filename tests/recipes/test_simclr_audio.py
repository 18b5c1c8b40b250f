"""`recipes/simclr.py --modality audio` as a command."""

import json

import numpy as np
import pytest
from image_recipes import STOP, the_error
from recipe_process import recipe_server
from sounds import NAMES, RATE, tone, wav
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining

import hfssl.methods  # noqa: F401 - what the result folders hold is registered


TINY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_length": 64,
    "num_mel_bins": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Hisses around three pitches, in a folder for each."""
    folder = tmp_path_factory.mktemp("recordings")
    for row in range(72):
        (folder / NAMES[row % 3]).mkdir(exist_ok=True)
        (folder / NAMES[row % 3] / f"{row}.wav").write_bytes(wav(tone(row), RATE))
    return folder


def flags(recordings, out, **settings) -> list:
    settings = {
        "modality": "audio", "dataset": recordings, "encoder_config": TINY, "max_steps": 6, "save_steps": 3,
        "eval_steps": 3, "per_device_train_batch_size": 16, "report_to": "none", "precision": "fp32",
        "max_held_out": 8, "output_dir": out, **settings,
    }  # fmt: skip
    words = ((name, json.dumps(value) if isinstance(value, dict) else value) for name, value in settings.items())
    return [word for name, value in words for word in (f"--{name}", value)]


def run(folder, recordings, before="", script="simclr", drawn=True, **settings):
    words = flags(recordings, settings.pop("output_dir", folder / "out"), **settings)
    return recipe_server().run(folder, *words, script=f"recipes/{script}.py", before=before, drawn=drawn)


def test_stopped_and_continued_it_is_the_same_run_to_a_stock_encoder(tmp_path, recordings):
    whole = run(tmp_path / "whole", recordings, drawn=False)
    assert whole.poll() == 0, whole.stderr
    out = tmp_path / "parts" / "out"
    first = run(tmp_path / "parts", recordings, before=STOP.format(step=4, signal="SIGTERM"))
    assert first.poll() == 143 and not (out / "config.json").exists(), first.stderr
    second = run(tmp_path / "again", recordings, output_dir=out)
    assert second.poll() == 0 and "Continuing from" in second.stderr, second.stderr
    for name in ("model.safetensors", "pretraining/model.safetensors", "checkpoint-6/optimizer.pt"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes(), name
    encoder, extractor = AutoModel.from_pretrained(out), AutoFeatureExtractor.from_pretrained(out)
    assert type(encoder).__name__ == "ASTModel" and extractor.max_length == 64
    again = AutoModelForPreTraining.from_pretrained(out / "pretraining")
    assert all(tensor.equal(encoder.state_dict()[name]) for name, tensor in again.encoder.state_dict().items())
    assert "recordings contrasted at once, in training 16)" in whole.stdout
    assert json.loads((out / "hfssl.json").read_text()) | {"modality": "audio", "pooling": "cls"} == json.loads(
        (out / "hfssl.json").read_text()
    )
    assert {path.name for path in (out / "assets").iterdir()} >= {"loss.png", "views.png"}
    assert "simclr.py --modality audio --encoder" in whole.stdout


@pytest.mark.slow
def test_a_checkpoint_that_is_continued_is_measured_before_and_after(tmp_path, recordings):
    first = run(tmp_path, recordings, max_steps=1)
    assert first.poll() == 0 and "labels say: `--probe_dataset` takes them" not in first.stdout, first.stderr
    settings = {"encoder": tmp_path / "out", "encoder_config": {}, "max_steps": 1, "probe_dataset": recordings}
    done = run(tmp_path / "next", recordings, **settings)
    assert done.poll() == 0, done.stderr
    records = json.loads((tmp_path / "next" / "out" / "results.json").read_text())
    assert {record["protocol"] for record in records} >= {"held_out_loss", "knn", "linear", "layers"}
    assert all("before" in record["baselines"] for record in records if record["protocol"] in ("knn", "linear"))


def test_views_are_shown(tmp_path, recordings):
    sheet = tmp_path / "views.png"
    words = ["--method", "simclr", "--output", sheet, "--num_images", 2, *flags(recordings, tmp_path / "out")]
    done = recipe_server().run(tmp_path, *words, script="recipes/show_views.py")
    assert done.poll() == 0, done.stderr
    assert f"2 recordings: {sheet}" in done.stdout and "at most 0.64 s" in done.stdout
    assert sheet.is_file() and sheet.with_suffix(".html").read_text().count("<audio") == 2


def test_mistakes_end_in_one_sentence(tmp_path, recordings):
    (tmp_path / "run.yaml").write_text("modality: audio\n")
    for settings, said in [
        ({"per_device_train_batch_size": 1}, "SimCLR tells recordings apart by comparing those of a batch"),
        (
            {"encoder": "hubert-mini", "encoder_config": {}},
            "a hubert takes none. Choose an encoder that does: an AST, ",
        ),
        ({"modality": "image", "config": tmp_path / "run.yaml", "batch_seconds": 3}, "unknown flag --batch_seconds"),
        ({"batch_seconds": 3}, "--batch_seconds has no meaning in simclr.py"),
        ({"image_size": 32}, "unknown flag --image_size"),
        ({"modality": "speech"}, "`--modality` is image or audio, got 'speech'"),
    ]:
        error = the_error(run(tmp_path / "log", recordings, output_dir=tmp_path / "out", **settings))
        assert said in error, error
    done = recipe_server().run(tmp_path, "--config", tmp_path / "run.yaml", script="recipes/simclr.py")
    assert "a yaml cannot choose it: pass `--modality audio` beside `--config`" in the_error(done)


def test_what_is_compared_is_learned():
    """Two views of a tone are nearer to each other than to those of other pitches after a few steps."""
    import torch
    from sounds import ast

    from hfssl import SimclrForPreTraining, SimclrPreTrainingConfig
    from hfssl.data.audio.views import AudioViews
    from hfssl.data.stream import Block
    from hfssl.evaluation.held_out_loss import HeldOutLossEvaluator
    from hfssl.functional import keyed
    from hfssl.functional.keyed import Use

    torch.manual_seed(0)
    config = SimclrPreTrainingConfig(encoder_config=ast().config, contrastive_temperature=0.2, pooling="cls")
    model = SimclrForPreTraining(config).train()
    views = AudioViews(model.encoder.config)
    evaluator = HeldOutLossEvaluator([wav(tone(row)) for row in range(100, 112)], views, modality="audio")
    chance = model.method.chance(config, evaluator.loss_context(model))["loss"]
    sounds = [wav(tone(row)) for row in range(24)]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(25):
        rows = views.rows(Block({"audio": sounds}, keyed.key(Use.SAMPLE, step, np.arange(24)), step))
        loss = model(**views.collator("cpu")(rows.columns)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert evaluator.measure(model.eval())["loss"] < chance - 0.5
    assert evaluator.get_config_dict()["recordings"] == 12
