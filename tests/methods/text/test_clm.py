"""Causal language modelling: GPT-2's and Llama's loss, within documents only, and stock checkpoints that write."""

import json
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import tiny
import torch
from contract import Contract, checkpoint_activations
from recipe_process import printed_without_hfssl
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForPreTraining,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hfssl import ClmForPreTraining, ClmPreTrainingConfig, SSLTrainer, SSLTrainingArguments
from hfssl.data.sources import MemorySource
from hfssl.data.stream import ExactStream
from hfssl.data.text.rows import TextCollator, TextRows
from hfssl.data.text.tokenizer import train_bpe_tokenizer
from hfssl.errors import UserError
from hfssl.evaluation.next_tokens import NextTokenEvaluator
from hfssl.methods.text.clm import is_target
from hfssl.modeling.packing_checks import check_causal
from hfssl.training.callbacks import MethodCallback


@cache
def tokenizer():
    return train_bpe_tokenizer(list(tiny.texts()), 300)


def gpt2_config(**overrides):
    fields = {
        "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer()),
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
    }  # fmt: skip
    return GPT2Config(**{**fields, **overrides})


def whole_batch(rows, length=16):
    input_ids = torch.randint(5, 100, (rows, length))
    return {"input_ids": input_ids, "labels": input_ids, "attention_mask": torch.ones_like(input_ids)}


CONTRACT = Contract(encoder=gpt2_config, batch=whole_batch, settings={"dropout": 0.0}, noise={"dropout": 0.1})


def llama_config(**overrides):
    fields = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 64, "max_position_embeddings": 64, "vocab_size": len(tokenizer()),
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
    }  # fmt: skip
    return LlamaConfig(**{**fields, **overrides})


def clm(config=None, dropout=0.0, attention="sdpa", seed=0):
    torch.manual_seed(seed)
    model = ClmForPreTraining(ClmPreTrainingConfig(encoder_config=config or gpt2_config(), dropout=dropout))
    model.encoder.set_attn_implementation(attention)
    return model


def stream(batch_size=8, max_length=32, packing=True, **kwargs):
    transform = TextRows(tokenizer(), max_length, packing=packing, next_tokens=True)
    source = MemorySource(list(tiny.texts()), name="memory", piece_bytes=500)
    collate = TextCollator(1, positions="target_positions")
    return ExactStream(source, transform, collate, batch_size, **{"block_bytes": 4000, **kwargs})


def batch(rows=4, length=16, vocabulary=100):
    """Padded rows as `DataCollatorForLanguageModeling` makes them."""
    input_ids = torch.randint(2, vocabulary, (rows, length))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, 10:] = 0
    return {
        "input_ids": input_ids,
        "labels": input_ids.masked_fill(attention_mask == 0, -100),
        "attention_mask": attention_mask,
    }


