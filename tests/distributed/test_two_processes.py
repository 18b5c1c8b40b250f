"""Runs of two processes (`torchrun`, gloo): the same gradients, each sample once, one checkpoint, one figure."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import tiny
import torch
from recipe_process import ROOT, TINY_ENCODER, recipe_server


pytestmark = pytest.mark.distributed

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def load_checks():
    spec = importlib.util.spec_from_file_location("distributed_checks", Path(__file__).with_name("checks.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checks = load_checks()


def write(path: Path, texts) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What the processes of `checks.py` answered, by rank."""
    folder = tmp_path_factory.mktemp("two")
    write(folder / "few.jsonl", tiny.texts(300))  # one piece for two processes
    write(folder / "many.jsonl", tiny.texts(3000, seed=2))
    process = subprocess.run(
        [*TORCHRUN, str(Path(__file__).with_name("checks.py")), str(folder)],
        env=os.environ | ENVIRONMENT, cwd=folder, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    answers = [json.loads((folder / f"answer-{rank}.json").read_text()) for rank in range(2)]
    results = [torch.load(folder / f"gradients-{rank}.pt") for rank in range(2)]
    return [answer | result for answer, result in zip(answers, results, strict=True)]


def test_two_processes_ran(together):
    assert [answer["world_size"] for answer in together] == [2, 2]


def test_gradients_do_not_depend_on_the_cut(together, tmp_path):
    """1 × 32, 4 accumulation steps of 8, and 2 processes of 16."""
    whole = checks.gradients(tmp_path / "whole")
    accumulated = checks.gradients(tmp_path / "accumulated", accumulation=4)
    # the cuts have different numbers of masked tokens: a mean of their means would be another
    items = [answer["items"][0] for answer in together]
    assert items[0] != items[1] and sum(items) == sum(accumulated["items"]) == whole["items"][0]
    assert max(gradient.abs().max() for gradient in whole["gradients"].values()) > 1e-2
    for other in (accumulated, *together):
        assert other["gradients"].keys() == whole["gradients"].keys()
        for name, gradient in whole["gradients"].items():
            torch.testing.assert_close(other["gradients"][name], gradient, rtol=1e-5, atol=1e-6, msg=name)
        assert other["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def test_the_terms_of_a_loss_do_not_depend_on_the_cut(together, tmp_path):
    whole = checks.terms(tmp_path / "whole")
    assert whole["loss_mlm"] + whole["loss_nsp"] == pytest.approx(whole["loss"]) and 0.5 < whole["loss_nsp"] < 1.0
    for other in (checks.terms(tmp_path / "accumulated", accumulation=4), *(answer["terms"] for answer in together)):
        assert other == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("name", checks.IMAGE_METHODS)
def test_two_processes_of_images_are_one_of_twice_as_many(together, name):
    """Contrast and batch norm see the images of both."""
    whole = checks.image_gradients(name)
    assert max(gradient.abs().max() for gradient in whole["gradients"].values()) > 1e-3
    for answer in together:
        found = answer["images"][name]
        torch.testing.assert_close(found["loss"], whole["loss"])
        assert found["gradients"].keys() == whole["gradients"].keys()
        for key, gradient in whole["gradients"].items():
            torch.testing.assert_close(found["gradients"][key], gradient, rtol=1e-9, atol=1e-11)
        for key, buffer in whole["buffers"].items():
            torch.testing.assert_close(found["buffers"][key], buffer, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dims", [0, 1, 2])
def test_batch_norm_over_processes_is_that_of_one_batch(together, dims, momentum):
    whole = checks.normalised(dims, momentum=momentum)
    parts = [answer["norms"][dims, momentum] for answer in together]
    for name in ("outputs", "inputs"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name], rtol=1e-4, atol=1e-5)
    for part in parts:
        torch.testing.assert_close(part["gradients"], whole["gradients"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part["evaluated"], whole["evaluated"])
        assert list(part["state"]) == list(whole["state"])
        for name, tensor in whole["state"].items():
            torch.testing.assert_close(part["state"][name], tensor)


def test_what_is_gathered_sends_back_what_all_ask_for(together):
    rows = torch.tensor([[1.0, 2], [3, 4], [11, 12], [13, 14]])
    # rank 0 asks for 1 ... 8, rank 1 for twice that
    asked = 3 * torch.arange(1.0, 9.0).view(4, 2)
    for rank, answer in enumerate(together):
        found = answer["gathered"]
        torch.testing.assert_close(found["rows"], rows)
        torch.testing.assert_close(found["gradient"], asked[2 * rank : 2 * rank + 2])
        assert (found["sum"], found["sum_gradient"]) == (3.0, 11.0)


@pytest.mark.parametrize("dataset, texts", [("few", tiny.texts(300)), ("many", tiny.texts(3000, seed=2))])
def test_together_they_see_each_sample_once(together, dataset, texts):
    seen = [answer[dataset]["seen"] for answer in together]
    held_out = together[0][dataset]["held_out"]
    assert held_out == together[1][dataset]["held_out"]
    expected = Counter(text for text in texts if text not in set(held_out))
    assert Counter(seen[0]) + Counter(seen[1]) == expected
    assert min(map(len, seen)) > 0.3 * expected.total()
    assert all(answer[dataset]["position"]["pass"] == 1 for answer in together)


def test_figures_are_those_of_one_process(together):
    alone = checks.measure()
    for answer in together:
        assert answer["measured"] == pytest.approx(alone, rel=1e-6)
    assert 0 < len(checks.evaluator(0, 2).batches) < len(checks.evaluator().batches)


def test_each_process_drops_its_own_units(together):
    seeds = [seed for answer in together for seed in answer["seeds"]]
    assert len(seeds) == len(set(seeds)) == 2 * 2 * 2


# -- the recipe -------------------------------------------------------------------------------------------------------


def flags(**settings) -> list[str]:
    settings = {
        "encoder_config": json.dumps(TINY_ENCODER), "vocab_size": 150, "max_length": 32, "max_steps": 200,
        "save_steps": 1000, "eval_steps": 200, "per_device_train_batch_size": 4, "report_to": "none",
        "precision": "fp32", "dropout": 0.1, **settings,
    }  # fmt: skip
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)]


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_sigterm_to_the_launcher_saves_once_and_the_run_goes_on(tmp_path, workers):
    settings = {"dataset": write(tmp_path / "texts.jsonl", tiny.texts(1500)), "dataloader_num_workers": workers}
    out = tmp_path / "out"
    log = open(tmp_path / "log", "w")  # noqa: SIM115
    launcher = subprocess.Popen(
        [*TORCHRUN, "recipes/mlm.py", *flags(output_dir=out, **settings)],
        cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    try:
        while "step 0: held-out" not in (tmp_path / "log").read_text():
            assert launcher.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(120) != 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    said = (tmp_path / "log").read_text()
    [checkpoint] = out.glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert 0 < step < 200
    assert said.count(f"Stopped at step {step}, saved as {checkpoint}.") == 1
    assert {"manifest.json", "stream_0.json", "stream_1.json"} <= {path.name for path in checkpoint.iterdir()}
    assert not any(out.glob(".staging/*"))

    again = recipe_server().run(tmp_path / "again", *flags(output_dir=out, **settings), ranks=2)
    assert again.poll() == 0, again.stderr
    assert f"Continuing from {checkpoint}" in again.stderr
    whole = recipe_server().run(tmp_path / "whole", *flags(output_dir=tmp_path / "whole" / "out", **settings), ranks=2)
    assert whole.poll() == 0, whole.stderr
    for name in ("model.safetensors", "checkpoint-200/optimizer.pt"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes(), name


@pytest.mark.parametrize("then, now", [(2, 1), (1, 2)])
def test_another_number_of_processes_is_refused(tmp_path, then, now):
    dataset = write(tmp_path / "texts.jsonl", tiny.texts(600))
    words = flags(dataset=dataset, output_dir=tmp_path / "out", max_steps=4, save_steps=2)
    first = recipe_server().run(tmp_path / "first", *words, ranks=then)
    assert first.poll() == 0, first.stderr
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    second = recipe_server().run(tmp_path / "second", *words, ranks=now)
    assert second.poll() == 1
    assert "Traceback" not in second.stderr
    assert (
        f"the number of processes, each of which has its own part of the data, was {then}, is {now}" in second.stderr
    )
    assert "Pass another `--output_dir`" in second.stderr
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}


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
