"""What `--dataset` accepts, as a random-access [`Source`] cut into pieces that can be opened in the middle.

[`open_source`] turns a Hub id, a local file or folder, a glob, a folder of `save_to_disk` or nothing at all (the
embedded corpus) into a `Source`. The `datasets` library finds files and splits, so its rules hold; the rows are read
piece by piece:

| format | how it is read | a piece is |
| --- | --- | --- |
| parquet, local or on the Hub | `pyarrow`, the needed column only | a row group, or a range of its rows |
| jsonl and txt, local or on the Hub | by ranges of bytes | about 64 KiB, with the records that start there |
| arrow, `save_to_disk` | memory-mapped | a range of rows |
| all else (csv, a JSON array, compressed files) | converted once by `load_dataset` | a range of rows |

Opening costs as much as there are files, however long they are, and no piece depends on another: a stream over the
pieces can start anywhere. A `Source` can be pickled and forked; every process (and thread) opens its own files.
"""

import codecs
import difflib
import errno
import hashlib
import json
import logging
import os
import re
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from glob import has_magic
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from ..errors import UserError


logger = logging.getLogger(__name__)

# Part of every fingerprint: raise it when the same data are cut into other pieces than before.
LAYOUT_VERSION = 1
# Text in one piece, unless that makes more pieces than `MAX_PIECES`.
PIECE_BYTES = 1 << 16
MAX_PIECES = 1_000_000
# One request to a remote file fetches this much; its pieces share a group.
REMOTE_GROUP_BYTES = 4 << 20
# A record of a text file that is longer is damaged: nothing may need unbounded memory.
MAX_RECORD_BYTES = 64 << 20
# Row groups whose column is larger are converted once instead of being decoded as a whole by every worker.
MAX_ROW_GROUP_BYTES = 512 << 20
# Decoded row groups that a process keeps (always the last one).
GROUP_CACHE_BYTES = 64 << 20
# Up to this size rows are counted instead of estimated.
COUNT_BYTES = 8 << 20

FORMATS = {
    ".txt": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
SUPPORTED = "txt, jsonl, json, csv, tsv, parquet and arrow (txt, json and csv also compressed: gz, zst, bz2, xz)"
# Formats of the `datasets` library that hold no text column.
OTHER_MODALITIES = {"imagefolder": "images", "audiofolder": "sound", "videofolder": "videos", "meshfolder": "meshes"}
SAMPLE_BY = ("line", "paragraph", "document")

BLANK = b" \t\r\x0b\x0c"


class DataError(UserError):
    """The data cannot be had: one sentence that says what was given, what is needed and how to get there."""


@dataclass(frozen=True)
class Modality:
    is_feature: Callable[[object], bool]
    names: tuple[str, ...]
    flag: str


def _is_text(feature) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "string_view")


# `find_column` knows them all; `open_source` reads those in `READABLE`.
MODALITIES = {
    "text": Modality(
        _is_text,
        ("text", "sentence", "content", "document", "article", "passage", "paragraph", "body", "abstract", "review"),
        "--text_column",
    ),
    "image": Modality(
        lambda feature: isinstance(feature, datasets.Image),
        ("image", "img", "picture", "photo", "jpg", "png", "webp"),
        "--image_column",
    ),
    "audio": Modality(
        lambda feature: isinstance(feature, datasets.Audio),
        ("audio", "sound", "speech", "wav", "flac", "mp3"),
        "--audio_column",
    ),
}
READABLE = ("text",)


def find_column(
    features: dict, modality: str = "text", column: str | None = None, dataset: str = "The dataset"
) -> str:
    """The column that holds the modality: the one asked for, the only one of its type, or one with a usual name.

    Args:
        features (`dict`):
            Column name to `datasets` feature.
        modality (`str`, *optional*, defaults to `"text"`):
            `"text"`, `"image"` or `"audio"`.
        column (`str`, *optional*):
            What the user asked for. It must exist and have the right type.
        dataset (`str`, *optional*):
            The data set's name in error messages.

    Example:
        >>> from datasets import Value
        >>> find_column({"id": Value("int64"), "sentence": Value("string")})
        'sentence'
    """
    wanted = MODALITIES[modality]
    listing = ", ".join(f"{name!r} ({_type_name(feature)})" for name, feature in features.items()) or "none"
    if column is not None:
        if column not in features:
            near = difflib.get_close_matches(column, features, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise DataError(f"{dataset} has no column {column!r}. Its columns are: {listing}.{hint}")
        if not wanted.is_feature(features[column]):
            raise DataError(
                f"Column {column!r} of {dataset} is {_type_name(features[column])}, but a column of type {modality} "
                f"is needed. The columns are: {listing}. Choose one with `{wanted.flag}`."
            )
        return column
    candidates = [name for name, feature in features.items() if wanted.is_feature(feature)]
    if len(candidates) == 1:
        return candidates[0]
    by_lower_name = {name.lower(): name for name in reversed(candidates)}
    for name in wanted.names:
        if name in by_lower_name:
            return by_lower_name[name]
    problem = f"{len(candidates)} columns of type {modality}" if candidates else f"no column of type {modality}"
    remedy = f"Choose one with `{wanted.flag}`." if candidates else "Use another data set or convert a column."
    raise DataError(f"{dataset} has {problem}. Its columns are: {listing}. {remedy}")


def _type_name(feature) -> str:
    if isinstance(feature, datasets.Value):
        return feature.dtype
    if isinstance(feature, datasets.ClassLabel):
        return f"ClassLabel of {feature.num_classes}"
    if isinstance(feature, dict):
        return "dict"
    return type(feature).__name__


@dataclass
class PieceRows:
    """The samples of one piece.

    Attributes:
        rows (`np.ndarray` of shape `(num_samples,)`):
            Where each sample is in its file: the row number, or the byte at which the record starts. Unique within
            the file and the same in every pass.
        columns (`dict[str, list]`):
            Column to one value per sample.
        bad (`list[tuple[int, str]]`):
            Row and reason of each damaged sample that was left out.
    """

    rows: np.ndarray
    columns: dict[str, list]
    bad: list[tuple[int, str]]


class Source:
    """A data set as pieces that can be read in any order, from any process.

    Attributes:
        description (`str`):
            One line for the log.
        columns (`list[str]`):
            The columns that [`~Source.read`] returns.
        features (`dict`):
            Column to `datasets` feature, for all columns that are known.
        num_rows (`int`), num_rows_exact (`bool`):
            Rows, damaged ones included; estimated from some pieces where counting would mean reading everything.
        fingerprint (`str`):
            Changes with the data (names within the folder, sizes, sampled content, revision) and the column, not with
            the place of the folder.
        pieces (`np.ndarray` of shape `(num_pieces, 4)`):
            `file, start, stop, group` of each piece; start and stop are rows or bytes. Pieces of one group are cheap
            to read one after the other, since they come out of one row group or one request.
        piece_bytes (`np.ndarray` of shape `(num_pieces,)`):
            About how many bytes of text are in each piece.
        files (`list[str]`):
            Names for messages, relative to the data set.
    """

    unit = "row"

    def __init__(
        self,
        *,
        files: list[str],
        columns: list[str],
        features: dict,
        pieces: np.ndarray,
        piece_bytes: np.ndarray,
        fingerprint: str,
    ):
        self.files = files
        self.columns = columns
        self.features = features
        self.pieces = pieces
        self.piece_bytes = piece_bytes
        self.fingerprint = fingerprint
        self.description = ""
        self.num_rows = 0
        self.num_rows_exact = True

    def __len__(self) -> int:
        return len(self.pieces)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.description})"

    def read(self, index: int) -> PieceRows:
        """Read one piece. Damaged samples are left out and listed in `bad`."""
        raise NotImplementedError

    def where(self, index: int, row: int) -> str:
        """Name a sample of a piece for messages, such as `"novels.jsonl, byte 4711"`."""
        return f"{self.files[self.pieces[index, 0]]}, {self.unit} {row}"


