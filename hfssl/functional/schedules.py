"""Schedules that are functions of progress, where progress is not a count of steps."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from ..errors import UserError


# transformers' schedules count steps: here one is a millionth of the run.
_TICKS = 1_000_000
# Options of transformers' schedules that are numbers of steps: here they are shares of the run.
_LENGTHS = ("num_decay_steps", "num_stable_steps", "timescale")


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along half a cosine: slowly, quickly, slowly.

    Example:

    ```python
    >>> [round(cosine(0.0, 1.0, p), 3) for p in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.146, 0.5, 1.0]
    ```
    """
    return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0


def linear(start: float, end: float, progress: float) -> float:
    """From `start` to `end` along a line; beyond a `progress` of 1 it stays at `end`."""
    return start + (end - start) * min(progress, 1.0)


def budget_schedule(progress: float, warmup: float = 0.0, kind: str = "linear", **options: Any) -> float:
    """What to multiply the peak learning rate with when a share `progress` of the budget is used up.

    The curves are those of [`~transformers.get_scheduler`], with the run's share of its time (or of its tokens) in the
    place of its steps.

    Args:
        progress (`float`):
            Share of the budget that is used up; beyond 1 it counts as 1.
        warmup (`float`, *optional*, defaults to 0.0):
            Share of the budget over which the factor rises from 0 to 1.
        kind (`str`, *optional*, defaults to `"linear"`):
            A value of [`~transformers.SchedulerType`]. `constant` has no warm-up, `constant_with_warmup` has.
        options (`dict`, *optional*):
            `lr_scheduler_kwargs` of this kind. What is a number of steps there is a share of the budget here.

    Raises:
        UserError: for schedules that follow a metric instead of time, or lengths that are no shares.

    Example:

    ```python
    >>> [budget_schedule(p, warmup=0.1) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    ```
    """
    kind = str(getattr(kind, "value", kind))
    return float(_curve(kind, warmup, tuple(sorted(options.items())))(min(max(progress, 0.0), 1.0) * _TICKS))


@cache
def _curve(kind: str, warmup: float, options: tuple[tuple[str, Any], ...]) -> Callable[[float], float]:
    # with it comes peft, which methods do not need
    from transformers import SchedulerType, get_scheduler

    if not 0.0 <= warmup < 1.0:
        raise UserError(
            "With a budget of time the warm-up is a share of it, at least 0 and below 1, got "
            f"`--warmup_steps {warmup:g}`."
        )
    shares = dict(options)
    for name in set(shares) & set(_LENGTHS):
        if not 0.0 <= shares[name] <= 1.0:
            raise UserError(f"With a budget of time `{name}` is a share of it, between 0 and 1, got {shares[name]!r}.")
        shares[name] *= _TICKS
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        scheduler = get_scheduler(SchedulerType(kind), optimizer, warmup * _TICKS, _TICKS, shares)
    except (ValueError, TypeError) as error:
        raise UserError(f"`--lr_scheduler_type {kind}` does not work with `--budget_minutes`: {error}.") from None
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        raise UserError(
            f"`--lr_scheduler_type {kind}` follows a metric, not time. With `--budget_minutes` choose e.g. linear, "
            "cosine or constant_with_warmup."
        )
    return scheduler.lr_lambdas[0]
