"""Webdataset tars: a sample is a run of members that share their name up to its first dot."""

import json
import re
import tarfile
from collections.abc import Sequence

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
from .files import MAX_SAMPLE_BYTES, files_digest, open_bytes, unreadable


# What is before the first dot of a name says the sample, what is behind it the field.
_MEMBER = re.compile(r"((?:.*/|)[^./]+)[.]([^/]+)")
# Fields that can hold a label or a caption, and are decoded as the `datasets` library does.
_NUMBERS = ("cls", "cls2", "index", "inx", "id")
_TEXTS = ("txt", "text", "transcript")
_JSON = ("json", "jsn")
_SCALARS = {str: "string", bool: "bool", int: "int64", float: "float64"}


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
        fingerprint: str = "",
    ):
        self._paths, self._cache = paths, Cache()
        tars = [_read_index(path, name, size) for path, name, size in zip(paths, files, sizes, strict=True)]
        fields = sorted({field for _, places in tars for field in places})
        if not fields:
            raise DataError(
                f"{dataset} holds no webdataset: no file in {files[0]!r} has a name with an extension. Unpack it, and "
                "pass the folder."
            )
        where = {field: [_places_of(places, field, count) for count, places in tars] for field in fields}
        of_files = {field: kind for field in fields if (kind := _modality_of_files(field))}
        for kind in sorted(set(of_files.values())):
            of_kind = [field for field in fields if of_files.get(field) == kind]
            there = sum(np.concatenate(where[field])[:, 1] >= 0 for field in of_kind)
            if len(of_kind) > 1 and there.max() == 1:  # in one of several formats
                where[kind] = [np.max(places, axis=0) for places in zip(*map(where.pop, of_kind), strict=True)]
                of_files[kind] = kind
        features = {field: _feature(field, of_files.get(field)) for field in where}
        self._json = next((field for field in fields if field in _JSON), None)
        if self._json:
            features = self._json_features(where[self._json]) | features
        inputs = find_inputs(features, inputs, dataset)
        columns = [wanted.column for wanted in inputs.values()]
        self._where = {column: where.get(column) or where[self._json] for column in columns}
        self._of_files = {column: of_files[column] for column in columns if column in of_files}

        leading = inputs[leading_input(inputs)]
        counts = [count for count, _ in tars]
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
        columns = {
            name: self._values(wanted.column, file, self._where[wanted.column][file][start:stop])
            for name, wanted in self.inputs.items()
        }
        return good_rows(np.arange(start, stop), columns, self.inputs)

    def read_input(self, name: str) -> list:
        column, values = self.inputs[name].column, []
        for file, places in enumerate(self._where[column]):
            values += self._values(column, file, places)
        return [None if isinstance(value, Damage) else value for value in values]

    def _values(self, column: str, file: int, places: np.ndarray) -> list:
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


def _modality_of_files(field: str) -> str | None:
    """The modality of which a file with this ending is a sample."""
    ending = f".{field.rpartition('.')[2]}"
    return next((name for name in modalities() if ending in modality(name).file_extensions), None)


def _feature(field: str, of_files: str | None):
    if of_files is not None:
        return modality(of_files).feature()
    if field in _NUMBERS:
        return datasets.Value("int64")
    return datasets.Value("string" if field in _TEXTS else "binary")


def _places_of(places: dict[str, np.ndarray], field: str, count: int) -> np.ndarray:
    return places[field] if field in places else np.full((count, 2), -1)


def _read_index(path: str, name: str, size: int) -> tuple[int, dict[str, np.ndarray]]:
    """The number of samples in a tar, and for each field where it lies in each of them.

    Returns:
        `tuple[int, dict[str, np.ndarray]]`: arrays of shape `(num_samples, 2)` hold offset and size in bytes, -1 where
        a sample has no such field.
    """
    digest = files_digest([path], [name], [size], [""])
    members = cached_columns(f"tar-{digest[:32]}", lambda: _members(path, name))
    samples: list[dict[str, tuple[int, int]]] = []
    last = None
    for member, offset, length in zip(members["name"], members["offset"], members["size"], strict=True):
        match = _MEMBER.fullmatch(member)
        if match is None:
            continue
        key, field = match[1], match[2].lower()
        if key != last:
            samples.append({})
            last = key
        samples[-1][field] = (offset, length)
    places = {field: np.full((len(samples), 2), -1) for sample in samples for field in sample}
    for row, sample in enumerate(samples):
        for field, place in sample.items():
            places[field][row] = place
    return len(samples), places


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
