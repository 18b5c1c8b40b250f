"""Contrast: find the other view of a sample among those of others."""

import torch
import torch.nn.functional as F

from .chunks import sum_over_chunks
from .precision import at_least_float32, full_precision


def nt_xent_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    temperature: float,
    all_z1: torch.Tensor | None = None,
    all_z2: torch.Tensor | None = None,
    first: int = 0,
    decoupled: bool = False,
) -> torch.Tensor:
    """Normalised temperature-scaled cross-entropy of [SimCLR](https://huggingface.co/papers/2002.05709), equation 1.

    Each of the 2N projections is an anchor: it has to find the other view of its image among the 2N - 1 others, by
    cosine similarity.

    Args:
        z1, z2 (`torch.Tensor` of shape `(batch_size, dim)`):
            Projections of the first and of the second view of each image, not normalised.
        temperature (`float`):
            Divisor of the similarities.
        all_z1, all_z2 (`torch.Tensor` of shape `(num_all, dim)`, *optional*):
            Projections of the images of all processes, `z1` and `z2` among them. The anchors stay `z1` and `z2`: the
            mean over the processes is the loss of the whole batch.
        first (`int`, *optional*, defaults to `0`):
            Row of `all_z1` where `z1` begins.
        decoupled (`bool`, *optional*, defaults to `False`):
            Leave the other view of the image out of the denominator, as in [decoupled contrastive
            learning](https://huggingface.co/papers/2110.06848), equation 6: a positive that is found easily does not
            take away from the gradient of the negatives, which small batches suffer from.

    Returns:
        `torch.Tensor` of shape `()`: mean over the anchors. log(2N - 1) is chance; how near to 0 it can come depends
        on the temperature. Decoupled, log(2N - 2) is chance, and there is no lower bound but about -2 / temperature.

    Example:

    ```python
    >>> z1, z2 = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    >>> round(nt_xent_loss(z1, z2, temperature=0.1).item(), 6)  # log(1 + 2 exp(-10))
    9.1e-05
    ```
    """
    with full_precision(z1):
        anchors = F.normalize(at_least_float32(torch.cat([z1, z2])), dim=-1)  # (2 * batch_size, dim)
        candidates = anchors  # (2 * num_all, dim)
        if all_z1 is not None:
            candidates = F.normalize(at_least_float32(torch.cat([all_z1, all_z2])), dim=-1)
        view1 = torch.arange(first, first + len(z1), device=z1.device)
        view2 = view1 + len(candidates) // 2
        rows = torch.cat([view1, view2]), torch.cat([view2, view1]), anchors / temperature
        total = sum_over_chunks(_nt_xent_of_chunk, rows, candidates, decoupled, num_candidates=len(candidates))
        return total / len(anchors)


def _nt_xent_of_chunk(
    own: torch.Tensor, positives: torch.Tensor, anchors: torch.Tensor, candidates: torch.Tensor, decoupled: bool
) -> torch.Tensor:
    logits = anchors @ candidates.T
    logits.scatter_(1, own[:, None], float("-inf"))  # no anchor is its own candidate
    if not decoupled:
        return F.cross_entropy(logits, positives, reduction="sum")
    agreement = logits.gather(1, positives[:, None])[:, 0]
    if len(candidates) == 2:  # nothing is left of the denominator
        return -agreement.sum()
    return (logits.scatter(1, positives[:, None], float("-inf")).logsumexp(1) - agreement).sum()


