"""Clustering: say of one view of a sample which cluster another view of it is in."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from .distillation import cross_view_entropy, sinkhorn_targets
from .precision import at_least_float32, full_precision


def swav_codes(
    logits: torch.Tensor,
    epsilon: float,
    iterations: int = 3,
    queue_logits: torch.Tensor | None = None,
    all_reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Codes of [SwAV](https://huggingface.co/papers/2006.09882), equations 3 to 5: which prototypes views belong to.

    Of each view alone, every prototype gets the same share of the samples, see [`sinkhorn_targets`].

    Args:
        logits (`torch.Tensor` of shape `(num_views, batch_size, num_prototypes)`):
            Cosine similarities with the prototypes.
        epsilon (`float`):
            How soft the codes are, above 0: less is harder.
        iterations (`int`, *optional*, defaults to `3`):
            More come nearer to equal shares.
        queue_logits (`torch.Tensor` of shape `(num_views, queue_size, num_prototypes)`, *optional*):
            Of earlier samples, which take their shares of the prototypes beside those of a batch that is too small for
            all. Of several processes each gives some of them.
        all_reduce (`Callable`, *optional*):
            Sum of a tensor over processes, where the samples of several are to share the prototypes.

    Returns:
        `torch.Tensor` of the shape of `logits`: distributions over the prototypes, without gradient.
    """
    logits = logits.detach()
    rows = logits if queue_logits is None else torch.cat([logits, queue_logits.detach()], dim=1)
    codes = [sinkhorn_targets(view, epsilon, iterations, all_reduce) for view in rows]
    return torch.stack(codes)[:, : logits.shape[1]]


def swav_loss(
    logits: torch.Tensor,
    temperature: float,
    epsilon: float,
    iterations: int = 3,
    num_large: int = 2,
    queue_logits: torch.Tensor | None = None,
    all_reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Loss of [SwAV](https://huggingface.co/papers/2006.09882), equation 1 over all crops: predict the code of a large
    crop from every other crop of the image.

    Args:
        logits (`torch.Tensor` of shape `(num_crops, batch_size, num_prototypes)`):
            Cosine similarities with the prototypes, of the large crops first.
        temperature (`float`):
            Divisor of the logits that predict.
        epsilon, iterations, queue_logits, all_reduce:
            See [`swav_codes`].
        num_large (`int`, *optional*, defaults to `2`):
            Large crops, of which codes are made.

    Returns:
        `torch.Tensor` of shape `()`: the cross-entropy, mean over the batch and over all pairs of a large crop and
        another one. log(num_prototypes) is that of predictions that say nothing.

    Example:

    ```python
    >>> swav_loss(torch.zeros(4, 3, 5), temperature=0.1, epsilon=0.05).item()  # log(5)
    1.6094379425048828
    ```
    """
    codes = swav_codes(logits[:num_large], epsilon, iterations, queue_logits, all_reduce)
    return cross_view_entropy(logits, codes, temperature)


def deepcluster_loss(
    logits: Sequence[torch.Tensor], targets: torch.Tensor, temperature: float, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Loss of DeepCluster ([v1](https://huggingface.co/papers/1807.05520), equation 1;
    [v2](https://huggingface.co/papers/2006.09882), appendix D): say of every crop which clusters its image is in.

    Args:
        logits (`Sequence[torch.Tensor]` of shape `(num_crops, batch_size, num_clusters)`):
            Of several clusterings of the same images.
        targets (`torch.LongTensor` of shape `(batch_size, num_clusterings)`):
            The clusters; -100 of an image that is in none, which is left out.
        temperature (`float`):
            Divisor of the logits.
        weights (`torch.Tensor` of shape `(batch_size, num_clusterings)`, *optional*):
            How much each image counts. Left out, all alike.

    Returns:
        `torch.Tensor` of shape `()`: the cross-entropy, mean over clusterings, crops and the images that are in a
        cluster; 0 where none is. log(num_clusters) is that of crops that say nothing.

    Example:

    ```python
    >>> deepcluster_loss([torch.zeros(2, 3, 5)], torch.tensor([[0], [4], [-100]]), temperature=0.1).item()  # log(5)
    1.6094379425048828
    ```
    """
    if weights is None:
        weights = torch.ones_like(targets, dtype=torch.float32)
    weights = weights * (targets >= 0)
    total = 0.0
    with full_precision(logits[0]):
        for scores, clusters, counts in zip(logits, targets.unbind(1), weights.unbind(1), strict=True):
            num_crops = len(scores)
            scores = at_least_float32(scores).flatten(0, 1) / temperature
            losses = F.cross_entropy(scores, clusters.repeat(num_crops), reduction="none")
            total = total + (losses * counts.repeat(num_crops)).sum() / num_crops
        return total / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)
