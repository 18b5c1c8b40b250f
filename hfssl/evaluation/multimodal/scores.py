"""Figures of embeddings of two modalities: how well one finds the other, and how well names find their class."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F


# Of R@k, the share of queries of which something that belongs to it is among the k nearest.
CUTS = (1, 5, 10)
# Queries whose similarities are in memory at once.
_AT_ONCE = 1024


def retrieval_scores(
    first: torch.Tensor, second: torch.Tensor, pairs: np.ndarray, names: Sequence[str] = ("image", "text")
) -> dict[str, float]:
    """How well samples of one modality find what belongs to them in the other, both ways.

    A sample that belongs to several counts by the nearest of them: an image with five captions, a caption of three
    images. What is as near as it, and does not belong, counts half: a model that tells nothing apart is in the middle.

    Args:
        first (`torch.Tensor` of shape `(num_first, dim)`), second (`torch.Tensor` of shape `(num_second, dim)`):
            Embeddings, of each sample once.
        pairs (`np.ndarray` of shape `(num_pairs, 2)`):
            Rows of the two that belong together.
        names (`Sequence[str]`, *optional*, defaults to `("image", "text")`):
            What the two are called.

    Returns:
        `dict[str, float]`: `image_to_text_r1`, `_r5`, `_r10` and `_median_rank` (from 1), and of `text_to_image`.
    """
    scores = {}
    for left, right, rows, (one, other) in (
        (first, second, pairs, names),
        (second, first, pairs[:, ::-1], names[::-1]),
    ):
        ranks = ranks_of_pairs(left, right, rows)
        scores |= {f"{one}_to_{other}_r{cut}": float((ranks <= cut).mean()) for cut in CUTS}
        scores[f"{one}_to_{other}_median_rank"] = float(np.median(ranks))
    return scores


def ranks_of_pairs(queries: torch.Tensor, gallery: torch.Tensor, pairs: np.ndarray) -> np.ndarray:
    """From 1, the rank of the nearest of what belongs to each query that has something: `(num_queries,)`."""
    queries, gallery = (F.normalize(each.float(), dim=-1) for each in (queries, gallery))
    belongs = torch.from_numpy(np.ascontiguousarray(pairs)).to(queries.device)
    ranks = []
    for start in range(0, len(queries), _AT_ONCE):
        similar = queries[start : start + _AT_ONCE] @ gallery.T
        mine = torch.zeros(similar.shape, dtype=torch.bool, device=similar.device)
        here = belongs[(belongs[:, 0] >= start) & (belongs[:, 0] < start + len(similar))]
        mine[here[:, 0] - start, here[:, 1]] = True
        best = similar.masked_fill(~mine, -torch.inf).amax(1, keepdim=True)
        # a hair: the same embeddings in another place of a product differ in the last digits
        nearer, equal = similar > best + 1e-6, (similar - best).abs() <= 1e-6
        rank = 1 + (nearer & ~mine).sum(1) + (equal & ~mine).sum(1) / 2
        ranks.append(rank[mine.any(1)].cpu().numpy())
    return np.concatenate(ranks)


def class_embeddings(texts: torch.Tensor, class_of: np.ndarray, num_classes: int) -> torch.Tensor:
    """The direction of each class, `(num_classes, dim)`: the mean of those of its texts.

    Args:
        texts (`torch.Tensor` of shape `(num_texts, dim)`):
            Embeddings of what each class is called, in several ways.
        class_of (`np.ndarray` of shape `(num_texts,)`):
            The class of each.
        num_classes (`int`):
            How many there are.
    """
    sums = texts.new_zeros(num_classes, texts.shape[1], dtype=torch.float32)
    sums.index_add_(0, torch.from_numpy(class_of).to(texts.device), F.normalize(texts.float(), dim=-1))
    return F.normalize(sums, dim=-1)


def zero_shot_scores(samples: torch.Tensor, classes: torch.Tensor, labels: np.ndarray) -> dict[str, float]:
    """How often the name of the right class is the nearest, and among the five nearest.

    Args:
        samples (`torch.Tensor` of shape `(num_samples, dim)`):
            Embeddings of labelled samples.
        classes (`torch.Tensor` of shape `(num_classes, dim)`):
            See [`class_embeddings`].
        labels (`np.ndarray` of shape `(num_samples,)`):
            The class of each sample.

    Returns:
        `dict[str, float]`: `top1` and, where there are more than five classes, `top5`.
    """
    ranks = ranks_of_pairs(samples, classes, np.stack([np.arange(len(labels)), labels], axis=1))
    scores = {"top1": float((ranks <= 1).mean())}
    return scores | ({"top5": float((ranks <= 5).mean())} if len(classes) > 5 else {})
