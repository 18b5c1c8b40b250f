"""The precision in which losses are computed."""

import torch


def full_precision(tensor: torch.Tensor) -> torch.autocast:
    """A context without autocast: half precision has 3 digits, and a temperature of 0.1 makes them 2."""
    return torch.autocast(tensor.device.type, enabled=False)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """In float32, or in float64 where it is that: in half precision sums over a batch lose what is small."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
