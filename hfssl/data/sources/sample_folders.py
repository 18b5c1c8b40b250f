"""Folders of files that are a sample each, such as images or recordings, and zip files of them."""

import io
import itertools
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...errors import DataError, first_line
from ..modality import Input, Modality, leading_input, modality
from .base import MAX_PIECES, Cache, Damage, PieceRows, Source, describe, good_rows, new_digest, third_party
from .columns import find_inputs
from .delimited import encoding_of, separator_of
from .files import MAX_SAMPLE_BYTES, SplitFiles, is_remote, open_bytes, read_file, unreadable, with_retries
from .find import METADATA
from .walk import class_names, class_of


logger = logging.getLogger(__name__)

# Between the path of a zip file and that of a file in it.
_INSIDE = "::/"
# What is looked at for the separator of a table.
_HEAD_BYTES = 1 << 20


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
    """Files of the modality that is read, and zip files of them. Class folders become the column `label`, and so do
    columns of metadata, which go before it where they have one of that name."""
    options = {"inputs": files.inputs, "dataset": repr(files.dataset), "fingerprint": files.fingerprint}
    kind = modality(files.inputs[leading_input(files.inputs)].modality)
    there = _files_of(files.paths, files.names, files.sizes, kind)
    found = _samples_among(there, kind)
    if not found:
        raise DataError(
            f"{files.dataset!r} has no {kind.name} file in this split. It holds: {', '.join(files.names[:4])}. "
            f"Supported are {kind.supported}."
        )
    if len(found) < len(there):
        names = [path.lower() for path, _, _ in there]
        endings = " and ".join(each for each in kind.beside_samples if any(name.endswith(each) for name in names))
        _say_what_is_beside(files.dataset, len(there) - len(found), endings, kind.samples)
    sides, digest = _files_beside(files.inputs, found)
    if sides:
        options["fingerprint"] = new_digest(files.fingerprint, "beside", digest).hexdigest()
    of_splits = [
        _samples_among(_files_of(paths, paths, [0] * len(paths), kind), kind) for paths in files.splits.values()
    ]
    in_splits = [[path for path, _, _ in of_split] for of_split in of_splits]
    read = {path: _read_metadata(path) for path in files.paths if is_metadata(path)}
    for path, table in read.items():
        if "file_name" not in table.column_names:
            _say_is_passed_over(path, ", ".join(table.column_names), kind.samples)
    tables = {path: table for path, table in read.items() if "file_name" in table.column_names}
    everywhere = set(itertools.chain(*files.splits.values(), *in_splits))
    features, columns = _columns_beside(tables, found, everywhere) if tables else ({}, {})
    return SampleFolderSource(
        found, classes=class_names(in_splits), others=features, beside=columns, sides=sides, tables=tables, **options
    )


@cache
def _say_what_is_beside(dataset: str, number: int, endings: str, samples: str) -> None:
    """Once, and not for each time that a split is opened."""
    logger.info(
        "%s: %s beside the %s %s left out; put arrays that are %s into a folder of their own.", dataset,
        describe(number, f"{endings} files"), samples, "is" if number == 1 else "are", samples,
    )  # fmt: skip


def _files_of(
    paths: Sequence[str], names: Sequence[str], sizes: Sequence[int], kind: Modality
) -> list[tuple[str, str, int]]:
    """Path, name and bytes of the files of a modality among these, and in the zip files among them."""
    files, extensions = [], kind.file_extensions
    for path, name, size in zip(paths, names, sizes, strict=True):
        if path.lower().endswith(extensions):
            files.append((path, name, size))
        elif path.endswith(".zip"):
            with third_party(
                lambda path=path: with_retries(lambda: zipfile.ZipFile(open_bytes(path))), f"{name!r} is no whole zip"
            ) as archive:
                for member in sorted(archive.infolist(), key=lambda member: member.filename):
                    hidden = os.path.basename(member.filename).startswith((".", "__")) or "__MACOSX" in member.filename
                    if member.filename.lower().endswith(extensions) and not hidden:
                        files.append(
                            (f"{path}{_INSIDE}{member.filename}", f"{name}/{member.filename}", member.file_size)
                        )
    return files


def _samples_among(files: list[tuple[str, str, int]], kind: Modality) -> list[tuple[str, str, int]]:
    """Those that are samples: what often lies beside samples is one where there is nothing else."""
    others = [file for file in files if not file[0].lower().endswith(kind.beside_samples)]
    return others or files


def is_metadata(path: str) -> bool:
    """Whether the file holds columns beside the samples of its folder, by the rule of the `datasets` library."""
    return os.path.basename(path) in METADATA


