"""What a [`Source`] is, and what all have in common: cutting into pieces, damaged samples, cache, errors."""

import errno
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import DataError, first_line
from ..modality import Input, leading_input
from ..modality import modality as find_modality


# Part of every fingerprint: raise it when the same data are cut into other pieces than before.
LAYOUT_VERSION = 1
# Text in one piece, unless that makes more pieces than `MAX_PIECES`.
PIECE_BYTES = 1 << 16
MAX_PIECES = 1_000_000


def third_party(call: Callable, problem: str):
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
        raise DataError(f"{problem} ({type(reason).__name__}: {first_line(reason)}).{remedy}") from error


@dataclass
class PieceRows:
    """The samples of one piece.

    Attributes:
        rows (`np.ndarray` of shape `(num_samples,)`):
            Where each sample is in its file: the row number, or the byte at which the record starts. Unique within
            the file and the same in every pass.
        columns (`dict[str, list]`):
            By the name of the input, one value per sample; `None` where an input that is not required is missing.
        bad (`list[tuple[int, str]]`):
            Row and reason of each damaged sample that was left out.
        num_empty (`int`):
            Samples that were skipped because they have no content, such as blank texts.
    """

    rows: np.ndarray
    columns: dict[str, list]
    bad: list[tuple[int, str]]
    num_empty: int = 0


