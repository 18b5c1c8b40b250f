"""20 steps of each method, beside the losses that they had when they were recorded.

What is not meant to change the training must leave them as they are; `compare_commits.py` looks at that more closely.
What is meant to change it records them anew, in `twenty_steps.json`:

    RECORD_LOSSES=1 python -m pytest tests/test_twenty_steps.py
"""

import json
import os
from pathlib import Path

import pytest
import torch
from compare_commits import METHODS, flags, losses, write_data
from recipe_process import recipe_server


RECORDED = Path(__file__).with_name("twenty_steps.json")
# the figures of two threads, and of older processors that were imitated, are off by a share of 1e-4 at most
TOLERANCE = 1e-3
# the table and the pictures at the end would take twice as long as the training
TRAIN_ALONE = """
from hfssl import SSLTrainer
train = SSLTrainer.train
def train_alone(self):
    train(self)
    raise SystemExit(0)
SSLTrainer.train = train_alone
"""
DRAW_FROM_MKL = ("mlm", "dino", "dino_small_crops")  # dropout and stochastic depth


# clusters of what an untrained encoder says hang on the last bits of its features
HANGS_ON_BITS = ("deepcluster",)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.mark.parametrize("method", [method for method in METHODS if method not in HANGS_ON_BITS])
def test_the_losses_are_the_recorded_ones(method, data, tmp_path):
    if method in DRAW_FROM_MKL and not torch.backends.mkl.is_available():
        pytest.skip("a PyTorch without MKL drops out others")
    words = flags(method, tmp_path / "out", data)
    done = recipe_server().run(tmp_path, *words, script=f"recipes/{METHODS[method][0]}.py", before=TRAIN_ALONE)
    assert done.poll() == 0, done.stderr
    found = losses(tmp_path / "out")
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if os.environ.get("RECORD_LOSSES"):
        recorded[method] = [round(loss, 5) for loss in found]
        lines = (f"{json.dumps(name)}: {json.dumps(values)}" for name, values in recorded.items())
        RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    assert found == pytest.approx(recorded[method], rel=TOLERANCE, abs=1e-4)
