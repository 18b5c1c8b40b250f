"""Two processes that all tests share: what has to hold between processes is asked of them, check by check.

They are started once, as `torchrun --nproc_per_node 2` would, out of the server of `recipe_process.py`, and wait for
work. A check is a function `check(rank, world_size, **arguments)` in some file; each of the two calls it. What it raises
is raised in the test that asked for it, with its own traceback. After that, or after a death or a silence, both are
started anew for the next check: one of them may still be waiting for the other.
"""

import io
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from multiprocessing.connection import Connection, wait
from pathlib import Path


RANKS = (0, 1)
# After one process failed, the other may wait for it until gloo gives up: it has this long to fail on its own.
GRACE = 3.0


class Pair:
    """The two processes, started by the first check. `folder` gets what they print."""

    def __init__(self, folder: Path):
        self.folder, self.starts = folder, 0
        self.run, self.connections = None, []

    def start(self) -> None:
        from recipe_process import recipe_server

        self.starts += 1
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(120)
            port = server.getsockname()[1]
            log = self.folder / str(self.starts)
            self.run = recipe_server().start(log, port, script=str(Path(__file__).resolve()), ranks=len(RANKS))
            accepted = [Connection(server.accept()[0].detach()) for _ in RANKS]
        # the first thing that each says is its rank
        self.connections = [
            connection for _, connection in sorted((pickle.loads(c.recv_bytes()), c) for c in accepted)
        ]

    def stop(self) -> None:
        for connection in self.connections:
            connection.close()
        if self.run is not None:
            self.run.kill()
            self.run.wait(30)
        self.run, self.connections = None, []

    def ask(self, file: str | Path, check: str, timeout: float = 120.0, **arguments) -> list:
        """What `check(rank, world_size, **arguments)` of a file returns, by rank.

        Raises:
            AssertionError: if the check raised, a process ended, or one of them gave no answer within `timeout`
            seconds.
        """
        import torch

        if self.run is None:
            self.start()
        for connection in self.connections:
            connection.send_bytes(pickle.dumps((str(Path(file).resolve()), check, arguments)))
        answers, failures = {}, {}
        deadline = time.monotonic() + timeout
        while waiting := [rank for rank in RANKS if rank not in answers and rank not in failures]:
            ready = wait([self.connections[rank] for rank in waiting], max(0.0, deadline - time.monotonic()))
            for rank in [rank for rank in waiting if self.connections[rank] in ready]:
                try:
                    answer = torch.load(io.BytesIO(self.connections[rank].recv_bytes()), weights_only=False)
                except (EOFError, OSError):
                    failures[rank] = "The process ended."
                    continue
                if answer["error"] is None:
                    answers[rank] = answer["returned"]
                else:
                    failures[rank] = answer["error"]
            if failures:
                deadline = min(deadline, time.monotonic() + GRACE)
            if not ready and time.monotonic() >= deadline:
                # they print where they are
                self.run.kill(signal.SIGUSR1)
                time.sleep(0.5)
                failures |= dict.fromkeys(waiting, "It gave no answer; the log says where it was.")
        if failures:
            log = self.run.stderr
            self.stop()
            said = "".join(f"\n-- process {rank} --\n{failure}" for rank, failure in sorted(failures.items()))
            raise AssertionError(f"{check} failed in two processes.{said}\n-- their log --\n{log[-6000:]}")
        return [answers[rank] for rank in RANKS]


def main(port: int) -> None:
    """What each of the two processes does."""
    import faulthandler

    import torch
    from contract import load
    from transformers import set_seed

    from hfssl.machine import process_state

    torch.set_num_threads(1)
    faulthandler.register(signal.SIGUSR1)
    state = process_state()
    connection = Connection(socket.create_connection(("127.0.0.1", port)).detach())
    connection.send_bytes(pickle.dumps(state.process_index))
    while True:
        try:
            file, check, arguments = pickle.loads(connection.recv_bytes())
        except EOFError:  # the tests are over
            os._exit(0)
        answer = {"error": None, "returned": None}
        try:
            set_seed(0)
            answer["returned"] = getattr(load(Path(file)), check)(
                state.process_index, state.num_processes, **arguments
            )
        except BaseException:
            answer["error"] = traceback.format_exc()
        buffer = io.BytesIO()
        torch.save(answer, buffer)
        connection.send_bytes(buffer.getvalue())


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(int(sys.argv[1]))
