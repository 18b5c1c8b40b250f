"""What a step costs on 1, 8, 64 and 1,024 GPUs, worked out by the code itself, without any GPU.

The forward and the backward pass of each method run on tensors that have shapes and no numbers
(`torch._subclasses.FakeTensorMode`), once for each number of GPUs, with `torch.distributed` replaced by what writes
down how many bytes it would send. So FLOPs and messages are those of the code: also the similarities of a batch that
grows with the GPUs, the embeddings that are gathered, and the statistics of batch norms.

What is assumed stands in the flags, and below the table.
"""

import io
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ..cli.image.presets import VISION_PRESETS
from ..cli.text.presets import CAUSAL_PRESETS, TEXT_PRESETS
from ..data.image.views import ViewArguments, Views
from ..data.stream import Block
from ..errors import UserError
from ..functional import keyed
from ..functional.keyed import Use
from ..methods import METHODS
from ..modeling.base import SSLPreTrainedModel
from ..modeling.corpus_targets import CorpusTargetsMixin
from ..modeling.progress import ProgressMixin
from .gpu import PHOTO, ROWS, Row, photo
from .measured_step import timed_steps


# What a core makes of text, in tokens a second, and bytes of a token: measured, see `hfssl.data.stream`.
TOKENS_A_CORE, BYTES_A_TOKEN = 450_000, 4.5
# GPUs that are joined by the fast links.
NODE = 8
# Share of the compute during which gradients are there to be sent: the backward pass.
BACKWARD = 2 / 3


@dataclass
class ScaleBenchmark:
    r"""
    > Benchmark

    Args:
        rows (`list[str]`, *optional*):
            Which rows: bert, modernbert, gpt2, or a method for images. All when left out.
        gpus (`list[int]`, *optional*, defaults to `[1, 8, 64, 1024]`):
            Numbers of GPUs.
        tflops (`float`, *optional*, defaults to `989.0`):
            Rate of a GPU's matrix products in half precision, in TFLOP/s: an H100 without sparsity.
        utilisation (`float`, *optional*, defaults to `0.4`):
            Share of it that a step reaches.
        link_gb_s (`float`, *optional*, defaults to `450.0`):
            GB/s that a GPU sends to the others of its machine of 8.
        network_gb_s (`float`, *optional*, defaults to `50.0`):
            GB/s that it sends to those of other machines.
        latency_us (`float`, *optional*, defaults to `20.0`):
            Microseconds of a message, however short.
        cores_per_gpu (`int`, *optional*, defaults to `16`):
            CPU cores beside each GPU.
        measure (`bool`, *optional*, defaults to `False`):
            Also compare the prediction with steps that are measured: of a small model on this CPU, in one process and
            in two, each with one thread.
        tiny (`bool`, *optional*, defaults to `False`):
            Tiny models and images, to see whether everything runs.
        json (`bool`, *optional*, defaults to `False`):
            End with one line of JSON.
    """

    rows: list[str] | None = None
    gpus: list[int] = field(default_factory=lambda: [1, NODE, 64, 1024])
    tflops: float = 989.0
    utilisation: float = 0.4
    link_gb_s: float = 450.0
    network_gb_s: float = 50.0
    latency_us: float = 20.0
    cores_per_gpu: int = 16
    measure: bool = False
    tiny: bool = False
    json: bool = False

    def __post_init__(self):
        unknown = [row for row in self.rows or () if row not in all_rows()]
        if unknown:
            raise UserError(f"`--rows {unknown[0]}` is unknown. Choose some of {', '.join(all_rows())}.")
        if not self.gpus or min(self.gpus) < 1:
            raise UserError(f"`--gpus` takes numbers from 1, got {self.gpus}.")
        for name in ("tflops", "utilisation", "link_gb_s", "network_gb_s", "cores_per_gpu"):
            if not getattr(self, name) > 0:
                raise UserError(f"`--{name}` must be above 0, got {getattr(self, name):g}.")


