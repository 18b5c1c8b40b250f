"""The worker processes of a stream: how they begin, and how they end."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def as_it_is(item: Any) -> Any:
    """For a loader whose items are not to be collated; a worker that is spawned needs its name."""
    return item


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
