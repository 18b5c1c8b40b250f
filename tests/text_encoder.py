"""A small encoder of texts, and labelled texts, for the tests of probes and fine-tuning."""

import random

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from hfssl.data.labelled import HeldSamples, LabelledData


WORDS = ["good", "bad", *"abcdefghijklmnopqrstuvwxyz"]
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_tokenizer(pairs=True):
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if pairs:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


def make_config(config_class=BertConfig, **overrides):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return config_class(
        **{"vocab_size": len(SPECIAL_TOKENS) + len(WORDS), "max_position_embeddings": 64} | sizes | overrides
    )


def save_text_encoder(folder):
    """An encoder as pre-training leaves it: a stock model without a pooler, and its tokenizer."""
    torch.manual_seed(0)
    BertModel(make_config(), add_pooling_layer=False).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def opinions(num, seed=0):
    """Texts of letters with a good or a bad word somewhere among them."""
    rng = random.Random(seed)
    labels = [index % 2 for index in range(num)]
    texts = []
    for label in labels:
        words = rng.choices(WORDS[2:], k=rng.randint(2, 9))
        words.insert(rng.randint(0, len(words)), WORDS[1 - label])
        texts.append(" ".join(words))
    return LabelledData(HeldSamples(texts), np.array(labels), ["bad", "good"], f"{num} {seed}", "opinions", "text")
