"""The worker processes of a stream: how they begin, and how they end."""

import copy
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info


# Bytes of an array for which shared memory is worth a file descriptor.
_LARGE = 1 << 16
_SHARED_MEMORY = "/dev/shm"
# Blocks of a worker that may be on their way or in use.
_IN_FLIGHT = 8


class BlocksOf(Dataset):
    """Blocks of an [`~hfssl.data.stream.ExactStream`] by `(lane, pass, block of the lane)`: what a worker makes."""

    def __init__(self, stream: Any):
        self.stream = stream

    def __getitem__(self, index: tuple[int, int, int]) -> tuple[tuple[int, int, int], Any]:
        lane, pass_index, block = index
        return index, self.stream.make(pass_index, lane + block * self.stream.lanes)

    def __getstate__(self) -> dict[str, Any]:
        stream = copy.copy(self.stream)  # without what collates, which may hold tensors on a GPU
        stream.collate = stream.collate_whole = None
        return {"stream": stream}


def as_it_is(item: Any) -> Any:
    """For a loader whose items are not to be collated; a worker that is spawned needs its name."""
    return item


def shared(columns: dict[str, Any]) -> dict[str, Any]:
    """In a worker: large arrays as tensors, which reach the main process through shared memory.

    Through a pipe, as other objects, they would be copied four times, twice of them by the main process. Where there
    is little shared memory (a container has 64 MB by default) they go that way all the same.
    """
    worker = get_worker_info()
    if worker is None or torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
        return columns
    large = {
        name: values
        for name, values in columns.items()
        if isinstance(values, np.ndarray) and values.dtype.kind in "uif" and values.nbytes >= _LARGE
    }
    needed = _IN_FLIGHT * worker.num_workers * sum(values.nbytes for values in large.values())
    if not os.path.isdir(_SHARED_MEMORY) or shutil.disk_usage(_SHARED_MEMORY).free < needed:
        return columns
    return columns | {name: torch.from_numpy(values) for name, values in large.items()}


def as_arrays(columns: dict[str, Any]) -> dict[str, Any]:
    """In the main process: what [`shared`] made of columns as it was."""
    return {name: values.numpy() if isinstance(values, torch.Tensor) else values for name, values in columns.items()}


def init_worker(worker_id: int) -> None:
    """What a worker does first."""
    # The tokenizer's own threads do not survive a fork; the workers are the parallelism.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process().pid
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


@contextmanager
def signals_held_back() -> Iterator[None]:
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