def _read_metadata(path: str) -> pa.Table:
    """A file of metadata: a row for each file, by its path from there, in the column `file_name` if it has one."""

    def read() -> pa.Table:
        with open_bytes(path) as file:
            if path.endswith(".parquet"):
                return pq.read_table(file)
            data = file.read()
        encoding = encoding_of(data, repr(path))
        if path.endswith(".csv"):
            return pa.Table.from_pandas(_read_csv(data, encoding, path), preserve_index=False)
        # values as they are, which pandas would not leave: "007" is no number, and no text is a date
        lines = data.decode(encoding).removeprefix("\ufeff").split("\n")
        records = [json.loads(line) for line in lines if line.strip()]
        names = dict.fromkeys(name for record in records for name in record)
        return pa.table({name: [record.get(name) for record in records] for name in names})

    try:
        return third_party(lambda: with_retries(read), f"{path!r} cannot be read")
    except DataError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            raise DataError(
                f"{path!r} is not in UTF-8 (byte {error.__cause__.start}), nor wholly in another encoding. Save it in "
                "UTF-8, e.g. with `iconv -f LATIN1 -t UTF-8`."
            ) from error
        raise


def _read_csv(data: bytes, encoding: str, path: str) -> pd.DataFrame:
    separator = separator_of(data[:_HEAD_BYTES].decode(encoding, "replace"))
    try:
        table = pd.read_csv(io.BytesIO(data), encoding=encoding, sep=separator)
        # where all rows have more values than there are columns, pandas takes the first ones for names of rows
        problem = "" if isinstance(table.index, pd.RangeIndex) else "all of them"
    except pd.errors.ParserError as error:
        problem = first_line(error)
    if problem:
        raise DataError(
            f"{path!r} has rows of more values than there are columns ({problem}). A value with a {separator!r} in it "
            f'stands in quotation marks, as in "a cat{separator} asleep"; metadata.jsonl is without such rules.'
        )
    return table


@cache
def _say_is_passed_over(path: str, columns: str, samples: str) -> None:
    """Once, and not for each split that is opened."""
    logger.warning(
        "%r has no column `file_name`, which would say the file of each row by its path from there, and is not read "
        "with the %s. Its columns are: %s. Rename the one that names the files; where labels are needed, the table is "
        "taken as it is (`--labels`, of a run `--probe_labels`).", path, samples, columns,
    )  # fmt: skip


def _columns_beside(
    tables: Mapping[str, pa.Table], files: Sequence[tuple[str, str, int]], of_all_splits: Iterable[str]
) -> tuple[dict, dict[str, list]]:
    """Features and values of the columns in files of metadata; `None` for a file that has no row."""
    there = set(map(os.path.normpath, of_all_splits))
    row_of = {os.path.normpath(path): row for row, (path, _, _) in enumerate(files)}
    features: dict[str, Any] = {}
    columns: dict[str, list] = {}
    matched, num_named, example = 0, 0, ""
    for path, table in tables.items():
        names = table["file_name"].to_pylist()
        # a file in a zip has the name of the zip before its own
        named = [os.path.normpath(os.path.join(os.path.dirname(path), str(name))) for name in names]
        rows = [row_of.get(name) for name in named]
        missing = [name for name, full in zip(names, named, strict=True) if full not in row_of and full not in there]
        matched, num_named = matched + len(names) - len(missing), num_named + len(names)
        example = example or next(map(str, missing), "")
        table = table.drop_columns(["file_name"])
        for name, feature in datasets.Features.from_arrow_schema(table.schema).items():
            known = features.setdefault(name, feature)
            if known != feature:
                raise DataError(f"Column {name!r} is {known} in one file of metadata and {feature} in {path!r}.")
            column = columns.setdefault(name, [None] * len(files))
            for row, value in zip(rows, table[name].to_pylist(), strict=True):
                if row is not None:
                    column[row] = value
    first = next(iter(tables))
    if not matched:
        raise DataError(
            f"No file that {first!r} names in its column `file_name` is there. Paths start at the folder in "
            f"which it lies, as in {os.path.relpath(files[0][0], os.path.dirname(first))!r}."
        )
    if matched < num_named:
        logger.warning(
            "%s of the %s files that %s names are not there, such as %r: their rows are left out.",
            f"{num_named - matched:,}", f"{num_named:,}", first, example,
        )  # fmt: skip
    return features, columns


