"""The metrics against scikit-learn and scipy, and that they load without the Hub."""

import evaluate
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from hfssl.evaluation import metrics


RNG = np.random.default_rng(0)
BINARY = RNG.integers(0, 2, (2, 57))
THREE_CLASSES = RNG.integers(0, 3, (2, 57))
# quarters, so that there are ties
NUMBERS = np.round(RNG.normal(size=(2, 57)) * 4) / 4

CLASS_METRICS = {
    "accuracy": sklearn.metrics.accuracy_score,
    "f1": sklearn.metrics.f1_score,
    "matthews_correlation": sklearn.metrics.matthews_corrcoef,
}
NUMBER_METRICS = {
    "pearsonr": lambda x, y: scipy.stats.pearsonr(x, y).statistic,
    "spearmanr": lambda x, y: scipy.stats.spearmanr(x, y).statistic,
}


def compute(name, predictions, references):
    (value,) = metrics.load(name).compute(predictions=predictions, references=references).values()
    return value


@pytest.mark.parametrize("name", CLASS_METRICS)
def test_class_metrics_agree_with_scikit_learn(name):
    predictions, references = BINARY
    for given in (predictions, references, np.zeros_like(references), np.ones_like(references)):
        assert compute(name, given, references) == pytest.approx(CLASS_METRICS[name](references, given), abs=1e-12)


@pytest.mark.parametrize("name", ["accuracy", "matthews_correlation"])
def test_three_classes(name):
    predictions, references = THREE_CLASSES
    expected = CLASS_METRICS[name](references, predictions)
    assert compute(name, predictions, references) == pytest.approx(expected, abs=1e-12)


def test_f1_of_a_class_that_nobody_names_is_0():
    assert compute("f1", [0, 0], [0, 0]) == 0.0


@pytest.mark.parametrize("name", NUMBER_METRICS)
def test_correlations_agree_with_scipy(name):
    predictions, references = NUMBERS
    expected = NUMBER_METRICS[name](predictions, references)
    assert compute(name, predictions, references) == pytest.approx(expected, abs=1e-12)
    assert compute(name, references, references) == pytest.approx(1.0)


@pytest.mark.parametrize("name", NUMBER_METRICS)
def test_a_constant_correlates_with_nothing(name):
    assert compute(name, np.full(57, 2.5), NUMBERS[1]) == 0.0


@pytest.mark.parametrize("name", metrics.available())
def test_loads_from_its_folder_with_evaluate_alone(name):
    module = evaluate.load(f"{metrics.__path__[0]}/{name}")
    errors = name in ("cer", "wer")
    answers = ["a cat", "b"] if errors else [0, 1, 1]
    assert list(module.compute(predictions=answers, references=answers).values()) == [
        pytest.approx(0.0 if errors else 1.0)
    ]


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match='no metric "acuracy".*did you mean "accuracy"'):
        metrics.load("acuracy")
