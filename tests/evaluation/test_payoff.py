"""Up to how many labels pre-training pays: by hand, and beside scipy's test."""

from dataclasses import replace

import pytest
from scipy.stats import ttest_ind

from hfssl.evaluation.label_efficiency import FINETUNE, LINEAR
from hfssl.evaluation.payoff import payoff, payoff_line
from hfssl.evaluation.probe_features import RANDOM_INIT
from hfssl.evaluation.results import Result


def result(
    num_train,
    encoder,
    scratch,
    method=FINETUNE,
    metric="accuracy",
    protocol="label_efficiency",
    task="t",
    num_eval=1000,
    **more,
):
    return Result.from_scores(
        dict(enumerate(encoder)), {RANDOM_INIT: dict(enumerate(scratch))}, protocol=protocol, version=1, model="m",
        task=task, split="test", metric=metric, num_train=num_train, num_eval=num_eval,
        hyperparameters={"method": method, "fraction": num_train / 1000, **more},
    )  # fmt: skip


FEW = result(10, [0.50, 0.52, 0.54], [0.30, 0.31, 0.29])
SOME = result(100, [0.70, 0.71, 0.72], [0.60, 0.62, 0.61])
MANY = result(1000, [0.90, 0.91, 0.92], [0.90, 0.93, 0.91])
WORSE = result(1000, [0.80, 0.81, 0.82], [0.90, 0.93, 0.91])
HARMED = result(10, [0.30, 0.31, 0.29], [0.50, 0.52, 0.54])
UNCLEAR = result(10, [0.1, 0.9, 0.5], [0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    "results, said",
    [
        ([FEW, SOME, MANY], "With 100 labels or fewer, pre-training pays; with 1,000 it is not shown to."),
        ([MANY, SOME, FEW], "With 100 labels or fewer, pre-training pays; with 1,000 it is not shown to."),
        ([FEW, SOME], "With 100 labels or fewer, pre-training pays; there were no more."),
        (
            [FEW, WORSE],
            "With 10 labels or fewer, pre-training pays; with 1,000 it is not shown to. With 1,000 labels it harms: a "
            "start from scratch is better.",
        ),
        (
            [HARMED, SOME, WORSE],
            "With 100 labels pre-training pays; with 10 it does not. With 10 and 1,000 labels it harms: a start from "
            "scratch is better.",
        ),
        ([UNCLEAR, SOME, MANY], "With 100 labels pre-training pays; with 10 no difference is certain."),
        ([UNCLEAR, MANY], "Pre-training is not shown to pay for these labels, however many of them are used."),
        (
            [UNCLEAR, WORSE],
            "Pre-training is not shown to pay for these labels, however many of them are used. With 1,000 labels it "
            "harms: a start from scratch is better.",
        ),
    ],
)
def test_the_sentence(results, said):
    line = payoff_line(results)
    assert line.startswith(said + " Fine-tuned against trained from scratch, with ") and line.endswith("by 3 seeds.")


def test_the_figures_stand_beside_it():
    assert "100 labels: 0.710 against 0.610 (± 0.0" in payoff_line([FEW, SOME, MANY])


@pytest.mark.parametrize("each", [FEW, SOME, MANY, WORSE, HARMED, UNCLEAR])
def test_a_difference_counts_where_welch_s_test_says_so(each):
    """Of the deviations alone: the scores of from scratch are not kept by seed."""
    [point] = payoff([replace(each, num_eval=10**9)])
    scratch = {10: [0.30, 0.31, 0.29], 100: [0.60, 0.62, 0.61], 1000: [0.90, 0.93, 0.91]}[each.num_train]
    scratch = [0.1, 0.2, 0.3] if each is UNCLEAR else [0.50, 0.52, 0.54] if each is HARMED else scratch
    test = ttest_ind(each.per_seed, scratch, equal_var=False)
    assert point.pays == (test.pvalue < 0.05 and each.value > point.scratch)
    assert point.harms == (test.pvalue < 0.05 and each.value < point.scratch)
    low, high = test.confidence_interval(0.95)
    assert point.certain == pytest.approx((high - low) / 2)


def test_other_figures_do_not_count():
    assert payoff([result(10, [1, 1], [0, 0], LINEAR)]) == []
    assert payoff_line([result(10, [1, 1], [0, 0], protocol="finetune")]) == ""
    assert len(payoff([FEW, result(10, [1, 1, 1], [0, 0, 0], metric="macro_f1")])) == 1
    assert len(payoff([result(10, [1, 1, 1], [0, 0, 0], metric="auroc")])) == 1


@pytest.mark.parametrize("other", [{"task": "other labels"}, {"epochs": 2.0}])
def test_of_several_measurements_the_last_one_counts(other):
    before = result(5, [0.1, 0.2, 0.3], [0.1, 0.2, 0.3], **other)
    assert payoff([before, FEW, SOME]) == payoff([FEW, SOME])
    assert [point.num_labels for point in payoff([FEW, SOME, before])] == [5]


def test_figures_that_are_no_numbers_do_not_count():
    none = replace(result(10, [0.5], [0.4]), value=None)
    assert payoff([none]) == [] and payoff_line([none]) == ""


def test_a_single_seed_says_so():
    line = payoff_line([result(10, [0.5], [0.4])])
    assert line.startswith("With 10 labels or fewer") and line.endswith("by a single seed, which says little.")
    assert "is not shown to pay" in payoff_line([result(10, [0.5], [0.4995])])


def test_of_few_test_samples_nothing_is_certain_however_alike_the_seeds_are():
    alike = {"encoder": [0.75] * 3, "scratch": [0.625] * 3}
    assert "is not shown to pay" in payoff_line([result(10, **alike, num_eval=16)])
    assert payoff_line([result(10, **alike)]).startswith("With 10 labels or fewer, pre-training pays")


def test_two_seeds_say_so_too():
    assert payoff_line([result(10, [0.5, 0.6], [0.4, 0.5])]).endswith("by 2 seeds, which say little.")
