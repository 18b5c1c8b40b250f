"""`recipes/mae.py` as a command."""

import json

import pytest
from image_recipes import check_result, run, stopped_and_continued, the_error


def test_from_digits_to_a_plain_vit_with_reconstructions(tmp_path):
    done = run("mae", tmp_path, dataset="digits", probe_dataset=None, probe_max_samples=300)
    assert done.poll() == 0, done.stderr
    assert "k-NN, k = 20" in done.stdout and "reconstructions.png" in done.stdout
    records = check_result(tmp_path / "out")
    [loss] = [record for record in records if record["protocol"] == "held_out_loss"]
    assert loss["value"] < loss["baselines"]["before"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["ViTModel"] and config["image_size"] == 16
    assert (tmp_path / "out" / "assets" / "reconstructions.png").stat().st_size > 5000


@pytest.mark.slow
def test_stopped_and_continued_it_is_the_same_run(tmp_path):
    stopped_and_continued("mae", tmp_path, gradient_accumulation_steps=2, dataloader_num_workers=1)
    check_result(tmp_path / "parts" / "out")


@pytest.mark.slow
def test_killed_and_continued_it_is_the_same_run(tmp_path):
    stopped_and_continued("mae", tmp_path, number="SIGKILL")


def test_mistakes_end_in_one_sentence(tmp_path):
    for settings, words in [
        ({"encoder": "resnet-18", "encoder_config": None, "image_size": 32}, "visible patches alone, which a resnet"),
        ({"mask_ratio": 0.99}, "leaves 0 of 16 patches visible"),
        ({"decoder_hidden_size": 30}, "multiple of 4 and of `decoder_num_attention_heads`, got 30 and"),
        ({"image_size": 18}, "is no multiple of the encoder's patches of 4 pixels"),
    ]:
        error = the_error(run("mae", tmp_path / "log", output_dir=tmp_path / "out", **settings))
        assert words in error, error
