"""Webdataset tars: a sample is a run of members that share their name up to its first dot, and the rest is the field.

Where parts behind the first dot count on, as in `clip.frame0.png`, `clip.frame1.png`, each number is a sample of its
own: up to the last such part the name says the sample. What stands beside them without a number, such as `clip.json`,
belongs to each. So do parts of which there are more kinds than columns make sense.

Where samples are a file each and nothing else, class folders become the column `label`, as those of a folder do.
"""

import json
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import datasets
import numpy as np

from ...errors import DataError, first_line
from ..cache import cached_columns
from ..modality import Input, leading_input, modalities, modality
from .base import (
    PIECE_BYTES,
    Cache,
    Damage,
    PieceRows,
    Source,
    decode_utf8,
    describe,
    good_rows,
    new_digest,
    piece_target,
    row_pieces,
)
from .columns import find_inputs
from .files import (
    MAX_SAMPLE_BYTES,
    SplitFiles,
    download_once,
    file_sizes,
    files_digest,
    is_remote,
    open_bytes,
    unreadable,
)
from .walk import class_names, class_of


logger = logging.getLogger(__name__)

# What is before the first dot of a name says the sample, what is behind it the field.
_MEMBER = re.compile(r"((?:.*/|)[^./]+)[.]([^/]+)")
_DIGITS = re.compile(r"\d+")
# Parts between the first dot and the ending, such as `seg` in `1.seg.png`, are columns up to so many.
_MOST_COLUMNS = 16
# Fields that can hold a label or a caption, and are decoded as the `datasets` library does.
_NUMBERS = ("cls", "cls2", "index", "inx", "id")
_TEXTS = ("txt", "text", "transcript")
_JSON = ("json", "jsn")
_SCALARS = {str: "string", bool: "bool", int: "int64", float: "float64"}
# The column of the class folders.
_LABEL = "label"


def read_tars(files: SplitFiles) -> Source:
    """Webdataset tars; remote ones are downloaded first."""

    def of_others() -> list[list[str]]:
        others = [of_split for of_split in files.splits.values() if of_split != files.paths]
        if others and is_remote(files.paths[0]):
            logger.info("%r: a class may be in another split only, so that these are looked through.", files.dataset)
        return [_here(of_split, files.dataset, file_sizes(of_split)[0]) for of_split in others]

    return TarSource(
        _here(files.paths, files.dataset, files.sizes),
        files.names,
        files.sizes,
        inputs=files.inputs,
        dataset=repr(files.dataset),
        others=of_others,
        fingerprint=files.fingerprint,
    )


def _here(paths: list[str], dataset: str, sizes: Sequence[int]) -> list[str]:
    return download_once(paths, dataset, sizes) if is_remote(paths[0]) else paths


