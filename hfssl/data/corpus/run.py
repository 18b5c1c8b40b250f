"""The pass itself: read a source in its order, apply a function, write the results part by part."""

import json
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from ...machine import local_world_size, num_cores
from ..mixtures import parts_of
from ..sources import DataError, Source
from ..sources.base import Damage, Empty
from ..stream import MIN_ROWS_TO_JUDGE, MOST_FILES_NAMED
from .columns import PLACE, Column, place_keys, to_arrow
from .results import FORMAT_VERSION, MANIFEST, CorpusResults, open_part, part_counts, part_path, read_manifest


logger = logging.getLogger(__name__)

# About how much is lost by a kill, and what one file holds: a million images lie in a thousand files.
ROWS_PER_PART = 1024
BYTES_PER_PART = 64 << 20
MAX_PARTS = 4096
# Small data sets are cut finer, so that each of several processes has some.
MIN_ROWS_PER_PART, FEW_PARTS = 64, 64
# A batch ends before its number of samples where they are larger than this: photographs of 12 megapixels are decoded
# ten at a time.
BATCH_BYTES = 32 << 20
# A block is what is in memory before it is written, and what one read of a result reads.
BLOCK_ROWS = 1024
BLOCK_BYTES = 16 << 20


@dataclass
class ResultRows:
    """What a function makes of a batch of samples.

    Args:
        columns (`dict[str, np.ndarray | list[np.ndarray]]`):
            Equally long columns. An array of shape `(num_rows, ...)` holds rows of one shape, a list rows of
            different lengths.
        num_windows (`np.ndarray` of shape `(num_samples,)`, *optional*):
            How many rows each sample gave, one after another: its windows 0, 1 and so on. Left out: one each.
    """

    columns: Mapping[str, Column]
    num_windows: np.ndarray | None = None


@dataclass
class _Batch:
    """Samples on their way from the reading thread to the function."""

    part: int
    places: list[tuple[int, int, int]] = field(default_factory=list)
    samples: list = field(default_factory=list)
    bad: list[tuple[int, int, int, str]] = field(default_factory=list)  # place and reason
    num_read: int = 0
    ends_part: bool = False