def _files_beside(
    inputs: Mapping[str, Input], files: Sequence[tuple[str, str, int]]
) -> tuple[dict[str, list[str | None]], list]:
    """By the modality of each other input, the file beside each sample that has its name and an ending of that
    modality, `None` where there is none; and what tells these files from others. Local folders and zips are looked
    through."""
    paths = [path for path, _, _ in files if not is_remote(path)]
    leading = inputs[leading_input(inputs)].modality
    others = {wanted.modality for wanted in inputs.values()} - {None, leading}
    if not others or not paths:
        return {}, []
    there: dict[str, os.DirEntry | zipfile.ZipInfo] = {}
    for folder in dict.fromkeys(os.path.dirname(path) for path in paths if _INSIDE not in path):
        there |= {entry.path: entry for entry in os.scandir(folder or ".") if entry.is_file()}
    for archive in dict.fromkeys(path.partition(_INSIDE)[0] for path in paths if _INSIDE in path):
        with zipfile.ZipFile(archive) as members:
            there |= {f"{archive}{_INSIDE}{member.filename}": member for member in members.infolist()}
    sides: dict[str, list[str | None]] = {}
    for name in sorted(others):
        kind = modality(name)
        endings = kind.beside_extensions or kind.file_extensions
        stems = [os.path.splitext(path)[0] for path, _, _ in files]
        beside = [next((stem + ending for ending in endings if stem + ending in there), None) for stem in stems]
        if any(beside):
            sides[name] = beside

    def size(path: str | None) -> int | None:  # of these only: a disk in a network is asked for each
        found = None if path is None else there[path]
        return found.stat().st_size if isinstance(found, os.DirEntry) else found and found.file_size

    return sides, [(name, list(map(size, beside))) for name, beside in sides.items()]


class SampleFolderSource(Source):
    """Files of a modality, one sample each. A piece is a file, or a run of files where there are very many; rows count
    files.

    Args:
        files (`list[tuple[str, str, int]]`):
            Path, name and bytes of each file.
        classes (`Sequence[str]`, *optional*):
            Class folders, of all splits: then there is a column `label`.
        others (`dict`, *optional*), beside (`dict[str, list]`, *optional*):
            Features and values of the columns that metadata have, one value for each file.
        sides (`dict[str, list[str | None]]`, *optional*):
            By the name of a modality, which is that of a column then, the file of it beside each file.
        tables (`Iterable[str]`, *optional*):
            Paths of the files of metadata from which `others` are.
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
        beside: dict[str, list] | None = None,
        sides: dict[str, list[str | None]] | None = None,
        tables: Iterable[str] = (),
        fingerprint: str = "",
    ):
        paths, names, sizes = map(list, zip(*files, strict=True))
        kind = modality(inputs[leading_input(inputs)].modality)
        features = {kind.name: kind.feature()}
        if classes:
            features["label"] = datasets.ClassLabel(names=list(classes))
        features |= {name: modality(name).feature() for name in sides or {}}
        features |= others or {}  # metadata are written with more care than a name
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
        # what is not read is not kept
        wanted = {each.column for each in self.inputs.values()}
        self._beside = {name: values for name, values in (beside or {}).items() if name in wanted}
        self._sides = {name: of_files for name, of_files in (sides or {}).items() if name in wanted}
        self.num_rows = len(paths)
        self.class_folders = () if "label" in (others or ()) else tuple(classes)
        self.tables = tuple(map(os.path.basename, tables))
        folders = f" in {describe(len(classes), 'class folders')}" if classes else ""
        self.description = f"{describe(len(paths), f'{kind.name} files')}{folders}"

    def where(self, file: int, row: int) -> str:
        return self.files[row]

    def read(self, index: int) -> PieceRows:
        _, start, stop, _ = self.pieces[index].tolist()
        columns = {name: self._values(wanted.column, start, stop) for name, wanted in self.inputs.items()}
        return good_rows(np.arange(start, stop), columns, self.inputs)

    def _values(self, column: str, start: int, stop: int) -> list:
        if column in self._beside:
            return self._beside[column][start:stop]
        if column in self._sides:
            return [self._side(column, row) for row in range(start, stop)]
        read = self._label if column == "label" else self._sample
        return [read(row) for row in range(start, stop)]

    def _sample(self, row: int) -> bytes | Damage:
        return self._read(self._paths[row])

    def _side(self, name: str, row: int) -> Any:
        path = self._sides[name][row]
        if path is None:
            return Damage(f"there is no {name} beside it: a file of its name that ends in {_endings(name)}")
        data = self._read(path)
        return data if isinstance(data, Damage) else modality(name).decode_file(data)

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
        return self._values(self.inputs[name].column, 0, len(self.files))

    def _label(self, row: int) -> int:
        return self.features["label"].str2int(class_of(self._paths[row]))


def _endings(name: str) -> str:
    kind = modality(name)
    return " or ".join((kind.beside_extensions or kind.file_extensions)[:3])
