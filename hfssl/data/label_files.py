"""Labels in a table beside the files that they are of, whatever its columns are called."""

import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa

from ..errors import DataError, first_line


# Share of the rows of a table that must name a file of the data, for a column to be taken for that of the files.
_LEAST_SHARE = 0.5
_READERS = {
    ".csv": pd.read_csv, ".tsv": lambda path: pd.read_csv(path, sep="\t"), ".parquet": pd.read_parquet,
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False), ".json": pd.read_json,
}  # fmt: skip


class LabelFile:
    """A table that names files in one column and says something of them in others.

    Args:
        path (`str`):
            A csv, tsv, parquet, json or jsonl file.
        names (`Sequence[str]`):
            Files of the data, relative to their folder.

    Raises:
        DataError: where it cannot be read, or no column names the files.
    """

    def __init__(self, path: str | os.PathLike, names: Sequence[str]):
        self.path, ending = str(path), PurePosixPath(str(path)).suffix.lower()
        if ending not in _READERS:
            raise DataError(f"`--labels {path}` is no table: {', '.join(_READERS)} are read.")
        try:
            self.table = _READERS[ending](path)
        except Exception as error:  # whatever pandas finds
            raise DataError(f"`--labels {path}` cannot be read: {first_line(error)}.") from error
        self.table.columns = [str(column) for column in self.table.columns]
        self.rows = self._rows(list(names))

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
        return [None if pd.isna(value) else value for value in self.table[column].tolist()]

    def values(self, column: str) -> list[Any]:
        """What a column says of each file, in their order; `None` where it says nothing."""
        known = self.all_values(column)
        return [None if row is None else known[row] for row in self.rows]

    def _rows(self, names: list[str]) -> list[int | None]:
        """The row of the table about each file, `None` where there is none."""
        # by the whole path, by the last part of it where that says which, and the same without the ending
        found: tuple[int, str, dict] = (0, "", {})
        for key in (_whole, _last, _stem):
            of_names: dict[str, list[str]] = {}
            for name in names:
                of_names.setdefault(key(name), []).append(name)
            unique = {each: same[0] for each, same in of_names.items() if len(same) == 1}
            for column in self.table.columns:
                values = self.table[column].dropna().astype(str)
                named = {unique[key(value)]: row for row, value in values.items() if key(value) in unique}
                if len(named) > found[0]:
                    found = (len(named), column, named)
        number, self.file_column, named = found
        if number < _LEAST_SHARE * min(len(self.table), len(names)) or not number:
            raise DataError(
                f"No column of `--labels {self.path}` names the files of the data, such as {names[0]!r}: it has "
                f"{', '.join(map(repr, self.table.columns))}. Name them by their path in the folder, or by the last "
                "part of it."
            )
        return [named.get(name) for name in names]


def _whole(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _last(name: str) -> str:
    return PurePosixPath(_whole(name)).name


def _stem(name: str) -> str:
    return PurePosixPath(_whole(name)).stem
