"""How similar the layers of two networks are, by what they say of the same samples."""

from collections.abc import Iterable, Sequence

import torch


# The unbiased estimator divides by n (n - 3).
FEWEST_SAMPLES = 4


def linear_cka(batches: Iterable[tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]]) -> torch.Tensor:
    """Centred kernel alignment, with a linear kernel, of each layer of a network with each one of another.

    Kornblith et al., 2019 ([1905.00414](https://huggingface.co/papers/1905.00414)), Section 3; estimated as Nguyen et
    al., 2021 ([2010.15327](https://huggingface.co/papers/2010.15327)), Section 3.1, do: from minibatches, whose
    unbiased HSIC (Song et al., 2012) are averaged, so that neither the size of a batch nor wide layers raise
    it. It is the same for features that are rotated, scaled as a whole or shifted.

    Args:
        batches (`Iterable[tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]]`):
            Of each batch the features by each layer of one network and of the other, of shape `(num_samples, dim)`,
            with a `dim` of its own; at least 4 samples.

    Returns:
        `torch.Tensor` of dtype `float64` and shape `(layers of the one, layers of the other)`: 1 is the same but for
        rotation and scale, 0 (or a little below) is no more alike than by chance; not a number where a layer says the
        same of all samples.
    """
    totals = None
    for first, second in batches:
        one, two = ([_kernel(features) for features in layers] for layers in (first, second))
        both = torch.stack([torch.stack([unbiased_hsic(a, b) for b in two]) for a in one])
        own = [torch.stack([unbiased_hsic(a, a) for a in layers]) for layers in (one, two)]
        parts = (both, *own)
        totals = parts if totals is None else tuple(a + b for a, b in zip(totals, parts, strict=True))
    both, of_one, of_two = totals
    lengths = (of_one[:, None] * of_two[None]).clamp(min=0).sqrt()
    return torch.where(lengths > 0, both / lengths, torch.nan)


def unbiased_hsic(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """How much two kernels over the same samples have in common, without the bias of few samples.

    Args:
        first, second (`torch.Tensor` of shape `(num_samples, num_samples)`):
            Symmetric; what stands on their diagonals does not count.
    """
    number = len(first)
    if number < FEWEST_SAMPLES:
        raise ValueError(f"An unbiased estimate needs {FEWEST_SAMPLES} samples in a batch, got {number}.")
    first, second = (kernel - torch.diag(kernel.diagonal()) for kernel in (first, second))
    rows, columns = first.sum(1), second.sum(1)
    found = (first * second).sum()
    found = found + rows.sum() * columns.sum() / ((number - 1) * (number - 2)) - 2 * (rows @ columns) / (number - 2)
    return found / (number * (number - 3))


def _kernel(features: torch.Tensor) -> torch.Tensor:
    # without their mean, which no estimate depends on, far fewer digits are lost
    centred = features.double() - features.double().mean(0)
    return centred @ centred.T
