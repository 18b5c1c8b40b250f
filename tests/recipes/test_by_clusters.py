"""`recipes/swav.py` and `recipes/deepcluster.py` as commands."""

import json

import pytest
from image_recipes import check_result, run, stopped_and_continued, the_error
from safetensors.torch import load_file


SETTINGS = {
    "swav": {"queue_size": 40, "queue_start": 0.3, "local_crops": 2},
    "deepcluster": {"num_prototypes": 10, "num_clusterings": 3},
}


@pytest.mark.parametrize("method", SETTINGS)
def test_from_images_to_a_stock_encoder(tmp_path, method):
    done = run(method, tmp_path, **SETTINGS[method])
    assert done.poll() == 0, done.stderr
    check_result(tmp_path / "out")
    assert ("Targets, 3 of 3, of " in done.stderr) == (method == "deepcluster")
    assert not (tmp_path / "out" / "targets").exists()
    weights = load_file(tmp_path / "out" / "pretraining" / "model.safetensors")
    assert weights["queue_count"] == 64 if method == "swav" else weights["target_passes"] == 3
    config = json.loads((tmp_path / "out" / "pretraining" / "config.json").read_text())
    assert config["projector_hidden_dim"] == 512  # narrow, as the encoder is


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("method", SETTINGS)
def test_stopped_and_continued_it_is_the_same_run(tmp_path, method, number):
    stopped_and_continued(method, tmp_path, number=number, dataloader_num_workers=1, **SETTINGS[method])
    check_result(tmp_path / "parts" / "out")


@pytest.mark.slow
def test_a_checkpoint_is_continued(tmp_path):
    for method, settings in SETTINGS.items():
        first = run(method, tmp_path / method, max_steps=1, **settings)
        assert first.poll() == 0, first.stderr
        source = tmp_path / method / "out"
        settings = {**settings, "encoder": source, "encoder_config": None, "max_steps": 1, "learning_rate": 0}
        done = run(method, tmp_path / f"{method}-2", **settings)
        assert done.poll() == 0, done.stderr
        old, new = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / f"{method}-2" / "out"))
        assert all(old[name].equal(new[name]) for name in old)


def test_mistakes_end_in_one_sentence(tmp_path):
    for method, settings, words in [
        ("swav", {"per_device_train_batch_size": 1}, "and a batch has one here. Pass a larger"),
        ("swav", {"num_prototypes": 1}, "`num_prototypes` must be at least 2, got 1"),
        ("deepcluster", {"num_prototypes": 500}, "images cannot be in 500 clusters. Pass `--num_prototypes"),
    ]:
        error = the_error(run(method, tmp_path / "log", output_dir=tmp_path / "out", **settings))
        assert words in error, error
