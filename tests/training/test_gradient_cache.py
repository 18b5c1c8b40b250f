"""The gradient cache: the gradient of a batch that is embedded part by part is that of the batch."""

import weakref

import contract
import device_checks
import pytest
import torch
from contract import load
from numbered import numbered_stream

from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.data.blocks import Unmade
from hfssl.errors import UserError
from hfssl.training.gradient_cache import GradientCache


CHECKS = contract.TESTS / "distributed" / "checks.py"
METHODS = ["ClipForPreTraining", "SiglipForPreTraining", "SimclrForPreTraining", "MocoForPreTraining"]


def gradients_of(checks, method, folder, parts, **fields):
    """Loss and gradients of a step over the same 12 samples in so many parts, and the model after it."""
    return checks.one_step(0, 1, folder, method, accumulation=parts, contrastive=True, **fields)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path, method):
    checks = load(CHECKS)
    whole = gradients_of(checks, method, tmp_path / "whole", 1)
    parts = gradients_of(checks, method, tmp_path / "parts", 3)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-9)
    assert parts["gradients"].keys() == whole["gradients"].keys()
    assert max(gradient.abs().max() for gradient in whole["gradients"].values()) > 1e-3
    for name in ("gradients", "state"):
        for key, tensor in whole[name].items():
            torch.testing.assert_close(parts[name][key], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.distributed
@pytest.mark.parametrize("method", ["ClipForPreTraining", "SiglipForPreTraining", "MocoForPreTraining"])
def test_two_processes_with_parts_are_one_with_all(pair, tmp_path, method):
    checks = load(CHECKS)
    whole = gradients_of(checks, method, tmp_path / "whole", 1)
    both = pair.ask(CHECKS, "one_step", folder=tmp_path / "together", method=method, accumulation=2, contrastive=True)
    assert both[0]["loss"] == both[1]["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    for name in ("gradients", "state"):
        for key, tensor in whole[name].items():
            torch.testing.assert_close(both[0][name][key], tensor, rtol=1e-9, atol=1e-11)


def test_what_is_drawn_at_random_is_drawn_again(tmp_path):
    device_checks.a_batch_in_parts_has_the_gradient_of_the_whole("cpu", tmp_path)


def run(folder, steps, **fields):
    args = SSLTrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=4, contrastive_batch_size=8,
        learning_rate=1e-2, precision="fp32", report_to="none", eval_strategy="no", save_steps=2, logging_steps=1,
        disable_tqdm=True, seed=5, use_cpu=True, **fields,
    )  # fmt: skip
    trainer = SSLTrainer(
        contract.build("ClipForPreTraining", patch_dropout=0.5), args, numbered_stream("ClipForPreTraining")
    )
    trainer.args.max_steps = steps
    trainer.train()
    return trainer


def test_a_run_that_goes_on_ends_as_one_that_nobody_stopped(tmp_path):
    whole = run(tmp_path / "whole", 4)
    again = run(tmp_path / "again", 4, resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert again.resumed_from.name == "checkpoint-2"
    assert whole.settings["contrastive_batch_size"] == 8
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


def test_what_waits_is_made_when_it_is_embedded_and_let_go(tmp_path, monkeypatch):
    """Of the batches of a step one is made at a time, twice; nothing of them is left when the next are read."""
    made, left = [], []
    make, embed_all = Unmade.made, GradientCache._embed_all

    def watch(batch):
        alive = [reference for reference in made if reference() is not None]
        found = make(batch)
        made.append(weakref.ref(found["pixel_values"]))
        assert len(alive) <= 1
        return found

    def watch_step(cache, trainer):
        left.append((cache.output, cache.gradients, cache.of_parameters))
        embed_all(cache, trainer)

    monkeypatch.setattr(Unmade, "made", watch)
    monkeypatch.setattr(GradientCache, "_embed_all", watch_step)
    trainer = run(tmp_path, 4)
    # four steps of two batches, each for the first and for the second pass
    assert len(made) == 4 * 2 * 2 and left == [(None, {}, [])] * 4
    assert trainer.cache.batches == [None, None]


def arguments(folder, max_steps=1, **fields):
    return SSLTrainingArguments(
        str(folder), max_steps=max_steps, report_to="none", use_cpu=True, precision="fp32", save_strategy="no",
        eval_strategy="no", disable_tqdm=True, **fields,
    )  # fmt: skip


def test_the_batch_is_cut_into_accumulation_steps(tmp_path):
    args = arguments(tmp_path, per_device_train_batch_size=4, contrastive_batch_size=12, base_learning_rate=1e-3)
    assert args.gradient_accumulation_steps == 3 and args.global_batch_size == 12
    assert args.learning_rate == pytest.approx(1e-3 * 12 / 256)
    assert args.compared_at_once == 12
    assert arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3).compared_at_once == 4


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"contrastive_batch_size": 30}, "a multiple of the 8 samples .* got 30. Pass 32"),
        ({"contrastive_batch_size": 0}, "got 0. Pass 8"),
        ({"contrastive_batch_size": 32, "gradient_accumulation_steps": 2}, "has 4 parts, .* says 2. Leave that out"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_explained(tmp_path, fields, words):
    with pytest.raises(UserError, match=words):
        arguments(tmp_path, per_device_train_batch_size=8, **fields)


@pytest.mark.parametrize("steps, base_rate, level", [(12, None, "WARNING"), (300, 1e-3, "INFO"), (None, None, None)])
def test_how_many_steps_are_left_of_large_batches_is_said(tmp_path, caplog, steps, base_rate, level):
    length = {"budget_minutes": 1.0} if steps is None else {"max_steps": steps}
    args = arguments(
        tmp_path, per_device_train_batch_size=64, contrastive_batch_size=1024, base_learning_rate=base_rate, **length
    )
    caplog.clear()
    with caplog.at_level("INFO"):
        GradientCache(contract.build("ClipForPreTraining"), args)
    if level is None:  # of a run by the clock nobody knows
        assert not caplog.records
        return
    [record] = caplog.records
    assert record.levelname == level and f"{steps} steps, each of 1,024" in caplog.text
    assert f"in batches of 64 the same samples would be {16 * steps:,} steps" in caplog.text
    assert ("is not raised" in caplog.text) is (base_rate is None)
    assert ("So few steps" in caplog.text) is (level == "WARNING")


def test_methods_that_compare_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="for methods that compare the samples of a batch.*MaeForPreTraining does not"):
        SSLTrainer(
            contract.build("MaeForPreTraining"),
            arguments(tmp_path, per_device_train_batch_size=4, contrastive_batch_size=8),
            numbered_stream("MaeForPreTraining"),
        )