class TarSource(Source):
    """Local, uncompressed tars. Their columns are the fields of the samples, and the keys of a json field.

    The headers of a tar are looked through once, and where its members lie is kept in a cache; then any sample is read
    without what lies before it.
    """

    unit = "sample"

    def __init__(
        self,
        paths: list[str],
        files: list[str],
        sizes: Sequence[int],
        *,
        dataset: str,
        inputs: dict[str, Input],
        others: Callable[[], list[list[str]]] = list,
        fingerprint: str = "",
    ):
        self._paths, self._cache = paths, Cache()
        members = [_read_members(path, name, size) for path, name, size in zip(paths, files, sizes, strict=True)]
        names_in = _NamesInFields(field for of_tar in members for _, field, _, _ in of_tar)
        # a column that is asked for by its whole name is one
        if any(names_in.split(wanted.column or "")[0] for wanted in inputs.values()):
            names_in = _NamesInFields(())
        elif names_in:
            logger.info(
                "%s: behind the first dot of their names, files count on, such as %r. Each number is a sample of its "
                "own. To have them as columns of one, name one of them: `%s %s`.",
                dataset, names_in.example, modality(inputs[leading_input(inputs)].modality).column_flag,
                names_in.example,
            )  # fmt: skip
        tars = [_index(of_tar, names_in) for of_tar in members]
        fields = sorted({field for tar in tars for field in tar.fields})
        if not fields:
            raise DataError(
                f"{dataset} holds no webdataset: no file in {files[0]!r} has a name with an extension. Unpack it, and "
                "pass the folder."
            )
        # the modality of which a file with an ending is a sample
        kinds = {ending: name for name in modalities() for ending in modality(name).file_extensions}
        endings = {field: f".{field.rpartition('.')[2]}" for field in fields}
        of_files = {field: kinds[ending] for field, ending in endings.items() if ending in kinds}
        beside = [field for field, kind in of_files.items() if endings[field] in modality(kind).beside_samples]
        with_samples = {kind for field, kind in of_files.items() if field not in beside}
        of_files = {field: kind for field, kind in of_files.items() if field not in beside or kind not in with_samples}
        where = {field: [tar.places(field) for tar in tars] for field in of_files}
        for kind in sorted(set(of_files.values())):
            of_kind = [field for field in fields if of_files.get(field) == kind]
            there = sum(np.concatenate(where[field])[:, 1] >= 0 for field in of_kind)
            if len(of_kind) > 1 and there.max() == 1:  # in one of several formats
                where[kind] = [np.max(places, axis=0) for places in zip(*map(where.pop, of_kind), strict=True)]
                of_files[kind] = kind
        columns = [*where, *(field for field in fields if field not in of_files)]
        features = {field: _feature(field, of_files.get(field)) for field in columns}
        leading = modality(inputs[leading_input(inputs)].modality)
        classes: list[str] = []
        if len(columns) == 1 and of_files.get(columns[0]) == leading.name:
            is_read = any(wanted.column == _LABEL for wanted in inputs.values())
            folders = [_folders_of(of_split, leading.file_extensions) for of_split in (others() if is_read else ())]
            classes = class_names([[name for tar in tars for name in tar.folders], *folders])
        self._json = next((field for field in fields if field in _JSON), None)
        if self._json:
            features = self._json_features([tar.places(self._json) for tar in tars]) | features
        if classes:
            features[_LABEL] = datasets.ClassLabel(names=classes)
        inputs = find_inputs(features, inputs, dataset)
        columns = [wanted.column for wanted in inputs.values()]
        # where each sample lies is kept of the columns only that are read: there may be very many
        self._where = {
            column: where.get(column) or [tar.places(column if column in fields else self._json) for tar in tars]
            for column in columns
            if not classes or column != _LABEL
        }
        # of each sample the number of its class
        self._classes = [
            np.array([classes.index(class_of(name)) for name in tar.folders])[tar.of_folder]
            for tar in (tars if classes and _LABEL in columns else ())
        ]
        self._of_files = {column: of_files[column] for column in columns if column in of_files}

        leading = inputs[leading_input(inputs)]
        counts = [tar.count for tar in tars]
        num_bytes = [float(places[:, 1].clip(0).sum()) for places in self._where[leading.column]]
        target = piece_target(leading.modality, sum(num_bytes), sum(counts), PIECE_BYTES)
        pieces, weights = row_pieces(counts, num_bytes, range(len(paths)), [0] * len(paths), target)
        pieces[:, 3] = np.arange(len(pieces))  # all are equally near
        super().__init__(
            files=files,
            inputs=inputs,
            features=features,
            pieces=pieces,
            piece_bytes=weights,
            fingerprint=new_digest(fingerprint, "tar", leading.column, counts).hexdigest(),
        )
        self.num_rows = sum(counts)
        self.description = (
            f"{describe(len(paths), 'webdataset tars')}, {describe(self.num_rows, 'samples')}, "
            f"column {leading.column!r}"
        )

    def read(self, index: int) -> PieceRows:
        file, start, stop, _ = self.pieces[index].tolist()
        columns = {name: self._values(wanted.column, file, start, stop) for name, wanted in self.inputs.items()}
        return good_rows(np.arange(start, stop), columns, self.inputs)

    def read_input(self, name: str) -> list:
        column, values = self.inputs[name].column, []
        for file in range(len(self._paths)):
            values += self._values(column, file)
        return [None if isinstance(value, Damage) else value for value in values]

    def _values(self, column: str, file: int, start: int = 0, stop: int | None = None) -> list:
        if column == _LABEL and self._classes:
            return self._classes[file][start:stop].tolist()
        places = self._where[column][file][start:stop]
        read = [self._member(file, place, self._of_files.get(column, column)) for place in places.tolist()]
        if column in self._of_files:
            return read
        return [self._decode(column, data) if isinstance(data, bytes) else data for data in read]

    def _decode(self, column: str, data: bytes):
        try:
            if column in _NUMBERS:
                return int(data)
            if column in _TEXTS:
                text = decode_utf8(data)
                return text.strip() if isinstance(text, str) else text
            if isinstance(self.features[column], datasets.Value) and self.features[column].dtype != "binary":
                return json.loads(data).get(column)
        except (ValueError, AttributeError, RecursionError):
            return None
        return data

    def _member(self, file: int, place: tuple[int, int], what: str) -> bytes | Damage:
        offset, size = place
        if size < 0:
            return Damage(f"the sample has no {what}")
        if size > MAX_SAMPLE_BYTES:
            return Damage(f"longer than {MAX_SAMPLE_BYTES >> 20} MiB")
        try:
            handle = self._cache.open(file, lambda: open_bytes(self._paths[file]), most=64)
            handle.seek(offset)
            data = handle.read(size)
        except OSError as error:
            raise unreadable(self._paths[file], error) from error
        return data if len(data) == size else Damage("the tar ends in the middle of it")

    def _json_features(self, places: list[np.ndarray]) -> dict:
        """The keys of the first json member that are columns: those with one value."""
        for file, of_file in enumerate(places):
            for place in of_file[of_file[:, 1] >= 0][:1].tolist():
                try:
                    record = json.loads(self._member(file, place, self._json))
                except (ValueError, TypeError, RecursionError):
                    return {}
                values = record.items() if isinstance(record, dict) else ()
                return {key: datasets.Value(_SCALARS[type(v)]) for key, v in values if type(v) in _SCALARS}
        return {}


