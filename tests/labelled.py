"""Labelled images and small stock encoders for the tests of probes."""

import io
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import sklearn.datasets
import torch
from PIL import Image
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel, ViTConfig, ViTImageProcessor, ViTModel


@dataclass
class Labelled:
    """What a probe needs of labelled images."""

    images: list[bytes]
    labels: np.ndarray
    class_names: list[str]
    name: str = "digits"
    fingerprint: str = field(default="")
    modality: str = "image"
    compared_by: dict = field(default_factory=dict)

    def __post_init__(self):
        self.labels = np.asarray(self.labels, dtype=np.int64)
        self.fingerprint = self.fingerprint or str(hash((tuple(self.images), self.labels.tobytes())))

    @property
    def samples(self):
        return self.images

    def take(self, rows, **overrides):
        fields = {"class_names": self.class_names, "name": self.name, **overrides}
        return Labelled([self.images[row] for row in rows], self.labels[rows], **fields)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@cache
def digits(num_train=300, num_test=100):
    data = sklearn.datasets.load_digits()
    # as many of each class in each hundred
    by_class = [np.random.default_rng(0).permutation(np.flatnonzero(data.target == digit)) for digit in range(10)]
    order = np.stack([rows[: (num_train + num_test) // 10] for rows in by_class], axis=1).ravel()
    images = [png((data.images[row] * 15).astype(np.uint8)) for row in order]
    whole = Labelled(images, data.target[order], [str(digit) for digit in range(10)])
    return whole.take(np.arange(num_train)), whole.take(np.arange(num_train, num_train + num_test))


def processor(size=16):
    return ViTImageProcessor(size={"height": size, "width": size})


def vit(seed=0, **overrides):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(**{**sizes, "image_size": 16, "patch_size": 4, **overrides})
    return ViTModel(config, add_pooling_layer=False)


def resnet(seed=0):
    torch.manual_seed(seed)
    return ResNetModel(
        ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", downsample_in_first_stage=False
        )
    )


def save(model, folder, size=16):
    model.save_pretrained(folder)
    processor(size).save_pretrained(folder)
    return folder


def save_bert(folder):
    BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)).save_pretrained(
        folder
    )
    return folder
