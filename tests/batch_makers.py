"""Batches as runs make them, out of some samples of every modality: for checks of what makes batches on a device."""

import io
import wave

import numpy as np
import pytest
import tiny
import tiny_audio
import tiny_vision
from transformers import ASTConfig

from hfssl.data.audio.clips import ClipRows
from hfssl.data.audio.rows import AudioFormat
from hfssl.data.audio.views import AudioViews
from hfssl.data.caption.captions import CaptionRows
from hfssl.data.image.digits import digits
from hfssl.data.image.views import ViewArguments, Views
from hfssl.data.multimodal.rows import PairRows
from hfssl.data.stream import Block
from hfssl.functional import keyed
from hfssl.functional.keyed import Use
from hfssl.functional.views import View, ViewPreset


AST = ASTConfig(max_length=64, num_mel_bins=32, patch_size=16, frequency_stride=16, time_stride=16)


def image_views(name, num_channels=3, **arguments):
    arguments = ViewArguments(image_size=16, **arguments)
    mean_std = ([0.5] * num_channels, [0.25] * num_channels)
    preset = tiny_vision.preset_of(name)
    return Views(preset, arguments, is_grey=False, patch_size=4, num_channels=num_channels, mean_std=mean_std)


def pairs(**other):
    view = Views(ViewPreset((View(scale=(0.9, 1.0)),)), ViewArguments(image_size=16), is_grey=True)
    return PairRows({"image": view, **other}, with_duplicates=True)


# by what it makes: what makes the rows of a run, and the tensors of a batch that Trainer sends
MAKERS = {
    "views": (lambda: image_views("simclr"), set()),
    "views and masks": (lambda: image_views("dinov2"), set()),
    "a view and noise": (lambda: image_views("mae"), set()),
    "sizes": (lambda: image_views("simclr", mixed_sizes=(8, 16)), set()),
    "channels": (lambda: image_views("simclr", num_channels=5, colour_channels=(4, 1, 2)), set()),
    "sound": (lambda: AudioViews(AST), set()),
    "image and text": (lambda: pairs(text=CaptionRows(tiny.tokenizer(), 16)), {"input_ids", "attention_mask"}),
    "image and sound": (lambda: pairs(audio=ClipRows(AudioFormat(tiny_audio.hubert()))), {"input_values"}),
}


def made(name):
    """What makes the rows, the columns of six of them, and what of their batch is left on the CPU."""
    if "sound" in name:  # tests of a GPU need little else
        pytest.importorskip("soundfile")
        pytest.importorskip("torchaudio")
    make, left = MAKERS[name]
    rows, generator = make(), np.random.default_rng(0)
    columns = {
        "image": digits("train")["image"][:6], "text": [f"the digit {i}" for i in range(6)],
        "audio": [wav(generator.integers(-9999, 9999, 8000, dtype=np.int16)) for _ in range(6)],
    }  # fmt: skip
    if name == "channels":
        columns["image"] = [npy(generator.integers(0, 256, (5, 20, 20), dtype=np.uint8)) for _ in range(6)]
    block = Block(columns, keyed.key(Use.SAMPLE, 3, np.arange(6)), 9)
    return rows, (rows if isinstance(rows, PairRows) else rows.rows)(block).columns, left


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def wav(values):
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes(values.tobytes())
    return file.getvalue()
