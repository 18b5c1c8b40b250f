"""Small pairs of encoders, and batches of pairs for them."""

import tiny
import tiny_audio
import tiny_vision
import torch
from transformers import CLIPTextConfig, CLIPVisionConfig, SiglipTextConfig, SiglipVisionConfig


TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
END, LENGTH = 29, 8
TEXT = {"vocab_size": 30, "max_position_embeddings": LENGTH, "eos_token_id": END, "bos_token_id": 0, "pad_token_id": 1}


def clip_towers():
    return {
        "first_config": CLIPVisionConfig(**TOWER, **tiny_vision.SIZE),
        "second_config": CLIPTextConfig(**TOWER, **TEXT),
    }


def siglip_towers():
    return {
        "first_config": SiglipVisionConfig(**TOWER, **tiny_vision.SIZE),
        "second_config": SiglipTextConfig(**TOWER, **TEXT, projection_size=32),
    }


def bert(**fields):
    return tiny.bert_config(**{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **fields})


def vit_and_bert(**fields):
    return {"first_config": tiny_vision.two_layers(), "second_config": bert(**fields)}


def resnet_and_bert():
    return {"first_config": tiny_vision.resnet(), "second_config": bert()}


def hubert_and_bert():
    return {"first_config": tiny_audio.hubert(), "second_config": bert()}


def texts(rows=6):
    """Of 3 to 7 tokens, each with an end, then padding."""
    ids = torch.randint(2, END, (rows, LENGTH))
    ends = torch.randint(2, LENGTH - 1, (rows, 1))
    places = torch.arange(LENGTH)
    ids = ids.masked_fill(places == ends, END).masked_fill(places > ends, 1)
    return {"input_ids": ids, "attention_mask": (places <= ends).long()}


def images_and_texts(rows=6):
    return {"pixel_values": torch.randn(rows, 3, 16, 16), **texts(rows)}
