"""What every test gets: a Hub of its own instead of the real one, a fixed seed, real data where there is some."""

import gc
import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from local_hub import LocalHub


# For the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The Hugging Face libraries read these once, when they are imported: so they are set here, before any test module is.
# The user's own settings are dropped: a token or a filled cache must not decide what a test sees.
for name in [name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_"))]:
    del os.environ[name]

HF_HOME = Path(tempfile.mkdtemp(prefix="hfssl-tests-"))
# What no test was meant to ask for meets an empty Hub and is "not found" at once. Where no server answers at all, the
# client tries again for 23 seconds per file.
EMPTY_HUB = LocalHub()
EMPTY_HUB.start()

# What comes with hfssl is drawn in seconds and kept in a cache: one for all workers, which inherit the variable.
DRAWN = "HFSSL_TESTS_DRAWN"
IS_FIRST = DRAWN not in os.environ
if IS_FIRST:
    os.environ[DRAWN] = tempfile.mkdtemp(prefix="hfssl-tests-drawn-")
(HF_HOME / "hfssl").symlink_to(os.environ[DRAWN])

os.environ |= {
    "HF_HOME": str(HF_HOME),
    "HF_ENDPOINT": EMPTY_HUB.url,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


def pytest_unconfigure():
    EMPTY_HUB.stop()
    shutil.rmtree(HF_HOME, ignore_errors=True)
    if IS_FIRST:
        shutil.rmtree(os.environ.pop(DRAWN), ignore_errors=True)


# Where files take long, though they have few tests. A long file that begins last is waited for by all but one worker.
LONG = ("recipes", "distributed", "test_", "benchmarks", "training", "evaluation")


def place(item) -> int:
    first = os.path.relpath(item.path, Path(__file__).parent).split(os.sep)[0]
    return next((i for i, beginning in enumerate(LONG) if first.startswith(beginning)), len(LONG))


def pytest_collection_modifyitems(items):
    items.sort(key=place)
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker("shared_data")


def pytest_collection_finish():
    # What is imported by now stays. Trainer collects garbage after each run, which looks at all that is not frozen.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def log_level():
    """A recipe that ran in this process turned the log up: the tests after it see what a test on its own would."""
    logging.getLogger("hfssl").setLevel(logging.NOTSET)
    logging.captureWarnings(False)


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers in every run, and one thread, for each test on its own."""
    import random

    import numpy as np
    import torch

    # Two threads on cores that others use as well wait for each other most of the time, at full load.
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets beside the repository; tests that want it are skipped where it is missing."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets that would lie in {folder}")
    return folder


@pytest.fixture
def local_hub():
    """An empty Hub on this machine, see `local_hub.py`."""
    with LocalHub() as hub:
        yield hub


@pytest.fixture
def hub_here(monkeypatch):
    """The Hub that this process asks, as alice, who may write, and each recipe that a test starts, as who its `HF_TOKEN`
    says. Empty again after the test; names in it are to be new ones all the same, since clients keep what they have
    downloaded."""
    monkeypatch.setenv("HF_TOKEN", "hf_rw")
    yield EMPTY_HUB
    for kept in (EMPTY_HUB.repos, EMPTY_HUB.lfs_objects, EMPTY_HUB.requests, EMPTY_HUB.faults):
        kept.clear()


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Two processes of one run that wait for work, see `process_pair.py`."""
    from process_pair import Pair

    two = Pair(tmp_path_factory.mktemp("pair"))
    yield two
    two.stop()
