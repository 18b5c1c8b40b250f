"""Recordings as fine-tuning needs them: cut at a length, padded to the longest of a batch."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from ...functional import keyed
from ...functional.keyed import Use
from ..finetune_rows import LEFT_OUT, KeyedOrder, label_of, readable
from ..finetune_settings import FinetuneSettings
from ..probe_features import ENCODER, RANDOM_INIT
from .clips import KEPT_BYTES, Clips
from .encoder import AudioEncoder, clip_limits, make_inputs, pads_exactly


if TYPE_CHECKING:
    from ...data.labelled import LabelledData


class AudioFinetuning:
    """A [`~hfssl.evaluation.modality.Finetuning`] of recordings.

    Of one that is longer than `max_seconds`, training takes another part in each epoch, and test the middle.
    """

    task = "audio-classification"
    eval_batch_size = 32

    def __init__(
        self, source: str, processor: Any, train: "LabelledData", test: "LabelledData", settings: FinetuneSettings
    ):
        self.encoder = AudioEncoder(source, processor)
        self.processor = self.encoder.processor
        self.splits, self.settings = {"train": train, "test": test}, settings
        models = {ENCODER: self.encoder.load(), RANDOM_INIT: self.encoder.random_init()}
        self.has_batch_norm = any(isinstance(module, _BatchNorm) for module in models[ENCODER].modules())
        self.digests = {kind: self.encoder.digest(model) for kind, model in models.items()}
        # an encoder that counts padding as sound was made to be padded without being told: so it is used later
        self.pads_exactly = pads_exactly(models[ENCODER], self.processor)
        self.least, most = clip_limits(self.processor, self.encoder.config)
        self.most = min(most, round(settings.max_seconds * self.encoder.sampling_rate))
        self._clips: dict[str, Clips] = {}

    def classifier(self, class_names: list[str], seed: int, random_init: bool) -> PreTrainedModel:
        return self.encoder.classifier(class_names, seed, random_init=random_init)

    def training_rows(self, labels: np.ndarray, rows: np.ndarray, length: int, seed: int) -> Dataset:
        clips = self.clips("train")
        return TrainingClips(clips, labels, readable(rows, clips.bad), length, seed, self.most)

    def test_rows(self, labels: np.ndarray) -> Dataset:
        return _TestClips(self.clips("test"), labels, self.most)

    def collator(self, model: PreTrainedModel) -> Callable:
        return Collator(self.processor, model, self.pads_exactly)

    def clips(self, split: str) -> Clips:
        """The waveforms of a split."""
        if split not in self._clips:
            data = self.splits[split]
            self._clips[split] = Clips(
                data.samples, self.encoder.sampling_rate, least=self.least, name=data.name,
                most_bytes=KEPT_BYTES // len(self.splits), are=LEFT_OUT if split == "train" else None,
            )  # fmt: skip
        return self._clips[split]


class _TestClips(Dataset):
    def __init__(self, clips: Sequence[np.ndarray], labels: Any, most: int):
        self.clips, self.labels, self.most = clips, labels, most

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        clip = self.clips[row]
        start = max(len(clip) - self.most, 0) // 2
        return {"clip": clip[start : start + self.most], "labels": self.labels[row]}


class TrainingClips(Dataset):
    """Epoch after epoch in one sequence: what comes at a position depends on it and on the seed alone."""

    def __init__(self, clips: Sequence[np.ndarray], labels: Any, rows: np.ndarray, length: int, seed: int, most: int):
        self.clips, self.labels, self.length, self.seed, self.most = clips, labels, length, seed, most
        self.order = KeyedOrder(rows, seed)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, row = self.order[position]
        clip = self.clips[row]
        u = float(keyed.uniform(keyed.key(Use.FINETUNE_AUGMENTATION, self.seed, epoch, row)))
        start = int(u * (max(len(clip) - self.most, 0) + 1))
        return {"clip": clip[start : start + self.most], "labels": self.labels[row]}


class Collator:
    """Makes batches of waveforms and their classes."""

    def __init__(self, processor: Any, model: PreTrainedModel, padded: bool):
        self.processor, self.model, self.padded = processor, model, padded

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = make_inputs(self.model, self.processor, [item["clip"] for item in items], self.padded)
        return {**batch, "labels": torch.tensor([label_of(item["labels"]) for item in items])}
