"""What happens beside the training step."""

import io
import json
import logging
import math
import os
import re
import signal
import sys
import time

import pytest
import tiny
from recipe_process import TINY_ENCODER, recipe_server, waiting_at
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.errors import AboveTheBar, UserError
from hfssl.training.callbacks import MethodCallback, ProgressBar, StopOnNonFiniteLoss, StopOnSignal
from hfssl.training.checkpoints import list_checkpoints


# -- progress ---------------------------------------------------------------------------------------------------------


class Stream:
    def __init__(self, unit="tokens"):
        self.unit, self.counts = unit, {"units": 0}


def drive(tmp_path, monkeypatch, terminal, seconds_a_step=1.0, steps=100, start=0, unit="tokens"):
    """What a bar shows of a run of 100 steps, 500 tokens each."""
    shown, clock = io.StringIO(), [1000.0]
    shown.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setattr("hfssl.training.callbacks.time.monotonic", lambda: clock[0])
    stream = Stream(unit)
    bar = ProgressBar(stream)
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    state, control = TrainerState(max_steps=100, global_step=start), TrainerControl()
    state.is_world_process_zero = True
    bar.on_train_begin(args, state, control)
    for step in range(start + 1, start + steps + 1):
        clock[0] += seconds_a_step
        stream.counts["units"] += 500
        state.global_step = step
        if step % 10 == 0:
            bar.on_log(args, state, control, logs={"loss": 5.0 - step / 100})
        bar.on_step_end(args, state, control)
        if step % 50 == 0:
            logs = {"eval_loss": 4.5, "eval_accuracy": 0.25, "eval_chance_loss": 5.25}
            bar.on_log(args, state, control, logs=logs)
    bar.on_train_end(args, state, control)
    return shown.getvalue()


def test_a_log_file_gets_a_line_now_and_then(tmp_path, monkeypatch):
    lines = drive(tmp_path, monkeypatch, terminal=False).splitlines()
    progress = [line for line in lines if "tokens/s" in line]
    assert len(progress) == 3  # of 100 seconds
    assert re.fullmatch(r"step 31/100, loss 4\.700 \(mean of steps 21 to 30\), 500 tokens/s, 01:09 left", progress[0])
    assert "step 50: held-out loss 4.5000 (chance 5.2500), accuracy 0.2500" in lines
    assert "\r" not in "".join(lines) and "|" not in "".join(lines)


def test_a_terminal_gets_one_line(tmp_path, monkeypatch):
    shown = drive(tmp_path, monkeypatch, terminal=True)
    assert "100/100" in shown.split("\r")[-1] or "100/100" in shown
    assert re.search(r"training +\d+%\|.*loss 4\.\d+ \(mean of steps \d+ to \d+\), 500 tokens/s", shown)
    assert [line for line in shown.split("\n") if "held-out" in line]
    assert shown.count("\n") <= 4  # the two evaluations, and the end


def test_images_are_counted_as_such(tmp_path, monkeypatch):
    shown = drive(tmp_path, monkeypatch, terminal=False, unit="images")
    assert ", 500 images/s, " in shown and "tokens" not in shown


def test_a_resumed_run_counts_its_own_time(tmp_path, monkeypatch):
    lines = drive(tmp_path, monkeypatch, terminal=False, steps=40, start=60).splitlines()
    assert any(
        re.fullmatch(r"step 91/100, loss 4\.100 \(mean of steps 81 to 90\), 500 tokens/s, 00:09 left", line)
        for line in lines
    )


def test_how_long_it_takes_is_said_before_it_is_long(tmp_path, monkeypatch):
    assert " a step" not in drive(tmp_path, monkeypatch, terminal=False)  # of 100 seconds
    lines = drive(tmp_path, monkeypatch, terminal=False, seconds_a_step=20.0).splitlines()
    assert [line for line in lines if " a step" in line] == ["20 s a step: the run takes about 32:00."]
    assert " a step" not in drive(tmp_path, monkeypatch, terminal=True, seconds_a_step=20.0)  # the bar says it
    for terminal in (False, True):
        shown = drive(tmp_path, monkeypatch, terminal, seconds_a_step=60.0)
        assert (
            "60 s a step: the run takes about 1:36:00. An hour is `--max_steps 60` or `--budget_minutes 60`" in shown
        )


