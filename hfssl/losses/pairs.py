"""Pairs of two modalities: find what belongs to a sample of one among those of the other."""

import torch
import torch.nn.functional as F

from .chunks import sum_over_chunks
from .precision import at_least_float32, full_precision


def clip_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    all_image_embeds: torch.Tensor | None = None,
    all_text_embeds: torch.Tensor | None = None,
    first: int = 0,
    content: torch.Tensor | None = None,
    all_content: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Symmetric cross-entropy of [CLIP](https://huggingface.co/papers/2103.00020), figure 3.

    Each image has to find its text among all texts, and each text its image among all images, by cosine similarity.

    Args:
        image_embeds, text_embeds (`torch.Tensor` of shape `(batch_size, dim)`):
            Of pairs, each of length 1; of images and texts, or of any two modalities.
        logit_scale (`torch.Tensor` of shape `()` or `float`):
            Factor of the similarities: 1 / temperature, not its logarithm.
        all_image_embeds, all_text_embeds (`torch.Tensor` of shape `(num_all, dim)`, *optional*):
            Those of the pairs of all processes, `image_embeds` and `text_embeds` among them. These stay the anchors:
            the mean over the processes is the loss of the whole batch.
        first (`int`, *optional*, defaults to `0`):
            Row of `all_image_embeds` where `image_embeds` begins.
        content, all_content (`torch.Tensor` of shape `(batch_size, n)` and `(num_all, n)`, *optional*):
            Numbers that say what the sides of a pair are: pairs with one of them in common, such as two images with
            the same text, are no negatives of each other.
        chunk_size (`int`, *optional*):
            Anchors that are compared at once. Memory is that of `num_all * chunk_size` similarities; those of more
            anchors are computed a second time for the gradient. Left out, about a million of them.

    Returns:
        `torch.Tensor` of shape `()`: mean over both directions. log(num_all) is chance.

    Example:

    ```python
    >>> pairs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> round(clip_loss(pairs, pairs, logit_scale=1.0).item(), 6)  # log(1 + exp(-1))
    0.313262
    ```
    """
    with full_precision(image_embeds):
        images, texts = at_least_float32(image_embeds), at_least_float32(text_embeds)
        all_images = images if all_image_embeds is None else at_least_float32(all_image_embeds)
        all_texts = texts if all_text_embeds is None else at_least_float32(all_text_embeds)
        scale = torch.as_tensor(logit_scale, dtype=images.dtype, device=images.device)
        all_content = content if all_content is None else all_content
        own, loss = torch.arange(first, first + len(images), device=images.device), 0.0
        size = {"num_candidates": len(all_images), "chunk_size": chunk_size}
        for anchors, candidates in ((images, all_texts), (texts, all_images)):
            rows, others = (own, anchors, content), (candidates, all_content, scale)
            loss = loss + sum_over_chunks(_entropy_of_chunk, rows, *others, **size)
        return loss / (2 * len(images))


def siglip_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    logit_bias: torch.Tensor | float,
    all_text_embeds: torch.Tensor | None = None,
    first: int = 0,
    content: torch.Tensor | None = None,
    all_content: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """Sigmoid loss of [SigLIP](https://huggingface.co/papers/2303.15343), algorithm 1.

    Of each image and each text it is to be told whether they belong together, by cosine similarity.

    Args:
        image_embeds, text_embeds (`torch.Tensor` of shape `(batch_size, dim)`):
            Of pairs, each of length 1; of images and texts, or of any two modalities.
        logit_scale (`torch.Tensor` of shape `()` or `float`):
            Factor of the similarities, not its logarithm.
        logit_bias (`torch.Tensor` of shape `()` or `float`):
            Added to the scaled similarities: below 0, as most pairs do not belong together.
        all_text_embeds (`torch.Tensor` of shape `(num_all, dim)`, *optional*):
            Those of the pairs of all processes, `text_embeds` among them: the mean over the processes is the loss of
            the whole batch.
        first (`int`, *optional*, defaults to `0`):
            Row of `all_text_embeds` where `text_embeds` begins.
        content, all_content (`torch.Tensor` of shape `(batch_size, n)` and `(num_all, n)`, *optional*):
            See [`clip_loss`].
        chunk_size (`int`, *optional*):
            Images that are compared at once, see [`clip_loss`].

    Returns:
        `torch.Tensor` of shape `()`: sum over all images and texts, divided by the images.

    Example:

    ```python
    >>> pairs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> round(siglip_loss(pairs, pairs, logit_scale=1.0, logit_bias=0.0).item(), 6)  # log(1 + exp(-1)) + log(2)
    1.006409
    ```
    """
    with full_precision(image_embeds):
        images, texts = at_least_float32(image_embeds), at_least_float32(text_embeds)
        all_texts = texts if all_text_embeds is None else at_least_float32(all_text_embeds)
        scale, bias = (torch.as_tensor(x, dtype=images.dtype, device=images.device) for x in (logit_scale, logit_bias))
        rows = torch.arange(first, first + len(images), device=images.device), images, content
        others = all_texts, content if all_content is None else all_content, scale, bias
        size = {"num_candidates": len(all_texts), "chunk_size": chunk_size}
        return sum_over_chunks(_sigmoids_of_chunk, rows, *others, **size) / len(images)


def _entropy_of_chunk(
    own: torch.Tensor,
    anchors: torch.Tensor,
    content: torch.Tensor | None,
    candidates: torch.Tensor,
    all_content: torch.Tensor | None,
    scale: torch.Tensor,
) -> torch.Tensor:
    logits = scale * anchors @ candidates.T
    if content is not None:
        logits = logits.masked_fill(_no_negatives(own, content, all_content), float("-inf"))
    return F.cross_entropy(logits, own, reduction="sum")


def _sigmoids_of_chunk(
    own: torch.Tensor,
    anchors: torch.Tensor,
    content: torch.Tensor | None,
    candidates: torch.Tensor,
    all_content: torch.Tensor | None,
    scale: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    logits = scale * anchors @ candidates.T + bias
    # -log sigmoid(x) = softplus(x) - x, where they belong together
    losses = F.softplus(logits)
    if content is not None:
        losses = losses.masked_fill(_no_negatives(own, content, all_content), 0.0)
    return losses.sum() - logits.gather(1, own[:, None]).sum()


def _no_negatives(own: torch.Tensor, content: torch.Tensor, all_content: torch.Tensor) -> torch.Tensor:
    """Which candidates `(chunk_size, num_all)` have a side in common with an anchor, but for its own."""
    same = (content[:, None] == all_content[None]).any(-1)
    return same.scatter(1, own[:, None], False)
