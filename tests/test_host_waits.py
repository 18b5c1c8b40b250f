"""No method makes the CPU wait for a GPU within a training step, as far as that can be seen without one."""

import pytest
import torch
from contract import METHODS, build, contract, variants_of
from host_waits import HostWaits, as_collated, no_waits, on_fake_gpu


EACH = [(method, variant) for method in METHODS for variant in variants_of(method)]


def model_and_batch(method, variant=None):
    model = build(method, variant).train()
    getattr(model, "progress", None)  # read from its buffer once, after a model was loaded
    return model, as_collated(model, contract(method).batch(6))


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