def deal(parts: Sequence[int], rank: int, world_size: int) -> list[int]:
    """The parts of one process: a run of neighbours, which often share what has to be read to get at them."""
    return list(parts[rank * len(parts) // world_size : (rank + 1) * len(parts) // world_size])


class CorpusPass:
    """Every sample of a source once, in the order of the source, and what a function makes of it in a folder.

    The corpus is cut into parts, each a run of pieces; how does not depend on the number of processes. A part becomes
    one file, which appears when it is complete. So a pass can be killed at any moment: of what [`~CorpusPass.missing`]
    then says, each process runs its share ([`deal`]). A batch never reaches from one part into the next, so that the
    files are the same for any number of processes.

    Args:
        source ([`~hfssl.data.sources.Source`]):
            What to go through. Of a mixture each source once, whatever its weight.
        function (`Callable[[list], ResultRows]`):
            Called with up to `batch_size` samples in order; must give rows for all of them.
        folder (`str` or `Path`):
            Where results go; all processes must see it.
        identity (`dict[str, Any]`):
            All that the results depend on besides the data: digest of the model, settings. Plain values for json; a
            folder that was begun with others is refused.
        prepare (`Callable[[Any], Any]`, *optional*):
            Called in threads with each sample before the function gets it, while the function works on the batch
            before: decoding, tokenising. Returns a [`~hfssl.data.sources.base.Damage`] for what cannot be used, an
            [`~hfssl.data.sources.base.Empty`] for what is left out without being damaged.
        prepare_many (`Callable[[list], list]`, *optional*):
            Instead of `prepare`, for what costs less for several samples at once; how many they are must not matter.
        batch_size (`int`, *optional*, defaults to `64`):
            Samples a call of the function; fewer where they are large.
        max_bad_fraction (`float`, *optional*, defaults to `0.01`):
            Share of damaged samples above which the pass stops with a [`DataError`].

    Raises:
        DataError: where the folder holds results of other data, another function, or another version of the format.
    """

    def __init__(
        self,
        source: Source,
        function: Callable[[list], ResultRows],
        folder: str | Path,
        *,
        identity: dict[str, Any],
        prepare: Callable[[Any], Any] | None = None,
        prepare_many: Callable[[list], list] | None = None,
        batch_size: int = 64,
        max_bad_fraction: float = 0.01,
    ):
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        self.source, self.sources = source, [part.source for part in parts_of(source)]
        self.function, self.prepare, self.prepare_many = function, prepare, prepare_many
        self.threads = max(1, num_cores() // local_world_size())
        self.folder = Path(folder)
        self.batch_size, self.max_bad_fraction = batch_size, max_bad_fraction
        self.counts = {"read": 0, "bad": 0}
        self._named: set[tuple[int, int]] = set()
        self.parts = self._begin(identity)

    # -- the folder -----------------------------------------------------------------------------------------------

    def _begin(self, identity: dict[str, Any]) -> list[list[int]]:
        """The parts of the pass that the folder holds, which is begun where it holds none."""
        manifest = {
            "version": FORMAT_VERSION,
            "data": [source.fingerprint for source in self.sources],
            "function": json.loads(json.dumps(identity)),
            "parts": [part for number in range(len(self.sources)) for part in _cut(self.sources[number], number)],
        }
        known = read_manifest(self.folder)
        changes = _changes(known, manifest) if known else []
        if changes and any(part_path(self.folder, part).exists() for part in range(len(known["parts"]))):
            raise DataError(
                f"{self.folder} holds results that do not fit: {'; '.join(changes)}. Name another folder, or delete "
                "this one to begin anew."
            )
        if known is None or changes:  # nothing was finished
            self.folder.mkdir(parents=True, exist_ok=True)
            with _written_aside(self.folder / MANIFEST) as temporary:
                temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            known = manifest
        return known["parts"]

    def missing(self) -> list[int]:
        """The parts that are not finished. With several processes, one asks and tells the others."""
        missing = []
        for part in range(len(self.parts)):
            path = part_path(self.folder, part)
            try:
                part_counts(open_part(path))
            except FileNotFoundError:
                missing.append(part)
            except (OSError, pa.ArrowException, KeyError, TypeError, IndexError) as error:
                logger.warning("%s is damaged and is made again (%s).", path, str(error).split("\n")[0])
                path.unlink(missing_ok=True)  # other processes go by what is there
                missing.append(part)
        return missing

    def wait(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until every part is there, however long other processes need: a barrier would give up at some time.

        Args:
            meanwhile (`Callable`, *optional*):
                Called again and again; what it raises ends the wait.
        """
        for part in range(len(self.parts)):
            while not part_path(self.folder, part).exists():
                meanwhile()
                time.sleep(0.5)

    def results(self) -> CorpusResults:
        """What the complete pass left."""
        return CorpusResults(self.folder)

    # -- the pass -------------------------------------------------------------------------------------------------

    def run(self, parts: Sequence[int], title: str = "Corpus", show_progress: bool = False) -> None:
        """Make some parts, one after another.

        Args:
            parts (`Sequence[int]`):
                Which: no other process may make one of them at the same time.
            title (`str`, *optional*, defaults to `"Corpus"`):
                What the bar is called.
            show_progress (`bool`, *optional*, defaults to `False`):
                Whether there is a bar; its total is an estimate where the source knows no more.

        Raises:
            DataError: if too many samples are damaged.
        """
        self._count_finished(set(parts))
        unit = f" {self.source.modality}s"
        bar = tqdm(total=self._about(parts), desc=title, unit=unit, disable=None if show_progress else True)
        with bar, ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(self.threads) as pool:
            batches = self._batches(parts)
            # one thread reads all: sources keep what neighbours share, each thread for itself
            ahead = deque(reader.submit(self._next, batches, pool) for _ in range(2))
            writer = None
            while (batch := ahead.popleft().result()) is not None:
                ahead.append(reader.submit(self._next, batches, pool))
                writer = writer or _PartWriter(part_path(self.folder, batch.part))
                self._count(batch)
                if batch.samples:
                    writer.add(batch.places, self.function(batch.samples))
                writer.counts["read"] += batch.num_read
                writer.counts["bad"] += len(batch.bad)
                if batch.ends_part:
                    writer.finish()
                    writer = None
                bar.update(batch.num_read)

    def _batches(self, parts: Sequence[int]) -> Iterator[_Batch]:
        for part in parts:
            number, first, stop = self.parts[part]
            source, batch, size = self.sources[number], _Batch(part), 0
            for piece in range(first, stop):
                read, file = source.read(piece), int(source.pieces[piece, 0])
                batch.bad += [(number, file, row, reason) for row, reason in read.bad]
                batch.num_read += len(read.bad)
                for row, sample in zip(read.rows.tolist(), source.samples(read), strict=True):
                    if batch.samples and (len(batch.samples) == self.batch_size or size + len(sample) > BATCH_BYTES):
                        yield batch
                        batch, size = _Batch(part), 0
                    batch.places.append((number, file, row))
                    batch.samples.append(sample)
                    batch.num_read, size = batch.num_read + 1, size + len(sample)
            batch.ends_part = True
            yield batch

    def _next(self, batches: Iterator[_Batch], pool: ThreadPoolExecutor) -> _Batch | None:
        """The next batch, prepared. Runs in the thread that reads."""
        batch = next(batches, None)
        if batch is None or not batch.samples or self.prepare is self.prepare_many is None:
            return batch
        if self.prepare_many is None:
            prepared = list(pool.map(self.prepare, batch.samples))
        else:
            size = -(-len(batch.samples) // self.threads)
            some = (batch.samples[i : i + size] for i in range(0, len(batch.samples), size))
            prepared = [sample for part in pool.map(self.prepare_many, some) for sample in part]
        good = [i for i, sample in enumerate(prepared) if not isinstance(sample, Damage | Empty)]
        batch.bad += [
            (*place, sample.reason)
            for place, sample in zip(batch.places, prepared, strict=True)
            if isinstance(sample, Damage)
        ]
        batch.places, batch.samples = [batch.places[i] for i in good], [prepared[i] for i in good]
        return batch

    # -- damaged samples ------------------------------------------------------------------------------------------

    def _count_finished(self, but: set[int]) -> None:
        """Begin with the counts of the parts that are there."""
        self.counts = {"read": 0, "bad": 0}
        for part in range(len(self.parts)):
            path = part_path(self.folder, part)
            if part not in but and path.exists():
                for name, number in part_counts(open_part(path)).items():
                    self.counts[name] += number

    def _count(self, batch: _Batch) -> None:
        self.counts["read"] += batch.num_read
        self.counts["bad"] += len(batch.bad)
        for number, file, row, reason in batch.bad:
            if (number, file) in self._named or len(self._named) == MOST_FILES_NAMED:
                continue
            self._named.add((number, file))
            logger.warning("Left out a damaged sample (%s): %s", self.sources[number].where(file, row), reason)
            if len(self._named) == MOST_FILES_NAMED:
                logger.warning("Further files with damaged samples are counted, but not named.")
        read, bad = self.counts["read"], self.counts["bad"]
        if batch.bad and bad > self.max_bad_fraction * max(read, min(MIN_ROWS_TO_JUDGE, self.source.num_rows)):
            number, file, row, reason = batch.bad[0]
            raise DataError(
                f"{bad} of {read} samples of {self.source.description} are damaged, more than the "
                f"{self.max_bad_fraction:.1%} that `--max_bad_fraction` allows. One of them: "
                f"{self.sources[number].where(file, row)}: {reason}. Mend the data, or allow more with "
                "`--max_bad_fraction`."
            )

    def _about(self, parts: Sequence[int]) -> int:
        """About how many samples these parts have."""
        rows = 0.0
        for number, first, stop in (self.parts[part] for part in parts):
            source = self.sources[number]
            rows += source.num_rows * source.piece_bytes[first:stop].sum() / max(source.piece_bytes.sum(), 1)
        return round(rows)


def _cut(source: Source, number: int) -> list[list[int]]:
    """The parts of a source: its number, the first piece, the first piece of the next part."""
    rows, size, pieces = source.num_rows, float(source.piece_bytes.sum()), len(source.pieces)
    wanted = max(rows / ROWS_PER_PART, size / BYTES_PER_PART, min(rows / MIN_ROWS_PER_PART, FEW_PARTS))
    parts = int(np.clip(np.ceil(wanted), 1, min(MAX_PARTS, pieces)))
    # of about equal size, and none of them empty
    ends = np.cumsum(np.maximum(source.piece_bytes, 1))
    edges = np.searchsorted(ends, ends[-1] * np.arange(1, parts) / parts) + 1
    edges = np.unique(np.concatenate([[0], np.minimum(edges, pieces), [pieces]])).tolist()
    return [[number, first, stop] for first, stop in zip(edges, edges[1:], strict=False)]


def _changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What sets two passes apart, in words."""
    changes = [] if then["data"] == now["data"] else ["they are of other data, or the data have changed since"]
    for name in dict.fromkeys([*then["function"], *now["function"]]):
        before, after = then["function"].get(name), now["function"].get(name)
        if before != after:
            changes.append(f"`{name}` was {_short(before)} then and is {_short(after)} now")
    return changes


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


class _PartWriter:
    """Writes the results of one part, block by block, into a file that appears when it is complete."""

    def __init__(self, path: Path):
        for left in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed
            left.unlink(missing_ok=True)
        self.path, self.counts = path, {"read": 0, "bad": 0}
        self._temporary = _aside(path)
        self._sink: pa.ipc.RecordBatchFileWriter | None = None
        self._last: bytes | None = None
        self._rows: list[tuple[np.ndarray, Mapping[str, Column]]] = []  # of the block that is not written yet
        self._num_rows = self._num_bytes = 0

    def add(self, places: list[tuple[int, int, int]], made: ResultRows) -> None:
        windows = np.ones(len(places), np.int64) if made.num_windows is None else np.asarray(made.num_windows)
        if windows.shape != (len(places),) or windows.min() < 1:
            raise ValueError(f"`num_windows` must be at least 1 for each of the {len(places)} samples, got {windows}.")
        for name, rows in made.columns.items():
            if name in PLACE:
                raise ValueError(f"A column of results cannot be called {name!r}: a place has one of that name.")
            if len(rows) != windows.sum():
                raise ValueError(f"{len(places)} samples need {windows.sum()} rows; column {name!r} has {len(rows)}.")
        starts = np.cumsum(windows) - windows
        number = np.arange(windows.sum()) - np.repeat(starts, windows)
        where = np.column_stack([np.repeat(np.array(places, np.int64), windows, axis=0), number])
        keys = place_keys(where)
        if (self._last is not None and keys[0] <= self._last) or np.any(keys[1:] <= keys[:-1]):
            raise ValueError("The rows of a source must ascend within each file: results are searched by their place.")
        self._last = keys[-1]
        size = sum(map(_num_bytes, made.columns.values()))
        if self._rows and (self._num_rows + len(where) > BLOCK_ROWS or self._num_bytes + size > BLOCK_BYTES):
            self._write({})
        self._rows.append((where, made.columns))
        self._num_rows, self._num_bytes = self._num_rows + len(where), self._num_bytes + size

    def finish(self) -> None:
        # the counts are known at the end only, so that the last block carries them
        self._write({name: str(number) for name, number in self.counts.items()})
        self._sink.close()
        _rename(self._temporary, self.path)

    def _write(self, counts: dict[str, str]) -> None:
        where = np.concatenate([np.zeros((0, 4), np.int64), *(places for places, _ in self._rows)])
        arrays = {name: pa.array(where[:, i]) for i, name in enumerate(PLACE)}
        for name in self._rows[0][1] if self._rows else ():
            arrays[name] = to_arrow(name, _joined(name, [columns[name] for _, columns in self._rows]))
        batch = pa.record_batch(arrays)
        if self._sink is None:
            self._sink = pa.ipc.new_file(str(self._temporary), batch.schema)
            self._schema = batch.schema
        if batch.schema != self._schema:
            raise ValueError(f"The function gave {self._schema.types} before, and {batch.schema.types} now.")
        self._sink.write_batch(batch, custom_metadata=counts or None)
        self._rows, self._num_rows, self._num_bytes = [], 0, 0


def _joined(name: str, parts: list[Column]) -> Column:
    if len({isinstance(part, np.ndarray) and (part.dtype, part.shape[1:]) for part in parts}) > 1:
        raise ValueError(f"Column {name!r} must have one type and shape in all batches; a list where lengths differ.")
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [row for part in parts for row in part]


def _num_bytes(rows: Column) -> int:
    return rows.nbytes if isinstance(rows, np.ndarray) else sum(getattr(row, "nbytes", 0) for row in rows)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _rename(temporary: Path, path: Path) -> None:
    """Give a file its name when it is on the disk."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def _written_aside(path: Path) -> Iterator[Path]:
    temporary = _aside(path)
    try:
        yield temporary
        _rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
