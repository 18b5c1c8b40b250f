"""The contract of SSLTrainer's overrides: each of these fails when Trainer changes under it."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.errors import UserError
from hfssl.evaluation.encoder_folder import weights_digest
from hfssl.evaluation.masked_tokens import MaskedTokenEvaluator
from hfssl.evaluation.results import Result
from hfssl.report.card import add_to_card
from hfssl.report.record import read_record
from hfssl.training import checkpoints
from hfssl.training.callbacks import MethodCallback
from hfssl.training.checkpoints import list_checkpoints


def arguments(folder, **overrides):
    fields = {
        "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "precision": "fp32",
        "report_to": "none", "eval_strategy": "no", "save_steps": 2, "logging_steps": 1, "disable_tqdm": True, "seed": 5,
    }  # fmt: skip
    return SSLTrainingArguments(**{**fields, **overrides})


def trainer(folder, model=None, stream=None, evaluators=(), callbacks=None, **overrides):
    args = arguments(folder, **overrides)
    model = model or tiny.mlm(dropout=0.1)
    stream = stream or tiny.stream(args.per_device_train_batch_size, seed=args.seed)
    return SSLTrainer(model, args, stream, evaluators, processing_class=tiny.tokenizer(), callbacks=callbacks)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_the_stream_is_the_loader(tmp_path):
    t = trainer(tmp_path)
    assert t.get_train_dataloader() is t.stream
    t.train()
    assert t.stream.counts["batches"] == 6 and t.state.global_step == 6


def test_gradients_do_not_depend_on_how_the_batch_was_cut(tmp_path):
    gradients, losses = [], []

    class Keep:
        pass

    for batch_size, steps in ((32, 1), (8, 4), (4, 8)):
        model = tiny.mlm()
        t = trainer(
            tmp_path / f"{batch_size}", model, tiny.stream(batch_size, seed=5), per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps, max_steps=1, learning_rate=0.0, max_grad_norm=0.0, save_strategy="no",
        )  # fmt: skip
        kept = {}
        real = t.create_optimizer

        def create_optimizer(*a, real=real, kept=kept, model=model, **k):
            optimizer = real(*a, **k)
            optimizer.register_step_pre_hook(
                lambda *_: kept.update({n: p.grad.clone() for n, p in model.named_parameters()})
            )
            return optimizer

        t.create_optimizer = create_optimizer
        t.train()
        gradients.append(kept)
        losses.append(t.state.log_history[0]["loss"])
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-5, atol=1e-6)


def test_batches_of_equal_cost_count_by_their_items(tmp_path):
    def stream():
        return tiny.stream(8, packing=False, seed=5, batch_cost=200)

    batches = [batch for batch, _ in zip(stream(), range(3), strict=False)]
    items = [batch["masked_positions"].numel() for batch in batches]
    assert len(set(items)) > 1
    model = tiny.mlm()
    losses = [model(**batch, num_items_in_batch=torch.tensor(float(sum(items)))).loss.item() for batch in batches]
    t = trainer(tmp_path, model, stream(), gradient_accumulation_steps=3, max_steps=1, learning_rate=0.0)
    t.train()
    assert t.state.log_history[0]["loss"] == pytest.approx(sum(losses), rel=1e-5)
    assert t.settings["batches_per_step"] == 3 and t.stream.turn == 3


def test_every_micro_step_has_a_seed_of_its_own(tmp_path):
    drawn = []
    model = tiny.mlm(dropout=0.1)
    model.register_forward_pre_hook(lambda *_: drawn.append(torch.initial_seed()))
    trainer(tmp_path, model, gradient_accumulation_steps=2, max_steps=3, save_strategy="no").train()
    assert len(drawn) == len(set(drawn)) == 6


class Kill(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, accumulation):
    whole = trainer(tmp_path / "whole", gradient_accumulation_steps=accumulation)
    whole.train()

    first = trainer(tmp_path / "cut", gradient_accumulation_steps=accumulation, callbacks=[Kill(3)])
    with pytest.raises(KeyboardInterrupt):
        first.train()
    again = trainer(tmp_path / "cut", tiny.mlm(dropout=0.1, seed=99), gradient_accumulation_steps=accumulation)
    again.train()
    assert again.resumed_from.name == "checkpoint-2"
    assert_same(weights(again.model), weights(whole.model))
    assert again.stream.state_dict() == whole.stream.state_dict()


def test_the_same_command_after_the_end_changes_nothing(tmp_path):
    first = trainer(tmp_path)
    first.train()
    again = trainer(tmp_path, tiny.mlm(seed=99, dropout=0.1))
    again.train()
    assert_same(weights(again.model), weights(first.model))
    assert again.state.global_step == 6


def test_checkpoints_are_whole_sealed_and_rotated(tmp_path):
    trainer(tmp_path, save_total_limit=2).train()
    assert [c.name for c in list_checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-4"]
    manifest = json.loads((tmp_path / "checkpoint-6" / "manifest.json").read_text())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "stream_0.json", "trainer_state.json"} <= set(
        manifest["files"]
    )
    assert manifest["settings"]["seed"] == 5 and manifest["settings"]["mask_ratio"] == 0.15
    assert not (tmp_path / ".staging").exists() or not any((tmp_path / ".staging").iterdir())


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    whole = trainer(tmp_path / "whole")
    whole.train()
    t = trainer(tmp_path / "cut")
    t.train()
    newest = tmp_path / "cut" / "checkpoint-6" / "optimizer.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    again = trainer(tmp_path / "cut", tiny.mlm(dropout=0.1, seed=9))
    again.train()
    assert again.resumed_from.name == "checkpoint-4"
    assert "optimizer.pt was changed" in caplog.text
    assert_same(weights(again.model), weights(whole.model))


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"learning_rate": 5e-3}, "learning_rate was 0.01, is 0.005"),
        ({"per_device_train_batch_size": 4}, r"the rows of a step \(.*\) was 8, is 4"),
        ({"seed": 6}, "seed was 5, is 6"),
        ({"max_steps": 4}, "max_steps was 6, is 4"),
    ],
)
def test_another_run_is_not_continued(tmp_path, changed, words):
    trainer(tmp_path).train()
    with pytest.raises(UserError, match=words):
        trainer(tmp_path, **changed).train()
    with pytest.raises(UserError, match="mask_ratio was 0.15, is 0.3"):
        trainer(tmp_path, tiny.mlm(dropout=0.1, mask_ratio=0.3)).train()


class Rates(TrainerCallback):
    """The learning rate of each step."""

    def __init__(self):
        self.rates = {}

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates[state.global_step] = optimizer.param_groups[0]["lr"] / args.learning_rate


STABLE = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 2}}


def test_a_run_goes_on_for_longer_as_if_it_had_been_that_long(tmp_path, caplog):
    """Of a rate that is constant until its decay; in another folder, and from there with the same command."""
    caplog.set_level("INFO", logger="hfssl")
    whole = trainer(tmp_path / "whole", max_steps=12, warmup_steps=2, **STABLE)
    whole.train()
    # 0.3 of 6 steps, and not of 12
    trainer(tmp_path / "short", warmup_steps=0.3, save_total_limit=None, **STABLE).train()
    begun = tmp_path / "short" / "checkpoint-4"
    longer = {"max_steps": 12, "warmup_steps": 0.3, "resume": str(begun), **STABLE}
    first = trainer(tmp_path / "long", callbacks=[Kill(9)], **longer)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    assert first.resumed_from == begun and "(warmup_stable_decay) goes on as it was" in caplog.text
    again = trainer(tmp_path / "long", tiny.mlm(dropout=0.1, seed=99), **longer)
    again.train()
    assert again.resumed_from == tmp_path / "long" / "checkpoint-8"
    assert_same(weights(again.model), weights(whole.model))
    assert again.stream.state_dict() == whole.stream.state_dict()
    assert {c.name for c in list_checkpoints(tmp_path / "short")} == {f"checkpoint-{step}" for step in (2, 4, 6)}


@pytest.mark.parametrize(
    "kind, rates",
    # with the warm-up of the first run, 1 step
    [("linear", {0: 0, 1: 1, 5: 0.2, 6: 6 / 11, 11: 1 / 11}), ("constant_with_warmup", {0: 0, 1: 1, 6: 1, 11: 1})],
)
def test_the_same_command_with_more_steps_stretches_the_schedule(tmp_path, caplog, kind, rates):
    caplog.set_level("INFO", logger="hfssl")
    seen = Rates()
    for steps in (6, 12):
        run = trainer(tmp_path, max_steps=steps, warmup_steps=1 / 6, lr_scheduler_type=kind, callbacks=[seen])
        run.args.eval_steps, run.args.save_steps = 0.5, 1 / 3
        run.train()
    assert {step: seen.rates[step] for step in rates} == pytest.approx(rates)
    assert run.state.global_step == 12 and [c.name for c in list_checkpoints(tmp_path)] == [
        "checkpoint-12",
        "checkpoint-8",
    ]
    said = "is stretched: at step 6 it was 0, and is 0.00545455 now" if kind == "linear" else "goes on as it was"
    assert f"({kind}) {said}" in caplog.text


def test_going_back_to_go_on_for_longer_replaces_what_came_after(tmp_path):
    trainer(tmp_path, save_total_limit=None).train()
    run = trainer(tmp_path, max_steps=8, save_total_limit=None, resume=str(tmp_path / "checkpoint-2"))
    run.train()
    assert [c.name for c in list_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (8, 6, 4, 2)]
    assert (tmp_path / "replaced-checkpoint-6").is_dir()
    assert json.loads((tmp_path / "checkpoint-4" / "manifest.json").read_text())["settings"]["max_steps"] == 8


def test_a_named_checkpoint_of_another_run_is_refused_with_a_remedy_that_helps(tmp_path):
    trainer(tmp_path / "a").train()
    named = {"resume": str(tmp_path / "a" / "checkpoint-4")}
    with pytest.raises(UserError, match="seed was 5, is 6. Pass another `--output_dir` and no `--resume` for a new"):
        trainer(tmp_path / "b", seed=6, **named).train()
    trainer(tmp_path / "c", seed=6, max_steps=1).train()


def test_a_budget_of_time_may_grow(tmp_path, monkeypatch):
    seconds = iter(range(1000))
    for minutes, steps in ((0.1, 6), (0.2, 12)):
        run = trainer(tmp_path, budget_minutes=minutes, save_strategy="steps", save_steps=0.5, warmup_steps=0.0)
        run.clock.now = lambda: next(seconds)
        seen = Rates()
        run.add_callback(seen)
        run.train()
        assert run.state.global_step >= steps - 2 and run.clock.progress == 1.0
        if minutes == 0.2:
            assert max(seen.rates.values()) == seen.rates[min(seen.rates)] == pytest.approx(0.5, abs=0.1)
    with pytest.raises(UserError, match="budget_minutes was 0.2, is 0.15"):
        trainer(tmp_path, budget_minutes=0.15, warmup_steps=0.0).train()


def test_the_batch_may_be_cut_in_another_way(tmp_path):
    model = tiny.mlm()
    trainer(tmp_path / "whole", model).train()
    trainer(tmp_path / "cut", tiny.mlm(), max_steps=6).train()
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    again = trainer(tmp_path / "cut", tiny.mlm(), per_device_train_batch_size=2, gradient_accumulation_steps=4)
    again.train()
    assert again.resumed_from.name == "checkpoint-4" and again.stream.turn == 48
    for name, tensor in weights(model).items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_accumulation_follows_the_number_of_processes(tmp_path, monkeypatch, caplog):
    """The rows of a step stay; where no number of accumulation steps does that, the message names what works."""
    caplog.set_level("INFO")
    monkeypatch.setattr(SSLTrainingArguments, "world_size", 4)
    then = {
        "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "learning_rate": None,
        "base_learning_rate": 0.1,
    }  # fmt: skip
    args = arguments(tmp_path, **then)
    (tmp_path / "checkpoint-1").mkdir()
    checkpoints.seal(tmp_path / "checkpoint-1", {"global_batch_size": args.global_batch_size}, 4)
    for processes, steps in ((1, 8), (2, 4), (8, 1)):
        monkeypatch.setattr(SSLTrainingArguments, "world_size", processes)
        now = arguments(tmp_path, **then)
        now.keep_global_batch(tmp_path / "checkpoint-1")
        assert (now.gradient_accumulation_steps, now.global_batch_size) == (steps, 24)
        assert now.learning_rate == args.learning_rate and f"with {processes} process(es) instead of 4" in caplog.text
    monkeypatch.setattr(SSLTrainingArguments, "world_size", 6)
    with pytest.raises(UserError, match="24 rows a step, which 6 processes .* cannot share.* Pass .*size` of 1, 2, 4"):
        arguments(tmp_path, **then).keep_global_batch(tmp_path / "checkpoint-1")
    monkeypatch.setattr(SSLTrainingArguments, "world_size", 5)
    with pytest.raises(UserError, match="Launch one of 1, 2, 3, 4, 6, 8, 12, 24 processes"):
        arguments(tmp_path, **then).keep_global_batch(tmp_path / "checkpoint-1")
    # with the same number nothing is adapted: that is another run
    monkeypatch.setattr(SSLTrainingArguments, "world_size", 4)
    other = arguments(tmp_path, **then | {"gradient_accumulation_steps": 1})
    other.keep_global_batch(tmp_path / "checkpoint-1")
    assert other.global_batch_size == 12


def test_lanes_are_those_of_the_beginning(tmp_path):
    trainer(tmp_path, stream=tiny.stream(8, seed=5, lanes=4)).train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    again = trainer(tmp_path, stream=tiny.stream(8, seed=5))
    again.train()
    assert again.stream.lanes == 4
    shutil.rmtree(tmp_path / "checkpoint-6")
    with pytest.raises(UserError, match="began with 4 lanes, `--lanes` says 2"):
        trainer(tmp_path, stream=tiny.stream(8, seed=5, lanes=2)).train()


def test_a_checkpoint_of_an_older_version_is_refused(tmp_path):
    trainer(tmp_path, max_steps=2).train()
    manifest = tmp_path / "checkpoint-2" / "manifest.json"
    old = json.loads(manifest.read_text())
    assert old.pop("version") == checkpoints.VERSION and old["world_size"] == 1
    manifest.write_text(json.dumps(old))
    words = r"checkpoint-2 was written by another version of hfssl \(state 1, this one continues 2\)"
    with pytest.raises(UserError, match=words):
        trainer(tmp_path, max_steps=2).train()
    with pytest.raises(UserError, match=words):
        trainer(tmp_path, max_steps=2, resume=str(tmp_path / "checkpoint-2")).train()


def test_workers_and_logging_may_change(tmp_path):
    trainer(tmp_path).train()
    trainer(tmp_path, stream=tiny.stream(8, seed=5, num_workers=1), logging_steps=3, save_steps=3).train()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_and_the_run_continues(tmp_path, number):
    whole = trainer(tmp_path / "whole", max_steps=40, save_steps=100)
    whole.train()

    class Send(MethodCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 10:
                os.kill(os.getpid(), number)

    t = trainer(tmp_path / "cut", max_steps=40, save_steps=100, callbacks=[Send()])
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        t.train()
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert [c.name for c in list_checkpoints(tmp_path / "cut")] == ["checkpoint-11"]
    again = trainer(tmp_path / "cut", tiny.mlm(dropout=0.1, seed=3), max_steps=40, save_steps=100)
    again.train()
    assert_same(weights(again.model), weights(whole.model))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    model = tiny.mlm()

    class Poison(MethodCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                with torch.no_grad():
                    next(model.parameters()).fill_(float("nan"))

    with pytest.raises(UserError, match="not finite at step 4, at a learning rate of .*checkpoint-2"):
        trainer(tmp_path, model, callbacks=[Poison()]).train()
    # nor is it saved where it is not logged
    model = tiny.mlm()
    with pytest.raises(UserError, match="not finite at step 4"):
        trainer(tmp_path / "b", model, callbacks=[Poison()], logging_steps=100).train()
    assert [c.name for c in list_checkpoints(tmp_path / "b")] == ["checkpoint-2"]
    # nor where the gradient of the very step that is saved is none, of which the loss knows nothing yet
    model = tiny.mlm()

    class PoisonGradient(MethodCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == 3:
                next(model.parameters()).grad[0] = float("nan")

    with pytest.raises(
        UserError, match="The weights are not finite at step 4, .*Last good checkpoint: .*checkpoint-2"
    ):
        trainer(tmp_path / "c", model, callbacks=[PoisonGradient()]).train()
    assert [c.name for c in list_checkpoints(tmp_path / "c")] == ["checkpoint-2"]
    # nor where no checkpoint is written at all, only the result
    model = tiny.mlm()
    with pytest.raises(UserError, match="The weights are not finite at step 4, .*Last good checkpoint: none yet"):
        trainer(tmp_path / "d", model, callbacks=[PoisonGradient()], save_strategy="no", max_steps=4).train()
    # what it says helps
    trainer(tmp_path / "another", max_steps=1, learning_rate=1e-3, warmup_steps=0.5).train()


def test_evaluators_run_before_and_during_training(tmp_path):
    evaluator = MaskedTokenEvaluator(
        tiny.texts(60, seed=1), tiny.tokenizer(), max_length=32, training_texts=tiny.texts()
    )
    t = trainer(tmp_path, evaluators=[evaluator], eval_strategy="steps", eval_steps=3)
    t.train()
    measured = [(e["step"], e["eval_loss"]) for e in t.state.log_history if "eval_loss" in e]
    assert [step for step, _ in measured] == [0, 3, 6]
    assert measured[-1][1] < measured[0][1]
    assert t.evaluate()["eval_loss"] == pytest.approx(measured[-1][1])
    # beside chance, from the first on
    chance = [entry["eval_chance_loss"] for entry in t.state.log_history if "eval_loss" in entry]
    assert set(chance) == {evaluator.baselines["loss"]} and t.state.log_history[0]["chance_loss"] == chance[0]
    # the measurement itself changes nothing
    plain = trainer(tmp_path / "plain")
    plain.train()
    assert_same(weights(plain.model), weights(t.model))


def test_the_method_hears_of_every_step(tmp_path):
    model = tiny.mlm()
    heard = []
    model.after_optimizer_step = heard.append
    trainer(tmp_path, model, save_strategy="no", gradient_accumulation_steps=2).train()
    assert heard == pytest.approx([(i + 1) / 6 for i in range(6)])


def test_the_result_folder(tmp_path):
    t = trainer(tmp_path)
    t.train()
    t.finish()
    there = {p.name for p in tmp_path.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "assets",
        "pretraining",
        "checkpoint-6",
    } <= there
    assert not any(p.name == "training_args.bin" for p in tmp_path.glob("*"))
    assert "![Loss during the run](assets/loss.png)" in (tmp_path / "README.md").read_text()


def test_a_result_that_is_half_moved_is_none(tmp_path, monkeypatch):
    """Who looks for the encoder of a run looks for its config.json, also where there was an earlier one."""
    t, move = trainer(tmp_path), Path.replace
    (tmp_path / "config.json").touch()

    def stopped_before_the_last(path, target):
        if path.parent == tmp_path / ".staging" / "result" and len(list(path.parent.iterdir())) == 1:
            raise OSError("stopped")
        return move(path, target)

    monkeypatch.setattr(Path, "replace", stopped_before_the_last)
    with pytest.raises(OSError, match="stopped"):
        t.finish()
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / "config.json").exists()


def test_figures_are_told_of_the_weights_that_they_are_of(tmp_path):
    def figure(task):
        return Result.from_scores(
            {0: 0.5}, {"majority": 0.25}, protocol="knn", version=1, model=str(tmp_path), task=task, split="test",
            metric="accuracy", num_train=9, num_eval=9, hyperparameters={"k": 20},
        )  # fmt: skip

    t = trainer(tmp_path)
    t.finish(results=[figure("of the run")])
    weights = weights_digest(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["encoder"] == weights
    add_to_card(tmp_path, [figure("of a probe")], weights)
    t.finish(results=[figure("of the run")])  # as the same command does, once more
    assert [each.task for each in read_record(tmp_path).results] == ["of a probe", "of the run"]
    assert "of a probe" in (tmp_path / "README.md").read_text()
    t.train()
    t.finish(results=[figure("of the run")])
    assert [each.task for each in read_record(tmp_path).results] == ["of the run"]
    assert "of a probe" not in (tmp_path / "README.md").read_text()


def test_a_run_waits_for_nobody_and_no_disk_is_named(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"has 0.00 GB left, a checkpoint of this model"):
        trainer(tmp_path).train()


def test_a_full_disk_during_a_checkpoint_leaves_nothing_half_written(tmp_path, monkeypatch):
    import shutil

    t = trainer(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    real = torch.save

    def full(*args, **kwargs):
        if t.state.global_step == 4:
            monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0))
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left for checkpoint-4.*Last good checkpoint: .*checkpoint-2"):
        t.train()
    assert [c.name for c in list_checkpoints(tmp_path)] == ["checkpoint-2"]


def test_a_checkpoint_with_other_weights_is_refused(tmp_path):
    t = trainer(tmp_path, max_steps=1)
    t.train()
    [checkpoint] = list_checkpoints(tmp_path)
    t._load_from_checkpoint(str(checkpoint))  # tied weights are in it once
    weights = load_file(checkpoint / "model.safetensors")
    save_file({f"other.{name}": tensor for name, tensor in weights.items()}, checkpoint / "model.safetensors")
    with pytest.raises(UserError, match=f"are missing and {len(weights)} unknown, such as encoder.bert"):
        t._load_from_checkpoint(str(checkpoint))


def test_overrides_still_exist_in_transformers():
    from transformers import Trainer

    for name in (
        "get_train_dataloader", "_get_num_items_in_batch", "training_step", "create_scheduler", "evaluate",
        "_save_checkpoint", "_get_output_dir", "init_hf_repo", "push_to_hub", "_push_from_checkpoint",
        "_finish_current_push", "_load_from_checkpoint", "_issue_warnings_after_load", "get_optimizer_cls_and_kwargs",
        "get_decay_parameter_names",
    ):  # fmt: skip
        assert callable(getattr(Trainer, name)), name


def test_threads_and_time_are_not_touched_by_signals_from_other_threads(tmp_path):
    # in a thread there are no signal handlers to set: training still works
    done = []

    def run():
        trainer(tmp_path, max_steps=2).train()
        done.append(time.time())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done


def test_where_one_term_is_counted_all_are(tmp_path):
    """A mean over samples beside a sum over items would be scaled as the sum is."""
    model = tiny.mlm(next_sentence_objective=True)
    model.loss_items = lambda batch: {"mlm": torch.tensor(3)}
    args = SSLTrainingArguments(
        str(tmp_path), max_steps=1, report_to="none", precision="fp32", use_cpu=True, eval_strategy="no"
    )
    trainer = SSLTrainer(model, args, tiny.stream())
    with pytest.raises(ValueError, match="counts mlm, but not nsp: where one term is counted all are"):
        trainer._get_num_items_in_batch([{}], torch.device("cpu"))