def on_screen(written: str) -> list[str]:
    """The lines that a terminal shows: what follows a carriage return is written over what was there."""
    lines = []
    for line in written.split("\n"):
        shown = ""
        for part in re.sub(r"\x1b\[A", "", line).split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def test_log_lines_share_no_line_with_the_bar(monkeypatch):
    """Whoever logs, and however long the bar is."""
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", screen)
    handler = AboveTheBar()
    loggers = [logging.getLogger(name) for name in ("hfssl.somewhere", "py.warnings")]
    bar = tqdm(total=10, file=sys.stderr, ncols=60, desc="training", mininterval=0)
    for step, logger in enumerate(loggers):
        bar.update(1)
        handler.emit(logger.makeRecord(logger.name, logging.WARNING, "", 0, f"message {step}", (), None))
    bar.close()
    lines = on_screen(screen.getvalue())
    assert [line for line in lines if "message" in line] == ["message 0", "message 1"]
    assert lines[2].startswith("training:  20%")


def test_only_the_main_process_shows_it(tmp_path, monkeypatch):
    bar = ProgressBar(Stream())
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    state = TrainerState(max_steps=10)
    state.is_world_process_zero = False
    bar.on_train_begin(args, state, TrainerControl())
    assert bar.bar is None
    bar.on_log(args, state, TrainerControl(), logs={"loss": 1.0})
    bar.on_step_end(args, state, TrainerControl())
    bar.on_train_end(args, state, TrainerControl())


# -- the method's own schedule
# ------------------------------------------------------------------------------------------


def test_the_method_hears_of_every_step_of_a_plain_trainer(tmp_path):
    model, heard = tiny.mlm(), []
    model.after_optimizer_step = heard.append
    batch = next(iter(tiny.stream(8)))
    rows = [{name: batch[name][i] for name in ("input_ids", "sequence_ids", "labels")} for i in range(8)]
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, report_to="none", use_cpu=True,
        remove_unused_columns=False, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, args, train_dataset=rows, callbacks=[MethodCallback()]).train()
    assert heard == pytest.approx([1 / 3, 2 / 3, 1])


def test_the_weight_decay_follows_the_run(tmp_path):
    """Along half a cosine, of what is decayed at all."""
    seen = []

    class Look(TrainerCallback):
        def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
            seen.append([group["weight_decay"] for group in optimizer.param_groups])

    args = SSLTrainingArguments(
        str(tmp_path), max_steps=4, learning_rate=1e-3, weight_decay=0.04, weight_decay_end=0.4, report_to="none",
        eval_strategy="no", save_strategy="no", use_cpu=True, per_device_train_batch_size=2, precision="fp32",
    )  # fmt: skip
    SSLTrainer(tiny.mlm(), args, tiny.stream(2), callbacks=[Look()]).train()
    decayed, others = zip(*seen, strict=True)
    expected = [0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * p)) / 2 for p in (0.0, 0.25, 0.5, 0.75)]
    assert decayed == pytest.approx(expected) and set(others) == {0.0}


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_what_one_needs(loss):
    callback = StopOnNonFiniteLoss(lambda: "out/checkpoint-20")
    state = TrainerState(global_step=25)
    callback.on_log(None, state, None, logs={"loss": 1.0, "learning_rate": 1e-3})
    callback.on_log(None, state, None, logs={"eval_loss": loss})
    with pytest.raises(UserError) as stopped:
        callback.on_log(None, state, None, logs={"loss": loss, "learning_rate": 1e-3})
    for words in ("step 25", "learning rate of 0.001", "out/checkpoint-20", "--learning_rate", "--warmup_steps"):
        assert words in str(stopped.value)


# -- signals
# ---------------------------------------------------------------------------------------------------------------


