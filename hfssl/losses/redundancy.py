"""Redundancy: views agree, and the dimensions of embeddings vary and say different things, over the whole batch.

Statistics of the batch are those of all processes if `all_reduce` sums a tensor over them and sends gradients back
([`~hfssl.modeling.distributed.all_reduce_with_grad`]). What is a mean over samples is that of this process.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .precision import at_least_float32, full_precision


AllReduce = Callable[[torch.Tensor], torch.Tensor]


def barlow_twins_loss(
    z1: torch.Tensor, z2: torch.Tensor, redundancy_weight: float, all_reduce: AllReduce | None = None
) -> torch.Tensor:
    """Loss of [Barlow Twins](https://huggingface.co/papers/2103.03230), equation 1: the cross-correlation of the two
    views, dimension by dimension, should be the identity.

    Args:
        z1, z2 (`torch.Tensor` of shape `(batch_size, dim)`):
            Projections of the first and of the second view of each image, not normalised.
        redundancy_weight (`float`):
            Weight of what is off the diagonal (λ).
        all_reduce (`Callable`, *optional*):
            Sum of a tensor over processes, as part of the graph.

    Returns:
        `torch.Tensor` of shape `()`: 0 is perfect, `dim` is that of equal or of unrelated projections.

    Example:

    ```python
    >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    >>> round(barlow_twins_loss(z, z, 0.005).item(), 6), round(barlow_twins_loss(z, z.flip(1), 0.005).item(), 6)
    (0.0, 2.01)
    ```
    """
    terms = barlow_twins_terms(z1, z2, all_reduce)
    return terms["invariance"] + redundancy_weight * terms["redundancy"]


def barlow_twins_terms(
    z1: torch.Tensor, z2: torch.Tensor, all_reduce: AllReduce | None = None
) -> dict[str, torch.Tensor]:
    """The terms of [`barlow_twins_loss`] before they are weighted: `invariance` is the sum of `(1 - c)²` over the
    diagonal of the cross-correlation, `redundancy` that of `c²` off it."""
    with full_precision(z1):
        z1, z2, count = _centred(z1, z2, all_reduce)
        variances = _reduced(torch.stack([z1.square().sum(0), z2.square().sum(0)]), all_reduce) / count
        z1, z2 = (z * (variance + 1e-5).rsqrt() for z, variance in zip((z1, z2), variances, strict=True))
        correlation = _reduced(z1.T @ z2, all_reduce) / count
        diagonal = correlation.diagonal()
        return {"invariance": (1.0 - diagonal).square().sum(), "redundancy": _off_diagonal(correlation)}


def vicreg_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    all_reduce: AllReduce | None = None,
) -> torch.Tensor:
    """Loss of [VICReg](https://huggingface.co/papers/2105.04906), equation 6, its variance term halved as in its code:
    views agree, each dimension has a standard deviation of at least 1, and no two vary together.

    Args:
        z1, z2 (`torch.Tensor` of shape `(batch_size, dim)`):
            Projections of the first and of the second view of each image.
        invariance_weight, variance_weight, covariance_weight (`float`, *optional*, default to 25, 25 and 1):
            Weights of the terms (λ, μ, ν).
        all_reduce (`Callable`, *optional*):
            Sum of a tensor over processes, as part of the graph.

    Returns:
        `torch.Tensor` of shape `()`: 0 is perfect, `0.99 * variance_weight` that of equal projections.

    Example:

    ```python
    >>> round(vicreg_loss(torch.ones(4, 2), torch.ones(4, 2)).item(), 4)  # 25 (1 - √1e-4)
    24.75
    ```
    """
    terms = vicreg_terms(z1, z2, all_reduce)
    weights = {"invariance": invariance_weight, "variance": variance_weight, "covariance": covariance_weight}
    return sum(weights[name] * term for name, term in terms.items())


def vicreg_terms(z1: torch.Tensor, z2: torch.Tensor, all_reduce: AllReduce | None = None) -> dict[str, torch.Tensor]:
    """The terms of [`vicreg_loss`] before they are weighted: `invariance` is the mean squared distance of the views,
    `variance` the mean of what standard deviations lack, `covariance` the squared covariances over the dimensions."""
    with full_precision(z1):
        z1, z2 = at_least_float32(z1), at_least_float32(z2)
        invariance = F.mse_loss(z1, z2)
        z1, z2, count = _centred(z1, z2, all_reduce)
        covariances = _reduced(torch.stack([z1.T @ z1, z2.T @ z2]), all_reduce) / (count - 1.0).clamp(min=1.0)
        stds = (covariances.diagonal(dim1=1, dim2=2) + 1e-4).sqrt()
        return {
            "invariance": invariance,
            "variance": F.relu(1.0 - stds).mean(),
            "covariance": sum(map(_off_diagonal, covariances)) / z1.shape[1],
        }


def sigreg_loss(
    embeddings: torch.Tensor, directions: torch.Tensor, all_reduce: AllReduce | None = None
) -> torch.Tensor:
    """Sketched isotropic Gaussian regularisation of [LeJEPA](https://huggingface.co/papers/2511.08544), Section 4: how
    far embeddings are from standard normal numbers, seen along some directions.

    Along each direction it is the statistic of Epps and Pulley: the squared distance of the characteristic function of
    the samples from exp(-t² / 2), weighted by the same, over t from -3 to 3 (by the trapezoidal rule with 17 knots on
    one half, the other being the same), times the number of samples.

    Args:
        embeddings (`torch.Tensor` of shape `(..., batch_size, dim)`):
            Of views that are looked at one by one, where there are more dimensions than two.
        directions (`torch.Tensor` of shape `(num_directions, dim)`):
            Unit vectors.
        all_reduce (`Callable`, *optional*):
            Sum of a tensor over processes, as part of the graph.

    Returns:
        `torch.Tensor` of shape `()`: mean over directions and views. About 1 for normal numbers, and in proportion to
        the number of samples for all others.

    Example:

    ```python
    >>> round(sigreg_loss(torch.zeros(4, 2), torch.eye(2)).item(), 4)  # a point: 4 times 0.402
    1.6082
    ```
    """
    with full_precision(embeddings):
        z = at_least_float32(embeddings)
        x = z @ directions.to(z.dtype).mT  # (..., batch_size, num_directions)
        t = torch.linspace(0.0, 3.0, 17, dtype=x.dtype, device=x.device)
        normal = (-t.square() / 2.0).exp()
        weights = 2.0 * (t[1] - t[0]) * normal
        weights[:: len(t) - 1] /= 2.0
        waves = x[..., None] * t  # (..., batch_size, num_directions, knots)
        sums = torch.stack([waves.cos().sum(-3), waves.sin().sum(-3)])
        count = x.new_full((), x.shape[-2])
        if all_reduce is not None:
            # the sums and how many they are of, in one message
            total = all_reduce(torch.cat([sums.flatten(), count[None]]))
            sums, count = total[:-1].view_as(sums), total[-1].detach()
        real, imaginary = sums / count
        distances = (real - normal).square() + imaginary.square()
        return count * (distances @ weights).mean()


def lejepa_terms(
    projections: torch.Tensor,
    directions: torch.Tensor,
    num_targets: int | None = None,
    all_reduce: AllReduce | None = None,
) -> dict[str, torch.Tensor]:
    """The terms of the loss of [LeJEPA](https://huggingface.co/papers/2511.08544), before they are weighted.

    Args:
        projections (`torch.Tensor` of shape `(num_views, batch_size, dim)`):
            Of all views, the large ones first.
        directions (`torch.Tensor` of shape `(num_directions, dim)`):
            Unit vectors.
        num_targets (`int`, *optional*):
            How many views, from the first, make the mean that all views are to predict. All of them when left out.
        all_reduce (`Callable`, *optional*):
            Sum of a tensor over processes, as part of the graph.

    Returns:
        `dict[str, torch.Tensor]`: `invariance`, the mean squared distance of the views from the mean, and `sigreg`
        ([`sigreg_loss`]).
    """
    with full_precision(projections):
        z = at_least_float32(projections)
        invariance = (z - z[:num_targets].mean(0)).square().mean()
    return {"invariance": invariance, "sigreg": sigreg_loss(projections, directions, all_reduce)}


def _reduced(tensor: torch.Tensor, all_reduce: AllReduce | None) -> torch.Tensor:
    return tensor if all_reduce is None else all_reduce(tensor)


def _centred(
    z1: torch.Tensor, z2: torch.Tensor, all_reduce: AllReduce | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Projections of both views less their means over all samples, and how many these are."""
    z1, z2 = at_least_float32(z1), at_least_float32(z2)
    # the sums and how many they are of, in one message
    total = _reduced(torch.cat([z1.sum(0), z2.sum(0), z1.new_full((1,), len(z1))]), all_reduce)
    count = total[-1].detach()
    mean1, mean2 = (total[:-1] / count).chunk(2)
    return z1 - mean1, z2 - mean2, count


def _off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    """Sum of the squares off the diagonal of a square matrix."""
    return matrix.square().sum() - matrix.diagonal().square().sum()
