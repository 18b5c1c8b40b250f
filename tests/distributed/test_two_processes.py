"""Runs of two processes (`torchrun`, gloo): the same gradients, each sample once, one checkpoint, one figure."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import tiny
import torch
from contract import load
from recipe_process import ROOT, TINY_ENCODER, recipe_server, waiting_at
from safetensors.torch import load_file


pytestmark = pytest.mark.distributed

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}

CHECKS = Path(__file__).with_name("checks.py")
checks = load(CHECKS)


def write(path: Path, texts) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_the_terms_of_a_loss_do_not_depend_on_the_cut(pair, tmp_path):
    whole = checks.terms(0, 1, tmp_path / "whole")
    assert whole["loss_mlm"] + whole["loss_nsp"] == pytest.approx(whole["loss"]) and 0.5 < whole["loss_nsp"] < 1.0
    others = [checks.terms(0, 1, tmp_path / "accumulated", accumulation=4)]
    others += pair.ask(CHECKS, "terms", folder=str(tmp_path / "two"))
    for other in others:
        assert other == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dims", [0, 1, 2])
def test_batch_norm_over_processes_is_that_of_one_batch(pair, dims, momentum):
    whole = checks.normalised(0, 1, dims, momentum)
    parts = pair.ask(CHECKS, "normalised", dims=dims, momentum=momentum)
    for name in ("outputs", "inputs"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name], rtol=1e-4, atol=1e-5)
    for part in parts:
        torch.testing.assert_close(part["gradients"], whole["gradients"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part["evaluated"], whole["evaluated"])
        assert list(part["state"]) == list(whole["state"])
        for name, tensor in whole["state"].items():
            torch.testing.assert_close(part["state"][name], tensor)


def test_what_is_gathered_sends_back_what_all_ask_for(pair):
    rows = torch.tensor([[1.0, 2], [3, 4], [11, 12], [13, 14]])
    # rank 0 asks for 1 ... 8, rank 1 for twice that
    asked = 3 * torch.arange(1.0, 9.0).view(4, 2)
    for rank, found in enumerate(pair.ask(CHECKS, "gathered")):
        torch.testing.assert_close(found["rows"], rows)
        torch.testing.assert_close(found["gradient"], asked[2 * rank : 2 * rank + 2])
        assert (found["sum"], found["sum_gradient"]) == (3.0, 11.0)


@pytest.mark.parametrize("number, seed", [(300, 0), (1500, 2)])  # the former are one piece for two processes
def test_together_they_see_each_sample_once(pair, tmp_path, number, seed):
    texts = tiny.texts(number, seed=seed)
    dataset = write(tmp_path / "texts.jsonl", texts)
    answers = pair.ask(CHECKS, "one_pass", folder=tmp_path, dataset=dataset)
    seen = [answer["seen"] for answer in answers]
    held_out = answers[0]["held_out"]
    assert held_out == answers[1]["held_out"]
    expected = Counter(text for text in texts if text not in set(held_out))
    assert Counter(seen[0]) + Counter(seen[1]) == expected
    assert min(map(len, seen)) > 0.3 * expected.total()
    assert all(lane % 2 == rank for rank, answer in enumerate(answers) for lane in answer["lanes"])


def test_figures_are_those_of_one_process(pair):
    alone = checks.measure(0, 1)
    for measured in pair.ask(CHECKS, "measure"):
        assert measured == pytest.approx(alone, rel=1e-6)
    assert 0 < len(checks.evaluator(0, 2).batches) < len(checks.evaluator(0, 1).batches)


def test_each_process_drops_its_own_units(pair, tmp_path):
    seeds = [seed for drawn in pair.ask(CHECKS, "seeds", folder=tmp_path) for seed in drawn]
    assert len(seeds) == len(set(seeds)) == 2 * 2 * 2


# -- the recipe -------------------------------------------------------------------------------------------------------


def flags(**settings) -> list[str]:
    settings = {
        "encoder_config": json.dumps(TINY_ENCODER), "vocab_size": 150, "max_length": 32, "max_steps": 200,
        "save_steps": 1000, "eval_steps": 200, "per_device_train_batch_size": 4, "report_to": "none",
        "precision": "fp32", "dropout": 0.1, **settings,
    }  # fmt: skip
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)]


class Launcher:
    """`torchrun` itself, with all that it starts."""

    def __init__(self, folder, words):
        self.log = folder / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*TORCHRUN, "recipes/mlm.py", *words],
                cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.poll, self.wait, self.terminate = self.process.poll, self.process.wait, self.process.terminate

    @property
    def stderr(self):
        return self.log.read_text()

    def kill(self, number=signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


# two forks by default: what torchrun does when it gets the signal is to hand it on
@pytest.mark.parametrize(
    "torchrun, workers",
    [(False, 2), pytest.param(True, 0, marks=pytest.mark.slow), pytest.param(True, 2, marks=pytest.mark.slow)],
)
def test_sigterm_saves_once_and_the_run_goes_on(tmp_path, torchrun, workers):
    steps = 200 if torchrun else 40
    settings = {"dataset": write(tmp_path / "texts.jsonl", tiny.texts(1500)), "dataloader_num_workers": workers}
    settings |= {"max_steps": steps, "eval_steps": steps}
    out, sent = tmp_path / "out", tmp_path / "sent"
    words = flags(output_dir=out, **settings)
    if torchrun:
        first = Launcher(tmp_path, words)
    else:
        first = recipe_server().start(tmp_path / "first", *words, ranks=2, before=waiting_at(20, sent))
    try:
        while "step 0: held-out" not in first.stderr if torchrun else first.stdout.count("waiting") < 2:
            assert first.poll() is None, first.stderr
            time.sleep(0.01)
        if torchrun:
            first.terminate()
        else:
            first.kill(signal.SIGTERM)
            sent.touch()
        assert first.wait(120) != 0
    finally:
        first.kill()
    said = first.stderr
    [checkpoint] = out.glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert 0 < step < steps
    assert said.count(f"Stopped at step {step}, saved as {checkpoint}.") == 1
    assert {"manifest.json", "stream_0.json", "stream_1.json"} <= {path.name for path in checkpoint.iterdir()}
    assert not any(out.glob(".staging/*"))

    again = recipe_server().run(tmp_path / "again", *words, ranks=2, drawn=False)
    assert again.poll() == 0, again.stderr
    assert f"Continuing from {checkpoint}" in again.stderr
    words = flags(output_dir=tmp_path / "whole" / "out", **settings)
    whole = recipe_server().run(tmp_path / "whole", *words, ranks=2, drawn=False)
    assert whole.poll() == 0, whole.stderr
    for name in ("model.safetensors", f"checkpoint-{steps}/optimizer.pt"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes(), name


@pytest.mark.parametrize("rows_a_process", [3, 5])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, rows_a_process):
    """2 processes, then 1, then 2 again: the weights of one that was alone. 6 and 10 rows a step, 8 lanes."""
    dataset = write(tmp_path / "texts.jsonl", tiny.texts(600))
    settings = {
        "dataset": dataset, "max_steps": 6, "save_steps": 2, "save_total_limit": 9, "lanes": 8, "dropout": 0.0,
        "learning_rate": 1e-2, "packing": "false", "per_device_train_batch_size": rows_a_process,
    }  # fmt: skip
    out, alone = tmp_path / "out", tmp_path / "alone"
    for ranks, begin in ((2, 0), (1, 2), (2, 4)):
        for step in range(begin + 1, 7):
            shutil.rmtree(out / f"checkpoint-{step}", ignore_errors=True)
        words = flags(output_dir=out, **settings)
        run = recipe_server().run(tmp_path / f"with-{ranks}-{begin}", *words, ranks=ranks, drawn=False)
        assert run.poll() == 0, run.stderr
        assert (f"Continuing from {out}/checkpoint-{begin}" in run.stderr) == (begin > 0)
        if ranks == 1:
            assert "goes on with 1 process(es) instead of 2: 2 accumulation step(s)" in run.stderr
    settings["gradient_accumulation_steps"] = 2
    run = recipe_server().run(tmp_path / "one", *flags(output_dir=alone, **settings), drawn=False)
    assert run.poll() == 0, run.stderr
    begun, ours, theirs = (
        load_file(folder / "model.safetensors")
        for folder in (alone / "checkpoint-2", out / "checkpoint-6", alone / "checkpoint-6")
    )
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    assert max((begun[name] - tensor).abs().max() for name, tensor in theirs.items()) > 1e-3
    states = [json.loads((folder / "checkpoint-6" / "stream_0.json").read_text()) for folder in (out, alone)]
    assert states[0]["turn"] == states[1]["turn"] == 6 * 2 * rows_a_process
    positions = states[0]["positions"] | json.loads((out / "checkpoint-6" / "stream_1.json").read_text())["positions"]
    assert positions == states[1]["positions"]


def test_a_number_of_processes_that_does_not_fit_is_refused(tmp_path):
    dataset = write(tmp_path / "texts.jsonl", tiny.texts(600))
    words = flags(
        dataset=dataset, output_dir=tmp_path / "out", max_steps=2, save_steps=2, per_device_train_batch_size=3
    )
    first = recipe_server().run(tmp_path / "first", *words, drawn=False)
    assert first.poll() == 0, first.stderr
    second = recipe_server().run(tmp_path / "second", *words, ranks=2)
    assert second.poll() == 1 and "Traceback" not in second.stderr
    assert "has 3 rows a step, which 2 processes" in second.stderr and "Launch one process." in second.stderr


@pytest.mark.slow
def test_mistakes_end_both_processes(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    process = subprocess.run(
        [*TORCHRUN, "recipes/mlm.py", *flags(dataset=tmp_path, output_dir=tmp_path / "out")],
        cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert process.returncode != 0
    assert process.stderr.count("is not empty (thesis.tex)") == 1
