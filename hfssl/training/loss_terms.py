"""The terms of a loss, and figures beside it, between two entries of the log."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist


class LossTerms:
    """Sums of the terms of a loss and of the figures of a method. They stay on the device: no step waits for them.

    Args:
        terms (`Iterable[str]`):
            Names of the terms, which are logged as `loss_<name>`.
        figures (`Iterable[str]`, *optional*):
            Names of the figures, which are logged as they are called.
    """

    def __init__(self, terms: Iterable[str], figures: Iterable[str] = ()):
        self.names = (*(f"loss_{name}" for name in terms), *figures)  # in the same order in all processes
        self.sums: dict[str, torch.Tensor] = {}
        self.since = 0

    def add(self, outputs: Any, scale: float, share: float, step: int) -> None:
        """Add those of a forward pass, after `step` optimizer steps.

        Args:
            outputs (`ModelOutput`):
                Of the pass, with `loss_terms` and `figures` where the method has some.
            scale (`float`):
                How often terms are added: as the whole loss is scaled.
            share (`float`):
                How often figures are: the share of the step that the pass is.
            step (`int`):
                Steps that are done.
        """
        terms = getattr(outputs, "loss_terms", None) or {}
        scaled = {f"loss_{name}": scale * term for name, term in terms.items()}
        scaled |= {name: share * figure for name, figure in (getattr(outputs, "figures", None) or {}).items()}
        if not self.sums:
            self.since = step
        for name, value in scaled.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().float()

    def take(self, step: int, world_size: int) -> dict[str, float]:
        """Each as its mean over the steps since the last call and over all processes."""
        if not self.sums:
            return {}
        nothing = torch.zeros_like(next(iter(self.sums.values())))  # a term that no batch of this process had
        means = torch.stack([self.sums.get(name, nothing) for name in self.names]) / (step - self.since)
        if world_size > 1:
            dist.all_reduce(means)
            means /= world_size
        self.sums = {}
        return dict(zip(self.names, means.tolist(), strict=True))
