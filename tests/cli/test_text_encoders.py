"""Encoders of text from scratch: fitted to the tokenizer, and what is said where they cannot be."""

import json
import re

import pytest
import tiny
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertTokenizer

from hfssl.cli.text.encoders import check_fit, text_encoder_config
from hfssl.data.text.rows import TextRows
from hfssl.data.text.sentence_pairs import SentencePairRows
from hfssl.data.text.tokenizer import require_mask_token, require_prompt_tokenizer, train_bpe_tokenizer
from hfssl.errors import UserError
from hfssl.modeling.packing_checks import check_causal


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def made(tokenizer, encoder, overrides, causal=False):
    config = text_encoder_config(encoder, tokenizer, overrides, causal)
    return (AutoModelForCausalLM if causal else AutoModelForMaskedLM).from_config(config)


@pytest.mark.parametrize(
    "encoder, overrides, causal",
    [
        ("bert-tiny", {}, False),
        ("bert-tiny", {"model_type": "roberta", **SMALL}, False),
        ("bert-tiny", {"model_type": "roberta", "max_position_embeddings": 40, **SMALL}, False),
        ("bert-tiny", {"model_type": "distilbert", "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}, False),
        ("bert-tiny", {"model_type": "camembert", **SMALL}, False),
        ("gpt2-tiny", {}, True),
    ],
)
def test_more_positions_as_the_message_says(encoder, overrides, causal):
    tokenizer = train_bpe_tokenizer(tiny.texts(), 270) if causal else tiny.tokenizer()
    model = made(tokenizer, encoder, overrides, causal)
    with pytest.raises(UserError, match="`--max_length 1025` is more than the") as error:
        check_fit(model, tokenizer, 1025, from_scratch=True)
    limit = int(re.search(r"at most `--max_length (\d+)`", str(error.value))[1])
    check_fit(model, tokenizer, limit, from_scratch=True)
    advised = json.loads("{" + re.search(r'`("max_position_embeddings": \d+)`', str(error.value))[1] + "}")
    check_fit(made(tokenizer, encoder, overrides | advised, causal), tokenizer, 1025, from_scratch=True)
    with pytest.raises(UserError) as error:
        check_fit(model, tokenizer, 1025, from_scratch=False)
    assert "encoder_config" not in str(error.value)  # a checkpoint has the positions that it has


def test_bert_becomes_a_decoder_as_the_message_says():
    tokenizer = train_bpe_tokenizer(tiny.texts(), 270)
    with pytest.raises(UserError, match="is no decoder") as error:
        check_causal(made(tokenizer, "gpt2-tiny", {"model_type": "bert", **SMALL}, causal=True).eval())
    advised = json.loads(re.search(r"`--encoder_config '(.*)'`", str(error.value))[1])
    check_causal(made(tokenizer, "gpt2-tiny", advised | SMALL, causal=True).eval())


@pytest.mark.parametrize("transform, least", [(TextRows, 3), (SentencePairRows, 5)])
def test_rows_as_short_as_the_message_says(transform, least):
    with pytest.raises(UserError, match=f"leaves no room.*Pass at least {least}"):
        transform(tiny.tokenizer(), least - 1)
    transform(tiny.tokenizer(), least)


def test_what_a_tokenizer_lacks_a_checkpoint_lacks_too():
    without = BertTokenizer(vocab=tiny.tokenizer().get_vocab(), mask_token=None)
    with pytest.raises(UserError, match="leave it out to train one on the corpus"):
        require_mask_token(without)
    with pytest.raises(UserError, match="Continue a model of the BERT family, or train from scratch: 'org/decoder'"):
        require_mask_token(without, base_model="org/decoder")
    with pytest.raises(UserError, match="GPT-2 or Llama instead of 'org/encoder', or train from scratch"):
        require_prompt_tokenizer(without, "org/encoder")


def test_an_embedding_for_each_id_that_a_tokenizer_gives():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two"]
    tokenizer = BertTokenizer(vocab={word: 2 * i for i, word in enumerate(words)})
    assert len(tokenizer) == 7
    model = made(tokenizer, "bert-tiny", {})
    assert model.config.vocab_size == 13
    check_fit(model, tokenizer, 16, from_scratch=True)
    model.resize_token_embeddings(12)
    with pytest.raises(UserError, match=r"13 entries \(its highest id is 12\), the encoder has embeddings for 12"):
        check_fit(model, tokenizer, 16, from_scratch=True)
