"""No method makes the CPU wait for a GPU within a training step, as far as that can be seen without one."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from batch_makers import MAKERS, made
from contract import METHODS, build, contract, variants_of
from host_waits import HostWaits, as_collated, collating_on_fake_gpu, no_waits, on_fake_gpu

from hfssl import SSLTrainingArguments
from hfssl.data.device import send
from hfssl.training.callbacks import BudgetClock, StopOnSignal


EACH = [(method, variant) for method in METHODS for variant in variants_of(method)]


def model_and_batch(method, variant=None):
    model = build(method, variant).train()
    batch = as_collated(model, contract(method).batch(6))
    with torch.no_grad():  # counters are read from their buffers once, in the first step after a model was loaded
        model(**batch)
    return model, batch


@pytest.mark.parametrize("method", METHODS)
def test_a_step_asks_for_no_numbers(method):
    model, batch = model_and_batch(method)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    items = model.loss_items(batch)
    counted = {} if items is None else {"num_items_in_batch": items}
    with no_waits():
        loss = model(**batch, **counted).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if hasattr(model, "after_optimizer_step"):
            model.after_optimizer_step(0.5)
    assert loss.isfinite()


@pytest.mark.parametrize("method, variant", EACH)
def test_nothing_is_left_on_the_cpu_and_nothing_is_copied(method, variant):
    model, batch = model_and_batch(method, variant)
    with on_fake_gpu(model, batch) as inputs, no_waits():
        loss = model(**inputs).loss
        if hasattr(model, "after_optimizer_step"):
            model.after_optimizer_step(0.5)
    assert loss.device.type == "cuda" and loss.dtype == torch.float32


@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_is_sent_while_the_cpu_goes_on(name):
    rows, columns, left = made(name)
    with collating_on_fake_gpu() as pinned:
        collate = rows.collator("cuda")
        collate(columns)  # what is made once is made here
        with no_waits(pinned=pinned):
            batch = collate(columns)
    assert {key for key, tensor in batch.items() if tensor.device.type != "cuda"} == left
    assert len(batch) > len(left)


def test_what_is_sent_from_other_memory_is_found():
    array = np.ones(3, np.float32)
    with collating_on_fake_gpu() as pinned, no_waits(pinned=pinned):
        assert send(array, torch.device("cuda")).device.type == "cuda"
        with pytest.raises(HostWaits, match="out of pinned memory"):
            torch.from_numpy(array).to("cuda", non_blocking=True)


def test_what_processes_agree_on_travels_between_cpus(tmp_path, monkeypatch):
    """One step late, and never on the device of the training."""
    sent = []

    class Work:
        def wait(self):
            pass

    def send(tensor, group=None, async_op=False, **kwargs):
        assert group == "gloo" and async_op and tensor.device.type == "cpu"
        sent.append(tensor)
        return Work()

    monkeypatch.setattr(dist, "new_group", lambda backend: backend)
    for name in ("all_reduce", "broadcast"):
        monkeypatch.setattr(dist, name, send)
    args = SSLTrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    monkeypatch.setattr(SSLTrainingArguments, "world_size", 2)
    monkeypatch.setattr(SSLTrainingArguments, "device", torch.device("cuda"))
    stop, clock = StopOnSignal(), BudgetClock(60.0)
    control = type("Control", (), {"should_training_stop": False, "should_log": False, "should_evaluate": False})()
    control.should_save = False
    for callback in (stop, clock):
        callback.on_train_begin(args, None, None)
    clock.on_step_begin(args, None, None)
    stop.received = "SIGTERM"
    for step in range(2):
        clock.on_pre_optimizer_step(args, None, control)
        stop.on_step_end(args, None, control)
        assert stop.stopped == (step == 1)
    for callback in (stop, clock):
        callback.on_train_end(args, None, control)
    assert len(sent) == 4


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.masked_fill_(x > 0, 0.0).unique(),
        lambda x: torch.allclose(x, x),
        lambda x: x.repeat_interleave((x > 0).long()),
        lambda x: x.index_put((x > 0,), x.new_zeros(())),
    ],
)
def test_what_asks_is_found(wait):
    with pytest.raises(HostWaits, match="asks a GPU"), no_waits():
        wait(torch.randn(5))


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: x.cpu(),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: torch.tensor([1.0, 2.0, 3.0], device=x.device),
    ],
)
def test_what_copies_is_found(copy):
    with on_fake_gpu(torch.nn.Module(), {"x": torch.ones(3)}) as batch, no_waits(), pytest.raises(HostWaits):
        copy(batch["x"])


def test_what_runs_by_itself_is_no_wait():
    with on_fake_gpu(torch.nn.Module(), {"x": torch.ones(3)}) as batch, no_waits():
        x = batch["x"]
        there = torch.ones(3).to(x.device, non_blocking=True) + x
        assert (there + torch.full((), 2.0, device=x.device)).where(x > 0, x)[x.long()].device == x.device
