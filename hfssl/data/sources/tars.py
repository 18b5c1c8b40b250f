"""Webdataset tars: a sample is a run of members that share their name up to its first dot."""

import json
import re
import tarfile
from collections.abc import Sequence

import datasets
import numpy as np

from ..cache import cached_columns
from .base import (
    Cache,
    Damage,
    DataError,
    PieceRows,
    Source,
    describe,
    first_line,
    good_rows,
    new_digest,
    piece_target,
    row_pieces,
)
from .columns import find_columns
from .files import MAX_SAMPLE_BYTES, files_digest, open_bytes, unreadable
from .find import IMAGE_EXTENSIONS


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
        column: str | None = None,
        beside: Sequence[str] = (),
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
        images = [field for field in fields if _is_image(field)]
        there = sum(np.concatenate(where[field])[:, 1] >= 0 for field in images)
        if len(images) > 1 and there.max() == 1:  # in one of several formats
            where["image"] = [np.max(places, axis=0) for places in zip(*map(where.pop, images), strict=True)]
        features = {field: _feature(field) for field in where}
        self._json = next((field for field in fields if field in _JSON), None)
        if self._json:
            features = self._json_features(where[self._json]) | features
        columns = find_columns(features, "image", column, beside, dataset)
        self._where = {name: where.get(name) or where[self._json] for name in columns}

        counts = [count for count, _ in tars]
        image_bytes = [float(places[:, 1].clip(0).sum()) for places in self._where[columns[0]]]
        target = piece_target("image", sum(image_bytes), sum(counts), 0)
        pieces, weights = row_pieces(counts, image_bytes, range(len(paths)), [0] * len(paths), target)
        pieces[:, 3] = np.arange(len(pieces))  # all are equally near
        super().__init__(
            files=files,
            columns=columns,
            features=features,
            pieces=pieces,
            piece_bytes=weights,
            fingerprint=new_digest(fingerprint, "tar", columns[0], counts).hexdigest(),
            modality="image",
        )
        self.num_rows = sum(counts)
        self.description = (
            f"{describe(len(paths), 'webdataset tars')}, {describe(self.num_rows, 'samples')}, column {columns[0]!r}"
        )

    def read(self, index: int) -> PieceRows:
        file, start, stop, _ = self.pieces[index].tolist()
        images = [self._member(file, places) for places in self._where[self.columns[0]][file][start:stop].tolist()]
        columns = {self.columns[0]: images}
        for name in self.columns[1:]:
            columns[name] = self._values(name, file, self._where[name][file][start:stop])
        return good_rows(np.arange(start, stop), columns, "image")

    def read_beside(self, column: str) -> list:
        values = []
        for file, places in enumerate(self._where[column]):
            values += self._values(column, file, places)
        return values

    def _values(self, column: str, file: int, places: np.ndarray) -> list:
        read = [self._member(file, place) for place in places.tolist()]
        return [self._decode(column, data) if isinstance(data, bytes) else None for data in read]

    def _decode(self, column: str, data: bytes):
        try:
            if column in _NUMBERS:
                return int(data)
            if column in _TEXTS:
                return data.decode().strip()
            if isinstance(self.features[column], datasets.Value) and self.features[column].dtype != "binary":
                return json.loads(data).get(column)
        except (ValueError, AttributeError, RecursionError):
            return None
        return data

    def _member(self, file: int, place: tuple[int, int]) -> bytes | Damage:
        offset, size = place
        if size < 0:
            return Damage("the sample has no image")
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
                    record = json.loads(self._member(file, place))
                except (ValueError, TypeError, RecursionError):
                    return {}
                values = record.items() if isinstance(record, dict) else ()
                return {key: datasets.Value(_SCALARS[type(v)]) for key, v in values if type(v) in _SCALARS}
        return {}


def _is_image(field: str) -> bool:
    return f".{field.rpartition('.')[2]}" in IMAGE_EXTENSIONS


def _feature(field: str):
    if field == "image" or _is_image(field):
        return datasets.Image()
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
