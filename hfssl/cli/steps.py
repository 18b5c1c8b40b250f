"""Commands that are run one after another: each is a recipe in a process of its own, and what is done is not repeated.

`plan.json` in the folder of the whole says what was chosen, and of each step its command, its state and its time. A
step is done when its command has ended well, as it is now, and no step before it was run again since. The process of a
step gets the signals that this one gets, so that Ctrl-C lets it save; where this one is killed, it is told to save and
end (on Linux), so that the same command does not find it at work.
"""

import ctypes
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..commands import flag_words, recipe_words, recipes, started_by_name
from ..errors import UserError
from ..evaluation.results import read_json, without_secrets, write_json
from ..machine import threads_of_user
from ..report.record import PLAN


logger = logging.getLogger(__name__)

WAITING, RUNNING, DONE, STOPPED, FAILED = "waiting", "running", "done", "stopped", "failed"
_HANDED_ON = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


@dataclass(frozen=True)
class Step:
    """A command of the whole.

    Args:
        name (`str`):
            What it does, in a word or two.
        recipe (`str`):
            Which recipe it is.
        flags (`dict[str, Any]`):
            Its flags; those that are `None` are left out.
        processes (`int`, *optional*, defaults to 1):
            How many processes share it.
    """

    name: str
    recipe: str
    flags: Mapping[str, Any]
    processes: int = 1

    def words(self) -> list[str]:
        """The command, as it can be typed."""
        command = recipe_words(self.recipe, "python")
        if self.processes > 1:
            script = ["-m", *command] if started_by_name() else command[1:]
            command = ["torchrun", "--nproc_per_node", str(self.processes), *script]
        return [*command, *flag_words(self.flags)]

    def process(self) -> list[str]:
        """The same for this interpreter, wherever its programs are."""
        script = ["-m", "hfssl", self.recipe] if started_by_name() else [str(recipes()[self.recipe])]
        starter = ["-m", "torch.distributed.run", "--nproc_per_node", str(self.processes)]
        return [sys.executable, *(starter if self.processes > 1 else []), *script, *flag_words(self.flags)]


class Steps:
    """Runs steps, and keeps a record of them.

    Args:
        folder (`Path`):
            Where the record lies.
        about (`dict[str, Any]`):
            What else it says: what was chosen, and why.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        self.path = folder / PLAN
        self.before = {each["name"]: each for each in read_json(self.path, default={}).get("steps", [])}
        self.about = dict(about)
        self.records: dict[str, dict[str, Any]] = {}

    def plan(self, *steps: Step) -> None:
        """Say which steps are to come, before the first of them; the flags of some are known only when it is due."""
        self.records = {step.name: self.before.get(step.name) or _record(step) for step in steps}
        self._write()

    def run(self, step: Step) -> dict[str, Any]:
        """Run a step unless it is done, and return its record.

        Raises:
            UserError: where its command fails.
            SystemExit: where it was stopped.
        """
        record, now = self.records.setdefault(step.name, _record(step)), _record(step)
        if record["command"] != now["command"]:
            record |= {"command": now["command"], "state": WAITING}
        if record["state"] == DONE:
            logger.info("%s: done already.", step.name)
            return record
        logger.info("\n%s: %s", step.name, record["command"])
        names = list(self.records)
        for later in names[names.index(step.name) + 1 :]:  # they are about what this one makes
            self.records[later]["state"] = WAITING
        record["state"] = RUNNING
        self._write()
        begun = time.monotonic()
        status, handed_on = _run(step.process())
        # all that it took, where it goes on
        record["seconds"] = round(record["seconds"] + time.monotonic() - begun, 1)
        # a launcher of several processes that was stopped ends with a status of its own
        stopped = next((number for number in _HANDED_ON if status in (-number, 128 + number)), handed_on)
        record["state"] = DONE if not status else FAILED if stopped is None else STOPPED
        self._write()
        if stopped is not None:
            where = "after" if record["state"] == DONE else "in"
            logger.warning("Stopped %s the step %s. The same command goes on there.", where, step.name)
            sys.exit(128 + stopped)
        if status:
            raise UserError(
                f"The step {step.name} ended with exit code {status}; above it says why. The same command goes on "
                f"there once that is mended. The step alone: {record['command']}"
            )
        return record

    def add(self, **about: Any) -> None:
        """Write more into the record."""
        self.about |= about
        self._write()

    def _write(self) -> None:
        write_json(self.path, self.about | {"steps": list(self.records.values())})


def ends_with(parent: int) -> Callable[[], None] | None:
    """What a new process calls so that it gets SIGTERM when `parent` ends, whatever ends it; `None` where the system
    (Linux has it) knows no such thing."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # loaded here: the new process is to do as little as it can

    def follow() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before this was asked for
            os.kill(os.getpid(), signal.SIGTERM)

    return follow


def _record(step: Step) -> dict[str, Any]:
    command = without_secrets(shlex.join(step.words()))
    return {"name": step.name, "command": command, "state": WAITING, "seconds": 0.0}


def _run(command: list[str]) -> tuple[int, int | None]:
    """The exit status of a command, to which each signal that comes is handed on once, and the first that was."""
    environment = dict(os.environ)
    if threads_of_user() is None:
        # a launcher's 1 is for several processes on this machine, and not what the user has set
        environment.pop("OMP_NUM_THREADS", None)
    received: list[int] = []
    handed_on: list[int] = []
    handlers = {number: signal.signal(number, lambda n, _: received.append(n)) for number in _HANDED_ON}
    try:
        # a group of its own: else Ctrl-C in a terminal would come twice, and a second one ends it at once
        process = subprocess.Popen(command, env=environment, process_group=0, preexec_fn=ends_with(os.getpid()))
        while True:
            try:
                status = process.wait(0.2)
            except subprocess.TimeoutExpired:
                while received:
                    handed_on.append(received.pop(0))
                    os.kill(process.pid, handed_on[-1])
            else:
                return status, next(iter([*handed_on, *received]), None)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
