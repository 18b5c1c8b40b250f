"""What holds for every registered method, by the contract in its test file (`tests/contract.py`)."""

import inspect
import re

import pytest
import torch
from contract import METHODS, contract, model_and_batch, split, table_of_cuts
from transformers import AutoConfig, AutoModelForPreTraining

from hfssl.modeling.base import SSLPreTrainedModel, load_plain_encoder


@pytest.fixture(params=METHODS)
def method(request):
    """A small model of each method and a batch for it."""
    return model_and_batch(request.param)


def test_the_names(method):
    model, _ = method
    name = type(model).__name__.removesuffix("ForPreTraining")
    assert type(model).config_class.__name__ == f"{name}PreTrainingConfig"
    assert model.config.model_type == "hfssl_" + re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()
    assert isinstance(model, SSLPreTrainedModel) and {"title", "citation"} <= set(model.paper)
    assert AutoConfig.for_model(model.config.model_type).__class__ is type(model).config_class
    parameters = inspect.signature(model.forward).parameters
    assert parameters["return_loss"].default is True  # or Trainer reports no eval_loss
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())  # or Trainer changes the scale of the loss
    # what `help(…)` shows: the idea in a line, the paper, the code
    idea, _, rest = type(model).__doc__.partition("\n\n")
    assert "\n" not in idea and "https://" in rest


def test_the_config_goes_round(method):
    config = method[0].config
    again = type(config).from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()


def test_every_trained_parameter_gets_a_gradient(method):
    model, batch = method
    loss = model.train()(**batch).loss
    assert loss.ndim == 0 and loss.isfinite()
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_method_that_is_made_to_collapse_still_trains(method, monkeypatch):
    """What the calibration of the verdict records; without a run of it, nobody sees that it no longer fits."""
    model, batch = method
    collapse = contract(type(model).__name__).collapse
    if collapse is None:
        pytest.skip("nothing brings its collapse about")
    collapse(monkeypatch.setattr)
    loss = model.train()(**batch).loss
    assert loss.ndim == 0 and loss.isfinite()


def test_the_same_seed_gives_the_same_loss_and_order_does_not_matter(method):
    model, batch = method
    model.eval()
    loss = model(**batch).loss
    torch.testing.assert_close(model(**batch).loss, loss, rtol=0, atol=0)
    torch.testing.assert_close(model(**{name: tensor.flip(0) for name, tensor in batch.items()}).loss, loss)


def test_the_gradient_depends_on_the_cut_of_the_batch_only_where_the_contract_says_so(method):
    model, batch = method
    model.train()
    items = model.loss_items(batch)
    gradients = []
    for parts in (1, 2, 3):
        model.zero_grad()
        for part in split(batch, parts):
            loss = model(**part, num_items_in_batch=items).loss if items is not None else model(**part).loss / parts
            loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        distance = max((other[name] - gradient).abs().max().item() for name, gradient in gradients[0].items())
        if not contract(type(model).__name__).accumulation:
            assert distance > 1e-3  # if it were equal, the contract would be wrong
            continue
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)


def test_save_and_load(method, tmp_path):
    model, batch = method
    model.eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path).eval()
    assert type(again) is type(model)
    torch.testing.assert_close(again(**batch).loss, model(**batch).loss, rtol=0, atol=0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in again.train().named_parameters() if p.requires_grad} == trained


def test_the_exported_encoder_has_the_same_weights(method, tmp_path):
    model, _ = method
    model.export_encoder(tmp_path)
    if model.export_kind == "plain":  # what loads it without hfssl is tested with the method
        exported = [(load_plain_encoder(tmp_path), model.encoder)]
        assert not (tmp_path / "config.json").exists() and "def load_encoder(" in model.loader
    else:
        folders = {name: tmp_path / name if len(model.encoders) > 1 else tmp_path for name in model.encoders}
        exported = [(type(each).from_pretrained(folders[name]), each) for name, each in model.encoders.items()]
        assert all(type(stock).__module__.startswith("transformers.") for stock, _ in exported)
    for stock, encoder in exported:
        for name, tensor in encoder.state_dict().items():
            torch.testing.assert_close(stock.state_dict()[name], tensor, rtol=0, atol=0)


def test_bf16_autocast_is_near_fp32(method):
    model, batch = method
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(**batch).loss
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, model(**batch).loss, rtol=2e-2, atol=2e-2)


def test_what_is_frozen_stays_frozen(method, tmp_path):
    model, batch = method
    before = {name: p.clone() for name, p in model.named_parameters()}
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path).train()
    optimizer = torch.optim.AdamW(again.parameters(), lr=0.1)
    again(**batch).loss.backward()
    optimizer.step()
    moved = {name for name, p in again.named_parameters() if not torch.equal(p, before[name])}
    assert not moved & set(model.frozen)
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_table_of_cuts_has_a_row_for_each_method():
    rows = table_of_cuts().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {n.removesuffix('ForPreTraining').lower()}" for n in METHODS]
    for method, row in zip(METHODS, rows, strict=True):
        equal = (contract(method).accumulation, contract(method).processes)
        assert row.split(" | ")[1:3] == ["yes" if yes else "no" for yes in equal]
