"""How much of a run its evaluations may take."""

import logging
from types import SimpleNamespace

import pytest
import tiny
from transformers import TrainerCallback

import hfssl.training.evaluations
import hfssl.training.trainer
from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.training.evaluations import EvaluationPace, how_much_rarer


def test_they_are_so_much_rarer_that_they_take_the_share():
    # ten of 8 s beside 400 s of training are 17 %, five of them 9 %
    assert how_much_rarer(8.0, 400.0, 10, 0.1, 30.0) == 2
    assert how_much_rarer(4.0, 400.0, 10, 0.1, 30.0) == 1
    assert how_much_rarer(100.0, 400.0, 10, 0.1, 30.0) == 10  # one at the end in any case
    assert how_much_rarer(2.9, 1.0, 10, 0.1, 30.0) == 1  # half a minute is not worth it


class Wall(TrainerCallback):
    """A clock that moves by the seconds of each step, and of each evaluation."""

    def __init__(self, a_step, an_evaluation):
        self.seconds, self.a_step, self.an_evaluation = 0.0, a_step, an_evaluation

    def monotonic(self):
        return self.seconds

    def on_step_begin(self, args, state, control, **kwargs):
        self.seconds += self.a_step

    def measure(self, model):
        self.seconds += self.an_evaluation
        return {"loss": 1.0}

    def loss_context(self, model):
        return None


def run(folder, monkeypatch, wall, max_steps=20, stop=None, **settings):
    for module in (hfssl.training.trainer, hfssl.training.evaluations):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=wall.monotonic))
    args = SSLTrainingArguments(
        output_dir=str(folder), max_steps=max_steps, report_to="none", precision="fp32", use_cpu=True, disable_tqdm=True,
        per_device_train_batch_size=4, learning_rate=1e-3, save_steps=5, **settings,
    )  # fmt: skip
    trainer = SSLTrainer(tiny.mlm(), args, tiny.stream(4), evaluators=[wall], callbacks=[wall])

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == stop

    trainer.add_callback(Stop())
    trainer.train()
    return [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]


def test_by_default_a_run_makes_fewer_and_says_so(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    # ten of 16 s beside 20 steps of 40 s
    assert run(tmp_path, monkeypatch, Wall(40.0, 16.0)) == [0, 4, 8, 12, 16, 20]
    [said] = [record.message for record in caplog.records if "An evaluation takes" in record.message]
    assert said.startswith(
        "An evaluation takes 16.0 s, and all would take 17 % of the run: there is one every 4 steps, "
    )
    assert "instead of 2. `--eval_steps N`" in said


@pytest.mark.parametrize(
    "settings, steps", [({"eval_steps": 2}, [0, 2, 4]), ({"early_stopping": 30}, [0, 1, 2, 3, 4])]
)
def test_what_was_asked_for_is_made(tmp_path, monkeypatch, settings, steps):
    assert run(tmp_path, monkeypatch, Wall(1.0, 16.0), max_steps=4, **settings) == steps


def test_a_run_that_goes_on_keeps_to_it(tmp_path, monkeypatch):
    assert run(tmp_path, monkeypatch, Wall(40.0, 16.0), stop=5) == [0, 4]
    # on a machine where evaluations are quick
    assert run(tmp_path, monkeypatch, Wall(40.0, 0.1)) == [0, 4, 8, 12, 16, 20]


def test_of_a_budget_of_time_they_take_no_more_either(tmp_path, monkeypatch):
    clock = SimpleNamespace(budget=1000.0, evaluations_apart=1)
    pace, state = EvaluationPace(clock), SimpleNamespace(eval_steps=10**11, max_steps=10**12, global_step=0)
    wall = Wall(0.0, 0.0)
    monkeypatch.setattr(hfssl.training.evaluations, "time", SimpleNamespace(monotonic=wall.monotonic))
    args = SSLTrainingArguments(output_dir=str(tmp_path), budget_minutes=1000 / 60, report_to="none", use_cpu=True)
    pace.on_train_begin(args, state, None)
    pace.add(25.0)
    for step in (1, 2):
        wall.seconds += 50.0
        state.global_step = step
        control = SimpleNamespace(should_evaluate=step == 2, should_training_stop=False)
        pace.on_step_end(args, state, control)
    # ten of 25 s are a quarter of 1000 s; of 900 s of training and three there are 8 %
    assert clock.evaluations_apart == 3 and not control.should_evaluate
