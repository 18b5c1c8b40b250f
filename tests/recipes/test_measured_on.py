"""What a run measures on it never trains on, whichever flag names the data."""

import json
from pathlib import Path

import numpy as np
import pytest
from image_recipes import TINY, flags
from PIL import Image
from recipe_process import ROOT, recipe_server

from hfssl.cli.labelled import LabelledDataArguments
from hfssl.evaluation.probes import probe_table


WITH_PROBES = [path.stem for path in sorted((ROOT / "recipes").glob("*.py")) if "image_evaluators" in path.read_text()]

# One pass over the stream of a run instead of its training; prints what it read, and how much of it is measured on.
ONE_PASS = """
from hfssl import SSLTrainer
def train(self, *args, **kwargs):
    stream, seen = self.stream, []
    transform = stream.transform
    stream.transform = lambda block: seen.extend(map(bytes, block.columns["image"])) or transform(block)
    for block in range(stream.lanes * stream.blocks_per_lane):
        stream.make(0, block)
    probes = self.evaluators[1]
    test, train = (set(map(bytes, part.images)) for part in (probes.test, probes.train))
    print("seen", len(seen), "test", len(test), "both", len(test & set(seen)), "probes", len(train & set(seen)))
    raise SystemExit(0)
SSLTrainer.train = train
"""


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> Path:
    """Images in class folders, without a split to measure on."""
    folder = tmp_path_factory.mktemp("classes")
    for i in range(120):
        (folder / f"class {i % 4}").mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"class {i % 4}" / f"{i}.png")
    return folder


@pytest.mark.parametrize("method", WITH_PROBES)
def test_a_labelled_set_may_be_trained_on_and_probed(classes, tmp_path, method):
    settings = {
        "dataset": classes, "probe_dataset": classes, "image_size": 16, "encoder": "vit-mini-patch4",
        "encoder_config": json.dumps(TINY), "max_steps": 1, "report_to": "none", "precision": "fp32",
        "per_device_train_batch_size": 8, "output_dir": tmp_path / "out",
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    done = recipe_server().run(tmp_path / "log", *words, script=f"recipes/{method}.py", before=ONE_PASS)
    assert done.poll() == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("seen")]
    seen, test, both, probes = (int(word) for word in line.split()[1::2])
    assert test == 24 and both == 0
    # what a probe learns from is trained on without its labels, but for the images held out for the loss
    assert 70 < probes == seen < 96


@pytest.mark.slow
def test_the_table_of_a_run_is_that_of_probe(classes, tmp_path):
    """Whatever the run was trained in, features are made in one precision."""
    out = tmp_path / "out"
    words = flags(dataset=classes, probe_dataset=classes, output_dir=out, max_steps=2, precision="bf16")
    done = recipe_server().run(tmp_path / "log", *words, script="recipes/simclr.py")
    assert done.poll() == 0, done.stderr
    train, test = LabelledDataArguments(dataset=str(classes)).load()
    pooling = json.loads((out / "hfssl.json").read_text())["pooling"]
    found = probe_table(out, None, train, test, ("knn", "linear"), pooling=pooling, pictures=False)
    of_the_run = {(each["protocol"], each["metric"], each["hyperparameters"].get("k")): each for each in json.loads(
        (out / "results.json").read_text()
    )}  # fmt: skip
    assert len(found) > 2
    for result in found:
        record = of_the_run[result.protocol, result.metric, result.hyperparameters.get("k")]
        assert record["hyperparameters"] == result.hyperparameters and record["version"] == result.version
        assert (record["value"], record["baselines"]) == (result.value, pytest.approx(result.baselines))


def test_there_are_recipes_with_probes():
    assert {"simclr", "mae", "byol", "moco", "dino"} <= set(WITH_PROBES)