def all_rows() -> dict[str, Row]:
    """Those of the benchmark of a GPU but pairs, whose two towers are not worked out, and all others for images."""
    known = {row.method for row in ROWS.values()}
    single = {name: row for name, row in ROWS.items() if METHODS[row.method].method.modality in ("image", "text")}
    others = {
        name: replace(ROWS["simclr"], method=name, peer=None)
        for name, method in METHODS.items()
        if name not in known and method.method.modality == "image"
    }
    return single | others


# -- a step, without numbers ------------------------------------------------------------------------------------------


@dataclass
class Messages:
    """Bytes that each process gives to collective operations in a step, and how often."""

    reduced: float = 0.0
    gathered: float = 0.0
    number: int = 0


@contextmanager
def one_of(world_size: int, messages: Messages) -> Iterator[None]:
    """As if this process were one of so many."""

    def gathers(parts, tensor, *args, **kwargs):
        messages.gathered += tensor.numel() * tensor.element_size()
        messages.number += 1

    def reduces(tensor, *args, **kwargs):
        messages.reduced += tensor.numel() * tensor.element_size()
        messages.number += 1

    instead = {
        "is_available": lambda: True, "is_initialized": lambda: world_size > 1, "all_gather": gathers,
        "get_world_size": lambda *_: world_size, "get_rank": lambda *_: 0, "all_reduce": reduces,
    }  # fmt: skip
    with mock.patch.multiple(dist, **instead):
        yield


@dataclass
class Step:
    """FLOPs of a GPU, its gradients in bytes, and its other messages."""

    flops: float
    gradient_bytes: float
    messages: Messages


def step_of(row: Row, world_size: int, columns: dict[str, torch.Tensor]) -> Step:
    """Forward and backward of one of so many processes.

    Args:
        row ([`~hfssl.benchmarks.gpu.Row`]):
            Method, encoder and batch of a GPU.
        world_size (`int`):
            Processes.
        columns (`dict[str, torch.Tensor]`):
            A small batch, whose rows stand for all others.
    """
    model = blank_model(row)
    messages = Messages()
    with FakeTensorMode(allow_non_fake_inputs=True), one_of(world_size, messages):
        for module in model.modules():
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    module._parameters[name] = torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
            for name, tensor in module._buffers.items():
                if tensor is not None:
                    # of a single number, such as how far the run is, the value is known: that of the start
                    module._buffers[name] = (
                        torch.empty(tensor.shape, dtype=tensor.dtype) if tensor.ndim
                        else torch.tensor(0, dtype=tensor.dtype)
                    )  # fmt: skip
        batch = {
            name: torch.empty(
                len(values) * row.batch_size // _rows(columns), *values.shape[1:], dtype=values.dtype
            )
            for name, values in columns.items()
        }  # fmt: skip
        if isinstance(model, CorpusTargetsMixin):
            batch |= model.no_targets(row.batch_size)
        with FlopCounterMode(display=False) as counter:
            model(**batch).loss.backward()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Step(counter.get_total_flops(), 4.0 * trained, messages)


def _rows(columns: dict[str, torch.Tensor]) -> int:
    return len(columns["input_ids" if "input_ids" in columns else "pixel_values"])


def blank_model(row: Row) -> SSLPreTrainedModel:
    """The method of a row with the defaults of its paper, without weights."""
    model_class = METHODS[row.method]
    config = model_class.config_class(encoder_config=_encoder_config(row))
    with torch.device("meta"):
        model = model_class(config).train()
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and part is not model:  # what the counter knows
            part.set_attn_implementation("eager")
    if isinstance(model, ProgressMixin):
        model._progress = 0.5  # when all learns
    return model


def _encoder_config(row: Row) -> PreTrainedConfig:
    presets = TEXT_PRESETS | CAUSAL_PRESETS | VISION_PRESETS
    name = row.encoder.removesuffix(".json")
    config = presets[name]() if name in presets else AutoConfig.for_model(name)
    if hasattr(config, "image_size"):
        config.image_size = row.length
    if getattr(config, "max_position_embeddings", row.length) < row.length:
        config.max_position_embeddings = row.length
    return config


