"""Masked language modelling: BERT's loss, at the masked positions only, and stock checkpoints."""

import json

import pytest
import tiny
import torch
from contract import Contract, checkpoint_activations
from recipe_process import printed_without_hfssl
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    BertForMaskedLM,
    ModernBertConfig,
    RobertaConfig,
    Trainer,
    TrainingArguments,
)

from hfssl import MlmForPreTraining, MlmPreTrainingConfig


def batch(rows=4, length=16, vocabulary=100):
    input_ids = torch.randint(5, vocabulary, (rows, length))
    labels = torch.where(torch.rand(rows, length) < 0.3, torch.randint(5, vocabulary, (rows, length)), -100)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, 10:] = 0
    labels[0, 10:] = -100
    return {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}


def whole_batch(rows, length=16):
    """Without padding; some tokens of each row are targets."""
    input_ids = torch.randint(5, 100, (rows, length))
    labels = torch.where(torch.rand(rows, length) < 0.4, input_ids, -100)
    return {"input_ids": input_ids, "labels": labels, "attention_mask": torch.ones_like(input_ids)}


CONTRACT = Contract(encoder=tiny.bert_config, batch=whole_batch, settings={"dropout": 0.0}, noise={"dropout": 0.1})


ENCODERS = {
    "bert": tiny.bert_config,
    "roberta": lambda: RobertaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100,
        max_position_embeddings=66
    ),
    "modernbert": lambda: ModernBertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100,
        pad_token_id=0
    ),
    "distilbert": lambda: AutoConfig.for_model("distilbert", dim=32, n_layers=2, n_heads=2, hidden_dim=64, vocab_size=100),
    "electra": lambda: AutoConfig.for_model(
        "electra", hidden_size=32, embedding_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100
    ),
    "deberta-v2": lambda: AutoConfig.for_model(
        "deberta-v2", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_loss_and_gradient_equal_the_stock_model(name):
    config = ENCODERS[name]()
    model = MlmForPreTraining(MlmPreTrainingConfig(encoder_config=config, dropout=0.0)).train()
    stock = AutoModelForMaskedLM.from_config(config).eval()  # without dropout
    stock.load_state_dict(model.encoder.state_dict())
    inputs = batch(vocabulary=min(100, config.vocab_size))
    loss = model(**inputs).loss
    expected = stock(**inputs).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected.backward()
    gradients = dict(stock.named_parameters())
    for parameter_name, parameter in model.encoder.named_parameters():
        if gradients[parameter_name].grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[parameter_name].grad, rtol=1e-4, atol=1e-6)


def test_logits_are_those_at_the_masked_positions():
    model = tiny.mlm().eval()
    inputs = batch()
    out = model(**inputs)
    everywhere = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    torch.testing.assert_close(out.logits, everywhere[inputs["labels"] != -100])
    given = (inputs["labels"].flatten() != -100).nonzero().flatten()
    torch.testing.assert_close(model(**inputs, masked_positions=given).loss, out.loss)


def test_the_loss_is_divided_by_the_items_of_the_whole_batch():
    model = tiny.mlm().eval()
    inputs = batch()
    n = int((inputs["labels"] != -100).sum())
    assert int(model.loss_items(inputs)) == n
    torch.testing.assert_close(model(**inputs, num_items_in_batch=4 * n).loss * 4, model(**inputs).loss)


def test_all_parameters_learn_with_the_plain_trainer(tmp_path):
    model = tiny.mlm()
    before = {name: p.clone() for name, p in model.named_parameters()}
    data = [{name: tensor[i] for name, tensor in batch(8).items()} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
    )
    Trainer(model, arguments, train_dataset=data).train()
    assert {name for name, p in model.named_parameters() if torch.equal(p, before[name])} == set()


def test_it_learns():
    model = tiny.mlm().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step, inputs in enumerate(tiny.stream(batch_size=16)):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step == 60:
            break
    assert sum(losses[-5:]) / 5 < 0.75 * losses[0]


