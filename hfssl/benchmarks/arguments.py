"""What the benchmarks that train share of their flags."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from ..cli.declared import names_of_function
from ..cli.encoders import Presets, is_checkpoint
from ..errors import UserError
from ..machine import num_cores, use_all_cores
from ..methods import METHODS


@dataclass
class BenchmarkArguments:
    r"""
    > Benchmark

    Args:
        precision (`str`, *optional*, defaults to `"auto"`):
            fp32 or bf16, for all sides. auto takes bf16 where the hardware has it natively.
        blocks (`int`, *optional*, defaults to `5`):
            Turns of each side.
        steps_per_block (`int`, *optional*, defaults to `6`):
            Steps of a turn.
        seed (`int`, *optional*, defaults to `0`):
            Seed of weights, order, and what is random about a sample.
        cpu_threads (`int`, *optional*):
            Threads of each side. Left out, all cores.
        use_cpu (`bool`, *optional*, defaults to `False`):
            Leave a GPU alone.
        json (`bool`, *optional*, defaults to `False`):
            End with one line of JSON.
    """

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    blocks: int = 5
    steps_per_block: int = 6
    seed: int = 0
    cpu_threads: int | None = None
    use_cpu: bool = False
    json: bool = False

    def __post_init__(self):
        self.require(blocks=1, steps_per_block=1)
        if self.precision not in ("auto", "fp32", "bf16"):
            raise UserError(f"`--precision` is auto, fp32 or bf16, got {self.precision!r}.")

    def require(self, **least: int) -> None:
        """Refuse numbers that are too small."""
        for name, number in least.items():
            if getattr(self, name) < number:
                raise UserError(f"`--{name}` must be at least {number}, got {getattr(self, name)}.")

    def require_scratch(self, flag: str, presets: Presets) -> None:
        """Refuse an encoder that is a checkpoint."""
        encoder = getattr(self, flag)
        if encoder is not None and is_checkpoint(encoder, presets):
            raise UserError(
                f"`--{flag} {encoder}` would be a checkpoint, and the benchmark trains from scratch: choose "
                f"{', '.join(presets)} or a config file that ends in .json."
            )

    @property
    def on_gpu(self) -> bool:
        return torch.cuda.is_available() and not self.use_cpu

    @property
    def device(self) -> str:
        return "cuda" if self.on_gpu else "cpu"

    @property
    def default_workers(self) -> int:
        """Processes that prepare data: none on a CPU, beside a GPU one for each core but one."""
        return max(1, num_cores() - 1) if self.on_gpu else 0

    def take_threads(self) -> int:
        """Use the cores of this run, and say how many they are."""
        use_all_cores(self.cpu_threads)
        return self.cpu_threads or torch.get_num_threads()


def measured_by(word: str, of_image_methods: Callable, *others: Callable) -> Callable:
    """What measures that which the first word of a command line stands for.

    Args:
        word (`str`):
            A method, or what another benchmark is called.
        of_image_methods (`Callable`):
            What measures the methods for images that another library has as well.
        others (`Callable`):
            What measures that after which each is called, `a_or_b` where it is for both.

    Raises:
        UserError: where nothing measures it.
    """
    by_word = {name: each for each in others for name in names_of_function(each.__name__)}
    records = {name: model_class.method for name, model_class in METHODS.items()}
    methods = [name for name, record in records.items() if record.views is not None and record.benchmark.against]
    by_word |= dict.fromkeys(methods, of_image_methods)
    if word not in by_word:
        raise UserError(f"Say first what to measure ({', '.join(by_word)}), got {word or 'nothing'!r}.")
    return by_word[word]
