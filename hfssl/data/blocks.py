"""What a stream goes through: the order of pieces, blocks of samples, the rows made of them, and batches of rows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ..functional import keyed
from ..functional.keyed import Use
from .sources import DataError, Source
from .workers import as_arrays, shared


# From the columns of any number of rows: batches of whole samples, each with the numbers of its rows.
WholeCollate = Callable[[dict[str, Any]], Iterable[tuple[np.ndarray, dict[str, torch.Tensor]]]]


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
        num_units (`np.ndarray` of shape `(num_rows,)`):
            What each row counts as in the length of a run and in the speed that is shown: of text, positions that are
            not padding; 1 for an image; the seconds of a sound.
        bad (`list[tuple[int, str]]`):
            `(index of the sample in the block, reason)` of samples that the transform had to leave out.
        places (`np.ndarray` of dtype `int64` and shape `(num_rows, 4)`, *optional*):
            The place of each row as in [`Block`], with the number of the window where a sample gives several rows.
            Left out where a row is made of several samples.
        costs (`np.ndarray` of shape `(num_rows,)`, *optional*):
            What each row costs in a batch of at most `batch_cost`: a number that grows with the length to which the
            others are padded. Left out, `num_units`.
        num_empty (`int`, *optional*, defaults to 0):
            Samples that are whole and that nothing is left of, such as silence: they are counted apart from damage.
        most_waste (`float`, *optional*, defaults to 1):
            How much of a block may be padding, as a share of what its rows cost. Batches hold less than `batch_cost`
            where this wants it.
        is_cut (`bool`, *optional*, defaults to `False`):
            Whether the rows of a batch are cut to the shortest of them: what is cut away is wasted then, as padding is
            where they are padded to the longest.
    """

    columns: dict[str, Any]
    num_units: np.ndarray
    bad: list[tuple[int, str]] = field(default_factory=list)
    places: np.ndarray | None = None
    costs: np.ndarray | None = None
    num_empty: int = 0
    most_waste: float = 1.0
    is_cut: bool = False

    def __len__(self) -> int:
        return len(self.num_units)


class Unmade(dict):
    """A batch that is made when it is needed, and of few bytes until then: who looks into it finds nothing yet.

    Args:
        make (`Callable[[], dict]`):
            Makes it, the same one every time.
    """

    def __init__(self, make: Callable[[], dict[str, torch.Tensor]]):
        super().__init__()
        self._make = make

    def made(self) -> dict[str, torch.Tensor]:
        return self._make()