def _feature(field: str, of_files: str | None):
    if of_files is not None:
        return modality(of_files).feature()
    if field in _NUMBERS:
        return datasets.Value("int64")
    return datasets.Value("string" if field in _TEXTS else "binary")


@dataclass
class _Index:
    """Where the fields of the samples in a tar lie: one entry of `rows`, `numbers` (of fields) and `members` each.

    Of each folder that holds samples `folders` has the name of one, and `of_folder` which of them a sample is in.
    """

    count: int
    fields: list[str]
    rows: np.ndarray
    numbers: np.ndarray
    members: np.ndarray
    folders: list[str]
    of_folder: np.ndarray

    def places(self, field: str) -> np.ndarray:
        """Offset and size in bytes of a field, of shape `(num_samples, 2)`; -1 where a sample has none."""
        places = np.full((self.count, 2), -1)
        if field in self.fields:
            mine = self.numbers == self.fields.index(field)
            places[self.rows[mine]] = self.members[mine]
        return places


class _NamesInFields:
    """Which parts of fields, between the first dot of a name and its ending, say the sample and not a column.

    Args:
        fields (`Iterable[str]`):
            What is behind the first dot of each name.
    """

    def __init__(self, fields: Iterable[str]):
        self.example = ""
        first: dict[str, str] = {}  # a part without its digits -> one such part
        self._counted: set[str] = set()
        for field in fields:
            for part in field.split(".")[:-1]:
                form = _DIGITS.sub("#", part)
                if form not in first and len(first) > _MOST_COLUMNS:  # enough is known
                    continue
                if first.setdefault(form, part) != part and form not in self._counted:
                    self._counted.add(form)
                    self.example = self.example or field
        self._all = len(first) > _MOST_COLUMNS
        if self._all:
            self.example = self.example or next(iter(first.values()))

    def __bool__(self) -> bool:
        return self._all or bool(self._counted)

    def split(self, field: str) -> tuple[str, str]:
        """What of a field belongs to the name of the sample, and the field proper."""
        *parts, ending = field.split(".")
        says = (i + 1 for i, part in enumerate(parts) if self._all or _DIGITS.sub("#", part) in self._counted)
        number = max(says, default=0)
        return ".".join(parts[:number]), ".".join([*parts[number:], ending])


