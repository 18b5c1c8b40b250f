"""Distillation: say of one view what a teacher, or the other branch, says of another."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .precision import at_least_float32, full_precision


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


def simsiam_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Loss of [SimSiam](https://huggingface.co/papers/2011.10566), equation 2, between each prediction and the *other*
    view's projection.

    Args:
        predictions (`torch.Tensor` of shape `(batch_size, 2, dim)`):
            Predictions from each view.
        targets (`torch.Tensor` of shape `(batch_size, 2, dim)`):
            Projections of each view, without gradient: with one they would all become the same.

    Returns:
        `torch.Tensor` of shape `()`: minus the mean cosine similarity over the batch and both views. -1 is perfect, 0
        is orthogonal.

    Example:

    ```python
    >>> views = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> simsiam_loss(views, views.flip(1)).item(), abs(simsiam_loss(views, views).item())
    (-1.0, 0.0)
    ```
    """
    with full_precision(predictions):
        p, z = (F.normalize(at_least_float32(x), dim=-1) for x in (predictions, targets.flip(1)))
        return -(p * z).sum(-1).mean()


def dino_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    center: torch.Tensor,
    student_temperature: float,
    teacher_temperature: float | torch.Tensor,
) -> torch.Tensor:
    """Self-distillation loss of [DINO](https://huggingface.co/papers/2104.14294), equation 3 and algorithm 1.

    Args:
        student_logits (`torch.Tensor` of shape `(num_student_views, batch_size, num_prototypes)`):
            Of all views, those that the teacher sees first and in the same order.
        teacher_logits (`torch.Tensor` of shape `(num_teacher_views, batch_size, num_prototypes)`):
            Without gradient.
        center (`torch.Tensor` of shape `(num_prototypes,)`):
            Running mean of the teacher's logits.
        student_temperature (`float`), teacher_temperature (`float` or `torch.Tensor` of shape `()`):
            Divisors of the logits. The teacher's is the smaller one: its targets are sharper. What changes in the
            course of a run is a tensor where the loss is compiled.

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
    temperature: float | torch.Tensor,
    iterations: int = 3,
    all_reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
    counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """Targets of which each prototype gets the same share, instead of a centre: Sinkhorn-Knopp, as in
    [SwAV](https://huggingface.co/papers/2006.09882) and [DINOv2](https://huggingface.co/papers/2304.07193).

    exp(logits / temperature) is scaled so that all prototypes have the same sum over the samples, then so that each
    sample has the sum 1, `iterations` times over. Scales of prototypes are kept as logarithms and those of samples
    are softmaxes, so that there are targets at any temperature.

    Args:
        teacher_logits (`torch.Tensor` of shape `(..., num_prototypes)`):
            Of all samples and views together, without gradient; cosine similarities, which are at most 1.
        temperature (`float` or `torch.Tensor` of shape `()`):
            Divisor of the logits, above 0.
        iterations (`int`, *optional*, defaults to `3`):
            More come nearer to equal shares.
        all_reduce (`Callable`, *optional*):
            Sum of a tensor over processes, where the samples of several are to share the prototypes.
        counts (`torch.BoolTensor` of shape `(...)`, *optional*):
            Which samples share them; the others, which fill up a batch, take nothing from these. All do when left out.

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
            of_prototype = (shares if counts is None else shares * counts[..., None]).sum(dims)
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
