"""What holds for every registered method."""

import inspect

import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForPreTraining, GPT2Config

import hfssl
from hfssl import methods
from hfssl.modeling_utils import SSLPreTrainedModel


def token_batch(rows=6, length=16):
    input_ids = torch.randint(5, 100, (rows, length))
    labels = torch.where(torch.rand(rows, length) < 0.4, input_ids, -100)
    return {"input_ids": input_ids, "labels": labels, "attention_mask": torch.ones_like(input_ids)}


def causal_batch(rows=6, length=16):
    input_ids = torch.randint(5, 100, (rows, length))
    return {"input_ids": input_ids, "labels": input_ids, "attention_mask": torch.ones_like(input_ids)}


def gpt2():
    return GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=100, n_positions=64, bos_token_id=0, eos_token_id=0)


# method -> (small encoder, a batch)
SMALL = {"MlmForPreTraining": (tiny.bert_config, token_batch), "ClmForPreTraining": (gpt2, causal_batch)}
METHODS = [name for name in methods.__all__ if name.endswith("ForPreTraining")]


def test_every_method_is_here():
    assert set(SMALL) == set(METHODS)


@pytest.fixture(params=METHODS)
def method(request):
    model_class = getattr(hfssl, request.param)
    encoder, batch = SMALL[request.param]
    config = model_class.config_class(encoder_config=encoder(), dropout=0.0)
    return model_class(config), batch()


def split(batch, parts):
    return [
        dict(zip(batch, values, strict=True)) for values in zip(*(t.chunk(parts) for t in batch.values()), strict=True)
    ]


def test_the_names(method):
    model, _ = method
    name = type(model).__name__.removesuffix("ForPreTraining")
    assert type(model).config_class.__name__ == f"{name}PreTrainingConfig"
    assert model.config.model_type == f"hfssl_{name.lower()}"
    assert isinstance(model, SSLPreTrainedModel) and {"title", "citation"} <= set(model.paper)
    assert AutoConfig.for_model(model.config.model_type).__class__ is type(model).config_class
    parameters = inspect.signature(model.forward).parameters
    assert parameters["return_loss"].default is True  # or Trainer reports no eval_loss
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())  # or Trainer changes the scale of the loss


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


def test_the_same_seed_gives_the_same_loss_and_order_does_not_matter(method):
    model, batch = method
    model.eval()
    loss = model(**batch).loss
    torch.testing.assert_close(model(**batch).loss, loss, rtol=0, atol=0)
    torch.testing.assert_close(model(**{name: tensor.flip(0) for name, tensor in batch.items()}).loss, loss)


def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(method):
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
    stock = type(model.encoder).from_pretrained(tmp_path)
    assert type(stock).__module__.startswith("transformers.")
    for name, tensor in model.encoder.state_dict().items():
        torch.testing.assert_close(stock.state_dict()[name], tensor, rtol=0, atol=0)


def test_bf16_autocast_is_near_fp32(method):
    model, batch = method
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(**batch).loss
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, model(**batch).loss, rtol=2e-2, atol=2e-2)
