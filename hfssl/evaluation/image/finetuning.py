"""Images as fine-tuning needs them: resized once, shifted and mirrored by keys, normalised for the encoder."""

import math
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from ...functional import keyed
from ...functional.keyed import Use
from ...modeling.image_processing import processed_channels
from ..extraction import check_damage
from ..finetune_rows import LEFT_OUT, KeyedOrder, label_of, readable
from ..finetune_settings import FinetuneSettings
from ..probe_features import ENCODER, RANDOM_INIT
from .encoder import VisionEncoder
from .features import ImageReader, normalized, range_for, resized_images
from .sizes import size_arguments


if TYPE_CHECKING:
    from ...data.labelled import LabelledData

# resized images up to this many bytes are kept in memory, more in a file
_MAX_KEPT_BYTES = 2 << 30


class ImageFinetuning:
    """A [`~hfssl.evaluation.modality.Finetuning`] of images."""

    task = "image-classification"
    eval_batch_size = 256

    def __init__(
        self, source: str, processor: Any, train: "LabelledData", test: "LabelledData", settings: FinetuneSettings
    ):
        self.encoder = VisionEncoder(source, processor)
        self.processor = self.encoder.processor
        self.splits, self.settings = {"train": train, "test": test}, settings
        models = {ENCODER: self.encoder.load(), RANDOM_INIT: self.encoder.random_init()}
        self.has_batch_norm = any(isinstance(module, _BatchNorm) for module in models[ENCODER].modules())
        self.digests = {kind: self.encoder.digest(model) for kind, model in models.items()}
        self._images: dict[str, Images] = {}

    def classifier(self, class_names: list[str], seed: int, random_init: bool) -> PreTrainedModel:
        return self.encoder.classifier(class_names, seed, random_init=random_init)

    def training_rows(self, labels: np.ndarray, rows: np.ndarray, length: int, seed: int) -> Dataset:
        images = self._pixels("train")
        return TrainingImages(images, labels, readable(rows, images.bad), length, seed, self.settings)

    def test_rows(self, labels: np.ndarray) -> Dataset:
        return _TestImages(self._pixels("test"), labels)

    def collator(self, model: PreTrainedModel) -> "_Collator":
        return _Collator(self.processor, model)

    def _pixels(self, split: str) -> "Images":
        if split not in self._images:
            data, are = self.splits[split], LEFT_OUT if split == "train" else None
            self._images[split] = Images(self.processor, data.images, data.name, are)
        return self._images[split]


class Images:
    """Resized images by row, `uint8` of shape `(3, height, width)`: in memory, or in a file where they are many.

    Args:
        processor (`BaseImageProcessor`), images (`Sequence[bytes]`):
            See [`~hfssl.evaluation.image.features.resized_images`].
        name (`str`, *optional*), are (`str`, *optional*):
            Of the data, and what damaged ones are, see [`~hfssl.evaluation.extraction.check_damage`].

    Attributes:
        bad (`list[int]`):
            Rows of damaged ones, which are black.

    Raises:
        EvaluationError: if too many are damaged.
    """

    def __init__(self, processor: Any, images: Any, name: str = "the data", are: str | None = None):
        self.bad: list[int] = []
        shape = (len(images), *resized_images(processor, images, rows=[0]).shape[1:])
        size = math.prod(shape)
        if size <= _MAX_KEPT_BYTES:
            self.pixels = torch.empty(shape, dtype=torch.uint8)
        else:
            self.file = tempfile.NamedTemporaryFile(prefix="hfssl-images-")  # noqa: SIM115 - as long as it is mapped
            self.pixels = torch.from_file(self.file.name, shared=True, size=size, dtype=torch.uint8).view(shape)
        for start in range(0, len(images), 1024):
            rows = range(start, min(start + 1024, len(images)))
            self.pixels[rows.start : rows.stop] = resized_images(processor, images, rows, bad=self.bad)
        reader = ImageReader(range_for(processor, images), processed_channels(processor))
        check_damage(images, self.bad, name, reader, are=are)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.pixels[row]


class TrainingImages(Dataset):
    """Epoch after epoch in one sequence: what comes at a position depends on it and on the seed alone."""

    def __init__(
        self, images: Images, labels: np.ndarray, rows: np.ndarray, length: int, seed: int, settings: FinetuneSettings
    ):
        self.images, self.labels, self.length = images, labels, length
        self.seed, self.shift, self.flip = seed, settings.shift, settings.flip
        self.order = KeyedOrder(rows, seed)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, row = self.order[position]
        u = keyed.uniform(keyed.key(Use.FINETUNE_AUGMENTATION, self.seed, epoch, row, np.arange(3)))
        pixels = self.images[row]
        if self.shift:
            for axis in (1, 2):
                size = pixels.shape[axis]
                by = round((2 * u[axis - 1] - 1) * self.shift * size)
                # what comes in at the border repeats it
                pixels = pixels.index_select(axis, (torch.arange(size) + by).clamp(0, size - 1))
        if self.flip and u[2] < 0.5:
            pixels = pixels.flip(-1)
        return {"pixel_values": pixels, "labels": label_of(self.labels[row])}


class _TestImages(Dataset):
    def __init__(self, images: Images, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"pixel_values": self.images[row], "labels": label_of(self.labels[row])}


class _Collator:
    def __init__(self, processor: Any, model: PreTrainedModel):
        self.processor, self.model = processor, model

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        pixel_values = normalized(self.processor, torch.stack([item["pixel_values"] for item in items]))
        labels = torch.tensor([item["labels"] for item in items])
        size = size_arguments(self.model, *pixel_values.shape[-2:])
        return {"pixel_values": pixel_values, "labels": labels, **size}
