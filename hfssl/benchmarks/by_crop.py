"""Crops one by one: the step that methods with crops and a teacher do not take, so that what it would cost is seen.

They join crops of one size, send all rows through the head at once and do not compute what stochastic depth drops.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..modeling.branch import VisionBranch
from ..modeling.drop_path import DropPath


def take_crop_by_crop(model: nn.Module, batch_size: int, num_large: int) -> None:
    """Let encoders and heads of a model get each crop by itself, and multiply by 0 what is dropped.

    The loss stays what it is, but for which paths are dropped, and for the statistics of batch norm in a head.

    Args:
        model (`nn.Module`):
            Of branches ([`~hfssl.modeling.branch.VisionBranch`]).
        batch_size, num_large (`int`):
            Images of a batch, and large crops of an image, some of whose patches are masked.
    """
    for branch in [module for module in model.modules() if isinstance(module, VisionBranch)]:
        branch.encode = _each_crop(branch.encode, batch_size)
        branch.forward = _forward(branch, batch_size)
        if hasattr(branch, "project"):
            branch.project = _project(branch, batch_size, num_large)
    for module in model.modules():
        if isinstance(module, DropPath):
            module.skips = False


def _each_crop(encode: Callable, batch_size: int) -> Callable:
    def encode_each(pixel_values: torch.Tensor, **options: Any) -> Any:
        tensors = {name: value.split(batch_size) for name, value in options.items() if torch.is_tensor(value)}
        made = [
            encode(crop, **options | {name: parts[i] for name, parts in tensors.items()})
            for i, crop in enumerate(pixel_values.split(batch_size))
        ]
        return type(made[0])(last_hidden_state=torch.cat([each.last_hidden_state for each in made]))

    return encode_each


def _forward(branch: VisionBranch, batch_size: int) -> Callable:
    def forward(*pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch.projector(crop) for crop in branch.features(*pixel_values).split(batch_size)])

    return forward


def _project(branch: Any, batch_size: int, num_large: int) -> Callable:
    def project(
        features: torch.Tensor, patches: torch.Tensor, is_masked: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head = branch.patch_projector or branch.projector
        of_crops = [branch.projector(crop) for crop in features.split(batch_size)]
        parts = zip(patches.chunk(num_large), is_masked.chunk(num_large), strict=True)
        return torch.cat(of_crops), torch.cat([head(*part) for part in parts])

    return project