class _Cache:
    """What a process and thread keeps of a source: open files, decoded data. Pickled and forked empty.

    A forked child starts anew too, since it would share file positions with its parent.
    """

    def __init__(self):
        self._local = threading.local()

    def __reduce__(self):
        return _Cache, ()

    def _mine(self) -> threading.local:
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.pid, self._local.files, self._local.data = os.getpid(), OrderedDict(), OrderedDict()
        return self._local

    @property
    def data(self) -> OrderedDict:
        return self._mine().data

    def open(self, key: int, opener: Callable, most: int):
        """An open file; beyond `most` the least recently used one is closed."""
        files = self._mine().files
        if key not in files:
            files[key] = opener()
            while len(files) > most:
                files.popitem(last=False)[1].close()
        files.move_to_end(key)
        return files[key]

    def forget(self, key: int) -> None:
        self._mine().files.pop(key, None)


def _text_rows(rows: np.ndarray, values: list, column: str) -> PieceRows:
    """Leave out what is no text: null, another type, empty or white space only."""
    if all(type(value) is str for value in values):
        damaged = [i for i, value in enumerate(values) if not value or value.isspace()]
    else:
        damaged = [i for i, value in enumerate(values) if type(value) is not str or not value or value.isspace()]
    if not damaged:
        return PieceRows(rows, {column: values}, [])
    bad = []
    for i in damaged:
        value = values[i]
        if isinstance(value, _Damage):
            reason = value.reason
        elif value is None:
            reason = f"{column!r} is null"
        elif isinstance(value, str):
            reason = f"{column!r} is empty"
        else:
            reason = f"{column!r} is {type(value).__name__}, not text"
        bad.append((int(rows[i]), reason))
    keep = np.ones(len(values), dtype=bool)
    keep[damaged] = False
    return PieceRows(rows[keep], {column: [value for value, kept in zip(values, keep, strict=True) if kept]}, bad)


@dataclass
class _Damage:
    """Stands in for the value of a damaged sample until `_text_rows` sorts it out."""

    reason: str


def _decode(value: bytes):
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        return _Damage(f"not valid UTF-8 (byte {error.start} of the sample)")


def _arrow_values(column: pa.ChunkedArray | pa.Array) -> list:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        binary = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
        return [None if value is None else _decode(value) for value in column.cast(binary).to_pylist()]


def _plain_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.large_string()) if pa.types.is_dictionary(column.type) else column