def _mean_entropy(anchors: torch.Tensor, candidates: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """Of each anchor among the candidates, of which `positives` says the right one."""
    total = sum_over_chunks(_entropy_of_chunk, (anchors, positives), candidates, num_candidates=len(candidates))
    return total / len(anchors)


def _entropy_of_chunk(anchors: torch.Tensor, positives: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(anchors @ candidates.T, positives, reduction="sum")


def nnclr_loss(
    neighbours1: torch.Tensor,
    neighbours2: torch.Tensor,
    p1: torch.Tensor,
    p2: torch.Tensor,
    temperature: float,
    first: int = 0,
) -> torch.Tensor:
    """Contrastive loss of [NNCLR](https://huggingface.co/papers/2104.14548), equation 3 in both directions.

    The nearest neighbour of a view, an embedding of an earlier image, has to find the prediction from the other view
    among those of all images, by cosine similarity.

    Args:
        neighbours1, neighbours2 (`torch.Tensor` of shape `(batch_size, dim)`):
            Nearest neighbours of the first and of the second view of each image, without gradient; see
            [`nearest_neighbours`].
        p1, p2 (`torch.Tensor` of shape `(num_all, dim)`):
            Predictions from each view, not normalised; of the same images, or of those of all processes.
        temperature (`float`):
            Divisor of the similarities.
        first (`int`, *optional*, defaults to `0`):
            Row of `p1` and `p2` where the images of `neighbours1` begin.

    Returns:
        `torch.Tensor` of shape `()`: mean over both directions. log(num_all) is chance.

    Example:

    ```python
    >>> views = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> round(nnclr_loss(views, views, views, views, temperature=1.0).item(), 6)  # log(1 + exp(-1))
    0.313262
    ```
    """
    with full_precision(p1):
        own = torch.arange(first, first + len(neighbours1), device=p1.device)
        loss = 0.0
        for neighbours, predictions in ((neighbours1, p2), (neighbours2, p1)):
            n, p = (F.normalize(at_least_float32(x), dim=-1) for x in (neighbours, predictions))
            loss = loss + _mean_entropy(n / temperature, p, own)
        return loss / 2.0


@torch.no_grad()
def nearest_neighbours(embeddings: torch.Tensor, queue: torch.Tensor) -> torch.Tensor:
    """The rows of `queue` `(queue_size, dim)` that are nearest to `embeddings` `(n, dim)` by cosine similarity."""
    with full_precision(embeddings):
        z, candidates = (F.normalize(at_least_float32(x), dim=-1) for x in (embeddings, queue))
        return candidates[(z @ candidates.T).argmax(1)]


def moco_v3_loss(
    q1: torch.Tensor,
    q2: torch.Tensor,
    k1: torch.Tensor,
    k2: torch.Tensor,
    temperature: float,
    first: int = 0,
    queue: torch.Tensor | None = None,
) -> torch.Tensor:
    """Contrastive loss of [MoCo v3](https://huggingface.co/papers/2104.02057), algorithm 1.

    Each query has to find the key of the other view of its image among the keys of all images, by cosine similarity.

    Args:
        q1, q2 (`torch.Tensor` of shape `(batch_size, dim)`):
            Predictions of the student from the first and from the second view, not normalised.
        k1, k2 (`torch.Tensor` of shape `(num_all, dim)`):
            Projections of the teacher, not normalised and without gradient; of the same images, or of those of all
            processes.
        temperature (`float`):
            Divisor of the similarities.
        first (`int`, *optional*, defaults to `0`):
            Row of `k1` and `k2` where the images of `q1` begin.
        queue (`torch.Tensor` of shape `(queue_size, dim)`, *optional*):
            Keys of earlier images: more negatives.

    Returns:
        `torch.Tensor` of shape `()`: the sum of both directions' means over the batch, times 2 * temperature.

    Example:

    ```python
    >>> keys = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> round(moco_v3_loss(keys, keys, keys, keys, temperature=1.0).item(), 6)  # 4 log(1 + exp(-1))
    1.253047
    ```
    """
    with full_precision(q1):
        positives = torch.arange(first, first + len(q1), device=q1.device)
        loss = 0.0
        for queries, keys in ((q1, k2), (q2, k1)):
            candidates = at_least_float32(keys)
            if queue is not None:
                candidates = torch.cat([candidates, at_least_float32(queue)])
            queries, candidates = (F.normalize(x, dim=-1) for x in (at_least_float32(queries), candidates))
            loss = loss + _mean_entropy(queries / temperature, candidates, positives)
        return 2.0 * temperature * loss
