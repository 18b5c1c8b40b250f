"""Texts as fine-tuning needs them: tokenised once, cut off at a length, padded to the longest of a batch."""

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from ...machine import process_state
from ..finetune_rows import KeyedOrder, label_of
from ..finetune_settings import FinetuneSettings
from ..probe_features import ENCODER, RANDOM_INIT
from .encoder import TextEncoder


if TYPE_CHECKING:
    from ...data.labelled import LabelledData


class TextFinetuning:
    """A [`~hfssl.evaluation.modality.Finetuning`] of texts."""

    task = "text-classification"
    eval_batch_size = 256
    has_batch_norm = False  # of no model for text

    def __init__(
        self,
        source: str,
        processor: PreTrainedTokenizerBase | None,
        train: "LabelledData",
        test: "LabelledData",
        settings: FinetuneSettings,
    ):
        self.encoder = TextEncoder(source, settings.max_length)
        self.processor = self.encoder.tokenizer
        self.splits = {"train": train, "test": test}
        tokenizer = repr(sorted(self.processor.get_vocab().items())).encode()
        self.digests = {
            kind: hashlib.sha256(tokenizer + self.encoder.digest(kind == RANDOM_INIT).encode()).hexdigest()
            for kind in (ENCODER, RANDOM_INIT)
        }
        self._tokens: dict[str, list[dict[str, Any]]] = {}

    def classifier(self, class_names: list[str], seed: int, random_init: bool) -> PreTrainedModel:
        # on a CPU, the backward of SDPA is the slower one at such lengths
        kwargs = {"attn_implementation": "eager"} if process_state().device.type == "cpu" else {}
        return self.encoder.load(class_names, seed, random_init, **kwargs)

    def training_rows(self, labels: np.ndarray, rows: np.ndarray, length: int, seed: int) -> Dataset:
        return _TrainingTexts(self._encoded("train"), labels, rows, length, seed)

    def test_rows(self, labels: np.ndarray) -> Dataset:
        return _Texts(self._encoded("test"), labels)

    def collator(self, model: PreTrainedModel) -> Callable:
        return DataCollatorWithPadding(self.processor)

    def _encoded(self, split: str) -> list[dict[str, Any]]:
        if split not in self._tokens:
            self._tokens[split] = self.encoder.tokens(self.splits[split].samples)
        return self._tokens[split]


class _Texts(Dataset):
    def __init__(self, tokens: list[dict[str, Any]], labels: np.ndarray):
        self.tokens, self.labels = tokens, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**self.tokens[row], "labels": label_of(self.labels, row)}


class _TrainingTexts(_Texts):
    """Epoch after epoch in one sequence: what comes at a position depends on it and on the seed alone."""

    def __init__(self, tokens: list[dict[str, Any]], labels: np.ndarray, rows: np.ndarray, length: int, seed: int):
        super().__init__(tokens, labels)
        self.length, self.order = length, KeyedOrder(rows, seed)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> dict[str, Any]:
        return super().__getitem__(self.order[position][1])
