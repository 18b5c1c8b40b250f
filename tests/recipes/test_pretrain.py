"""`recipes/pretrain.py`: what it chooses, its steps, and (slow) the whole on images and on texts."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from image_recipes import TINY
from labelled import png
from recipe_process import ROOT, TINY_ENCODER, recipe_server

from hfssl import RecipeParser
from hfssl.cli.declared import declared_parser, function_word
from hfssl.cli.pretrain import PretrainArguments, Pretraining
from hfssl.errors import UserError
from hfssl.evaluation.results import Result, write_results


@pytest.fixture
def images(tmp_path) -> Path:
    """Two classes of images that are easy to tell apart."""
    for c, name in enumerate(("cats", "dogs")):
        (tmp_path / "my images" / name).mkdir(parents=True)
        for i in range(40):
            pixels = np.random.default_rng((c, i)).integers(0, 100 + 150 * c, (12, 12, 3), dtype=np.uint8)
            (tmp_path / "my images" / name / f"{i}.png").write_bytes(png(pixels))
    return tmp_path / "my images"


@pytest.fixture
def texts(tmp_path) -> Path:
    words = {"good": ("fine", "nice", "happy"), "bad": ("awful", "poor", "sad")}
    rows = [
        f"a {words[label][i % 3]} day number {i} in a {words[label][(i // 3) % 3]} place,{label}"
        for i in range(60) for label in words
    ]  # fmt: skip
    (tmp_path / "reviews.csv").write_text("text,stars\n" + "\n".join(rows) + "\n")
    return tmp_path / "reviews.csv"


@pytest.fixture
def whole(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipes/pretrain.py"])

    def build(**asked) -> Pretraining:
        return Pretraining(PretrainArguments(output_dir=str(tmp_path / "out"), **asked))

    return build


def commands(whole: Pretraining) -> dict[str, list[str]]:
    return {step.name: step.words() for step in whole.steps()}


def value_of(words: list[str], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


def check_flags(words: list[str]) -> None:
    """The recipe that a command names takes its flags."""
    assert words[0] == "python"
    recipe, flags = ROOT / words[1], words[2:]
    word = function_word(flags)
    declared = declared_parser(recipe, word)
    other = ROOT / "recipes" / f"{value_of(flags, '--method')}.py"
    options = declared.options | ({"as_in": other} if recipe.stem == "show_views" else {})
    RecipeParser(*declared.classes(), **options)
    known = set(RecipeParser(*declared.stand_ins(), **declared.options)._option_string_actions)
    if recipe.stem == "show_views":
        as_in = declared_parser(other, word)
        known |= set(RecipeParser(*as_in.stand_ins(), **as_in.options)._option_string_actions)
    assert {each for each in flags if each.startswith("--")} <= known, words


def test_with_labels(whole, images):
    made = whole(dataset=str(images), labelled=str(images), budget_minutes=100, training={"image_size": 16})
    steps = commands(made)
    assert list(steps) == ["views", "pre-training", "probes", "fine-tuning", "label efficiency", "report"]
    for words in steps.values():
        check_flags(words)
    training = steps["pre-training"]
    assert training[1] == "recipes/simclr.py" and value_of(training, "--budget_minutes") == "60.0"
    assert value_of(training, "--dataset") == value_of(training, "--probe_dataset") == str(images)
    # all that is measured on afterwards is left out, also where there are more than probes on the way take
    assert value_of(training, "--probe_max_samples") == "none" and "--probe_max_samples" not in steps["views"]
    assert value_of(training, "--per_device_train_batch_size") == "16" and value_of(training, "--image_size") == "16"
    folders = {value_of(steps[name], "--output_dir") for name in ("fine-tuning", "label efficiency")}
    assert len(folders) == 1  # so that what both train is trained once
    assert (
        "80 images" in made.intro() and "contrast (SimCLR)" in made.intro() and "60 for pre-training" in made.intro()
    )
    assert made.about["why"] and made.about["found"] == "80 images"


def test_the_configuration_of_a_hub_data_set_reaches_all_steps(whole, images):
    same, other = {"dataset_config": "default"}, {"labelled_config": "plain"}
    for asked, of_labels in ((same, "default"), (same | other, "plain"), (other, "plain")):
        steps = commands(whole(dataset=str(images), labelled=str(images), **asked))
        for words in steps.values():
            check_flags(words)
        for name in ("probes", "fine-tuning", "label efficiency"):
            assert value_of(steps[name], "--dataset_config") == of_labels
        assert value_of(steps["pre-training"], "--probe_dataset_config") == of_labels
        assert value_of(steps["pre-training"], "--dataset_config") == asked.get("dataset_config")
    with pytest.raises(UserError, match="`--labelled_config plain` is about labelled samples"):
        whole(dataset=str(images), **other)


def test_without_labels(whole, images):
    steps = commands(whole(dataset=str(images), budget_minutes=100))
    assert list(steps) == ["views", "pre-training", "features"]
    for words in steps.values():
        check_flags(words)
    assert value_of(steps["pre-training"], "--budget_minutes") == "90.0"
    assert "--probe_dataset" not in steps["pre-training"] and "--probe_max_samples" not in steps["pre-training"]
    assert value_of(steps["features"], "--report") == "duplicates,outliers,clusters"


def test_without_data(whole):
    """The letters, and their labels."""
    steps = commands(whole())
    assert value_of(steps["pre-training"], "--probe_dataset") == "letters" == value_of(steps["probes"], "--dataset")
    assert "--dataset" not in steps["pre-training"]


def test_a_column_that_is_named_is_that_of_the_labelled_samples_of_the_same_data(whole, texts):
    asked = {"dataset": str(texts), "label_column": "stars", "training": {"text_column": "text"}}
    steps = commands(whole(labelled=str(texts), **asked))
    assert value_of(steps["pre-training"], "--text_column") == "text"
    assert value_of(steps["pre-training"], "--probe_column") == "text"
    for name in ("probes", "fine-tuning", "label efficiency"):
        assert value_of(steps[name], "--text_column") == "text"
    others = commands(whole(labelled="opinions.csv", **asked))
    assert "--probe_column" not in others["pre-training"] and "--text_column" not in others["probes"]


@pytest.mark.parametrize("length", ["max_steps", "epochs"])
def test_a_length_of_its_own_takes_the_place_of_the_minutes(whole, images, length):
    steps = commands(whole(dataset=str(images), training={length: 3}))
    assert value_of(steps["pre-training"], f"--{length}") == "3" and "--budget_minutes" not in steps["pre-training"]


def test_texts(whole, texts):
    made = whole(dataset=str(texts), labelled=str(texts), label_column="stars", num_processes=2)
    steps = commands(made)
    assert steps["pre-training"][:4] == ["torchrun", "--nproc_per_node", "2", "recipes/mlm.py"]
    assert value_of(steps["pre-training"], "--probe_label_column") == value_of(steps["probes"], "--label_column")
    assert "masking" in made.intro()
    for name in ("probes", "fine-tuning", "label efficiency"):
        check_flags(steps[name])


def test_pairs_are_probed_by_their_images(whole, images):
    for path in images.rglob("*.png"):
        path.with_suffix(".txt").write_text(f"a picture of number {path.stem}")
    made = whole(dataset=str(images), labelled=str(images))
    steps = commands(made)
    assert steps["pre-training"][1] == "recipes/clip.py" and "--probe_dataset" not in steps["pre-training"]
    assert value_of(steps["probes"], "--encoder").endswith("encoder/image")
    for words in steps.values():
        check_flags(words)


def test_recordings_need_the_flags_of_their_modality(whole, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", np.random.default_rng(i).normal(size=4000) * 0.1, 16_000)
    steps = commands(whole(dataset=f"{tmp_path}/*.wav", labelled="speech"))
    assert value_of(steps["pre-training"], "--modality") == value_of(steps["views"], "--modality") == "audio"
    for words in steps.values():
        check_flags(words)
    steps = commands(whole(dataset=f"{tmp_path}/*.wav", method="hubert"))
    assert steps["pre-training"][1] == "recipes/hubert.py" and "--modality" not in steps["pre-training"]


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"method": "mlm"}, "`--method mlm` is for text, and the data are images: pass one of barlow_twins, "),
        ({"method": "nope"}, "`--method` is one of .*, got 'nope'"),
        ({"dataset": "letters", "label_column": "x"}, "`--label_column x` is about labelled samples"),
        ({"budget_minutes": 0.0}, "`--budget_minutes` must be more than 0"),
        ({"training": {"seed": 1}}, "`--training` names `seed`, which is a flag here: pass it as `--seed`."),
    ],
)
def test_what_cannot_be(whole, asked, said):
    with pytest.raises(UserError, match=said):
        whole(**asked)


def test_it_is_one_process(whole, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="`--num_processes`"):
        whole()


def record_of(protocol: str, num_train: int, encoder: float, scratch: float, **hyperparameters) -> Result:
    return Result.from_scores(
        {0: encoder, 1: encoder + 0.01}, {"random_init": {0: scratch, 1: scratch + 0.01}}, protocol=protocol,
        version=1, model="m", task="t", split="test", metric="accuracy", num_train=num_train, num_eval=100,
        hyperparameters=hyperparameters,
    )  # fmt: skip


def pretend(whole: Pretraining, num_train: int, **more) -> None:
    """Leave what 120 seconds of pre-training leave in which 30,000 images were seen, each in two views."""
    (whole.folder / "encoder").mkdir(parents=True, exist_ok=True)
    run = {"cost": {"seconds": 120.0}, "seen": {"rows": 30_000}} | more
    (whole.folder / "encoder" / "run.json").write_text(json.dumps(run))
    write_results(whole.folder / "probes" / "results.json", [record_of("linear", num_train, 0.8, 0.5)])


def test_trainings_on_labels_keep_to_their_share(whole, images):
    """500 views a second; of 1,000 labels 3 seeds of both kinds see 6 × (20,000 + 12,800 + 2,000) samples."""
    made = whole(dataset=str(images), labelled=str(images), budget_minutes=100)
    pretend(made, 1000)
    minutes = 6 * (20_000 + 12_800 + 2_000) / 500 / 60  # 7 of the 30 that they may take
    assert "--epochs" not in commands(made)["fine-tuning"]
    shorter = whole(dataset=str(images), labelled=str(images), budget_minutes=minutes)  # of which 0.3 are theirs
    steps = commands(shorter)
    for name in ("fine-tuning", "label efficiency"):
        assert value_of(steps[name], "--epochs") == "6.0" and value_of(steps[name], "--min_steps") == "60"
    stated = commands(
        whole(dataset=str(images), labelled=str(images), budget_minutes=minutes, finetuning={"epochs": 9})
    )
    assert value_of(stated["fine-tuning"], "--epochs") == "9"
    # one of two GPUs is half as fast, one process on a CPU is not
    for device, epochs in (("CPU", "6.0"), ("NVIDIA H200", "3.0")):
        pretend(shorter, 1000, processes=2, device=device)
        assert value_of(commands(shorter)["fine-tuning"], "--epochs") == epochs
    # what is asked for is not made longer than it is
    few = whole(dataset=str(images), labelled=str(images), budget_minutes=0.1, finetuning={"min_steps": 2})
    assert value_of(commands(few)["fine-tuning"], "--min_steps") == "2"


def test_the_outcome(whole, images):
    made = whole(dataset=str(images), labelled=str(images))
    pretend(made, 1000)
    some = [record_of("label_efficiency", n, 0.7, 0.5, method="fine-tuning", fraction=n / 1000) for n in (10, 100)]
    all_of_them = record_of("label_efficiency", 1000, 0.9, 0.9, method="fine-tuning", fraction=1.0)
    write_results(made.folder / "labels" / "results.json", [*some, all_of_them])
    outcome = made.outcome()
    assert outcome["payoff"].startswith("With 100 labels or fewer, pre-training pays; with 1,000 it is not shown to.")
    assert outcome["usefulness"] == "For these labels: useful." and "by default" not in outcome["payoff"]
    # of 7 minutes 3 are theirs
    commands(made)
    assert (
        "less than by default (--epochs 8.6 instead of 20, --min_steps 86 instead of 200)" in made.outcome()["payoff"]
    )


def pretrain(folder: Path, *flags) -> str:
    done = recipe_server().run(folder / "log", *flags, script="recipes/pretrain.py", timeout=1500)
    assert done.poll() == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def check_whole(out: Path, said: str) -> None:
    record = json.loads((out / "plan.json").read_text())
    assert {each["state"] for each in record["steps"]} == {"done"} and record["why"] and record["outcome"]["payoff"]
    assert record["outcome"]["payoff"] in said and "re-training" in record["outcome"]["payoff"]
    page = (out / "report.html").read_text()
    assert "The steps" in page and "What was measured</h2>" in page and "What is missing" not in page
    assert (out / "encoder" / "model.safetensors").is_file() and (out / "labels" / "model" / "config.json").is_file()
    efficiency = json.loads((out / "labels" / "results.json").read_text())
    assert {each["hyperparameters"].get("fraction") for each in efficiency} >= {0.01, 0.1, 1.0}
    assert (out / "report.html").is_file()
    # what fine-tuning trained on all labels is not trained again
    cells = json.loads((out / "labels" / "cells.json").read_text())
    numbers = [key.split("/")[2] for key in cells]
    assert len(numbers) == 3 * 4 and len(set(numbers)) == 3


FINETUNING = json.dumps({"seeds": 2, "epochs": 1, "min_steps": 2})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_on_images(images, tmp_path):
    training = {"encoder_config": TINY, "image_size": 16, "max_steps": 4, "per_device_train_batch_size": 8,
                "report_to": "none", "save_steps": 2}  # fmt: skip
    flags = ["--dataset", images, "--labelled", images, "--encoder", "vit-mini-patch4", "--training",
             json.dumps(training), "--finetuning", FINETUNING, "--output_dir", tmp_path / "out"]  # fmt: skip
    said = pretrain(tmp_path, *flags)
    check_whole(tmp_path / "out", said)
    assert (tmp_path / "out" / "views.png").is_file()
    again = pretrain(tmp_path, *flags)
    assert again.count("done already") == 6
    # without labels the same pre-training leads to features
    bare = ["--dataset", images, *flags[4:]]
    said = pretrain(tmp_path, *bare[:-1], tmp_path / "bare")
    assert "clusters" in said and (tmp_path / "bare" / "features" / "clusters.csv").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_on_texts(texts, tmp_path):
    config = {name: value for name, value in TINY_ENCODER.items() if name != "model_type"}
    training = {"encoder_config": config, "max_length": 32, "vocab_size": 300, "max_steps": 4,
                "per_device_train_batch_size": 4, "report_to": "none"}  # fmt: skip
    flags = ["--dataset", texts, "--labelled", texts, "--label_column", "stars", "--encoder", "bert-tiny",
             "--training", json.dumps(training), "--finetuning", FINETUNING, "--output_dir", tmp_path / "out"]  # fmt: skip
    check_whole(tmp_path / "out", pretrain(tmp_path, *flags))
    # a step by itself, as it was shown
    record = json.loads((tmp_path / "out" / "plan.json").read_text())
    words = shlex.split(next(each["command"] for each in record["steps"] if each["name"] == "probes"))
    done = recipe_server().run(tmp_path / "alone", *words[2:], script=words[1])
    assert done.poll() == 0, done.stderr