def _read_members(path: str, name: str, size: int) -> list[tuple[str, str, int, int]]:
    """Name up to its first dot, the rest of it, offset and size of each member of a tar that has a dot."""
    digest = files_digest([path], [name], [size], [""])
    members = cached_columns(f"tar-{digest[:32]}", lambda: _members(path, name))
    matches = zip(map(_MEMBER.fullmatch, members["name"]), members["offset"], members["size"], strict=True)
    return [(match[1], match[2].lower(), offset, size) for match, offset, size in matches if match is not None]


def _index(members: list[tuple[str, str, int, int]], names_in: _NamesInFields) -> _Index:
    """The samples of a tar, and where each field of each lies."""
    fields: dict[str, int] = {}
    entries: list[tuple[int, int, int, int]] = []
    folders: dict[str, int] = {}
    of_folder: list[int] = []  # an entry for each sample
    last, rows, shared = "", {}, []  # of the members that share their name up to its first dot

    def add(name: str) -> None:
        rows[name] = len(of_folder)
        of_folder.append(folders.setdefault(_in_folder(last), len(folders)))

    def end_run() -> None:
        """Give what has no number to each that has one."""
        if shared and not rows:
            add("")
        entries.extend((row, *entry) for entry in shared for row in rows.values())

    for key, field, offset, size in members:
        if key != last:
            end_run()
            last, rows, shared = key, {}, []
        name, field = names_in.split(field)
        entry = (fields.setdefault(field, len(fields)), offset, size)
        if not name:
            shared.append(entry)
            continue
        if name not in rows:
            add(name)
        entries.append((rows[name], *entry))
    end_run()
    table = np.array(entries, dtype=np.int64).reshape(-1, 4)
    return _Index(
        len(of_folder), list(fields), table[:, 0], table[:, 1], table[:, 2:], list(folders),
        np.array(of_folder, dtype=np.int64),
    )  # fmt: skip


def _in_folder(key: str) -> str:
    """A name that stands for all in the folder of a sample."""
    return os.path.normpath(f"./{os.path.dirname(key)}/*")


def _folders_of(paths: list[str], extensions: tuple[str, ...]) -> list[str]:
    """A name in each folder that holds files with one of some endings, in some tars."""
    found = set()
    for path, size in zip(paths, file_sizes(paths)[0], strict=True):
        members = _read_members(path, os.path.basename(path), size)
        found |= {_in_folder(key) for key, field, _, _ in members if f".{field}".endswith(extensions)}
    return sorted(found)


def _members(path: str, name: str) -> dict[str, list]:
    """Name, offset and size of each file in a tar, up to where it is damaged."""
    names, offsets, sizes = [], [], []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    names.append(member.name)
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
                tar.members = []  # it would keep them all
    except tarfile.TarError as error:
        if not names:
            raise DataError(
                f"{name!r} is not a whole tar ({first_line(error)}). Download or make it again, or leave it out, e.g. "
                "with a glob."
            ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    return {"name": names, "offset": offsets, "size": sizes}