def test_random_draws_of_a_compiled_model_are_refused(tmp_path):
    sizes = {
        "per_device_train_batch_size": 4,
        "contrastive_batch_size": 8,
        "torch_compile": True,
        "learning_rate": 1e-3,
    }
    model = contract.build("ClipForPreTraining", patch_dropout=0.5)
    trainer = SSLTrainer(model, arguments(tmp_path, **sizes), numbered_stream("ClipForPreTraining"))
    with pytest.raises(UserError, match="`--torch_compile` makes of the model would draw another one"):
        trainer.train()


@pytest.mark.parametrize("is_frozen", [False, True])
def test_batch_norm_is_refused_or_keeps_its_statistics(tmp_path, is_frozen):
    model = contract.build("SimclrForPreTraining")
    args = arguments(
        tmp_path,
        per_device_train_batch_size=4,
        contrastive_batch_size=8,
        freeze_batch_norm=is_frozen,
        warmup_steps=0,
        learning_rate=0.1,
    )
    trainer = SSLTrainer(model, args, numbered_stream("SimclrForPreTraining"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if not is_frozen:
        with pytest.raises(UserError, match=r"batch norm \(encoder.*`--freeze_batch_norm true` keeps"):
            trainer.train()
        return
    trainer.train()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and not [name for name in moved if "running" in name or "tracked" in name]
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved").train()
    assert not any(part.training for part in again.modules() if isinstance(part, torch.nn.BatchNorm2d))


def test_what_is_learned_beside_the_encoders_learns_too(tmp_path):
    """NNCLR's predictor stands between the embeddings and the loss."""
    checks = load(CHECKS)
    settings = {"nearest_neighbour_queue": 8, "predictor_hidden_dim": 8}
    whole = gradients_of(checks, "SimclrForPreTraining", tmp_path / "whole", 1, settings=settings)
    parts = gradients_of(checks, "SimclrForPreTraining", tmp_path / "parts", 2, settings=settings)
    assert any(name.startswith("predictor.") for name in whole["gradients"])
    for key, tensor in whole["gradients"].items():
        torch.testing.assert_close(parts["gradients"][key], tensor, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(parts["state"]["queue"], whole["state"]["queue"])
