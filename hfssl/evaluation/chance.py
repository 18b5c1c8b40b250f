"""Levels of chance: what losses are where outputs say nothing of the inputs."""

from collections.abc import Sequence
from dataclasses import replace

from ..modeling.base import SSLPreTrainedModel
from .evaluator import Evaluator


def chance_levels(
    model: SSLPreTrainedModel, evaluators: Sequence[Evaluator], num_samples: int, prefix: str = "eval"
) -> dict[str, float]:
    """The levels of the losses of a run, as its log names them.

    Args:
        model ([`SSLPreTrainedModel`]):
            The method, which says them in its record.
        evaluators (`Sequence[Evaluator]`):
            Of the run: by the held-out data they know what the levels depend on.
        num_samples (`int`):
            Samples that are compared at once in training.
        prefix (`str`, *optional*, defaults to `"eval"`):
            Of the names of what is held out.

    Returns:
        `dict[str, float]`: `chance_loss` and `chance_loss_<term>` of the losses in training, and with the prefix of
        those on held-out data. Empty for a method whose loss has no such level.
    """
    levels: dict[str, float] = {}
    for evaluator in evaluators:
        context = evaluator.loss_context(model)
        if context is None:
            continue
        in_training = model.method.chance(model.config, replace(context, num_samples=num_samples))
        held_out = dict(model.method.chance(model.config, context))
        if f"loss_{evaluator.loss_term}" in held_out:
            held_out["loss"] = held_out[f"loss_{evaluator.loss_term}"]
        levels |= {f"chance_{name}": level for name, level in in_training.items()}
        levels |= {f"{prefix}_chance_{name}": level for name, level in held_out.items()}
    return levels
