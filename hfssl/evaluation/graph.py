"""An encoder without the Python around it: as a program of `torch.export`, or as ONNX, tried against the encoder.

What makes features of a modality's samples stands in its `graph.py`; here it is written, loaded again and compared at
other sizes than those it was made at.
"""

import importlib.util
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from ..errors import UserError, first_line
from ..modeling.base import evaluating
from .encoder_folder import quiet, stock_folder, trained_pooling
from .evaluator import EvaluationError
from .modality import modality_of_encoder
from .results import versions, write_json


logger = logging.getLogger(__name__)

# The largest difference that is allowed between an encoder and what was made of it, as a share of the largest value.
LIMIT = 1e-4
OUTPUTS = ("last_hidden_state", "feature")
RECORD = "export.json"
# What each format needs, and the file that it writes.
FORMATS = {"torch_export": ((), "encoder.pt2"), "onnx": (("onnx", "onnxscript", "onnxruntime"), "encoder.onnx")}
# Forward passes that a latency is the median of, after some that warm up.
_TIMED, _WARM = 20, 3

Run = Callable[[dict[str, torch.Tensor]], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Graph:
    """What of an encoder is written.

    Args:
        module (`nn.Module`):
            Its `forward` takes tensors by name and returns the encoder's outputs and the pooled feature (`OUTPUTS`).
        batch (`Callable[[int, int], dict[str, torch.Tensor]]`):
            Makes inputs of so many samples, of which the second number says how long they are, from 1 on.
        axes (`dict[str, dict[int, str]]`):
            Which axes of an input may be of any length, and what they are called.
        processor:
            What makes such inputs of samples.
        pooling (`str`):
            How one vector is made of the outputs.
        about (`dict`):
            What somebody has to know who makes the inputs without transformers.
    """

    module: nn.Module
    batch: Callable[[int, int], dict[str, torch.Tensor]]
    axes: dict[str, dict[int, str]]
    processor: Any
    pooling: str
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """What was written: the file, the largest difference from the encoder, what is allowed, and milliseconds."""

    path: Path
    difference: float
    allowed: float
    milliseconds: dict[str, float]

    def summary(self) -> str:
        eager, exported = self.milliseconds.values()
        return (
            f"{self.path}: {self.path.stat().st_size / 1e6:,.1f} MB, beside it {RECORD} and what prepares samples\n"
            f"Largest difference from the encoder: {self.difference:.1e}, allowed {self.allowed:.1e}\n"
            f"One sample takes {exported:.2f} ms, the encoder in PyTorch {eager:.2f} ms "
            f"({torch.get_num_threads()} thread(s) of the CPU)"
        )


def check_format(format: str) -> None:
    """Raise where a package that a format needs is not installed."""
    missing = [name for name in FORMATS[format][0] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"`--format {format}` needs {', '.join(missing)}: `pip install {' '.join(missing)}`, or take "
            "`--format torch_export`, which needs nothing."
        )


def export_encoder(encoder: str, format: str, output_dir: str | Path, pooling: str | None = None) -> Exported:
    """Write an encoder as a graph, with what prepares its samples and a record of both beside it.

    Args:
        encoder (`str`):
            Folder or Hub id of a stock encoder, or a checkpoint of a run.
        format (`str`):
            One of `FORMATS`.
        output_dir (`str` or `Path`):
            Where to.
        pooling (`str`, *optional*):
            How one vector is made of the outputs; as the encoder was trained when left out.

    Raises:
        UserError: where it cannot be written, or does not say the same as the encoder.
    """
    check_format(format)
    towers = [path.parent for path in sorted(Path(encoder).glob("*/config.json")) if path.parent.name != "pretraining"]
    if len(towers) > 1:
        raise EvaluationError(f"{encoder} holds two encoders. Name one of them: {', '.join(map(str, towers))}.")
    stock = stock_folder(encoder)
    modality = modality_of_encoder(stock)
    if modality.graph is None:
        raise EvaluationError(f"An encoder of {modality.name} cannot be written as a graph yet.")
    graph = modality.graph(stock, pooling or trained_pooling(stock))
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FORMATS[format][1]
    write, load = {"torch_export": (_write_program, _load_program), "onnx": (_write_onnx, _load_onnx)}[format]
    example = graph.batch(3, 2)
    with evaluating(graph.module), quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own parts
        try:
            write(graph, example, path)
        except Exception as error:  # of what it cannot follow it says so in many ways
            raise UserError(
                f"{encoder} cannot be written as {format} ({type(error).__name__}: {first_line(error)}). "
                f"Try the other of {', '.join(FORMATS)}."
            ) from error
        run = load(path)
        difference, allowed = _compare(graph, run)
        if not difference <= allowed:
            path.unlink()
            raise UserError(
                f"What was written of {encoder} differs from it by {difference:.1e}, more than {allowed:.1e}: it is "
                f"not kept. Try the other of {', '.join(FORMATS)}."
            )
        one = graph.batch(1, 2)
        milliseconds = {
            "encoder": _latency(lambda inputs: graph.module(**inputs), one),
            "exported": _latency(run, one),
        }
    graph.processor.save_pretrained(folder)
    write_json(folder / RECORD, _record(graph, example, encoder, format, difference, allowed, milliseconds))
    return Exported(path, difference, allowed, milliseconds)


def _record(graph, example, encoder, format, difference, allowed, milliseconds) -> dict[str, Any]:
    outputs = graph.module(**example)
    return {
        "encoder": Path(encoder).name, "format": format, "file": FORMATS[format][1], "pooling": graph.pooling,
        "inputs": {name: _shape(tensor, graph.axes[name]) for name, tensor in example.items()},
        "outputs": {
            name: {"dtype": str(tensor.dtype).removeprefix("torch."), "axes": tensor.ndim, "size": tensor.shape[-1]}
            for name, tensor in zip(OUTPUTS, outputs, strict=True)
        },
        "preparation": graph.about, "largest_difference": difference, "allowed_difference": allowed,
        "milliseconds": milliseconds, "threads": torch.get_num_threads(), "versions": versions(),
    }  # fmt: skip


def _shape(tensor: torch.Tensor, axes: dict[int, str]) -> dict[str, Any]:
    shape = [axes.get(axis, size) for axis, size in enumerate(tensor.shape)]
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": shape}


def _dynamic(graph: Graph) -> dict[str, dict[int, Any]]:
    return {name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, axes in graph.axes.items()}


def _write_program(graph: Graph, example: dict[str, torch.Tensor], path: Path) -> None:
    program = torch.export.export(graph.module, (), kwargs=example, dynamic_shapes=_dynamic(graph))
    torch.export.save(program, path)


def _load_program(path: Path) -> Run:
    module = torch.export.load(path).module()
    return lambda inputs: module(**inputs)


def _write_onnx(graph: Graph, example: dict[str, torch.Tensor], path: Path) -> None:
    torch.onnx.export(
        graph.module, (), path, kwargs=example, dynamo=True, dynamic_shapes=_dynamic(graph), input_names=list(example),
        output_names=list(OUTPUTS), external_data=False, verbose=False,
    )  # fmt: skip


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        found = session.run(list(OUTPUTS), {name: tensor.numpy() for name, tensor in inputs.items()})
        return [torch.from_numpy(each) for each in found]

    return run


def _compare(graph: Graph, run: Run) -> tuple[float, float]:
    """The largest difference over batches of other sizes, and the largest that is allowed."""
    difference = largest = 0.0
    for samples, length in ((1, 1), (2, 3), (5, 2)):
        inputs = graph.batch(samples, length)
        for expected, found in zip(graph.module(**inputs), run(inputs), strict=True):
            if expected.shape != found.shape:
                return float("inf"), LIMIT
            difference = max(difference, (expected - found).abs().max().item())
            largest = max(largest, expected.abs().max().item())
    return difference, LIMIT * max(largest, 1.0)


def _latency(run: Run, inputs: dict[str, torch.Tensor]) -> float:
    """Milliseconds of a forward pass."""
    taken = []
    for _ in range(_WARM + _TIMED):
        begin = time.perf_counter()
        run(inputs)
        taken.append(time.perf_counter() - begin)
    return 1e3 * median(taken[_WARM:])
