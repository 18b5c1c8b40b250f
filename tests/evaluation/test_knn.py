"""k-NN against a loop that does what the protocol says, row by row."""

import math

import numpy as np
import pytest
import torch

from hfssl.evaluation import EvaluationError, knn
from hfssl.evaluation.knn import knn_predict


def blobs(num, dim=6, classes=3, seed=0, spread=1.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, num)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    return (centres[labels] + spread * rng.normal(size=(num, dim))).astype(np.float32), labels


def naive(train_x, train_y, test_x, k, temperature):
    predictions = []
    for x in test_x.astype(np.float64):
        similarity = [float(x @ t / np.linalg.norm(x) / np.linalg.norm(t)) for t in train_x.astype(np.float64)]
        nearest = sorted(range(len(train_x)), key=lambda row: -similarity[row])[:k]
        votes = [0.0] * (max(train_y) + 1)
        for row in nearest:
            votes[train_y[row]] += math.exp(similarity[row] / temperature)
        predictions.append(votes.index(max(votes)))
    return np.array(predictions)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_the_naive_reference(temperature, monkeypatch):
    # parts that do not divide the test rows
    monkeypatch.setattr(knn, "_CHUNK", 7 * 90)
    (train_x, train_y), (test_x, _) = blobs(90), blobs(40, seed=1)
    found = knn_predict(train_x, train_y, test_x, (1, 5, 20), temperature)
    for k in (1, 5, 20):
        assert np.array_equal(found[k], naive(train_x, train_y, test_x, k, temperature)), k
    assert not np.array_equal(found[1], found[20])


def test_more_neighbours_than_rows_are_all_rows():
    (train_x, train_y), (test_x, _) = blobs(30), blobs(20, seed=1)
    found = knn_predict(train_x, train_y, test_x, (30, 200))
    assert np.array_equal(found[30], found[200])


def test_the_order_of_the_rows_never_matters_even_where_many_are_equally_near():
    rng = np.random.default_rng(0)
    # signs only: many similarities are equal, and exact in 32 bits
    train_x = rng.choice([-1.0, 1.0], (120, 4)).astype(np.float32)
    train_y, test_x = rng.integers(0, 4, 120), rng.choice([-1.0, 1.0], (50, 4)).astype(np.float32)
    first = knn_predict(train_x, train_y, test_x, 5)[5]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(120)
        assert np.array_equal(knn_predict(train_x[order], train_y[order], test_x, 5)[5], first)


def test_equal_features_give_the_most_frequent_class():
    train_y = np.array([0, 1, 1, 1, 2, 2])
    assert set(knn_predict(np.ones((6, 3)), train_y, np.ones((4, 3)), 2)[2].tolist()) == {1}


def test_the_length_of_a_feature_says_nothing():
    (train_x, train_y), (test_x, _) = blobs(60), blobs(30, seed=1)
    scale = np.random.default_rng(3).uniform(0.1, 9.0, (60, 1)).astype(np.float32)
    assert np.array_equal(
        knn_predict(train_x, train_y, test_x, 7)[7], knn_predict(train_x * scale, train_y, test_x, 7)[7]
    )


def test_autocast_around_it_changes_nothing():
    (train_x, train_y), (test_x, _) = blobs(300, dim=64), blobs(200, dim=64, seed=1)
    expected = knn_predict(train_x, train_y, test_x, 20)[20]
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(knn_predict(train_x, train_y, test_x, 20)[20], expected)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"test_x": np.ones((4, 5))}, r"equal dim, got .*6.* and .*5"),
        ({"train_y": np.zeros(29, dtype=int)}, "a label for each feature, got 29 for 30"),
        ({"train_y": np.ones(30, dtype=int)}, "two classes or more, got those of one"),
        ({"k": 0}, "k ≥ 1"),
    ],
)
def test_what_cannot_be_classified_is_explained(change, message):
    train_x, train_y = blobs(30)
    with pytest.raises(EvaluationError, match=message):
        knn_predict(**{"train_x": train_x, "train_y": train_y, "test_x": train_x, "k": 5} | change)
