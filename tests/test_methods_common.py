"""What holds for every registered method."""

import inspect

import pytest
import tiny
import tiny_vision
import torch
from transformers import AutoConfig, AutoModelForPreTraining, GPT2Config

import hfssl
from hfssl import methods
from hfssl.modeling.base import SSLPreTrainedModel


def token_batch(rows=6, length=16):
    input_ids = torch.randint(5, 100, (rows, length))
    labels = torch.where(torch.rand(rows, length) < 0.4, input_ids, -100)
    return {"input_ids": input_ids, "labels": labels, "attention_mask": torch.ones_like(input_ids)}


def causal_batch(rows=6, length=16):
    input_ids = torch.randint(5, 100, (rows, length))
    return {"input_ids": input_ids, "labels": input_ids, "attention_mask": torch.ones_like(input_ids)}


def gpt2():
    return GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=100, n_positions=64, bos_token_id=0, eos_token_id=0)


MAE_DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}

HEAD = {"projector_hidden_dim": 16, "projector_output_dim": 8}
# prototypes that learn from the first step, and nothing left to chance
DINO = {**HEAD, "num_prototypes": 12, "freeze_prototypes": 0.0, "drop_path_rate": 0.0}

# method -> (small encoder, other settings, a batch)
SMALL = {
    "ByolForPreTraining": (tiny_vision.resnet, HEAD, tiny_vision.two_views),
    "ClmForPreTraining": (gpt2, {"dropout": 0.0}, causal_batch),
    "DinoForPreTraining": (tiny_vision.vit, DINO, tiny_vision.crops),
    "MaeForPreTraining": (tiny_vision.vit, MAE_DECODER, tiny_vision.images_with_noise),
    "MlmForPreTraining": (tiny.bert_config, {"dropout": 0.0}, token_batch),
    "MocoForPreTraining": (tiny_vision.vit, HEAD, tiny_vision.two_views),
    "SimclrForPreTraining": (tiny_vision.resnet, {"projector_output_dim": 16}, tiny_vision.two_views),
}
METHODS = [name for name in methods.__all__ if name.endswith("ForPreTraining")]

# Which cuts of a batch have the gradient of the whole. Processes: see `tests/distributed`.
#
# | method | accumulation steps | processes | why not |
# |---|---|---|---|
# | clm, mlm | yes | yes | |
# | mae | yes | yes | |
# | dino | yes | yes | The centre moves once an optimizer step. No, where the encoder has batch norm. |
# | byol | no | yes | Batch norm, in the heads too, sees an accumulation step alone. |
# | moco | no | yes | The same, and the negatives are those of an accumulation step. |
# | simclr | no | yes | An image is contrasted with those of its accumulation step, and batch norm sees no others either: |
# |        |    |     | steps of a batch are smaller batches. Processes gather both. |
CUT_BY_ACCUMULATION = {
    "ByolForPreTraining": False, "ClmForPreTraining": True, "DinoForPreTraining": True, "MaeForPreTraining": True,
    "MlmForPreTraining": True, "MocoForPreTraining": False, "SimclrForPreTraining": False,
}  # fmt: skip


def test_every_method_is_here():
    assert set(SMALL) == set(METHODS) == set(CUT_BY_ACCUMULATION)


@pytest.fixture(params=METHODS)
def method(request):
    model_class = getattr(hfssl, request.param)
    encoder, settings, batch = SMALL[request.param]
    config = model_class.config_class(encoder_config=encoder(), **settings)
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


def test_the_gradient_depends_on_the_cut_of_the_batch_only_where_the_table_says_so(method):
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
        if not CUT_BY_ACCUMULATION[type(model).__name__]:
            assert distance > 1e-3  # if it were equal, the table would be wrong
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