def test_save_and_reload(tmp_path):
    model = tiny.mlm(dropout=0.3, mask_ratio=0.4).eval()
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForPreTraining.from_pretrained(tmp_path).eval()
    assert isinstance(reloaded, MlmForPreTraining) and reloaded.config.mask_ratio == 0.4
    assert reloaded.encoder.config.hidden_dropout_prob == 0.3
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(reloaded.state_dict()[name], tensor)
    inputs = batch()
    torch.testing.assert_close(reloaded(**inputs).loss, model(**inputs).loss)
    again = MlmPreTrainingConfig.from_dict(model.config.to_dict())
    assert again.to_dict() == model.config.to_dict()


def test_the_exported_encoder_is_stock_and_keeps_its_own_dropout(tmp_path):
    model = tiny.mlm(dropout=0.0).eval()
    model.export_encoder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "bert" and config["architectures"] == ["BertForMaskedLM"]
    assert config["hidden_dropout_prob"] == 0.1 and "hfssl" not in (tmp_path / "config.json").read_text()
    # in a process that has never heard of hfssl
    out = printed_without_hfssl(
        tmp_path,
        "import sys, torch; from transformers import AutoModel, AutoModelForMaskedLM\n"
        f"model = AutoModelForMaskedLM.from_pretrained({str(tmp_path)!r}).eval()\n"
        f"AutoModel.from_pretrained({str(tmp_path)!r})\n"
        "assert 'hfssl' not in sys.modules\n"
        "print(type(model).__name__, model(torch.arange(5, 15)[None]).logits.sum().item())",
    ).split()
    assert out[0] == "BertForMaskedLM"
    assert float(out[1]) == pytest.approx(
        model(input_ids=torch.arange(5, 15)[None]).logits.sum().item(), rel=1e-4, abs=1e-4
    )


def test_continue_from_a_stock_checkpoint(tmp_path):
    stock = BertForMaskedLM(tiny.bert_config()).eval()
    stock.save_pretrained(tmp_path)
    model = MlmForPreTraining.from_encoder(str(tmp_path), mask_ratio=0.3).eval()
    inputs = batch(vocabulary=stock.config.vocab_size)
    torch.testing.assert_close(model(**inputs).loss, stock(**inputs).loss)
    assert model.config.mask_ratio == 0.3 and model.encoder.config.hidden_dropout_prob == 0.1
    assert AutoModel.from_pretrained(tmp_path).config.hidden_size == 32


def test_packed_documents_cost_the_same_as_each_alone():
    model = tiny.mlm(seed=1).eval()
    packed = next(iter(tiny.stream(batch_size=4, max_length=64)))
    total, items = 0.0, 0
    for ids, labels, sequence in zip(packed["input_ids"], packed["labels"], packed["sequence_ids"], strict=True):
        for number in range(1, int(sequence.max()) + 1):
            own = sequence == number
            n = int((labels[own] != -100).sum())
            if n:
                total += model(input_ids=ids[own][None], labels=labels[own][None]).loss.item() * n
                items += n
    assert model(**packed).loss.item() == pytest.approx(total / items, rel=1e-5)


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = tiny.mlm().train()
        if checkpointing:
            checkpoint_activations(model)
        torch.manual_seed(1)
        model(**batch()).loss.backward()
        gradients.append(model.encoder.bert.encoder.layer[0].output.dense.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"mask_ratio": 0.0}, "mask_ratio.*0.0"),
        ({"mask_ratio": 1.5}, "mask_ratio.*1.5"),
        ({"mask_token_ratio": 0.95, "random_token_ratio": 0.1}, "0.95 and 0.1"),
        ({"dropout": 1.0}, "dropout.*1.0"),
    ],
)
def test_bad_settings_are_named(fields, words):
    with pytest.raises(Exception, match=words):
        MlmPreTrainingConfig(**fields)
