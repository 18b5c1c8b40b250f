"""The terms of a loss between two entries of the log."""

from collections.abc import Iterable

import torch
import torch.distributed as dist


class LossTerms:
    """Sums of the terms of a loss. They stay on the device, so that no step waits for it."""

    def __init__(self, names: Iterable[str]):
        self.names = tuple(names)  # in the same order in all processes
        self.sums: dict[str, torch.Tensor] = {}
        self.since = 0

    def add(self, terms: dict[str, torch.Tensor], scale: float, step: int) -> None:
        """Add those of a forward pass, after `step` optimizer steps, `scale` times: as the whole loss is scaled."""
        if not self.sums:
            self.since = step
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + scale * term.detach().float()

    def take(self, step: int, world_size: int) -> dict[str, float]:
        """Each term as its mean over the steps since the last call and over all processes, as `loss_<name>`."""
        if not self.sums:
            return {}
        nothing = torch.zeros_like(next(iter(self.sums.values())))  # a term that no batch of this process had
        means = torch.stack([self.sums.get(name, nothing) for name in self.names]) / (step - self.since)
        if world_size > 1:
            dist.all_reduce(means)
            means /= world_size
        self.sums = {}
        return {f"loss_{name}": mean for name, mean in zip(self.names, means.tolist(), strict=True)}
