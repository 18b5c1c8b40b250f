"""Figures by group: by hand, and where groups differ or do not."""

import numpy as np
import pytest
from labelled import Labelled

from hfssl.evaluation.groups import group_figures, group_lines, group_tables, right_rows
from hfssl.evaluation.intervals import wilson
from hfssl.evaluation.linear_probe import LinearProbeEvaluator
from hfssl.evaluation.probe_features import ProbeFeatures
from hfssl.evaluation.probes import title_of
from hfssl.evaluation.results import Result


def test_accuracy_of_each_group_and_the_gap_between_them():
    groups = np.array(["f"] * 100 + ["m"] * 50 + ["x"] * 5)
    own = np.concatenate([np.arange(100) < 90, np.arange(50) < 30, np.zeros(5)]).astype(float)
    found = group_figures({"encoder": own, "random_init": np.ones(155)}, groups)
    f, m, x = found["groups"]
    assert (f["name"], f["rows"], f["value"]) == ("f", 100, 0.9) and f["interval"] == pytest.approx(wilson(0.9, 100))
    assert m["value"] == 0.6 and m["baselines"] == {"random_init": 1.0} and not m["too_few"]
    assert x["too_few"]  # and counts for no gap
    gap = found["gap"]
    assert gap["value"] == pytest.approx(0.3) and gap["baselines"] == {"random_init": 0.0}
    # by the normal approximation
    half = 1.96 * np.sqrt(0.9 * 0.1 / 100 + 0.6 * 0.4 / 50)
    assert gap["interval"] == pytest.approx((0.3 - half, 0.3 + half), abs=0.03) and gap["p_value"] < 0.01


def test_no_gap_is_certain_where_groups_fare_alike():
    own = (np.random.default_rng(0).random(400) < 0.8).astype(float)
    found = group_figures({"encoder": own}, np.array(["a", "b"] * 200))
    assert found["gap"]["p_value"] > 0.05 and len(found["groups"]) == 2


def test_groups_that_fare_the_same_are_told_of_as_two():
    found = group_figures({"encoder": np.ones(80), "random_init": np.ones(80)}, np.array(["a", "b"] * 40))
    told = Result.from_scores(
        {0: 0.0}, protocol="linear", version=1, model="m", task="t", split="test", metric="error_gap", num_train=1,
        num_eval=80, hyperparameters={"group_column": "site"}, details=found,
    )  # fmt: skip
    [said] = group_lines([told])
    assert "of b (40 rows)" in said and "of a (40)" in said and "which is no certain difference" in said


def test_of_small_groups_there_is_no_gap():
    found = group_figures({"encoder": np.ones(40)}, np.array(["a"] * 35 + ["b"] * 5))
    assert found["gap"] is None


def test_of_a_few_persons_no_figure_is_told():
    found = group_figures({"encoder": np.ones(36), "random_init": np.ones(36)}, np.array(["a"] * 2 + ["b"] * 34))
    few, many = found["groups"]
    assert (few["rows"], few["value"], few["interval"], few["baselines"]) == (2, None, None, {}) and many["value"] == 1
    told = Result.from_scores(
        {0: 0.0}, protocol="linear", version=1, model="m", task="t", split="test", metric="error_gap", num_train=1,
        num_eval=36, hyperparameters={"group_column": "site"}, details=found,
    )  # fmt: skip
    [(_, head, rows)] = group_tables([told])
    assert rows[0] == ["a", "2", "-", "-", "-", "too few to judge"] and len(rows[1]) == len(head) == 6


def test_of_several_labels_the_share_that_is_right():
    labels = np.array([[1, 0, 1], [0, 0, 0]])
    logits = np.array([[2.0, -1.0, -1.0], [-1.0, -2.0, -3.0]])
    assert right_rows(np.zeros(2), labels, logits).tolist() == [pytest.approx(2 / 3), 1.0]
    assert right_rows(np.array([1, 0]), np.array([1, 1])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("several", [False, True])
def test_a_probe_tells_of_groups_that_it_never_sees(several):
    """Features say the class of one group only."""
    random = np.random.default_rng(0)
    number, groups = 300, np.array(["known", "noise", "noise"] * 100)

    def split():
        labels = random.integers(0, 2, number)
        x = random.normal(size=(number, 4)).astype(np.float32)
        x[:, 0] = np.where(groups == "known", 4 * labels - 2, x[:, 0])
        return x, np.stack([labels, labels], axis=1) if several else labels

    (train_x, train_y), (test_x, test_y) = split(), split()
    data = [Labelled([b""] * number, y, ["no", "yes"], fingerprint=str(i)) for i, y in enumerate((train_y, test_y))]
    features = ProbeFeatures(
        "m", {"encoder": train_x, "random_init": train_x[:, 1:]}, {"encoder": test_x, "random_init": test_x[:, 1:]}, {}
    )
    without = LinearProbeEvaluator(*data).results(features)
    data[1].compared_by = {"site": groups}
    results = LinearProbeEvaluator(*data).results(features)
    assert [each.value for each in results[:-1]] == [each.value for each in without]
    gap = results[-1]
    assert gap.metric == "error_gap" and not gap.greater_is_better and title_of(gap) == "linear probe by site"
    assert gap.value > 0.3 and gap.details["gap"]["p_value"] < 0.01 and gap.baselines["random_init"] < 0.2
    [said], [(title, head, rows)] = group_lines(results), group_tables(results)
    assert "by site: errors are " in said and "of known (100 rows)" in said and "What it does not show" in said
    assert "by site" in title and head[:3] == ["group", "test rows", "right"] and rows[1][:2] == ["noise", "200"]
