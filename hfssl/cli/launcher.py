"""`accelerate launch` around a single process says nothing of its own when the recipe has said what is wrong.

Its launcher waits for the process and raises an error, with a trace of itself, when the exit status is not 0; Ctrl-C
reaches both, and it shows a trace of its wait. Neither can be turned off from the inside (`--quiet` is for errors
only, and has to be typed). So the recipe ends the launcher, which has nothing left to do: its status is that of a
process ended by SIGTERM (143), not 0. Several processes have another launcher, which is left alone, and
`python recipes/x.py` has none.
"""

import os
import signal
import threading
from pathlib import Path


class Launcher:
    """The launcher that waits for this process alone, if there is one."""

    def __init__(self):
        alone = os.environ.get("WORLD_SIZE", "1") == "1" and "TORCHELASTIC_RUN_ID" not in os.environ
        self.pid = os.getppid() if alone and _is_simple_launcher(os.getppid()) else None

    def end(self) -> None:
        """End it, if it is still there."""
        if self.pid is not None and os.getppid() == self.pid:
            os.kill(self.pid, signal.SIGTERM)
        self.pid = None

    def end_on_interrupt(self) -> None:
        """End it when Ctrl-C comes: it waits a quarter of a second before it shows its trace."""
        if self.pid is None or threading.current_thread() is not threading.main_thread():
            return
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        # at once, whatever the main thread computes: handlers in Python wait until that is done
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._wait, args=(reading,), name="launcher", daemon=True).start()

    def _wait(self, reading: int) -> None:
        while number := os.read(reading, 1):
            if number[0] == signal.SIGINT:
                return self.end()


def _is_simple_launcher(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # another system
        return False
    names = [Path(word).name for word in words]
    return "accelerate.commands.launch" in words or any(
        (name in ("accelerate", "accelerate_cli.py") and following == "launch") or name == "accelerate-launch"
        for name, following in zip(names, names[1:], strict=False)
    )
