"""What `--dataset` accepts, as a random-access [`Source`] cut into pieces that can be opened in the middle.

[`open_source`] turns a Hub id, a local file or folder, a glob, a folder of `save_to_disk` or nothing at all (the
embedded corpus) into a `Source`. The `datasets` library finds files and splits, so its rules hold; the rows are read
piece by piece. Local folders are gone through here, by the same rules:

| format | how it is read | a piece is |
| --- | --- | --- |
| parquet, local or on the Hub | `pyarrow`, the needed columns only | a row group, or a range of its rows |
| jsonl and txt, local or on the Hub | by ranges of bytes | about 64 KiB, with the records that start there |
| arrow, `save_to_disk` | memory-mapped | a range of rows |
| image and audio files in folders and zip files, local or on the Hub | file by file | a file |
| webdataset tars | looked through once, then by ranges of bytes | a few samples |
| compressed jsonl, txt and tars; a zip that is named itself | unpacked once, then as above | as above |
| csv, tsv and json lines that name image or audio files | converted once, the files where they are | a few rows |
| csv and tsv | converted once, with their damaged records | a range of rows |
| all else (a JSON array) | converted once by `load_dataset` | a range of rows |

Samples are texts, or encoded images and sounds (`bytes`): whoever needs pixels or waves decodes them. Opening costs as
much as there are files, however long they are (only tars are looked through, the first time), and no piece depends on
another: a stream over the pieces can start anywhere. A `Source` can be pickled and forked; every process (and thread)
opens its own files.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import datasets

from ...errors import DataError
from ..modality import EmbeddedData, Input, Modality, leading_input
from ..modality import modality as find_modality
from .base import PIECE_BYTES, MemorySource, PieceRows, Source, describe, digest_of, identity, third_party
from .columns import find_column, find_inputs
from .convert import convert_once, why_convert
from .file_tables import open_table_of_files
from .files import SplitFiles, as_patterns, check_readable, file_sizes, files_digest, is_remote, relative_names
from .find import find_data
from .found import Found
from .tables import ParquetSource, TableSource
from .text_files import TXT_SOURCES
from .together import ColumnsTogether, split_columns


__all__ = [
    "DataError",
    "Input",
    "MemorySource",
    "PieceRows",
    "Source",
    "available_splits",
    "digest_of",
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
    inputs: Mapping[str, Input] | None = None,
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
            A Hub id, a local file or folder, a glob, a folder of `save_to_disk`, or the name of embedded data (for
            images letters, characters or digits); `None` is the embedded data.
        modality (`str`, *optional*, defaults to `"text"`):
            What the samples are, where there is one input: it is called like the modality.
        column (`str`, *optional*):
            The column that holds it; found by its type and name if not given.
        extra_columns (`Sequence[str]`, *optional*):
            Columns to read beside it, such as labels, as they are. The class folders of a folder of images are called
            `label`.
        inputs (`Mapping[str, Input]`, *optional*):
            What to read by name, instead of these three: `modality="image", column="photo", extra_columns=("cls",)` is
            short for `{"image": Input("image", "photo"), "cls": Input(None, "cls", required=False)}`. Files are looked
            for as those of the [`~hfssl.data.modality.leading_input`]. Of captions `column` may be several, with
            commas between them: a sample is the list of what a row has in them.
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
    if inputs is None:
        inputs = {modality: Input(modality, column)}
        inputs |= {name: Input(None, name, required=False) for name in extra_columns}
    elif column is not None or extra_columns:
        raise ValueError("Columns are stated in `inputs`: pass no `column` and no `extra_columns` beside it.")
    stated, (inputs, together) = inputs, split_columns(inputs)
    leading = inputs[leading_input(inputs)]
    kind = find_modality(leading.modality)
    if sample_by not in TXT_SOURCES:
        known = ", ".join(TXT_SOURCES)
        raise DataError(f"`sample_by` says what a sample of a txt file is: {known}. Got {sample_by!r}.")
    options = {"inputs": inputs, "piece_bytes": piece_bytes}
    embedded = kind.embedded_set(dataset)
    if embedded is not None:
        _check_embedded(kind, embedded, leading.column, config, split)
        source = _embedded(embedded, split, **options)
    elif dataset is None:
        raise DataError(f"There are no embedded {kind.samples}. Name your own data with `--dataset`.")
    else:
        found = find_data(os.fspath(dataset), config, revision, kind)
        source = _open(found, split, sample_by, streaming, options)
        source.hub = found.hub and found.hub | {"split": split}
        source.mask_folders = found.mask_folders
    if source.num_rows == 0:
        raise DataError(
            f"{str(dataset)!r} is empty: its split {split!r} ({source.description.split(',')[0]}) has no rows."
        )
    return ColumnsTogether(source, stated, together) if together else source


def available_splits(
    dataset: str | os.PathLike | None,
    *,
    modality: str = "text",
    config: str | None = None,
    revision: str | None = None,
) -> list[str]:
    """The splits that [`open_source`] can open."""
    kind = find_modality(modality)
    embedded = kind.embedded_set(dataset)
    if embedded is not None or dataset is None:
        return list(embedded.splits) if embedded else []
    return list(find_data(os.fspath(dataset), config, revision, kind).splits)


def _open(found: Found, split: str, sample_by: str, streaming: bool, options: dict) -> Source:
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
        return TableSource(table, name=found.name, fingerprint=digest, **options)
    if not paths:
        return convert_once(found, split, sample_by, None, "it is not made of files", **options)
    paths = [path.removeprefix("file://") for path in paths]
    in_folder = found.module == found.kind.folder_module
    check_readable(paths, may_miss=in_folder)
    names = relative_names(paths, found.root)
    sizes, ids = file_sizes(paths)
    if not sum(sizes):
        raise DataError(
            f"{found.name!r} is empty: {describe(len(paths), 'files')} of split {split!r} without a single byte."
        )
    fingerprint = files_digest(paths, names, sizes, ids)
    if found.kind.folder_module is not None and found.module in ("csv", "json"):
        return open_table_of_files(found, split, fingerprint, **options)
    # a copy of a folder of images would hold their paths
    why = why_convert(found, paths, sizes) if streaming or in_folder else "streaming is off"
    if why:
        return convert_once(found, split, sample_by, fingerprint, why, **options)
    if found.module == "parquet":
        source = ParquetSource(
            paths, names, dataset=repr(found.name), features=found.features, fingerprint=fingerprint, **options
        )
        if source.largest_group_bytes > MAX_ROW_GROUP_BYTES and not is_remote(paths[0]):
            why = f"it has row groups of {source.largest_group_bytes >> 20} MiB, too large to decode whole"
            columns = [wanted.column for wanted in source.inputs.values()]
            found = replace(
                found, load={"path": "parquet", "data_files": {split: as_patterns(paths)}, "columns": columns}
            )
            return convert_once(found, split, sample_by, fingerprint, why, **options)
        return source
    if found.module == "arrow":
        table = third_party(
            lambda: datasets.concatenate_datasets([datasets.Dataset.from_file(path) for path in paths]),
            f"The arrow files of {found.name!r} cannot be opened",
        )
        return TableSource(table, name=found.name, fingerprint=fingerprint, **options)
    return found.kind.readers[found.module](
        SplitFiles(
            found.name, paths, names, sizes, fingerprint, features=found.features, splits=found.splits,
            sample_by=sample_by, **options,
        )
    )  # fmt: skip


def _check_embedded(
    kind: Modality, embedded: EmbeddedData, column: str | None, config: str | None, split: str
) -> None:
    for given, value, known in (
        ("column", column, (kind.name, *(("mask",) if embedded.mask_classes else ()))),
        ("split", split, embedded.splits),
        ("configuration", config, ()),
    ):
        if value is not None and value not in known:
            only = "it has none" if not known else f"its only {given} is {known[0]!r}"
            has = f"its {given}s are {' and '.join(map(repr, known))}" if len(known) > 1 else only
            raise DataError(
                f"The embedded data {embedded.name!r} have no {given} {value!r}: {has}. Name your own data with "
                "`--dataset`."
            )


def _embedded(embedded: EmbeddedData, split: str, inputs: dict[str, Input], piece_bytes: int) -> MemorySource:
    description, columns, features = embedded.load(split)
    inputs = find_inputs(features, inputs, description)
    column = inputs[leading_input(inputs)].column
    return MemorySource(
        columns[column],
        name=description,
        column=column,
        inputs=inputs,
        beside={name: values for name, values in columns.items() if name != column},
        features=features,
        piece_bytes=piece_bytes,
    )
