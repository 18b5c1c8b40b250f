"""`recipes/finetune.py` as a command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from labelled import save, vit
from recipe_process import recipe_server
from text_encoder import opinions, save_text_encoder


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


def test_texts_in_a_csv(tmp_path):
    data = opinions(60)
    rows = {"what": list(data.samples), "verdict": [data.class_names[label] for label in data.labels]}
    pd.DataFrame(rows).to_csv(tmp_path / "opinions.csv", index=False)
    flags = ["--encoder", save_text_encoder(tmp_path / "bert"), "--dataset", tmp_path / "opinions.csv"]
    flags += ["--text_column", "what", "--label_column", "verdict", "--output_dir", tmp_path / "out", "--seeds", 1]
    done = run(tmp_path / "log", *flags, "--epochs", 1, "--min_steps", 3, "--batch_size", 16, "--random_init", "false")
    assert done.poll() == 0, done.stderr
    assert f"The trained model (seed 0): {tmp_path / 'out' / 'model'}" in done.stdout
    (record,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["num_train"] + record["num_eval"] == 60 and record["hyperparameters"]["train_batch_size"] == 16
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}


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
