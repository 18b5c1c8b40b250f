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
from .evaluator import Evaluator
from .frozen import aligned_labels, classification_scores
from .knn import KnnEvaluator, knn_shares
from .modality import evaluation_modality
from .results import Result
from .several_labels import logits_of_shares


class OnlineKnn(Evaluator):
    r"""
    k-NN accuracy of the encoder while it trains: the same samples each time, prepared once.

    Of a run in several processes, each makes the features of its share; the figure is the same in all of them.

    Args:
        train, test ([`~hfssl.data.labelled.LabelledData`]):
            Labelled images or recordings that vote, and that are classified.
        processor:
            Image processor or feature extractor that goes with the encoder.
        pooling (`str`, *optional*):
            See `check_pooling` of the modality; what fits the architecture when left out.
        k (`int`, *optional*, defaults to `20`):
            Neighbours.
        temperature (`float`, *optional*, defaults to `0.07`):
            Of the votes, as in the protocol "knn".
        max_train_samples, max_test_samples (`int`, *optional*, default to `5000` and `1000`):
            A fixed sample of so many, of each class its share.
        batch_size (`int`, *optional*, defaults to `256`):
            Samples a forward pass.
        named (`dict[str, Any]`, *optional*):
            The flags by which `recipes/probe.py` finds the same samples.
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
        self.modality = evaluation_modality(train.modality)
        self.embedders = [
            self.modality.make_embedder(split.take(rows, name=split.name).samples, processor, None, batch_size)
            for split, rows in ((train, train_rows), (test, test_rows))
        ]

    @cached_property
    def measured_on(self) -> frozenset[bytes]:
        # all of test: the table at the end of a run is measured on it as well
        return frozenset(map(identity, self.test.samples))

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """`knn_accuracy` of the encoder of a pre-training model, where a sample may have several labels `knn_auroc`;
        nothing of the model changes."""
        encoder = model.encoder
        pooling = self.modality.check_pooling(encoder.config, self.pooling)
        device = next(encoder.parameters()).device
        size = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if size > 1 else 0
        batches = [(which, i) for which, each in enumerate(self.embedders) for i in range(each.num_batches)]
        parts = {}
        with evaluating(encoder):
            for which, i in batches[rank::size]:
                parts[which, i] = self.embedders[which](encoder, i, pooling).float().cpu()
        if size > 1:
            shares: list[Any] = [None] * size
            dist.all_gather_object(shares, parts)
            parts = {place: part for share in shares for place, part in share.items()}
        features = []
        for which, embedder in enumerate(self.embedders):
            made = torch.cat([parts[which, i] for i in range(embedder.num_batches)])
            # a run that diverges is stopped by its loss, not here
            features.append(made[np.argsort(np.concatenate(embedder.rows))].nan_to_num())
        shares = knn_shares(
            features[0], self.train_y, features[1], self.k, self.temperature, device=device
        )[self.k]  # fmt: skip
        if self.test_y.ndim == 2:
            return {"knn_auroc": classification_scores(shares, self.test_y, logits_of_shares(shares))["auroc"]}
        return {"knn_accuracy": classification_scores(shares.argmax(1), self.test_y)["accuracy"]}

    def __call__(self, encoder, processor=None, *, output_dir=None, command=None) -> list[Result]:
        """The protocol "knn" on all samples."""
        evaluator = KnnEvaluator(self.train, self.test, pooling=self.pooling, batch_size=self.batch_size)
        return evaluator(encoder, processor or self.processor, output_dir=output_dir, command=command)

    def get_config_dict(self) -> dict[str, Any]:
        return {
            "train": self.train.name, "test": self.test.name, "num_train": len(self.train_y),
            "num_test": len(self.test_y), "k": self.k, "temperature": self.temperature, "pooling": self.pooling,
        }  # fmt: skip


def stratified(labels: np.ndarray, max_rows: int, seed: int = 0) -> np.ndarray:
    """At most `max_rows` rows, of each class its share and at least one, in ascending order."""
    if len(labels) <= max_rows:
        return np.arange(len(labels))
    labels = np.zeros(len(labels), dtype=np.int64) if labels.ndim == 2 else labels
    order = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order[rows[keyed.permutation(len(rows), Use.ONLINE_KNN_SPLIT, seed, int(label))]] = np.arange(len(rows)) / len(
            rows
        )
    return np.sort(np.argsort(order, kind="stable")[:max_rows])
