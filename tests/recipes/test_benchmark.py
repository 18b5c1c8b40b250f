"""`recipes/benchmark.py` as a command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from recipe_process import recipe_server
from transformers import BertConfig, ModernBertConfig


ROOT = Path(__file__).parents[2]
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "texts.txt").write_text("\n".join(tiny.texts()))
    BertConfig(**SIZES).to_json_file(folder / "bert.json")
    ModernBertConfig(**SIZES).to_json_file(folder / "modernbert.json")
    return folder


def run(*flags):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "recipes/benchmark.py", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def measured(files, encoder, *flags, against="transformers"):
    flags = ["--dataset", files / "texts.txt", "--encoder", files / encoder, "--vocab_size", 200, *flags]
    flags += ["--max_length", 32, "--batch_size", 4, "--blocks", 2, "--steps_per_block", 2, "--json"]
    result = run("mlm", "--against", against, *flags)
    assert result.returncode == 0, result.stderr
    return result.stdout, json.loads(result.stdout.splitlines()[-1])


def check_sides(report, names):
    assert [name for name, value in report.items() if isinstance(value, dict)] == names
    for name in names:
        side = report[name]
        assert side["items_per_s"] > 0 and 0 <= side["data_wait"] < 1 and side["peak_mb"] > side["peak_above_start_mb"]
        assert 3.0 < side["loss_last"] < 6.0  # log(200) is 5.3: it trains, from chance
        assert side["utilisation"] > 0 and side["first_step_s"] > 0


@pytest.mark.slow
def test_ends_with_a_table_and_one_line_of_json(files):
    output, report = measured(files, "bert.json", "--precision", "fp32", "--bare")
    assert (report["method"], report["against"], report["precision"]) == ("mlm", "transformers", "fp32")
    check_sides(report, ["ours", "theirs", "ours_same_config", "bare"])
    ours, theirs, same, bare = (report[name] for name in ("ours", "theirs", "ours_same_config", "bare"))
    assert report["ratio"] == pytest.approx(ours["items_per_s"] / theirs["items_per_s"], rel=1e-3)
    assert report["ratio_same_config"] == pytest.approx(same["items_per_s"] / theirs["items_per_s"], rel=1e-3)
    assert report["overhead"] == pytest.approx(bare["items_per_s"] / ours["items_per_s"] - 1, abs=1e-3)
    assert report["memory_ratio"] == pytest.approx(ours["peak_mb"] / theirs["peak_mb"], rel=1e-3)
    # the loop does what the trainer does
    assert bare["loss_last"] == pytest.approx(ours["loss_last"], rel=1e-4)
    assert theirs["padding"] == 0 and theirs["flops_per_position"] > ours["flops_per_position"]
    # the vocabulary is filled up to the size that was asked for
    assert report["vocab_size"] == 200 > report["vocab_learned"]
    assert "Not comparable" in output and "ratio_same_config:" in output


@pytest.mark.slow
def test_against_nobody_only_the_trainer_is_measured(files):
    output, report = measured(files, "bert.json", "--precision", "fp32", against="none")
    check_sides(report, ["ours", "bare"])
    assert report["overhead"] == pytest.approx(
        report["bare"]["items_per_s"] / report["ours"]["items_per_s"] - 1, abs=1e-3
    )
    assert "transformers:" not in output and "ratio:" not in output


@pytest.mark.slow
def test_short_texts_against_padding(files):
    output, report = measured(files, "bert.json", "--line_by_line", "--defaults")
    check_sides(report, ["ours", "theirs", "ours_same_config"])
    assert report["theirs"]["padding"] > 0.1 > report["ours"]["padding"]
    assert report["theirs"]["precision"] == "fp32"
    assert "The precisions differ" in output and "drops the rest" in output


@pytest.mark.slow
def test_modernbert_also_with_its_own_sparse_prediction(files):
    _, report = measured(files, "modernbert.json", "--precision", "bf16")
    check_sides(report, ["ours", "theirs", "ours_same_config", "theirs_sparse"])
    assert report["theirs_sparse"]["flops_per_position"] < report["theirs"]["flops_per_position"]
    assert report["ratio_sparse"] > 0


@pytest.mark.parametrize("flags", [[], ["--jpeg"]])
def test_views_against_lightly(flags):
    pytest.importorskip("lightly.transforms")
    result = run("views", "--sizes", 16, "--methods", "simclr", "dino", "--blocks", 1, "--json", *flags)
    assert result.returncode == 0, result.stderr
    reports = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [(report["views"], report["image_size"]) for report in reports] == [("simclr", 16), ("dino", 16)]
    for report in reports:
        assert (report["method"], report["against"], report["jpeg"]) == ("views", "lightly", bool(flags))
        expected = report["ours"]["items_per_s"] / report["theirs"]["items_per_s"]
        assert report["ratio"] == pytest.approx(expected, rel=1e-3)
        assert report["ratio_range"][0] <= report["ratio"] <= report["ratio_range"][1] * 1.001


def test_views_without_lightly(tmp_path):
    before = "import sys; sys.modules['lightly'] = sys.modules['lightly.transforms'] = None"  # importing it fails
    result = recipe_server().run(tmp_path / "log", "views", script="recipes/benchmark.py", before=before)
    assert result.poll() == 1 and 'pip install -e ".[benchmark]"' in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "Say first what to measure (mlm, wav2vec2, hubert, views"),
        (["clm"], "got 'clm'"),
        (["views", "--sizes", "4"], "`--sizes` pixels from 8 to 1024"),
        (["views", "--methods", "byol"], "--methods expects"),
        (["simclr", "--against", "transformers"], "nothing that trains simclr"),
        (["mlm", "--blocks", "0"], "`--blocks` must be at least 1"),
        (["mlm", "--against", "nobody"], "transformers"),
        (["mlm", "--encoder", "org/model"], "trains from scratch"),
        (["mlm", "--encoder", "no-such.json"], "no-such.json"),
        (["mlm", "--dataset", "no/such/folder.txt"], "no/such/folder.txt"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, flags, words):
    result = recipe_server().run(tmp_path / "log", *flags, script="recipes/benchmark.py")
    assert result.poll() in (1, 2) and words in result.stderr, result.stderr
    assert "Traceback" not in result.stderr and len(result.stderr.strip().splitlines()) <= 2
