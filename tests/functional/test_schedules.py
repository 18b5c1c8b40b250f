"""Budgets of wall-clock time: the schedule, the clock, and runs that end and resume by it."""

import json
import math

import numpy as np
import pytest
import tiny
import torch
from transformers import TrainerCallback

from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.errors import UserError
from hfssl.evaluation.evaluator import Evaluator
from hfssl.functional.schedules import budget_schedule
from hfssl.training.callbacks import BudgetClock, ProgressBar
from hfssl.training.checkpoints import list_checkpoints


# -- the schedule
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, options, factors",
    [
        ("linear", {}, [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]),
        ("cosine", {}, [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]),
        ("constant", {}, [1.0] * 6),
        ("constant_with_warmup", {}, [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}, [0.0, 0.5, 1.0, 0.55, 0.1, 0.1]),
        ("warmup_stable_decay", {"num_decay_steps": 0.9, "decay_type": "linear"}, [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]),
    ],
)
def test_the_schedule_of_a_budget(kind, options, factors):
    for progress, factor in zip((0.0, 0.05, 0.1, 0.55, 1.0, 1.7), factors, strict=True):
        assert budget_schedule(progress, warmup=0.1, kind=kind, **options) == pytest.approx(factor, abs=1e-6)


def test_cosine_is_no_line():
    assert budget_schedule(0.25, kind="cosine") == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert budget_schedule(0.25, kind="linear") == pytest.approx(0.75)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"kind": "greedy"}, "greedy` follows a metric"),
        ({"kind": "reduce_lr_on_plateau"}, "reduce_lr_on_plateau` follows a metric"),
        ({"kind": "triangle"}, "triangle is not a valid SchedulerType"),
        ({"warmup": 500}, "--warmup_steps 500"),
        ({"kind": "warmup_stable_decay", "num_decay_steps": 20}, "`num_decay_steps` is a share of it.*got 20"),
    ],
)
def test_what_no_budget_can_follow_is_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        budget_schedule(0.5, **arguments)


# -- runs
# -----------------------------------------------------------------------------------------------------------------


class Clock:
    """A clock on the wall that a test turns."""

    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


