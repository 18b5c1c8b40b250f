"""Heads between the features of an encoder and the space of a loss. None of them is exported."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from ..losses import at_least_float32, full_precision
from .distributed import GlobalBatchNorm
from .progress import not_trained


class MlpHead(nn.Sequential):
    """Projectors and predictors of joint-embedding methods: linear layers with batch norm and ReLU between them.

    | | bias | last_norm |
    |---|---|---|
    | SimCLR | no | affine |
    | BYOL, predictor of SimSiam | yes | - |
    | projector of SimSiam | no | plain |
    | MoCo v3, and BYOL around a Vision Transformer | no | plain |

    Weights are drawn as torch draws those of linear layers, as in MoCo v3's code; biases begin at 0. The 0.02 that
    transformers has for all is half as wide for 192 inputs, twice as wide for 4096.

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

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        num_layers: int = 2,
        *,
        bias: bool = False,
        last_norm: Literal["affine", "plain"] | None = None,
    ):
        layers: list[nn.Module] = []
        for dim in [hidden_dim] * (num_layers - 1):
            layers += [nn.Linear(input_dim, dim, bias=bias), nn.BatchNorm1d(dim), nn.ReLU(inplace=True)]
            input_dim = dim
        layers.append(nn.Linear(input_dim, output_dim, bias=bias))
        if last_norm is not None:
            layers.append(nn.BatchNorm1d(output_dim, affine=last_norm == "affine"))
        super().__init__(*layers)

    def init_weights(self) -> None:
        """Draw the weights; those that a checkpoint has given stay."""
        for layer in self:
            if isinstance(layer, nn.Linear):
                init.kaiming_uniform_(layer.weight, a=math.sqrt(5))  # within ±1/√input_dim
                if layer.bias is not None:
                    init.zeros_(layer.bias)


class DinoHead(nn.Module):
    """Projector of DINO and its prototypes: linear layers with GELU, normalised, against normalised prototypes.

    In the paper the last layer has normalised weights and a gain that stays 1, so only directions count here.

    Weights are drawn as in the reference code: those of the layers from a normal distribution with a standard
    deviation of 0.02, the prototypes as torch draws linear layers. Their length matters though only the direction
    counts: the longer one is, the less a step of Adam turns it.

    Where nothing has a gradient, logits are made in float32 also under autocast: they become a teacher's targets,
    which are divided by temperatures down to 0.02.

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

    def init_weights(self) -> None:
        """Draw the weights; those that a checkpoint has given stay."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                init.trunc_normal_(layer.weight, std=0.02)
                init.zeros_(layer.bias)
        init.kaiming_uniform_(self.prototypes.weight, a=math.sqrt(5))  # within ±1/√output_dim

    def forward(self, features: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
        """Features `(n, input_dim)`, of images or of patches, to logits `(n, num_prototypes)` in [-1, 1].

        `counts` `(n,)` is `True` for those that batch norm takes its statistics from; all do when left out.
        """
        hidden = features
        for layer in self.layers:
            hidden = layer(hidden, counts) if isinstance(layer, GlobalBatchNorm) else layer(hidden)
        projections = F.normalize(at_least_float32(hidden), dim=-1)
        weight = self.prototypes.weight
        if not self.trains_prototypes:
            weight = not_trained(weight)
        weight = F.normalize(at_least_float32(weight), dim=-1)
        if torch.is_grad_enabled():
            return F.linear(projections, weight)
        with full_precision(projections):
            return F.linear(projections, weight)
