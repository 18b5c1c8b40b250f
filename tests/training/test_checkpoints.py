"""The output folder of a run: whose it is, and which checkpoint a run goes on from."""

import json
import logging
import os
import textwrap
import time

import pytest
from recipe_process import recipe_server

from hfssl.errors import UserError
from hfssl.training import checkpoints
from hfssl.training.checkpoints import LOCK, MANIFEST, STAGING, claim_output_dir, find_checkpoint, list_checkpoints


SETTINGS = {"learning_rate": 0.1, "seed": 0}


@pytest.fixture(autouse=True)
def release():
    """A claim ends with its process; here with the test."""
    yield
    for lock in checkpoints._locks.values():
        lock.close()
    checkpoints._locks.clear()
    checkpoints._reported.clear()


def let_go(folder):
    checkpoints._locks.pop(str(folder.resolve())).close()


def make(folder, step, settings=SETTINGS):
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "sub").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (checkpoint / "sub" / "state.json").write_text('{"step": 1}')
    checkpoints.seal(checkpoint, settings)
    return checkpoint


def run(folder, code):
    """Another process; its output is in `folder / "log"`."""
    folder.mkdir()
    (folder / "script.py").write_text(textwrap.dedent(code))
    return recipe_server().start(folder / "log", folder / "out", script=str(folder / "script.py"))


def wait_for(process, word):
    deadline = time.monotonic() + 300
    while word not in process.stdout:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr
        time.sleep(0.01)


# -- the claim --------------------------------------------------------------------------------------------------------


def test_a_new_folder_is_made_and_claimed(tmp_path):
    folder = claim_output_dir(tmp_path / "a" / "b")
    assert (folder / LOCK).read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("names", [["thesis.tex"], ["config.json", "model.safetensors"], list("abcdef")])
