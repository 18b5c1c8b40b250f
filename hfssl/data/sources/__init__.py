"""What `--dataset` accepts, as a random-access [`Source`] cut into pieces that can be opened in the middle.

[`open_source`] turns a Hub id, a local file or folder, a glob, a folder of `save_to_disk` or nothing at all (the
embedded corpus) into a `Source`. The `datasets` library finds files and splits, so its rules hold; the rows are read
piece by piece:

| format | how it is read | a piece is |
| --- | --- | --- |
| parquet, local or on the Hub | `pyarrow`, the needed columns only | a row group, or a range of its rows |
| jsonl and txt, local or on the Hub | by ranges of bytes | about 64 KiB, with the records that start there |
| arrow, `save_to_disk` | memory-mapped | a range of rows |
| image files in folders and zip files, local or on the Hub | file by file | a file |
| webdataset tars | looked through once, then by ranges of bytes | a few samples |
| all else (csv, a JSON array, compressed files) | converted once by `load_dataset` | a range of rows |

Samples are texts, or encoded images (`bytes`): whoever needs pixels decodes them. Opening costs as much as there are
files, however long they are (only tars are looked through, the first time), and no piece depends on another: a stream
over the pieces can start anywhere. A `Source` can be pickled and forked; every process (and thread) opens its own
files.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import datasets

from ..image.embedded import embedded_images
from ..text.embedded import embedded_text
from .base import PIECE_BYTES, DataError, MemorySource, PieceRows, Source, describe, identity, third_party
from .columns import READABLE, find_column, find_columns
from .convert import convert_once, why_convert
from .files import check_readable, download_once, file_sizes, files_digest, is_remote, relative_names
from .find import SUPPORTED, Found, find_data
from .image_folders import ImageFolderSource, class_names, image_files, is_metadata, metadata_features
from .tables import ParquetSource, TableSource
from .tars import TarSource
from .text_files import TXT_SOURCES, JsonLinesSource, TextFiles, check_encoding, json_features


__all__ = [
    "DataError",
    "MemorySource",
    "PieceRows",
    "Source",
    "available_splits",
    "find_column",
    "identity",
    "open_source",
]

# Row groups whose column is larger are converted once instead of being decoded as a whole by every worker.
MAX_ROW_GROUP_BYTES = 512 << 20


def open_source(
    dataset: str | os.PathLike | None,
    *,
    modality: str = "text",
    column: str | None = None,
    extra_columns: Sequence[str] = (),
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
            A Hub id, a local file or folder, a glob, a folder of `save_to_disk`; `None` is the embedded data.
        modality (`str`, *optional*, defaults to `"text"`):
            What the samples are: `"text"` or `"image"`.
        column (`str`, *optional*):
            The column that holds them; found by its type and name if not given.
        extra_columns (`Sequence[str]`, *optional*):
            Columns to read beside it, such as labels. The class folders of a folder of images are called `label`.
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
    options = {"column": column, "beside": extra_columns, "piece_bytes": piece_bytes}
    if dataset is None:
        _check_embedded(modality, column, config, split)
        source = _embedded_digits(split, extra_columns) if modality == "image" else _embedded_corpus(piece_bytes)
    else:
        source = _open(find_data(os.fspath(dataset), config, revision, modality), split, sample_by, streaming, options)
    if source.num_rows == 0:
        raise DataError(
            f"{str(dataset)!r} is empty: its split {split!r} ({source.description.split(',')[0]}) has no rows."
        )
    return source


def available_splits(
    dataset: str | os.PathLike | None,
    *,
    modality: str = "text",
    config: str | None = None,
    revision: str | None = None,
) -> list[str]:
    """The splits that [`open_source`] can open."""
    if dataset is None:
        return list(_EMBEDDED_SPLITS[modality])
    return list(find_data(os.fspath(dataset), config, revision, modality).splits)


def _open(found: Found, split: str, sample_by: str, streaming: bool, options: dict) -> Source:
    if split not in found.splits:
        listing = ", ".join(repr(name) for name in found.splits) or "none"
        raise DataError(
            f"{found.name!r} has no split {split!r}. Its splits are: {listing}. Choose one with `--split`."
        )
    paths = found.splits[split]
    options = {"modality": found.modality, **options}
    if found.module == "saved":
        folder = paths[0]
        table = third_party(lambda: datasets.load_from_disk(folder), f"{found.name!r} cannot be loaded")
        files = sorted(str(path) for path in Path(folder).glob("*.arrow"))
        digest = files_digest(files, relative_names(files, folder), *file_sizes(files))
        return TableSource(table, name=found.name, fingerprint=digest, **options)
    if not paths:
        return convert_once(found, split, sample_by, None, "it is not made of files", **options)
    paths = [path.removeprefix("file://") for path in paths]
    check_readable(paths)
    names = relative_names(paths, found.root)
    sizes, ids = file_sizes(paths)
    if not sum(sizes):
        raise DataError(
            f"{found.name!r} is empty: {describe(len(paths), 'files')} of split {split!r} without a single byte."
        )
    fingerprint = files_digest(paths, names, sizes, ids)
    # a copy of a folder of images would hold their paths
    in_place = streaming or found.module == "imagefolder"
    why = why_convert(found, paths, sizes) if in_place else "streaming is off"
    why = why or _why_join(found, paths, options["beside"])
    if why:
        return convert_once(found, split, sample_by, fingerprint, why, **options)
    if found.modality == "image" and found.module in ("imagefolder", "webdataset"):
        return _open_images(found, paths, names, sizes, fingerprint, options)

    if found.module == "parquet":
        source = ParquetSource(
            paths, names, dataset=repr(found.name), features=found.features, fingerprint=fingerprint, **options
        )
        if source.largest_group_bytes > MAX_ROW_GROUP_BYTES and not is_remote(paths[0]):
            why = f"it has row groups of {source.largest_group_bytes >> 20} MiB, too large to decode whole"
            found = replace(found, load={"path": "parquet", "data_files": {split: paths}, "columns": source.columns})
            return convert_once(found, split, sample_by, fingerprint, why, **options)
        return source
    if found.module == "arrow":
        table = third_party(
            lambda: datasets.concatenate_datasets([datasets.Dataset.from_file(path) for path in paths]),
            f"The arrow files of {found.name!r} cannot be opened",
        )
        return TableSource(table, name=found.name, fingerprint=fingerprint, **options)
    text = TextFiles(paths, names, sizes)
    check_encoding(text)
    column = options["column"]
    common = {"fingerprint": fingerprint, "piece_bytes": options["piece_bytes"]}
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


def _why_join(found: Found, paths: list[str], beside: Sequence[str]) -> str | None:
    """Why columns that are wanted beside the samples need `datasets.load_dataset`, None if they are at hand."""
    if beside and found.module in ("json", "text"):
        return "columns beside the text are read"
    if beside and found.module == "imagefolder" and any(map(is_metadata, paths)):
        return "metadata hold columns beside the images"
    return None


def _open_images(
    found: Found, paths: list[str], names: list[str], sizes: list[int], fingerprint: str, options: dict
) -> Source:
    options = {"column": options["column"], "beside": options["beside"], "dataset": repr(found.name)}
    if found.module == "webdataset":
        if is_remote(paths[0]):
            paths = download_once(paths, found.name, sizes)
        return TarSource(paths, names, sizes, fingerprint=fingerprint, **options)
    metadata = next(filter(is_metadata, paths), None)
    files = image_files(paths, names, sizes)
    if not files:
        raise DataError(
            f"{found.name!r} has no image in this split. It holds: {', '.join(names[:4])}. Supported are "
            f"{SUPPORTED['image']}."
        )
    if metadata:
        return ImageFolderSource(files, others=metadata_features(metadata), fingerprint=fingerprint, **options)
    others = [image_files(of_split, of_split, [0] * len(of_split)) for of_split in found.splits.values()]
    classes = class_names([[path for path, _, _ in of_split] for of_split in others])
    return ImageFolderSource(files, classes=classes, fingerprint=fingerprint, **options)


_EMBEDDED_SPLITS = {"text": ("train",), "image": ("train", "test")}


def _check_embedded(modality: str, column: str | None, config: str | None, split: str) -> None:
    name = "embedded corpus" if modality == "text" else "embedded set of images"
    splits = _EMBEDDED_SPLITS[modality]
    for given, value, known in (
        ("column", column, (modality,)),
        ("split", split, splits),
        ("configuration", config, ()),
    ):
        if value is not None and value not in known:
            only = "it has none" if not known else f"its only {given} is {known[0]!r}"
            has = f"its {given}s are {' and '.join(map(repr, known))}" if len(known) > 1 else only
            raise DataError(f"The {name} has no {given} {value!r}: {has}. Name your own data with `--dataset`.")


def _embedded_corpus(piece_bytes: int) -> MemorySource:
    version = ".".join(map(str, sys.version_info[:3]))
    name = f"embedded corpus (documentation of Python {version})"
    return MemorySource(embedded_text(), name=name, piece_bytes=piece_bytes)


def _embedded_digits(split: str, beside: Sequence[str]) -> MemorySource:
    images, labels = embedded_images(split)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))}
    name = f"embedded images (handwritten digits of scikit-learn, {split})"
    columns = {"image": images, "label": labels}
    beside = find_columns(features, "image", None, beside, name)[1:]
    return MemorySource(
        images,
        name=name,
        column="image",
        modality="image",
        beside={column: columns[column] for column in beside},
        features=features,
    )
