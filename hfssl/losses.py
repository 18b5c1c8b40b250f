"""Losses of self-supervised learning as pure functions of tensors: no state, no schedule, no communication.

What a loss needs of other processes (negatives) it is given. Softmaxes, norms and squares are made in float32, also
under autocast.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F


def nt_xent_loss(
    z1: torch.Tensor,
    z2: torch.Tensor,
    temperature: float,
    all_z1: torch.Tensor | None = None,
    all_z2: torch.Tensor | None = None,
    first: int = 0,
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

    Returns:
        `torch.Tensor` of shape `()`: mean over the anchors. log(2N - 1) is chance; how near to 0 it can come depends
        on the temperature.

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
        num_all = len(candidates) // 2
        logits = (anchors / temperature) @ candidates.T
        view1 = torch.arange(first, first + len(z1), device=z1.device)
        view2 = view1 + num_all
        logits.scatter_(1, torch.cat([view1, view2])[:, None], float("-inf"))  # no anchor is its own candidate
        return F.cross_entropy(logits, torch.cat([view2, view1]))


def mae_loss(prediction: torch.Tensor, target: torch.Tensor, bool_masked_pos: torch.Tensor) -> torch.Tensor:
    """Reconstruction loss of [MAE](https://huggingface.co/papers/2111.06377), Section 3: on masked patches only.

    Args:
        prediction, target (`torch.Tensor` of shape `(batch_size, num_patches, dim)`):
            Pixels of each patch as predicted, and as they are (or normalised within each patch).
        bool_masked_pos (`torch.Tensor` of shape `(batch_size, num_patches)`):
            1 or `True` = masked, which counts; 0 = visible.

    Returns:
        `torch.Tensor` of shape `()`: mean over the masked patches of the patch's mean squared error. With normalised
        targets, 1 is what predicting zeros gives.

    Example:

    ```python
    >>> prediction, target = torch.zeros(1, 2, 3), torch.tensor([[[1.0, 1.0, 1.0], [9.0, 9.0, 9.0]]])
    >>> mae_loss(prediction, target, torch.tensor([[1, 0]])).item()
    1.0
    ```
    """
    with full_precision(prediction):
        errors = (at_least_float32(prediction) - at_least_float32(target)).square().mean(-1)
        masked = bool_masked_pos.to(errors.dtype)
        return (errors * masked).sum() / masked.sum()


def byol_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Regression loss of [BYOL](https://huggingface.co/papers/2006.07733), equation 2, between each prediction and the
    *other* view's target.

    Args:
        predictions (`torch.Tensor` of shape `(batch_size, 2, dim)`):
            Predictions of the student from each view.
        targets (`torch.Tensor` of shape `(batch_size, 2, dim)`):
            Projections of the teacher, without gradient.

    Returns:
        `torch.Tensor` of shape `()`: mean of `2 - 2 * cosine similarity` over the batch and both views. 0 is perfect,
        2 is orthogonal.

    Example:

    ```python
    >>> views = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> byol_loss(views, views.flip(1)).item(), byol_loss(views, views).item()
    (0.0, 2.0)
    ```
    """
    with full_precision(predictions):
        p, t = (F.normalize(at_least_float32(x), dim=-1) for x in (predictions, targets.flip(1)))
        return 2.0 - 2.0 * (p * t).sum(-1).mean()


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
            loss = loss + F.cross_entropy((queries / temperature) @ candidates.T, positives)
        return 2.0 * temperature * loss


def dino_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    center: torch.Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> torch.Tensor:
    """Self-distillation loss of [DINO](https://huggingface.co/papers/2104.14294), equation 3 and algorithm 1.

    Args:
        student_logits (`torch.Tensor` of shape `(num_student_views, batch_size, num_prototypes)`):
            Of all views, those that the teacher sees first and in the same order.
        teacher_logits (`torch.Tensor` of shape `(num_teacher_views, batch_size, num_prototypes)`):
            Without gradient.
        center (`torch.Tensor` of shape `(num_prototypes,)`):
            Running mean of the teacher's logits.
        student_temperature, teacher_temperature (`float`):
            Divisors of the logits. The teacher's is the smaller one: its targets are sharper.

    Returns:
        `torch.Tensor` of shape `()`: the cross-entropy between teacher and student, mean over the batch and over all
        pairs of different views. log(num_prototypes) is that of a uniform student.

    Example:

    ```python
    >>> dino_loss(torch.zeros(2, 3, 4), torch.randn(2, 3, 4), torch.zeros(4), 0.1, 0.04).item()  # log(4)
    1.3862943649291992
    ```
    """
    with full_precision(student_logits):
        targets = F.softmax((at_least_float32(teacher_logits) - center) / teacher_temperature, dim=-1)
    return cross_view_entropy(student_logits, targets, student_temperature)


def sinkhorn_targets(
    teacher_logits: torch.Tensor,
    temperature: float,
    iterations: int = 3,
    all_reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Targets of which each prototype gets the same share, instead of a centre: Sinkhorn-Knopp, as in
    [SwAV](https://huggingface.co/papers/2006.09882) and [DINOv2](https://huggingface.co/papers/2304.07193).

    exp(logits / temperature) is scaled so that all prototypes have the same sum over the samples, then so that each
    sample has the sum 1, `iterations` times over. Scales of prototypes are kept as logarithms and those of samples
    are softmaxes, so that there are targets at any temperature.

    Args:
        teacher_logits (`torch.Tensor` of shape `(..., num_prototypes)`):
            Of all samples and views together, without gradient; cosine similarities, which are at most 1.
        temperature (`float`):
            Divisor of the logits, above 0.
        iterations (`int`, *optional*, defaults to `3`):
            More come nearer to equal shares.
        all_reduce (`Callable`, *optional*):
            Sum of a tensor over processes, where the samples of several are to share the prototypes.

    Returns:
        `torch.Tensor` of the shape of `teacher_logits`: distributions over the prototypes.

    Example:

    ```python
    >>> logits = torch.tensor([[0.9, 0.1], [0.8, 0.1]])  # both samples prefer the first prototype
    >>> sinkhorn_targets(logits, temperature=0.1).argmax(-1).tolist()  # the one that does so less gets the second
    [0, 1]
    ```
    """
    with full_precision(teacher_logits):
        # none is above 1, and what all are scaled by does not matter
        logits = (at_least_float32(teacher_logits) - 1.0) / temperature
        shares, log_scales = logits.exp(), 0.0
        dims = tuple(range(shares.ndim - 1))
        smallest = torch.finfo(shares.dtype).tiny
        for _ in range(iterations):
            of_prototype = shares.sum(dims)
            if all_reduce is not None:
                of_prototype = all_reduce(of_prototype)
            log_scales = log_scales - of_prototype.clamp(min=smallest).log()
            shares = F.softmax(logits + log_scales, dim=-1)
        return shares


def cross_view_entropy(student_logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy of a student's softmax with targets made of other views, however these were made.

    Args:
        student_logits (`torch.Tensor` of shape `(num_student_views, batch_size, num_prototypes)`):
            Of all views, those that the teacher sees first and in the same order.
        targets (`torch.Tensor` of shape `(num_teacher_views, batch_size, num_prototypes)`):
            Distributions, without gradient.
        temperature (`float`):
            Divisor of the logits.

    Returns:
        `torch.Tensor` of shape `()`: mean over the batch and over all pairs of different views.
    """
    num_targets, num_pairs, loss = len(targets), 0, 0.0
    with full_precision(student_logits):
        everything = targets.sum(0)
        # view by view: all of them in float32 at once would be the largest tensor of the step
        for view, logits in enumerate(student_logits):
            others = everything
            if view < num_targets:
                others = targets[:view].sum(0) + targets[view + 1 :].sum(0)
            num_pairs += num_targets - (view < num_targets)
            # the mean over pairs of one view is a cross-entropy with the sum of its targets
            loss = loss + F.cross_entropy(at_least_float32(logits) / temperature, others)
        return loss / num_pairs


def full_precision(tensor: torch.Tensor) -> torch.autocast:
    """A context without autocast: half precision has 3 digits, and a temperature of 0.1 makes them 2."""
    return torch.autocast(tensor.device.type, enabled=False)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
