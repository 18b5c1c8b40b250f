"""Tables, such as csv, in which a column names files: the paths of images, say, beside their captions."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import datasets

from ...errors import DataError
from ..modality import Input, Modality, leading_input
from .base import new_digest
from .columns import list_columns
from .convert import converted_table
from .files import files_digest, is_remote, path_of
from .find import Found
from .tables import TableSource


# Values of a column that are looked at, and rows that are read at once until there are as many.
_LOOKED_AT = 200
_AT_ONCE = 1000
# In place of the size of a file that is not there.
_MISSING = -1


def open_table_of_files(
    found: Found, split: str, fingerprint: str, inputs: dict[str, Input], piece_bytes: int
) -> TableSource:
    """A csv or json lines, of which a column holds paths of files: absolute ones, or relative to its folder.

    A file that is missing is a damaged sample.

    Raises:
        DataError: where no column names files of the modality, none of those that it names is there, or some are
            addresses.
    """
    why = f"{found.module} files are converted once to be opened in the middle"
    table, damage = converted_table(found, split, "line", fingerprint, why)
    stated = inputs[leading_input(inputs)].column
    texts = [name for name, feature in table.features.items() if name != damage and _is_text(feature)]
    values = {name: list(islice(_values(table, name), _LOOKED_AT)) for name in texts}
    columns = [name for name in texts if name == stated or _are_files(values[name], found.kind)]
    if not columns:
        for name in texts:
            _check_local(values[name], name, found, lambda value: value.lower().endswith(found.kind.file_extensions))
        features = {name: feature for name, feature in table.features.items() if name != damage}
        raise DataError(
            f"No column of {found.name!r} holds paths of {found.kind.name} files. Its columns are: "
            f"{list_columns(features)}. Choose one with `{found.kind.column_flag}`. A table that says something else "
            "of files goes with them: pass their folder. Where labels are needed, `--labels` takes the table."
        )
    source = TableSource(
        table, name=found.name, inputs=inputs, fingerprint=fingerprint, piece_bytes=piece_bytes, damage=damage,
        named_files=(dict.fromkeys(columns, found.kind.feature()), found.root),
    )  # fmt: skip
    of_files = {wanted.column for wanted in source.inputs.values()}.intersection(columns)
    for column in of_files:
        _check_local(_values(table, column), column, found)
    names = list(_values(table, source.inputs[source.leading].column))
    paths = [path_of(name, found.root) for name in names]
    sizes = list(map(_size, paths))
    if max(sizes, default=_MISSING) == _MISSING:
        raise DataError(
            f"None of the files that {found.name!r} names in its column {source.inputs[source.leading].column!r} is "
            f"there, such as {next(iter(names), '')!r}. Relative paths start at the folder of the table, "
            f"{found.root!r}."
        )
    # other files are other data, as in a folder
    source.fingerprint = new_digest(source.fingerprint, files_digest(paths, names, sizes, [])).hexdigest()
    return source


def _is_text(feature) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _values(table: datasets.Dataset, column: str) -> Iterator[str]:
    """The values of a column that are not blank, without blanks around them."""
    for rows in table.select_columns([column]).iter(_AT_ONCE):
        yield from (value.strip() for value in rows[column] if value and value.strip())


def _are_files(values: list[str], kind: Modality) -> bool:
    """Whether these are paths of files of a modality: most end like some. Addresses beside paths do not count."""
    local = [value for value in values if not _is_address(value)]
    return 2 * sum(value.lower().endswith(kind.file_extensions) for value in local) > len(values)


def _check_local(
    values: Iterable[str], column: str, found: Found, concerns: Callable[[str], bool] = lambda value: True
) -> None:
    """Raise where the values are addresses."""
    address = next((value for value in values if _is_address(value) and concerns(value)), None)
    if address is not None:
        raise DataError(
            f"Column {column!r} of {found.name!r} holds addresses, such as {address!r}, and files are read from a "
            "disk alone: download them first, and write the paths of the copies in their place."
        )


def _is_address(value: str) -> bool:
    return is_remote(value) and not value.startswith("file://")


def _size(path: str) -> int:
    """The size of a file; where there is a folder, say, or nothing can be called so, there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return _MISSING
    return found.st_size if stat.S_ISREG(found.st_mode) else _MISSING
