"""`recipes/explain.py` as a command."""

import json

import pytest
from image_recipes import the_error
from labelled import save, vit
from PIL import Image
from recipe_process import recipe_server
from report_records import a_run

from hfssl.evaluation.encoder_folder import weights_digest


def run(folder, *words):
    return recipe_server().run(folder, *words, script="recipes/explain.py")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save(vit(), tmp_path_factory.mktemp("encoder"))


def test_ends_with_a_report(encoder, tmp_path):
    flags = [
        "--max_train_samples",
        200,
        "--max_test_samples",
        60,
        "--max_samples",
        60,
        "--output_dir",
        tmp_path / "out",
    ]
    done = run(tmp_path / "log", encoder, *flags)
    assert done.poll() == 0, done.stderr
    assert "What a decision rests on" in done.stdout and "Attention is no explanation of a decision" in done.stdout
    report = (tmp_path / "out" / "report.html").read_text()
    assert "How alike layers are</h2>" in report and report.count("<img") == 4
    found = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert (
        found["weights"] == weights_digest(encoder)
        and found["command"].startswith("python recipes/explain.py")
        and str(tmp_path) not in json.dumps(found)
    )


def test_images_without_labels_and_what_is_no_dimension(encoder, tmp_path):
    (tmp_path / "mine").mkdir()
    for i in range(6):
        Image.new("RGB", (16, 16), (40 * i, 255 - 40 * i, 90)).save(tmp_path / "mine" / f"{i}.png")
    flags = [encoder, "--dataset", tmp_path / "mine", "--output_dir", tmp_path / "out"]
    done = run(tmp_path / "log", *flags)
    assert done.poll() == 0, done.stderr
    assert "What a decision rests on" not in done.stdout and "What dimensions stand for" in done.stdout
    assert "features have the dimensions 0 to 31" in the_error(run(tmp_path / "log", *flags, "--dimensions", 99))


def test_the_report_of_a_run_tells_it_too(tmp_path):
    folder = save(vit(num_hidden_layers=1), a_run(tmp_path / "run"))
    # as the end of a run writes it
    of_run = json.loads((folder / "run.json").read_text()) | {"encoder": weights_digest(folder)}
    (folder / "run.json").write_text(json.dumps(of_run))
    flags = [
        folder,
        "--dataset",
        "digits",
        "--max_samples",
        20,
        "--output_dir",
        tmp_path / "out",
        "--update_report",
        "true",
    ]
    done = run(tmp_path / "log", *flags)
    assert done.poll() == 0, done.stderr
    report = (folder / "report.html").read_text()
    assert "What a decision rests on</h2>" in report and "Losses</h2>" in report and report.count("<img") == 5
    (tmp_path / "empty").mkdir()
    error = the_error(run(tmp_path / "log", tmp_path / "empty", "--update_report", "true"))
    assert "holds nothing to report on" in error
