"""What makes a run this run, and what becomes of one that goes on for longer than it was meant to."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..data.stream import ExactStream
from ..errors import UserError
from . import checkpoints
from .arguments import SSLTrainingArguments


logger = logging.getLogger(__name__)

# Changed on a resume, the result would be neither the old run's nor the new one's. The length may grow.
IDENTITY = (
    "global_batch_size", "max_steps", "learning_rate",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay",
    "weight_decay_end", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "bf16", "fp16",
)  # fmt: skip
# Of these what the number of processes changes, which a run may go on with.
FOLLOW_PROCESSES = frozenset(("global_batch_size", "batches_per_step"))


def settings_of_run(
    args: SSLTrainingArguments, config: PreTrainedConfig, stream: ExactStream | None, **more: Any
) -> dict[str, Any]:
    """What is kept in each checkpoint and compared on a resume, in words and numbers that a message can use."""
    arguments = {name: getattr(args, name) for name in IDENTITY}
    if stream is None:  # whoever reads the data then may deal them out otherwise
        arguments["world_size"] = args.world_size
    elif stream.batch_cost is not None:
        arguments["batches_per_step"] = args.gradient_accumulation_steps * args.world_size
    for name in (
        "bias_rate",
        "layer_decay",
        "patch_embed_rate",
    ):  # left out as in checkpoints from before they were settings
        if getattr(args, name) != 1.0:
            arguments[name] = getattr(args, name)
    if args.contrastive_batch_size is not None:
        arguments["contrastive_batch_size"] = args.contrastive_batch_size
    if args.budget_minutes is not None:
        arguments["budget_minutes"] = args.budget_minutes
        del arguments["max_steps"]
    method = _flat(config.to_dict())
    for name in ("transformers_version", "dtype", "architectures"):
        method.pop(name, None)
    settings = {**more, **arguments, **method}
    return {name: value if isinstance(value, int | float) else str(value) for name, value in settings.items()}


def set_length(args: SSLTrainingArguments, stream: ExactStream | None) -> None:
    """Turn `--epochs` into steps.

    Raises:
        UserError: for what has no fixed number of steps a pass.
    """
    if args.epochs is None or stream is None:
        return
    if stream.unit == "tokens" or stream.batch_cost is not None:
        raise UserError(
            f"`--epochs {args.epochs:g}` is for samples that come one by one; texts are joined to rows. Pass "
            "`--max_tokens` or `--max_steps`."
        )
    samples, args.max_steps = steps_of_passes(args, stream.source.num_rows, len(stream.exclude))
    logger.info("%g passes over %s samples: %s steps.", args.epochs, f"{samples:,}", f"{args.max_steps:,}")


def steps_of_passes(args: SSLTrainingArguments, num_samples: int, num_held_out: int) -> tuple[int, int]:
    """The samples of a pass, and the steps that `--epochs` are."""
    samples = max(num_samples - num_held_out, 1)
    return samples, max(math.ceil(args.epochs * samples / args.global_batch_size), 1)


def is_longer(args: SSLTrainingArguments, checkpoint: Path) -> bool:
    """Whether the run that wrote a checkpoint was shorter; its warm-up, a number of steps, stays what it was.

    So a rate that is constant after its warm-up, and one that is constant until its decay, are what they would have
    been if the run had been that long from the beginning. Schedules that follow the length are stretched to the new
    one. Of a budget of time the warm-up is a share.
    """
    manifest = checkpoints.read_manifest(checkpoint)
    then = manifest["settings"]
    if args.budget_minutes is not None:
        return then["budget_minutes"] < args.budget_minutes
    share = then["warmup_steps"]
    steps = int(share) if share >= 1 else math.ceil(then["max_steps"] * share)
    args.kept_warmup_steps = manifest.get("warmup_steps", steps)
    return then["max_steps"] < args.max_steps


def take_new_rates(scheduler: Any, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Set the rates of an optimizer to those of its schedule now; returns the largest then and now.

    What was loaded has the rates that the schedule of the shorter run gave to its next step.
    """
    then = _largest_rate(optimizer)
    curves = getattr(scheduler, "lr_lambdas", ())  # none of those that follow a metric
    for group, base, curve in zip(optimizer.param_groups, scheduler.base_lrs if curves else (), curves, strict=False):
        group["lr"] = base * curve(scheduler.last_epoch)
    return then, _largest_rate(optimizer)


def _largest_rate(optimizer: torch.optim.Optimizer) -> float:
    return max(group["lr"] for group in optimizer.param_groups if not group.get("constant_rate"))


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
