"""`recipes/probe.py` as a command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from labelled import save, save_bert, vit
from recipe_process import recipe_server
from text_encoder import save_text_encoder


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save(vit(), tmp_path_factory.mktemp("encoder"))


def run(folder, *flags):
    return recipe_server().run(folder, *flags, script="recipes/probe.py")


def test_ends_with_a_table_records_and_pictures(encoder, tmp_path):
    flags = ["--encoder", encoder, "--protocol", "knn,linear", "--output_dir", tmp_path]
    flags += ["--max_train_samples", 300, "--max_test_samples", 100]
    result = run(tmp_path / "log", *flags)
    assert result.poll() == 0, result.stderr
    assert "linear probe" in result.stdout and "raw input" in result.stdout
    assert "For these labels: no better than untrained. What to try: " in result.stdout  # as it is
    records = json.loads((tmp_path / "results.json").read_text())
    assert [record["protocol"] for record in records] == ["knn", "knn", "linear"]
    assert set(records[0]["baselines"]) == {"random_init", "raw_input", "simple_statistics", "majority"}
    assert records[0]["num_train"] == 300
    assert records[0]["command"].startswith(f"python recipes/probe.py --encoder {encoder.name} --protocol knn,linear")
    assert (tmp_path / "assets" / "neighbours.png").is_file()
    assert sum(each["rows"] for each in records[2]["details"]["classes"]) == records[2]["num_eval"]
    report = (tmp_path / "report.html").read_text()
    assert "Class by class</h2>" in report and "Test images, and the training images with the nearest" in report


def test_patches_are_judged_on_the_scenes_that_come_with_hfssl(encoder, tmp_path):
    other = save(vit(seed=5), tmp_path / "other")
    flags = ["--encoder", encoder, "--protocol", "knn,patches,attentive", "--patch_image_size", 16, "--beside", other]
    flags += ["--dataset", "scenes", "--max_train_samples", 30, "--max_test_samples", 20, "--output_dir", tmp_path]
    result = run(tmp_path / "log", *flags)
    assert result.poll() == 0, result.stderr
    assert "k-NN, k = 20 (patches)" in result.stdout and "attentive probe" in result.stdout
    records = json.loads((tmp_path / "results.json").read_text())
    assert all("other" in record["baselines"] for record in records)
    assert " other " in result.stdout.split("task", 1)[1].split("\n")[0]
    patches = [record for record in records if record["protocol"] == "patches"]
    assert {record["metric"] for record in patches} == {"miou", "pixel_accuracy", "correspondence"}
    assert patches[0]["hyperparameters"]["image_size"] == 16 and "ground" in patches[0]["details"]["iou"]
    assert (tmp_path / "assets" / "segmentation.png").is_file()


def test_groups_that_no_probe_sees_are_told_apart(tmp_path):
    """Texts of one group have wrong labels. The columns are found, though two of them could be the labels."""
    rows = [(f"{'good' if i % 2 else 'bad'} {'abcdef'[i % 6]} day", "fm"[i // 2 % 2], i % 2) for i in range(240)]
    rows = [(text, sex, label if sex == "f" else i // 4 % 2) for i, (text, sex, label) in enumerate(rows)]
    columns = dict(zip(("text", "label", "class"), zip(*rows, strict=True), strict=True))
    table = tmp_path / "texts.csv"
    pd.DataFrame(columns).to_csv(table, index=False)
    encoder = save_text_encoder(tmp_path / "bert")
    flags = ["--encoder", encoder, "--dataset", table, "--protocol", "linear", "--output_dir", tmp_path / "out"]
    result = run(tmp_path / "log", *flags, "--group_column", "label")
    assert result.poll() == 0, result.stderr
    assert "by label: errors are " in result.stdout and "What it does not show" in result.stdout
    *_, gap = json.loads((tmp_path / "out" / "results.json").read_text())
    assert gap["metric"] == "error_gap" and gap["value"] > 0 and gap["hyperparameters"]["classes"] == 2
    assert [each["name"] for each in gap["details"]["groups"]] == ["f", "m"]
    assert "Group by group</h2>" in (tmp_path / "out" / "report.html").read_text()


def test_mistakes_end_in_one_sentence(encoder, tmp_path):
    for flags, message in (
        (["--encoder", encoder, "--protocol", "knn,lineer"], 'Did you mean "linear"?'),
        (["--encoder", encoder, "--protocol", "few_shot", "--group_column", "sex"], "by the protocols knn and linear"),
        (["--encoder", encoder, "--update_card", "true"], "has no README.md to write figures into"),
        (["--encoder", save_bert(tmp_path / "bert")], "names no labelled texts. Pass `--dataset`"),
        (
            ["--encoder", tmp_path / "bert", "--protocol", "patches"],
            "for encoders of images, and this one takes texts",
        ),
    ):
        result = run(tmp_path / "log", *flags, "--output_dir", tmp_path)
        assert result.poll() in (1, 2)
        assert "Traceback" not in result.stderr and message in result.stderr


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_give_the_figures_of_one(encoder, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    flags = ["--encoder", encoder, "--protocol", "knn,linear", "--batch_size", 100, "--precision", "fp32"]
    flags += ["--max_train_samples", 1000, "--max_test_samples", 300]
    two = subprocess.run(
        [*torchrun, "recipes/probe.py", *map(str, flags), "--output_dir", tmp_path / "two"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("linear probe") == 1
    one = run(tmp_path / "log", *flags, "--output_dir", tmp_path / "one")
    assert one.poll() == 0, one.stderr
    figures = [
        [record["value"] for record in json.loads((tmp_path / name / "results.json").read_text())]
        for name in ("one", "two")
    ]
    assert figures[0] == pytest.approx(figures[1], abs=0.006)


ONLINE = """
import sys
from types import SimpleNamespace
import torch.distributed as dist
from labelled import digits, processor, vit
from hfssl.evaluation import OnlineKnn

if "RANK" in __import__("os").environ:
    dist.init_process_group("gloo")
train, test = digits()
measured = OnlineKnn(train, test, processor(), batch_size=64).measure(SimpleNamespace(encoder=vit()))
sys.stdout.write(f"{measured}\\n")  # at once: processes share the pipe
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_online_knn_is_the_same_in_all_processes(tmp_path):
    script = tmp_path / "online.py"
    script.write_text(ONLINE)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    printed = [
        subprocess.run([*launcher, script], env=environment, capture_output=True, text=True, timeout=300).stdout
        for launcher in (
            [sys.executable],
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        )
    ]
    (one,), two = (text.split("\n")[:-1] for text in printed)
    assert two == [one, one] and "knn_accuracy" in one
