"""How a probe fares by group, such as sex or hospital: figures of each group and the gap between them.

A group column is no input of anything: it only says afterwards which samples a figure is of. The figure of a group is
its accuracy, or of samples with several labels the share of labels that are right. The gap is the error of the worst
group less that of the best, of those with enough rows to judge. Its interval is that of rows drawn again within each
group; since a gap is never below 0, a test beside it says in how many of shuffled groups it is as large.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..functional import keyed
from ..functional.keyed import Use
from .evaluator import EvaluationError
from .intervals import NUM_RESAMPLED, mean_interval, percentiles, resampled_means
from .probe_features import ENCODER
from .results import Result


METRIC = "error_gap"
# Fewer rows say too little: half of the interval of an accuracy is 18 points then.
FEWEST_ROWS = 30
# Of fewer rows no figure is given: it would say of single persons, in a card that anybody reads, what they are.
FEWEST_TOLD = 5
# The figure of which the words tell, where several probes were fitted.
_FIRST = ("linear", "knn")
_NOT_SHOWN = (
    "What it does not show: groups that no column names, combinations of them, and of which kind the errors are."
)


def check_groups(group_columns: Sequence[str], protocols: Sequence[str]) -> None:
    """Refuse columns of groups that no protocol would tell of.

    Raises:
        EvaluationError: where there are some.
    """
    if group_columns and not set(_FIRST) & set(protocols):
        raise EvaluationError(
            f"Groups are told apart by the protocols {' and '.join(sorted(_FIRST))}, and `--protocol "
            f"{','.join(protocols)}` is neither. Add one of them, or leave `--group_column` out."
        )


def right_rows(predictions: np.ndarray, references: np.ndarray, logits: np.ndarray | None = None) -> np.ndarray:
    """How right each row is, in [0, 1]: its class, or the share of its labels where it may have several."""
    if references.ndim == 2:
        return ((predictions if logits is None else logits > 0) == references).mean(1)
    return (predictions == references).astype(np.float64)


def group_figures(right: Mapping[str, np.ndarray], groups: np.ndarray) -> dict[str, Any]:
    """Figures by group.

    Args:
        right (`Mapping[str, np.ndarray]`):
            By what it is of (`"encoder"` and baselines), how right each row is, of shape `(num_rows,)`.
        groups (`np.ndarray` of shape `(num_rows,)`):
            The group of each row.

    Returns:
        `dict`: in `groups` of each its `name`, `rows`, `value`, `interval`, whether there are `too_few` rows to judge,
        and the `baselines` (of fewer than `FEWEST_TOLD` rows `None` instead of figures, and no baselines); in `gap` of
        those with enough rows `value`, `interval`, `p_value` and `baselines`, or `None` where fewer than two have.
    """
    names, number = np.unique(groups, return_inverse=True)
    rows = [np.flatnonzero(number == i) for i in range(len(names))]
    own = right[ENCODER]
    others = {kind: values for kind, values in right.items() if kind != ENCODER}
    found: list[dict[str, Any]] = []
    for i, (name, some) in enumerate(zip(names, rows, strict=True)):
        figures: dict[str, Any] = {"value": None, "interval": None, "baselines": {}}
        if len(some) >= FEWEST_TOLD:
            figures = {
                "value": float(own[some].mean()),
                "interval": mean_interval(own[some], keyed.generator(Use.BOOTSTRAP, i)),
                "baselines": {kind: float(values[some].mean()) for kind, values in others.items()},
            }
        found.append({"name": str(name), "rows": len(some), "too_few": len(some) < FEWEST_ROWS, **figures})
    judged = [some for some in rows if len(some) >= FEWEST_ROWS]
    return {"groups": found, "gap": _gap(own, others, judged) if len(judged) > 1 else None}


def _gap(own: np.ndarray, others: Mapping[str, np.ndarray], judged: Sequence[np.ndarray]) -> dict[str, Any]:
    def gap(values: np.ndarray) -> float:
        means = [values[some].mean() for some in judged]
        return float(max(means) - min(means))

    drawn = np.stack(
        [resampled_means(own[some], keyed.generator(Use.BOOTSTRAP, i)) for i, some in enumerate(judged)]
    )  # (num_groups, num_resampled)
    together, ends = own[np.concatenate(judged)], np.cumsum([len(some) for some in judged])[:-1]
    random, larger, value = keyed.generator(Use.PERMUTATION_TEST, 0), 0, gap(own)
    for _ in range(NUM_RESAMPLED):
        means = [part.mean() for part in np.split(random.permutation(together), ends)]
        larger += max(means) - min(means) >= value - 1e-9
    return {
        "value": value, "interval": percentiles(drawn.max(0) - drawn.min(0)),
        "p_value": (larger + 1) / (NUM_RESAMPLED + 1),
        "baselines": {kind: gap(values) for kind, values in others.items()},
    }  # fmt: skip


def error_gap(result: Result, column: str, right: Mapping[str, np.ndarray], groups: np.ndarray) -> Result:
    """The gap between groups as a figure of its own, beside the one that is of all rows; without a value where too few
    groups have the rows."""
    figures = group_figures(right, groups)
    gap = figures["gap"] or {"value": None, "baselines": {}}
    return replace(
        result, metric=METRIC, value=gap["value"], std=None, seeds=[0], per_seed=[gap["value"]],
        baselines=gap["baselines"], baselines_std={}, greater_is_better=False,
        hyperparameters=result.hyperparameters | {"group_column": column}, details=figures,
    )  # fmt: skip


# -- in words and tables --------------------------------------------------------------------------------------------


def _told(results: Sequence[Result]) -> list[Result]:
    """Of each data set and column the newest figures that are told of: of the linear probe, where it was fitted."""
    found: dict[Any, Result] = {}
    for protocol in reversed(_FIRST):
        for each in results:
            if each.protocol == protocol and each.metric == METRIC:
                found[each.task, each.split, each.hyperparameters["group_column"]] = each
    return list(found.values())


def group_lines(results: Sequence[Result]) -> list[str]:
    """What the figures by group show, and do not show, a sentence for each column."""
    return [
        f"{each.task}, by {each.hyperparameters['group_column']}: {_said(each.details)} {_NOT_SHOWN}"
        for each in _told(results)
    ]


def group_tables(results: Sequence[Result]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, head and rows of a table for each column."""
    tables = []
    for result in _told(results):
        kinds = max((list(each["baselines"]) for each in result.details["groups"]), key=len)
        head = ["group", "test rows", "right", "95 %", *(kind.replace("_", " ") for kind in kinds), ""]
        rows = [
            [
                each["name"], f"{each['rows']:,}",
                *(["-"] * (2 + len(kinds)) if each["value"] is None else [
                    _percent(each["value"]), _span(*each["interval"]),
                    *(_percent(each["baselines"][kind]) for kind in kinds),
                ]),
                "too few to judge" if each["too_few"] else "",
            ]
            for each in result.details["groups"]
        ]  # fmt: skip
        column = result.hyperparameters["group_column"]
        tables.append((f"{result.task}, by {column} ({result.protocol})", head, rows))
    return tables