def flags(folder, **settings):
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny.texts(1500)))
    settings = {
        "dataset": folder / "texts.jsonl", "output_dir": folder / "out", "encoder_config": json.dumps(TINY_ENCODER),
        "vocab_size": 150, "max_length": 32, "max_steps": 150, "save_steps": 1000, "eval_steps": 150,
        "per_device_train_batch_size": 4, "report_to": "none", "precision": "fp32", "dropout": 0.1, **settings,
    }  # fmt: skip
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def wait_for(condition, run):
    while not condition():
        assert run.poll() is None, run.stderr
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_the_whole_group_saves_although_workers_get_it_too(tmp_path, number):
    """Ctrl-C goes to all processes of a terminal's group, a launcher's SIGTERM to all of the run's session."""
    steps, sent = {"max_steps": 40, "eval_steps": 40}, tmp_path / "sent"
    words = flags(tmp_path, dataloader_num_workers=2, **steps)
    run = recipe_server().start(tmp_path / "first", *words, before=waiting_at(20, sent))
    wait_for(lambda: "waiting" in run.stdout, run)
    os.killpg(run.pids[0], number)
    sent.touch()
    assert run.wait() == 128 + number
    assert "Traceback" not in run.stderr
    [checkpoint] = list_checkpoints(tmp_path / "out")
    step = int(checkpoint.name.split("-")[1])
    assert 0 < step < 40
    assert run.stderr.splitlines()[-1] == (
        f"Stopped at step {step}, saved as {checkpoint}. The same command goes on from there."
    )
    again = recipe_server().run(tmp_path / "again", *words, drawn=False)
    assert again.poll() == 0, again.stderr
    words = flags(tmp_path, output_dir=tmp_path / "whole" / "out", **steps)
    whole = recipe_server().run(tmp_path / "whole", *words, drawn=False)
    assert whole.poll() == 0, whole.stderr
    same = [(folder / "out" / "model.safetensors").read_bytes() for folder in (tmp_path, tmp_path / "whole")]
    assert same[0] == same[1]


SLOW_SEAL = """
import time
import hfssl.training.checkpoints as checkpoints
seal = checkpoints.seal
checkpoints.seal = lambda *args: (time.sleep(120), seal(*args))
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_second_signal_ends_the_run_at_once(tmp_path, workers):
    words = flags(tmp_path, dataloader_num_workers=workers)
    run = recipe_server().start(tmp_path / "log", *words, before=SLOW_SEAL)
    wait_for(lambda: "step 0: held-out" in run.stderr, run)
    run.kill(signal.SIGTERM)
    wait_for(lambda: any((tmp_path / "out").glob(".staging/checkpoint-*/model.safetensors")), run)
    run.kill(signal.SIGTERM)
    assert run.wait() == -signal.SIGTERM
    assert list_checkpoints(tmp_path / "out") == []
    assert recipe_server().run(tmp_path / "again", *flags(tmp_path, max_steps=2), drawn=False).poll() == 0


SLOW_TOKENIZER = """
import time
import hfssl.cli.text.data as text_data
text_data.train_tokenizer = lambda *args, **kwargs: time.sleep(120)
"""


def test_ctrl_c_before_the_training_is_no_stack_trace(tmp_path):
    run = recipe_server().start(tmp_path / "log", *flags(tmp_path), before=SLOW_TOKENIZER)
    wait_for(lambda: "Training a tokenizer" in run.stderr, run)
    time.sleep(0.1)
    run.kill(signal.SIGINT)
    assert run.wait() == 130
    assert "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1].startswith("error: Interrupted.")


def test_a_signal_after_the_last_step_does_not_stop_the_run(tmp_path):
    stop = StopOnSignal()
    stop.received = "SIGTERM"
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    state, control = TrainerState(max_steps=10, global_step=10), TrainerControl(should_training_stop=True)
    stop.on_step_end(args, state, control)
    assert not stop.stopped
    state, control = TrainerState(max_steps=10, global_step=9), TrainerControl()
    stop.on_step_end(args, state, control)
    assert stop.stopped and control.should_save and control.should_training_stop
