"""Which samples are worth a look: nearest neighbours, those that are taken for another class, those like no other."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..functional import keyed
from ..functional.keyed import Use
from .knn import knn_shares
from .probe_features import ENCODER, ProbeFeatures


# Samples of test with their neighbours, those taken for another class, those like no other; training samples that
# vote.
QUERIES, NEAREST, MOST_MISTAKES, MOST_OUTLIERS, VOTES = 8, 6, 24, 16, 20
# Training samples that say how usual a sample of test is.
_USUAL = 10


@dataclass
class Gallery:
    """What is shown of a probe.

    Args:
        neighbours (`list[tuple[int, list[int]]]`):
            Rows of test, and the rows of train with the nearest features, the nearest first.
        mistakes (`list[tuple[int, int, float]]`):
            Rows of test, the class that k-NN says and its share of the votes.
        outliers (`list[tuple[int, float]]`):
            Rows of test and their mean cosine to the nearest rows of train, the least first.
    """

    neighbours: list[tuple[int, list[int]]]
    mistakes: list[tuple[int, int, float]]
    outliers: list[tuple[int, float]]


def gallery_of(features: ProbeFeatures, train_y: np.ndarray, test_y: np.ndarray) -> Gallery:
    """Look for all of it among the features of an encoder, with one label a row; the same for the same features."""
    train_x, test_x = features.train[ENCODER], features.test[ENCODER]
    chosen = keyed.permutation(len(test_y), Use.QUERY_IMAGES)
    queries = chosen[:QUERIES]
    nearest = nearest_rows(train_x, test_x[queries], NEAREST)
    votes = knn_shares(train_x, train_y, test_x, VOTES)[VOTES]
    said = votes.argmax(1)
    # in an order that shows some of each class
    wrong = [row for row in chosen.tolist() if said[row] != test_y[row]][:MOST_MISTAKES]
    # what all samples have in common would be most of it
    mean = train_x.mean(0)
    usual = _mean_cosine(train_x - mean, test_x - mean)
    odd = np.argsort(usual, kind="stable")[: min(MOST_OUTLIERS, max(len(test_y) // 10, 1))]
    return Gallery(
        list(zip(queries.tolist(), nearest.tolist(), strict=True)),
        [(row, int(said[row]), float(votes[row, said[row]])) for row in wrong],
        [(int(row), float(usual[row])) for row in odd],
    )


def nearest_rows(train_x: np.ndarray, query_x: np.ndarray, num: int) -> np.ndarray:
    """Rows of the `num` most similar training features of each query, by cosine, of shape `(num_queries, num)`."""
    train, query = (F.normalize(torch.as_tensor(x, dtype=torch.float32), dim=1) for x in (train_x, query_x))
    return (query @ train.T).topk(min(num, len(train)), dim=1).indices.numpy()


def _mean_cosine(train_x: np.ndarray, test_x: np.ndarray) -> np.ndarray:
    train, test = (F.normalize(torch.as_tensor(x, dtype=torch.float32), dim=1) for x in (train_x, test_x))
    num = min(_USUAL, len(train))
    return torch.cat([(some @ train.T).topk(num, dim=1).values.mean(1) for some in test.split(1024)]).numpy()
