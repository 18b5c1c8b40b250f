"""Steps of a small model on this CPU, and the rates of what they are made of, measured in turn in the same processes.

Whatever else the machine does slows both down alike.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..methods import METHODS


# What multiplies matrices, by how the names of operations begin.
_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mkldnn_convolution", "convolution", "_scaled_dot_product")
_SIZE = 1024


class _Products(TorchDispatchMode):
    """Seconds of matrix products, also in backward passes."""

    def __init__(self, clock: Callable[[], float]):
        super().__init__()
        self.clock, self.seconds = clock, 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        begin = self.clock()
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__.startswith(_PRODUCTS):
            self.seconds += self.clock() - begin
        return made


def timed_steps(
    method: str, config: dict[str, Any], shape: tuple[int, ...], processes: int, steps: int, gradient_bytes: int
) -> dict[str, float]:
    """Medians over some steps in so many processes of one thread.

    Args:
        method (`str`):
            A method for images, by its short name.
        config (`dict`):
            Of its config.
        shape (`tuple[int]`):
            Of `pixel_values`.
        processes (`int`):
            1, or more that train together.
        steps (`int`):
            Those that count, after a first one.
        gradient_bytes (`int`):
            Size of the sum over processes that is measured.

    Returns:
        `dict`: `step_s`, `flops_per_s` of a matrix product, the share of the step's time that they take
        (`products_share`), and for several processes `bytes_per_s` of a sum and `latency_s` of the shortest one.
    """
    arguments = method, config, shape, processes, steps, gradient_bytes
    if processes == 1:
        threads = torch.get_num_threads()
        try:
            return _steps(0, *arguments)
        finally:
            torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        results = torch.multiprocessing.get_context("spawn").SimpleQueue()
        torch.multiprocessing.spawn(_work, (arguments, folder, results), nprocs=processes)
        return results.get()


def _work(rank: int, arguments: tuple, folder: str, results: Any) -> None:
    world_size = arguments[3]
    dist.init_process_group(
        "gloo", init_method=(Path(folder) / "meeting").as_uri(), rank=rank, world_size=world_size
    )  # fmt: skip
    try:
        found = _steps(rank, *arguments)
        if rank == 0:
            results.put(found)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _steps(
    rank: int, method: str, config: dict[str, Any], shape: tuple, processes: int, steps: int, gradient_bytes: int
) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model_class = METHODS[method]
    model: nn.Module = model_class(model_class.config_class(**config)).train()
    # of this process alone, where nothing else is waited for: other work on the machine does not count
    clock = time.process_time if processes == 1 else time.perf_counter
    images, square = torch.randn(shape), torch.randn(_SIZE, _SIZE)
    if processes > 1:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    gradients, number = torch.zeros(gradient_bytes // 4), torch.zeros(1)

    def step() -> None:
        model(pixel_values=images).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    parts: dict[str, Callable] = {"product": lambda: torch.mm(square, square), "step": step}
    if processes > 1:
        parts |= {"sum": lambda: dist.all_reduce(gradients), "shortest": lambda: dist.all_reduce(number)}
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(steps + 1):
        for name, part in parts.items():
            if processes > 1:
                dist.barrier()
            begin = clock()
            part()
            seconds[name].append(clock() - begin)
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    with _Products(clock) as products:
        begin = clock()
        step()
        counted = clock() - begin
    found = {
        "step_s": median["step"], "flops_per_s": 2 * _SIZE**3 / median["product"],
        "products_share": products.seconds / counted,
    }  # fmt: skip
    if processes > 1:
        found |= {"bytes_per_s": gradient_bytes / median["sum"], "latency_s": median["shortest"]}
    return found
