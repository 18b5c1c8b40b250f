"""What a [`Source`] is, and what all have in common: cutting into pieces, damaged samples, cache, errors."""

import errno
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import datasets
import numpy as np

from ...errors import UserError


# Part of every fingerprint: raise it when the same data are cut into other pieces than before.
LAYOUT_VERSION = 1
# Text in one piece, unless that makes more pieces than `MAX_PIECES`.
PIECE_BYTES = 1 << 16
# Images in one piece. Neighbours often show the same thing (files are sorted by class), so runs of them are short.
PIECE_IMAGES = 8
MAX_PIECES = 1_000_000


class DataError(UserError):
    """The data cannot be had: one sentence that says what was given, what is needed and how to get there."""


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def third_party(call: Callable, problem: str):
    """Call a library; of its errors the innermost reason becomes part of a sentence."""
    try:
        return call()
    except Exception as error:
        reason = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        full = getattr(reason, "errno", None) == errno.ENOSPC
        remedy = " Free some space, or point HF_HOME to another disk." if full else ""
        raise DataError(f"{problem} ({type(reason).__name__}: {first_line(reason)}).{remedy}") from error


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
        modality (`str`):
            What the samples are: `"text"` (`str`) or `"image"` (encoded, `bytes`).
        columns (`list[str]`):
            The columns that [`~Source.read`] returns: the samples first, then what is read beside them.
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
            About how many bytes of samples are in each piece.
        files (`list[str]`):
            Names for messages, relative to the data set.
    """

    unit = "row"
    groups_at_once = 1  # groups between which a process may go to and fro without reading one of them twice

    def __init__(
        self,
        *,
        files: list[str],
        columns: list[str],
        features: dict,
        pieces: np.ndarray,
        piece_bytes: np.ndarray,
        fingerprint: str,
        modality: str = "text",
    ):
        self.modality = modality
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

    def read_beside(self, column: str) -> list:
        """The values of one of the columns beside the samples, of all rows in the order of the pieces.

        The samples are not read where the format allows it. Rows count, whether their sample is damaged or not.
        """
        raise NotImplementedError

    def where(self, file: int, row: int) -> str:
        """Name a sample for messages, such as `"novels.jsonl, byte 4711"`."""
        return f"{self.files[file]}, {self.unit} {row}"


class MemorySource(Source):
    """Samples that are in memory already. They travel with the pickle.

    Args:
        samples (`list[str]` or `list[bytes]`):
            Texts or encoded images.
        name (`str`):
            What the user calls them.
        column (`str`, *optional*, defaults to `"text"`):
            What their column is called.
        beside (`dict[str, list]`, *optional*):
            Columns beside.
        features (`dict`, *optional*):
            `datasets` features of all columns, if they are not just texts.
        piece_bytes (`int`, *optional*):
            About how large a piece of texts is.
    """

    def __init__(
        self,
        samples: list,
        *,
        name: str,
        column: str = "text",
        modality: str = "text",
        beside: dict[str, list] | None = None,
        features: dict | None = None,
        piece_bytes: int = PIECE_BYTES,
    ):
        encoded = [text.encode("utf-8", "replace") for text in samples] if modality == "text" else samples
        size = float(sum(map(len, encoded)))
        digest = new_digest("memory", column, piece_bytes, len(samples))
        for sample in encoded:
            digest.update(sample + b"\0")
        pieces, weights = even_pieces(len(samples), size, piece_target(modality, size, len(samples), piece_bytes))
        super().__init__(
            files=[name],
            columns=[column, *(beside or {})],
            features=features or {column: datasets.Value("string")},
            pieces=pieces,
            piece_bytes=weights,
            fingerprint=digest.hexdigest(),
            modality=modality,
        )
        self._columns = {column: samples, **(beside or {})}
        self.num_rows = len(samples)
        self.description = f"{name}, {describe(len(samples), 'rows')}, column {column!r}"

    def read(self, index: int) -> PieceRows:
        _, start, stop, _ = self.pieces[index]
        columns = {name: values[start:stop] for name, values in self._columns.items()}
        return good_rows(np.arange(start, stop), columns, self.modality)

    def read_beside(self, column: str) -> list:
        return self._columns[column]


class Cache:
    """What a process and thread keeps of a source: open files, decoded data. Pickled and forked empty.

    A forked child starts anew too, since it would share file positions with its parent.
    """

    def __init__(self):
        self._local = threading.local()

    def __reduce__(self):
        return Cache, ()

    def _mine(self) -> threading.local:
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.pid, self._local.files, self._local.data = os.getpid(), OrderedDict(), OrderedDict()
        return self._local

    @property
    def data(self) -> OrderedDict:
        return self._mine().data

    def open(self, key: int | str, opener: Callable, most: int):
        """An open file; beyond `most` the least recently used one is closed."""
        files = self._mine().files
        if key not in files:
            files[key] = opener()
            while len(files) > most:
                files.popitem(last=False)[1].close()
        files.move_to_end(key)
        return files[key]

    def forget(self, key: int | str) -> None:
        self._mine().files.pop(key, None)


def without_blank(rows: np.ndarray, values: list) -> tuple[np.ndarray, list]:
    """Leave out blank values where they are no samples, as the blank lines of a text file."""
    kept = [i for i, value in enumerate(values) if type(value) is not str or (value and not value.isspace())]
    if len(kept) < len(values):
        rows, values = rows[kept], [values[i] for i in kept]
    return rows, values


def identity(sample: str | bytes) -> str | bytes:
    """What is equal for samples of equal content, and cheap to keep: a text itself, the digest of an image."""
    return sample if isinstance(sample, str) else hashlib.blake2b(sample, digest_size=16).digest()


@dataclass
class Damage:
    """Stands in for the value of a damaged sample until `good_rows` sorts it out."""

    reason: str


_TYPES = {"text": (str, "text"), "image": (bytes, "an encoded image")}


def good_rows(rows: np.ndarray, columns: dict[str, list], modality: str = "text") -> PieceRows:
    """Leave out what is no sample: null, of another type, empty or white space only. The first column holds them."""
    column, values = next(iter(columns.items()))
    wanted, words = _TYPES[modality]
    damaged = [i for i, value in enumerate(values) if type(value) is not wanted or not value or value.isspace()]
    if not damaged:
        return PieceRows(rows, columns, [])
    bad = []
    for i in damaged:
        value = values[i]
        if isinstance(value, Damage):
            reason = value.reason
        elif value is None:
            reason = f"{column!r} is null"
        elif isinstance(value, wanted):
            reason = f"{column!r} is empty"
        else:
            reason = f"{column!r} is {type(value).__name__}, not {words}"
        bad.append((int(rows[i]), reason))
    keep = np.ones(len(values), dtype=bool)
    keep[damaged] = False
    kept = np.flatnonzero(keep).tolist()
    return PieceRows(rows[keep], {name: [values[i] for i in kept] for name, values in columns.items()}, bad)


def decode_utf8(value: bytes):
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        return Damage(f"not valid UTF-8 (byte {error.start} of the sample)")


def row_pieces(
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


def piece_target(modality: str, size: float, count: int, piece_bytes: int) -> int:
    """How large a piece of `count` samples of `size` bytes in all is to be: of images, a few of them."""
    return piece_bytes if modality == "text" else max(round(PIECE_IMAGES * size / max(count, 1)), 1)


def even_pieces(count: int, size: float, piece_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut one run of rows in memory, or memory-mapped: each piece is a group, since all are equally near."""
    pieces, weights = row_pieces([count], [size], [0], [0], piece_bytes)
    pieces[:, 3] = np.arange(len(pieces))
    return pieces, weights


def new_digest(*parts) -> "hashlib._Hash":
    digest = hashlib.sha256(f"hfssl layout {LAYOUT_VERSION}".encode())
    for part in parts:
        digest.update(repr(part).encode("utf-8", "surrogatepass") + b"\0")
    return digest


def describe(count: int, what: str) -> str:
    return f"{count:,} {what}" if count != 1 else f"1 {what.removesuffix('s')}"
