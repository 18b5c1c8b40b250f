"""Exact streams: an endless, shuffled stream of batches that can be killed anywhere and resumed at the same sample.

The unit of work is the block. A source is a list of pieces that can be opened in the middle; each pass permutes the
pieces by (seed, pass) and cuts the permutation into blocks. A block is a pure function of (seed, pass, block):
whichever worker makes it, it has the same rows in the same order with the same masks. So workers hold no state and
their number changes nothing.

The blocks of a run are dealt to its lanes: of L lanes, lane l has the blocks l, l + L, l + 2 L … of each pass, and its
position is three integers: pass, block, row. Row i of the run, counted on over batches and processes, comes from lane
i mod L, and of W processes (W divides L) process r serves the lanes l with l mod W = r. So a step of a given number of
rows has the same rows for every W, and a run that stopped with one W goes on with another. A resume makes one block of
each lane again and skips the rows that were used: its cost does not grow with the step.

With `batch_cost`, what the lanes hand out in turn is not a row but a whole batch of rows of about the same length.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..functional import keyed
from ..functional.keyed import Use
from .blocks import Block, MadeBlock, Rows, Unmade, WholeCollate, batches_of_cost, dealt, interleaved, shuffled_units
from .lanes import Lane, NextBlocks
from .modality import modality
from .sources import DataError, Source, digest_of
from .stream_state import BATCHING, STATE_VERSION, checked_state
from .workers import BlocksOf, as_it_is, init_worker, signals_held_back


logger = logging.getLogger(__name__)

# A run has at least so many lanes, where its data are not too small: it can go on with any number of processes that
# divides theirs.
LANES = 8
# Text in a block. Small enough that a block of each of 8 lanes is tokenised in about a second, and a resume costs
# little; large enough that packing wastes little and a block is a fair mixture of the source. Measured in CPU time on
# texts of 150 words in the median: 8 lanes of 128 kB make 0.43 to 0.49 million tokens/s, one of 1 MB 0.40 to 0.54, no
# difference beyond the noise; rows of 512 tokens are 1.4 % padding (2.5 % with 64 kB, 0.2 % with 1 MB), of 128 0.9 %.
BLOCK_BYTES = 1 << 17

# Damaged files that are named in the log; of more of them the number says enough.
MOST_FILES_NAMED = 20
# A stream with fewer rows than this behind it is not judged by its share of damaged samples yet.
MIN_ROWS_TO_JUDGE = 1000
# So many blocks of a lane in a row may be empty by chance: a lane of a tiny source has a row or two.
MOST_EMPTY_BLOCKS = 100


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
            Turns the columns of some rows into what the model takes.
        batch_size (`int`):
            Rows a batch, on this rank.
        seed (`int`, *optional*, defaults to `0`):
            Seed of order and masks.
        rank, world_size (`int`, *optional*):
            This process and their number. Each sample goes to one rank in a pass.
        lanes (`int`, *optional*):
            Lanes of the run, a multiple of `world_size`. Left out, the smallest that is at least 8, fewer for a source
            that has not so many blocks. A state that is loaded knows them.
        num_workers (`int`, *optional*, defaults to `0`):
            Processes that make blocks. Any number gives the same batches.
        exclude (`frozenset[str | bytes]`, *optional*):
            Samples that are never yielded (the held-out ones), wherever in the source they stand: the
            [`~hfssl.data.sources.identity`] of each.
        max_bad_fraction (`float`, *optional*, defaults to `0.01`):
            Share of damaged samples above which the stream stops with a [`DataError`].
        batch_cost (`int`, *optional*):
            Batches of rows of about the same length instead of `batch_size` rows: the cost of the most costly row
            times the number of rows is at most this. Rows share a batch with others of their block only.
        block_bytes (`int`, *optional*):
            Approximate size of a block in the source's bytes.
        block_cost, piece_cost (`float`, *optional*):
            Size of a block, and mean size of a piece of the source, in what decoded samples cost (images, seconds),
            where bytes say little about it. Used instead of `block_bytes`.
        with_places (`bool`, *optional*, defaults to `False`):
            Whether batches have `places`, int64 of shape `(batch_size, 4)`, see [`Rows`]: for what is kept of each
            sample over passes, such as a memory bank.
        rows_per_step (`int`, *optional*):
            Rows of an optimizer step, over processes and accumulation steps. Then `collate` gets a `key_of_step` among
            the columns: the key of what is drawn for a step and not for each of its samples, by seed and number of the
            step. So it is the same in all processes, and after a resume.
        collate_whole (`WholeCollate`, *optional*):
            Instead of `collate` where one goes through the data once: turns any number of rows into batches of whole
            samples, each with the numbers of its rows. For a `collate` that cuts, and samples of different lengths.

    Attributes:
        counts (`dict[str, int]`):
            What this process has seen since the number of processes last changed: `batches`, `rows`, `units` (of
            [`~ExactStream.unit`]), `samples_read`, `samples_bad` and `samples_empty`.
        makes_later (`bool`):
            Whether what it yields is each a [`~hfssl.data.blocks.Unmade`]: of many that wait, only the bytes of
            their rows lie in memory.
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
        lanes: int | None = None,
        num_workers: int = 0,
        exclude: frozenset[str | bytes] = frozenset(),
        max_bad_fraction: float = 0.01,
        batch_cost: int | None = None,
        block_bytes: int = BLOCK_BYTES,
        block_cost: float | None = None,
        piece_cost: float | None = None,
        with_places: bool = False,
        rows_per_step: int | None = None,
        collate_whole: WholeCollate | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
        if lanes is not None and (lanes < 1 or lanes % world_size):
            raise DataError(f"`--lanes` must be a multiple of the number of processes, {world_size}, got {lanes}.")
        self.source, self.transform, self.collate, self.collate_whole = source, transform, collate, collate_whole
        self.batch_size, self.batch_cost, self.seed = batch_size, batch_cost, seed
        self.rank, self.world_size, self.num_workers = rank, world_size, num_workers
        self.exclude, self.max_bad_fraction, self.with_places = exclude, max_bad_fraction, with_places
        self.rows_per_step, self.makes_later = rows_per_step, False
        self.stated_lanes = lanes
        self.turn = 0  # of the run: how many rows, or batches of `batch_cost`, all processes have handed out
        self.counts = dict.fromkeys(("batches", "rows", "units", "samples_read", "samples_bad", "samples_empty"), 0)
        self.counts_before = dict(self.counts)  # of all processes, before their number last changed
        self._reported: set[int] = set()
        self._orders: dict[int, Any] = {}
        if len(source) < world_size and rank == 0:
            logger.warning(
                "%s has %d piece(s) for %d processes: each piece is read by several of them, which costs as many "
                "reads. Split the data into more files, or write parquet with smaller row groups, to avoid it.",
                source.description, len(source), world_size,
            )  # fmt: skip
        piece_size = float(np.mean(source.piece_bytes)) if piece_cost is None else piece_cost
        self._lay_out(self._plan(block_bytes if block_cost is None else block_cost, max(piece_size, 1e-9)))

    @property
    def unit(self) -> str:
        """What `counts["units"]` counts."""
        return modality(self.source.modality).unit

    @property
    def run_counts(self) -> dict[str, int]:
        """What all processes have seen since the run began, as far as this one can know."""
        return {name: self.counts_before[name] + count * self.world_size for name, count in self.counts.items()}

    # -- the order ------------------------------------------------------------------------------------------------

    def _plan(self, block_size: float, piece_size: float) -> dict[str, Any]:
        """How a pass is cut up: decided at the start of a run, and part of its state from then on."""
        num_pieces = len(self.source.pieces)
        num_blocks = num_pieces * piece_size / block_size
        lanes = self.stated_lanes or self._choose_lanes(min(num_pieces, num_blocks))
        # Fewer pieces than lanes: several lanes read the same piece and each keeps its share of the rows.
        shares = -(-lanes // num_pieces)
        # all lanes have equally many blocks
        most = num_pieces * shares // lanes
        return {"lanes": lanes, "shares": shares, "blocks_per_lane": int(np.clip(round(num_blocks / lanes), 1, most))}

    def _choose_lanes(self, most: float) -> int:
        """The default: at least [`LANES`], fewer where there are not so many blocks, one for each process at least."""
        per_process = -(-LANES // self.world_size)
        while per_process > 1 and per_process * self.world_size > most:
            per_process //= 2
        return per_process * self.world_size

    def _lay_out(self, plan: dict[str, Any]) -> None:
        """Cut passes up as `plan` says, and stand at the beginning of the first."""
        self.plan, self.lanes = plan, plan["lanes"]
        self.own_lanes = list(range(self.rank, self.lanes, self.world_size))
        self.positions = {lane: {"pass": 0, "block": 0, "row": 0} for lane in self.own_lanes}
        self.blocks_per_lane = plan.get("blocks_per_lane")
        self.most_empty_blocks = self.blocks_per_lane or 0
        self._orders.clear()

    def _order(self, pass_index: int) -> np.ndarray:
        """The units of a pass, shares of pieces, in their order."""
        if pass_index not in self._orders:
            order = shuffled_units(self.source, self.plan["shares"], Use.ORDER_OF_PIECES, self.seed, pass_index)
            self._orders[pass_index] = order
            if len(self._orders) > 2:  # some lanes begin a pass while others are still at the one before
                del self._orders[next(iter(self._orders))]
        return self._orders[pass_index]

    def _units(self, pass_index: int, block: int) -> list[tuple[int, int, int]]:
        """What a block is made of: `(pass, piece, share of its rows)` of each unit. Blocks are numbered over lanes."""
        order, (turn, lane) = self._order(pass_index), divmod(block, self.lanes)
        units = order[dealt(len(order), turn, lane, self.lanes, self.blocks_per_lane, pass_index)]
        return [(pass_index, *divmod(int(unit), self.plan["shares"])) for unit in units]

    def _passes_begun(self, pass_index: int, block: int) -> dict[str, int]:
        """Which pass over what begins in a block of the first lane of this process; counted from 0."""
        return {self.source.description: pass_index} if block < self.lanes else {}

    @property
    def passes(self) -> dict[str, float]:
        """How often what is read has been read so far: whole passes and the share of the one that is on."""
        read = [at["pass"] + at["block"] / self.blocks_per_lane for at in self.positions.values()]
        return {"": sum(read) / len(read)}

    def make(self, pass_index: int, block: int) -> MadeBlock:
        """Read and transform one block: a pure function of its arguments. Blocks are numbered over all lanes."""
        columns: dict[str, list] = {name: [] for name in self.source.columns}
        files, rows, passes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        bad, num_read, num_empty = [], 0, 0
        for pass_of_unit, piece, share in self._units(pass_index, block):
            file = int(self.source.pieces[piece, 0])
            read, mine = self.source.read(piece), slice(share, None, self.plan.get("shares", 1))
            for name, values in read.columns.items():
                columns[name] += values[mine]
            files.append(np.full(len(read.rows[mine]), file))
            rows.append(read.rows[mine])
            passes.append(np.full(len(files[-1]), pass_of_unit))
            bad += [(file, row, reason) for row, reason in read.bad[mine]]
            num_read += len(read.rows[mine]) + len(read.bad[mine])
            num_empty += read.num_empty if share == 0 else 0  # of the piece, which several may share
        files, rows, passes = np.concatenate(files), np.concatenate(rows), np.concatenate(passes)
        keys = keyed.key(Use.SAMPLE, self.seed, passes, files, rows)
        order = np.argsort(keys, kind="stable")  # the keys are random: to sort by them is to shuffle
        if self.exclude:
            order = order[[self.source.held_out_by(columns, i) not in self.exclude for i in order]]
        shuffled = {name: [values[i] for i in order] for name, values in columns.items()}
        places = np.stack([*self.source.place(files), rows, np.zeros_like(rows)], axis=1)[order]
        key_of_block = int(keyed.key(Use.BLOCK, self.seed, pass_index, block))
        made = self.transform(Block(shuffled, keys[order], key_of_block, places))
        if self.with_places:
            if made.places is None:
                raise ValueError(f"Rows of {type(self.transform).__name__} have no places: they hold several samples.")
            made.columns["places"] = made.places
        bad += [(int(files[order[i]]), int(rows[order[i]]), reason) for i, reason in made.bad]
        num_empty += made.num_empty
        first_bad = {file: (row, reason) for file, row, reason in reversed(bad)}
        bounds = None
        if self.batch_cost is not None:
            made, bounds = batches_of_cost(made, self.batch_cost, key_of_block)
        return MadeBlock(made, bounds, num_read, num_empty, len(bad), first_bad)

    # -- the stream -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        lanes = {lane: Lane((at["pass"], at["block"]), at["row"]) for lane, at in self.positions.items()}
        with signals_held_back():  # workers ignore them, see `hfssl.data.workers`
            blocks = iter(self._loader(lanes))
        while True:
            yield self._batch(lanes, blocks)

    def _batch(self, lanes: dict[int, Lane], blocks: Iterator) -> dict[str, torch.Tensor]:
        size = self.batch_size if self.batch_cost is None else 1
        # the first turn that is this process's; then its lanes take turns, each the same number of rows apart
        first = self.turn + (self.rank - self.turn) % self.world_size
        number = len(self.own_lanes)
        start = first % self.lanes // self.world_size
        parts: list[tuple[slice, list[tuple[Rows, int, int]]]] = []  # rows in the batch, and where they are
        for place in range(min(number, size)):
            lane = self.own_lanes[(start + place) % number]
            turns = len(range(place, size, number))
            parts.append((slice(place, None, number), self._take(lanes, lane, turns, blocks)))
        if self.batch_cost is None:
            columns = interleaved(parts, size)
        else:
            [(_, [(rows, begin, end)])] = parts
            columns = {name: values[begin:end] for name, values in rows.columns.items()}
            size = end - begin
        if self.rows_per_step is not None:
            columns["key_of_step"] = keyed.key(Use.STEP, self.seed, self.turn // self.rows_per_step)
        make = partial(self._collated, columns)
        batch = Unmade(make) if self.makes_later else make()
        self.turn += self.world_size * (size if self.batch_cost is None else 1)
        self.counts["batches"] += 1
        self.counts["rows"] += size
        taken = (part for _, parts_of_lane in parts for part in parts_of_lane)
        self.counts["units"] += np.sum([rows.num_units[begin:end].sum() for rows, begin, end in taken]).item()
        return batch

    def _collated(self, columns: dict[str, Any]) -> dict[str, torch.Tensor]:
        batch = self.collate({name: values for name, values in columns.items() if name != "places"})
        return batch | ({"places": torch.from_numpy(columns["places"])} if "places" in columns else {})

    def _take(self, lanes: dict[int, Lane], number: int, turns: int, blocks: Iterator) -> list[tuple[Rows, int, int]]:
        """The next rows of a lane: `(rows, begin, end)` of each block that they come from."""
        lane, taken, empty = lanes[number], [], 0
        while turns:
            while not lane.made:
                (other, *index), made = next(blocks)
                lanes[other].made.append((tuple(index), made))
            (pass_index, block), made = lane.made[0]
            if lane.is_new and lane.used == 0:  # a block that was begun before the checkpoint has been counted there
                self._count(pass_index, number, block, made)
            lane.is_new = False
            first, last = lane.used, min(lane.used + turns, len(made))
            if first < last:
                bounds = (first, last) if made.bounds is None else (made.bounds[first], made.bounds[last])
                taken.append((made.rows, *map(int, bounds)))
                turns, lane.used, empty = turns - (last - first), last, 0
                self.positions[number] = {"pass": pass_index, "block": block, "row": last}
            if turns:
                empty += not len(made)
                if empty > max(self.most_empty_blocks, MOST_EMPTY_BLOCKS):
                    raise DataError(
                        f"A whole pass over {self.source.description} gave no row to train on: every sample is held "
                        "out or empty. Pass more data."
                    )
                lane.made.popleft()
                lane.asked, lane.used, lane.is_new = lane.asked - 1, 0, True
        return taken

    def _loader(self, lanes: dict[int, Lane]) -> DataLoader:
        # while the blocks in use are read, the next one of each lane is made
        ahead = max(2, -(-len(lanes) // max(self.num_workers, 1)))
        return DataLoader(
            BlocksOf(self),
            sampler=NextBlocks(self, lanes),
            batch_size=None,
            collate_fn=as_it_is,
            num_workers=self.num_workers,
            worker_init_fn=init_worker,
            prefetch_factor=ahead if self.num_workers else None,
        )

    def _count(self, pass_index: int, lane: int, block: int, made: MadeBlock) -> None:
        begun = self._passes_begun(pass_index, lane + block * self.lanes) if lane == self.own_lanes[0] else {}
        for what, number in begun.items():
            if number and (number + 1).bit_count() == 1:  # the 2nd, 4th, 8th …: small sources pass often
                logger.info("Pass %d over %s begins.", number + 1, what)
        self.counts["samples_read"] += made.num_read
        self.counts["samples_bad"] += made.num_bad
        self.counts["samples_empty"] += made.num_empty
        for file, (row, reason) in made.first_bad.items():
            if file not in self._reported and len(self._reported) < MOST_FILES_NAMED:
                self._reported.add(file)
                logger.warning("Left out a damaged sample (%s): %s", self.source.where(file, row), reason)
                if len(self._reported) == MOST_FILES_NAMED:
                    logger.warning("Further files with damaged samples are counted, but not named.")
        read, bad = (self.counts_before[name] + self.counts[name] for name in ("samples_read", "samples_bad"))
        judged = read if pass_index > 0 else max(read, min(MIN_ROWS_TO_JUDGE, self.source.num_rows))
        if bad > self.max_bad_fraction * judged:
            file, (row, reason) = next(iter(made.first_bad.items()), (0, (0, "see the log")))
            raise DataError(
                f"{bad} of {read} samples of {self.source.description} are damaged, more than the "
                f"{self.max_bad_fraction:.1%} that `--max_bad_fraction` allows. One of them: "
                f"{self.source.where(file, row)}: {reason}. Mend the data, or allow more with `--max_bad_fraction`."
            )

    def leave_out(self, identities: frozenset[str | bytes]) -> None:
        """Never yield these samples either: `exclude` of what is known after the stream was made."""
        self.exclude |= identities

    # -- the state ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the last batch that it yielded: a few integers, ready for json."""
        return {
            "version": STATE_VERSION,
            "layout": self.layout(),
            "plan": dict(self.plan),
            "rank": self.rank,
            "world_size": self.world_size,
            "turn": self.turn,
            "positions": {str(lane): dict(at) for lane, at in self.positions.items()},
            "counts": dict(self.counts),
            "counts_before": dict(self.counts_before),
        }

    def load_state_dict(self, *states: dict[str, Any]) -> None:
        """Go on from the states that the processes of a run left: one a process, in any order.

        The number of processes may be another one now, if it divides the lanes of the run. Where it is the same, this
        process's own state is enough.

        Raises:
            DataError: if the states were made with other data, with settings that give other batches, or by a version
            of hfssl without lanes.
        """
        then = checked_state(states, self.layout())
        lanes = then["plan"]["lanes"]
        if self.stated_lanes not in (None, lanes):
            raise DataError(
                f"The run began with {lanes} lanes, `--lanes` says {self.stated_lanes}. Leave `--lanes` out."
            )
        if lanes % self.world_size:
            fitting = ", ".join(str(number) for number in range(1, lanes + 1) if lanes % number == 0)
            raise DataError(
                f"The run began with {lanes} lanes, which {self.world_size} processes cannot share evenly. Launch one "
                f"of {fitting}."
            )
        positions = {int(lane): dict(at) for state in states for lane, at in state["positions"].items()}
        self._lay_out(then["plan"])
        missing = [lane for lane in self.own_lanes if lane not in positions]
        if missing:
            raise DataError(
                f"The state of lane {missing[0]} is not among those given: of {then['world_size']} processes, "
                f"{len(states)} left one. With another number of processes the states of all are needed."
            )
        self.positions = {lane: positions[lane] for lane in self.own_lanes}
        self.turn = then["turn"]
        own = next((state for state in states if state["rank"] == self.rank), None)
        if then["world_size"] == self.world_size and own is not None:
            self.counts, self.counts_before = dict(own["counts"]), dict(own["counts_before"])
        else:
            self.counts_before = {
                name: then["counts_before"][name] + sum(state["counts"][name] for state in states)
                for name in self.counts
            }
            self.counts = dict.fromkeys(self.counts, 0)

    def layout(self) -> dict[str, Any]:
        """What has to be the same for a state to fit."""
        layout = {
            "data": self.source.fingerprint,
            "seed": self.seed,
            "excluded": f"{len(self.exclude)} samples, {digest_of(self.exclude)}",
            "batch_cost": self.batch_cost,
        }
        return layout if self.batch_cost is None else layout | {"batching": BATCHING}

    def __getstate__(self) -> dict[str, Any]:  # what a spawned worker needs; caches are made anew
        return {**self.__dict__, "_orders": {}}
