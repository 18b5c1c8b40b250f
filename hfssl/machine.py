"""What this machine and this process are: cores, threads, precision, device, place among the processes, folders."""

import logging
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .commands import launched
from .errors import UserError


if TYPE_CHECKING:
    from accelerate import PartialState
    from transformers import TrainingArguments


logger = logging.getLogger(__name__)

# What was chosen for the user in this process, in words.
_choices: list[str] = []


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_world_size() -> int:
    """Processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def use_all_cores(threads: int | None = None) -> None:
    """Give each process its share of the cores.

    `accelerate launch` and `torchrun` set OMP_NUM_THREADS=1 where the user set nothing. A number that the user set
    stands: it is in the environment of the launcher, which is the parent of this process.
    """
    if threads is None:
        if threads_of_user() is not None:
            return
        threads = max(1, num_cores() // local_world_size())
    if threads < 1:
        raise UserError(f"`--cpu_threads` must be at least 1, got {threads}.")
    torch.set_num_threads(threads)


def threads_of_user() -> str | None:
    """OMP_NUM_THREADS as the user has set it; `None` where only a launcher did."""
    given = os.environ.get("OMP_NUM_THREADS")
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    return None if given == "1" and launched and not _launcher_has("OMP_NUM_THREADS") else given


def _launcher_has(variable: str) -> bool:
    try:
        environment = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return False
    return any(entry.startswith(f"{variable}=".encode()) for entry in environment.split(b"\0"))


def choose_precision(precision: str, use_cpu: bool = False) -> str:
    """What `--precision` means on this machine: `auto` is bf16 where the hardware multiplies it natively, else fp32.

    Raises:
        UserError: for a precision that the hardware lacks.
    """
    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise UserError(f"`--precision {precision}` is unknown. Choose auto, fp32, bf16 or fp16.")
    accelerator = None if use_cpu else torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        if precision == "fp16":
            raise UserError("`--precision fp16` needs a GPU. On a CPU choose auto, bf16 or fp32.")
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    elif accelerator.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = False
    if precision == "auto":
        return "bf16" if native else "fp32"
    return precision


def process_state() -> "PartialState":
    """This process among those of the run."""
    from accelerate import PartialState

    # on a machine without an accelerator, Accelerate looks for other processes only when it is told of the CPU
    return PartialState(cpu=torch.accelerator.current_accelerator(check_available=True) is None)


def compute_device() -> torch.device:
    """The device of this process."""
    return process_state().device


def say_choice(log: logging.Logger, text: str) -> None:
    """Write to a log what was chosen for the user and why, and remember it for the record of the run."""
    log.info(text)
    if text not in _choices:
        _choices.append(text)


def choices(forget: bool = False) -> list[str]:
    """What was chosen so far; with `forget` the next run of this process begins with nothing."""
    said = list(_choices)
    if forget:
        _choices.clear()
    return said


def use_one_gpu(args: "TrainingArguments") -> None:
    """Let a process that sees several GPUs train on the first.

    Trainer would take all of them by `nn.DataParallel`: it cuts tensors in two that do not go by rows, forgets what
    the copies of a model keep (teacher, centre, queue), and makes the batch larger than was said.
    """
    if args.n_gpu > 1:
        logger.warning(
            "%d GPUs are visible, and this one process trains on the first. For all of them: torchrun "
            "--nproc_per_node %d %s with the same flags.",
            args.n_gpu, args.n_gpu, launched(last_part(sys.argv[0])),
        )  # fmt: skip
        args._n_gpu = 1


# An absolute path in quotes, where it may hold spaces, or without: not the path of a URL, not "and/or".
_PATHS = re.compile(
    r"""(?<=(?P<quote>['"`]))/(?:(?!(?P=quote))[^\n])*(?=(?P=quote))"""
    r"""|(?<![\w.:/~*?\])-])/[^\s'"`,;:|()]+/[^\s'"`,;:|()]*"""
)
# Out of the working directory, or into a home: all but the last part says where this machine keeps things.
_OUTSIDE = re.compile(r"""(?<![\w./~-])(?:~(?:[a-zA-Z_][\w-]*)?|\.\.)/[^\s'"`,;:|()]*""")


def fit_to_leave(content: Any) -> Any:
    """What may leave this machine of a text, or of the texts in a record: no path of a folder of its own.

    Of an absolute path below the working directory stays what is below it, of another one its last part. So a command
    can still be read, and says nothing of who ran it where.
    """
    if isinstance(content, dict):
        return {fit_to_leave(name): fit_to_leave(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(map(fit_to_leave, content))
    if not isinstance(content, str):
        return content
    if os.path.isabs(content) and os.path.lexists(content):  # whatever characters it has
        return last_part(content)
    text = _PATHS.sub(lambda path: ",".join(map(last_part, path[0].split(","))), content)
    text = _OUTSIDE.sub(lambda path: path[0].rstrip("/").rpartition("/")[2], text)
    # what no pattern knows for a path, such as that of a file:// URL
    for folder in sorted({os.getcwd(), os.path.expanduser("~"), tempfile.gettempdir()}, key=len, reverse=True):
        if len(folder) > 1:
            text = re.sub(r"(?<![\w.~-])" + re.escape(folder) + r"(/|(?![\w-]))", "", text)
    return text


def last_part(path: str) -> str:
    """Of an absolute path what may leave this machine; anything else as it is."""
    here = os.getcwd().rstrip("/") + "/"
    if path.startswith(here) or not path.startswith("/"):
        return path.removeprefix(here)
    return path.rstrip("/").rpartition("/")[2]
