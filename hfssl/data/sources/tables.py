"""Sources of rows and columns, read with `pyarrow`: parquet files, and the memory-mapped tables of `datasets`."""

from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .base import (
    PIECE_BYTES,
    Cache,
    Damage,
    DataError,
    PieceRows,
    Source,
    decode_utf8,
    describe,
    even_pieces,
    first_line,
    new_digest,
    row_pieces,
    text_rows,
    without_blank,
)
from .columns import find_column
from .files import is_remote, open_bytes, unreadable, with_retries


# Decoded row groups that a process keeps, to mix their pieces: always one, else as many as fit.
GROUP_CACHE_BYTES = 64 << 20
MOST_GROUPS_AT_ONCE = 16


class ParquetSource(Source):
    """Parquet files. The decoded column of the last row group is kept, so ranges of one group cost one decode."""

    def __init__(
        self,
        paths: list[str],
        files: list[str],
        *,
        dataset: str,
        column: str | None = None,
        features: dict | None = None,
        fingerprint: str = "",
        piece_bytes: int = PIECE_BYTES,
    ):
        with ThreadPoolExecutor(16 if is_remote(paths[0]) else 4) as pool:
            footers = list(pool.map(lambda path: _parquet_footer(path, dataset), paths))
        known = dict(datasets.Features.from_arrow_schema(footers[0].schema.to_arrow_schema()))
        known |= {name: feature for name, feature in (features or {}).items() if name in known}
        column = find_column(known, "text", column, dataset)

        counts, sizes, file_of, first_of, index_of = [], [], [], [], []
        for file, footer in enumerate(footers):
            leaves = [
                i
                for i in range(footer.num_columns)
                if (path := footer.schema.column(i).path) == column or path.startswith(column + ".")
            ]
            if not leaves:
                listing = ", ".join(repr(name) for name in footer.schema.to_arrow_schema().names)
                raise DataError(
                    f"{files[file]!r} of {dataset} has no column {column!r}, which other files of it have. "
                    f"Its columns are: {listing}. Leave the file out, e.g. with a glob."
                )
            first = 0
            for group in range(footer.num_row_groups):
                row_group = footer.row_group(group)
                counts.append(row_group.num_rows)
                sizes.append(float(sum(row_group.column(i).total_uncompressed_size for i in leaves)))
                file_of.append(file)
                first_of.append(first)
                index_of.append(group)
                first += row_group.num_rows
        pieces, weights = row_pieces(counts, sizes, file_of, first_of, piece_bytes)
        super().__init__(
            files=files,
            columns=[column],
            features=known,
            pieces=pieces,
            piece_bytes=weights,
            fingerprint=new_digest(fingerprint, "parquet", column, piece_bytes, counts).hexdigest(),
        )
        self._paths = paths
        self._cache = Cache()
        self._group_index = np.array(index_of, dtype=np.int64)
        self._group_first = np.array(first_of, dtype=np.int64)
        self._group_rows = np.array(counts, dtype=np.int64)
        self._group_bytes = np.array(sizes)
        self.num_rows = int(sum(counts))
        self.description = (
            f"{describe(len(files), 'parquet files')}, {describe(self.num_rows, 'rows')}, column {column!r}"
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
            return PieceRows(rows[:0], {self.columns[0]: []}, [(int(row), data.reason) for row in rows])
        first = int(self._group_first[group])
        return text_rows(rows, _arrow_values(data.slice(start - first, stop - start)), self.columns[0])

    def _group(self, file: int, group: int) -> pa.ChunkedArray | Damage:
        groups = self._cache.data
        if group in groups:
            return groups[group]
        # The oldest goes first, so that it and the new one are not in memory together.
        while len(groups) >= self.groups_at_once:
            groups.popitem(last=False)
        groups[group] = data = self._read_group(file, group)
        return data

    def _read_group(self, file: int, group: int) -> pa.ChunkedArray | Damage:
        def read():
            handle = self._cache.open(file, lambda: _open_parquet(self._paths[file]), most=16)
            return handle.read_row_group(int(self._group_index[group]), columns=self.columns, use_threads=False)

        try:
            column = _plain_text(with_retries(read, again=lambda: self._cache.forget(file)).column(0))
        except Exception as error:
            if not _is_damage(error):
                raise unreadable(self.files[file], error) from error
            return Damage(f"row group {self._group_index[group]} cannot be decoded ({first_line(error)})")
        if len(column) != self._group_rows[group]:
            return Damage(
                f"row group {self._group_index[group]} has {len(column)} rows instead of {self._group_rows[group]}"
            )
        return column


def _open_parquet(path: str) -> pq.ParquetFile:
    if is_remote(path):
        # `pre_buffer`: the ranges of a row group in few requests.
        return pq.ParquetFile(open_bytes(path), pre_buffer=True)
    return pq.ParquetFile(path, pre_buffer=False)


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
    """A memory-mapped `datasets.Dataset`."""

    def __init__(
        self,
        dataset: datasets.Dataset,
        *,
        name: str,
        column: str | None = None,
        fingerprint: str | None = None,
        piece_bytes: int = PIECE_BYTES,
        blank_is_damage: bool = True,
    ):
        features = dict(dataset.features)
        column = find_column(features, "text", column, repr(name))
        self._table = dataset.select_columns([column]).with_format("arrow")
        # Of a selection (an indices mapping) only its share of the table counts.
        size = self._table.data.column(column).nbytes * len(dataset) / max(len(dataset.data), 1)
        pieces, weights = even_pieces(len(dataset), size, piece_bytes)
        super().__init__(
            files=[name],
            columns=[column],
            features=features,
            pieces=pieces,
            piece_bytes=weights,
            fingerprint=new_digest(
                fingerprint or dataset._fingerprint, "table", column, piece_bytes, len(dataset)
            ).hexdigest(),
        )
        self._blank_is_damage = blank_is_damage
        self.num_rows = len(dataset)
        self.description = f"{name}, {describe(len(dataset), 'rows')}, column {column!r}"

    def read(self, index: int) -> PieceRows:
        _, start, stop, _ = self.pieces[index].tolist()
        values = _arrow_values(_plain_text(self._table[start:stop].column(0)))
        rows = np.arange(start, stop)
        if not self._blank_is_damage:
            rows, values = without_blank(rows, values)
        return text_rows(rows, values, self.columns[0])


def _arrow_values(column: pa.ChunkedArray | pa.Array) -> list:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        binary = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
        return [None if value is None else decode_utf8(value) for value in column.cast(binary).to_pylist()]


def _plain_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.large_string()) if pa.types.is_dictionary(column.type) else column
