"""Losses of patches beside those of whole images, and the spread of features: what DINOv2 and DINOv3 add to DINO."""

import torch
import torch.nn.functional as F

from .precision import at_least_float32, full_precision


def ibot_loss(
    student_logits: torch.Tensor,
    teacher_probabilities: torch.Tensor,
    image_index: torch.LongTensor,
    num_images: int,
    temperature: float,
) -> torch.Tensor:
    """Loss of masked patches of [iBOT](https://huggingface.co/papers/2111.07832), equation 2, weighted as in
    [DINOv2](https://huggingface.co/papers/2304.07193): the student says of a patch that it does not see what the
    teacher says of it.

    Args:
        student_logits (`torch.Tensor` of shape `(num_patches, num_prototypes)`):
            Of masked patches of several images.
        teacher_probabilities (`torch.Tensor` of shape `(num_patches, num_prototypes)`):
            Distributions of the same patches, which the teacher saw: centred and sharpened, without gradient.
        image_index (`torch.LongTensor` of shape `(num_patches,)`):
            The image of each patch, from 0. `num_images` stands for rows that do not count, which fill up a batch.
        num_images (`int`):
            Images of the batch, with masked patches or without.
        temperature (`float`):
            Divisor of the student's logits.

    Returns:
        `torch.Tensor` of shape `()`: the cross-entropy, mean over the masked patches of each image, and over all
        images, of which those without masked patches have 0. log(num_prototypes) times the share of images with
        masked patches is that of a uniform student.

    Example:

    ```python
    >>> uniform, sharp = torch.zeros(3, 4), torch.eye(4)[:3]
    >>> ibot_loss(uniform, sharp, torch.tensor([0, 0, 1]), num_images=2, temperature=0.1).item()  # log(4)
    1.3862943649291992
    ```
    """
    with full_precision(student_logits):
        of_patches = F.cross_entropy(
            at_least_float32(student_logits) / temperature, teacher_probabilities, reduction="none"
        )
        # one more place, for what does not count
        counts = of_patches.new_zeros(num_images + 1).index_add(0, image_index, torch.ones_like(of_patches))
        weights = (1.0 / counts.clamp(min=1.0))[image_index].masked_fill(image_index == num_images, 0.0)
        return (weights * of_patches).sum() / num_images


def koleo_loss(features: torch.Tensor) -> torch.Tensor:
    """Spread of features by the entropy estimator of Kozachenko and Leonenko
    ([Sablayrolles et al., 2018](https://huggingface.co/papers/1806.03198)): each moves away from its nearest other.

    Args:
        features (`torch.Tensor` of shape `(n, dim)`):
            Of at least 2 images; their lengths do not matter.

    Returns:
        `torch.Tensor` of shape `()`: minus the mean logarithm of the distance of each feature of length 1 from the one
        that is nearest to it among the others.

    Example:

    ```python
    >>> round(koleo_loss(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).item(), 6)  # -log(√2)
    -0.346574
    ```
    """
    if len(features) < 2:
        raise ValueError(f"A nearest neighbour needs at least 2 features, got {len(features)}.")
    with full_precision(features):
        x = F.normalize(at_least_float32(features), dim=-1)
        with torch.no_grad():
            nearest = (x @ x.T).fill_diagonal_(-2.0).argmax(1)
        return -((x - x[nearest]).norm(dim=-1) + 1e-8).log().mean()


def gram_loss(student_patches: torch.Tensor, teacher_patches: torch.Tensor) -> torch.Tensor:
    """Gram anchoring of [DINOv3](https://huggingface.co/papers/2508.10104), Section 4: the patches of an image are as
    similar to each other as a teacher finds them, whatever they are.

    Args:
        student_patches (`torch.Tensor` of shape `(batch_size, num_patches, dim)`):
            Features of the patches of each image; their lengths do not matter.
        teacher_patches (`torch.Tensor` of shape `(batch_size, num_patches, teacher_dim)`):
            Of the same patches, without gradient.

    Returns:
        `torch.Tensor` of shape `()`: mean squared difference of the cosine similarities of all pairs of patches of one
        image, mean over the images.

    Example:

    ```python
    >>> alike, apart = torch.ones(1, 2, 2), torch.eye(2)[None]
    >>> gram_loss(alike, apart).item()  # of 4 pairs 2 differ by 1
    0.5
    ```
    """
    with full_precision(student_patches):
        student, teacher = (F.normalize(at_least_float32(x), dim=-1) for x in (student_patches, teacher_patches))
        return F.mse_loss(student @ student.mT, teacher @ teacher.mT)
