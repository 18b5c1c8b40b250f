"""Heads between the features of an encoder and the space of a loss. None of them is exported."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn


def mlp_head(
    input_dim: int,
    hidden_dim: int,
    output_dim: int,
    num_layers: int = 2,
    *,
    bias: bool = False,
    last_norm: Literal["affine", "plain"] | None = None,
) -> nn.Sequential:
    """Projectors and predictors of joint-embedding methods: linear layers with batch norm and ReLU between them.

    | | bias | last_norm |
    |---|---|---|
    | SimCLR | no | affine |
    | BYOL | yes | - |
    | MoCo v3 | no | plain |

    Args:
        input_dim (`int`):
            Size of a feature.
        hidden_dim (`int`):
            Width of the hidden layers.
        output_dim (`int`):
            Size of a projection.
        num_layers (`int`, *optional*, defaults to `2`):
            Number of linear layers, at least 1.
        bias (`bool`, *optional*, defaults to `False`):
            Whether the linear layers have one. A batch norm takes it away again.
        last_norm (`str`, *optional*):
            Batch norm after the last layer: `"affine"`, or `"plain"` without weights.
    """
    layers: list[nn.Module] = []
    for dim in [hidden_dim] * (num_layers - 1):
        layers += [nn.Linear(input_dim, dim, bias=bias), nn.BatchNorm1d(dim), nn.ReLU(inplace=True)]
        input_dim = dim
    layers.append(nn.Linear(input_dim, output_dim, bias=bias))
    if last_norm is not None:
        layers.append(nn.BatchNorm1d(output_dim, affine=last_norm == "affine"))
    return nn.Sequential(*layers)


class DinoHead(nn.Module):
    """Projector of DINO and its prototypes: linear layers with GELU, normalised, against normalised prototypes.

    In the paper the last layer has normalised weights and a gain that stays 1, so only directions count here.

    Args:
        input_dim (`int`):
            Size of a feature.
        hidden_dim (`int`):
            Width of the hidden layers.
        output_dim (`int`):
            Size of a projection (the bottleneck).
        num_prototypes (`int`):
            Number of logits, each the cosine similarity with a prototype.
        num_layers (`int`, *optional*, defaults to `3`):
            Linear layers before the prototypes, at least 1.
        batch_norm (`bool`, *optional*, defaults to `False`):
            Batch norm after each hidden layer.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        num_prototypes: int,
        num_layers: int = 3,
        batch_norm: bool = False,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for dim in [hidden_dim] * (num_layers - 1):
            layers += [nn.Linear(input_dim, dim), *([nn.BatchNorm1d(dim)] if batch_norm else []), nn.GELU()]
            input_dim = dim
        self.layers = nn.Sequential(*layers, nn.Linear(input_dim, output_dim))
        self.prototypes = nn.Linear(output_dim, num_prototypes, bias=False)
        self.trains_prototypes = True

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features `(n, input_dim)` to logits `(n, num_prototypes)` in [-1, 1]."""
        weight = self.prototypes.weight
        if not self.trains_prototypes:
            # a gradient of 0, not none, for which DDP would wait
            weight = weight.detach() + 0.0 * weight
        return F.linear(F.normalize(self.layers(features), dim=-1), F.normalize(weight, dim=-1))
