"""How formats of text are read in place, and the texts of a table's column."""

import datasets
import pyarrow as pa

from ...errors import DataError
from ..sources.base import Damage, Source, decode_utf8
from ..sources.columns import find_inputs
from ..sources.files import SplitFiles
from ..sources.text_files import (
    TXT_SOURCES,
    JsonLinesSource,
    TextFiles,
    check_encoding,
    joined_paragraphs,
    json_features,
)
from ..sources.walk import class_names


def from_arrow(column: pa.ChunkedArray) -> list:
    """The texts of a column, or of its lists of paragraphs; [`~hfssl.data.sources.base.Damage`] for no UTF-8."""
    of = column.type
    if pa.types.is_list(of) or pa.types.is_large_list(of) or pa.types.is_fixed_size_list(of):
        return [_joined(row) for chunk in column.chunks for row in chunk]
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        binary = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
        return [None if value is None else decode_utf8(value) for value in column.cast(binary).to_pylist()]


def _joined(row: pa.Scalar):
    try:
        paragraphs = row.as_py()
    except UnicodeDecodeError:
        return Damage("not valid UTF-8")
    return paragraphs if paragraphs is None else joined_paragraphs(paragraphs)


def read_json_lines(files: SplitFiles) -> Source:
    """One JSON object a line, by ranges of bytes."""
    text = _opened(files)
    features = files.features or json_features(text)
    if not features:
        raise DataError(
            f"{files.names[0]!r} of {files.dataset!r} does not begin with JSON objects, one a line. Mend it, or "
            "rename it to `.txt` to read it as plain text."
        )
    return JsonLinesSource(
        text,
        inputs=find_inputs(features, files.inputs, repr(files.dataset)),
        features=features,
        fingerprint=files.fingerprint,
        piece_bytes=files.piece_bytes,
    )


def read_txt(files: SplitFiles) -> Source:
    """Lines, paragraphs or whole files, by ranges of bytes. They hold one column, called `text`.

    Class folders become the column `label`.
    """
    text = _opened(files)
    features = {"text": datasets.Value("string")}
    classes = class_names(list(files.splits.values()))
    if classes:
        features["label"] = datasets.ClassLabel(names=classes)
    return TXT_SOURCES[files.sample_by](
        text,
        inputs=find_inputs(features, files.inputs, repr(files.dataset)),
        features=features,
        fingerprint=files.fingerprint,
        piece_bytes=files.piece_bytes,
    )


def _opened(files: SplitFiles) -> TextFiles:
    text = TextFiles(files.paths, files.names, files.sizes)
    check_encoding(text)
    return text
