"""Training speed of several contenders, measured in turn on one machine.

Each contender trains in a process of its own, from its data to its optimizer step, and keeps its state from the first
step to the last. After each block of steps it pauses and the next one goes on (A B C A B C …): no two ever run at the
same time, and what disturbs the machine for a while disturbs them all. Medians over the blocks are compared.

`mlm.py`, `vision.py` and their neighbours have the contenders, `recipes/benchmark.py` runs them.
"""

import json
import logging
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal

import psutil
import torch

from ..errors import UserError
from ..modeling.filter_banks import SAMPLING_RATE


logger = logging.getLogger(__name__)

# Steps before the first block: allocators and kernels settle in.
WARM_UP_STEPS = 3
# What a launcher tells its processes. Contenders are processes of their own and must not take it for theirs.
_LAUNCHER = ("ACCELERATE_", "TORCHELASTIC_", "RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "FSDP_")


@dataclass
class Contender:
    """One side of a benchmark.

    Args:
        name (`str`):
            Key of its figures.
        title (`str`):
            Head of its column.
        precision (`str`):
            fp32 or bf16: which matrix product its utilisation is a share of.
        train (`Callable[[Pace, dict], float]`):
            Trains `pace.num_steps` steps and tells `pace` of each batch and of each step. Returns the FLOPs of one
            position of the batch, forward and backward. A function at the top of a module: it runs in another process.
        settings (`dict[str, Any]`):
            Passed to `train`.
        unit (`str`, *optional*, defaults to `"tokens"`):
            What is counted: tokens or seconds of sound, of which some positions of a batch have none (padding), images
            or pairs.
        steps_as_one (`int`, *optional*, defaults to 1):
            Its steps for each one of the others, of a side whose batches are so many times smaller.
    """

    name: str
    title: str
    precision: str
    train: Callable[["Pace", dict[str, Any]], float]
    settings: dict[str, Any] = field(default_factory=dict)
    unit: Literal["tokens", "images", "seconds", "pairs"] = "tokens"
    steps_as_one: int = 1


class Pace:
    """The side of a contender: counts what it does, and lets it go on only when it is its turn.

    Args:
        connection (`Connection`):
            To the process that measures.
        blocks, steps_per_block (`int`):
            What is measured, after the steps of the warm-up.
        warm_up_steps (`int`, *optional*, defaults to 3):
            Steps before the first block.
    """

    def __init__(
        self, connection: Connection, blocks: int, steps_per_block: int, warm_up_steps: int = WARM_UP_STEPS
    ):  # fmt: skip
        self.connection, self.steps_per_block, self.warm_up_steps = connection, steps_per_block, warm_up_steps
        self.num_steps = warm_up_steps + blocks * steps_per_block
        self.step, self.first_step_s, self.start_mb = 0, 0.0, 0.0
        self.data_is_readable()
        self._reset()

    def data_is_readable(self) -> None:
        """Everything is imported, nothing is opened or built: the time to the first step begins."""
        self.began, self.start_mb = time.perf_counter(), _resident_mb()

    def mark(self) -> "torch.cuda.Event | None":
        """A moment in what the GPU does; `None` without one."""
        if not torch.cuda.is_available() or not torch.cuda.is_initialized():
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def fetched(
        self, seconds: float, tokens: torch.Tensor | int, positions: int, marks: tuple[Any, Any] = (None, None)
    ) -> None:
        """A batch was waited for: how long, its tokens that are not padding (or images), and its positions.

        `marks` are those before and after: between them a GPU has done all it was asked for, and waits.
        """
        if None not in marks:
            self.marks.append(marks)
        self.waited_s += seconds
        self.tokens = self.tokens + tokens  # a tensor: to read it now would make a GPU wait
        self.positions += positions

    def stepped(self, loss: torch.Tensor) -> None:
        """An optimizer step is done."""
        self.step += 1
        self.loss = self.loss + loss.detach()
        if self.step == 1:
            _synchronize()
            self.first_step_s = time.perf_counter() - self.began
        if self.step >= self.warm_up_steps and (self.step - self.warm_up_steps) % self.steps_per_block == 0:
            self._pause()

    def _pause(self) -> None:
        _synchronize()
        seconds = time.perf_counter() - self.block_began
        figures = {"seconds": seconds, "waited_s": self.waited_s, "tokens": float(self.tokens)}
        figures |= {
            "steps": self.steps_per_block,
            "positions": self.positions,
            "loss": float(self.loss) / self.steps_per_block,
        }
        figures |= {"peak_mb": _peak_resident_mb(), "start_mb": self.start_mb, "first_step_s": self.first_step_s}
        if torch.cuda.is_available():
            figures["peak_gpu_mb"] = torch.cuda.max_memory_allocated() / 2**20
        if self.marks:
            figures["gpu_waited_s"] = sum(begin.elapsed_time(end) for begin, end in self.marks) / 1000
        self.connection.send(("block", figures))
        self.connection.recv()
        self._reset()

    def _reset(self) -> None:
        self.waited_s, self.tokens, self.positions, self.loss = 0.0, 0, 0, 0.0
        self.marks: list[tuple[Any, Any]] = []
        self.block_began = time.perf_counter()


def measure(
    contenders: list[Contender],
    *,
    blocks: int,
    steps_per_block: int,
    threads: int,
    device: str = "cpu",
    warm_up_steps: int = WARM_UP_STEPS,
) -> dict[str, dict[str, Any]]:
    """Train the contenders in turn and return the figures of each, by its name.

    Args:
        contenders (`list[Contender]`):
            In the order in which they take turns.
        blocks (`int`):
            Turns of each contender.
        steps_per_block (`int`):
            Optimizer steps of a turn.
        threads (`int`):
            CPU threads of each contender.
        device (`str`, *optional*, defaults to `"cpu"`):
            Where the matrix product is measured that utilisation is a share of.
        warm_up_steps (`int`, *optional*, defaults to 3):
            Steps before the first block.

    Raises:
        UserError: if a contender stops with one, or its process is killed.
    """
    torch.set_num_threads(threads)
    peaks: dict[str, list[float]] = {contender.precision: [] for contender in contenders}
    turns: dict[str, list[dict[str, float]]] = {contender.name: [] for contender in contenders}
    workers: dict[str, _Worker] = {}
    try:
        for contender in contenders:
            logger.info("%s: from the data to the first step …", contender.title)
            steps = steps_per_block * contender.steps_as_one
            workers[contender.name] = worker = _Worker(contender, threads, blocks, steps, warm_up_steps)
            warm_up = worker.wait()
            logger.info("%s: first step after %.1f s", contender.title, warm_up["first_step_s"])
        for block in range(blocks):
            for precision, rates in peaks.items():
                rates.append(matrix_product_rate(precision, device))
            for contender in contenders:
                turns[contender.name].append(workers[contender.name].turn())
            said = (f"{c.title} {turns[c.name][-1]['items_per_s']:,.0f}" for c in contenders)
            logger.info("block %d of %d, %s/s: %s", block + 1, blocks, contenders[0].unit, ", ".join(said))
        figures = {}
        for contender in contenders:
            flops = workers[contender.name].finish()
            peak = statistics.median(peaks[contender.precision])
            figures[contender.name] = _figures(contender, turns[contender.name], flops, peak)
        return figures
    finally:
        for worker in workers.values():
            worker.connection.close()  # those that wait for their turn end by themselves
        for worker in workers.values():
            worker.end()


def matrix_product_rate(precision: str, device: str = "cpu", size: int | None = None) -> float:
    """FLOP/s of a square matrix product, the median of five."""
    size = size or (2048 if device == "cpu" else 8192)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(7):
        _synchronize()
        begin = time.perf_counter()
        torch.mm(a, b)
        _synchronize()
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / statistics.median(seconds[2:])


def count_flops(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> float:
    """FLOPs of the matrix products of a step, forward and backward, for each position of the batch: token or image."""
    encoders = [getattr(model, name).encoder for name in ("student", "teacher") if hasattr(model, name)]
    for part in (*encoders, getattr(model, "encoder", model), getattr(model, "decoder", None)):
        if hasattr(part, "set_attn_implementation"):  # what flash attention does is not known to the counter
            part.set_attn_implementation("eager")
    return count_flops_of(lambda: model(**batch).loss) / num_positions(batch)


def count_flops_of(loss: Callable[[], torch.Tensor]) -> float:
    """FLOPs of the matrix products and convolutions of what `loss` does, forward and backward."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # the counter does not know the attention kernel of CPUs
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss().backward()
    return counter.get_total_flops()


def num_positions(batch: dict[str, torch.Tensor]) -> float:
    """Tokens or seconds of sound of a batch, padding included, or its images, alone or with texts."""
    if "input_values" in batch:
        return batch["input_values"].numel() / SAMPLING_RATE
    return len(batch["pixel_values"]) if "pixel_values" in batch else batch["input_ids"].numel()


class _Worker:
    """A contender's process, seen from the one that measures."""

    def __init__(self, contender: Contender, threads: int, *steps: int):
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads and memory
        self.title = contender.title
        self.connection, other = context.Pipe()
        arguments = (other, contender.train, contender.settings, threads, steps)
        self.process = context.Process(target=_work, args=arguments)
        self.process.start()
        other.close()

    def wait(self) -> Any:
        """The next message of the contender."""
        try:
            kind, content = self.connection.recv()
        except EOFError:
            self.process.join()
            raise UserError(
                f"The process of {self.title!r} ended with exit code {self.process.exitcode}. If it was killed for "
                "its memory, pass a smaller `--batch_size` or `--encoder`."
            ) from None
        if kind == "user error":
            raise UserError(content)
        if kind == "error":
            raise RuntimeError(f"{self.title!r} failed:\n{content}")
        return content

    def turn(self) -> dict[str, float]:
        """Let it train for a block, and watch the machine meanwhile."""
        before = _processor_seconds(self.process.pid)
        self.connection.send("go")
        figures = self.wait()
        after = _processor_seconds(self.process.pid)
        wall, busy, own, steal = (b - a for a, b in zip(before, after, strict=True))
        figures["other_load"], figures["steal"] = max(0.0, busy - own) / wall, steal / wall
        figures["items_per_s"] = figures["tokens"] / figures["seconds"]
        return figures

    def finish(self) -> float:
        self.connection.send("go")
        return self.wait()

    def end(self) -> None:
        self.process.join(2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(connection: Connection, train: Callable, settings: dict, threads: int, steps: tuple[int, ...]):
    for name in [name for name in os.environ if name.startswith(_LAUNCHER)]:
        del os.environ[name]
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the output of the process that measures ends with its figures
    torch.set_num_threads(threads)
    _quiet()
    try:
        connection.send(("end", train(Pace(connection, *steps), settings)))
    except (EOFError, ConnectionError):  # the other process is gone
        return
    except UserError as error:
        connection.send(("user error", str(error)))
    except Exception:
        connection.send(("error", traceback.format_exc()))


def _quiet() -> None:
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # what is not imported yet shall not be: it would count as memory of a side that does not need it
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()
    if "transformers" in sys.modules:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


def _figures(contender: Contender, turns: list[dict[str, float]], flops: float, peak: float) -> dict[str, Any]:
    def median(of: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(map(of, turns))

    rates = [turn["items_per_s"] for turn in turns]
    last = turns[-1]
    positions = sum(turn["positions"] for turn in turns)
    figures = {
        "title": contender.title,
        "precision": contender.precision,
        "unit": contender.unit,
        "items_per_s": statistics.median(rates),
        "items_per_s_range": [min(rates), max(rates)],
        "items_per_s_blocks": rates,
        "items_per_step": median(lambda turn: turn["tokens"] / turn["steps"]),
        "padding": 1 - sum(turn["tokens"] for turn in turns) / positions,
        "data_wait": median(lambda turn: turn["waited_s"] / turn["seconds"]),
        "data_wait_s": sum(turn["waited_s"] for turn in turns),
        "seconds": sum(turn["seconds"] for turn in turns),
        "step_s": median(lambda turn: turn["seconds"] / turn["steps"]),
        "first_step_s": last["first_step_s"],
        "peak_mb": last["peak_mb"],
        "peak_above_start_mb": last["peak_mb"] - last["start_mb"],
        "flops_per_position": flops,
        "utilisation": median(lambda turn: turn["positions"] / turn["seconds"]) * flops / peak,
        "matrix_product_flops_per_s": peak,
        "other_load": median(lambda turn: turn["other_load"]),
        "steal": median(lambda turn: turn["steal"]),
        "loss_first": turns[0]["loss"],
        "loss_last": last["loss"],
    }
    if "peak_gpu_mb" in last:
        figures["peak_gpu_mb"] = last["peak_gpu_mb"]
    if "gpu_waited_s" in last:
        figures["gpu_wait"] = median(lambda turn: turn["gpu_waited_s"] / turn["seconds"])
    return {name: _short(value) for name, value in figures.items()}


def ratio(figures: dict[str, dict[str, Any]], one: str, other: str) -> float | None:
    """How many times as fast `one` is as `other`: the quotient of their medians. `None` where one did not run."""
    if one not in figures or other not in figures:
        return None
    return _short(figures[one]["items_per_s"] / figures[other]["items_per_s"])


def ratio_range(figures: dict[str, dict[str, Any]], one: str, other: str) -> str:
    """The smallest and the largest quotient of two blocks of one round."""
    pairs = zip(figures[one]["items_per_s_blocks"], figures[other]["items_per_s_blocks"], strict=True)
    quotients = [a / b for a, b in pairs]
    return f"{min(quotients):.2f} to {max(quotients):.2f}"


# Of each unit the speed, and what FLOPs are counted for.
_WORDS = {
    "tokens": ("tokens/s (without padding)", "a position"),
    "images": ("images/s", "an image"),
    "seconds": ("seconds of sound/s (without padding)", "a second"),
    "pairs": ("pairs/s", "a pair"),
}
# Units of which a batch may hold positions that are none of them.
_PADDED = ("tokens", "seconds")


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The figures of the contenders, side by side."""
    unit = next(iter(figures.values()))["unit"]
    speed, position = _WORDS[unit]
    digits = int(unit == "seconds")
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("", lambda f: f["title"]),
        ("precision", lambda f: f["precision"]),
        (speed, lambda f: f"{f['items_per_s']:,.{digits}f}"),
        ("  slowest to fastest block", lambda f: "–".join(f"{rate:,.{digits}f}" for rate in f["items_per_s_range"])),
        *([("  seconds of sound a step", lambda f: f"{f['items_per_step']:.1f}")] if unit == "seconds" else []),
        *([("padding", lambda f: f"{f['padding']:.1%}")] if unit in _PADDED else []),
        ("waiting for data", lambda f: f"{f['data_wait_s']:.2f} s, {f['data_wait']:.1%}"),
        *(
            [("  the GPU, for data", lambda f: f"{f['gpu_wait']:.1%}")]
            if all("gpu_wait" in f for f in figures.values())
            else []
        ),
        ("data readable to first step", lambda f: f"{f['first_step_s']:.1f} s"),
        ("peak memory", lambda f: f"{f['peak_mb']:,.0f} MB"),
        ("  above the start", lambda f: f"{f['peak_above_start_mb']:,.0f} MB"),
        *([("  on the GPU", lambda f: f"{f['peak_gpu_mb']:,.0f} MB")] if torch.cuda.is_available() else []),
        (f"FLOPs {position}", lambda f: f"{f['flops_per_position'] / 1e6:,.1f} M"),
        ("utilisation", lambda f: f"{f['utilisation']:.1%}"),
        ("  of a matrix product's", lambda f: f"{f['matrix_product_flops_per_s'] / 1e9:,.0f} GFLOP/s"),
        ("other load, cores", lambda f: f"{f['other_load']:.2f}"),
        ("steal, cores", lambda f: f"{f['steal']:.2f}"),
        ("loss, first to last block", lambda f: f"{f['loss_first']:.2f} → {f['loss_last']:.2f}"),
    ]
    cells = [[name, *(show(f) for f in figures.values())] for name, show in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(figures) + 1)]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells)
    return "\n".join(lines)


def ratio_line(
    report: dict[str, Any], figures: dict[str, dict[str, Any]], name: str, one: str, other: str, words: str
) -> list[str]:
    """What is said of the ratio that stands in the report under `name`; nothing where there is none."""
    if report.get(name) is None:
        return []
    return [f"{name}: {report[name]:.2f} ({ratio_range(figures, one, other)} in single rounds): {words}"]


def disturbance(figures: dict[str, dict[str, Any]]) -> list[str]:
    """A warning where other processes had a part of the machine."""
    busiest = max(figures.values(), key=lambda f: f["other_load"] + f["steal"])
    taken = busiest["other_load"] + busiest["steal"]
    if taken <= 0.1:
        return []
    return [
        f"The machine was not quiet: others took {taken:.2f} cores while {busiest['title']} trained. Measure again "
        "before you quote."
    ]


def json_line(report: dict[str, Any]) -> str:
    return json.dumps(report, ensure_ascii=False)


def _short(value: Any) -> Any:
    """Numbers with the five digits that can mean something."""
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _processor_seconds(pid: int) -> tuple[float, float, float, float]:
    """Now, and processor seconds so far: of all processes, of `pid` with those that it started, and stolen ones."""
    times = psutil.cpu_times()
    busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    own = 0.0
    process = psutil.Process(pid)
    for each in [process, *process.children(recursive=True)]:
        try:
            spent = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        own += spent.user + spent.system
    return time.perf_counter(), busy, own, getattr(times, "steal", 0.0)


def _resident_mb() -> float:
    return psutil.Process().memory_info().rss / 2**20


def _peak_resident_mb() -> float:
    try:
        with open("/proc/self/status") as status:
            # `getrusage` would begin at the peak of the process that started this one
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
