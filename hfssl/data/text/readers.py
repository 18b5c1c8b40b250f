"""How formats of text are read in place, and the texts of a table's column."""

import datasets
import pyarrow as pa

from ...errors import DataError
from ..sources.base import Source, decode_utf8
from ..sources.columns import find_inputs
from ..sources.files import SplitFiles
from ..sources.text_files import TXT_SOURCES, JsonLinesSource, TextFiles, check_encoding, json_features


def from_arrow(column: pa.ChunkedArray) -> list:
    """The texts of a column; [`~hfssl.data.sources.base.Damage`] where one is not UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        binary = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
        return [None if value is None else decode_utf8(value) for value in column.cast(binary).to_pylist()]


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
    """Lines, paragraphs or whole files, by ranges of bytes. They hold one column, called `text`."""
    text = _opened(files)
    features = {"text": datasets.Value("string")}
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
