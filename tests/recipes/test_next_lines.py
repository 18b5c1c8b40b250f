"""The lines under "Next:" at the end of a run can be copied, and go on with its data, its pooling and its size."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from image_recipes import run as run_image_recipe
from image_recipes import the_error
from PIL import Image
from recipe_process import recipe_server
from tiny_vision import build
from transformers import AutoModel, ViTImageProcessor

from hfssl.modeling.pooling import pool_features


def images(folder: Path, classes: tuple[str, ...] = ("",), number: int = 40) -> Path:
    """Small images in a folder with an awkward name, in one folder for each class."""
    for c, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(number):
            pixels = np.random.default_rng((c, i)).integers(0, 128 + 60 * c, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def next_lines(stdout: str) -> dict[str, list[str]]:
    """The words of each command under "Next:", by the name of its recipe."""
    lines = stdout.split("\nNext:\n", 1)[1].splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("  ")]
    assert commands and all(words[:2] in (["accelerate", "launch"], ["python", "-c"]) for words in commands)
    return {Path(words[2]).stem if words[0] == "accelerate" else "python": words[2:] for words in commands}


def follow(folder: Path, words: list[str], *more) -> str:
    done = recipe_server().run(folder, *words[1:], *more, script=words[0], drawn=False)
    assert done.poll() == 0, done.stderr
    return done.stdout + done.stderr


def value_of(words: list[str], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A finished run of DINO on labelled images, which projects the mean of the patches, and its "Next:" lines."""
    folder = tmp_path_factory.mktemp("a run") / "it's [one]"
    data = images(folder / "my data {a}", ("cats", "dogs"))
    done = run_image_recipe(
        "dino", folder, dataset=data, probe_dataset=data, max_steps=2, eval_steps=2, image_size=16, local_crops=0
    )
    assert done.poll() == 0, done.stderr
    return folder / "out", data, done.stdout, next_lines(done.stdout)


SHORT = {
    "probe": ["--protocol", "knn"],
    "finetune": ["--seeds", 1, "--min_steps", 1, "--epochs", 0.1],
    "embed": [],
    "dino": ["--max_steps", 1, "--report_to", "none", "--probe_dataset", "none", "--per_device_train_batch_size", 8],
}


def test_each_line_can_be_followed(labelled, tmp_path):
    out, data, _, lines = labelled
    assert set(lines) == set(SHORT)
    for recipe, words in lines.items():
        assert value_of(words, "--encoder") == str(out) and value_of(words, "--dataset") == str(data)
        more = [] if recipe == "dino" else ["--output_dir", tmp_path / recipe]
        said = follow(tmp_path / f"log-{recipe}", words, *SHORT[recipe], *more)
        assert recipe != "embed" or "Pooling: mean, as the encoder was trained" in said
    again = Path(value_of(lines["dino"], "--output_dir"))
    assert again == out.with_name("out-2") and (again / "model.safetensors").is_file()
    assert json.loads((again / "hfssl.json").read_text())["image_size"] == 16
    assert AutoModel.from_pretrained(again).config.image_size == 16


def test_a_probe_of_the_folder_is_that_of_the_table(labelled, tmp_path):
    """Of the feature that the method projects, on the images that it was probed on, though no flag names either."""
    out, data, stdout, lines = labelled
    assert value_of(lines["probe"], "--pooling") == "mean"
    words = ["recipes/probe.py", "--encoder", out, "--protocol", "knn", "--output_dir", tmp_path / "probe"]
    assert re.search(r"Probes on .*my data \{a\}.*, pooling mean", stdout)
    assert "pooling mean" in follow(tmp_path / "log", words)
    table = json.loads((out / "results.json").read_text())
    (ours, *_), (theirs, *_) = (
        [r for r in records if r["protocol"] == "knn"]
        for records in (table, json.loads((tmp_path / "probe" / "results.json").read_text()))
    )
    same = ("task", "num_eval", "num_train", "value", "baselines")
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}


