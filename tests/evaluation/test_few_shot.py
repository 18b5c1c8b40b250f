import numpy as np
import pytest
import sklearn.linear_model
from labelled import digits

from hfssl.evaluation.few_shot import FewShotEvaluator, draw_rows, few_shot_logits


LABELS = np.array([0] * 30 + [1] * 12 + [2] * 3)


def test_a_draw_has_so_many_labels_of_each_class():
    rows = draw_rows(LABELS, 5, seed=0)
    assert np.bincount(LABELS[rows]).tolist() == [5, 5, 3]
    assert np.array_equal(rows, np.unique(rows))


def test_a_draw_depends_on_its_seed_alone_and_lies_in_larger_ones():
    assert np.array_equal(draw_rows(LABELS, 5, 3), draw_rows(LABELS, 5, 3))
    assert len({tuple(draw_rows(LABELS, 5, seed)) for seed in range(10)}) == 10
    assert set(draw_rows(LABELS, 1, 3)) <= set(draw_rows(LABELS, 5, 3))


def test_the_classifier_is_scikit_learns_with_c_of_1():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 8))
    train_y, test_y = np.arange(60) % 3, np.arange(90) % 3
    train_x, test_x = (centres[y] + rng.normal(size=(len(y), 8)) for y in (train_y, test_y))
    rows = draw_rows(train_y, 5, 0)
    unit = [x - train_x.mean(0) for x in (train_x, test_x)]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in unit]
    reference = sklearn.linear_model.LogisticRegression(C=1.0, tol=1e-8).fit(unit[0][rows], train_y[rows])
    found = few_shot_logits(train_x, train_y, test_x, shots=5, seed=0).argmax(1)
    assert np.mean(found == reference.predict(unit[1])) > 0.98


def test_figures_are_over_draws_and_short_classes_are_named(caplog):
    train, test = digits()
    short = train.take(np.concatenate([np.flatnonzero(train.labels != 3), np.flatnonzero(train.labels == 3)[:2]]))
    evaluator = FewShotEvaluator(short, test, shots=(1, 5), draws=4)
    one, five = evaluator.predict(np.eye(10)[short.labels], short.labels, np.eye(10)[test.labels])
    assert (one.variant, one.num_train, one.details) == ({"shots": 1}, 10, {})
    assert (five.variant, five.num_train) == ({"shots": 5}, 9 * 5 + 2)
    assert five.details == {"classes_with_fewer_labels": 1}
    assert list(five.predictions) == [0, 1, 2, 3]
    # features that are the class
    assert all(np.array_equal(rows, test.labels) for rows in one.predictions.values())


def test_what_all_features_have_in_common_hides_nothing():
    train, test = digits()
    x = [np.eye(10)[labels] for labels in (train.labels, test.labels)]
    found = few_shot_logits(1e-3 * x[0] + 5.0, train.labels, 1e-3 * x[1] + 5.0, shots=1).argmax(1)
    assert np.array_equal(found, test.labels)


def test_needs_a_draw():
    with pytest.raises(ValueError, match="a label and a draw at least"):
        FewShotEvaluator(*digits(), draws=0)
