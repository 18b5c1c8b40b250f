"""What a method's own test file tells the tests that are common to all methods.

    CONTRACT = Contract(encoder=tiny_vision.vit, batch=tiny_vision.two_views, settings={"projector_output_dim": 16})

in `tests/methods/<modality>/test_<method>.py` registers the method everywhere: with `tests/test_methods_common.py`, with
the runs that stop and go on, and with the two processes of `tests/distributed`.

    python tests/contract.py        the table of cuts: where the gradient of a batch does not depend on how it is cut
"""

import copy
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

import hfssl.methods
from hfssl.modeling.base import SSLPreTrainedModel


TESTS = Path(__file__).parent
METHODS = [name for name in hfssl.methods.__all__ if name.endswith("ForPreTraining")]


@dataclass(frozen=True)
class Contract:
    """A small model of a method, a batch for it, and what its gradient depends on.

    Args:
        encoder (`Callable[[], PreTrainedConfig | dict]`):
            Makes the configuration of a small encoder: 2 layers and a width of 32 are enough. Of a method with several,
            those of all by the names of their fields.
        batch (`Callable[[int], dict[str, torch.Tensor]]`):
            Makes a batch of so many samples from torch's generator; each tensor has one row a sample.
        settings (`dict`, *optional*):
            Other fields of the method's configuration, with which nothing is left to chance.
        noise (`dict`, *optional*):
            Fields that bring dropout and the like back, for the run that is stopped and goes on.
        accumulation, processes (`bool`, *optional*, defaults to `True`):
            Whether accumulation steps, and processes, give the gradient of the whole batch. Where they say `False`
            the tests expect another gradient.
        why_not (`str`, *optional*):
            Why one of the two is `False`.
        variants (`dict[str, tuple]`, *optional*):
            `(encoder, settings)` of further models that two processes train, by a name: settings with state that
            processes share, encoders with batch norm. `settings` holds for them too, unless they say otherwise.
        equal (`frozenset[str]`, *optional*):
            Variants for which both cuts give the gradient of the whole batch, though for the method they do not.
        collapse (`Callable[[Callable], dict[str, Any]]`, *optional*):
            Makes the method collapse on purpose, for tests and calibration of the verdict (`tests/calibration`): changes
            what it has to by its argument, which is `setattr` or pytest's, and returns flags of the recipe.
    """

    encoder: Callable[[], PreTrainedConfig | dict[str, PreTrainedConfig]]
    batch: Callable[[int], dict[str, torch.Tensor]]
    settings: dict[str, Any] = field(default_factory=dict)
    noise: dict[str, Any] = field(default_factory=dict)
    accumulation: bool = True
    processes: bool = True
    why_not: str = ""
    variants: dict[str, tuple[Callable[[], PreTrainedConfig], dict[str, Any]]] = field(default_factory=dict)
    equal: frozenset[str] = frozenset()
    collapse: Callable[[Callable[[Any, str, Any], None]], dict[str, Any]] | None = None

    def __post_init__(self):
        if not (self.accumulation and self.processes or self.why_not):
            raise ValueError("A cut whose gradient differs needs a reason: `why_not=` in one sentence.")


def file_of(method: str) -> Path:
    """Where the tests of a method are: in the place that its module has in `hfssl/methods`."""
    *folders, name = getattr(hfssl.methods, method).__module__.split(".")[2:]
    return TESTS.joinpath("methods", *folders, f"test_{name}.py")


@cache
def contract(method: str) -> Contract:
    """The `CONTRACT` in the test file of a method."""
    path = file_of(method)
    missing = (
        f"{method} has no contract: tests/{path.relative_to(TESTS)} has to hold `CONTRACT = Contract(encoder=…, "
        "batch=…)`, see tests/contract.py. By it the tests that are common to all methods find this one."
    )
    if not path.exists():
        raise AssertionError(missing)
    found = getattr(load(path), "CONTRACT", None)
    if not isinstance(found, Contract):
        raise AssertionError(missing)
    return found


def variants_of(method: str) -> list[str | None]:
    """The names of a method's models, `None` for the first; of a method without a contract just that one."""
    try:
        return [None, *contract(method).variants]
    except AssertionError:  # the test of this one says it
        return [None]


def load(path: Path):
    """A module from its file, whether or not another one has its name."""
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(method: str, variant: str | None = None, seed: int = 0, **settings: Any) -> SSLPreTrainedModel:
    """The small model of a contract, or one of its variants, with weights of its own."""
    entry = contract(method)
    encoder, others = (entry.encoder, {}) if variant is None else entry.variants[variant]
    model_class = getattr(hfssl.methods, method)
    torch.manual_seed(seed)
    made = encoder()
    encoders = made if isinstance(made, dict) else {"encoder_config": made}
    return model_class(model_class.config_class(**encoders, **entry.settings | others | settings))


@cache
def _built(method: str) -> tuple[SSLPreTrainedModel, dict[str, torch.Tensor]]:
    model = build(method)
    torch.manual_seed(1)
    return model, contract(method).batch(6)


def model_and_batch(method: str) -> tuple[SSLPreTrainedModel, dict[str, torch.Tensor]]:
    """A copy of the small model, which is built once, and a batch of 6."""
    return copy.deepcopy(_built(method))


def split(batch: dict[str, torch.Tensor], parts: int) -> list[dict[str, torch.Tensor]]:
    """A batch cut into equal parts."""
    pieces = {name: tensor.chunk(parts) for name, tensor in batch.items()}
    return [{name: pieces[name][i] for name in batch} for i in range(parts)]


def table_of_cuts() -> str:
    """Which cuts of a batch have the gradient of the whole, by what the contracts say and the tests check."""
    lines = ["| method | accumulation steps | processes | why not |", "|---|---|---|---|"]
    for method in METHODS:
        entry = contract(method)
        yes_no = " | ".join("yes" if equal else "no" for equal in (entry.accumulation, entry.processes))
        lines.append(
            f"| {method.removesuffix('ForPreTraining').lower()} | {yes_no} | {inspect.cleandoc(entry.why_not)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    from contract import table_of_cuts  # of the module whose `Contract` the test files know

    print(table_of_cuts())


def checkpoint_activations(model, settings=None):
    """By the name that this transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(settings)
