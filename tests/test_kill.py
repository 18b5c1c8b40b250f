"""Runs that are killed at any moment and started again by the same command end as a run does that nobody killed."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from recipe_process import ROOT, TINY_ENCODER, recipe_server


# By default every method stops and goes on in one process: `test_methods_resume.py`.
pytestmark = pytest.mark.slow

MLM, CLM = "recipes/mlm.py", "recipes/clm.py"
STEPS, SAVE_STEPS = 40, 5
# A checkpoint of so small a model takes a few milliseconds: longer, so that a kill meets it.
SLOW_CHECKPOINTS = """
import time
import hfssl.training.checkpoints as checkpoints
checksum = checkpoints._checksum
checkpoints._checksum = lambda path: (time.sleep(0.02), checksum(path))[1]
"""
SLOW_RESULT = """
import time
import hfssl.training.result_folder as export
write_results = export.write_results
export.write_results = lambda *args: (time.sleep(0.2), write_results(*args))[1]
"""


TINY_DECODER = {
    "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("corpus") / "texts.jsonl", tiny.texts(1500))


def write_texts(path: Path, texts) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    """`uninterrupted(ranks, script, **settings)`: what a run that nobody kills ends with. Made once for each."""
    known = {}

    def result(ranks, script=MLM, **settings):
        settings.pop("dataloader_num_workers", None)  # any number of workers gives the same
        key = (ranks, script, *settings.items())
        if key not in known:
            folder = tmp_path_factory.mktemp("uninterrupted")
            words = flags(corpus, folder / "out", **settings)
            run = recipe_server().run(folder, *words, script=script, ranks=ranks)
            assert run.poll() == 0, run.stderr
            known[key] = outcome(folder / "out")
        return known[key]

    return result


def flags(corpus: Path, output_dir: Path, **settings) -> list:
    settings = {
        "dataset": corpus, "output_dir": output_dir, "encoder_config": json.dumps(TINY_ENCODER), "vocab_size": 150,
        "max_length": 32, "max_steps": STEPS, "save_steps": SAVE_STEPS, "per_device_train_batch_size": 4,
        "eval_steps": 20, "logging_steps": 5, "report_to": "none", "precision": "fp32", "learning_rate": 5e-3,
        **settings,
    }  # fmt: skip
    return [word for name, value in settings.items() if value is not None for word in (f"--{name}", value)]


def outcome(output_dir: Path) -> dict:
    """All that two runs of the same settings have in common: weights, streams, logged losses, what was measured."""
    last = output_dir / f"checkpoint-{STEPS}"
    files = ("model.safetensors", "pretraining/model.safetensors", "tokenizer.json", "tokenizer_config.json")
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return {
        **{name: hashlib.sha256((output_dir / name).read_bytes()).hexdigest() for name in files},
        "streams": [json.loads(path.read_text()) for path in sorted(last.glob("stream_*.json"))],
        "losses": [(e["step"], name, e[name]) for e in history for name in ("loss", "eval_loss") if name in e],
        "results": [record["value"] for record in json.loads((output_dir / "results.json").read_text())],
        "folders": sorted(path.name for path in output_dir.glob("checkpoint-*")),
    }


# When to kill. Each is asked again and again from the start of the process on, with what was there before it.


def at_once(output_dir: Path, before: set) -> bool:
    return True


def during_a_checkpoint(output_dir: Path, before: set) -> bool:
    try:
        return any(output_dir.glob(".staging/checkpoint-*"))
    except FileNotFoundError:  # it was moved to its place just now
        return False


def after_a_checkpoint(output_dir: Path, before: set) -> bool:
    return set(output_dir.glob("checkpoint-*")) != before


def during_the_result(output_dir: Path, before: set) -> bool:
    return (output_dir / "config.json").exists() and not (output_dir / "results.json").exists()


# How much later, at most: a random part of it.
MOMENTS = {at_once: 1.0, during_a_checkpoint: 0.08, after_a_checkpoint: 0.1, during_the_result: 0.1}
ALL = (at_once, during_a_checkpoint, after_a_checkpoint, during_a_checkpoint, after_a_checkpoint, during_the_result)


def drill(start: Callable, output_dir: Path, moments=ALL, seed: int = 0) -> list[str]:
    """Start a run, kill it at each of the moments and start it again. Returns the kills, in words."""
    rng = random.Random(seed)
    kills = []
    for moment in moments:
        before = set(output_dir.glob("checkpoint-*"))
        run = start()
        deadline = time.monotonic() + 300
        while run.poll() is None and during_a_checkpoint(output_dir, before):  # what the kill before has left
            time.sleep(0.001)
        while run.poll() is None and not moment(output_dir, before):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(rng.uniform(0, MOMENTS[moment]))
        assert run.poll() is None, f"ended before it could be killed {moment.__name__}:\n{run.stderr}"
        children = descendants(*run.pids)
        run.kill()
        run.wait()
        there = sorted(int(path.name.split("-")[1]) for path in output_dir.glob("checkpoint-*"))
        half = sorted(path.name for path in output_dir.glob(".staging/*"))
        kills.append(f"{moment.__name__}: checkpoints {there}, half-written {half}")
        gone_by = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in children):
            assert time.monotonic() < gone_by, "a worker outlives the run"
            if len(kills) % 2:  # not always: the next run must not need it
                break
            time.sleep(0.05)
    run = start()
    assert run.wait() == 0, run.stderr
    return kills


def descendants(*pids: int) -> set[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, grown = set(pids), True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return found - set(pids)


def check(folder, corpus, uninterrupted, ranks=1, seed=0, start=None, script=MLM, **settings):
    output_dir = folder / "out"
    whole = uninterrupted(ranks, script, **settings)
    words = flags(corpus, output_dir, **settings)
    slow = SLOW_CHECKPOINTS + SLOW_RESULT
    options = {"script": script, "ranks": ranks, "before": slow}
    start = start or (lambda: recipe_server().start(folder / "log", *words, **options))
    kills = drill(start, output_dir, seed=seed)
    print(f"\n{script}, {ranks} process(es), {settings}: {len(kills)} kills", *kills, sep="\n  ")
    assert outcome(output_dir) == whole
    assert not any(output_dir.glob(".staging/*"))
    assert len(kills) == len(ALL)
    assert any("half-written ['checkpoint-" in kill for kill in kills)


def settings_of(workers, dropout, accumulation, precision):
    return {
        "dropout": dropout, "gradient_accumulation_steps": accumulation, "precision": precision,
        "dataloader_num_workers": workers,
    }  # fmt: skip


@pytest.mark.parametrize(
    "ranks, workers, dropout, accumulation, precision",
    [(1, 0, 0.1, 2, "auto"), (1, 2, 0.1, 1, "fp32"), (2, 0, 0.1, 1, "fp32")],
)
def test_a_killed_run_ends_with_the_same_weights(
    tmp_path, corpus, uninterrupted, ranks, workers, dropout, accumulation, precision
):
    check(tmp_path, corpus, uninterrupted, ranks, **settings_of(workers, dropout, accumulation, precision))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_every_cut_ends_with_the_same_weights(
    tmp_path, corpus, uninterrupted, ranks, workers, dropout, accumulation, precision
):
    seed = zlib.crc32(repr((ranks, workers, dropout, accumulation, precision)).encode())
    check(tmp_path, corpus, uninterrupted, ranks, seed, **settings_of(workers, dropout, accumulation, precision))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("addition", ["sentence pairs", "mixture", "new words", "next tokens"])
def test_every_addition_ends_with_the_same_weights(tmp_path, corpus, uninterrupted, ranks, addition):
    """What mlm.py can do beside its default, and the other recipes."""
    script, settings = MLM, {"dropout": 0.1, "dataloader_num_workers": 2}
    if addition == "sentence pairs":
        documents = [f"{a}. {b}. {c}." for a, b, c in zip(*[iter(tiny.texts(3000))] * 3, strict=True)]
        settings |= {"next_sentence_objective": True, "dataset": write_texts(tmp_path / "documents.jsonl", documents)}
    elif addition == "mixture":
        other = write_texts(tmp_path / "other.jsonl", tiny.texts(200, seed=1))
        settings |= {"dataset": f"{corpus}:0.7,{other}:0.3"}
    elif addition == "new words":
        checkpoint = tmp_path / "checkpoint"
        tiny.mlm().export_encoder(checkpoint)
        tiny.tokenizer().save_pretrained(checkpoint)
        texts = [f"{text} zyzzyva {i % 7}qwertz" for i, text in enumerate(tiny.texts(1500))]
        settings |= {"encoder": checkpoint, "extend_vocab": 4, "encoder_config": None, "vocab_size": None}
        # its tokenizer has no q, w, z nor capital letters
        settings |= {"dataset": write_texts(tmp_path / "words.jsonl", texts), "max_lost_fraction": 0.1}
    else:
        script, settings = CLM, settings | {"encoder_config": json.dumps(TINY_DECODER), "vocab_size": 400}
    check(tmp_path, corpus, uninterrupted, ranks, script=script, **settings)


class Command:
    """A command with all that it starts."""

    def __init__(self, folder: Path, words: list):
        folder.mkdir(exist_ok=True)
        self.log = folder / f"{len(list(folder.iterdir()))}.log"
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with open(self.log, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, words)], cwd=ROOT, env=env, stdout=file, stderr=file, start_new_session=True
            )
        self.pids = [self.process.pid]

    def poll(self) -> int | None:
        return self.process.poll()

    def kill(self) -> None:
        for pid in (self.process.pid, *descendants(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self) -> int:
        return self.process.wait(600)

    @property
    def stderr(self) -> str:
        return self.log.read_text()


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes", 1, "--num_machines", 1, "--mixed_precision", "no")


@pytest.mark.parametrize(
    "launcher, ranks", [((), 1), (ACCELERATE, 1), (TORCHRUN, 2)], ids=["python", "accelerate", "torchrun"]
)
def test_the_real_commands_end_with_the_same_weights(tmp_path, corpus, uninterrupted, launcher, ranks):
    settings = settings_of(2, 0.1, 2, "fp32")
    (tmp_path / "slow.py").write_text(
        SLOW_CHECKPOINTS + SLOW_RESULT
        + "import runpy, sys\nsys.argv[0] = 'recipes/mlm.py'\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )  # fmt: skip
    words = [*launcher, tmp_path / "slow.py", *flags(corpus, tmp_path / "out", **settings)]
    check(tmp_path, corpus, uninterrupted, ranks, start=lambda: Command(tmp_path / "log", words), **settings)


@pytest.mark.distributed
@pytest.mark.parametrize("rank", [0, 1])
def test_the_death_of_one_process_ends_the_run_and_it_goes_on(tmp_path, corpus, uninterrupted, rank):
    """What the kernel does to a process that takes too much memory."""
    settings = settings_of(0, 0.1, 1, "fp32")
    whole = uninterrupted(2, **settings)
    words = [*TORCHRUN, "recipes/mlm.py", *flags(corpus, tmp_path / "out", **settings)]
    run = Command(tmp_path / "log", words)
    while not list((tmp_path / "out").glob("checkpoint-*")):
        assert run.poll() is None, run.stderr
        time.sleep(0.001)
    ranks = sorted(descendants(run.process.pid), key=lambda pid: environment_of(pid).get("RANK", ""))
    victim = next(pid for pid in ranks if environment_of(pid).get("RANK") == str(rank))
    os.kill(victim, signal.SIGKILL)
    assert run.wait() != 0
    assert not (tmp_path / "out" / "results.json").exists()
    again = Command(tmp_path / "log", words)
    assert again.wait() == 0, again.stderr
    assert "Continuing from" in again.stderr
    assert outcome(tmp_path / "out") == whole


def environment_of(pid: int) -> dict[str, str]:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)