class Watch(TrainerCallback):
    """Keeps the learning rate of each step, and ends the process after one of them."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.learning_rates = []

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        self.learning_rates.append(optimizer.param_groups[0]["lr"])

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.stop_at:
            raise KeyboardInterrupt


class Measure(Evaluator):
    """Takes two seconds."""

    protocol, version, primary_metric = "measure", 1, "loss"

    def __init__(self, clock):
        self.clock = clock

    def measure(self, model):
        self.clock.time += 2.0
        return {"loss": 1.0}

    def __call__(self, *args, **kwargs):
        raise NotImplementedError


def run(folder, minutes, seconds=1.0, stop_at=None, evaluator=False, model=None, **overrides):
    """A trainer whose micro-steps take `seconds` on a clock of its own, and the batches that its model sees."""
    clock = Clock()
    fields = {
        "output_dir": str(folder), "budget_minutes": minutes, "per_device_train_batch_size": 8, "learning_rate": 1e-2,
        "precision": "fp32", "report_to": "none", "eval_strategy": "steps" if evaluator else "no", "save_steps": 2,
        "logging_steps": 1, "disable_tqdm": True, "seed": 5, "warmup_steps": 0.2,
    }  # fmt: skip
    args = SSLTrainingArguments(**{**fields, **overrides})
    model = model or tiny.mlm()
    seen = []

    def step(module, args, kwargs):
        if module.training:
            seen.append(kwargs["input_ids"].clone())
            clock.time += seconds

    model.register_forward_pre_hook(step, with_kwargs=True)
    watch = Watch(stop_at)
    evaluators = [Measure(clock)] if evaluator else []
    trainer = SSLTrainer(model, args, tiny.stream(8, seed=5), evaluators, callbacks=[watch])
    trainer.clock.now = clock
    return trainer, seen, watch


def test_a_run_ends_at_its_budget_and_the_learning_rate_follows_it(tmp_path):
    trainer, seen, watch = run(tmp_path, 10 / 60)
    trainer.train()
    # ten steps of a second; a fifth of the budget is warm-up; each step's rate is that of the time when it begins
    assert trainer.state.global_step == len(seen) == 10
    expected = [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert watch.learning_rates == pytest.approx([1e-2 * factor for factor in expected], abs=1e-9)
    assert trainer.clock.progress == 1.0
    assert [c.name for c in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-8"]
    assert json.loads((tmp_path / "checkpoint-8" / "clock.json").read_text()) == {"seconds": 8.0}


def test_a_slower_machine_makes_fewer_steps_of_the_same_schedule(tmp_path):
    trainer, seen, watch = run(tmp_path, 10 / 60, seconds=2.5)
    trainer.train()
    assert len(seen) == 4
    assert watch.learning_rates == pytest.approx([0.0, 1e-2 * 0.9375, 1e-2 * 0.625, 1e-2 * 0.3125], abs=1e-9)


def test_the_last_checkpoint_is_written_whatever_save_steps_says(tmp_path):
    trainer, _, _ = run(tmp_path, 3 / 60, save_steps=500)
    trainer.train()
    assert [c.name for c in list_checkpoints(tmp_path)] == ["checkpoint-3"]
    again, seen, _ = run(tmp_path, 3 / 60, save_steps=500, model=tiny.mlm(seed=9))
    again.train()
    assert seen == [] and again.state.global_step == 3
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


def test_a_resumed_run_sees_the_same_samples_and_has_only_the_rest_of_the_budget(tmp_path):
    whole, seen, _ = run(tmp_path / "whole", 10 / 60)
    whole.train()
    first, before, _ = run(tmp_path / "cut", 10 / 60, stop_at=5)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second, after, watch = run(tmp_path / "cut", 10 / 60)
    second.train()
    # killed after step 5: what followed the checkpoint of step 4 is done again, the minutes between the runs do not
    # count
    assert second.resumed_from.name == "checkpoint-4"
    assert len(before) == 5 and len(after) == 6
    for ours, theirs in zip(before[:4] + after, seen, strict=True):
        assert torch.equal(ours, theirs)
    assert watch.learning_rates[0] == pytest.approx(0.75e-2)
    assert second.clock.seconds == 10.0
    # the clock is a function of the steps here: then even the weights are the same
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name


def test_evaluations_count_and_follow_shares_of_the_budget(tmp_path):
    trainer, _, _ = run(tmp_path, 20 / 60, evaluator=True, eval_steps=0.25, save_steps=0.5, save_total_limit=None)
    trainer.train()
    measured = [e["step"] for e in trainer.state.log_history if "eval_loss" in e]
    # a second a step, two seconds an evaluation; the first one and the last one are outside the budget:
    # 5 steps, evaluation (7 s), 3 steps (10 s), evaluation (12 s), 3 steps (15 s), evaluation (17 s), 3 steps (20 s)
    assert measured == [0, 5, 8, 11, 14]
    assert trainer.state.global_step == 14
    assert sorted(c.name for c in list_checkpoints(tmp_path)) == ["checkpoint-14", "checkpoint-8"]
    assert json.loads((tmp_path / "checkpoint-8" / "clock.json").read_text()) == {"seconds": 12.0}


def test_accumulated_steps_count_whole(tmp_path):
    trainer, seen, _ = run(tmp_path, 5 / 60, gradient_accumulation_steps=2)
    trainer.train()
    assert trainer.state.global_step == 3 and len(seen) == 6


def test_the_method_hears_the_share_of_the_budget(tmp_path):
    model = tiny.mlm()
    heard = []
    model.after_optimizer_step = heard.append
    run(tmp_path, 4 / 60, model=model)[0].train()
    assert heard == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_the_budget_is_what_makes_the_run_not_the_number_of_steps(tmp_path):
    trainer, _, _ = run(tmp_path, 3 / 60)
    assert trainer.settings["budget_minutes"] == 3 / 60 and "max_steps" not in trainer.settings
    trainer.train()
    with pytest.raises(UserError, match="budget_minutes was 0.05, is 0.03333"):
        run(tmp_path, 2 / 60)[0].train()


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"budget_minutes": 0}, "--budget_minutes` must be more than 0, got 0"),
        ({"budget_minutes": -3.5}, "got -3.5"),
        ({"budget_minutes": math.nan}, "got nan"),
        ({"budget_minutes": 5, "max_tokens": 1000}, "--budget_minutes 5` and `--max_tokens 1000`"),
        ({"budget_minutes": 5, "warmup_steps": 100}, "share of the budget, below 1, got `--warmup_steps 100`"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(tmp_path, fields, words):
    with pytest.raises(UserError, match=words):
        SSLTrainingArguments(str(tmp_path), report_to="none", **fields)


def test_the_bar_shows_the_time_of_the_budget(tmp_path, capsys):
    trainer, _, _ = run(tmp_path, 120 / 60, disable_tqdm=False, seconds=40.0)
    bar = next(c for c in trainer.callback_handler.callbacks if isinstance(c, ProgressBar))
    bar.SECONDS_BETWEEN_LINES = -1.0
    trainer.train()
    lines = [line for line in capsys.readouterr().err.splitlines() if " left" in line]
    assert [line.split(",")[0] for line in lines] == ["step 1", "step 2", "step 3"]
    assert [line.rsplit(", ", 1)[1] for line in lines] == ["01:20 left", "00:40 left", "00:00 left"]


def test_processes_follow_the_clock_of_the_first(monkeypatch):
    """Each rank hears the seconds of rank 0 one step later, and all of them stop at the same step."""
    import torch.distributed as dist

    sent = []

    class Done:
        def wait(self):
            pass

    def broadcast(tensor, src, group, async_op):
        assert src == 0 and group == "cpu" and async_op
        if rank == 0:
            sent.append(tensor.item())
        else:
            tensor.fill_(sent[step])
        return Done()

    monkeypatch.setattr(dist, "broadcast", broadcast)
    monkeypatch.setattr(dist, "new_group", lambda backend: "cpu" if backend == "gloo" else None)
    args = SSLTrainingArguments("unused", report_to="none", eval_strategy="no", save_strategy="no")
    monkeypatch.setattr(type(args), "world_size", 2)
    stopped = []
    for rank in range(2):
        wall = Clock()
        clock = BudgetClock(5.0, wall)
        clock.on_train_begin(args, None, None)
        for step in range(100):
            control = type("Control", (), dict.fromkeys(("should_log", "should_evaluate", "should_save"), False))()
            control.should_training_stop = False
            clock.on_step_begin(args, None, control)
            wall.time += 1.0 + rank  # the other one's clock is of no interest
            clock.on_pre_optimizer_step(args, None, control)
            clock.on_step_end(args, None, control)
            assert clock.seconds == step
            if control.should_training_stop:
                break
        clock.on_train_end(args, None, None)
        stopped.append(step)
    assert stopped == [5, 5]


def test_time_really_passes(tmp_path):
    trainer, _, _ = run(tmp_path, 1.5 / 60, save_strategy="no", logging_steps=50)
    import time

    trainer.clock.now = time.monotonic
    begin = time.monotonic()
    trainer.train()
    assert 1.4 < time.monotonic() - begin < 15
    assert trainer.state.global_step > 2 and np.isfinite(trainer.state.log_history[-1].get("loss", 0.0))
