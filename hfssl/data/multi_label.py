"""Labels of which a sample has several, or none: lists, words with ; or | between them, and columns of 0 and 1."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from ..errors import DataError
from .label_values import is_missing, whole
from .sources.columns import check_column


_BETWEEN = re.compile(r"[;|]")


def columns_of_classes(asked: str | None, features: Mapping[str, Any], name: str) -> list[str]:
    """The columns that `--label_column a,b,c` names, each of them a class; none where it names one column."""
    if asked is None or asked in features or "," not in asked:
        return []
    columns = [column.strip() for column in asked.split(",") if column.strip()]
    for column in columns:
        check_column(features, column, name)
    return columns


def item_of(feature: Any) -> Any:
    """The feature of the items of a column of lists; `None` for any other column."""
    if isinstance(feature, list):
        return feature[0]
    kinds = tuple(getattr(datasets, kind) for kind in ("List", "LargeList", "Sequence") if hasattr(datasets, kind))
    return getattr(feature, "feature", None) if isinstance(feature, kinds) else None


def has_several(values: Sequence[Any]) -> bool:
    """Whether some of the labels are several words, with ; or | between them."""
    return any(isinstance(value, str) and _BETWEEN.search(value) for value in values)


def lists_of(values: Sequence[Any]) -> list[list | None]:
    """The labels of each sample; `None` for one that nobody labelled (null or blank)."""
    return [
        list(value) if isinstance(value, Sequence) and not isinstance(value, str)
        else None if is_missing(value) else _words(str(whole(value)))
        for value in values
    ]  # fmt: skip


def _words(text: str) -> list[str] | None:
    return [word.strip() for word in _BETWEEN.split(text) if word.strip()] if text.strip() else None


def matrix_of_lists(lists: Sequence[list | None], classes: Sequence[Any], where: str) -> np.ndarray:
    """Labels as 0 and 1, int64 of shape `(num_samples, num_classes)`; rows of -1 for samples without.

    Of a list what stands for no label (null, blank, -1 where that is no class) is passed over; a list of nothing else
    says nothing of its sample.

    Raises:
        DataError: where a list holds what is no class.
    """
    place = {value: i for i, value in enumerate(classes)}
    labels = np.zeros((len(lists), len(classes)), dtype=np.int64)
    for row, values in zip(labels, lists, strict=True):
        said = [value for value in values or () if not is_missing(value) and (value != -1 or value in place)]
        strange = next((value for value in said if value not in place), None)
        if strange is not None:
            raise DataError(
                f"{where} holds {strange!r}, which is none of its {len(place)} classes. Take another split or "
                "`--label_column`."
            )
        if values is None or values and not said:
            row[:] = -1
        else:
            row[[place[value] for value in said]] = 1
    return labels


def matrix_of_columns(columns: Sequence[Sequence[Any]], names: Sequence[str], where: str) -> np.ndarray:
    """The same of columns of 0 and 1, of which one that says nothing (null, -1) leaves the sample without labels.

    Raises:
        DataError: where a column holds anything else.
    """
    known = {0: 0, 1: 1, "0": 0, "1": 1, "false": 0, "true": 1, None: -1, -1: -1, "": -1, "-1": -1}
    labels = np.empty((len(columns[0]), len(columns)), dtype=np.int64)
    for i, (name, values) in enumerate(zip(names, columns, strict=True)):
        values = [
            None if is_missing(value) else value.lower() if isinstance(value, str) else value for value in values
        ]
        strange = next((value for value in values if value not in known), None)
        if strange is not None:
            raise DataError(
                f"Column {name!r} of {where} holds {strange!r}. Of several `--label_column`s each is a class, with 1 "
                "or true where it applies and 0 or false where not."
            )
        labels[:, i] = [known[value] for value in values]
    labels[(labels < 0).any(1)] = -1
    return labels