def _said(figures: Mapping[str, Any]) -> str:
    judged = [each for each in figures["groups"] if not each["too_few"]]
    few = [f"{each['name']} ({each['rows']:,})" for each in figures["groups"] if each["too_few"]]
    too_few = f" Too few rows to judge (below {FEWEST_ROWS}): {', '.join(few)}." if few else ""
    gap = figures["gap"]
    if gap is None:
        return f"fewer than two groups have the rows to be compared.{too_few}"
    worst, *_, best = sorted(judged, key=lambda each: each["value"])  # two, also where all fare the same
    low, high = gap["interval"]
    beside = "".join(f"; {kind.replace('_', ' ')} {100 * value:.1f}" for kind, value in gap["baselines"].items())
    certain = "" if gap["p_value"] <= 0.05 else ", which is no certain difference"
    interval = f"95 %: {100 * low:.1f} to {100 * high:.1f}"
    return (
        f"errors are {_percent(1 - best['value'])} of {best['name']} ({best['rows']:,} rows) and "
        f"{_percent(1 - worst['value'])} of {worst['name']} ({worst['rows']:,}), a gap of "
        f"{100 * gap['value']:.1f} points ({interval}{beside}). Groups that are shuffled have one as large in "
        f"{_percent(gap['p_value'])} of cases{certain}.{too_few}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _span(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f} %"
