"""The lanes of an exact stream in the process that serves them: what is made of each, and what is made next."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Sampler

from .blocks import MadeBlock


@dataclass
class Lane:
    """The blocks of a lane that are made or asked for."""

    next: tuple[int, int]  # pass and block to ask for next
    used: int  # turns of the first block that were taken
    made: deque[tuple[tuple[int, int], MadeBlock]] = field(default_factory=deque)
    asked: int = 0  # blocks in `made` and those on their way
    is_new: bool = True  # whether the first block has not been looked at yet


class NextBlocks(Sampler):
    """Which block to make next, decided when it is asked: one of the lane that has the fewest, made or asked for.

    Of several such lanes, that whose turn comes first. Only the time of waiting depends on this choice, not the rows.
    """

    def __init__(self, stream: Any, lanes: Mapping[int, Lane]):
        self.stream, self.lanes = stream, lanes

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        while True:
            stream = self.stream
            number = min(self.lanes, key=lambda lane: (self.lanes[lane].asked, (lane - stream.turn) % stream.lanes))
            lane = self.lanes[number]
            pass_index, block = lane.next
            is_last = stream.blocks_per_lane is not None and block + 1 == stream.blocks_per_lane
            lane.next = (pass_index + 1, 0) if is_last else (pass_index, block + 1)
            lane.asked += 1
            yield number, pass_index, block
