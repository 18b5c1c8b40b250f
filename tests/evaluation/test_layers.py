"""Which layer of an encoder knows the labels, and what all of them know together."""

import numpy as np
import pytest
from labelled import Labelled

from hfssl.evaluation import EvaluationError
from hfssl.evaluation.layers import WEIGHTED_SUM, LayersEvaluator, LayersRegression
from hfssl.evaluation.linear_probe import LogisticRegression
from hfssl.evaluation.probe_features import ProbeFeatures


def knowing(labels, of_layers, seed, dim=2):
    """Noise, in which some layers have a bit of the label in a dimension: of 4 classes, bit 0 or bit 1."""
    x = np.random.default_rng(seed).standard_normal((len(labels), 4, dim)).astype(np.float32)
    for layer, bit in of_layers.items():
        x[:, layer, bit] = 3.0 * ((labels >> bit) & 1) + 0.3 * x[:, layer, bit]
    return x


LABELS = np.arange(240) % 4


@pytest.fixture(scope="module")
def splits():
    split = Labelled([b""] * 240, LABELS, list("abcd"), modality="audio")
    return split, split


@pytest.fixture(scope="module")
def results(splits):
    """Of an encoder whose layers 1 and 2 know a bit each."""
    of_layers = {1: 0, 2: 1}
    layers = {kind: tuple(knowing(LABELS, known, seed) for seed in (0, 1)) for kind, known in (
        ("encoder", of_layers), ("random_init", {})
    )}  # fmt: skip
    train = {kind: layers[kind][0][:, -1] for kind in layers} | {"mfcc_statistics": LABELS[:, None].astype(np.float32)}
    test = {kind: layers[kind][1][:, -1] for kind in layers} | {"mfcc_statistics": LABELS[:, None].astype(np.float32)}
    return LayersEvaluator(*splits).results(ProbeFeatures("m", train, test, {"dim": 2}, layers))


def test_a_figure_for_each_layer_beside_its_baselines_and_one_for_all_together(results):
    values = {result.hyperparameters["layer"]: result.value for result in results}
    assert list(values) == [0, 1, 2, 3, WEIGHTED_SUM]
    # a bit each: two of four classes are told apart, and together all
    assert values[0] < 0.35 and values[3] < 0.35
    assert 0.4 < values[1] < 0.6 and 0.4 < values[2] < 0.6
    assert values[WEIGHTED_SUM] > 0.1 + max(values[1], values[2])
    assert len({result.baselines["mfcc_statistics"] for result in results}) == 1
    assert all(result.baselines["random_init"] < 0.35 for result in results)
    weights = results[-1].details["weights"]
    assert sum(weights) == pytest.approx(1, abs=1e-4) and min(weights[1:3]) > max(weights[0], weights[3])


def test_of_one_layer_it_is_the_linear_probe():
    x = knowing(LABELS, {1: 0}, 0)[:, 1:2]
    alone = LogisticRegression(0.1).fit(x[:, 0], LABELS)
    layers = LayersRegression(0.1).fit(x, LABELS)
    assert layers.loss == pytest.approx(alone.loss, abs=1e-5) and layers.layer_weights == [1.0]
    np.testing.assert_allclose(layers.decision(x), alone.decision(x[:, 0]), atol=1e-2)


def test_a_picture_shows_them(splits, results, tmp_path):
    LayersEvaluator(*splits).draw(results, tmp_path / "assets")
    assert (tmp_path / "assets" / "layers.png").stat().st_size > 5000


def test_samples_without_features_of_layers_are_refused():
    split = Labelled([b""] * 240, LABELS, list("abcd"))
    with pytest.raises(EvaluationError, match="layers is for encoders of recordings"):
        LayersEvaluator(split, split)
