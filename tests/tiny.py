"""Small things that many tests need: a corpus, a tokenizer, a model."""

from functools import cache

import numpy as np
import torch
from transformers import BertConfig

from hfssl import MlmForPreTraining, MlmPreTrainingConfig
from hfssl.data.sources import MemorySource
from hfssl.data.stream import ExactStream
from hfssl.data.text.rows import TextCollator, TextRows
from hfssl.data.text.tokenizer import train_tokenizer


WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "quietly",
    "boxed",
    "liquor",
    "jugs",
    "in",
    "summer",
    "rain",
]


@cache
def texts(n=400, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(" ".join(rng.choice(WORDS, rng.integers(3, 40))) for _ in range(n))


@cache
def tokenizer():
    return train_tokenizer(list(texts()), 120)


def bert_config(**overrides):
    fields = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "vocab_size": len(tokenizer()), "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    return BertConfig(**{**fields, **overrides})


def mlm(dropout=0.0, attention="sdpa", seed=0, **config):
    torch.manual_seed(seed)
    model = MlmForPreTraining(MlmPreTrainingConfig(encoder_config=bert_config(), dropout=dropout, **config))
    model.encoder.set_attn_implementation(attention)
    return model


def passes(stream, number=1):
    """`(pass, batch)` of a stream with batches of one row, until all its lanes have left the first `number` passes."""
    before = stream.state_dict()["positions"]
    for batch in stream:
        after = stream.state_dict()["positions"]
        [at] = [at for lane, at in after.items() if at != before[lane]]
        before = after
        if all(at["pass"] >= number for at in after.values()):
            return
        if at["pass"] < number:
            yield at["pass"], batch


def stream(batch_size=8, max_length=32, masking=None, source=None, packing=True, **kwargs):
    source = source or MemorySource(list(texts()), name="memory", piece_bytes=500)
    transform = TextRows(tokenizer(), max_length, packing=packing, masking=masking or {"mask_ratio": 0.15})
    kwargs = {"block_bytes": 4000, **kwargs}
    return ExactStream(source, transform, TextCollator(0), batch_size, **kwargs)
