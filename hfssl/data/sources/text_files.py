"""Sources of uncompressed text files (jsonl, txt), read by ranges of bytes: the records that start in a range."""

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat

import datasets
import numpy as np
import pyarrow as pa

from ...errors import DataError, first_line
from ..modality import Input, leading_input
from .base import (
    MAX_PIECES,
    PIECE_BYTES,
    Cache,
    Damage,
    PieceRows,
    Source,
    decode_utf8,
    describe,
    good_rows,
    new_digest,
)
from .columns import field_of_record, with_fields
from .files import FileIsGone, is_remote, missing, open_bytes, unreadable, with_retries
from .walk import class_of


# One request to a remote file fetches this much; its pieces share a group.
REMOTE_GROUP_BYTES = 4 << 20
# A record that is longer is damaged: nothing may need unbounded memory.
MAX_RECORD_BYTES = 64 << 20
# Up to this size rows are counted instead of estimated.
COUNT_BYTES = 8 << 20

BLANK = b" \t\r\x0b\x0c"
_BLANK_LINE = re.compile(b"\n[" + BLANK + b"]*\n")
_TOO_LONG = f"longer than {MAX_RECORD_BYTES >> 20} MiB"


class TextFiles:
    """Uncompressed text files, read by ranges of bytes: the lines that start in a range, wherever they end."""

    def __init__(self, paths: list[str], names: list[str], sizes: Sequence[int]):
        self.paths, self.names = paths, names
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.remote = is_remote(paths[0])
        self.cache = Cache()

    def read(self, file: int, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop`, or to the end of the file."""
        stop = min(stop, int(self.sizes[file]))
        if start >= stop:
            return b""
        for of_file, first, data in self.cache.data.values():
            if of_file == file and first <= start and stop <= first + len(data):
                return data[start - first : stop - first]
        return self._fetch(file, start, stop)

    def _fetch(self, file: int, start: int, stop: int) -> bytes:
        def fetch() -> bytes:
            handle = self.cache.open(file, lambda: open_bytes(self.paths[file]), most=64)
            handle.seek(start)
            data = handle.read(stop - start)
            while len(data) < stop - start:
                more = handle.read(stop - start - len(data))
                if not more:
                    raise DataError(
                        f"{self.names[file]!r} is shorter than it was when it was opened: it ends before byte {stop}. "
                        "A file must not change while it is read. Start again."
                    )
                data += more
            return data

        try:
            return with_retries(fetch, again=lambda: self.cache.forget(file))
        except DataError:
            raise
        except Exception as error:
            raise unreadable(self.names[file], error) from error

    def prefetch(self, key: int, file: int, start: int, stop: int) -> None:
        """Fetch a long range in one request and keep it until the next one."""
        windows = self.cache.data
        if key not in windows:
            windows.clear()
            stop = min(stop, int(self.sizes[file]))
            windows[key] = (file, start, self._fetch(file, start, stop))

    def lines(self, file: int, start: int, stop: int) -> tuple[np.ndarray, list, list[tuple[int, str]]]:
        """Position and text of each line that starts in `[start, stop)`, without newlines; then what was too long."""
        nothing = np.empty(0, dtype=np.int64)
        first, data, whole = self.block(file, start, stop)
        if data is None:
            return nothing, [], []
        too_long = []
        if not whole:
            cut = data.rfind(b"\n", 0, stop - first) + 1
            too_long = [(first + cut, _TOO_LONG)]
            if cut == 0:
                return nothing, [], too_long
            data = data[: cut - 1]
        newlines = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == 10)
        starts = np.empty(len(newlines) + 1, dtype=np.int64)
        starts[0] = first
        starts[1:] = newlines + (first + 1)
        if first == 0:
            data = data.removeprefix(codecs.BOM_UTF8)
        try:
            lines = data.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            lines = [decode_utf8(line) for line in data.split(b"\n")]
        return starts, lines, too_long

    def block(self, file: int, start: int, stop: int) -> tuple[int, bytes | None, bool]:
        """All lines that start in `[start, stop)`: their position, their bytes, whether the last one is whole."""
        base = max(start - 1, 0)
        data = self.read(file, base, stop + 4096)
        # A line starts after a newline, so the first one is found by the newline at `start - 1` or later.
        line = 0 if start == 0 else data.find(b"\n", 0, stop - 1 - base) + 1
        if start > 0 and line == 0:
            return start, None, True
        first, data = base + line, data[line:]
        # The newline at `stop - 1` or later ends the last line that starts before `stop`.
        data, whole = self.extend(file, first, data, max(stop - 1 - first, 0), lambda data, at: data.find(b"\n", at))
        return first, data, whole

    def extend(
        self, file: int, first: int, data: bytes, at: int, find: Callable[[bytes, int], int]
    ) -> tuple[bytes, bool]:
        """Read on to the end that `find` finds at or after `at`, and cut there; False if it is too far away."""
        step = PIECE_BYTES
        while (end := find(data, at)) < 0:
            position = first + len(data)
            if position >= self.sizes[file]:
                return data, True
            if len(data) > MAX_RECORD_BYTES:
                return data, False
            # Growing steps: the cost of a long record stays proportional to its length.
            data += self.read(file, position, position + step)
            step = min(2 * step, 16 << 20)
        return data[:end], True

    def follows_blank_line(self, file: int, position: int) -> bool:
        """Whether the line before the one at `position` is blank or missing."""
        end = position - 1
        while end > 0:
            start = max(0, end - 256)
            tail = self.read(file, start, end)
            if start == 0:
                tail = tail.removeprefix(codecs.BOM_UTF8)
            tail = tail.rstrip(BLANK)
            if tail:
                return tail.endswith(b"\n")
            end = start
        return True


def check_encoding(text: TextFiles) -> None:
    """Refuse UTF-16, which each line would be damaged in, by the first bytes of the first file that is not empty."""
    file = int(np.flatnonzero(text.sizes)[0])
    if text.read(file, 0, 2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise DataError(
            f"{text.names[file]!r} is UTF-16, but UTF-8 is needed. Convert it: `iconv -f UTF-16 -t UTF-8 IN > OUT`."
        )


class BytesSource(Source):
    """Records of uncompressed text files, found by their bytes. A subclass says what a record is."""

    unit = "byte"
    kind = ""

    def __init__(
        self,
        text: TextFiles,
        *,
        inputs: dict[str, Input],
        features: dict,
        fingerprint: str = "",
        piece_bytes: int = PIECE_BYTES,
    ):
        self._text = text
        self._total = int(text.sizes.sum())
        pieces, weights = self._cut(max(piece_bytes, -(-self._total // MAX_PIECES)))
        column = inputs[leading_input(inputs)].column
        super().__init__(
            files=text.names,
            inputs=inputs,
            features=features,
            pieces=pieces,
            piece_bytes=weights,
            fingerprint=new_digest(fingerprint, self.kind, column, piece_bytes).hexdigest(),
        )
        self._count_rows()
        self.description = (
            f"{describe(len(text.names), f'{self.kind} files')}, {'' if self.num_rows_exact else 'about '}"
            f"{describe(self.num_rows, 'rows')}, column {column!r}"
        )

    def _cut(self, target: int) -> tuple[np.ndarray, np.ndarray]:
        sizes = self._text.sizes
        parts = -(-sizes // target)
        file = np.repeat(np.arange(len(sizes)), parts)
        part = np.arange(len(file)) - np.repeat(np.cumsum(parts) - parts, parts)
        pieces = np.empty((len(file), 4), dtype=np.int64)
        pieces[:, 0], pieces[:, 1], pieces[:, 2] = file, part * target, np.minimum((part + 1) * target, sizes[file])
        pieces[:, 3] = np.arange(len(pieces))
        if self._text.remote:
            begins_group = part % max(1, REMOTE_GROUP_BYTES // target) == 0
            pieces[:, 3] = np.cumsum(begins_group) - 1
        return pieces, pieces[:, 2] - pieces[:, 1]

    def _count_rows(self) -> None:
        """Count the rows of a small data set; of a large one estimate them from pieces all over it."""
        picked = np.arange(len(self.pieces))
        if self._text.remote or self._total > COUNT_BYTES:
            picked = np.unique(np.linspace(0, len(picked) - 1, 4 if self._text.remote else 32).astype(np.int64))
        rows = 0
        for index in picked.tolist():
            piece = self.read(index)
            rows += len(piece.rows) + len(piece.bad) + piece.num_empty
        self._text.cache.data.clear()
        self.num_rows_exact = len(picked) == len(self.pieces)
        if not self.num_rows_exact:
            rows = max(rows, round(rows * self._total / int(self.piece_bytes[picked].sum())))
        self.num_rows = rows

    def read(self, index: int) -> PieceRows:
        file, start, stop, group = self.pieces[index].tolist()
        if self._text.remote:
            first, last = np.searchsorted(self.pieces[:, 3], [group, group + 1])
            # A margin on both sides for the records that cross the borders.
            begin = max(int(self.pieces[first, 1]) - 1, 0)
            try:
                self._text.prefetch(group, file, begin, int(self.pieces[last - 1, 2]) + PIECE_BYTES)
            except FileIsGone:
                return self._missing(file, start, stop)
        try:
            return self._records(file, start, stop)
        except FileIsGone:
            return self._missing(file, start, stop)

    def _missing(self, file: int, start: int, stop: int) -> PieceRows:
        """As many damaged records as a piece of that size has on average."""
        number = min(max(round(self.num_rows * (stop - start) / self._total), 1), stop - start)
        bad = [(row, missing(self.files[file]).reason) for row in range(start, start + number)]
        return PieceRows(np.empty(0, dtype=np.int64), {name: [] for name in self.columns}, bad)

    def _records(self, file: int, start: int, stop: int) -> PieceRows:
        raise NotImplementedError


class JsonLinesSource(BytesSource):
    """One JSON object per line. Blank lines are no rows."""

    kind = "jsonl"

    def _records(self, file: int, start: int, stop: int) -> PieceRows:
        wanted = [(wanted.column, wanted.modality is not None, []) for wanted in self.inputs.values()]
        rows, bad = [], []
        for row, record in self._objects(file, start, stop):
            if isinstance(record, Damage):
                bad.append((row, record.reason))
                continue
            rows.append(row)
            for column, of_text, values in wanted:
                try:
                    value = record[column] if column in record else field_of_record(record, column)
                except KeyError:
                    value = Damage(f"no {column!r}")
                if of_text and type(value) is list:
                    value = joined_paragraphs(value)
                values.append(value if type(value) is not str or value.isascii() else _checked(value, column))
        columns = dict(zip(self.inputs, (values for _, _, values in wanted), strict=True))
        result = good_rows(np.array(rows, dtype=np.int64), columns, self.inputs)
        result.bad = sorted([*result.bad, *bad])
        return result

    def _objects(self, file: int, start: int, stop: int) -> Iterator[tuple[int, dict | Damage]]:
        """Position and object of each line that is not blank."""
        starts, lines, too_long = self._text.lines(file, start, stop)
        decode = json.JSONDecoder().raw_decode
        for row, line in zip(starts.tolist(), lines, strict=True):
            if type(line) is not str:
                yield row, line
                continue
            line = line.strip(" \t\r")
            if not line:
                continue
            try:
                record, end = decode(line)
            except (ValueError, RecursionError) as error:
                yield row, Damage(f"invalid JSON ({first_line(error)})")
                continue
            if end < len(line):
                yield row, Damage(f"invalid JSON (extra data at character {end})")
            elif type(record) is not dict:
                yield row, Damage(f"a JSON {type(record).__name__} instead of an object")
            else:
                yield row, record
        yield from ((row, Damage(reason)) for row, reason in too_long)

    def read_input(self, name: str) -> list:
        column = self.inputs[name].column
        objects = (self._objects(*piece[:3]) for piece in self.pieces.tolist())
        return [_field(record, column) if isinstance(record, dict) else None for part in objects for _, record in part]


def _field(record: dict, column: str):
    try:
        return field_of_record(record, column)
    except KeyError:
        return None


def joined_paragraphs(values: list):
    """A text of its paragraphs, with blank lines between; what is no list of texts stays as it is."""
    paragraphs = [value for value in values if value is not None]
    return "\n\n".join(paragraphs) if all(type(value) is str for value in paragraphs) else values


def _checked(value: str, column: str) -> str | Damage:
    """What is valid JSON may still be no text: no tokenizer takes an unpaired surrogate."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return Damage(f"{column!r} has an unpaired surrogate")
    return value


def json_features(text: TextFiles) -> dict:
    """Columns and their types, from the first records of a few files."""
    full = np.flatnonzero(text.sizes).tolist()
    values: dict[str, list] = {}
    for file in sorted({full[0], full[len(full) // 3], full[2 * len(full) // 3], full[-1]}):
        _, lines, _ = text.lines(file, 0, min(1 << 18, int(text.sizes[file])))
        for line in lines[:500]:
            try:
                record = json.loads(line)
            except (TypeError, ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                for name, value in record.items():
                    values.setdefault(name, []).append(value)
    return with_fields({name: _json_feature(column) for name, column in values.items()})


def _json_feature(values: list):
    values = [value for value in values if value is not None]
    if not values:
        return datasets.Value("null")
    if 2 * sum(type(value) is str for value in values) >= len(values):
        return datasets.Value("string")
    records = [value for value in values if type(value) is dict]
    if 2 * len(records) >= len(values):
        fields: dict[str, list] = {}
        for record in records:
            for name, value in record.items():
                fields.setdefault(name, []).append(value)
        return {name: _json_feature(of_field) for name, of_field in fields.items()}
    try:
        return datasets.Features.from_arrow_schema(pa.schema([("column", pa.array(values).type)]))["column"]
    except (pa.ArrowException, ValueError):
        return datasets.Value("null")


class PlainTextSource(BytesSource):
    """Files that hold text only. What says their class is the folder that they lie in, where there are several."""

    @property
    def class_folders(self) -> list[str]:
        return list(self.features["label"].names) if "label" in self.features else []

    def _with_class(self, texts: list, files: Iterable[int]) -> dict[str, list]:
        """The columns of some texts, of which each lies in one of `files`."""
        columns: dict[str, list] = {self.leading: texts}
        for name in self.inputs:
            if name != self.leading:
                label = self.features[self.inputs[name].column].str2int
                of = zip(texts, files, strict=False)
                columns[name] = [label(class_of(self._text.paths[file])) for _, file in of]
        return columns

    def read_input(self, name: str) -> list:
        return [value for index in range(len(self)) for value in self.read(index).columns[name]]


class TextLinesSource(PlainTextSource):
    """One sample per line. Blank lines are no rows."""

    kind = "txt"

    def _records(self, file: int, start: int, stop: int) -> PieceRows:
        starts, lines, too_long = self._text.lines(file, start, stop)
        lines = [line.removesuffix("\r") if type(line) is str else line for line in lines]
        kept = [i for i, line in enumerate(lines) if type(line) is not str or (line and not line.isspace())]
        if len(kept) < len(lines):
            starts, lines = starts[kept], [lines[i] for i in kept]
        result = good_rows(starts, self._with_class(lines, repeat(file)), self.inputs)
        result.bad.extend(too_long)
        return result


class TextParagraphsSource(PlainTextSource):
    """One sample per paragraph: lines up to a blank one."""

    kind = "txt (by paragraph)"

    def _records(self, file: int, start: int, stop: int) -> PieceRows:
        first, data, whole = self._text.block(file, start, stop)
        begins, is_open = [], False
        if data is not None:
            after_blank, at = self._text.follows_blank_line(file, first), 0
            for line in data.split(b"\n"):
                if first + at == 0:
                    is_blank = not line.removeprefix(codecs.BOM_UTF8).strip(BLANK)
                else:
                    is_blank = not line.strip(BLANK)
                if after_blank and not is_blank:
                    begins.append(at)
                # The paragraph at the end of the range may go on behind it, if it is one of ours.
                is_open = not is_blank and bool(begins)
                after_blank = is_blank
                at += len(line) + 1
        if is_open and whole:
            end = len(data)
            data += self._text.read(file, first + end, first + end + 4096)
            data, whole = self._text.extend(file, first, data, end, _blank_line)
        too_long = [(first + begins.pop(), _TOO_LONG)] if is_open and not whole else []
        rows, values = [], []
        for begin in begins:
            end = _blank_line(data, begin)
            value = data[begin:] if end < 0 else data[begin:end]
            if first + begin == 0:
                value = value.removeprefix(codecs.BOM_UTF8)
            value = decode_utf8(value)
            if type(value) is str:
                value = value.replace("\r\n", "\n").rstrip()
                if not value:
                    continue
            rows.append(first + begin)
            values.append(value)
        result = good_rows(np.array(rows, dtype=np.int64), self._with_class(values, repeat(file)), self.inputs)
        result.bad.extend(too_long)
        return result


def _blank_line(data: bytes, at: int) -> int:
    """Where the text before the next blank line ends, -1 if there is none."""
    match = _BLANK_LINE.search(data, at)
    return match.start() if match else -1


class TextDocumentsSource(PlainTextSource):
    """One sample per file. A piece is a file, or a run of files where there are very many; rows count files."""

    kind = "txt (by document)"
    unit = "file"

    def where(self, file: int, row: int) -> str:
        return self.files[row]

    def _cut(self, target: int) -> tuple[np.ndarray, np.ndarray]:
        sizes = self._text.sizes
        starts = np.arange(0, len(sizes), -(-len(sizes) // MAX_PIECES))
        stops = np.append(starts[1:], len(sizes))
        return np.stack([starts, starts, stops, np.arange(len(starts))], axis=1), np.add.reduceat(sizes, starts)

    def _count_rows(self) -> None:
        self.num_rows = len(self._text.sizes)

    def read(self, index: int) -> PieceRows:
        _, start, stop, _ = self.pieces[index].tolist()
        values = []
        for file in range(start, stop):
            if self._text.sizes[file] > MAX_RECORD_BYTES:
                values.append(Damage(_TOO_LONG))
                continue
            try:
                data = self._text.read(file, 0, int(self._text.sizes[file]))
            except FileIsGone:
                values.append(missing(self.files[file]))
                continue
            value = decode_utf8(data.removeprefix(codecs.BOM_UTF8))
            values.append(value.replace("\r\n", "\n") if type(value) is str else value)
        return good_rows(np.arange(start, stop), self._with_class(values, range(start, stop)), self.inputs)


# What a sample of a txt file is.
TXT_SOURCES = {"line": TextLinesSource, "paragraph": TextParagraphsSource, "document": TextDocumentsSource}