DECODERS = {
    "gpt2": gpt2_config,
    "llama": llama_config,
    "llama-tied": lambda: llama_config(tie_word_embeddings=True),
    # its head calls a part of the base model, not the base model
    "opt": lambda: AutoConfig.for_model(
        "opt", vocab_size=100, hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=2, num_attention_heads=2,
        ffn_dim=64,
    ),
    # its logits go through a tanh after the output layer
    "gemma2": lambda: AutoConfig.for_model(
        "gemma2", vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, intermediate_size=64, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("padded", [False, True])
def test_loss_and_gradient_equal_the_stock_model(name, padded):
    config = DECODERS[name]()
    model = clm(config, attention="eager").train()
    stock = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()  # without dropout
    stock.load_state_dict(model.encoder.state_dict())
    inputs = batch() if padded else {"input_ids": torch.randint(2, 100, (1, 16))}
    inputs.setdefault("labels", inputs["input_ids"])
    loss, expected = model(**inputs).loss, stock(**inputs).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected.backward()
    gradients = dict(stock.named_parameters())
    for parameter_name, parameter in model.encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[parameter_name].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", [gpt2_config, llama_config])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_documents_cost_the_same_as_each_alone_in_the_stock_model(config, attention):
    model = clm(config(), attention=attention, seed=1).eval()
    packed = next(iter(stream(batch_size=4, max_length=48)))
    total, items = 0.0, 0
    for ids, sequence in zip(packed["input_ids"], packed["sequence_ids"], strict=True):
        for number in range(1, int(sequence.max()) + 1):
            own = ids[sequence == number][None]
            total += model.encoder(input_ids=own, labels=own).loss.item() * (own.shape[1] - 1)
            items += own.shape[1] - 1
    assert packed["target_positions"].numel() == items == int(model.loss_items(packed))
    assert model(**packed).loss.item() == pytest.approx(total / items, rel=1e-5)


def test_nothing_is_predicted_across_documents_and_no_padding():
    sequence_ids = torch.tensor([[1, 1, 1, 2, 2, 0, 0]])
    labels = torch.arange(7)[None]
    assert is_target(labels, sequence_ids)[0].tolist() == [False, True, True, False, True, False, False]
    attention_mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0]])
    assert is_target(labels, attention_mask=attention_mask)[0].tolist() == [False] * 3 + [True] * 2 + [False] * 2
    model = clm().eval()
    inputs = {"input_ids": torch.randint(2, 100, (1, 7)), "sequence_ids": sequence_ids}
    inputs["labels"] = inputs["input_ids"]
    assert int(model.loss_items(inputs)) == 3 and model(**inputs).logits.shape == (3, len(tokenizer()))
    # another first document changes the second one's predictions by nothing
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, :3] = torch.tensor([5, 6, 7])
    torch.testing.assert_close(model(**inputs).logits[2], model(**other).logits[2])


def test_logits_are_those_before_the_targets():
    model = clm().eval()
    packed = next(iter(stream(batch_size=2)))
    everywhere = model(input_ids=packed["input_ids"], sequence_ids=packed["sequence_ids"]).logits
    out = model(**packed)
    torch.testing.assert_close(out.logits, everywhere.flatten(0, 1)[packed["target_positions"] - 1])
    found = {name: packed[name] for name in ("input_ids", "labels", "sequence_ids")}
    torch.testing.assert_close(model(**found).loss, out.loss)
    assert model.train()(**packed).logits is None


def test_a_uniform_model_costs_the_logarithm_of_the_vocabulary():
    model = clm().eval()
    with torch.no_grad():
        model.encoder.lm_head.weight.zero_()
    loss = model(**next(iter(stream()))).loss.item()
    assert loss == pytest.approx(np.log(len(tokenizer())), rel=1e-6)


def test_the_loss_is_divided_by_the_items_of_the_whole_batch():
    model = clm().eval()
    inputs = batch()
    n = 3 * 15 + 9
    assert int(model.loss_items(inputs)) == n
    torch.testing.assert_close(model(**inputs, num_items_in_batch=4 * n).loss * 4, model(**inputs).loss)


def trainer(folder, model=None, batch_size=8, callbacks=None, **overrides):
    fields = {
        "output_dir": str(folder), "max_steps": 4, "per_device_train_batch_size": batch_size, "learning_rate": 1e-2,
        "precision": "fp32", "report_to": "none", "eval_strategy": "no", "save_steps": 2, "logging_steps": 1,
        "disable_tqdm": True, "seed": 5,
    }  # fmt: skip
    args = SSLTrainingArguments(**{**fields, **overrides})
    model = model or clm(dropout=0.1)
    return SSLTrainer(model, args, stream(batch_size, seed=5), processing_class=tokenizer(), callbacks=callbacks)