def test_the_snippet_of_the_card_makes_the_feature_that_was_measured(labelled, monkeypatch):
    out = labelled[0]
    monkeypatch.chdir(out.parent)  # a card says nothing of the folders above its own
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)[1]
    names = {"image": Image.new("RGB", (16, 16), "red")}
    exec(code, names)
    encoder = names["encoder"]
    pixels = names["processor"](names["image"], return_tensors="pt").pixel_values
    expected = pool_features(encoder(pixels), encoder.config, "mean")
    torch.testing.assert_close(names["feature"], expected)
    assert not torch.allclose(expected, pool_features(encoder(pixels), encoder.config, "cls"), atol=1e-3)


def test_images_without_labels_are_not_probed(tmp_path):
    """Neither on themselves nor, silently, on those that come with hfssl."""
    data = images(tmp_path / "satellite")
    done = run_image_recipe("mae", tmp_path, drawn=False, dataset=data, max_steps=1, eval_steps=1)
    assert done.poll() == 0, done.stderr
    assert set(next_lines(done.stdout)) == {"embed", "mae"}
    for recipe in ("probe", "finetune"):
        flags = ["--encoder", tmp_path / "out", "--output_dir", tmp_path / recipe]
        error = the_error(recipe_server().run(tmp_path / f"log-{recipe}", *flags, script=f"recipes/{recipe}.py"))
        assert f"trained on {data}, and its folder names no labelled images. Pass `--dataset`" in error
    # and this is what the run has said
    [advice] = re.findall("How good it is, labels say; .* will do: (.*)", done.stdout)
    *words, own = shlex.split(advice)[2:]
    assert own == "my_labelled_images/" and words[-1] == "--dataset"
    follow(tmp_path / "named", [*words, "digits"], "--output_dir", tmp_path / "probe", "--protocol", "knn",
           "--max_train_samples", 100, "--max_test_samples", 20)  # fmt: skip


def test_a_checkpoint_that_is_continued_on_images_with_masks_is_judged_by_them(tmp_path):
    build("dinov2").save_pretrained(tmp_path / "dino")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "dino")
    root = tmp_path / "my scenes"
    for number in range(60):
        values = np.zeros((16, 16), np.uint8)
        values[:, : 4 + number % 8] = 1
        for name, pixels in (("images", np.stack([values * (99 + number)] * 3, -1)), ("masks", values)):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    settings = {"encoder": tmp_path / "dino", "encoder_config": None, "dataset": root, "max_steps": 1, "eval_steps": 1}
    error = the_error(run_image_recipe("dinov2", tmp_path / "wrong", **settings, probe_dataset=root))
    assert f"recipes/probe.py ENCODER --protocol patches --dataset '{root}'" in error and "`--probe_labels`" in error
    done = run_image_recipe("dinov2", tmp_path, **settings)
    assert done.poll() == 0, done.stderr
    assert "60 files in masks/ are left out" in done.stderr and "Data: 60 image files." in done.stderr
    assert "the masks beside the images say: the command with `--protocol patches` below" in done.stdout
    words = next_lines(done.stdout)["probe"]
    assert value_of(words, "--beside") == str(tmp_path / "dino") and value_of(words, "--dataset") == str(root)
    follow(tmp_path / "log", words, "--output_dir", tmp_path / "probe", "--patch_image_size", 16)
    records = json.loads((tmp_path / "probe" / "results.json").read_text())
    assert "dino" in records[0]["baselines"]


def test_lines_on_text(tmp_path):
    data = tmp_path / "my texts.txt"
    data.write_text("\n".join(f"the quick brown fox number {i} jumps over the lazy dog" for i in range(300)))
    config = json.dumps({"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2})
    short = ["--max_steps", 1, "--per_device_train_batch_size", 4, "--report_to", "none"]
    words = ["recipes/mlm.py", "--dataset", data, "--encoder", "bert-tiny", "--encoder_config", config,
             "--max_length", 32, "--vocab_size", 200, "--output_dir", tmp_path / "out"]  # fmt: skip
    lines = next_lines(follow(tmp_path / "log", words, *short))
    assert set(lines) == {"python", "mlm", "glue"}
    assert value_of(lines["mlm"], "--max_length") == "32" and "--vocab_size" not in lines["mlm"]
    follow(tmp_path / "again", lines["mlm"], *short)
    assert (tmp_path / "out-2" / "model.safetensors").is_file()
    script = tmp_path / "script.py"
    script.write_text(lines["python"][0])
    assert "'score'" in follow(tmp_path / "fill", [str(script)])
