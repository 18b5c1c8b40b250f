"""Folders of files that are a sample each, such as images or recordings, and zip files of them."""

import functools
import os
import zipfile
import zlib
from collections.abc import Sequence

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import DataError, first_line
from ..modality import Input, leading_input, modality
from .base import MAX_PIECES, Cache, Damage, PieceRows, Source, describe, good_rows, new_digest, third_party
from .columns import find_inputs
from .files import MAX_SAMPLE_BYTES, SplitFiles, open_bytes, read_file, unreadable, with_retries
from .find import METADATA
from .walk import class_names, class_of


# Between the path of a zip file and that of a file in it.
_INSIDE = "::/"


def encoded_samples(column: pa.ChunkedArray) -> list:
    """Encoded images or recordings: the column's own bytes, or those of the files that it names."""
    if not pa.types.is_struct(column.type):
        return column.to_pylist()
    names = {field.name for field in column.type}
    values = pc.struct_field(column, "bytes").to_pylist() if "bytes" in names else [None] * len(column)
    if "path" not in names or None not in values:
        return values
    paths = pc.struct_field(column, "path").to_pylist()
    return [read_file(path) if value is None and path else value for value, path in zip(values, paths, strict=True)]


def read_folder(files: SplitFiles) -> Source:
    """Files of the modality that is read, and zip files of them. Class folders become the column `label`."""
    options = {"inputs": files.inputs, "dataset": repr(files.dataset), "fingerprint": files.fingerprint}
    kind = modality(files.inputs[leading_input(files.inputs)].modality)
    found = sample_files(files.paths, files.names, files.sizes, kind.file_extensions)
    if not found:
        raise DataError(
            f"{files.dataset!r} has no {kind.name} file in this split. It holds: {', '.join(files.names[:4])}. "
            f"Supported are {kind.supported}."
        )
    metadata = next(filter(is_metadata, files.paths), None)
    if metadata:
        return SampleFolderSource(found, others=metadata_features(metadata), **options)
    of_splits = [sample_files(paths, paths, [0] * len(paths), kind.file_extensions) for paths in files.splits.values()]
    classes = class_names([[path for path, _, _ in of_split] for of_split in of_splits])
    return SampleFolderSource(found, classes=classes, **options)


def sample_files(
    paths: Sequence[str], names: Sequence[str], sizes: Sequence[int], extensions: tuple[str, ...]
) -> list[tuple[str, str, int]]:
    """Path, name and bytes of the files among these that end so, and of those in the zip files among them."""
    files = []
    for path, name, size in zip(paths, names, sizes, strict=True):
        if path.lower().endswith(extensions):
            files.append((path, name, size))
        elif path.endswith(".zip"):
            with third_party(
                lambda path=path: zipfile.ZipFile(open_bytes(path)), f"{name!r} is no whole zip"
            ) as archive:
                for member in sorted(archive.infolist(), key=lambda member: member.filename):
                    hidden = os.path.basename(member.filename).startswith((".", "__")) or "__MACOSX" in member.filename
                    if member.filename.lower().endswith(extensions) and not hidden:
                        files.append(
                            (f"{path}{_INSIDE}{member.filename}", f"{name}/{member.filename}", member.file_size)
                        )
    return files


def is_metadata(path: str) -> bool:
    """Whether the file holds columns beside the samples of its folder, by the rule of the `datasets` library."""
    return os.path.basename(path) in METADATA


def metadata_features(path: str) -> dict:
    """The columns in a file of metadata, from its first rows."""

    def read() -> pa.Schema:
        with open_bytes(path) as file:
            if path.endswith(".parquet"):
                return pq.read_schema(file)
            reader = pd.read_csv if path.endswith(".csv") else functools.partial(pd.read_json, lines=True)
            return pa.Schema.from_pandas(reader(file, nrows=1000), preserve_index=False)

    features = third_party(lambda: datasets.Features.from_arrow_schema(read()), f"{path!r} cannot be read")
    return {name: feature for name, feature in features.items() if name != "file_name"}


class SampleFolderSource(Source):
    """Files of a modality, one sample each. A piece is a file, or a run of files where there are very many; rows count
    files.

    Args:
        files (`list[tuple[str, str, int]]`):
            Path, name and bytes of each file.
        classes (`Sequence[str]`, *optional*):
            Class folders, of all splits: then there is a column `label`.
        others (`dict`, *optional*):
            Features of columns that metadata have, and that cannot be read here.
    """

    unit = "file"

    def __init__(
        self,
        files: list[tuple[str, str, int]],
        *,
        dataset: str,
        inputs: dict[str, Input],
        classes: Sequence[str] = (),
        others: dict | None = None,
        fingerprint: str = "",
    ):
        paths, names, sizes = map(list, zip(*files, strict=True))
        kind = modality(inputs[leading_input(inputs)].modality)
        features = {kind.name: kind.feature()}
        if classes:
            features["label"] = datasets.ClassLabel(names=list(classes))
        features |= others or {}
        starts = np.arange(0, len(paths), -(-len(paths) // MAX_PIECES))
        stops = np.append(starts[1:], len(paths))
        super().__init__(
            files=names,
            inputs=find_inputs(features, inputs, dataset),
            features=features,
            pieces=np.stack([starts, starts, stops, np.arange(len(starts))], axis=1),
            piece_bytes=np.add.reduceat(np.asarray(sizes, dtype=np.int64), starts),
            fingerprint=new_digest(fingerprint, kind.samples).hexdigest(),
        )
        self._paths, self._archives = paths, Cache()
        self.num_rows = len(paths)
        folders = f" in {describe(len(classes), 'class folders')}" if classes else ""
        self.description = f"{describe(len(paths), f'{kind.name} files')}{folders}"

    def where(self, file: int, row: int) -> str:
        return self.files[row]

    def read(self, index: int) -> PieceRows:
        _, start, stop, _ = self.pieces[index].tolist()
        columns = {}
        for name, wanted in self.inputs.items():
            read = self._label if wanted.column == "label" else self._sample
            columns[name] = [read(row) for row in range(start, stop)]
        return good_rows(np.arange(start, stop), columns, self.inputs)

    def _sample(self, row: int) -> bytes | Damage:
        return self._read(self._paths[row])

    def _read(self, path: str) -> bytes | Damage:
        archive, inside, member = path.partition(_INSIDE)
        if not inside:
            return read_file(path)

        def read() -> bytes | Damage:
            file = self._archives.open(archive, lambda: zipfile.ZipFile(open_bytes(archive)), most=8)
            if file.getinfo(member).file_size > MAX_SAMPLE_BYTES:
                return Damage(f"longer than {MAX_SAMPLE_BYTES >> 20} MiB")
            return file.read(member)

        try:
            return with_retries(read, again=lambda: self._archives.forget(archive))
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            return Damage(f"it cannot be unpacked ({first_line(error)})")
        except Exception as error:
            raise unreadable(archive, error) from error

    def read_input(self, name: str) -> list:
        read = self._label if self.inputs[name].column == "label" else self._sample
        return [read(row) for row in range(len(self.files))]

    def _label(self, row: int) -> int:
        return self.features["label"].str2int(class_of(self._paths[row]))
