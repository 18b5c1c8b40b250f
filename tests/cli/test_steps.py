"""Steps are run one after another; what is done stays done, unless something before it changes."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from recipe_process import recipe_server

from hfssl.cli import steps as steps_module
from hfssl.cli.steps import Step, Steps
from hfssl.commands import flag_words
from hfssl.errors import UserError


# writes its flags into the file that the first one names, then does what the last one says
RECIPE = """
import signal, sys, time
open(sys.argv[2], "a").write(" ".join(sys.argv[3:]) + "\\n")
if sys.argv[-1] == "fail":
    sys.exit(3)
if sys.argv[-1] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[2], "a").write("saved\\n"), sys.exit(143)))
    open(sys.argv[2] + ".ready", "w")
    time.sleep(300)
"""


@pytest.fixture
def log(tmp_path, monkeypatch):
    recipe = tmp_path / "one.py"
    recipe.write_text(RECIPE)
    monkeypatch.setattr(steps_module, "recipes", lambda: {"one": recipe})
    monkeypatch.setattr(sys, "argv", ["recipes/pretrain.py"])
    return tmp_path / "log"


def step(log: Path, name: str, do: str = "nothing") -> Step:
    return Step(name, "one", {"log": log, "name": name, "do": do, "left_out": None})


def run(folder: Path, *wanted: Step) -> list[dict]:
    steps = Steps(folder, {"why": "because"})
    steps.plan(*wanted)
    try:
        for each in wanted:
            steps.run(each)
    finally:
        record = json.loads((folder / "plan.json").read_text())
    assert record["why"] == "because"
    return record["steps"]


def states(folder: Path) -> list[str]:
    return [each["state"] for each in json.loads((folder / "plan.json").read_text())["steps"]]


def test_what_is_done_is_not_repeated(log, tmp_path):
    a, b = step(log, "a"), step(log, "b")
    records = run(tmp_path, a, b)
    assert [each["state"] for each in records] == ["done", "done"]
    assert records[0]["command"] == f"python recipes/one.py --log {log} --name a --do nothing"
    assert run(tmp_path, a, b) == records and len(log.read_text().splitlines()) == 2
    # what follows a step that changes is about something else
    run(tmp_path, step(log, "a", "more"), b)
    assert [line.split()[1] for line in log.read_text().splitlines()] == ["a", "b", "a", "b"]
    run(tmp_path, step(log, "a", "more"), step(log, "b", "more"))
    assert [line.split()[1] for line in log.read_text().splitlines()][4:] == ["b"]


def test_a_step_that_fails_is_the_one_to_go_on_with(log, tmp_path):
    a, b, c = step(log, "a"), step(log, "b", "fail"), step(log, "c")
    with pytest.raises(UserError, match="The step b ended with exit code 3; .* --name b --do fail"):
        run(tmp_path, a, b, c)
    assert states(tmp_path) == ["done", "failed", "waiting"]
    run(tmp_path, a, step(log, "b"), c)
    assert states(tmp_path) == ["done"] * 3
    assert [line.split()[1] for line in log.read_text().splitlines()] == ["a", "b", "b", "c"]


def test_a_change_is_not_forgotten_where_the_run_ends_before_what_follows(log, tmp_path):
    a, b = step(log, "a"), step(log, "b")
    run(tmp_path, a, b)
    run(tmp_path, step(log, "a", "more"))
    # `b` is about the old `a`, though its own command is as it was
    steps = Steps(tmp_path, {})
    steps.plan(step(log, "a", "less"), b)
    steps.run(step(log, "a", "less"))
    assert states(tmp_path) == ["done", "waiting"]
    run(tmp_path, step(log, "a", "less"), b)
    assert log.read_text().splitlines()[-1].split()[1] == "b"


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals go to the main thread")
def test_a_signal_is_for_the_step(log, tmp_path):
    """It saves and ends; this process ends with it, and says where to go on."""

    def stop():
        deadline = time.monotonic() + 300
        while not Path(f"{log}.ready").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, step(log, "a", "wait"), step(log, "b"))
    assert stopped.value.code == 143 and log.read_text().splitlines()[-1] == "saved"
    assert states(tmp_path) == ["stopped", "waiting"] and signal.getsignal(signal.SIGTERM) == before


KILLED = """
import sys
from pathlib import Path
from hfssl.cli import steps

recipe, log = map(Path, sys.argv[1:])
sys.argv = ["recipes/pretrain.py"]
steps.recipes = lambda: {"one": recipe}
each = steps.Step("a", "one", {"log": log, "name": "a", "do": "wait"})
whole = steps.Steps(log.parent, {})
whole.plan(each)
whole.run(each)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of the end of its parent")
def test_a_step_saves_and_ends_where_the_whole_is_killed(log, tmp_path):
    script = tmp_path / "whole.py"
    script.write_text(KILLED)
    whole = recipe_server().start(tmp_path / "stdout", tmp_path / "one.py", log, script=str(script))
    wait_for(lambda: Path(f"{log}.ready").exists())
    whole.kill(signal.SIGKILL)
    wait_for(lambda: "saved" in log.read_text())
    assert log.read_text().splitlines() == ["--name a --do wait", "saved"]


def wait_for(happened):
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("status, state", [(1, "stopped"), (0, "done")])
def test_a_signal_ends_the_whole_whatever_the_step_says_of_it(log, tmp_path, monkeypatch, status, state):
    """torchrun ends with 1; a step that had its last moment ends well."""
    monkeypatch.setattr(steps_module, "_run", lambda command: (status, signal.SIGINT))
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, step(log, "a"), step(log, "b"))
    assert stopped.value.code == 130 and states(tmp_path) == [state, "waiting"]


def test_no_token_is_kept(log, tmp_path):
    token = "hf_" + "x" * 20
    run(tmp_path, Step("a", "one", {"log": log, "hub_token": token}))
    assert token in log.read_text() and token not in (tmp_path / "plan.json").read_text()


def test_the_command_in_several_processes(log, monkeypatch):
    each = Step("a", "one", {"seed": 1}, processes=2)
    assert each.words() == ["torchrun", "--nproc_per_node", "2", "recipes/one.py", "--seed", "1"]
    monkeypatch.setattr(sys, "argv", ["hfssl pretrain"])
    assert each.words() == ["torchrun", "--nproc_per_node", "2", "-m", "hfssl", "one", "--seed", "1"]
    assert Step("a", "one", {"seed": 1}).words() == ["hfssl", "one", "--seed", "1"]
    assert Step("a", "one", {"seed": 1}).process() == [sys.executable, "-m", "hfssl", "one", "--seed", "1"]


def test_threads_of_a_launcher_are_not_handed_on(log, tmp_path, monkeypatch):
    """`accelerate launch` sets one thread where nobody asked for it."""
    recipe = tmp_path / "one.py"
    recipe.write_text(
        "import os, sys; open(sys.argv[2], 'a').write(os.environ.get('OMP_NUM_THREADS', 'none') + '\\n')"
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run(tmp_path, step(log, "a"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr("hfssl.machine._launcher_has", lambda variable: False)
    run(tmp_path, step(log, "b"))
    assert log.read_text().split() == ["3", "none"]


def test_flags_as_they_are_typed():
    flags = {"a": None, "b": True, "c": [1, 2], "d": {"x": 0.5}, "e": "f g"}
    assert flag_words(flags) == ["--b", "true", "--c", "1", "2", "--d", '{"x": 0.5}', "--e", "f g"]
