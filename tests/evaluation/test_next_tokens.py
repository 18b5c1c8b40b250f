"""Held-out next tokens: perplexity, and bits per byte that do not depend on the tokenizer."""

import json
import math
from functools import cache

import pytest
import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hfssl import ClmForPreTraining, ClmPreTrainingConfig
from hfssl.data.text.tokenizer import train_bpe_tokenizer
from hfssl.errors import UserError
from hfssl.evaluation.next_tokens import NextTokenEvaluator, continuations


TEXTS = list(tiny.texts(40, seed=1))


@cache
def tokenizer(vocab_size=300):
    return train_bpe_tokenizer(list(tiny.texts()), vocab_size)


def without_beginning(vocab_size=300):
    """As stock GPT-2's: nothing stands before a text."""
    bare = train_bpe_tokenizer(list(tiny.texts()), vocab_size)
    bare.add_bos_token = False
    assert bare("a")["input_ids"] == bare("a", add_special_tokens=False)["input_ids"]
    return bare


def model(vocab_size=None):
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=2, n_positions=128, vocab_size=vocab_size or len(tokenizer()), bos_token_id=0,
        eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    return ClmForPreTraining(ClmPreTrainingConfig(encoder_config=config)).eval()


@pytest.mark.parametrize("packing", [True, False])
def test_figures_are_those_of_the_stock_model_on_each_text_alone(packing):
    own = model()
    evaluator = NextTokenEvaluator(TEXTS, tokenizer(), max_length=128, packing=packing)
    nats, right, tokens = 0.0, 0, 0
    for text in TEXTS:
        ids = torch.tensor([tokenizer()(text)["input_ids"] + [0]])
        assert ids.shape[1] <= 128  # no text is cut
        with torch.no_grad():
            out = own.encoder(input_ids=ids, labels=ids)
        nats += out.loss.item() * (ids.shape[1] - 1)
        right += (out.logits[0, :-1].argmax(-1) == ids[0, 1:]).sum().item()
        tokens += ids.shape[1] - 1
    figures = evaluator.measure(own)
    assert list(figures) == list(evaluator.metrics)
    assert len(evaluator.labels) == tokens
    assert figures["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert figures["accuracy"] == pytest.approx(right / tokens)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def test_long_texts_are_cut_and_every_token_is_predicted_once():
    text = " ".join(TEXTS)
    num_tokens = len(tokenizer()(text)["input_ids"])  # the beginning is not predicted, the end is
    for max_length in (16, 17, 64):
        assert len(NextTokenEvaluator([text], tokenizer(), max_length=max_length).labels) == num_tokens


def test_bits_per_byte_count_what_was_predicted():
    with_beginning = NextTokenEvaluator(["dög fox"], tokenizer(), max_length=32)
    assert with_beginning.first_token_predicted and with_beginning.num_bytes == 8
    bare = NextTokenEvaluator(["dög fox"], without_beginning(), max_length=32)
    assert not bare.first_token_predicted and bare.num_bytes == 7  # "d" is given
    assert len(with_beginning.labels) == len(bare.labels) + 1
    # a uniform model: log2(vocabulary) bits a token
    uniform = model()
    with torch.no_grad():
        uniform.encoder.lm_head.weight.zero_()
    figures = with_beginning.measure(uniform)
    expected = math.log2(len(tokenizer())) * len(with_beginning.labels) / 8
    assert figures["bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_a_mixture_has_a_loss_of_each_source_and_the_bytes_of_all():
    halves = {"one": TEXTS[:20], "two": TEXTS[20:]}
    mixed, plain = (NextTokenEvaluator(texts, tokenizer(), max_length=64) for texts in (halves, TEXTS))
    figures, expected = mixed.measure(model()), plain.measure(model())
    assert list(figures) == list(mixed.metrics) and {"loss_one", "loss_two"} <= set(figures)
    assert mixed.num_bytes == plain.num_bytes
    assert figures["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-5)


def test_unigram_baseline():
    # one token, then the end: both are known to be half of everything
    evaluator = NextTokenEvaluator(["a"] * 10, tokenizer(), max_length=8, training_texts=["a"] * 100_000)
    assert evaluator.baselines["loss"] == pytest.approx(math.log(2), rel=0.01)
    assert evaluator.baselines["accuracy"] == 0.5
    assert evaluator.baselines["bits_per_byte"] == pytest.approx(2.0, rel=0.01)  # two tokens of one bit for a byte


def test_a_stock_checkpoint_is_evaluated_and_recorded(tmp_path):
    stock = GPT2LMHeadModel(model().config.encoder_config)
    stock.save_pretrained(tmp_path / "model")
    evaluator = NextTokenEvaluator(TEXTS, tokenizer(), max_length=32, training_texts=tiny.texts())
    results = evaluator(str(tmp_path / "model"), output_dir=tmp_path)
    assert [r.metric for r in results] == ["loss", "accuracy", "perplexity", "bits_per_byte"]
    assert evaluator.score(results) == results[0].value and not results[0].greater_is_better
    records = json.loads((tmp_path / "results.json").read_text())
    assert {record["protocol"] for record in records} == {"next_tokens"} and records[0]["version"] == 1
    assert records[3]["hyperparameters"]["first_token_predicted"] is True
    assert set(records[0]["baselines"]) == {"unigram"}


def test_continuations_are_the_same_each_time_and_leave_the_random_state():
    own = model().encoder
    state = torch.get_rng_state()
    examples = continuations(own, tokenizer(), TEXTS, num_examples=2, prompt_words=3, new_tokens=5, max_length=64)
    assert torch.equal(torch.get_rng_state(), state)
    assert examples == continuations(own, tokenizer(), TEXTS, 2, 3, 5, 64)
    first = next(text for text in TEXTS if len(text.split()) >= 6)
    assert examples[0]["prompt"] == " ".join(first.split()[:3]) and first.startswith(examples[0]["prompt"])
    assert {"answer", "greedy", "sampled"} <= set(examples[0])
    other = continuations(own, tokenizer(), TEXTS, 2, 3, 5, 64, seed=1)
    assert [e["greedy"] for e in other] == [e["greedy"] for e in examples]
    assert [e["sampled"] for e in other] != [e["sampled"] for e in examples]


def test_texts_without_tokens_are_too_short():
    with pytest.raises(UserError, match="1 held-out text.* too short to measure on.*no next tokens"):
        NextTokenEvaluator([""], tokenizer())
