"""Up to how many labels pre-training pays: what label efficiency found, as a sentence.

At each number of labels the fine-tuned encoder is compared with the same architecture from scratch, on the same draws
of labels and with the same seeds. A difference counts where Welch's t-test tells both means apart at 95 %, and it is
more than two standard errors of shares of so many test samples: the seeds say nothing of how few these are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from .label_efficiency import FINETUNE, LabelEfficiencyEvaluator
from .probe_features import RANDOM_INIT
from .results import Result
from .usefulness import standard_error


# The figure that counts: where samples may have several labels the area, which needs no threshold.
_METRICS = ("accuracy", "auroc")
_SURE = 0.975  # of a test with two sides: 95 %


@dataclass(frozen=True)
class Point:
    """Both figures at a number of labels, and from where on their difference counts.

    Args:
        num_labels (`int`):
            Labelled samples that were learned from.
        pretrained, scratch (`float`):
            Means over the seeds.
        certain (`float`):
            A difference above it counts.
    """

    num_labels: int
    pretrained: float
    scratch: float
    certain: float

    @property
    def pays(self) -> bool:
        """Whether the pre-trained encoder is better."""
        return self.pretrained - self.scratch > self.certain

    @property
    def harms(self) -> bool:
        """Whether it is worse: the interval of the difference lies below 0."""
        return self.scratch - self.pretrained > self.certain

    def figures(self) -> str:
        """Both figures, in words."""
        return f"{self.num_labels:,} labels: {self.pretrained:.3f} against {self.scratch:.3f} (± {self.certain:.3f})"


def payoff(results: Sequence[Result]) -> list[Point]:
    """The comparison at each number of labels, the fewest first; empty where label efficiency was not measured."""
    of_trainings = _of_trainings(results)
    metric = next((metric for metric in _METRICS if any(each.metric == metric for each in of_trainings)), None)
    points = {
        each.num_train: Point(each.num_train, each.value, each.baselines[RANDOM_INIT], _certain(each))
        for each in of_trainings
        if each.metric == metric and None not in (each.value, each.baselines[RANDOM_INIT])
    }
    return [points[number] for number in sorted(points)]


def _of_trainings(results: Sequence[Result]) -> list[Result]:
    """The figures of the last measurement. A folder has several of other labels, or of trainings of another length."""
    found = [
        each
        for each in results
        if each.protocol == LabelEfficiencyEvaluator.protocol
        and each.hyperparameters["method"] == FINETUNE
        and RANDOM_INIT in each.baselines
    ]
    return [each for each in found if _measurement(each) == _measurement(found[-1])]


def _measurement(result: Result) -> tuple:
    """What the figures of one measurement have in common, at whatever number of labels."""
    settings = {name: value for name, value in result.hyperparameters.items() if name != "fraction"}
    return (result.version, result.model, result.task, result.split, result.num_eval, len(result.seeds), settings)


def payoff_line(results: Sequence[Result]) -> str:
    """Up to how many labels pre-training pays, in a sentence with its figures; empty where it was not measured."""
    points = payoff(results)
    if not points:
        return ""
    paying = [point for point in points if point.pays]
    harmed = [f"{point.num_labels:,}" for point in points if point.harms]
    until = next((i for i, point in enumerate(points) if not point.pays), len(points))
    if until == len(points):
        said = f"With {points[-1].num_labels:,} labels or fewer, pre-training pays; there were no more."
    elif not paying:
        said = "Pre-training is not shown to pay for these labels, however many of them are used."
    elif until == 0:
        numbers = " and ".join(f"{point.num_labels:,}" for point in paying)
        fewest = "it does not" if points[0].harms else "no difference is certain"
        said = f"With {numbers} labels pre-training pays; with {points[0].num_labels:,} {fewest}."
    else:
        said = (
            f"With {points[until - 1].num_labels:,} labels or fewer, pre-training pays; with "
            f"{points[until].num_labels:,} it is not shown to."
        )
    if harmed:
        said += f" With {' and '.join(harmed)} labels it harms: a start from scratch is better."
    figures = "; ".join(point.figures() for point in points)
    return f"{said} Fine-tuned against trained from scratch, with {figures}, by {_seeds(results)}."


def _seeds(results: Sequence[Result]) -> str:
    fewest = min(len(each.seeds) for each in _of_trainings(results))
    return {1: "a single seed, which says little", 2: "2 seeds, which say little"}.get(fewest, f"{fewest} seeds")


def _certain(result: Result) -> float:
    """The difference from which on both means are told apart."""
    share = min(max((result.value + result.baselines[RANDOM_INIT]) / 2, 0.0), 1.0)
    of_samples = 2 * standard_error(share, result.num_eval)
    number = len(result.seeds)
    of_each = [(deviation or 0.0) ** 2 / number for deviation in (result.std, result.baselines_std.get(RANDOM_INIT))]
    if number < 2 or sum(of_each) == 0:
        return of_samples
    degrees = sum(of_each) ** 2 / sum(each**2 / (number - 1) for each in of_each)
    return max(of_samples, float(stdtrit(degrees, _SURE)) * math.sqrt(sum(of_each)))
