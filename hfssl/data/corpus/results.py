"""What a pass over the corpus left in its folder.

`manifest.json` says what of which data, and how the corpus is cut into parts; `part-00000.arrow` and so on are Arrow
files, one a part, with the four columns of a place and the columns of results. A part is written aside and renamed:
what has its name is whole. Its last block says how many samples were read and how many of them are damaged.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..sources import DataError
from .columns import PLACE, place_keys, places_of, to_numpy


# Raise it when a folder that an older version wrote can no longer be read.
FORMAT_VERSION = 1
MANIFEST = "manifest.json"


def part_path(folder: Path, part: int) -> Path:
    """Where the results of a part of the corpus lie."""
    return folder / f"part-{part:05d}.arrow"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What the folder holds results of; `None` where it holds none.

    Raises:
        DataError: where the manifest is damaged, or of a version that this one cannot read.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["version"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no manifest of a pass over a corpus ({error}). Delete {folder}, or name another folder."
        ) from None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{folder} was written in version {version} of the format, and this hfssl reads version {FORMAT_VERSION}. "
            "Use the hfssl that it was made with, or delete it to begin anew."
        )
    return manifest


def open_part(path: Path) -> pa.ipc.RecordBatchFileReader:
    """A memory-mapped part."""
    with pa.memory_map(str(path)) as file:  # what is read of it stays mapped when the file is closed
        return pa.ipc.open_file(file.read_buffer())


def part_counts(reader: pa.ipc.RecordBatchFileReader) -> dict[str, int]:
    """`read` and `bad`: the samples of a part, and how many of them were damaged and left out."""
    _, counts = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1)
    return {name: int(counts[name.encode()]) for name in ("read", "bad")}


class CorpusResults:
    """The results of a pass that is complete, memory-mapped, in the order of the source.

    It holds names of files only until something is asked for, so that it can be pickled and forked.

    Args:
        folder (`str` or `Path`):
            The folder of the [`~hfssl.data.corpus.CorpusPass`].

    Attributes:
        schema (`pa.Schema`):
            The four columns of a place, then those of the results.
        columns (`list[str]`):
            The columns of the results.
        num_read, num_bad (`int`):
            Samples of the source, and how many of them are damaged and have no result.
        function (`dict`):
            What the results were made with.

    Raises:
        DataError: where parts are missing or do not belong together.

    Example:

    ```python
    results = CorpusResults("outputs/embed/parts")
    features = results.read(results.places[:8])["features"]  # (8, dim)
    ```
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise DataError(f"{self.folder} holds no results of a pass over a corpus: it has no {MANIFEST}.")
        self.function = manifest["function"]
        self.num_read = self.num_bad = 0
        self.schema: pa.Schema | None = None
        blocks, firsts = [], []
        missing = [part for part in range(len(manifest["parts"])) if not part_path(self.folder, part).is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of the {len(manifest['parts'])} parts of {self.folder} are missing: the pass was "
                "stopped before its end. The same command again goes on with it."
            )
        for part in range(len(manifest["parts"])):
            reader = self._open(part)
            counts = part_counts(reader)
            self.num_read, self.num_bad = self.num_read + counts["read"], self.num_bad + counts["bad"]
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                if len(batch) == 0:  # of a part without a sample, the columns of whose results nobody knows
                    continue
                self.schema = self.schema or batch.schema
                if batch.schema != self.schema:
                    raise DataError(
                        f"{part_path(self.folder, part)} has other columns than the parts before it "
                        f"({_listing(batch.schema)} against {_listing(self.schema)}). Delete it and make it again."
                    )
                blocks.append((part, index, len(batch)))
                firsts.append(places_of(batch.slice(0, 1))[0])
        self.schema = self.schema or pa.schema([(name, pa.int64()) for name in PLACE])
        self.columns = [name for name in self.schema.names if name not in PLACE]
        self._blocks = blocks
        self._first_keys = place_keys(np.array(firsts, dtype=np.int64).reshape(-1, 4))
        if np.any(self._first_keys[1:] <= self._first_keys[:-1]):
            raise DataError(f"The parts of {self.folder} are not in the order of one source. Delete it.")

    def __len__(self) -> int:
        return sum(rows for _, _, rows in self._blocks)

    def __iter__(self) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray | list[np.ndarray]]]]:
        """Blocks in the order of the source: the places, of shape `(num_rows, 4)`, and the columns of results."""
        for block in range(len(self._blocks)):
            batch = self._read_block(block)
            yield places_of(batch), {name: to_numpy(batch.column(name)) for name in self.columns}

    @property
    def places(self) -> np.ndarray:
        """The places of all results, of dtype `int64` and shape `(num_results, 4)`, ascending."""
        parts = [places_of(self._read_block(block)) for block in range(len(self._blocks))]
        return np.concatenate([np.zeros((0, 4), np.int64), *parts])

    def read(self, places: np.ndarray) -> dict[str, np.ndarray | list[np.ndarray]]:
        """The results for some places. Each block that holds one of them is read once, in whatever order they are.

        Args:
            places (`np.ndarray` of integers and shape `(num_places, 4)`):
                Source, file, row and window of each; the same one may come several times.

        Returns:
            `dict[str, np.ndarray | list[np.ndarray]]`: of each column an array of shape `(num_places, ...)`, or a
            list of arrays where rows have lengths of their own.

        Raises:
            DataError: if there is no result for one of them.
        """
        places = np.asarray(places, dtype=np.int64)
        if places.ndim != 2 or places.shape[1] != len(PLACE):
            raise ValueError(f"Places have shape (num_places, 4): {', '.join(PLACE)}; got {places.shape}.")
        keys = place_keys(places)
        block_of = np.searchsorted(self._first_keys, keys, side="right") - 1
        if np.any(block_of < 0):
            raise self._missing(places[block_of < 0])
        found: dict[str, Any] = {name: _empty(self.schema.field(name).type, len(keys)) for name in self.columns}
        for block in np.unique(block_of).tolist():
            batch, wanted = self._read_block(block), np.flatnonzero(block_of == block)
            there = place_keys(places_of(batch))
            rows = np.minimum(np.searchsorted(there, keys[wanted]), len(there) - 1)
            absent = there[rows] != keys[wanted]
            if np.any(absent):
                raise self._missing(places[wanted[absent]])
            for name in self.columns:
                values = to_numpy(batch.column(name))
                if isinstance(values, np.ndarray):
                    found[name][wanted] = values[rows]
                    continue
                for position, row in zip(wanted.tolist(), rows.tolist(), strict=True):
                    found[name][position] = values[row]
        return found

    def to_numpy(self, column: str) -> np.ndarray | list[np.ndarray]:
        """A whole column in memory: of shape `(num_results, ...)`, or a list where rows have lengths of their own."""
        blocks = [to_numpy(self._read_block(block).column(column)) for block in range(len(self._blocks))]
        if blocks and isinstance(blocks[0], np.ndarray):
            return np.concatenate(blocks)
        return [row for block in blocks for row in block]

    def to_table(self) -> pa.Table:
        """All results as one table that stays on disk (memory-mapped)."""
        batches = [self._read_block(block) for block in range(len(self._blocks))]
        return pa.Table.from_batches(batches, schema=self.schema)

    def _open(self, part: int) -> pa.ipc.RecordBatchFileReader:
        path = part_path(self.folder, part)
        try:
            return open_part(path)
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{path} is damaged ({error}). The same command again makes this part anew, and no other."
            ) from error

    def _read_block(self, block: int) -> pa.RecordBatch:
        part, index, _ = self._blocks[block]
        return self._open(part).get_batch(index)

    def _missing(self, places: np.ndarray) -> DataError:
        first = ", ".join(f"{name} {value}" for name, value in zip(PLACE, places[0].tolist(), strict=True))
        return DataError(
            f"{self.folder} has no result for {len(places)} of the places, such as {first}: the sample there is "
            f"damaged ({self.num_bad:,} are), or the place is of other data."
        )


def _empty(kind: pa.DataType, num_rows: int) -> np.ndarray | list:
    """Room for so many rows of a column."""
    if pa.types.is_large_list(kind):
        return [None] * num_rows
    like = to_numpy(pa.array([], kind))
    return np.empty((num_rows, *like.shape[1:]), like.dtype)


def _listing(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema if field.name not in PLACE)
