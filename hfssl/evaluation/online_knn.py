"""k-NN of the encoder while it trains."""

from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist

from ..data.labelled import LabelledData
from ..data.sources import identity
from ..functional import keyed
from ..functional.keyed import Use
from ..modeling.base import evaluating
from ..modeling.pooling import check_pooling
from .evaluator import Evaluator
from .frozen import aligned_labels, classification_scores
from .image.features import encode, normalized, resized_images
from .knn import KnnEvaluator, knn_predict
from .probe_features import RAW_INPUT
from .results import Result


class OnlineKnn(Evaluator):
    r"""
    k-NN accuracy of the encoder while it trains: the same images each time, resized once and kept as `uint8`.

    Of a run in several processes, each makes the features of its share; the figure is the same in all of them.

    Args:
        train, test ([`~hfssl.data.labelled.LabelledData`]):
            Labelled images that vote, and that are classified.
        processor:
            Image processor that goes with the encoder.
        pooling (`str`, *optional*):
            See [`~hfssl.modeling.pooling.pool_features`]; what fits the architecture when left out.
        k (`int`, *optional*, defaults to `20`):
            Neighbours.
        temperature (`float`, *optional*, defaults to `0.07`):
            Of the votes, as in the protocol "knn".
        max_train_samples, max_test_samples (`int`, *optional*, default to `5000` and `1000`):
            A fixed sample of so many images, of each class its share.
        batch_size (`int`, *optional*, defaults to `256`):
            Images a forward pass.
        named (`dict[str, Any]`, *optional*):
            The flags by which `recipes/probe.py` finds the same images.
    """

    protocol: ClassVar[str] = "online_knn"
    version: ClassVar[int] = 1
    primary_metric = "knn_accuracy"

    def __init__(
        self,
        train: LabelledData,
        test: LabelledData,
        processor: Any,
        *,
        pooling: str | None = None,
        k: int = 20,
        temperature: float = 0.07,
        max_train_samples: int = 5000,
        max_test_samples: int = 1000,
        batch_size: int = 256,
        named: dict[str, Any] | None = None,
    ):
        self.named = named
        self.train, self.test, self.processor, self.pooling = train, test, processor, pooling
        self.k, self.temperature, self.batch_size = k, temperature, batch_size
        train_y, test_y = aligned_labels(train, test)
        train_rows, test_rows = stratified(train_y, max_train_samples), stratified(test_y, max_test_samples)
        self.train_y, self.test_y = train_y[train_rows], test_y[test_rows]
        pixels = [
            resized_images(processor, train.images, train_rows),
            resized_images(processor, test.images, test_rows),
        ]
        self.pixels = torch.cat(pixels)

    @cached_property
    def measured_on(self) -> frozenset[bytes]:
        # all test images: the table at the end of a run is measured on them as well
        return frozenset(map(identity, self.test.images))

    @property
    def baselines(self) -> dict[str, float]:
        """Accuracy of raw pixels by the same votes, and of the most frequent class."""
        pixels = torch.nn.functional.interpolate(self.pixels.float(), (32, 32), mode="area").flatten(1) / 255
        majority = np.full_like(self.test_y, np.bincount(self.train_y).argmax())
        return {RAW_INPUT: self._accuracy(pixels), "majority": float(np.mean(majority == self.test_y))}

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """`knn_accuracy` of the encoder of a pre-training model; nothing of the model changes."""
        encoder = model.encoder
        pooling = check_pooling(encoder.config, self.pooling)
        device = next(encoder.parameters()).device
        size = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if size > 1 else 0
        starts = range(0, len(self.pixels), self.batch_size)
        parts = {}
        with evaluating(encoder):
            for start in starts[rank::size]:
                pixel_values = normalized(self.processor, self.pixels[start : start + self.batch_size], device)
                parts[start] = encode(encoder, pixel_values, pooling).float().cpu()
        if size > 1:
            shares: list[Any] = [None] * size
            dist.all_gather_object(shares, parts)
            parts = {start: part for share in shares for start, part in share.items()}
        # a run that diverges is stopped by its loss, not here
        features = torch.cat([parts[start] for start in starts]).nan_to_num()
        return {"knn_accuracy": self._accuracy(features, device)}

    def __call__(self, encoder, processor=None, *, output_dir=None, command=None) -> list[Result]:
        """The protocol "knn" on all images."""
        evaluator = KnnEvaluator(self.train, self.test, pooling=self.pooling, batch_size=self.batch_size)
        return evaluator(encoder, processor or self.processor, output_dir=output_dir, command=command)

    def get_config_dict(self) -> dict[str, Any]:
        return {
            "train": self.train.name, "test": self.test.name, "num_train": len(self.train_y),
            "num_test": len(self.test_y), "k": self.k, "temperature": self.temperature, "pooling": self.pooling,
        }  # fmt: skip

    def _accuracy(self, features: torch.Tensor, device: torch.device | str = "cpu") -> float:
        train_x, test_x = features.split([len(self.train_y), len(self.test_y)])
        predictions = knn_predict(train_x, self.train_y, test_x, self.k, self.temperature, device=device)[self.k]
        return classification_scores(predictions, self.test_y)["accuracy"]


def stratified(labels: np.ndarray, max_rows: int, seed: int = 0) -> np.ndarray:
    """At most `max_rows` rows, of each class its share and at least one, in ascending order."""
    if len(labels) <= max_rows:
        return np.arange(len(labels))
    order = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order[rows[keyed.permutation(len(rows), Use.ONLINE_KNN_SPLIT, seed, int(label))]] = np.arange(len(rows)) / len(
            rows
        )
    return np.sort(np.argsort(order, kind="stable")[:max_rows])
