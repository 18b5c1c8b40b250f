"""Labels in a table beside the files that they are of, whatever its columns are called."""

import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa

from ..errors import DataError, first_line


# Share of the rows of a table that must name a file of the data, for a column to be taken for that of the files.
_LEAST_SHARE = 0.5
# As they are written: "007" is no 7, and a class may be called NA.
_AS_WRITTEN = {"dtype": str, "keep_default_na": False}
_READERS: dict[str, Callable[[str], pd.DataFrame]] = {
    ".csv": lambda path: _with_numbers(pd.read_csv(path, **_AS_WRITTEN)),
    ".tsv": lambda path: _with_numbers(pd.read_csv(path, sep="\t", **_AS_WRITTEN)),
    ".parquet": pd.read_parquet,
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
    ".json": lambda path: pd.read_json(path, dtype=False),
}  # fmt: skip
# Endings of the files that are read.
TABLES = tuple(_READERS)


def tables_in(folder: str | os.PathLike | None, known: Collection[str] = ()) -> list[str]:
    """Names of the tables in a folder, beside its files, without those that are `known`. A json file, which is a table
    seldom, counts where there is no other."""
    names = os.listdir(folder) if folder is not None and os.path.isdir(folder) else []
    endings = {name: PurePosixPath(name.lower()).suffix for name in sorted(names) if name not in known}
    found = [name for name, ending in endings.items() if ending in TABLES]
    return [name for name in found if endings[name] != ".json"] or found


def only_table(folder: str | os.PathLike | None, known: Collection[str] = ()) -> str | None:
    """The table in a folder, where there is one, and only one, beside its files and those that are `known`."""
    found = tables_in(folder, known)
    return os.path.join(folder, found[0]) if len(found) == 1 else None


class LabelFile:
    """A table that names files in one column and says something of them in others.

    Args:
        path (`str`):
            A csv, tsv, parquet, json or jsonl file.
        names (`Sequence[str]`):
            Files of a split, relative to the folder of the data.
        of_others (`Iterable[str]`, *optional*):
            Those of its other splits, which the table names as well.

    Raises:
        DataError: where it cannot be read, no column names the files, or a row names files of two splits.
    """

    def __init__(self, path: str | os.PathLike, names: Sequence[str], of_others: Iterable[str] = ()):
        self.path, ending = str(path), PurePosixPath(str(path)).suffix.lower()
        if ending not in _READERS:
            raise DataError(f"`--labels {path}` is no table: {', '.join(TABLES)} are read.")
        try:
            self.table = _READERS[ending](path)
        except Exception as error:  # whatever pandas finds
            raise DataError(f"`--labels {path}` cannot be read: {first_line(error)}.") from error
        if not isinstance(self.table.index, pd.RangeIndex):  # of a parquet file
            self.table = self.table.reset_index()
        self.table.columns = [str(column) for column in self.table.columns]
        self.names = list(names)
        self.rows = self._rows(self.names, set(of_others))

    @property
    def columns(self) -> list[str]:
        """All but that of the files."""
        return [column for column in self.table.columns if column != self.file_column]

    @property
    def features(self) -> dict[str, Any]:
        """The `datasets` feature of each of these columns."""
        features = {}
        for column in self.columns:
            try:
                schema = pa.Schema.from_pandas(self.table[[column]], preserve_index=False)
                features |= datasets.Features.from_arrow_schema(schema)
            except (pa.ArrowException, ValueError):  # of several types
                features[column] = datasets.Value("string")
        return features

    def all_values(self, column: str) -> list[Any]:
        """What a column says of any file, be it among the data or not."""
        values = [list(v) if isinstance(v, np.ndarray | list) else v for v in self.table[column].tolist()]
        return [value if isinstance(value, list) else None if pd.isna(value) else value for value in values]

    def values(self, column: str) -> list[Any]:
        """What a column says of each file, in their order; `None` where it says nothing."""
        known = self.all_values(column)
        said = []
        for rows in self.rows:  # of which lists cannot be keys
            there = [known[row] for row in rows if known[row] is not None]
            said.append([value for i, value in enumerate(there) if value not in there[:i]])
        for name, values in zip(self.names, said, strict=True):
            if len(values) > 1:
                raise DataError(
                    f"`--labels {self.path}` says both {values[0]!r} and {values[1]!r} of {name!r} in column "
                    f"{column!r}. Keep one row for each file."
                )
        return [values[0] if values else None for values in said]

    def _rows(self, names: list[str], of_others: set[str]) -> list[list[int]]:
        """The rows of the table about each file."""
        everywhere = list(dict.fromkeys([*names, *sorted(of_others)]))
        # by the whole path, by the last part of it where that says which, and the same without the ending
        most, self.file_column, found, key_of = 0, "", {}, _whole
        for key in (_whole, _last, _stem):
            of_keys = set(map(key, everywhere))
            for column in self.table.columns:
                rows: dict[str, list[int]] = {}
                for row, value in self.table[column].dropna().astype(str).items():
                    if key(value) in of_keys:
                        rows.setdefault(key(value), []).append(row)
                if len(rows) > most:
                    most, self.file_column, found, key_of = len(rows), column, rows, key
        if not most or most < _LEAST_SHARE * min(len(self.table), len(everywhere)):
            raise DataError(
                f"No column of `--labels {self.path}` names the files of the data, such as {names[0]!r}: it has "
                f"{', '.join(map(repr, self.table.columns))}. Name them by their path in the folder, or by the last "
                "part of it."
            )
        of_split = set(names)
        named: dict[str, list[str]] = {}
        for name in everywhere:
            named.setdefault(key_of(name), []).append(name)
        for name in names:
            other = next((each for each in named[key_of(name)] if each not in of_split), None)
            if other is not None and key_of(name) in found:
                raise DataError(
                    f"A row of `--labels {self.path}` is about two files of different splits: {key_of(name)!r} is "
                    f"{name!r} and {other!r}. Write the whole path of each into column {self.file_column!r}, that "
                    "of the split as well, or pass the folder of one split as `--dataset`."
                )
        return [found.get(key_of(name), []) if len(named[key_of(name)]) == 1 else [] for name in names]


def _with_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers instead of words in the columns of which every value is written as its number is; blank is missing."""
    for column in table.columns:
        words = [word if word.strip() else None for word in table[column].tolist()]
        numbers = [None if word is None else _number(word) for word in words]
        are_numbers = all(word is None or number is not None for word, number in zip(words, numbers, strict=True))
        table[column] = pd.Series(numbers if are_numbers else words, index=table.index, dtype=object)
    return table


def _number(word: str) -> int | float | None:
    for kind in (int, float):
        try:
            number = kind(word)
        except ValueError:
            continue
        if str(number) == word and math.isfinite(number):
            return number
    return None


def _whole(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _last(name: str) -> str:
    return PurePosixPath(_whole(name)).name


def _stem(name: str) -> str:
    return PurePosixPath(_whole(name)).stem
