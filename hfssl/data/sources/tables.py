"""Sources of rows and columns, read with `pyarrow`: parquet files, and the memory-mapped tables of `datasets`."""

from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import DataError, first_line
from ..modality import Input, leading_input
from ..modality import modality as find_modality
from .base import (
    PIECE_BYTES,
    Cache,
    Damage,
    PieceRows,
    Source,
    describe,
    even_pieces,
    good_rows,
    new_digest,
    piece_target,
    row_pieces,
)
from .columns import column_of_table, features_of, find_inputs, with_fields
from .files import is_remote, missing, open_bytes, path_of, unreadable, with_retries


# Decoded row groups that a process keeps, to mix their pieces: always one, else as many as fit.
GROUP_CACHE_BYTES = 64 << 20
MOST_GROUPS_AT_ONCE = 16


class ParquetSource(Source):
    """Parquet files. The decoded columns of the last row groups are kept: ranges of one group cost one decode."""

    def __init__(
        self,
        paths: list[str],
        files: list[str],
        *,
        dataset: str,
        inputs: dict[str, Input],
        features: dict | None = None,
        fingerprint: str = "",
        piece_bytes: int = PIECE_BYTES,
    ):
        with ThreadPoolExecutor(16 if is_remote(paths[0]) else 4) as pool:
            footers = list(pool.map(lambda path: _parquet_footer(path, dataset), paths))
        known = features_of(footers[0].schema.to_arrow_schema())
        known |= {name: feature for name, feature in (features or {}).items() if name in known}
        known = with_fields(known)
        inputs = find_inputs(known, inputs, dataset)
        leading = inputs[leading_input(inputs)]
        columns = [wanted.column for wanted in inputs.values()]

        counts, sizes, file_of, first_of, index_of = [], [], [], [], []
        for file, footer in enumerate(footers):
            leaves = {name: _leaves(footer, name) for name in columns}
            missing = next((name for name in columns if not leaves[name]), None)
            if missing is not None:
                listing = ", ".join(repr(name) for name in footer.schema.to_arrow_schema().names)
                raise DataError(
                    f"{files[file]!r} of {dataset} has no column {missing!r}, which other files of it have. "
                    f"Its columns are: {listing}. Leave the file out, e.g. with a glob."
                )
            first = 0
            for group in range(footer.num_row_groups):
                row_group = footer.row_group(group)
                counts.append(row_group.num_rows)
                sizes.append(float(sum(row_group.column(i).total_uncompressed_size for i in chain(*leaves.values()))))
                file_of.append(file)
                first_of.append(first)
                index_of.append(group)
                first += row_group.num_rows
        target = piece_target(leading.modality, sum(sizes), sum(counts), piece_bytes)
        pieces, weights = row_pieces(counts, sizes, file_of, first_of, target)
        super().__init__(
            files=files,
            inputs=inputs,
            features=known,
            pieces=pieces,
            piece_bytes=weights,
            fingerprint=new_digest(fingerprint, "parquet", leading.column, piece_bytes, counts).hexdigest(),
        )
        self._paths = paths
        self._cache = Cache()
        self._group_index = np.array(index_of, dtype=np.int64)
        self._group_first = np.array(first_of, dtype=np.int64)
        self._group_rows = np.array(counts, dtype=np.int64)
        self._group_bytes = np.array(sizes)
        self.num_rows = int(sum(counts))
        self.description = (
            f"{describe(len(files), 'parquet files')}, {describe(self.num_rows, 'rows')}, column {leading.column!r}"
        )

    @property
    def largest_group_bytes(self) -> int:
        return int(self._group_bytes.max(initial=0))

    @property
    def groups_at_once(self) -> int:
        return int(np.clip(GROUP_CACHE_BYTES // max(self.largest_group_bytes, 1), 1, MOST_GROUPS_AT_ONCE))

    def read(self, index: int) -> PieceRows:
        file, start, stop, group = self.pieces[index].tolist()
        rows = np.arange(start, stop)
        data = self._group(file, group)
        if isinstance(data, Damage):
            return PieceRows(rows[:0], {name: [] for name in self.columns}, [(int(row), data.reason) for row in rows])
        data = data.slice(start - int(self._group_first[group]), stop - start)
        return good_rows(rows, _values(data, self.inputs), self.inputs)

    def read_input(self, name: str) -> list:
        column = self.inputs[name].column
        values = []
        for file, path in enumerate(self._paths):
            try:
                table = with_retries(lambda path=path: _read_column(path, column))
            except Exception as error:
                raise unreadable(self.files[file], error) from error
            values += column_of_table(table, column).to_pylist()
        return values

    def _group(self, file: int, group: int) -> pa.Table | Damage:
        groups = self._cache.data
        if group in groups:
            return groups[group]
        # The oldest goes first, so that it and the new one are not in memory together.
        while len(groups) >= self.groups_at_once:
            groups.popitem(last=False)
        groups[group] = data = self._read_group(file, group)
        return data

    def _read_group(self, file: int, group: int) -> pa.Table | Damage:
        columns = [wanted.column for wanted in self.inputs.values()]

        def read():
            handle = self._cache.open(file, lambda: _open_parquet(self._paths[file]), most=16)
            return handle.read_row_group(int(self._group_index[group]), columns=columns, use_threads=False)

        try:
            table = with_retries(read, again=lambda: self._cache.forget(file))
            # files of one data set may have their columns in different orders
            table = pa.table({name: _plain(column_of_table(table, name)) for name in columns})
        except FileNotFoundError:
            return missing(self.files[file])
        except Exception as error:
            if not _is_damage(error):
                raise unreadable(self.files[file], error) from error
            return Damage(f"row group {self._group_index[group]} cannot be decoded ({first_line(error)})")
        if len(table) != self._group_rows[group]:
            return Damage(
                f"row group {self._group_index[group]} has {len(table)} rows instead of {self._group_rows[group]}"
            )
        return table


def _leaves(footer: pq.FileMetaData, column: str) -> list[int]:
    paths = [footer.schema.column(i).path for i in range(footer.num_columns)]
    return [i for i, path in enumerate(paths) if path == column or path.startswith(column + ".")]


def _open_parquet(path: str) -> pq.ParquetFile:
    if is_remote(path):
        # `pre_buffer`: the ranges of a row group in few requests.
        return pq.ParquetFile(open_bytes(path), pre_buffer=True)
    return pq.ParquetFile(path, pre_buffer=False)


def _read_column(path: str, column: str) -> pa.Table:
    with _open_parquet(path) as file:
        return file.read(columns=[column])


def _parquet_footer(path: str, dataset: str) -> pq.FileMetaData:
    def read():
        with _open_parquet(path) as file:
            return file.metadata

    try:
        return with_retries(read)
    except Exception as error:
        if not _is_damage(error):
            raise unreadable(path, error) from error
        raise DataError(
            f"{path!r} of {dataset} is not a whole Parquet file ({first_line(error)}). Download or write it again, "
            "or leave it out, e.g. with a glob."
        ) from error


def _is_damage(error: Exception) -> bool:
    """Whether the content is broken; else the way to it is (network, disk, permission) and may be mended."""
    # Arrow reports some damaged pages as an OSError without a number.
    without_number = type(error) is OSError and error.errno is None
    return without_number or (isinstance(error, pa.ArrowException) and not isinstance(error, MemoryError))


class TableSource(Source):
    """A memory-mapped `datasets.Dataset`.

    Args:
        dataset (`datasets.Dataset`):
            The table.
        name (`str`):
            What the user calls it.
        inputs (`dict[str, Input]`):
            What to read of it.
        fingerprint (`str`, *optional*):
            Of what the table was made of. Left out, the table's own.
        piece_bytes (`int`, *optional*):
            About how large a piece of small samples is.
        damage (`str`, *optional*):
            Column that says why a row is damaged, null where it is not.
        named_files (`tuple[dict, str]`, *optional*):
            Features of the columns with paths of files, which are read in their place, and the folder from which
            relative paths start.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        *,
        name: str,
        inputs: dict[str, Input],
        fingerprint: str | None = None,
        piece_bytes: int = PIECE_BYTES,
        damage: str | None = None,
        named_files: tuple[dict, str] = ({}, ""),
    ):
        self._named, self._folder = named_files
        features = with_fields({name: feature for name, feature in dataset.features.items() if name != damage})
        features |= self._named
        inputs = find_inputs(features, inputs, repr(name))
        leading = inputs[leading_input(inputs)]
        column = leading.column
        columns = [_column_with(wanted.column, dataset.features) for wanted in inputs.values()]
        self._damage = damage
        self._table = dataset.select_columns(list(dict.fromkeys([*columns, *filter(None, [damage])])))
        self._table = self._table.with_format("arrow")
        # Of a selection (an indices mapping) only its share of the table counts.
        size = column_of_table(self._table.data.table, column).nbytes * len(dataset) / max(len(dataset.data), 1)
        target = piece_target(leading.modality, size, len(dataset), piece_bytes)
        pieces, weights = even_pieces(len(dataset), size, target)
        super().__init__(
            files=[name],
            inputs=inputs,
            features=features,
            pieces=pieces,
            piece_bytes=weights,
            fingerprint=new_digest(
                fingerprint or dataset._fingerprint, "table", column, piece_bytes, len(dataset)
            ).hexdigest(),
        )
        self.num_rows = len(dataset)
        self.description = f"{name}, {describe(len(dataset), 'rows')}, column {column!r}"

    def read(self, index: int) -> PieceRows:
        _, start, stop, _ = self.pieces[index].tolist()
        table = self._table[start:stop]
        wanted = [wanted.column for wanted in self.inputs.values()]
        columns = {name: _plain(column_of_table(table, name)) for name in [*wanted, *filter(None, [self._damage])]}
        columns |= {name: _files(columns[name], self._folder) for name in self._named if name in columns}
        values = _values(columns, self.inputs)
        if self._damage is not None and columns[self._damage].null_count < len(table):
            reasons = columns[self._damage].to_pylist()
            values = {
                name: [
                    value if reason is None else Damage(reason) for value, reason in zip(column, reasons, strict=True)
                ]
                for name, column in values.items()
            }
        return good_rows(np.arange(start, stop), values, self.inputs)

    def read_input(self, name: str) -> list:
        column = self.inputs[name].column
        of_column = self._table.select_columns([_column_with(column, self._table.features)])
        return column_of_table(of_column[:], column).to_pylist()


def _files(paths: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
    """Paths as a column of files, of which a blank one is none."""
    full = [path_of(path, folder) if path and path.strip() else None for path in paths.to_pylist()]
    return pa.chunked_array([pa.array([path and {"path": path} for path in full], pa.struct({"path": pa.string()}))])


def _column_with(column: str, features: dict) -> str:
    """The column of a table in which a field lies, or itself."""
    return column if column in features else column.partition(".")[0]


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column that is kept as a dictionary, written out."""
    if not pa.types.is_dictionary(column.type):
        return column
    of = column.type.value_type
    return column.cast(pa.large_string() if pa.types.is_string(of) else of)


def _values(table: pa.Table | dict[str, pa.ChunkedArray], inputs: dict[str, Input]) -> dict[str, list]:
    """The values of some rows, by the name of the input."""
    values = {}
    for name, wanted in inputs.items():
        column = table[wanted.column]
        values[name] = (
            column.to_pylist() if wanted.modality is None else find_modality(wanted.modality).from_arrow(column)
        )
    return values
