"""Figures of the embeddings of samples: how they are spread, and what two views of a sample have in common."""

import math

import torch
import torch.nn.functional as F


def effective_rank(embeddings: torch.Tensor) -> float:
    """Effective rank of embeddings: how many directions they use.

    `exp` of the entropy of the normalised singular values ([RankMe](https://huggingface.co/papers/2210.02885), eq. 1,
    without the constant that it adds to each of them).

    Args:
        embeddings (`torch.Tensor` of shape `(num_samples, dim)`):
            Not normalised.

    Returns:
        `float`: from 1 to `min(num_samples, dim)`; 0 where all embeddings are 0.
    """
    values = torch.linalg.svdvals(embeddings.double())
    total = values.sum()
    if total == 0:
        return 0.0
    shares = values / total
    return math.exp(-torch.special.xlogy(shares, shares).sum().item())


def random_rank(num_samples: int, dim: int) -> float:
    """The effective rank of so many random directions: the most that can be expected of embeddings."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(num_samples, dim, generator=generator, dtype=torch.float64)
    return effective_rank(_centred(vectors))


def embedding_std(embeddings: torch.Tensor) -> float:
    """Standard deviation of normalised embeddings, mean over the dimensions, times √dim.

    Args:
        embeddings (`torch.Tensor` of shape `(num_samples, dim)`):
            At least 2; of any length.

    Returns:
        `float`: 1 is as spread as random directions, 0 is all the same. Without the factor it is what SimSiam
        ([2011.10566](https://huggingface.co/papers/2011.10566), figure 2) looks at.
    """
    unit = F.normalize(embeddings.double(), dim=-1)
    return (unit.std(0).mean() * unit.shape[1] ** 0.5).item()


def mean_cosine(embeddings: torch.Tensor) -> float:
    """Mean cosine similarity of two different samples, in [-1, 1]; embeddings of shape `(num_samples, dim)`."""
    unit = F.normalize(embeddings.double(), dim=-1)
    total = unit.sum(0)
    return ((total @ total - unit.square().sum()) / (len(unit) * (len(unit) - 1))).item()


def alignment(z1: torch.Tensor, z2: torch.Tensor) -> float:
    """Mean squared distance of two views of a sample on the unit sphere: 0 is equal, 2 is orthogonal.

    Wang and Isola, 2020 ([2005.10242](https://huggingface.co/papers/2005.10242)), Section 4.1, with α = 2.

    Args:
        z1, z2 (`torch.Tensor` of shape `(num_samples, dim)`):
            Embeddings of the first and of the second view of each sample, not normalised.
    """
    u1, u2 = (F.normalize(z.double(), dim=-1) for z in (z1, z2))
    return (u1 - u2).square().sum(-1).mean().item()


def uniformity(embeddings: torch.Tensor) -> float:
    """Logarithm of the mean of exp(-2 · squared distance) over pairs of different samples on the unit sphere.

    Wang and Isola, 2020 ([2005.10242](https://huggingface.co/papers/2005.10242)), Section 4.1, with t = 2. 0 is all in
    one point, about -4 is evenly spread in many dimensions.

    Args:
        embeddings (`torch.Tensor` of shape `(num_samples, dim)`):
            Of one view of each sample, not normalised.
    """
    unit = F.normalize(embeddings.double(), dim=-1)
    distances = 2 - 2 * (unit @ unit.T).clamp(-1, 1)
    pairs = torch.triu_indices(len(unit), len(unit), offset=1)
    return distances[*pairs].mul(-2).exp().mean().log().item()


def margin(z1: torch.Tensor, z2: torch.Tensor) -> float:
    """How much larger the mean cosine of two views of one sample is than that of views of two samples.

    Args:
        z1, z2 (`torch.Tensor` of shape `(num_samples, dim)`):
            Embeddings of the first and of the second view of each sample, at least 2, not normalised.

    Returns:
        `float`: 0 where embeddings say nothing of the sample, whatever else they are; 1 where views are equal and
        samples orthogonal.
    """
    u1, u2 = (F.normalize(z.double(), dim=-1) for z in (z1, z2))
    same = (u1 * u2).sum()
    different = u1.sum(0) @ u2.sum(0) - same
    return (same / len(u1) - different / (len(u1) * (len(u1) - 1))).item()


def modality_gap(z1: torch.Tensor, z2: torch.Tensor) -> float:
    """How far the embeddings of two modalities lie apart as a whole: the distance of their means on the unit sphere.

    Liang et al., 2022 ([2203.02053](https://huggingface.co/papers/2203.02053)), Section 2.1.

    Args:
        z1, z2 (`torch.Tensor` of shape `(num_samples, dim)`):
            Embeddings of the two sides of each pair, not normalised.

    Returns:
        `float`: from 0 to 2. Methods that contrast pairs do not close it; two that are far apart are no fault.
    """
    u1, u2 = (F.normalize(z.double(), dim=-1).mean(0) for z in (z1, z2))
    return (u1 - u2).norm().item()


def recognition(z1: torch.Tensor, z2: torch.Tensor) -> float:
    """How often a view is nearer to the other view of its sample than to a view of another sample.

    Unlike the [`margin`] it asks in which order cosines are, not how far apart: what all samples have in common, and a
    few samples that lie far from all others, do not count.

    Args:
        z1, z2 (`torch.Tensor` of shape `(num_samples, dim)`):
            Embeddings of the first and of the second view of each sample, at least 2, not normalised.

    Returns:
        `float`: 1 where each view finds its sample, 1/2 where embeddings say nothing of the sample.
    """
    u1, u2 = (F.normalize(z.double(), dim=-1) for z in (z1, z2))
    cosines = u1 @ u2.T
    same, n = cosines.diagonal(), len(cosines)
    # each is equal to itself once, which is half a win
    wins = [(own - cosines).sign().add(1).div(2).sum() - n / 2 for own in (same[:, None], same[None])]
    return (sum(wins) / (2 * n * (n - 1))).item()


def recognition_of_chance(num_samples: int) -> float:
    """The most that can be expected of [`recognition`] by chance: 1/2 and three standard errors of an even rank."""
    return 0.5 + 3 / math.sqrt(12 * num_samples)


def teacher_distance(model: torch.nn.Module) -> float | None:
    """Distance of the parameters of teacher and student relative to the student's length; `None` without a teacher."""
    if not hasattr(model, "teacher"):
        return None
    sums = [
        torch.stack([(t.float() - s.float()).square().sum(), s.float().square().sum()])
        for t, s in zip(model.teacher.parameters(), model.student.parameters(), strict=True)
    ]
    difference, length = torch.stack(sums).sum(0).tolist()
    return math.sqrt(difference / length)


def spread(embeddings: torch.Tensor) -> dict[str, float]:
    """How embeddings `(num_samples, dim)` are spread: `effective_rank` of what differs, `std` and `mean_cosine`."""
    return {
        # of what differs: one direction that all samples share would hide the others
        "effective_rank": effective_rank(_centred(embeddings.double())),
        "std": embedding_std(embeddings),
        "mean_cosine": mean_cosine(embeddings),
    }


def _centred(embeddings: torch.Tensor) -> torch.Tensor:
    return embeddings - embeddings.mean(0)
