"""The two processes that tests share: what fails in them fails in the test that asked, and no later one."""

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist


pytestmark = pytest.mark.distributed


# -- what is asked of the processes -----------------------------------------------------------------------------------


def add(rank, world_size, number):
    total = torch.tensor(float(number + rank))
    dist.all_reduce(total)
    return {"rank": rank, "world_size": world_size, "total": total}


def fail_on(rank, world_size, failing):
    if rank == failing:
        raise ValueError(f"on purpose, by {rank}")
    dist.barrier()


def die_on(rank, world_size, dying):
    if rank == dying:
        os._exit(7)
    dist.barrier()


def sleep_on(rank, world_size, sleeping):
    if rank == sleeping:
        time.sleep(1000)


# -- what they answer -------------------------------------------------------------------------------------------------


def works(pair):
    answers = pair.ask(__file__, "add", number=1)
    assert answers == [{"rank": rank, "world_size": 2, "total": torch.tensor(3.0)} for rank in (0, 1)]


def test_both_answer(pair):
    works(pair)
    starts = pair.starts
    works(pair)
    assert pair.starts == starts  # the same two


@pytest.mark.parametrize(
    "check, arguments, words",
    [
        ("fail_on", {"failing": 1}, r"fail_on failed in two processes(.|\n)*process 1 --\nTraceback(.|\n)*ValueError: on purpose, by 1"),
        ("die_on", {"dying": 0}, r"process 0 --\nThe process ended"),
        ("sleep_on", {"sleeping": 1, "timeout": 0.5}, r"process 1 --\nIt gave no answer(.|\n)*in sleep_on"),
    ],
)  # fmt: skip
def test_a_failure_is_that_of_its_own_test(pair, check, arguments, words):
    with pytest.raises(AssertionError, match=words):
        pair.ask(Path(__file__), check, **arguments)
    works(pair)