class Source:
    """A data set as pieces that can be read in any order, from any process.

    Attributes:
        description (`str`):
            One line for the log.
        inputs (`dict[str, Input]`):
            What [`~Source.read`] returns, by name, each with the column of the data set that holds it.
        features (`dict`):
            Column to `datasets` feature, for all columns of the data set that are known.
        num_rows (`int`), num_rows_exact (`bool`):
            Rows, damaged and empty ones included; estimated from some pieces where counting would mean reading
            everything.
        fingerprint (`str`):
            Changes with the data (names within the folder, sizes, sampled content, revision) and the columns of all
            inputs that have a modality, not with the place of the folder.
        pieces (`np.ndarray` of shape `(num_pieces, 4)`):
            `file, start, stop, group` of each piece; start and stop are rows or bytes. Pieces of one group are cheap
            to read one after the other, since they come out of one row group or one request.
        piece_bytes (`np.ndarray` of shape `(num_pieces,)`):
            About how many bytes of samples are in each piece.
        files (`list[str]`):
            Names for messages, relative to the data set.
        class_folders (`Sequence[str]`):
            The folders that are the classes of the column `label`, where these are what it is made of.
        tables (`Sequence[str]`):
            Names of the files beside the samples whose columns are among `features`.
        mask_folders (`Sequence[str]`):
            The folders with masks of its samples, which are left out.
        hub (`dict[str, str]`):
            Of a data set of the Hub `id`, `split` and, where they are known, `config` and `revision`; else empty.
    """

    unit = "row"
    class_folders: Sequence[str] = ()
    tables: Sequence[str] = ()
    mask_folders: Sequence[str] = ()
    hub: dict[str, str] = {}
    groups_at_once = 1  # groups between which a process may go to and fro without reading one of them twice

    def __init__(
        self,
        *,
        files: list[str],
        inputs: dict[str, Input],
        features: dict,
        pieces: np.ndarray,
        piece_bytes: np.ndarray,
        fingerprint: str,
    ):
        self.files = files
        self.inputs = inputs
        self.features = features
        self.pieces = pieces
        self.piece_bytes = piece_bytes
        self.fingerprint = fingerprint
        of_modality = {name: wanted for name, wanted in inputs.items() if wanted.modality is not None}
        if len(of_modality) > 1:  # of one, `fingerprint` has the column already
            self.fingerprint = new_digest(fingerprint, "inputs", sorted(of_modality.items())).hexdigest()
        required = [name for name, wanted in of_modality.items() if wanted.required]
        self.sample_inputs = required or list(of_modality)
        self.description = ""
        self.num_rows = 0
        self.num_rows_exact = True

    def __len__(self) -> int:
        return len(self.pieces)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.description})"

    @property
    def columns(self) -> list[str]:
        """The names of the inputs: the keys of what [`~Source.read`] returns."""
        return list(self.inputs)

    @property
    def leading(self) -> str:
        """The name of the input whose modality is the source's, see [`~hfssl.data.modality.leading_input`]."""
        return leading_input(self.inputs)

    @property
    def modality(self) -> str:
        """The modality of the leading input: what pieces, blocks and counts go by."""
        return self.inputs[self.leading].modality

    def read(self, index: int) -> PieceRows:
        """Read one piece. Damaged samples are left out and listed in `bad`, empty ones are counted."""
        raise NotImplementedError

    def read_input(self, name: str) -> list:
        """The values of one input, of all rows in the order of the pieces, as the data set has them.

        The other inputs are not read where the format allows it. Rows count, whether their sample is damaged or not.
        Formats that hold nothing beside the samples have no such values.
        """
        raise NotImplementedError

    def samples(self, read: PieceRows) -> list:
        """What a piece holds as a list of samples: values of the input, or one `dict` of values by name each where
        several inputs have a modality."""
        names = [name for name, wanted in self.inputs.items() if wanted.modality is not None]
        if len(names) == 1:
            return read.columns[names[0]]
        return [
            dict(zip(names, values, strict=True))
            for values in zip(*(read.columns[name] for name in names), strict=True)
        ]

    def content(self, columns: dict[str, list], index: int) -> str | bytes:
        """What is equal for samples of equal content, wherever they lie: by it samples are held out.

        Args:
            columns (`dict[str, list]`):
                Values by the name of the input, as [`~Source.read`] returns them.
            index (`int`):
                Which of them.

        Returns:
            `str | bytes`: the [`identity`] of the one input of a modality that is required; of several the digest of
            theirs. Where none is required, all inputs of a modality count.
        """
        if len(self.sample_inputs) == 1:
            return identity(columns[self.sample_inputs[0]][index])
        digest = hashlib.blake2b(digest_size=16)
        for name in self.sample_inputs:
            value = columns[name][index]
            known = b"" if value is None else hashlib.blake2b(content_bytes(value), digest_size=16).digest()
            digest.update(repr((name, known)).encode())
        return digest.digest()

    def held_out_by(self, columns: dict[str, list], index: int) -> str | bytes:
        """What samples are held out and left out by: all that are equal in it go together.

        That is their [`~Source.content`], but of several required inputs the [`identity`] of the leading one: an image
        that is measured on is not trained on with another caption either.
        """
        if len(self.sample_inputs) > 1 and self.inputs[self.leading].required:
            return identity(columns[self.leading][index])
        return self.content(columns, index)

    def place(self, files: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the source among those of a mixture, and of the file within it, of some `files`."""
        return np.zeros_like(files), files

    def where(self, file: int, row: int) -> str:
        """Name a sample for messages, such as `"novels.jsonl, byte 4711"`."""
        return f"{self.files[file]}, {self.unit} {row}"


class MemorySource(Source):
    """Samples that are in memory already. They travel with the pickle.

    Args:
        samples (`list`):
            Samples of the modality, such as texts or encoded images.
        name (`str`):
            What the user calls them.
        column (`str`, *optional*, defaults to `"text"`):
            What their column is called.
        modality (`str`, *optional*, defaults to `"text"`):
            What they are, and the name of the input.
        inputs (`dict[str, Input]`, *optional*):
            Instead of `modality`: several inputs, each with its column, of which `column` is the leading one's.
        beside (`dict[str, list]`, *optional*):
            The other columns.
        features (`dict`, *optional*):
            `datasets` features of all columns, if there is not just one.
        piece_bytes (`int`, *optional*):
            About how large a piece of small samples is.
    """

    def __init__(
        self,
        samples: list,
        *,
        name: str,
        column: str = "text",
        modality: str = "text",
        inputs: dict[str, Input] | None = None,
        beside: dict[str, list] | None = None,
        features: dict | None = None,
        piece_bytes: int = PIECE_BYTES,
    ):
        inputs = inputs or {modality: Input(modality, column)}
        kind = find_modality(inputs[leading_input(inputs)].modality)
        encoded = list(map(content_bytes, samples))
        size = float(sum(map(len, encoded)))
        digest = new_digest("memory", column, piece_bytes, len(samples))
        for sample in encoded:
            digest.update(sample + b"\0")
        pieces, weights = even_pieces(len(samples), size, piece_target(kind.name, size, len(samples), piece_bytes))
        super().__init__(
            files=[name],
            inputs=inputs,
            features=features or {column: kind.feature()},
            pieces=pieces,
            piece_bytes=weights,
            fingerprint=digest.hexdigest(),
        )
        self._columns = {column: samples, **(beside or {})}
        self.num_rows = len(samples)
        self.description = f"{name}, {describe(len(samples), 'rows')}, column {column!r}"

    def read(self, index: int) -> PieceRows:
        _, start, stop, _ = self.pieces[index]
        columns = {name: self._columns[wanted.column][start:stop] for name, wanted in self.inputs.items()}
        return good_rows(np.arange(start, stop), columns, self.inputs)

    def read_input(self, name: str) -> list:
        return self._columns[self.inputs[name].column]


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


def identity(sample) -> str | bytes:
    """What is equal for samples of equal content, and cheap to keep: a text itself, the digest of all else."""
    return sample if isinstance(sample, str) else hashlib.blake2b(content_bytes(sample), digest_size=16).digest()


def digest_of(identities: Iterable[str | bytes]) -> str:
    """16 characters that depend on a set of identities, in whatever order."""
    digest = hashlib.blake2b(digest_size=8)
    for each in sorted(
        value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value for value in identities
    ):
        digest.update(len(each).to_bytes(8) + each)
    return digest.hexdigest()


def content_bytes(sample) -> bytes:
    """A sample as bytes: what digests and sizes are made of."""
    if isinstance(sample, bytes):
        return sample
    return (sample if isinstance(sample, str) else repr(sample)).encode("utf-8", "replace")


@dataclass
class Damage:
    """Stands in for the value of a damaged sample until `good_rows` sorts it out."""

    reason: str


class Empty:
    """Stands in for a sample that is whole, and of which nothing is left, such as silence."""


def good_rows(rows: np.ndarray, columns: dict[str, list], inputs: dict[str, Input]) -> PieceRows:
    """Leave out rows without a required input, and put `None` where another one is missing.

    Args:
        rows (`np.ndarray` of shape `(num_rows,)`):
            See [`PieceRows`].
        columns (`dict[str, list]`):
            By the name of the input, one value per row. [`Damage`] stands for what is broken.
        inputs (`dict[str, Input]`):
            The inputs of the source. A value of a modality is missing where it is null, damaged, of another type or
            empty; any other value where it is null or damaged. Where a sample needs several inputs of a modality, a
            row that has none of one of them is no sample: it counts as empty and not as damaged. The parts of an
            input are one.
    """
    of_modality = {name: wanted for name, wanted in inputs.items() if wanted.modality is not None}
    needed = {wanted.part_of or name for name, wanted in of_modality.items() if wanted.required or wanted.part_of}
    several = len(needed) > 1
    bad: dict[int, str] = {}
    empty: set[int] = set()
    num_without: dict[int, int] = {}  # row -> inputs of a modality that it lacks
    columns = dict(columns)
    for name, wanted in inputs.items():
        values, missing, blank = columns[name], *_missing(columns[name], wanted, several)
        if not missing and not blank:
            continue
        if wanted.required:
            for i, reason in missing.items():
                bad.setdefault(i, reason)
            empty |= blank
            continue
        columns[name] = values = list(values)
        for i in (*missing, *blank):
            values[i] = None
            if wanted.modality is not None:
                num_without[i] = num_without.get(i, 0) + 1
    empty |= {i for i, number in num_without.items() if number == len(of_modality)}  # nothing is left of the row
    empty -= set(bad)
    if not bad and not empty:
        return PieceRows(rows, columns, [])
    keep = np.ones(len(rows), dtype=bool)
    keep[[*bad, *empty]] = False
    kept = np.flatnonzero(keep).tolist()
    columns = {name: [values[i] for i in kept] for name, values in columns.items()}
    return PieceRows(rows[keep], columns, [(int(rows[i]), bad[i]) for i in sorted(bad)], len(empty))


def _missing(values: list, wanted: Input, null_is_empty: bool) -> tuple[dict[int, str], set[int]]:
    """Which values of an input are missing and why, and which are only empty."""
    column = wanted.column
    if wanted.modality is None:
        nothing = [i for i, value in enumerate(values) if value is None or isinstance(value, Damage)]
        return {i: f"{column!r} is null" if values[i] is None else values[i].reason for i in nothing}, set()
    kind = find_modality(wanted.modality)
    types, is_empty = kind.sample_types, kind.is_empty
    missing, blank = {}, set()
    for i in [i for i, value in enumerate(values) if type(value) not in types or is_empty(value)]:
        value = values[i]
        if isinstance(value, Damage):
            missing[i] = value.reason
        elif value is None and null_is_empty:
            blank.add(i)
        elif value is None:
            missing[i] = f"{column!r} is null"
        elif type(value) not in types:
            missing[i] = f"{column!r} is {type(value).__name__}, not {kind.sample_words}"
        elif kind.empty_is_damage:
            missing[i] = f"{column!r} is empty"
        else:
            blank.add(i)
    return missing, blank


def decode_utf8(value: bytes):
    """The text of some bytes, or the damage where they are none."""
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


def piece_target(name: str, size: float, count: int, piece_bytes: int) -> int:
    """How many bytes a piece is to have, where `count` samples of the modality `name` have `size` bytes in all."""
    samples = find_modality(name).samples_per_piece
    return piece_bytes if samples is None else max(round(samples * size / max(count, 1)), 1)


def even_pieces(count: int, size: float, piece_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut one run of rows in memory, or memory-mapped: each piece is a group, since all are equally near."""
    pieces, weights = row_pieces([count], [size], [0], [0], piece_bytes)
    pieces[:, 3] = np.arange(len(pieces))
    return pieces, weights


def new_digest(*parts) -> "hashlib._Hash":
    """A SHA-256 that has these parts in it, and the version of how data are laid out in pieces."""
    digest = hashlib.sha256(f"hfssl layout {LAYOUT_VERSION}".encode())
    for part in parts:
        digest.update(repr(part).encode("utf-8", "surrogatepass") + b"\0")
    return digest


def describe(count: int, what: str) -> str:
    """So many of something, named in the plural: `"1 image"`, `"1,200 images"`."""
    return f"{count:,} {what}" if count != 1 else f"1 {what.removesuffix('s')}"
