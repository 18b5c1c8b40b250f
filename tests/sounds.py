"""Labelled recordings and small stock encoders of sound for tests, made here."""

import io
from functools import cache

import numpy as np
import soundfile
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    HubertConfig,
    HubertModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2FeatureExtractor,
)

from hfssl.data.labelled import HeldSamples, LabelledData


RATE = 16_000
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL_WAVE = {
    **SMALL, "conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer", "do_stable_layer_norm": True, "classifier_proj_size": 16,
}  # fmt: skip
NAMES = ["low", "middle", "high"]


def wav(samples, rate=RATE, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", **options)
    return buffer.getvalue()


def tone(row, seconds=None):
    """A hiss around one of three pitches, of a length of its own."""
    rng = np.random.default_rng(row)
    length = int((seconds or 0.3 + 0.05 * (row % 7)) * RATE)
    times = np.arange(length) / RATE
    pitch = (300, 900, 2500)[row % 3] * rng.uniform(0.9, 1.1)
    return (0.3 * np.sin(2 * np.pi * pitch * times) + 0.03 * rng.standard_normal(length)).astype(np.float32)


@cache
def tones(num_train=45, num_test=21):
    """Two splits of recordings in three classes."""

    def split(rows, name):
        return LabelledData(HeldSamples(wav(tone(row)) for row in rows), np.array([row % 3 for row in rows]), NAMES,
                            name, f"tones ({name})", "audio")  # fmt: skip

    return split(range(num_train), "train"), split(range(num_train, num_train + num_test), "test")


def hubert(seed=0, **overrides):
    torch.manual_seed(seed)
    return HubertModel(HubertConfig(**{**SMALL_WAVE, **overrides})).eval()


def wav2vec2_bert(seed=0):
    torch.manual_seed(seed)
    return Wav2Vec2BertModel(Wav2Vec2BertConfig(**SMALL, conv_depthwise_kernel_size=7)).eval()


def ast(seed=0):
    torch.manual_seed(seed)
    return ASTModel(ASTConfig(**SMALL, max_length=64, num_mel_bins=32)).eval()


def feature_extractor(model):
    if model.config.model_type == "audio-spectrogram-transformer":
        return ASTFeatureExtractor(max_length=64, num_mel_bins=32)
    if model.config.model_type == "wav2vec2-bert":
        return SeamlessM4TFeatureExtractor()
    return Wav2Vec2FeatureExtractor(return_attention_mask=model.config.feat_extract_norm == "layer")


def save(model, folder):
    model.save_pretrained(folder)
    feature_extractor(model).save_pretrained(folder)
    return folder
