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

import os
import sys
from dataclasses import replace
from pathlib import Path

import datasets

from ..embedded import embedded_text
from .base import PIECE_BYTES, DataError, MemorySource, PieceRows, Source, describe, third_party
from .columns import find_column
from .convert import convert_once, why_convert
from .files import check_readable, file_sizes, files_digest, is_remote, relative_names
from .find import Found, find_data
from .tables import ParquetSource, TableSource
from .text_files import TXT_SOURCES, JsonLinesSource, TextFiles, check_encoding, json_features


__all__ = ["DataError", "MemorySource", "PieceRows", "Source", "available_splits", "find_column", "open_source"]

# Modalities that can be read; `find_column` knows more.
READABLE = ("text",)
# Row groups whose column is larger are converted once instead of being decoded as a whole by every worker.
MAX_ROW_GROUP_BYTES = 512 << 20


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
    if sample_by not in TXT_SOURCES:
        known = ", ".join(TXT_SOURCES)
        raise DataError(f"`sample_by` says what a sample of a txt file is: {known}. Got {sample_by!r}.")
    if dataset is None:
        _check_embedded(column, config, split)
        version = ".".join(map(str, sys.version_info[:3]))
        name = f"embedded corpus (documentation of Python {version})"
        source = MemorySource(embedded_text(), name=name, piece_bytes=piece_bytes)
    else:
        source = _open(
            find_data(os.fspath(dataset), config, revision), column, split, sample_by, streaming, piece_bytes
        )
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
    return list(find_data(os.fspath(dataset), config, revision).splits)


def _open(found: Found, column: str | None, split: str, sample_by: str, streaming: bool, piece_bytes: int) -> Source:
    if split not in found.splits:
        listing = ", ".join(repr(name) for name in found.splits) or "none"
        raise DataError(
            f"{found.name!r} has no split {split!r}. Its splits are: {listing}. Choose one with `--split`."
        )
    paths = found.splits[split]
    if found.module == "saved":
        folder = paths[0]
        table = third_party(lambda: datasets.load_from_disk(folder), f"{found.name!r} cannot be loaded")
        files = sorted(str(path) for path in Path(folder).glob("*.arrow"))
        digest = files_digest(files, relative_names(files, folder), *file_sizes(files))
        return TableSource(table, name=found.name, column=column, fingerprint=digest, piece_bytes=piece_bytes)
    if not paths:
        return convert_once(found, column, split, sample_by, piece_bytes, None, "it is not made of files")
    paths = [path.removeprefix("file://") for path in paths]
    check_readable(paths)
    names = relative_names(paths, found.root)
    sizes, ids = file_sizes(paths)
    if not sum(sizes):
        raise DataError(
            f"{found.name!r} is empty: {describe(len(paths), 'files')} of split {split!r} without a single byte."
        )
    fingerprint = files_digest(paths, names, sizes, ids)
    why = why_convert(found, paths, sizes) if streaming else "streaming is off"
    if why:
        return convert_once(found, column, split, sample_by, piece_bytes, fingerprint, why)

    common = {"fingerprint": fingerprint, "piece_bytes": piece_bytes}
    if found.module == "parquet":
        source = ParquetSource(
            paths, names, dataset=repr(found.name), column=column, features=found.features, **common
        )
        if source.largest_group_bytes > MAX_ROW_GROUP_BYTES and not is_remote(paths[0]):
            why = f"it has row groups of {source.largest_group_bytes >> 20} MiB, too large to decode whole"
            found = replace(found, load={"path": "parquet", "data_files": {split: paths}, "columns": source.columns})
            return convert_once(found, column, split, sample_by, piece_bytes, fingerprint, why)
        return source
    if found.module == "arrow":
        table = third_party(
            lambda: datasets.concatenate_datasets([datasets.Dataset.from_file(path) for path in paths]),
            f"The arrow files of {found.name!r} cannot be opened",
        )
        return TableSource(table, name=found.name, column=column, **common)
    text = TextFiles(paths, names, sizes)
    check_encoding(text)
    if found.module == "json":
        features = found.features or json_features(text)
        if not features:
            raise DataError(
                f"{names[0]!r} of {found.name!r} does not begin with JSON objects, one a line. Mend it, or rename it "
                "to `.txt` to read it as plain text."
            )
        return JsonLinesSource(
            text, column=find_column(features, "text", column, repr(found.name)), features=features, **common
        )
    find_column({"text": datasets.Value("string")}, "text", column, repr(found.name))
    return TXT_SOURCES[sample_by](text, **common)


def _check_embedded(column: str | None, config: str | None, split: str) -> None:
    for given, value, only in (("column", column, "text"), ("split", split, "train"), ("configuration", config, None)):
        if value not in (None, only):
            has = f"its only {given} is {only!r}" if only else "it has none"
            raise DataError(
                f"The embedded corpus has no {given} {value!r}: {has}. Name your own data with `--dataset`."
            )
