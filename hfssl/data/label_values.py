"""What the values of a column of labels say: classes and their numbers, groups, and which samples have none."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from ..errors import DataError
from .sources.columns import list_columns


logger = logging.getLogger(__name__)


class NoLabels(DataError):
    """A split has no labels: another one may have some."""


def classes(splits: list[list]) -> set:
    """The classes among the labels of some splits: all that are none of those that stand for no class."""
    of_splits = [{value for value in values if not is_missing(value)} for values in splits]
    labelled = [there for there in of_splits if there != {-1}]  # of -1 alone: a split without labels
    there = set().union(*labelled)
    numbers = {value for value in there if not isinstance(value, str)} - {-1}
    # beside 0, 1, 2, ... it is a label that nobody gave; beside 1, or 0 and 1, one of them
    return there - {-1} if len(numbers) > 2 and numbers == set(range(len(numbers))) else there


def group_names(values: list, split: str, where: str) -> np.ndarray:
    """Groups as text, the same for 2 and 2.0; who has none is alone in one."""
    without = [is_missing(value) for value in values]
    if any(without):
        logger.warning(
            "%s is empty in %s of %s rows: each of them counts as a group of its own.",
            where, f"{sum(without):,}", f"{len(values):,}",
        )  # fmt: skip
    rows = enumerate(zip(values, without, strict=True))
    return np.array([f"row {row} of {split}, without a group" if no else str(whole(of)) for row, (of, no) in rows])


# More groups than these are no groups that could be compared.
MOST_COMPARED = 50
_NOT_STATED = "not stated"


def check_compared(compared_by: Sequence[str], labels: Sequence[str], samples: str | None) -> None:
    """Refuse columns of groups that are samples or labels.

    Raises:
        DataError: where one is.
    """
    for column in compared_by:
        if column in labels or column == samples:
            what = "labels, of which each is told of as a class" if column in labels else "samples"
            raise DataError(
                f"`--group_column {column}` is the column of the {what}. Name one that says something else of each "
                "sample, or another `--label_column`."
            )


def names_of_groups(values: list, feature: Any, column: str, dataset: str) -> np.ndarray:
    """Groups as text, of which figures are told apart; those that say nothing are one.

    Raises:
        DataError: where there are too many to be compared.
    """
    if isinstance(feature, datasets.ClassLabel):
        values = [None if value is None or value < 0 else feature.names[value] for value in values]
    names = np.array([_NOT_STATED if is_missing(value) else str(whole(value)) for value in values])
    number = len(np.unique(names))
    if number > MOST_COMPARED:
        raise DataError(
            f"`--group_column {column}` has {number:,} different values in {dataset}, and at most {MOST_COMPARED} "
            "groups are compared. Name a column with fewer, such as ages by decade."
        )
    return names


def is_missing(value: Any) -> bool:
    """Whether a cell of a table is empty: nothing, blanks, or no number."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or isinstance(value, float) and math.isnan(value)


def whole(value: Any) -> Any:
    """A whole number that a table has made a float of, as a whole number again; all else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def numbers(values: list, known: Sequence, where: str, features: dict, samples: str) -> np.ndarray:
    """The place of each label among the known ones; -1 for no label."""
    number = {value: i for i, value in enumerate(known)}
    listing = f"The columns are: {list_columns(features)}."
    fraction = next((value for value in known if isinstance(value, float) and not value.is_integer()), None)
    if fraction is not None:
        raise DataError(
            f"{where} holds {fraction!r}, which is no class: classes are names or whole numbers. {listing} Choose "
            "another with `--label_column`."
        )
    without = [is_missing(value) or value == -1 and value not in number for value in values]
    strange = next((v for v, no in zip(values, without, strict=True) if not no and v not in number), None)
    if strange is not None:
        raise DataError(
            f"{where} holds {strange!r}, which is none of its {len(known)} classes. {listing} Take another split or "
            "`--label_column`."
        )
    if all(without):
        raise NoLabels(
            f"{where} says no class for any of {len(values):,} {samples}: a split without labels? {listing} Take "
            "another split or `--label_column`."
        )
    if any(without):
        logger.warning(
            "%s says no class for %s of %s %s (null, blank or -1), which are left out.",
            where, f"{sum(without):,}", f"{len(values):,}", samples,
        )  # fmt: skip
    return np.array([-1 if no else number[v] for v, no in zip(values, without, strict=True)], dtype=np.int64)


def say_several(labels: np.ndarray, class_names: Sequence[str], where: str, samples: str) -> None:
    """Say that a sample may have several labels, and refuse a split without any."""
    there = labels[(labels >= 0).all(1)]
    if not len(there):
        raise NoLabels(f"{where} says nothing of any of {len(labels):,} {samples}. Take another split.")
    logger.info(
        "%s: each of %s %s has some of %d labels, %.2g as a rule.", where, f"{len(there):,}", samples,
        len(class_names), there.sum(1).mean(),
    )  # fmt: skip
    if len(there) < len(labels):
        logger.warning(
            "%s says nothing of %s of %s %s (null, blank or -1), which are left out.",
            where, f"{len(labels) - len(there):,}", f"{len(labels):,}", samples,
        )  # fmt: skip