def _row_pieces(
    counts: Sequence[int], sizes: Sequence[float], files: Sequence[int], firsts: Sequence[int], piece_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cut row groups of `counts` rows and `sizes` bytes, which begin at row `firsts` of `files`, into pieces."""
    target = max(piece_bytes, sum(sizes) / MAX_PIECES)
    pieces, weights = [], []
    for group, (count, size, file, first) in enumerate(zip(counts, sizes, files, firsts, strict=True)):
        if count == 0:
            continue
        parts = int(min(count, max(1, round(size / target))))
        edges = first + np.arange(parts + 1, dtype=np.int64) * count // parts
        piece = np.empty((parts, 4), dtype=np.int64)
        piece[:, 0], piece[:, 1], piece[:, 2], piece[:, 3] = file, edges[:-1], edges[1:], group
        pieces.append(piece)
        weights.append(np.diff(edges) * (size / count))
    if not pieces:
        return np.empty((0, 4), dtype=np.int64), np.empty(0, dtype=np.int64)
    return np.concatenate(pieces), np.concatenate(weights).astype(np.int64)


def _describe(count: int, what: str) -> str:
    return f"{count:,} {what}" if count != 1 else f"1 {what.removesuffix('s')}"


class MemorySource(Source):
    """Texts that are in memory already. They travel with the pickle."""

    def __init__(self, texts: list[str], *, name: str, column: str = "text", piece_bytes: int = PIECE_BYTES):
        lengths = np.array([len(text.encode("utf-8", "replace")) for text in texts], dtype=np.int64)
        digest = _digest("memory", column, piece_bytes, len(texts))
        for text in texts:
            digest.update(text.encode("utf-8", "replace") + b"\0")
        pieces, weights = _row_pieces([len(texts)], [float(lengths.sum())], [0], [0], piece_bytes)
        # In memory every piece is as near as any other.
        pieces[:, 3] = np.arange(len(pieces))
        super().__init__(
            files=[name],
            columns=[column],
            features={column: datasets.Value("string")},
            pieces=pieces,
            piece_bytes=weights,
            fingerprint=digest.hexdigest(),
        )
        self.texts = texts
        self.num_rows = len(texts)
        self.description = f"{name}, {_describe(len(texts), 'rows')}, column {column!r}"

    def read(self, index: int) -> PieceRows:
        _, start, stop, _ = self.pieces[index]
        return _text_rows(np.arange(start, stop), self.texts[start:stop], self.columns[0])


class ParquetSource(Source):
    """Parquet files. The decoded columns of the last row groups are kept, so ranges of one group cost one decode."""

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
        with ThreadPoolExecutor(16 if _is_remote(paths[0]) else 4) as pool:
            footers = list(pool.map(lambda path: _parquet_footer(path, dataset), paths))
        known = dict(datasets.Features.from_arrow_schema(footers[0].schema.to_arrow_schema()))
        known |= {name: feature for name, feature in (features or {}).items() if name in known}
        column = find_column(known, "text", column, dataset)

        counts, sizes, file_of, first_of, self._group_index = [], [], [], [], []
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
                self._group_index.append(group)
                first += row_group.num_rows
        pieces, weights = _row_pieces(counts, sizes, file_of, first_of, piece_bytes)
        super().__init__(
            files=files,
            columns=[column],
            features=known,
            pieces=pieces,
            piece_bytes=weights,
            fingerprint=_digest(fingerprint, "parquet", column, piece_bytes, counts).hexdigest(),
        )
        self._paths = paths
        self._cache = _Cache()
        self._group_index = np.array(self._group_index, dtype=np.int64)
        self._group_first = np.array(first_of, dtype=np.int64)
        self._group_rows = np.array(counts, dtype=np.int64)
        self._group_bytes = np.array(sizes)
        self.num_rows = int(sum(counts))
        self.description = (
            f"{_describe(len(files), 'parquet files')}, {_describe(self.num_rows, 'rows')}, column {column!r}"
        )

    @property
    def largest_group_bytes(self) -> int:
        return int(self._group_bytes.max(initial=0))

    def read(self, index: int) -> PieceRows:
        file, start, stop, group = self.pieces[index].tolist()
        rows = np.arange(start, stop)
        data = self._group(file, group)
        if isinstance(data, _Damage):
            return PieceRows(rows[:0], {self.columns[0]: []}, [(int(row), data.reason) for row in rows])
        first = int(self._group_first[group])
        return _text_rows(rows, _arrow_values(data.slice(start - first, stop - start)), self.columns[0])

    def _group(self, file: int, group: int) -> pa.ChunkedArray | _Damage:
        groups = self._cache.data
        if group in groups:
            groups.move_to_end(group)
            return groups[group]
        # Room is made first, so that the old group and the new one are not in memory together.
        self._make_room(groups, GROUP_CACHE_BYTES - self._group_bytes[group])
        groups[group] = data = self._read_group(file, group)
        return data

    @staticmethod
    def _make_room(groups: OrderedDict, room: float) -> None:
        while groups and sum(0 if isinstance(data, _Damage) else data.nbytes for data in groups.values()) > room:
            groups.popitem(last=False)

    def _read_group(self, file: int, group: int) -> pa.ChunkedArray | _Damage:
        def read():
            handle = self._cache.open(file, lambda: _open_parquet(self._paths[file]), most=16)
            return handle.read_row_group(int(self._group_index[group]), columns=self.columns, use_threads=False)

        try:
            column = _plain_text(_with_retries(read, again=lambda: self._cache.forget(file)).column(0))
        except Exception as error:
            if not _is_damage(error):
                raise _unreadable(self.files[file], error) from error
            return _Damage(f"row group {self._group_index[group]} cannot be decoded ({_first_line(error)})")
        if len(column) != self._group_rows[group]:
            return _Damage(
                f"row group {self._group_index[group]} has {len(column)} rows instead of {self._group_rows[group]}"
            )
        return column


def _open_parquet(path: str) -> pq.ParquetFile:
    if _is_remote(path):
        # Nothing is fetched but the ranges that are asked for, and those of a row group in few requests.
        filesystem, name = fsspec.core.url_to_fs(path)
        return pq.ParquetFile(filesystem.open(name, "rb", cache_type="none"), pre_buffer=True)
    return pq.ParquetFile(path, pre_buffer=False)


def _parquet_footer(path: str, dataset: str) -> pq.FileMetaData:
    def read():
        with _open_parquet(path) as file:
            return file.metadata

    try:
        return _with_retries(read)
    except Exception as error:
        if not _is_damage(error):
            raise _unreadable(path, error) from error
        raise DataError(
            f"{path!r} of {dataset} is not a whole Parquet file ({_first_line(error)}). Download or write it again, "
            "or leave it out, e.g. with a glob."
        ) from error


def _is_damage(error: Exception) -> bool:
    """Whether the content is broken; else the way to it is (network, disk, permission) and may be mended."""
    # Arrow reports some damaged pages as an OSError without a number.
    without_number = type(error) is OSError and error.errno is None
    return without_number or (isinstance(error, pa.ArrowException) and not isinstance(error, MemoryError))


def _with_retries(read: Callable, again: Callable = lambda: None, waits: Sequence[float] = (1, 4, 16)):
    """Call `read`, again when a remote file system fails for the moment."""
    for wait in (*waits, None):
        try:
            return read()
        except (httpx.HTTPError, ConnectionError, TimeoutError) as error:
            status = getattr(getattr(error, "response", None), "status_code", 500)
            if wait is None or (status < 500 and status != 429):
                raise
            logger.warning(
                "Reading failed (%s: %s), trying again in %d s.", type(error).__name__, _first_line(error), wait
            )
            time.sleep(wait)
            again()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _unreadable(name: str, error: Exception) -> DataError:
    if isinstance(error, PermissionError):
        return DataError(
            f"{name!r} cannot be read: permission denied. Change its permissions (e.g. `chmod +r`) or its owner."
        )
    if isinstance(error, FileNotFoundError):
        return DataError(
            f"{name!r} is gone: it was there when the data set was opened. Put it back, or start again without it."
        )
    if isinstance(error, (httpx.HTTPError, ConnectionError, TimeoutError)):
        return DataError(
            f"{name!r} could not be fetched ({type(error).__name__}: {_first_line(error)}). Check the connection and "
            "start again, or download the data set first and pass the folder."
        )
    return DataError(f"{name!r} cannot be read ({type(error).__name__}: {_first_line(error)}).")


class _TextFiles:
    """Uncompressed text files, read by ranges of bytes: the lines that start in a range, wherever they end."""

    def __init__(self, paths: list[str], names: list[str], sizes: Sequence[int]):
        self.paths, self.names = paths, names
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.remote = _is_remote(paths[0])
        self.cache = _Cache()

    def read(self, file: int, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`, or to the end of the file."""
        stop = min(stop, int(self.sizes[file]))
        if start >= stop:
            return b""
        for of_file, first, data in self.cache.data.values():
            if of_file == file and first <= start and stop <= first + len(data):
                return data[start - first : stop - first]
        return self._fetch(file, start, stop)

    def _fetch(self, file: int, start: int, stop: int) -> bytes:
        def fetch() -> bytes:
            handle = self.cache.open(file, lambda: _open_bytes(self.paths[file]), most=64)
            handle.seek(start)
            data = handle.read(stop - start)
            while len(data) < stop - start:
                more = handle.read(stop - start - len(data))
                if not more:
                    raise DataError(
                        f"{self.names[file]!r} is shorter than it was when it was opened: it ends before byte {stop}. "
                        "A file must not change while it is read. Start again."
                    )
                data += more
            return data

        try:
            return _with_retries(fetch, again=lambda: self.cache.forget(file))
        except DataError:
            raise
        except Exception as error:
            raise _unreadable(self.names[file], error) from error

    def prefetch(self, key: int, file: int, start: int, stop: int) -> None:
        """Fetch a long range in one request and keep it until the next one."""
        windows = self.cache.data
        if key not in windows:
            windows.clear()
            stop = min(stop, int(self.sizes[file]))
            windows[key] = (file, start, self._fetch(file, start, stop))

    def lines(self, file: int, start: int, stop: int) -> tuple[np.ndarray, list, list[tuple[int, str]]]:
        """Position and text of each line that starts in `[start, stop)`, without newlines; then what was too long."""
        nothing = np.empty(0, dtype=np.int64)
        first, data, whole = self.block(file, start, stop)
        if data is None:
            return nothing, [], []
        too_long = []
        if not whole:
            cut = data.rfind(b"\n", 0, stop - first) + 1
            too_long = [(first + cut, _TOO_LONG)]
            if cut == 0:
                return nothing, [], too_long
            data = data[: cut - 1]
        newlines = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == 10)
        starts = np.empty(len(newlines) + 1, dtype=np.int64)
        starts[0] = first
        starts[1:] = newlines + (first + 1)
        if first == 0:
            data = data.removeprefix(codecs.BOM_UTF8)
        try:
            lines = data.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            lines = [_decode(line) for line in data.split(b"\n")]
        return starts, lines, too_long

    def block(self, file: int, start: int, stop: int) -> tuple[int, bytes | None, bool]:
        """All lines that start in `[start, stop)`: their position, their bytes, whether the last one is whole."""
        base = max(start - 1, 0)
        data = self.read(file, base, stop + 4096)
        # A line starts after a newline, so the first one is found by the newline at `start - 1` or later.
        line = 0 if start == 0 else data.find(b"\n", 0, stop - 1 - base) + 1
        if start > 0 and line == 0:
            return start, None, True
        first, data = base + line, data[line:]
        # The newline at `stop - 1` or later ends the last line that starts before `stop`.
        data, whole = self.extend(file, first, data, max(stop - 1 - first, 0), lambda data, at: data.find(b"\n", at))
        return first, data, whole

    def extend(
        self, file: int, first: int, data: bytes, at: int, find: Callable[[bytes, int], int]
    ) -> tuple[bytes, bool]:
        """Read on to the end that `find` finds at or after `at`, and cut there; False if it is too far away."""
        step = PIECE_BYTES
        while (end := find(data, at)) < 0:
            position = first + len(data)
            if position >= self.sizes[file]:
                return data, True
            if len(data) > MAX_RECORD_BYTES:
                return data, False
            # Growing steps: the cost of a long record stays proportional to its length.
            data += self.read(file, position, position + step)
            step = min(2 * step, 16 << 20)
        return data[:end], True

    def follows_blank_line(self, file: int, position: int) -> bool:
        """Whether the line before the one at `position` is blank or missing."""
        end = position - 1
        while end > 0:
            start = max(0, end - 256)
            tail = self.read(file, start, end)
            if start == 0:
                tail = tail.removeprefix(codecs.BOM_UTF8)
            tail = tail.rstrip(BLANK)
            if tail:
                return tail.endswith(b"\n")
            end = start
        return True


