"""The linear probe against scikit-learn's optimum, and that nothing is chosen by looking at test."""

import numpy as np
import pytest
import sklearn.linear_model
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from hfssl.evaluation import EvaluationError, linear_probe
from hfssl.evaluation.linear_probe import (
    DEFAULT_STRENGTH,
    LogisticRegression,
    choose_strength,
    held_out_rows,
    linear_probe_predict,
)


def blobs(num, dim=8, classes=4, seed=0, spread=1.2):
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % classes
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    return (centres[labels] + spread * rng.normal(size=(num, dim))).astype(np.float32), labels


def sklearn_fit(x, y, strength):
    return sklearn.linear_model.LogisticRegression(C=1 / (len(x) * strength), tol=1e-9, max_iter=5000).fit(x, y)


@pytest.mark.parametrize("strength", [1.0, 1e-2, 1e-4])
def test_the_optimum_is_that_of_scikit_learn(strength):
    (x, y), (test_x, _) = blobs(150), blobs(80, seed=1)
    scaler = StandardScaler().fit(x)
    reference = sklearn_fit(scaler.transform(x), y, strength)
    model = LogisticRegression(strength, tolerance=1e-6).fit(x, y)
    # biases are free up to a constant
    ours = model.decision(test_x) - model.decision(test_x).mean(1, keepdims=True)
    theirs = reference.decision_function(scaler.transform(test_x))
    np.testing.assert_allclose(ours, theirs - theirs.mean(1, keepdims=True), atol=2e-2 * np.abs(theirs).max())
    log_probability = np.log(reference.predict_proba(scaler.transform(x))[np.arange(150), y])
    loss = -log_probability.mean() + strength / 2 * (reference.coef_**2).sum()
    assert model.loss == pytest.approx(loss, rel=1e-5)
    assert np.array_equal(model.predict(x), reference.predict(scaler.transform(x)))


def test_small_differences_are_fitted_all_the_same():
    x, y = blobs(150)
    small = 0.01 * x
    # of so small features, a weight has to be as much larger for the same logits
    same = LogisticRegression(1e-6, standardize=False).fit(small, y)
    large = LogisticRegression(1e-2, standardize=False).fit(x, y)
    assert same.loss == pytest.approx(large.loss, rel=1e-3)


def test_two_classes_of_any_name():
    x, y = blobs(60, classes=2)
    model = LogisticRegression(1e-2).fit(x, np.where(y == 1, 7, 3))
    assert set(model.predict(x).tolist()) == {3, 7}
    assert np.mean(model.predict(x) == np.where(y == 1, 7, 3)) > 0.85


def test_where_the_search_begins_does_not_matter():
    x, y = blobs(150)
    far = LogisticRegression(10.0).fit(x, y)
    cold, warm = (LogisticRegression(1e-3, tolerance=1e-6).fit(x, y, start) for start in (None, far))
    assert warm.loss == pytest.approx(cold.loss, rel=1e-6)


def test_a_dimension_that_never_changes_is_no_obstacle():
    x, y = blobs(60)
    constant = np.full((60, 2), [0.1, 0.0], dtype=np.float32)
    with_constant = np.concatenate([x, constant], axis=1)
    ours = LogisticRegression(1e-2, tolerance=1e-6).fit(with_constant, y)
    assert np.isfinite(ours.weights).all()
    assert ours.loss == pytest.approx(LogisticRegression(1e-2, tolerance=1e-6).fit(x, y).loss, rel=1e-5)


def test_the_strength_is_chosen_on_a_part_of_train_alone():
    (x, y), (test_x, _) = blobs(120, spread=3.0), blobs(60, seed=1)
    held_out = held_out_rows(y)
    chosen = choose_strength(x[~held_out], y[~held_out], x[held_out], y[held_out])
    cross_entropy = {}
    for strength in linear_probe.STRENGTHS:
        scaler = StandardScaler().fit(x[~held_out])
        model = sklearn_fit(scaler.transform(x[~held_out]), y[~held_out], strength)
        cross_entropy[strength] = log_loss(y[held_out], model.predict_proba(scaler.transform(x[held_out])))
    assert chosen.strength == min(cross_entropy, key=cross_entropy.get)
    assert min(linear_probe.STRENGTHS) < chosen.strength < max(linear_probe.STRENGTHS)
    # neither other test rows nor fewer of them change anything
    for rows in (test_x, test_x[::-1], test_x[:1], 100 * test_x):
        predictions, strength = linear_probe_predict(x, y, rows)
        assert strength == chosen.strength
    predictions, _ = linear_probe_predict(x, y, test_x)
    assert np.array_equal(linear_probe_predict(x, y, test_x[5:6])[0], predictions[5:6])


def test_all_of_train_is_fitted_in_the_end():
    (x, y), (test_x, _) = blobs(120), blobs(300, seed=1)
    predictions, strength = linear_probe_predict(x, y, test_x)
    scaler = StandardScaler().fit(x)
    reference = sklearn_fit(scaler.transform(x), y, strength).predict(scaler.transform(test_x))
    assert np.mean(predictions == reference) > 0.995


def test_a_fifth_of_each_class_is_held_out():
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    held_out = held_out_rows(labels)
    assert np.bincount(labels[held_out], minlength=4).tolist() == [10, 2, 1, 0]
    assert np.array_equal(held_out, held_out_rows(labels))


def test_one_label_a_class_takes_the_default():
    x, y = blobs(4)
    predictions, strength = linear_probe_predict(x, y, x)
    assert strength == DEFAULT_STRENGTH
    assert np.array_equal(predictions, y)


def test_what_cannot_be_fitted_is_explained(caplog):
    x, y = blobs(20)
    with pytest.raises(EvaluationError, match="above 0, got 0"):
        LogisticRegression(0.0).fit(x, y)
    with pytest.raises(EvaluationError, match=r"equal dim, got \(20, 8\) and \(20, 7\)"):
        linear_probe_predict(x, y, x[:, :7])
    LogisticRegression(1e-6, max_iterations=1).fit(x, y)
    assert "has not converged after" in caplog.text
