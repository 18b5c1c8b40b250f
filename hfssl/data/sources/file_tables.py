"""Tables, such as csv, in which a column names files: the paths of images, say, beside their captions."""

import os

import datasets

from ...errors import DataError
from ..modality import Input, Modality, leading_input
from .base import new_digest
from .columns import list_columns
from .convert import converted_table
from .files import files_digest
from .find import Found
from .tables import TableSource


# Values of a column that are looked at.
_LOOKED_AT = 200
# In place of the size of a file that is not there.
_MISSING = -1


def open_table_of_files(
    found: Found, split: str, fingerprint: str, inputs: dict[str, Input], piece_bytes: int
) -> TableSource:
    """A csv or json lines, of which a column holds paths of files: absolute ones, or relative to its folder.

    A file that is missing is a damaged sample.

    Raises:
        DataError: where no column names files of the modality, or none of those that it names is there.
    """
    why = f"{found.module} files are converted once to be opened in the middle"
    table, damage = converted_table(found, split, "line", fingerprint, why)
    stated = inputs[leading_input(inputs)].column
    columns = [name for name in table.column_names if name != damage and _names_files(table, name, found.kind, stated)]
    if not columns:
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
    names = [name for name in source.read_input(source.leading) if name and name.strip()]
    paths = [os.path.join(found.root, name) for name in names]
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


def _names_files(table: datasets.Dataset, column: str, kind: Modality, stated: str | None) -> bool:
    """Whether a column holds paths of files of a modality: most end like some, or the user says so."""
    if getattr(table.features[column], "dtype", None) not in ("string", "large_string"):
        return False
    if stated is not None:
        return column == stated
    values = [value for value in table[:_LOOKED_AT][column] if value]
    return 2 * sum(value.strip().lower().endswith(kind.file_extensions) for value in values) > len(values)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return _MISSING
