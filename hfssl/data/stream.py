"""Exact streams: an endless, shuffled stream of batches that can be killed anywhere and resumed at the same sample.

The unit is the block. A source is a list of pieces that can be opened in the middle; each pass permutes the pieces by
(seed, pass), groups neighbours of the permutation to blocks and deals the blocks to the ranks. A block is a pure
function of (seed, pass, block): whichever worker makes it, it has the same rows in the same order with the same masks.
So workers hold no state, the number of workers changes nothing, and the position of a rank is three integers: pass,
block, row. A resume makes one block again and skips the rows that were used: its cost does not grow with the step.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..functional import keyed
from ..functional.keyed import Use
from .modality import modality
from .sources import DataError, Source, identity


logger = logging.getLogger(__name__)

# About what one second of tokenising takes. Small enough that the first step comes soon and a resume costs little,
# large enough that packing wastes nothing and a block is a fair mixture of the source.
BLOCK_BYTES = 1 << 20

# Damaged files that are named in the log; of more of them the number says enough.
MOST_FILES_NAMED = 20

# A stream with fewer rows than this behind it is not judged by its share of damaged samples yet.
MIN_ROWS_TO_JUDGE = 1000


@dataclass
class Block:
    """What one block is made of: samples as the source gives them, in their final order.

    Args:
        columns (`dict[str, list]`):
            The samples, column by column.
        keys (`np.ndarray` of dtype `uint64` and shape `(num_samples,)`):
            Key of each sample for this pass: everything random about a sample is drawn from it.
        key (`int`):
            Key of the block, for what is random about the block as a whole (the order of packed rows).
        places (`np.ndarray` of dtype `int64` and shape `(num_samples, 4)`, *optional*):
            Where each sample is, the same in every pass: source (of a mixture, else 0), file, row (its number, or the
            byte at which it begins) and window, 0 for a whole sample. Left out, the samples are numbered.
    """

    columns: dict[str, list]
    keys: np.ndarray
    key: int
    places: np.ndarray | None = None

    def __post_init__(self):
        if self.places is None:
            self.places = np.zeros((len(self.keys), 4), np.int64)
            self.places[:, 2] = np.arange(len(self.keys))


@dataclass
class Rows:
    """What a transform makes of a block: training rows, column by column.

    Args:
        columns (`dict[str, np.ndarray | list]`):
            Equally long columns; row `i` of the block is entry `i` of each.
        num_tokens (`np.ndarray` of shape `(num_rows,)`):
            What each row counts as in `--max_tokens` and in the speed that is shown: positions that are not padding;
            1 for an image.
        bad (`list[tuple[int, str]]`):
            `(index of the sample in the block, reason)` of samples that the transform had to leave out.
        places (`np.ndarray` of dtype `int64` and shape `(num_rows, 4)`, *optional*):
            The place of each row as in [`Block`], with the number of the window where a sample gives several rows.
            Left out where a row is made of several samples.
    """

    columns: dict[str, Any]
    num_tokens: np.ndarray
    bad: list[tuple[int, str]] = field(default_factory=list)
    places: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.num_tokens)


@dataclass
class _Made:
    """A made block on its way from a worker to the main process."""

    rows: Rows
    num_read: int
    num_bad: int
    first_bad: dict[int, tuple[int, str]]  # file -> (row, reason), one example a file


class ExactStream(torch.utils.data.IterableDataset):
    """An endless stream of collated batches over a [`Source`], exact across kills, resumes and numbers of workers.

    Iterating goes on from the current position; `state_dict` describes the position after the last batch that was
    handed out.

    Args:
        source (`Source`):
            What to read.
        transform (`Callable[[Block], Rows]`):
            Turns a block of samples into rows. Must be picklable and a pure function of its argument.
        collate (`Callable[[dict], dict]`):
            Turns the columns of `batch_size` rows into what the model takes.
        batch_size (`int`):
            Rows a batch, on this rank.
        seed (`int`, *optional*, defaults to `0`):
            Seed of order and masks.
        rank, world_size (`int`, *optional*):
            This process and their number. Each sample goes to one rank in a pass.
        num_workers (`int`, *optional*, defaults to `0`):
            Processes that make blocks. Any number gives the same batches.
        exclude (`frozenset[str | bytes]`, *optional*):
            Samples that are never yielded (the held-out ones), wherever in the source they stand: the
            [`~hfssl.data.sources.identity`] of each.
        max_bad_fraction (`float`, *optional*, defaults to `0.01`):
            Share of damaged samples above which the stream stops with a [`DataError`].
        block_bytes (`int`, *optional*):
            Approximate size of a block in the source's bytes.
        with_places (`bool`, *optional*, defaults to `False`):
            Whether batches have `places`, int64 of shape `(batch_size, 4)`, see [`Rows`]: for what is kept of each
            sample over passes, such as a memory bank.
    """

    def __init__(
        self,
        source: Source,
        transform: Callable[[Block], Rows],
        collate: Callable[[dict[str, Any]], dict[str, torch.Tensor]],
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        exclude: frozenset[str | bytes] = frozenset(),
        max_bad_fraction: float = 0.01,
        block_bytes: int = BLOCK_BYTES,
        with_places: bool = False,
    ):
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        self.source, self.transform, self.collate = source, transform, collate
        self.batch_size, self.seed = batch_size, seed
        self.rank, self.world_size, self.num_workers = rank, world_size, num_workers
        self.exclude, self.max_bad_fraction, self.with_places = exclude, max_bad_fraction, with_places

        self._plan(block_bytes)
        self.position = {"pass": 0, "block": 0, "row": 0}
        self.counts = {"batches": 0, "rows": 0, "tokens": 0, "samples_read": 0, "samples_bad": 0}
        self._reported: set[int] = set()
        self._order_cache: tuple[int, np.ndarray] | None = None
        self._start = (0, 0)

    @property
    def unit(self) -> str:
        """What `counts["tokens"]` counts."""
        return modality(self.source.modality).unit

    # -- the order ------------------------------------------------------------------------------------------------

    def _plan(self, block_bytes: int) -> None:
        """Cut a pass into units, and these into blocks."""
        num_pieces = len(self.source.pieces)
        # Fewer pieces than ranks: several ranks read the same piece and each keeps its share of the rows.
        self.shares = -(-self.world_size // num_pieces) if num_pieces < self.world_size else 1
        if self.shares > 1 and self.rank == 0:
            logger.warning(
                "%s has %d piece(s) for %d processes: each piece is read by up to %d of them, which costs as many "
                "reads. Split the data into more files, or write parquet with smaller row groups, to avoid it.",
                self.source.description, num_pieces, self.world_size, self.shares,
            )  # fmt: skip
        self.num_units = num_pieces * self.shares
        mean_bytes = max(float(np.mean(self.source.piece_bytes)) / self.shares, 1.0)
        self.units_per_block = int(np.clip(round(block_bytes / mean_bytes), 1, self.num_units // self.world_size))
        num_blocks = -(-self.num_units // self.units_per_block)  # of all ranks, in one pass
        self.num_blocks_of_rank = len(range(self.rank, num_blocks, self.world_size))
        # so many blocks in a row cannot be empty, unless all are
        self.most_empty_blocks = self.num_blocks_of_rank

    def _order(self, pass_index: int) -> np.ndarray:
        """The units of a pass in their order."""
        if self._order_cache is None or self._order_cache[0] != pass_index:
            shuffled = shuffled_units(self.source, self.shares, Use.ORDER_OF_PIECES, self.seed, pass_index)
            self._order_cache = (pass_index, shuffled)
        return self._order_cache[1]

    def _first(self, block: int) -> int:
        """Where a block of this rank begins in the order of its pass."""
        return (self.rank + block * self.world_size) * self.units_per_block

    def _units(self, pass_index: int, block: int) -> list[tuple[int, int, int]]:
        """What a block of this rank is made of: `(pass, piece, share of its rows)` of each unit."""
        start = self._first(block)
        units = self._order(pass_index)[start : start + self.units_per_block]
        return [(pass_index, *divmod(int(unit), self.shares)) for unit in units]

    def _passes_begun(self, pass_index: int, block: int) -> dict[str, int]:
        """Which pass over what begins in a block of this rank; counted from 0."""
        return {self.source.description: pass_index} if block == 0 else {}

    @property
    def passes(self) -> dict[str, float]:
        """How often what is read has been read so far: whole passes and the share of the one that is on."""
        return {"": self.position["pass"] + self.position["block"] / self.num_blocks_of_rank}

    def make(self, pass_index: int, block: int) -> _Made:
        """Read and transform one block of this rank: a pure function of its arguments."""
        columns: dict[str, list] = {name: [] for name in self.source.columns}
        files, rows, passes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        bad, num_read = [], 0
        for pass_of_unit, piece, share in self._units(pass_index, block):
            file = int(self.source.pieces[piece, 0])
            read, mine = self.source.read(piece), slice(share, None, self.shares)
            for name, values in read.columns.items():
                columns[name] += values[mine]
            files.append(np.full(len(read.rows[mine]), file))
            rows.append(read.rows[mine])
            passes.append(np.full(len(files[-1]), pass_of_unit))
            bad += [(file, row, reason) for row, reason in read.bad[mine]]
            num_read += len(read.rows[mine]) + len(read.bad[mine])
        files, rows, passes = np.concatenate(files), np.concatenate(rows), np.concatenate(passes)
        keys = keyed.key(Use.SAMPLE, self.seed, passes, files, rows)
        order = np.argsort(keys, kind="stable")  # the keys are random: to sort by them is to shuffle
        if self.exclude:
            first = columns[self.source.columns[0]]
            order = np.array([i for i in order if identity(first[i]) not in self.exclude], dtype=np.int64)
        shuffled = {name: [values[i] for i in order] for name, values in columns.items()}
        key_of_block = int(keyed.key(Use.BLOCK, self.seed, pass_index, self._first(block)))
        places = np.stack([*self.source.place(files), rows, np.zeros_like(rows)], axis=1)[order]
        made = self.transform(Block(shuffled, keys[order], key_of_block, places))
        if self.with_places:
            if made.places is None:
                raise ValueError(f"Rows of {type(self.transform).__name__} have no places: they hold several samples.")
            made.columns["places"] = made.places
        bad += [(int(files[order[i]]), int(rows[order[i]]), reason) for i, reason in made.bad]
        first_bad = {file: (row, reason) for file, row, reason in reversed(bad)}
        return _Made(made, num_read, len(bad), first_bad)

    # -- the stream -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        with _signals_held_back():  # a worker is to be born deaf to them, see `_end_with`
            blocks = iter(self._loader())
        pending: list[tuple[Rows, int, int]] = []  # (rows, first, last) that wait for a full batch
        waiting, blocks_without_rows = 0, 0
        for (pass_index, block), made in blocks:
            first = self.position["row"] if (pass_index, block) == self._start else 0
            # a block that was begun before the checkpoint has been counted there
            if first == 0:
                self._count(pass_index, block, made)
            blocks_without_rows = 0 if len(made.rows) else blocks_without_rows + 1
            if blocks_without_rows > self.most_empty_blocks:
                raise DataError(
                    f"A whole pass over {self.source.description} gave no row to train on: every sample is held out "
                    "or empty. Pass more data."
                )
            while first < len(made.rows):
                last = min(first + self.batch_size - waiting, len(made.rows))
                pending.append((made.rows, first, last))
                waiting += last - first
                first = last
                if waiting == self.batch_size:
                    yield self._batch(pending, {"pass": pass_index, "block": block, "row": last})
                    pending, waiting = [], 0

    def _batch(self, pending: list[tuple[Rows, int, int]], position: dict[str, int]) -> dict[str, torch.Tensor]:
        columns = {}
        for name in pending[0][0].columns:
            parts = [rows.columns[name][first:last] for rows, first, last in pending]
            if isinstance(parts[0], np.ndarray):
                columns[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
            else:
                columns[name] = [value for part in parts for value in part]
        places = columns.pop("places", None)
        batch = self.collate(columns)
        if places is not None:
            batch["places"] = torch.from_numpy(places)
        self.position = position
        self.counts["batches"] += 1
        self.counts["rows"] += self.batch_size
        self.counts["tokens"] += int(sum(rows.num_tokens[first:last].sum() for rows, first, last in pending))
        return batch

    def _loader(self) -> DataLoader:
        self._start = (self.position["pass"], self.position["block"])
        return DataLoader(
            _Blocks(self),
            sampler=_BlockOrder(self),
            batch_size=None,
            collate_fn=_identity,
            num_workers=self.num_workers,
            worker_init_fn=_init_worker,
            prefetch_factor=2 if self.num_workers else None,
        )

    def _count(self, pass_index: int, block: int, made: _Made) -> None:
        for what, number in self._passes_begun(pass_index, block).items():
            if number and (number + 1).bit_count() == 1:  # the 2nd, 4th, 8th …: small sources pass often
                logger.info("Pass %d over %s begins.", number + 1, what)
        self.counts["samples_read"] += made.num_read
        self.counts["samples_bad"] += made.num_bad
        for file, (row, reason) in made.first_bad.items():
            if file not in self._reported and len(self._reported) < MOST_FILES_NAMED:
                self._reported.add(file)
                logger.warning("Left out a damaged sample (%s): %s", self.source.where(file, row), reason)
                if len(self._reported) == MOST_FILES_NAMED:
                    logger.warning("Further files with damaged samples are counted, but not named.")
        read, bad = self.counts["samples_read"], self.counts["samples_bad"]
        judged = read if pass_index > 0 else max(read, min(MIN_ROWS_TO_JUDGE, self.source.num_rows))
        if bad > self.max_bad_fraction * judged:
            file, (row, reason) = next(iter(made.first_bad.items()), (0, (0, "see the log")))
            raise DataError(
                f"{bad} of {read} samples of {self.source.description} are damaged, more than the "
                f"{self.max_bad_fraction:.1%} that `--max_bad_fraction` allows. One of them: "
                f"{self.source.where(file, row)}: {reason}. Mend the data, or allow more with `--max_bad_fraction`."
            )

    # -- the state ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the last batch that it yielded: a few integers, ready for json."""
        return {
            "position": dict(self.position),
            "counts": dict(self.counts),
            "layout": self._layout(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            DataError: if the state was made with other data, or with settings that give other batches.
        """
        for name, now in self._layout().items():
            then = state["layout"].get(name)
            if then != now:
                raise DataError(
                    f"This stream cannot go on from the checkpoint: {_LAYOUT_WORDS[name]} ({then} then, {now} now)."
                )
        self.position, self.counts = dict(state["position"]), dict(state["counts"])

    def _layout(self) -> dict[str, Any]:
        return {
            "data": self.source.fingerprint,
            "seed": self.seed,
            "world_size": self.world_size,
            "rank": self.rank,
            "batch_size": self.batch_size,
            "units_per_block": self.units_per_block,
            "excluded": len(self.exclude),
        }

    def __getstate__(self) -> dict[str, Any]:
        # what a spawned worker needs; caches are made anew
        return {**self.__dict__, "_order_cache": None}


_LAYOUT_WORDS = {
    "data": "the data set has changed since, and other data have other samples. Start a run in another --output_dir",
    "shares": "the shares of the mixture differ. Use the same --dataset",
    "seed": "the seed differs. Use the same --seed",
    "world_size": "the number of processes differs, and each has its own part of the data. Launch as many as then",
    "rank": "the state belongs to another process",
    "batch_size": "the batch size differs. Use the same --per_device_train_batch_size",
    "units_per_block": "the size of the blocks differs. Use the version of hfssl that the run began with",
    "excluded": "the held-out part differs. Use the same --held_out_fraction and --max_held_out",
}


def shuffled_units(source: Source, shares: int, use: Use, *parts: int) -> np.ndarray:
    """An order of the units of a source that depends on `use` and `parts` only: unit `piece * shares + share`.

    Groups are drawn by the handful (`source.groups_at_once`) and their pieces mixed: what the pieces of a group share
    is read once, and a block still comes from several places of the source.
    """
    groups = source.pieces[:, 3]
    shuffled = keyed.permutation(len(groups) * shares, use, *parts)
    if len(np.unique(groups)) < len(groups):
        handful = keyed.permutation(int(groups.max()) + 1, Use.HANDFULS, use, *parts) // source.groups_at_once
        shuffled = shuffled[np.argsort(handful[groups[shuffled // shares]], kind="stable")]
    return shuffled


class _Blocks(Dataset):
    def __init__(self, stream: ExactStream):
        self.stream = stream

    def __getitem__(self, index: tuple[int, int]) -> tuple[tuple[int, int], _Made]:
        return index, self.stream.make(*index)


class _BlockOrder(Sampler):
    """The blocks of one rank from a position on, pass after pass: each rank rolls over on its own."""

    def __init__(self, stream: ExactStream):
        self.stream = stream

    def __iter__(self) -> Iterator[tuple[int, int]]:
        pass_index, block = self.stream.position["pass"], self.stream.position["block"]
        while True:
            while block < self.stream.num_blocks_of_rank:
                yield pass_index, block
                block += 1
            pass_index, block = pass_index + 1, 0


def _identity(item: Any) -> Any:
    return item


def _init_worker(worker_id: int) -> None:
    # The tokenizer's own threads do not survive a fork; the workers are the parallelism.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process().pid
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let SIGTERM and SIGINT wait until the block is left; processes that it starts keep holding them back."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(parent: int) -> None:
    """End this worker when the main process does, and not before.

    After a SIGKILL of the main process a worker would wait forever for room in a pipe that nobody reads. And Ctrl-C or
    a launcher's SIGTERM goes to the whole process group: the main process then needs rows until it has saved.
    """
    while os.getppid() == parent:
        if not hasattr(signal, "sigtimedwait"):  # macOS: nothing says who sent it
            time.sleep(1.0)
            if hasattr(signal, "sigpending") and signal.SIGTERM in signal.sigpending():
                time.sleep(60.0)
                break
            continue
        received = signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, 1.0)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
