"""Which implementation of attention a run has: the fastest on its device, or the one that it has had so far.

So too, for convolutions, how images lie in memory. Such choices differ in the last bits. A run keeps in each
checkpoint what it has ([`FILE`], [`FORMAT_FILE`]) and goes on with it: a resumed run is the same run, whatever would
be measured by then.
"""

import copy
import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import PreTrainedModel

from ..data.cache import cached_columns
from .arguments import SSLTrainingArguments


logger = logging.getLogger(__name__)

FILE, FORMAT_FILE = "attention.json", "memory_format.json"
CHANNELS_LAST, CHANNELS_FIRST = "channels last", "channels first"
MEASURED = "measured"
# What one has to be faster by than the first candidate, to be taken in its stead: as much as timings are off.
MARGIN = 1.05
_ROUNDS = 5


def attention_of(model: nn.Module) -> dict[str, str]:
    """The implementation of each stock module within a method, by the name of the module."""
    return {
        name: part.config._attn_implementation
        for name, part in model.named_modules()
        if name and isinstance(part, PreTrainedModel) and part.config._attn_implementation
    }


def attention_so_far(args: SSLTrainingArguments) -> dict[str, str]:
    """What [`attention_of`] a run's model was in the checkpoint from which it goes on; nothing for a new run."""
    if args.continued_from is None or not (args.continued_from / FILE).is_file():
        return {}
    return json.loads((args.continued_from / FILE).read_text())


def memory_format_so_far(args: SSLTrainingArguments) -> str | None:
    """How images lay in memory for the convolutional encoder of a run that goes on; `None` for a new run."""
    if args.continued_from is None:
        return None
    file = args.continued_from / FORMAT_FILE
    # without a file nothing else was chosen
    return json.loads(file.read_text()) if file.is_file() else CHANNELS_LAST


def take_memory_format(encoder: nn.Module, memory_format: str) -> None:
    """Let [`~hfssl.modeling.vision.arranged`] lay images for an encoder in one of both ways."""
    encoder.channels_last = memory_format == CHANNELS_LAST


def save(model: nn.Module, checkpoint: Path) -> None:
    """Write down which attention, and which layout of images in memory, a checkpoint was trained with."""
    (checkpoint / FILE).write_text(json.dumps(attention_of(model), indent=1))
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and not getattr(part, "channels_last", True):
            (checkpoint / FORMAT_FILE).write_text(json.dumps(CHANNELS_FIRST))


def is_measured(attention: str, device: torch.device) -> bool:
    """Whether `--attention` asks for a measurement: `auto` does on a GPU. On a CPU it takes what others measured."""
    return attention == MEASURED or attention == "auto" and device.type == "cuda"


def fastest_attention(
    encoder: PreTrainedModel,
    candidates: Sequence[str],
    run: Callable[[PreTrainedModel], torch.Tensor],
    shape: str,
    args: SSLTrainingArguments,
) -> str:
    """The candidate with the fastest forward and backward pass, the same in all processes.

    It is measured once for each encoder, shape, device and version, and found in the cache from then on. Neither the
    encoder nor the state of the random generators changes. What does not run, or not in the memory there is, is no
    candidate.

    Args:
        encoder (`PreTrainedModel`):
            Of the run.
        candidates (`Sequence[str]`):
            Implementations; the first is taken unless another one is clearly faster.
        run (`Callable[[PreTrainedModel], torch.Tensor]`):
            A forward pass of a copy of the encoder on `args.device`, at the shapes of the run.
        shape (`str`):
            Says what these are, such as `64 x 512 tokens`.
        args ([`SSLTrainingArguments`]):
            Device and precision.
    """
    set_one = PreTrainedModel.set_attn_implementation
    return _fastest("attention", encoder, candidates, set_one, run, shape, args)


def fastest_memory_format(
    encoder: PreTrainedModel, run: Callable[[PreTrainedModel], torch.Tensor], shape: str, args: SSLTrainingArguments
) -> str:
    """How images for a convolutional encoder best lie in memory, by the measurement of [`fastest_attention`]."""
    candidates = (CHANNELS_LAST, CHANNELS_FIRST)
    return _fastest("memory format", encoder, candidates, take_memory_format, run, shape, args)


def _fastest(
    what: str,
    encoder: PreTrainedModel,
    candidates: Sequence[str],
    set_one: Callable[[PreTrainedModel, str], None],
    run: Callable[[PreTrainedModel], torch.Tensor],
    shape: str,
    args: SSLTrainingArguments,
) -> str:
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
    device = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else "this CPU"
    known_by = [
        encoder.config.to_json_string(use_diff=False), shape, precision, device, torch.__version__,
        transformers.__version__, torch.get_num_threads(), *candidates,
        *([] if any(each.requires_grad for each in encoder.parameters()) else ["frozen"]),
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(known_by).encode()).hexdigest()[:16]
    choice: list[str | None] = [None]
    if args.process_index == 0:
        table = cached_columns(
            f"{what.replace(' ', '-')}-{digest}",
            lambda: _table(what, _measure(encoder, candidates, set_one, run, args)),
        )
        seconds = dict(zip(table[what], table["seconds"], strict=True))
        choice[0] = choose(candidates, seconds)
        others = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in seconds.items())
        logger.info(
            "%s: %s, measured at %s in %s on %s (%s).", what.capitalize(), choice[0], shape, precision, device, others
        )
    return broadcast_object_list(choice)[0]


def choose(candidates: Sequence[str], seconds: dict[str, float]) -> str:
    """The fastest by the seconds of those that ran; the first of all unless that is clearly faster."""
    first, fastest = candidates[0], min(seconds, key=seconds.get, default=candidates[0])
    if first in seconds and seconds[first] < MARGIN * seconds[fastest]:
        return first
    return fastest


def _table(what: str, seconds: dict[str, float]) -> dict[str, list]:
    return {what: list(seconds), "seconds": list(seconds.values())}


def _measure(
    encoder: PreTrainedModel,
    candidates: Sequence[str],
    set_one: Callable[[PreTrainedModel, str], None],
    run: Callable[[PreTrainedModel], torch.Tensor],
    args: SSLTrainingArguments,
) -> dict[str, float]:
    """Seconds of each candidate that runs, in turn."""
    device, on_gpu = args.device, args.device.type == "cuda"
    dtype = torch.float16 if args.fp16 else torch.bfloat16
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        tried = copy.deepcopy(encoder).to(device).train()
        for _ in range(_ROUNDS + 1):  # what is made once is made in the first
            for name in list(seconds):
                try:
                    set_one(tried, name)
                    begin = _now(device)
                    with torch.autocast(device.type, dtype, enabled=args.bf16 or args.fp16):
                        result = run(tried)
                    if result.requires_grad:  # a frozen encoder goes forward only
                        result.float().sum().backward()
                    seconds[name].append(_now(device) - begin)
                except (RuntimeError, ValueError, TypeError, ImportError, NotImplementedError) as error:
                    logger.debug("%s does not run here: %s", name, error)
                    del seconds[name]
                tried.zero_grad(set_to_none=True)
        del tried
    if on_gpu:
        torch.cuda.empty_cache()
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
