"""Grouped convolutions in bf16 on a CPU, which oneDNN gets wrong where groups are narrow."""

from functools import partial

import torch
from torch import nn


# Channels of a group from which oneDNN is right (with depthwise ones, of 1 channel, it is, too).
_WIDE_ENOUGH = 16


def keep_narrow_groups_exact(model: nn.Module) -> None:
    """Let grouped convolutions over time with narrow groups run in fp32 where a CPU would autocast them.

    On CPUs with matrix units for bf16 the forward pass of a `Conv1d` with 4 to 12 channels a group has nothing to do
    with the right numbers (torch 2.14.1: relative error 1.0 to 1.2, without a word; 0.003 with 16 and more, in two
    dimensions, and of the gradients). That is the convolution for positions of small encoders of waveforms: 192 wide,
    in 16 groups. Elsewhere, and with weights in bf16, nothing changes.
    """
    for module in model.modules():
        if not isinstance(module, nn.Conv1d) or module.groups == 1:
            continue
        if 1 < module.in_channels // module.groups < _WIDE_ENOUGH:
            module.forward = partial(_exact_on_cpu, module)


def _exact_on_cpu(convolution: nn.Conv1d, hidden: torch.Tensor) -> torch.Tensor:
    if hidden.device.type != "cpu" or convolution.weight.dtype != torch.float32:
        return type(convolution).forward(convolution, hidden)
    with torch.autocast("cpu", enabled=False):
        return type(convolution).forward(convolution, hidden.float())
