"""Where a network looked: how attention flows through its layers, and which places of a map a score rests on."""

from collections.abc import Sequence

import torch


def attention_rollout(attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    """How much of each token that goes into a transformer is in each one that comes out, by attention alone.

    Abnar and Zuidema, 2020 ([2005.00928](https://huggingface.co/papers/2005.00928)), Section 3: the mean over the
    heads of a layer, half of it and half the token itself (the residual connection), and the product of all layers.

    Args:
        attentions (`Sequence[torch.Tensor]`):
            Of each layer, the first one first, of shape `(batch_size, num_heads, num_tokens, num_tokens)`; rows are
            the tokens that attend, and sum up to 1.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_tokens, num_tokens)`; rows are those that come out.
    """
    first = attentions[0]
    same = torch.eye(first.shape[-1], dtype=first.dtype, device=first.device)
    mixed = same.expand(len(first), -1, -1)
    for attention in attentions:
        step = (attention.mean(1) + same) / 2
        mixed = step / step.sum(-1, keepdim=True) @ mixed
    return mixed


def grad_cam(maps: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Which places of a convolutional map speak for a score.

    Selvaraju et al., 2017 ([1610.02391](https://huggingface.co/papers/1610.02391)), eq. 1 and 2: the channels, each
    weighted by the mean of its gradient, and of their sum what is above 0.

    Args:
        maps, gradients (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            The map, and the gradient of the score by it.

    Returns:
        `torch.Tensor` of shape `(batch_size, height, width)`.
    """
    weights = gradients.mean((2, 3), keepdim=True)
    return (weights * maps).sum(1).relu()