def made(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch, which may be a [`Unmade`]."""
    return batch.made() if isinstance(batch, Unmade) else batch


def take_rows(column: np.ndarray | list, rows: np.ndarray) -> np.ndarray | list:
    """Some rows of a column of [`Rows`]."""
    return column[rows] if isinstance(column, np.ndarray) else [column[i] for i in rows]


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


def batches_of_cost(rows: Rows, batch_cost: int, key: int) -> tuple[Rows, np.ndarray]:
    """Put rows of about the same cost together, so that little is spent on padding: in as few batches as can be.

    Args:
        rows (`Rows`):
            Of one block.
        batch_cost (`int`):
            Most that a batch may cost: its most costly row times the number of its rows.
        key (`int`):
            Key of the block: the batches come in an order drawn from it.

    Returns:
        `tuple[Rows, np.ndarray]`: the rows, batch after batch, and where each batch begins, with the end of the last.

    Raises:
        DataError: if one row alone costs more than `batch_cost`.
    """
    costs = rows.num_units if rows.costs is None else rows.costs
    order = np.argsort(-costs, kind="stable")
    edges = fewest_batches(costs[order], batch_cost, rows.most_waste, rows.is_cut)
    batches = [order[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]
    batches = [batches[i] for i in keyed.permutation(len(batches), Use.ORDER_OF_BATCHES, key)]
    order = np.concatenate([np.zeros(0, np.int64), *batches])
    columns = {name: take_rows(values, order) for name, values in rows.columns.items()}
    return Rows(columns, rows.num_units[order]), np.cumsum([0, *map(len, batches)])


def fewest_batches(costs: np.ndarray, batch_cost: int, most_waste: float = 1.0, is_cut: bool = False) -> list[int]:
    """Cut a sequence of rows into the fewest batches that waste little enough, and of such cuts the least wasteful.

    Args:
        costs (`np.ndarray` of integers and shape `(num_rows,)`):
            What each row costs, the most costly first.
        batch_cost (`int`):
            Most that a batch may cost: its most costly row times the number of its rows.
        most_waste, is_cut:
            See [`Rows`].

    Returns:
        `list[int]`: where each batch begins, and the end of the last.

    Raises:
        DataError: if one row alone costs more than `batch_cost`.

    Example:

    ```python
    >>> fewest_batches(np.array([9, 5, 5, 5, 2, 2]), batch_cost=20)
    [0, 2, 6]
    >>> fewest_batches(np.array([9, 5, 5, 5, 2, 2]), batch_cost=20, most_waste=0.1)
    [0, 1, 4, 6]
    ```
    """
    costs = costs.astype(np.int64)
    number = len(costs)
    if number and costs[0] > batch_cost:
        raise DataError(f"A row costs {costs[0]}, more than the {batch_cost} of a whole batch.")
    ends = np.minimum(np.arange(number) + batch_cost // np.maximum(costs, 1), number)
    # how many batches the rows from each on need, if nothing counts but their number
    needed = np.zeros(number + 1, np.int64)
    for begin in reversed(range(number)):
        needed[begin] = needed[ends[begin]] + 1
    # with few to spare, few ways to cut are left to compare
    edges, spare = None, 0
    while edges is None:
        edges = _least_wasteful(costs, ends, needed, int(needed[0]) + spare, most_waste * costs.sum(), is_cut)
        spare = 2 * spare + 1
    return edges


def _least_wasteful(
    costs: np.ndarray, ends: np.ndarray, needed: np.ndarray, most_batches: int, most_waste: float, is_cut: bool
) -> list[int] | None:
    """The edges of [`fewest_batches`], if so many are enough."""
    number, sums = len(costs), np.concatenate([[0], np.cumsum(costs)])
    never = np.iinfo(np.int64).max // 2
    # of the first rows, how little is wasted in so many batches; and for each number of batches where the last began
    wasted, began = np.full(number + 1, never), []
    wasted[0] = 0
    while wasted[number] > most_waste:
        left = most_batches - len(began) - 1
        if left < 0:
            return None
        # a batch that ends before has rows behind it that need more than are left
        first = int(np.searchsorted(-needed, -left))
        after, start = np.full(number + 1, never), np.zeros(number + 1, np.int64)
        for begin in np.flatnonzero(wasted[:number] < never).tolist():
            reached = slice(max(begin + 1, first), int(ends[begin]) + 1)
            sizes = np.arange(reached.start, reached.stop) - begin
            inside = sums[reached] - sums[begin]
            shortest = costs[reached.start - 1 : reached.stop - 1]
            waste = inside - shortest * sizes if is_cut else costs[begin] * sizes - inside
            waste += wasted[begin]
            is_less = waste < after[reached]
            after[reached][is_less] = waste[is_less]
            start[reached][is_less] = begin
        wasted = after
        began.append(start)
    edges = [number]
    for start in reversed(began):
        edges.append(int(start[edges[-1]]))
    return edges[::-1]


def interleaved(parts: list[tuple[slice, list[tuple[Rows, int, int]]]], size: int) -> dict[str, Any]:
    """The columns of a batch of which each lane fills every n-th row."""
    columns = {}
    for name, example in parts[0][1][0][0].columns.items():
        pieces = [(where, [rows.columns[name][begin:end] for rows, begin, end in taken]) for where, taken in parts]
        if len(pieces) == len(pieces[0][1]) == 1:
            columns[name] = pieces[0][1][0]
        elif isinstance(example, np.ndarray):
            columns[name] = np.empty((size, *example.shape[1:]), example.dtype)
            for where, values in pieces:
                columns[name][where] = values[0] if len(values) == 1 else np.concatenate(values)
        else:
            columns[name] = [None] * size
            for where, values in pieces:
                columns[name][where] = [value for part in values for value in part]
    return columns


@dataclass
class MadeBlock:
    """A made block on its way from a worker to the main process."""

    rows: Rows
    bounds: np.ndarray | None  # with `batch_cost`: where each batch begins, and the end of the last
    num_read: int
    num_empty: int
    num_bad: int
    first_bad: dict[int, tuple[int, str]]  # file -> (row, reason), one example a file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "rows": replace(self.rows, columns=shared(self.rows.columns))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.rows.columns = as_arrays(self.rows.columns)

    def __len__(self) -> int:
        """How many turns the block lasts: rows, or batches with `batch_cost`."""
        return len(self.rows) if self.bounds is None else len(self.bounds) - 1


def dealt(num_units: int, turn: int, lane: int, lanes: int, turns: int, pass_index: int) -> slice:
    """Which units of a pass, in their order, a lane gets in one of its `turns`.

    If a turn cannot give all lanes equally many, those that get one more take turns, over passes too: no lane gets
    ahead of another by more than a unit.

    Example:

    ```python
    >>> [dealt(10, 0, lane, lanes=4, turns=1, pass_index=0) for lane in range(4)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None), slice(8, 10, None)]
    ```
    """
    begin, end = (num_units * t // turns for t in (turn, turn + 1))
    each, more = divmod(end - begin, lanes)
    has_more = (np.arange(lane + 1) - (pass_index * num_units + begin)) % lanes < more
    first = begin + lane * each + int(has_more[:-1].sum())
    return slice(first, first + each + int(has_more[-1]))
