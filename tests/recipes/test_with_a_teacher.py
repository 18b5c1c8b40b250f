"""`recipes/moco.py`, `recipes/byol.py`, `recipes/dino.py` and `recipes/dinov2.py` as commands."""

import json

import pytest
from image_recipes import STOP, check_result, flags, run, stopped_and_continued, the_error
from recipe_process import recipe_server
from safetensors.torch import load_file
from tiny_vision import build
from transformers import AutoConfig


# methods, and settings of each that have a state of their own
METHODS = {
    "moco": {"queue_size": 40},
    "byol": {},
    "dino": {"local_crops": 2, "gradient_accumulation_steps": 2},
    "dinov2": {"local_crops": 2},
}


@pytest.mark.slow
def test_from_digits_to_a_stock_teacher_with_probes_and_pictures(tmp_path):
    done = run("dino", tmp_path, dataset="digits", probe_dataset=None, probe_max_samples=300, centering="mean")
    assert done.poll() == 0, done.stderr
    assert "Data: embedded digits" in done.stderr and "knn accuracy" in done.stderr
    assert "Held-out loss" in done.stdout and "k-NN, k = 20" in done.stdout and "linear probe" in done.stdout
    records = check_result(tmp_path / "out")
    assert {"held_out_loss", "knn"} < {record["protocol"] for record in records}
    config = json.loads((tmp_path / "out" / "pretraining" / "config.json").read_text())
    assert (config["num_prototypes"], config["projector_hidden_dim"]) == (1024, 512)  # narrow, as the encoder is
    weights = load_file(tmp_path / "out" / "pretraining" / "model.safetensors")
    assert weights["schedule_position"] == 1.0 and weights["center"].any()
    student, teacher = (weights[f"{name}.encoder.layernorm.weight"] for name in ("student", "teacher"))
    assert not student.equal(teacher)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_continued_it_is_the_same_run(tmp_path, method):
    stopped_and_continued(method, tmp_path, **METHODS[method])
    check_result(tmp_path / "parts" / "out")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_and_continued_it_is_the_same_run(tmp_path, method):
    stopped_and_continued(method, tmp_path, number="SIGKILL", **METHODS[method])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_is_continued(tmp_path, method):
    first = run(method, tmp_path / "a", max_steps=1)
    assert first.poll() == 0, first.stderr
    source = tmp_path / "a" / "out"
    done = run(method, tmp_path / "b", encoder=source, encoder_config=None, max_steps=1, learning_rate=0)
    assert done.poll() == 0, done.stderr
    old, new = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "b" / "out"))
    assert all(old[name].equal(new[name]) for name in old)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, settings, words",
    [
        ("moco", {"per_device_train_batch_size": 1}, "a batch has one here"),
        ("moco", {"queue_size": -1}, "`queue_size` is a number of keys"),
        ("byol", {"momentum_start": 2}, "The teacher momentum must rise within [0, 1]"),
        ("moco", {"local_crops": 2}, "--local_crops has no meaning in moco.py"),
        ("byol", {"local_crops": 2}, "--local_crops has no meaning in byol.py"),
        ("dino", {"student_temperature": 0}, "`student_temperature` must be above 0"),
        ("dino", {"weight_decay_end": -1}, "`--weight_decay_end` is at least 0"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, method, settings, words):
    error = the_error(run(method, tmp_path / "log", output_dir=tmp_path / "out", **settings))
    assert words in error, error


@pytest.mark.slow
def test_a_changed_checkpoint_goes_on_without_the_folder_of_its_gram_teacher(tmp_path):
    for name in ("stock", "teacher"):
        build("dinov3_vit").save_pretrained(tmp_path / name)
    settings = {
        "encoder": tmp_path / "stock", "encoder_config": '{"pos_embed_rescale": null}', "local_crops": 2,
        "gram_weight": 1.0, "gram_teacher": tmp_path / "teacher", "gram_start": 0.0,
    }  # fmt: skip
    whole = run("dinov2", tmp_path / "whole", drawn=False, **settings)
    assert whole.poll() == 0, whole.stderr
    assert AutoConfig.from_pretrained(tmp_path / "whole" / "out").pos_embed_rescale is None
    out = tmp_path / "parts" / "out"
    words, before = flags(output_dir=out, **settings), STOP.format(step=4, signal="SIGTERM")
    first = recipe_server().run(tmp_path / "parts", *words, script="recipes/dinov2.py", before=before)
    assert first.poll() == 143, first.stderr
    (tmp_path / "teacher").rename(tmp_path / "elsewhere")
    second = recipe_server().run(tmp_path / "again", *words, script="recipes/dinov2.py")
    assert second.poll() == 0 and "Continuing from" in second.stderr, second.stderr
    for name in ("model.safetensors", "pretraining/model.safetensors", "checkpoint-6/optimizer.pt"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes(), name
    # a run that begins needs it, and says so before it has measured or trained anything
    settings["output_dir"] = tmp_path / "new"
    assert "gram_teacher=" in the_error(run("dinov2", tmp_path / "new log", **settings))
    assert not list((tmp_path / "new").glob("checkpoint-*"))
