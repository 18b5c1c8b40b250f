"""`recipes/finetune.py` as a command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from labelled import save, vit
from recipe_process import recipe_server


ROOT = Path(__file__).parents[2]


def run(folder, *flags):
    return recipe_server().run(folder, *flags, script="recipes/finetune.py")


def test_ends_with_a_table_and_goes_on_with_the_same_command(tmp_path):
    encoder = save(vit(num_hidden_layers=1), tmp_path / "encoder")
    flags = [
        "--encoder",
        encoder,
        "--dataset",
        "digits",
        "--output_dir",
        tmp_path,
        "--max_train_samples",
        100,
        "--max_test_samples",
        50,
    ]
    flags += ["--seeds", 1, "--epochs", 1, "--min_steps", 3, "--train_batch_size", 16]
    first = run(tmp_path / "log", *flags)
    assert first.poll() == 0, first.stderr
    assert "fine-tuning" in first.stdout and "random init" in first.stdout
    (record,) = json.loads((tmp_path / "results.json").read_text())
    assert (record["protocol"], record["num_train"], record["num_eval"]) == ("finetune", 100, 50)
    cells = (tmp_path / "cells.json").read_text()
    assert run(tmp_path / "log", *flags).poll() == 0
    assert (tmp_path / "cells.json").read_text() == cells


def test_mistakes_end_in_one_sentence(tmp_path):
    result = run(tmp_path / "log", "--encoder", tmp_path, "--output_dir", tmp_path / "out")
    assert result.poll() == 1
    assert "Traceback" not in result.stderr and "it has no config.json" in result.stderr


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_train_as_one(tmp_path):
    encoder = save(vit(num_hidden_layers=1), tmp_path / "encoder")
    flags = [
        "--encoder",
        encoder,
        "--dataset",
        "digits",
        "--max_train_samples",
        300,
        "--seeds",
        1,
        "--epochs",
        10,
        "--precision",
        "fp32",
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = subprocess.run(
        [*torchrun, "recipes/finetune.py", *map(str, flags), "--output_dir", tmp_path / "two"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("fine-tuning") == 1
    assert run(tmp_path / "log", *flags, "--output_dir", tmp_path / "one").poll() == 0
    one, two = (json.loads((tmp_path / name / "results.json").read_text())[0] for name in ("one", "two"))
    assert one["value"] == pytest.approx(two["value"], abs=0.02)
    assert one["num_eval"] == two["num_eval"] == 355
