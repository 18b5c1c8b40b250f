"""Grouped convolutions in bf16: right also where groups are narrow."""

import copy

import pytest
import torch
from torch import nn

from hfssl.modeling.grouped import keep_narrow_groups_exact


@pytest.mark.parametrize("width", [32, 192, 256, 384])
def test_a_convolution_for_positions_is_right_under_autocast(width):
    torch.manual_seed(0)
    convolution = nn.Conv1d(width, width, 32, padding=16, groups=16)
    model, hidden = nn.Sequential(nn.utils.parametrizations.weight_norm(convolution)), torch.randn(2, width, 47)
    expected = model(hidden)
    keep_narrow_groups_exact(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = copy.deepcopy(model)(hidden)
    assert (found.float() - expected).norm() < 0.02 * expected.norm()
    torch.testing.assert_close(model(hidden), expected)
