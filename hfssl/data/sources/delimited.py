"""Files with separated values (csv, tsv), converted to an Arrow file in which damaged records are kept as such."""

import codecs
import csv
import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from ...errors import DataError, first_line


logger = logging.getLogger(__name__)

# The column that says why a record is damaged; null where it is not.
DAMAGE = "__damage__"
# A record with its texts must fit.
_BLOCK_BYTES = 64 << 20
# What is looked at for separator and encoding.
_SAMPLE_BYTES = 1 << 20
_SEPARATORS = (",", ";", "\t", "|")
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def convert_delimited(openers: Sequence[tuple[str, Any]], path: Path, options: dict[str, Any]) -> None:
    """Write the records of some files with the same columns to one Arrow file.

    Columns of which every value is a number become numbers, all others texts. A record with more or fewer values than
    there are columns is a row of nulls with the reason in the column [`DAMAGE`], behind the others of its file.

    Args:
        openers (`Sequence[tuple[str, Callable[[], BinaryIO]]]`):
            Name of each file, and what opens it.
        path (`Path`):
            Where to write.
        options (`dict[str, Any]`):
            `sep` and `encoding`, where they are known. Else they are found.

    Raises:
        DataError: where a file cannot be read as a whole, or has other columns than the first one.
    """
    texts = path.with_suffix(".texts")
    casts = _write_texts(openers, texts, options)
    with pa.memory_map(str(texts)) as source, pa.OSFile(str(path), "wb") as sink:
        reader = pa.ipc.open_stream(source)
        fields = [field.with_type(casts.get(field.name, field.type)) for field in reader.schema]
        with pa.ipc.new_stream(sink, pa.schema(fields)) as writer:
            for batch in reader:
                columns = [_number(column, field.type) for column, field in zip(batch.columns, fields, strict=True)]
                writer.write_batch(pa.record_batch(columns, schema=pa.schema(fields)))
    os.remove(texts)


def _write_texts(openers: Sequence[tuple[str, Any]], path: Path, options: dict[str, Any]) -> dict[str, pa.DataType]:
    """Write all values as texts; the columns that hold nothing but numbers, and of which type."""
    names, writer, numbers, filled = None, None, {}, set()
    with pa.OSFile(str(path), "wb") as sink:
        for name, opener in openers:
            bad: list[tuple[int, str]] = []
            try:
                with opener() as file:
                    head = file.read(_SAMPLE_BYTES)
                if not head:
                    continue
                encoding = options.get("encoding") or encoding_of(head, name)
                separator = options.get("sep") or separator_of(head.decode(encoding, "replace"))
                header, num_lines = _header(head.decode(encoding, "replace"), separator)
                if not header:
                    raise DataError(f"The first line of {name!r} is blank, but names of columns are needed there.")
                if names is not None and header != names:
                    raise DataError(
                        f"{name!r} has the columns {', '.join(header)}, {openers[0][0]!r} has {', '.join(names)}. "
                        "Leave one of them out, e.g. with a glob."
                    )
                names = header
                schema = pa.schema([*((column, pa.string()) for column in names), (DAMAGE, pa.string())])
                if writer is None:
                    writer = pa.ipc.new_stream(sink, schema)
                    numbers = dict.fromkeys(names, pa.int64())
                with opener() as file:
                    for batch in _batches(file, names, num_lines, separator, encoding, bad):
                        _keep_numbers(batch, numbers, filled)
                        nothing = pa.nulls(len(batch), pa.string())
                        writer.write_batch(pa.record_batch([*batch.columns, nothing], schema=schema))
            except (DataError, OSError):
                raise
            except Exception as error:
                raise DataError(f"{name!r} cannot be read ({first_line(error)}).") from error
            reasons = [f"{name}, record {number}: {reason}" for number, reason in bad]
            columns = [pa.nulls(len(reasons), pa.string())] * len(names)
            writer.write_batch(pa.record_batch([*columns, pa.array(reasons, pa.string())], schema=schema))
        if writer is None:
            raise DataError(f"{openers[0][0]!r} holds nothing.")
        writer.close()
    return {column: kind for column, kind in numbers.items() if column in filled}


def _batches(
    file: BinaryIO, names: list[str], num_lines: int, separator: str, encoding: str, bad: list[tuple[int, str]]
):
    def leave_out(row: arrow_csv.InvalidRow) -> str:
        columns = "1 column" if row.expected_columns == 1 else f"{row.expected_columns} columns"
        bad.append((row.number, f"{row.actual_columns} values for {columns}"))
        return "skip"

    return arrow_csv.open_csv(
        file,
        # one thread: with several no record has a number
        arrow_csv.ReadOptions(
            use_threads=False, block_size=_BLOCK_BYTES, encoding=encoding, column_names=names, skip_rows=num_lines
        ),
        arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=leave_out),
        # what is no UTF-8 is a damaged text, not the end of the run
        arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), check_utf8=False),
    )


def _keep_numbers(batch: pa.RecordBatch, numbers: dict[str, pa.DataType], filled: set[str]) -> None:
    """Leave the columns in `numbers` that still hold nothing else."""
    for column in list(numbers):
        values = batch.column(column)
        for kind in (numbers[column], pa.float64()):
            try:
                numbers[column], known = kind, _number(values, kind)
                if known.null_count < len(known):
                    filled.add(column)
                break
            except pa.ArrowInvalid:
                continue
        else:
            del numbers[column]


def _number(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        return values
    is_blank = pc.equal(pc.binary_length(values), 0)
    return pc.if_else(is_blank, None, values).cast(kind)


def encoding_of(head: bytes, name: str) -> str:
    """The encoding of a file by how it begins: UTF-8, unless it is none."""
    for bom, encoding in _BOMS:
        if head.startswith(bom):
            return encoding
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        import charset_normalizer

        best = charset_normalizer.from_bytes(head[: _SAMPLE_BYTES // 8]).best()
        # a single broken byte does not make it another encoding
        share = head.decode("utf-8", "replace").count("\ufffd") / max(sum(byte > 127 for byte in head), 1)
        if best is not None and share > 0.5:
            logger.info(
                "%s is no UTF-8 and is read as %s. Convert it (`iconv`) where that is wrong.", name, best.encoding
            )
            return best.encoding
    return "utf-8"


def separator_of(head: str) -> str:
    """The one of the usual separators that the first line has most often."""
    line = head.removeprefix("\ufeff").partition("\n")[0]
    return max(_SEPARATORS, key=lambda separator: (line.count(separator), separator == ","))


def _header(head: str, separator: str) -> tuple[list[str], int]:
    """The names of the columns, each its own, and how many lines they take."""
    reader = csv.reader(head.removeprefix("\ufeff").splitlines(keepends=True), delimiter=separator)
    found = next(reader, [])
    names: list[str] = []
    for i, name in enumerate(found):
        name = name.strip() or f"Unnamed: {i}"
        free = (f"{name}.{number}" for number in itertools.count(1))
        names.append(name if name not in names else next(other for other in free if other not in names))
    return names, reader.line_num