def test_gradients_do_not_depend_on_how_the_batch_was_cut(tmp_path):
    gradients = []
    for batch_size, steps in ((32, 1), (8, 4)):
        model, kept = clm(), {}
        t = trainer(
            tmp_path / f"{batch_size}", model, batch_size, gradient_accumulation_steps=steps, max_steps=1,
            learning_rate=0.0, max_grad_norm=0.0, save_strategy="no",
        )  # fmt: skip
        optimizer = t.create_optimizer()
        optimizer.register_step_pre_hook(
            lambda *_, kept=kept, model=model: kept.update({n: p.grad.clone() for n, p in model.named_parameters()})
        )
        t.train()
        gradients.append(kept)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    whole = trainer(tmp_path / "whole", gradient_accumulation_steps=2)
    whole.train()

    class Kill(MethodCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:  # the last checkpoint is that of step 2
                raise KeyboardInterrupt

    first = trainer(tmp_path / "cut", gradient_accumulation_steps=2, callbacks=[Kill()])
    with pytest.raises(KeyboardInterrupt):
        first.train()
    again = trainer(tmp_path / "cut", clm(dropout=0.1, seed=99), gradient_accumulation_steps=2)
    again.train()
    assert again.resumed_from.name == "checkpoint-2"
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    assert again.stream.state_dict() == whole.stream.state_dict()


@pytest.mark.parametrize("config", [gpt2_config, llama_config])
def test_all_parameters_learn_with_the_plain_trainer(tmp_path, config):
    model = clm(config())
    before = {name: p.clone() for name, p in model.named_parameters()}
    data = [{name: tensor[i] for name, tensor in batch(8).items()} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    Trainer(model, arguments, train_dataset=data).train()
    assert {name for name, p in model.named_parameters() if torch.equal(p, before[name])} == set()


@pytest.mark.parametrize("packing", [True, False])
def test_it_learns(packing):
    model = clm(llama_config()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for step, inputs in enumerate(stream(batch_size=16, packing=packing)):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step == 25:
            break
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]


@pytest.mark.parametrize("config", [gpt2_config, llama_config])
def test_save_and_reload(tmp_path, config):
    model = clm(config(), dropout=0.3).eval()
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForPreTraining.from_pretrained(tmp_path).eval()
    assert isinstance(reloaded, ClmForPreTraining) and reloaded.config.dropout == 0.3
    dropout = "resid_pdrop" if config is gpt2_config else "attention_dropout"
    assert getattr(reloaded.encoder.config, dropout) == 0.3
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(reloaded.state_dict()[name], tensor)
    inputs = batch()
    torch.testing.assert_close(reloaded(**inputs).loss, model(**inputs).loss)
    again = ClmPreTrainingConfig.from_dict(model.config.to_dict())
    assert again.to_dict() == model.config.to_dict()


@pytest.mark.parametrize("config, tied", [(gpt2_config, True), (llama_config, False)])
def test_the_exported_model_is_stock_and_writes(tmp_path, config, tied):
    model = clm(config()).eval()
    model.encoder.generation_config.max_length = 20
    model.export_encoder(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert "hfssl" not in (tmp_path / "config.json").read_text()
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (0, 0, 1)
    # in a process that has never heard of hfssl
    out = printed_without_hfssl(
        tmp_path,
        "import sys, torch; from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer\n"
        f"folder = {str(tmp_path)!r}\n"
        "model = AutoModelForCausalLM.from_pretrained(folder).eval()\n"
        "AutoModel.from_pretrained(folder)\n"
        "assert 'hfssl' not in sys.modules\n"
        "tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight\n"
        "ids = AutoTokenizer.from_pretrained(folder)('the quick', return_tensors='pt').input_ids\n"
        "print(type(model).__name__, model(ids).logits.sum().item(), tied)",
    ).split()
    assert out[0] == type(model.encoder).__name__ and out[2] == str(tied)
    ids = tokenizer()("the quick", return_tensors="pt").input_ids
    assert float(out[1]) == pytest.approx(model(input_ids=ids).logits.sum().item(), rel=1e-4, abs=1e-3)
    write = pipeline("text-generation", str(tmp_path), device="cpu")
    texts = write(["the quick", "seven"], do_sample=False, batch_size=2)
    assert texts[0][0]["generated_text"].startswith("the quick")


@pytest.mark.parametrize("stock_class, config", [(GPT2LMHeadModel, gpt2_config), (LlamaForCausalLM, llama_config)])
def test_continue_from_a_stock_checkpoint(tmp_path, stock_class, config):
    stock = stock_class(config()).eval()
    stock.generation_config.repetition_penalty = 1.5
    stock.save_pretrained(tmp_path)
    model = ClmForPreTraining.from_encoder(str(tmp_path)).eval()
    inputs = batch()
    torch.testing.assert_close(model(**inputs).loss, stock(**inputs).loss)
    assert model.encoder.generation_config.repetition_penalty == 1.5
    assert model.encoder.config.to_dict().get("resid_pdrop") == stock.config.to_dict().get("resid_pdrop")


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = clm().train()
        if checkpointing:
            checkpoint_activations(model)
        model(**batch()).loss.backward()
        gradients.append(model.encoder.transformer.h[0].mlp.c_fc.weight.grad)
    torch.testing.assert_close(*gradients)


def test_evaluation_and_training_agree():
    model = clm().eval()
    evaluator = NextTokenEvaluator(tiny.texts(20, seed=3), tokenizer(), max_length=32)
    transform = TextRows(tokenizer(), 32, packing=False, next_tokens=True)
    source = MemorySource(list(tiny.texts(20, seed=3)), name="memory")
    rows = ExactStream(source, transform, TextCollator(1, positions="target_positions"), 1)
    total = items = 0
    for inputs in rows:
        total += model(**inputs).loss.item() * inputs["target_positions"].numel()
        items += inputs["target_positions"].numel()
        if items == len(evaluator.labels):
            break
    assert evaluator.measure(model)["loss"] == pytest.approx(total / items, rel=1e-5)


def test_an_encoder_that_sees_the_future_is_refused():
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    both = AutoModelForCausalLM.from_config(BertConfig(vocab_size=100, **fields))
    with pytest.raises(UserError, match="BertLMHeadModel is no decoder: a token sees the tokens after it"):
        check_causal(both)
    check_causal(AutoModelForCausalLM.from_config(BertConfig(vocab_size=100, is_decoder=True, **fields)))
    check_causal(clm().encoder)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_bad_settings_are_named(dropout):
    with pytest.raises(Exception, match=f"dropout.*{dropout}"):
        ClmPreTrainingConfig(dropout=dropout)


RANKS = """
import sys, torch, torch.distributed as dist
sys.path[:0] = [{tests!r}, {here!r}]
import test_clm
t = test_clm.trainer({folder!r}, test_clm.clm(), batch_size=int(sys.argv[1]), max_steps=1, learning_rate=0.0,
    max_grad_norm=0.0, save_strategy="no")
# the same rows in the same batch, dealt by hand
rows = next(iter(test_clm.stream(8, seed=5)))
n, rank = int(sys.argv[1]), t.args.process_index
part = {{k: v[rank * n:(rank + 1) * n] for k, v in rows.items() if k != "target_positions"}}
t.stream = None
t.get_train_dataloader = lambda: [part]
kept = {{}}
t.create_optimizer().register_step_pre_hook(
    lambda *_: kept.update({{k: p.grad.clone() for k, p in t.model.named_parameters()}}))
t.train()
if rank == 0:
    torch.save(kept, sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_have_the_gradient_of_one(tmp_path):
    from pathlib import Path

    here = Path(__file__).parent
    script = tmp_path / "ranks.py"
    script.write_text(RANKS.format(tests=str(here.parents[1]), here=str(here), folder=str(tmp_path / "run")))
    gradients = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command += [str(script), str(8 // processes), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        gradients.append(torch.load(out))
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6, msg=name)