def small_batch(row: Row) -> tuple[dict[str, torch.Tensor], float, float]:
    """A batch of a few rows, and what a row takes: bytes of its file, seconds of a core."""
    method = METHODS[row.method].method
    if method.modality == "text":
        columns = {
            name: torch.ones(100, row.length, dtype=torch.long) for name in ("input_ids", "labels", "sequence_ids")
        }
        share, name = (1 - 1 / row.length, "target_positions") if method.causal else (0.15, "masked_positions")
        columns[name] = torch.ones(round(100 * row.length * share), dtype=torch.long)
        return columns, row.length * BYTES_A_TOKEN, row.length / TOKENS_A_CORE
    encoder = _encoder_config(row)
    arguments = ViewArguments(image_size=row.length)
    views = Views(method.views, arguments, is_grey=False, patch_size=getattr(encoder, "patch_size", None))
    random = np.random.default_rng(0)
    files = []
    for _ in range(4):
        buffer = io.BytesIO()
        photo(random, PHOTO if row.length == 224 else (48, 64)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = []
    try:
        for i in range(3):
            begin = time.process_time()
            rows = views.rows(Block({"image": files}, keyed.key(Use.BENCHMARK_IMAGES, i, np.arange(4)), 9))
            seconds.append((time.process_time() - begin) / 4)
    finally:
        torch.set_num_threads(threads)
    return views.collator("cpu")(rows.columns), statistics.mean(map(len, files)), min(seconds)


# -- what follows from it ---------------------------------------------------------------------------------------------


def predict(arguments: ScaleBenchmark, row: Row, gpus: int, step: Step, file_bytes: float, core_s: float) -> dict:
    """Seconds of a step of `gpus` GPUs, and what takes them."""
    compute = step.flops / (1e12 * arguments.tflops * arguments.utilisation)
    speed = 1e9 * (arguments.link_gb_s if gpus <= NODE else arguments.network_gb_s)
    others = gpus - 1
    # rings: a sum goes round twice, in parts; what is gathered comes once from each of the others
    gradients = 2 * others / gpus * step.gradient_bytes / speed
    messages = step.messages
    method = 2 * others / gpus * messages.reduced / speed + others * messages.gathered / speed
    method += messages.number * arguments.latency_us / 1e6 * (gpus > 1)
    exposed = max(0.0, gradients - BACKWARD * compute) + method
    rate = row.batch_size / (compute + exposed)  # rows a second of a GPU that waits for nothing else
    data = row.batch_size * core_s / arguments.cores_per_gpu
    seconds = max(compute + exposed, data)
    shares = {"compute": compute, "communication": exposed, "data": data if data > compute + exposed else 0.0}
    return {
        "gpus": gpus, "flops": step.flops, "compute_s": compute, "gradient_bytes": step.gradient_bytes,
        "gradients_s": gradients, "method_bytes": messages.reduced + messages.gathered, "messages": messages.number,
        "method_s": method, "exposed_s": exposed, "step_s": seconds, "rows_per_s": gpus * row.batch_size / seconds,
        "disk_bytes_per_s": gpus * rate * file_bytes, "cores_per_gpu_needed": rate * core_s,
        "bottleneck": max(shares, key=shares.get),
    }  # fmt: skip


def run_scale_benchmark(arguments: ScaleBenchmark) -> tuple[str, dict[str, Any]]:
    """Work out each row, and return what to read and what `--json` prints."""
    report: dict[str, Any] = {"benchmark": "scale", "rows": {}}
    for name in arguments.rows or all_rows():
        row = all_rows()[name]
        if arguments.tiny:
            row = row.tiny()
        try:
            columns, file_bytes, core_s = small_batch(row)
            report["rows"][name] = [
                predict(arguments, row, gpus, step_of(row, gpus, columns), file_bytes, core_s)
                for gpus in arguments.gpus
            ]
        except Exception as error:  # a method that asks for numbers cannot be run without any
            report["rows"][name] = f"{type(error).__name__}: {error}".splitlines()[0]
    if arguments.measure:
        report["measured"] = [compare_step(processes) for processes in (1, 2)]
    return _text(arguments, report), report


def compare_step(processes: int, steps: int = 5) -> dict[str, float]:
    """A step of a small model in so many processes of one thread beside its prediction.

    The prediction is FLOPs over the rate of a matrix product and bytes over that of a sum over the processes, both
    measured between the steps: it is the least that a step can take.
    """
    row = replace(ROWS["simclr"].tiny(), batch_size=32)
    columns, _, _ = small_batch(row)
    step = step_of(row, processes, columns)
    config = METHODS[row.method].config_class(encoder_config=_encoder_config(row))
    shape = row.batch_size, *columns["pixel_values"].shape[1:]
    found = timed_steps(row.method, config.to_dict(), shape, processes, steps, int(step.gradient_bytes))
    messages = step.messages
    sent = step.gradient_bytes + messages.reduced + messages.gathered
    messages_s = sent / found["bytes_per_s"] + messages.number * found["latency_s"] if processes > 1 else 0.0
    predicted = step.flops / found["flops_per_s"] + messages_s
    return {
        "processes": processes, "measured_s": found["step_s"], "predicted_s": predicted, "messages_s": messages_s,
        "factor": found["step_s"] / predicted, "products_share": found["products_share"],
    }  # fmt: skip


def _text(arguments: ScaleBenchmark, report: dict[str, Any]) -> str:
    lines = [
        "| row | GPUs | TFLOPs a step | ms compute | ms gradients | ms of the method | ms a step | rows/s | "
        "MB/s from disk | cores a GPU needs | bottleneck |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, predictions in report["rows"].items():
        if isinstance(predictions, str):
            lines.append(f"| {name} | not worked out: {predictions} | | | | | | | | | |")
            continue
        for p in predictions:
            ms = " | ".join(f"{1e3 * p[key]:,.1f}" for key in ("compute_s", "gradients_s", "method_s", "step_s"))
            lines.append(
                f"| {name} | {p['gpus']:,} | {p['flops'] / 1e12:,.1f} | {ms} | {p['rows_per_s']:,.0f} | "
                f"{p['disk_bytes_per_s'] / 1e6:,.0f} | {p['cores_per_gpu_needed']:.1f} | {p['bottleneck']} |"
            )
    a = arguments
    lines += [
        "",
        f"- A GPU multiplies at {a.tflops:g} TFLOP/s x {a.utilisation:g}, sends at {a.link_gb_s:g} GB/s within {NODE} "
        f"and at {a.network_gb_s:g} GB/s beyond, and has {a.cores_per_gpu} cores beside it. Nothing of this was "
        "measured.",
        "- Gradients are float32, summed over a ring, and sent while the backward pass runs, which is two thirds of "
        "the compute; only what takes longer counts. Messages of the method (embeddings, batch norm, centres) wait.",
        f"- FLOPs are those of the matrix products. Text is made by a core at {TOKENS_A_CORE:,} tokens/s; images were "
        "made just now by one core of this machine (decode, crop, resize), colours are made by the GPU.",
    ]
    for m in report.get("measured", ()):
        messages = f", {m['messages_s']:.2f} s of it for messages" if m["processes"] > 1 else ""
        lines.append(
            f"- SimCLR around a small ViT on {m['processes']} x 1 thread here: {m['measured_s']:.2f} s a step, "
            f"{m['predicted_s']:.2f} s predicted from FLOPs, bytes and the rates measured beside them{messages}: a "
            f"factor of {m['factor']:.1f}. Matrix products took {m['products_share']:.0%} of the step; the rest "
            "(norms, activations, softmax, copies, the optimizer) is not predicted."
        )
    return "\n".join(lines)
