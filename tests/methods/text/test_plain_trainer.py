"""Methods whose loss is a mean over items, under plain `Trainer`: the loss of a step does not depend on how it is cut."""

from functools import cache

import pytest
import tiny
import torch
from transformers import GPT2Config, Trainer, TrainingArguments

from hfssl import ClmForPreTraining, ClmPreTrainingConfig
from hfssl.data.text.rows import TextRows
from hfssl.data.text.tokenizer import train_bpe_tokenizer
from hfssl.methods import METHODS


@cache
def bpe():
    return train_bpe_tokenizer(list(tiny.texts()), 300)


def clm():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=32, vocab_size=len(bpe()))
    return ClmForPreTraining(ClmPreTrainingConfig(encoder_config=config, dropout=0.0))


def stock_rows():
    """As `DataCollatorForLanguageModeling` makes them: all tokens are labels, padding is none."""
    ids = torch.randint(5, 100, (8, 8), generator=torch.Generator().manual_seed(0))
    there = torch.arange(8) < torch.tensor([8, 3, 8, 2, 5, 8, 4, 8])[:, None]
    return {"input_ids": ids, "attention_mask": there.long(), "labels": ids.masked_fill(~there, -100)}


def masked_rows(**options):
    batch = next(iter(tiny.stream(8, max_length=24, **options)))
    return {name: values for name, values in batch.items() if not name.endswith("positions")}


def causal_rows(packing):
    stream = tiny.stream(8, packing=packing)
    stream.transform = TextRows(bpe(), 24, packing=packing, next_tokens=True)
    batch = next(iter(stream))
    return {name: values for name, values in batch.items() if not name.endswith("positions")}


CASES = {
    "mlm, packed": (tiny.mlm, masked_rows),
    "mlm, padded": (tiny.mlm, lambda: masked_rows(packing=False)),
    "clm, stock rows": (clm, stock_rows),
    "clm, packed": (clm, lambda: causal_rows(True)),
    "clm, padded": (clm, lambda: causal_rows(False)),
}


def test_every_method_whose_items_plain_trainer_counts_is_here():
    """It counts labels: those of text. Hidden frames of sound it does not know of."""
    counting = {
        name for name, method in METHODS.items() if method.accepts_loss_kwargs and method.method.modality == "text"
    }
    assert counting == {name.split(",")[0] for name in CASES}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_one_batch(tmp_path, case):
    make, rows = CASES[case][0], CASES[case][1]()
    whole = make().train()
    loss = whole(**rows).loss
    loss.backward()
    counts = [int(whole.loss_items({name: values[i : i + 2] for name, values in rows.items()})) for i in (0, 2, 4, 6)]
    assert len(set(counts)) > 1

    model, kept = make(), {}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=4, use_cpu=True,
        report_to="none", save_strategy="no", logging_steps=1, max_grad_norm=0, learning_rate=0.0, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=[{name: values[i] for name, values in rows.items()} for i in range(8)]
    )
    trainer.create_optimizer().register_step_pre_hook(
        lambda *_: kept.update({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), abs=1e-4)
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(kept[name], parameter.grad, rtol=1e-5, atol=1e-6)