def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=rf"not empty \({', '.join(names[:4])}.*Pass another `--output_dir`"):
        claim_output_dir(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write to the output folder .*file"):
        claim_output_dir(tmp_path / "file")


def test_the_claim_of_a_process_ends_with_it(tmp_path):
    holder = run(
        tmp_path / "holder",
        """
        import sys, time
        from hfssl.training.checkpoints import claim_output_dir

        claim_output_dir(sys.argv[1])
        print("claimed", flush=True)
        time.sleep(1000)
        """,
    )
    out = tmp_path / "holder" / "out"
    try:
        wait_for(holder, "claimed")
        with pytest.raises(UserError, match=rf"in use by another process \(pid {holder.pids[0]}\)"):
            claim_output_dir(out)
    finally:
        holder.kill()
        holder.wait()
    claim_output_dir(out)


def test_a_forked_worker_does_not_hold_the_claim(tmp_path):
    """A killed run's data workers live a moment longer."""
    process = run(
        tmp_path / "run",
        """
        import os, sys, time
        from hfssl.training.checkpoints import claim_output_dir

        claim_output_dir(sys.argv[1])
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        os._exit(0)
        """,
    )
    assert process.wait() == 0
    claim_output_dir(tmp_path / "run" / "out")


def test_a_claim_clears_what_a_killed_run_left_behind(tmp_path):
    claim_output_dir(tmp_path)
    make(tmp_path, 5)
    (tmp_path / STAGING / "checkpoint-10").mkdir(parents=True)
    let_go(tmp_path)
    claim_output_dir(tmp_path)
    assert not (tmp_path / STAGING).exists()
    assert [c.name for c in list_checkpoints(tmp_path)] == ["checkpoint-5"]


def test_a_run_that_left_nothing_blocks_nothing(tmp_path):
    claim_output_dir(tmp_path)
    let_go(tmp_path)
    claim_output_dir(tmp_path, resume="never")


@pytest.mark.parametrize("resume, content", [("never", "checkpoint-3/x"), ("auto", "results.json")])
def test_a_finished_run_is_not_written_over(tmp_path, resume, content):
    claim_output_dir(tmp_path)
    (tmp_path / content).parent.mkdir(exist_ok=True)
    (tmp_path / content).write_text("[]")
    let_go(tmp_path)
    with pytest.raises(UserError, match="holds another run already.*delete the folder"):
        claim_output_dir(tmp_path, resume)
    assert (tmp_path / content).exists()


# -- which checkpoint -------------------------------------------------------------------------------------------------


def test_checkpoints_are_listed_by_number(tmp_path):
    for step in (5, 10, 100, 20):
        make(tmp_path, step)
    (tmp_path / "checkpoint-7").write_text("a file")
    for name in ("checkpoint-x", "damaged-checkpoint-200", "checkpoint-300-old", f"{STAGING}/checkpoint-400"):
        (tmp_path / name).mkdir(parents=True)
    assert [c.name for c in list_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (100, 20, 10, 5)]
    assert find_checkpoint(tmp_path).name == "checkpoint-100"
    assert find_checkpoint(tmp_path, "never") is None
    assert find_checkpoint(tmp_path / "empty") is None


def flip(checkpoint):
    data = bytearray((checkpoint / "model.safetensors").read_bytes())
    data[5000] ^= 1
    (checkpoint / "model.safetensors").write_bytes(data)


DAMAGES = {
    "has no manifest": lambda checkpoint: (checkpoint / MANIFEST).unlink(),
    "its manifest.json is not readable": lambda checkpoint: (checkpoint / MANIFEST).write_text('{"files": '),
    "manifest.json is not readable": lambda checkpoint: (checkpoint / MANIFEST).write_text("[]"),
    "model.safetensors was changed": flip,
    "model.safetensors was": lambda checkpoint: (checkpoint / "model.safetensors").write_bytes(b""),
    "sub/state.json is missing": lambda checkpoint: (checkpoint / "sub" / "state.json").unlink(),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_named_once_and_set_aside(tmp_path, caplog, words):
    for step in (5, 10, 15):
        make(tmp_path, step)
    DAMAGES[words](tmp_path / "checkpoint-15")
    with caplog.at_level(logging.WARNING, "hfssl"):
        assert find_checkpoint(tmp_path).name == "checkpoint-10"
        assert find_checkpoint(tmp_path).name == "checkpoint-10"
    assert (
        len(caplog.messages) == 1 and words in caplog.messages[0] and "checkpoint-15 is damaged" in caplog.messages[0]
    )
    with pytest.raises(UserError, match="is no checkpoint to continue from: .*checkpoint-10, .*checkpoint-5"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-15"))
    checkpoints.set_aside(tmp_path, tmp_path / "checkpoint-10")
    assert [c.name for c in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-5"]
    assert (tmp_path / "damaged-checkpoint-15").is_dir()


def test_only_what_is_newer_and_damaged_is_set_aside(tmp_path):
    for step in (5, 10, 15, 20):
        make(tmp_path, step)
    flip(tmp_path / "checkpoint-5")
    flip(tmp_path / "checkpoint-15")
    checkpoints.set_aside(tmp_path, tmp_path / "checkpoint-10")
    assert [c.name for c in list_checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-10", "checkpoint-5"]


def test_no_whole_checkpoint_is_an_error_and_no_new_start(tmp_path):
    for step in (5, 10):
        flip(make(tmp_path, step))
    with pytest.raises(UserError, match="No whole checkpoint is left"):
        find_checkpoint(tmp_path)


def test_a_checkpoint_that_is_named(tmp_path):
    first = make(tmp_path, 5)
    make(tmp_path, 10)
    assert find_checkpoint(tmp_path, str(first)) == first
    with pytest.raises(UserError, match="nowhere` is no checkpoint .*: there is no such folder.*`--resume auto`"):
        find_checkpoint(tmp_path, str(tmp_path / "nowhere"))


def test_a_checkpoint_of_another_folder_until_there_is_one_here(tmp_path):
    begun, other = make(tmp_path / "a", 5), tmp_path / "b"
    assert find_checkpoint(other, str(begun)) == begun
    newer = make(other, 7)
    assert find_checkpoint(other, str(begun)) == newer
    with pytest.raises(UserError, match=f"it has no manifest.json. Those in it are {begun}"):
        find_checkpoint(other, str(tmp_path / "a"))


def test_settings_of_another_run_are_named_one_by_one(tmp_path):
    checkpoint = make(tmp_path, 5, {"learning_rate": 0.1, "seed": 0, "global_batch_size": 2, "gone": 1})
    assert checkpoints.read_settings(checkpoint)["global_batch_size"] == 2
    with pytest.raises(UserError) as refused:
        checkpoints.check_settings(checkpoint, {"learning_rate": 0.2, "seed": 0, "global_batch_size": 1, "new": "x"})
    said = str(refused.value)
    assert "learning_rate was 0.1, is 0.2" in said and "gone was 1, is None" in said and "new was None, is 'x'" in said
    assert "gradient_accumulation_steps × processes) was 2, is 1" in said
    assert "seed" not in said


def test_what_earlier_versions_did_not_write_is_no_difference(tmp_path):
    before = make(tmp_path / "before", 5, {"seed": 0})
    checkpoints.check_settings(before, {"seed": 0, "encoder": "e436", "unit_encoder": "0f12"})
    written = make(tmp_path / "now", 5, {"seed": 0, "encoder": "e436", "unit_encoder": "0f12"})
    with pytest.raises(UserError, match="encoder was 'e436', is 'a1'; unit_encoder was '0f12', is 'b2'"):
        checkpoints.check_settings(written, {"seed": 0, "encoder": "a1", "unit_encoder": "b2"})
    with pytest.raises(UserError, match="encoder was 'e436', is None"):
        checkpoints.check_settings(written, {"seed": 0, "unit_encoder": "0f12"})


def test_the_newest_are_kept(tmp_path):
    for step in (5, 10, 15, 20):
        make(tmp_path, step)
    checkpoints.rotate(tmp_path, None)
    assert len(list_checkpoints(tmp_path)) == 4
    checkpoints.rotate(tmp_path, 2)
    assert [c.name for c in list_checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-15"]
    assert not any((tmp_path / STAGING).iterdir())
    checkpoints.rotate(tmp_path, 0)  # nothing to go on from would be left
    assert len(list_checkpoints(tmp_path)) == 2


@pytest.mark.parametrize(
    "good_step, kept",
    [
        (None, [20, 15]),
        (4, [20, 15]),  # there is none from then
        (5, [20, 15, 5]),
        (12, [20, 15, 10]),  # the newest one only
        (15, [20, 15]),
        (100, [20, 15]),
    ],
)
def test_the_last_one_from_when_it_was_learning_is_kept_as_well(tmp_path, good_step, kept):
    for step in (5, 10, 15, 20):
        make(tmp_path, step)
    checkpoints.rotate(tmp_path, 2, good_step)
    assert [checkpoints.step_of(c) for c in list_checkpoints(tmp_path)] == kept


def test_a_seal_covers_every_file(tmp_path):
    checkpoint = make(tmp_path, 5)
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    assert set(manifest["files"]) == {"model.safetensors", "sub/state.json"}
    assert manifest["files"]["model.safetensors"][0] == 256 * 40
    assert manifest["settings"] == SETTINGS


def test_of_settings_with_parts_the_parts_that_differ_are_named(tmp_path):
    views = [{"size": 64, "crop": {"scale": (0.2, 1.0)}, "flip": 0.5}] * 2
    checkpoint = make(tmp_path, 5, {"views": str(views), "mean": str([0.1, 0.2])})
    now = [{**view, "size": 32} for view in views]
    with pytest.raises(UserError) as refused:
        checkpoints.check_settings(checkpoint, {"views": str(now), "mean": str([0.1, 0.2])})
    assert "holds another run: size was 64, is 32. Pass another" in str(refused.value)
    with pytest.raises(UserError) as refused:
        checkpoints.check_settings(checkpoint, {"views": str(views[:1]), "mean": str([0.1, 0.3])})
    assert "mean was [0.1, 0.2], is [0.1, 0.3]; views was [{" in str(refused.value)
    many = {f"setting_{number}": number for number in range(9)} | checkpoints.read_settings(checkpoint)
    with pytest.raises(UserError, match="setting_5 was None, is 5; and 3 more. Pass"):
        checkpoints.check_settings(checkpoint, many)
