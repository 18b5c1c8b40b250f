"""`recipes/clm.py` as a command."""

import json

import pytest
import tiny
from recipe_process import recipe_server
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from hfssl.data.text.tokenizer import train_bpe_tokenizer


SMALL = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
FLAGS = [
    "--max_length", 32, "--per_device_train_batch_size", 8, "--report_to", "none", "--precision", "fp32",
    "--save_steps", 4, "--eval_steps", 0.5, "--max_steps", 8,
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    path.write_text("\n".join(tiny.texts(300)))
    return path


def run(folder, corpus, *flags):
    flags = ["--dataset", corpus, *FLAGS, "--output_dir", folder / "out", *flags]
    return recipe_server().run(folder, *flags, script="recipes/clm.py")


def test_from_scratch_to_a_model_that_writes(tmp_path, corpus):
    done = run(tmp_path, corpus, "--encoder", "gpt2-tiny", "--encoder_config", json.dumps(SMALL), "--vocab_size", 300)
    assert done.poll() == 0, done.stderr
    assert "Held-out next tokens (" in done.stdout and "bits_per_byte" in done.stdout
    assert "the model, greedy: …" in done.stdout and "the model, sampled: …" in done.stdout
    out = tmp_path / "out"
    records = {record["metric"]: record for record in json.loads((out / "results.json").read_text())}
    assert set(records) == {"loss", "accuracy", "perplexity", "bits_per_byte"}
    assert set(records["loss"]["baselines"]) == {"unigram", "before"}
    assert records["loss"]["value"] < records["loss"]["baselines"]["before"]
    card = (out / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "language_models_are_unsupervised" in card
    assert "the model, sampled" in card and (out / "assets" / "loss.png").exists()
    generation = json.loads((out / "generation_config.json").read_text())
    assert {name: generation[f"{name}_token_id"] for name in ("bos", "eos", "pad")} == {"bos": 0, "eos": 0, "pad": 1}
    assert generation["max_length"] == 32
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.vocab_size == len(tokenizer) and model.config.resid_pdrop == 0.1
    assert model.generate(**tokenizer("the quick", return_tensors="pt")).shape[1] <= 32


def test_a_checkpoint_whose_tokenizer_adds_nothing_is_continued(tmp_path, corpus):
    bare = train_bpe_tokenizer(list(tiny.texts()), 300)
    model = json.loads(bare.backend_tokenizer.to_str())["model"]
    stock = GPT2Tokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    stock.save_pretrained(tmp_path / "stock")
    config = GPT2Config(**SMALL, vocab_size=300, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "stock")
    changed = ["--encoder_config", '{"attn_pdrop": 0.25}']
    done = run(tmp_path, corpus, "--encoder", tmp_path / "stock", "--packing", "false", *changed)
    assert done.poll() == 0, done.stderr
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.attn_pdrop == 0.25
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    assert records[0]["hyperparameters"]["first_token_predicted"] is False
    assert "further from `stock`" in (tmp_path / "out" / "README.md").read_text()
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (0, 0) and "max_length" not in generation


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--encoder", "bert-mini"], "bert-mini` is an encoder, for `recipes/mlm.py`. Choose one of gpt2-tiny"),
        (["--max_length", 2048], "`--max_length 2048` is more than the 1024 positions that GPT2LMHeadModel has"),
        (["--encoder_config", '{"model_type": "vit"}'], "no causal language model of type vit"),
        (
            ["--encoder_config", '{"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2}'],
            "BertLMHeadModel is no decoder: a token sees the tokens after it",
        ),
        (["--vocab_size", 100], "A vocabulary of 100 entries is too small"),
        (["--max_length", 1], "leaves no next token to predict"),
        (["--mask_ratio", 0.3], "unknown flag --mask_ratio"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_sentence(tmp_path, corpus, flags, message):
    done = run(tmp_path, corpus, *flags)
    assert done.poll() != 0 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out" / "config.json").exists()
