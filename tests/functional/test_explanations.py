"""Maps of what a network looked at, against what can be counted by hand."""

import pytest
import torch

from hfssl.functional.explanations import attention_rollout, grad_cam


def test_rollout_is_the_sum_over_all_ways_through_the_layers():
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64).softmax(-1) for _ in range(3)]
    found = attention_rollout(layers)
    # each way is a token in each layer; a step has half of the attention (mean of the heads), and half stays
    steps = [0.5 * layer.mean(1) + 0.5 * torch.eye(4, dtype=torch.float64) for layer in layers]
    for row in range(2):
        for out in range(4):
            for into in range(4):
                ways = sum(
                    steps[2][row, out, a] * steps[1][row, a, b] * steps[0][row, b, into]
                    for a in range(4)
                    for b in range(4)
                )
                torch.testing.assert_close(found[row, out, into], ways)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 4, dtype=torch.float64))


def test_rollout_follows_one_way():
    # token 0 attends to token 1 in the second layer, which attended to token 2 in the first
    first, second = torch.eye(3), torch.eye(3)
    first[1], second[0] = torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 1, 0])
    found = attention_rollout([first[None, None], second[None, None]])[0]
    assert found[0].tolist() == pytest.approx([0.5, 0.25, 0.25])
    assert found[2].tolist() == [0, 0, 1]


def test_grad_cam_of_a_mean_is_the_map_weighted_by_the_layer_after_it():
    maps = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weights = torch.randn(5, generator=torch.Generator().manual_seed(2))
    score = (maps.mean((2, 3)) @ weights).sum()
    (gradients,) = torch.autograd.grad(score, maps)
    by_hand = torch.einsum("c,nchw->nhw", weights, maps.detach()).clamp(min=0) / 12
    torch.testing.assert_close(grad_cam(maps.detach(), gradients), by_hand)
    assert (by_hand > 0).any() and (by_hand == 0).any()