_TOO_LONG = f"longer than {MAX_RECORD_BYTES >> 20} MiB"


def _open_bytes(path: str):
    if _is_remote(path):
        filesystem, name = fsspec.core.url_to_fs(path)
        return filesystem.open(name, "rb", cache_type="none")
    return open(path, "rb", buffering=0)


class BytesSource(Source):
    """Records of uncompressed text files, found by their bytes. A subclass says what a record is."""

    unit = "byte"
    kind = ""

    def __init__(
        self,
        text: _TextFiles,
        *,
        column: str = "text",
        features: dict | None = None,
        fingerprint: str = "",
        piece_bytes: int = PIECE_BYTES,
    ):
        self._text = text
        self._total = int(text.sizes.sum())
        pieces, weights = self._cut(max(piece_bytes, -(-self._total // MAX_PIECES)))
        super().__init__(
            files=text.names,
            columns=[column],
            features=features or {column: datasets.Value("string")},
            pieces=pieces,
            piece_bytes=weights,
            fingerprint=_digest(fingerprint, self.kind, column, piece_bytes).hexdigest(),
        )
        self._count_rows()
        self.description = (
            f"{_describe(len(text.names), f'{self.kind} files')}, {'' if self.num_rows_exact else 'about '}"
            f"{_describe(self.num_rows, 'rows')}, column {column!r}"
        )

    def _cut(self, target: int) -> tuple[np.ndarray, np.ndarray]:
        sizes = self._text.sizes
        parts = -(-sizes // target)
        file = np.repeat(np.arange(len(sizes)), parts)
        part = np.arange(len(file)) - np.repeat(np.cumsum(parts) - parts, parts)
        pieces = np.empty((len(file), 4), dtype=np.int64)
        pieces[:, 0], pieces[:, 1], pieces[:, 2] = file, part * target, np.minimum((part + 1) * target, sizes[file])
        pieces[:, 3] = np.arange(len(pieces))
        if self._text.remote:
            begins_group = part % max(1, REMOTE_GROUP_BYTES // target) == 0
            pieces[:, 3] = np.cumsum(begins_group) - 1
        return pieces, pieces[:, 2] - pieces[:, 1]

    def _count_rows(self) -> None:
        """Count the rows of a small data set; of a large one estimate them from pieces all over it."""
        picked = np.arange(len(self.pieces))
        if self._text.remote or self._total > COUNT_BYTES:
            picked = np.unique(np.linspace(0, len(picked) - 1, 4 if self._text.remote else 32).astype(np.int64))
        rows = 0
        for index in picked.tolist():
            piece = self.read(index)
            rows += len(piece.rows) + len(piece.bad)
        self._text.cache.data.clear()
        self.num_rows_exact = len(picked) == len(self.pieces)
        if not self.num_rows_exact:
            rows = max(rows, round(rows * self._total / int(self.piece_bytes[picked].sum())))
        self.num_rows = rows

    def read(self, index: int) -> PieceRows:
        file, start, stop, group = self.pieces[index].tolist()
        if self._text.remote:
            first, last = np.searchsorted(self.pieces[:, 3], [group, group + 1])
            # A margin on both sides for the records that cross the borders.
            begin = max(int(self.pieces[first, 1]) - 1, 0)
            self._text.prefetch(group, file, begin, int(self.pieces[last - 1, 2]) + PIECE_BYTES)
        return self._records(file, start, stop)

    def _records(self, file: int, start: int, stop: int) -> PieceRows:
        raise NotImplementedError


class JsonLinesSource(BytesSource):
    """One JSON object per line. Blank lines are no rows."""

    kind = "jsonl"

    def _records(self, file: int, start: int, stop: int) -> PieceRows:
        starts, lines, too_long = self._text.lines(file, start, stop)
        column = self.columns[0]
        decode = json.JSONDecoder().raw_decode
        rows, values = [], []
        for row, line in zip(starts.tolist(), lines, strict=True):
            if type(line) is not str:
                rows.append(row)
                values.append(line)
                continue
            line = line.strip(" \t\r")
            if not line:
                continue
            rows.append(row)
            try:
                record, end = decode(line)
                if end < len(line):
                    values.append(_Damage(f"invalid JSON (extra data at character {end})"))
                    continue
                value = record[column]
                if "\\u" in line and type(value) is str:
                    value.encode("utf-8")
                values.append(value)
            except KeyError:
                values.append(_Damage(f"no {column!r}"))
            except UnicodeEncodeError:
                # Valid JSON, but no text: no tokenizer takes it.
                values.append(_Damage(f"{column!r} has an unpaired surrogate"))
            except TypeError:
                values.append(_Damage(f"a JSON {type(record).__name__} instead of an object"))
            except (ValueError, RecursionError) as error:
                values.append(_Damage(f"invalid JSON ({_first_line(error)})"))
        result = _text_rows(np.array(rows, dtype=np.int64), values, column)
        result.bad.extend(too_long)
        return result


def _json_features(text: _TextFiles) -> dict:
    """Columns and their types, from the first records of a few files."""
    full = np.flatnonzero(text.sizes).tolist()
    values: dict[str, list] = {}
    for file in sorted({full[0], full[len(full) // 3], full[2 * len(full) // 3], full[-1]}):
        _, lines, _ = text.lines(file, 0, min(1 << 18, int(text.sizes[file])))
        for line in lines[:500]:
            try:
                record = json.loads(line)
            except (TypeError, ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                for name, value in record.items():
                    values.setdefault(name, []).append(value)
    return {name: _json_feature(column) for name, column in values.items()}


def _json_feature(values: list):
    values = [value for value in values if value is not None]
    if not values:
        return datasets.Value("null")
    if 2 * sum(type(value) is str for value in values) >= len(values):
        return datasets.Value("string")
    try:
        return datasets.Features.from_arrow_schema(pa.schema([("column", pa.array(values).type)]))["column"]
    except (pa.ArrowException, ValueError):
        return datasets.Value("null")


class TextLinesSource(BytesSource):
    """One sample per line. Blank lines are no rows."""

    kind = "txt"

    def _records(self, file: int, start: int, stop: int) -> PieceRows:
        starts, lines, too_long = self._text.lines(file, start, stop)
        lines = [line.removesuffix("\r") if type(line) is str else line for line in lines]
        kept = [i for i, line in enumerate(lines) if type(line) is not str or (line and not line.isspace())]
        if len(kept) < len(lines):
            starts, lines = starts[kept], [lines[i] for i in kept]
        result = _text_rows(starts, lines, "text")
        result.bad.extend(too_long)
        return result


class TextParagraphsSource(BytesSource):
    """One sample per paragraph: lines up to a blank one."""

    kind = "txt (by paragraph)"

    def _records(self, file: int, start: int, stop: int) -> PieceRows:
        first, data, whole = self._text.block(file, start, stop)
        begins, is_open = [], False
        if data is not None:
            after_blank, at = self._text.follows_blank_line(file, first), 0
            for line in data.split(b"\n"):
                if first + at == 0:
                    is_blank = not line.removeprefix(codecs.BOM_UTF8).strip(BLANK)
                else:
                    is_blank = not line.strip(BLANK)
                if after_blank and not is_blank:
                    begins.append(at)
                # The paragraph at the end of the range may go on behind it, if it is one of ours.
                is_open = not is_blank and bool(begins)
                after_blank = is_blank
                at += len(line) + 1
        if is_open and whole:
            end = len(data)
            data += self._text.read(file, first + end, first + end + 4096)
            data, whole = self._text.extend(file, first, data, end, _blank_line)
        too_long = [(first + begins.pop(), _TOO_LONG)] if is_open and not whole else []
        rows, values = [], []
        for begin in begins:
            end = _blank_line(data, begin)
            value = data[begin:] if end < 0 else data[begin:end]
            if first + begin == 0:
                value = value.removeprefix(codecs.BOM_UTF8)
            value = _decode(value)
            if type(value) is str:
                value = value.replace("\r\n", "\n").rstrip()
                if not value:
                    continue
            rows.append(first + begin)
            values.append(value)
        result = _text_rows(np.array(rows, dtype=np.int64), values, "text")
        result.bad.extend(too_long)
        return result


_BLANK_LINE = re.compile(rb"\n[ \t\r\x0b\x0c]*\n")


def _blank_line(data: bytes, at: int) -> int:
    """Where the text before the next blank line ends, -1 if there is none."""
    match = _BLANK_LINE.search(data, at)
    return match.start() if match else -1


class TextDocumentsSource(BytesSource):
    """One sample per file. A piece is a file, or a run of files where there are very many; rows count files."""

    kind = "txt (by document)"
    unit = "file"

    def where(self, index: int, row: int) -> str:
        return self.files[row]

    def _cut(self, target: int) -> tuple[np.ndarray, np.ndarray]:
        sizes = self._text.sizes
        starts = np.arange(0, len(sizes), -(-len(sizes) // MAX_PIECES))
        stops = np.append(starts[1:], len(sizes))
        return np.stack([starts, starts, stops, np.arange(len(starts))], axis=1), np.add.reduceat(sizes, starts)

    def _count_rows(self) -> None:
        self.num_rows = len(self._text.sizes)

    def read(self, index: int) -> PieceRows:
        _, start, stop, _ = self.pieces[index].tolist()
        values = []
        for file in range(start, stop):
            if self._text.sizes[file] > MAX_RECORD_BYTES:
                values.append(_Damage(_TOO_LONG))
                continue
            value = _decode(self._text.read(file, 0, int(self._text.sizes[file])).removeprefix(codecs.BOM_UTF8))
            values.append(value.replace("\r\n", "\n") if type(value) is str else value)
        return _text_rows(np.arange(start, stop), values, "text")


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
        pieces, weights = _row_pieces([len(dataset)], [size], [0], [0], piece_bytes)
        # Memory-mapped: any piece is as near as any other.
        pieces[:, 3] = np.arange(len(pieces))
        super().__init__(
            files=[name],
            columns=[column],
            features=features,
            pieces=pieces,
            piece_bytes=weights,
            fingerprint=_digest(
                fingerprint or dataset._fingerprint, "table", column, piece_bytes, len(dataset)
            ).hexdigest(),
        )
        self._blank_is_damage = blank_is_damage
        self.num_rows = len(dataset)
        self.description = f"{name}, {_describe(len(dataset), 'rows')}, column {column!r}"

    def read(self, index: int) -> PieceRows:
        _, start, stop, _ = self.pieces[index].tolist()
        values = _arrow_values(_plain_text(self._table[start:stop].column(0)))
        rows = np.arange(start, stop)
        if not self._blank_is_damage:
            kept = [i for i, value in enumerate(values) if type(value) is not str or (value and not value.isspace())]
            rows, values = rows[kept], [values[i] for i in kept]
        return _text_rows(rows, values, self.columns[0])


def open_source(
    dataset: str | os.PathLike | None,
    *,
    modality: str = "text",
    column: str | None = None,
    config: str | None = None,
    split: str = "train",
    sample_by: str = "line",
    streaming: bool = True,
    revision: str | None = None,
    piece_bytes: int = PIECE_BYTES,
) -> Source:
    """Open what the user typed for `--dataset`.

    Args:
        dataset (`str`, *optional*):
            A Hub id, a local file or folder, a glob, a folder of `save_to_disk`; `None` is the embedded corpus.
        modality (`str`, *optional*, defaults to `"text"`):
            What the samples are.
        column (`str`, *optional*):
            The column that holds them; found by its type and name if not given.
        config, split, revision (`str`, *optional*):
            As in `datasets.load_dataset`; `revision` for Hub ids only.
        sample_by (`str`, *optional*, defaults to `"line"`):
            A sample of a txt file: a `"line"`, a `"paragraph"` (up to a blank line) or the file (`"document"`).
        streaming (`bool`, *optional*, defaults to `True`):
            Read the files where they are. `False` converts them once to a memory-mapped cache.
        piece_bytes (`int`, *optional*, defaults to 65536):
            About how much text a piece has.

    Raises:
        `DataError`: with a sentence that says what to do, for everything that is wrong with the input.

    Example:
        >>> source = open_source("corpus/*.jsonl", column="text")
        >>> source.read(0).columns["text"][:2]
        ['The first record.', 'The second record.']
    """
    if modality not in READABLE:
        raise DataError(f"Data of modality {modality!r} cannot be read yet. Supported: {', '.join(READABLE)}.")
    if sample_by not in SAMPLE_BY:
        raise DataError(f"`sample_by` says what a sample of a txt file is: {', '.join(SAMPLE_BY)}. Got {sample_by!r}.")
    if dataset is None:
        _check_embedded(column, config, split)
        from .embedded import embedded_text

        version = ".".join(map(str, sys.version_info[:3]))
        name = f"embedded corpus (documentation of Python {version})"
        source = MemorySource(embedded_text(), name=name, piece_bytes=piece_bytes)
    else:
        source = _open(_find(os.fspath(dataset), config, revision), column, split, sample_by, streaming, piece_bytes)
    if source.num_rows == 0:
        raise DataError(
            f"{str(dataset)!r} is empty: its split {split!r} ({source.description.split(',')[0]}) has no rows."
        )
    return source


def available_splits(
    dataset: str | os.PathLike | None, *, config: str | None = None, revision: str | None = None
) -> list[str]:
    """The splits that [`open_source`] can open."""
    if dataset is None:
        return ["train"]
    return list(_find(os.fspath(dataset), config, revision).splits)


@dataclass
class _Found:
    """A data set whose files are known and not yet opened.

    `module` is the format by the `datasets` library's name, `"saved"` for a folder of `save_to_disk`. `splits` maps to
    the paths of the files; `load` holds the arguments with which `datasets.load_dataset` loads the same.
    """

    name: str
    module: str
    splits: dict[str, list[str]]
    root: str = ""
    features: dict | None = None
    options: dict = field(default_factory=dict)
    load: dict = field(default_factory=dict)


def _check_embedded(column: str | None, config: str | None, split: str) -> None:
    for given, value, only in (("column", column, "text"), ("split", split, "train"), ("configuration", config, None)):
        if value not in (None, only):
            has = f"its only {given} is {only!r}" if only else "it has none"
            raise DataError(
                f"The embedded corpus has no {given} {value!r}: {has}. Name your own data with `--dataset`."
            )


def _open(found: _Found, column: str | None, split: str, sample_by: str, streaming: bool, piece_bytes: int) -> Source:
    if split not in found.splits:
        listing = ", ".join(repr(name) for name in found.splits) or "none"
        raise DataError(
            f"{found.name!r} has no split {split!r}. Its splits are: {listing}. Choose one with `--split`."
        )
    if found.module == "saved":
        table = _third_party(
            lambda: datasets.load_from_disk(found.splits[split][0]), f"{found.name!r} cannot be loaded"
        )
        digest = _files_digest(*_local_files(found.splits[split][0], "*.arrow"))
        return TableSource(table, name=found.name, column=column, fingerprint=digest, piece_bytes=piece_bytes)
    paths = found.splits[split]
    if not paths:
        return _convert(found, column, split, sample_by, piece_bytes, None, "it is not made of files")
    paths = [path.removeprefix("file://") for path in paths]
    if any(not _is_remote(path) for path in paths):
        _check_readable(paths)
    names = _relative(paths, found.root)
    sizes, ids = _sizes(paths)
    if not sum(sizes):
        raise DataError(
            f"{found.name!r} is empty: {_describe(len(paths), 'files')} of split {split!r} without a single byte."
        )
    fingerprint = _files_digest(paths, names, sizes, ids)
    why = _why_convert(found, paths, sizes) if streaming else "streaming is off"
    if why:
        return _convert(found, column, split, sample_by, piece_bytes, fingerprint, why)

    common = {"fingerprint": fingerprint, "piece_bytes": piece_bytes}
    if found.module == "parquet":
        source = ParquetSource(
            paths, names, dataset=repr(found.name), column=column, features=found.features, **common
        )
        if source.largest_group_bytes > MAX_ROW_GROUP_BYTES and not _is_remote(paths[0]):
            why = f"it has row groups of {source.largest_group_bytes >> 20} MiB, too large to decode whole"
            found = replace(found, load={"path": "parquet", "data_files": {split: paths}, "columns": source.columns})
            return _convert(found, column, split, sample_by, piece_bytes, fingerprint, why)
        return source
    if found.module == "arrow":
        table = _third_party(
            lambda: datasets.concatenate_datasets([datasets.Dataset.from_file(path) for path in paths]),
            f"The arrow files of {found.name!r} cannot be opened",
        )
        return TableSource(table, name=found.name, column=column, **common)
    text = _TextFiles(paths, names, sizes)
    _check_encoding(text)
    if found.module == "json":
        features = found.features or _json_features(text)
        if not features:
            raise DataError(
                f"{names[0]!r} of {found.name!r} does not begin with JSON objects, one a line. Mend it, or rename it "
                "to `.txt` to read it as plain text."
            )
        return JsonLinesSource(
            text, column=find_column(features, "text", column, repr(found.name)), features=features, **common
        )
    find_column({"text": datasets.Value("string")}, "text", column, repr(found.name))
    kinds = {"line": TextLinesSource, "paragraph": TextParagraphsSource, "document": TextDocumentsSource}
    return kinds[sample_by](text, **common)


def _why_convert(found: _Found, paths: list[str], sizes: Sequence[int]) -> str | None:
    """Why the files have to go through `datasets.load_dataset`, None if they can be read as they are."""
    if found.module not in ("parquet", "json", "text", "arrow"):
        return f"{found.module} files cannot be opened in the middle"
    packed = [path for path in paths if path.endswith(COMPRESSIONS) or "::" in path]
    if packed:
        return f"compressed files ({os.path.basename(packed[0])}) cannot be opened in the middle"
    if found.module == "arrow":
        if _is_remote(paths[0]):
            return "remote arrow files cannot be memory-mapped"
        for path in paths:
            try:
                pa.ipc.open_stream(pa.memory_map(path)).close()
            except pa.ArrowInvalid:
                return f"{os.path.basename(path)} is an Arrow IPC file, not a stream"
    if found.module == "json":
        full = [path for path, size in zip(paths, sizes, strict=True) if size]
        for i in np.unique(np.linspace(0, len(full) - 1, 2 if _is_remote(full[0]) else 32).astype(int)):
            if not _is_json_lines(full[i]):
                return f"{os.path.basename(full[i])} is one JSON document, not one object a line"
    options = [name for name in ("field", "filters", "columns") if found.options.get(name) is not None]
    if found.options.get("encoding", "utf-8").lower().replace("_", "-") not in ("utf-8", "utf8"):
        options.append("encoding")
    return f"its configuration sets {options[0]!r}" if options else None


def _is_json_lines(path: str) -> bool:
    with _open_bytes(path) as file:
        head = file.read(1 << 20)
    whole = len(head) < 1 << 20
    head = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if not head.startswith(b"{"):
        return not head.startswith(b"[")
    line, newline, _ = head.partition(b"\n")
    if not path.endswith(".json"):
        return True
    try:
        return isinstance(json.loads(line), dict) and (bool(newline) or whole)
    except (ValueError, RecursionError):
        return False


def _convert(
    found: _Found, column: str | None, split: str, sample_by: str, piece_bytes: int, fingerprint: str | None, why: str
) -> TableSource:
    cache = datasets.config.HF_DATASETS_CACHE
    if found.module != "cache":
        logger.info(
            "%s is converted once to a memory-mapped copy in %s, since %s. Later runs use the copy.",
            found.name,
            cache,
            why,
        )
    options = {"sample_by": sample_by} if found.module == "text" else {}
    with _quiet_cards():
        table = _third_party(
            lambda: datasets.load_dataset(**found.load, **options, split=split),
            f"{found.name!r} cannot be converted to a memory-mapped copy in {cache}",
        )
    return TableSource(
        table,
        name=found.name,
        column=column,
        fingerprint=fingerprint and _digest(fingerprint, sample_by).hexdigest(),
        piece_bytes=piece_bytes,
        blank_is_damage=found.module != "text",
    )


def _third_party(call: Callable, problem: str):
    """Call a library; of its errors the innermost reason becomes part of a sentence."""
    try:
        return call()
    except DataError:
        raise
    except Exception as error:
        reason = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        full = getattr(reason, "errno", None) == errno.ENOSPC
        remedy = " Free some space, or point HF_HOME to another disk." if full else ""
        raise DataError(f"{problem} ({type(reason).__name__}: {_first_line(reason)}).{remedy}") from error


def _find(dataset: str, config: str | None, revision: str | None) -> _Found:
    if not dataset.strip():
        raise DataError(
            "`--dataset` is empty. Pass a Hub id, a file, a folder or a glob, or leave it out for the embedded corpus."
        )
    path = os.path.expanduser(dataset)
    if os.path.isfile(path):
        return _find_files(dataset, [os.path.abspath(path)], config)
    if os.path.isdir(path):
        return _find_folder(dataset, os.path.realpath(path), config)
    if re.fullmatch(r"hf://datasets/[^/@*]+/[^/@*]+/?", dataset):
        return _find_on_hub(dataset.removeprefix("hf://datasets/").rstrip("/"), config, revision)
    if has_magic(path) or "://" in path:
        return _find_glob(dataset, path, config)
    if not _may_be_hub_id(dataset):
        parent = os.path.dirname(path.rstrip("/"))
        hint = f" Neither does the folder {parent!r}." if parent and not os.path.isdir(parent) else _nearest(path)
        raise DataError(f"{dataset!r} does not exist.{hint} Pass an existing file or folder, a glob or a Hub id.")
    return _find_on_hub(dataset, config, revision)


def _find_files(dataset: str, paths: list[str], config: str | None) -> _Found:
    """Files that were named one by one or by a glob: one split, called train."""
    if config is not None:
        raise DataError(f"{dataset!r} has no configuration {config!r}: files have none. Leave `--dataset_config` out.")
    count = Counter(_format(path) for path in paths)
    count.pop(None, None)
    if not count:
        raise DataError(f"{dataset!r} is {_extensions(paths)}, which cannot be read. Supported are {SUPPORTED}.")
    # As `datasets` does: the most frequent format wins; the others are left out.
    extension, _ = max(count.items(), key=lambda item: (item[1], item[0] == ".parquet", item[0]))
    module = FORMATS[extension]
    chosen = [path for path in paths if FORMATS.get(_format(path)) == module]
    if len(chosen) < len(paths):
        logger.info("%s: %d of %d files are %s files and are read.", dataset, len(chosen), len(paths), module)
    load = {"path": module, "data_files": {"train": chosen}}
    if extension == ".tsv":
        load["sep"] = "\t"
    root = os.path.dirname(paths[0]) if len(paths) == 1 else _common_folder(paths)
    return _Found(dataset, module, {"train": chosen}, root, load=load)


def _find_glob(dataset: str, path: str, config: str | None) -> _Found:
    try:
        # The text module takes any file: it only resolves the pattern here.
        builder = datasets.load_dataset_builder("text", data_files={"train": [path]})
        paths = list(builder.config.data_files["train"])
    except FileNotFoundError:
        paths = []
    except Exception as error:
        raise DataError(f"{dataset!r} cannot be resolved ({type(error).__name__}: {_first_line(error)}).") from error
    if not paths:
        raise DataError(f"{dataset!r} matches no file. Check it with `ls`; to match at any depth write `**/*`.")
    return _find_files(dataset, paths, config)


def _find_folder(dataset: str, path: str, config: str | None) -> _Found:
    dataset_dict = os.path.join(path, datasets.config.DATASETDICT_JSON_FILENAME)
    if os.path.isfile(dataset_dict):
        with open(dataset_dict, encoding="utf-8") as file:
            splits = _third_party(
                lambda: json.load(file)["splits"], f"{dataset!r} is a damaged folder of `save_to_disk`"
            )
        return _Found(dataset, "saved", {split: [os.path.join(path, split)] for split in splits}, path)
    if os.path.isfile(os.path.join(path, datasets.config.DATASET_STATE_JSON_FILENAME)):
        return _Found(dataset, "saved", {"train": [path]}, path)
    try:
        with _quiet_cards():
            builder = datasets.load_dataset_builder(path, name=config)
    except Exception as error:
        files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
        if not files:
            raise DataError(f"The folder {dataset!r} is empty. Supported files are {SUPPORTED}.") from error
        if isinstance(error, FileNotFoundError):
            unreadable = "" if os.access(path, os.R_OK | os.X_OK) else " Its permissions do not let you list it."
            raise DataError(
                f"The folder {dataset!r} holds {_extensions(files)}, none of which can be read.{unreadable} "
                f"Supported are {SUPPORTED}."
            ) from error
        raise _builder_error(error, dataset, lambda: datasets.get_dataset_config_names(path)) from error
    return _from_builder(builder, dataset, path, {"path": path, "name": config})


@contextmanager
def _quiet_cards():
    """Without the warning that a README.md has no metadata: a folder of text needs none."""
    card_logger = logging.getLogger("huggingface_hub.repocard")
    level = card_logger.level
    card_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        card_logger.setLevel(level)


def _from_builder(builder, dataset: str, root: str, load: dict) -> _Found:
    # "datasets.packaged_modules.json.json"
    module = type(builder).__module__.rpartition(".")[2]
    if module in OTHER_MODALITIES:
        raise DataError(f"{dataset!r} holds {OTHER_MODALITIES[module]}, no text. Supported are {SUPPORTED}.")
    if module == "harbor":
        raise DataError(
            f"{dataset!r} holds markdown or toml files, which are not read as text. Supported are {SUPPORTED}: rename "
            "them to `.txt`."
        )
    files = getattr(builder.config, "data_files", None)
    splits = {str(split): list(paths) for split, paths in (files or {}).items()}
    if not splits:
        splits = {str(split): [] for split in (builder.info.splits or {})}
    features = dict(builder.info.features) if builder.info.features else None
    return _Found(dataset, module, splits, root, features, dict(vars(builder.config)), load)


def _builder_error(error: Exception, dataset: str, config_names: Callable) -> DataError:
    message = str(error)
    if isinstance(error, ValueError) and ("BuilderConfig" in message or "Config name is missing" in message):
        try:
            names = ", ".join(repr(name) for name in config_names())
        except Exception:
            names = _first_line(error)
        return DataError(f"{dataset!r} needs one of its configurations: {names}. Choose one with `--dataset_config`.")
    if isinstance(error, FileNotFoundError):
        return DataError(f"{dataset!r} holds no file that can be read. Supported are {SUPPORTED}.")
    return DataError(f"{dataset!r} cannot be opened ({type(error).__name__}: {_first_line(error)}).")


def _may_be_hub_id(dataset: str) -> bool:
    known = _format(dataset) is not None
    return not known and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", dataset, re.ASCII) is not None


def _find_on_hub(dataset: str, config: str | None, revision: str | None) -> _Found:
    if constants.HF_HUB_OFFLINE:
        return _find_in_cache(dataset, config, revision)
    here = f"There is no file or folder {dataset!r} here.{_nearest(dataset)} "
    try:
        # Asked first because it answers in seconds whether the data set can be had, and fixes the revision.
        commit = HfApi().dataset_info(dataset, revision=revision, timeout=10).sha
        with _quiet_cards():
            builder = datasets.load_dataset_builder(dataset, name=config, revision=commit)
    except Exception as error:
        raise _hub_error(error, dataset, config, revision, here) from error
    load = {"path": dataset, "name": config, "revision": commit}
    return _from_builder(builder, dataset, f"hf://datasets/{dataset}@{commit}", load)


def _hub_error(error: Exception, dataset: str, config: str | None, revision: str | None, here: str) -> DataError:
    page = f"{constants.ENDPOINT}/datasets/{dataset}"
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if any(isinstance(cause, GatedRepoError) for cause in chain) or "is a gated dataset" in str(error):
        return DataError(
            f"{dataset!r} is gated on the Hub: accept its conditions at {page} and log in with `hf auth login`."
        )
    if isinstance(error, RevisionNotFoundError):
        return DataError(
            f"{dataset!r} has no revision {revision!r} on the Hub. Its branches and tags are listed at {page}."
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in chain):
        return DataError(
            f"{here}The Hub has no data set {dataset!r} either, or it is private: check the name, or log in with "
            "`hf auth login`."
        )
    if isinstance(error, HFValidationError):
        return DataError(f"{here}It is no valid Hub id either.")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return DataError(
            f"The Hub refuses access to {dataset!r} (status {status}). Log in with `hf auth login` and a token that "
            "may read it."
        )
    if isinstance(error, HfHubHTTPError):
        return DataError(f"The Hub answered status {status} for {dataset!r} ({_first_line(error)}). Try again later.")
    if isinstance(error, (OfflineModeIsEnabled, httpx.HTTPError, ConnectionError)):
        return DataError(
            f"{here}As a Hub id it cannot be looked up: {constants.ENDPOINT} cannot be reached "
            f"({type(error).__name__}). Without a connection, download it elsewhere (`hf download --repo-type dataset "
            f"{dataset} --local-dir FOLDER`) and pass the folder, or set HF_HUB_OFFLINE=1 where it is in the cache."
        )
    return _builder_error(error, dataset, lambda: datasets.get_dataset_config_names(dataset))


def _find_in_cache(dataset: str, config: str | None, revision: str | None) -> _Found:
    """Offline: what `load_dataset` prepared before, else what was downloaded."""
    try:
        builder = datasets.load_dataset_builder(dataset, name=config)
        return _from_builder(builder, dataset, "", {"path": dataset, "name": config})
    except DataError:
        raise
    except Exception as error:
        logger.debug("No prepared data set %s: %s", dataset, error)
    try:
        folder = snapshot_download(dataset, repo_type="dataset", revision=revision, local_files_only=True)
    except Exception as error:
        raise DataError(
            f"There is no file or folder {dataset!r} here.{_nearest(dataset)} The Hub is not asked because "
            f"HF_HUB_OFFLINE is set, and {dataset!r} is not in the cache ({constants.HF_HOME}). Unset HF_HUB_OFFLINE, "
            f"or download it elsewhere (`hf download --repo-type dataset {dataset} --local-dir FOLDER`) and pass the "
            "folder."
        ) from error
    logger.info("Offline: reading %s from the cache, %s.", dataset, folder)
    return replace(_find_folder(folder, folder, config), name=dataset)


def _is_remote(path: str) -> bool:
    return "://" in path


def _format(path: str) -> str | None:
    """The extension that says the format, below a compression's; None if it is not supported."""
    name = os.path.basename(path).lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    extension = os.path.splitext(name)[1]
    return extension if extension in FORMATS else None


def _extensions(paths: Sequence[str]) -> str:
    count = Counter(os.path.splitext(path)[1] or "without an extension" for path in paths)
    listing = ", ".join(extension for extension, _ in count.most_common(4))
    return f"a file {listing}" if len(paths) == 1 else f"files {listing}"


def _nearest(path: str) -> str:
    """A question, when the folder has something with a similar name."""
    parent, name = os.path.split(path.rstrip("/"))
    try:
        near = difflib.get_close_matches(name, os.listdir(parent or "."), n=1, cutoff=0.6)
    except OSError:
        return ""
    return f" Did you mean {os.path.join(parent, near[0])!r}?" if near else ""


def _check_readable(paths: Iterable[str]) -> None:
    for path in paths:
        if not _is_remote(path) and not os.access(path, os.R_OK):
            raise _unreadable(path, PermissionError() if os.path.exists(path) else FileNotFoundError())


def _common_folder(paths: Sequence[str]) -> str:
    if _is_remote(paths[0]):
        return os.path.commonprefix(paths).rpartition("/")[0]
    return os.path.commonpath([os.path.dirname(path) for path in paths])


def _relative(paths: Sequence[str], root: str) -> list[str]:
    if not root:
        return [os.path.basename(path) for path in paths]
    return [path.removeprefix(root).lstrip("/") for path in paths]


def _local_files(folder: str, pattern: str) -> tuple[list[str], list[str], list[int], list[str]]:
    paths = sorted(str(path) for path in Path(folder).glob(pattern))
    return paths, _relative(paths, folder), [os.path.getsize(path) for path in paths], [""] * len(paths)


def _sizes(paths: Sequence[str]) -> tuple[list[int], list[str]]:
    """Size of each file, and for remote files what identifies the content."""
    if not _is_remote(paths[0]):
        return [os.path.getsize(path) for path in paths], [""] * len(paths)

    def look_up(path: str) -> tuple[int, str]:
        filesystem, name = fsspec.core.url_to_fs(path)
        info = filesystem.info(name)
        found = [info[key] for key in ("blob_id", "lfs", "ETag", "etag", "mtime", "LastModified") if info.get(key)]
        return int(info["size"] or 0), str(found[:1])

    try:
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda path: _with_retries(lambda: look_up(path)), paths))
    except Exception as error:
        raise _unreadable(paths[0], error) from error
    return [size for size, _ in found], [identity for _, identity in found]


def _digest(*parts) -> "hashlib._Hash":
    digest = hashlib.sha256(f"hfssl layout {LAYOUT_VERSION}".encode())
    for part in parts:
        digest.update(repr(part).encode("utf-8", "surrogatepass") + b"\0")
    return digest


def _files_digest(paths: Sequence[str], names: Sequence[str], sizes: Sequence[int], ids: Sequence[str]) -> str:
    """Changes with names, sizes and content, not with the place or the time of a copy.

    Of long local files the start, the middle and the end are looked at, of very many files some: enough to notice data
    that were made anew, without reading them. Times of modification do not count: a copy on another disk has new ones.
    """
    digest = _digest(list(names), [int(size) for size in sizes], list(ids))
    if not _is_remote(paths[0]):
        for i in np.unique(np.linspace(0, len(paths) - 1, 512).astype(int)):
            with open(paths[i], "rb", buffering=0) as file:
                for position in (0, sizes[i] // 2, sizes[i] - 4096) if sizes[i] > 1 << 16 else (0,):
                    file.seek(position)
                    digest.update(file.read(4096 if sizes[i] > 1 << 16 else -1))
    return digest.hexdigest()


def _check_encoding(text: _TextFiles) -> None:
    file = int(np.flatnonzero(text.sizes)[0])
    if text.read(file, 0, 2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise DataError(
            f"{text.names[file]!r} is UTF-16, but UTF-8 is needed. Convert it: `iconv -f UTF-16 -t UTF-8 IN > OUT`."
        )
