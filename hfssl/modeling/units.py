"""Units of sound: the clusters of its frames, and how well they go with what is known of them."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import UserError


logger = logging.getLogger(__name__)


def fit_units(frames: np.ndarray, num_units: int, seed: int, restarts: int = 20) -> np.ndarray:
    """Centroids of frames, by k-means in small batches, as HuBERT's code fits them.

    On one thread: with several, sums have another order each time, and a run that is stopped and goes on would not be
    the same run.

    Args:
        frames (`np.ndarray` of dtype `float32` and shape `(num_frames, dim)`):
            A sample of all.
        num_units (`int`):
            Clusters, at most `num_frames`.
        seed (`int`):
            Of where it starts.
        restarts (`int`, *optional*, defaults to `20`):
            Starts of which the best is taken.

    Returns:
        `np.ndarray` of dtype `float32` and shape `(num_units, dim)`.

    Raises:
        UserError: if there are fewer frames than units.
    """
    import warnings

    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    if len(frames) < num_units:
        raise UserError(
            f"{len(frames):,} frames of sound cannot be in {num_units:,} units. Pass `--num_units "
            f"{max(len(frames) // 20, 2)}` or fewer, or more data."
        )
    kmeans = MiniBatchKMeans(
        num_units, init="k-means++", batch_size=10_000, n_init=restarts, max_iter=100, tol=0.0, max_no_improvement=100,
        reassignment_ratio=0.0, random_state=seed,
    )  # fmt: skip
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # fewer different frames than units: some units stay empty
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kmeans.fit(frames).cluster_centers_.astype(np.float32)


def nearest_units(frames: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The unit of each frame: that whose centroid is the nearest. `(num_frames, dim)` to `int64` `(num_frames,)`."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        return ((centroids**2).sum(1) - 2.0 * frames.astype(np.float32) @ centroids.T).argmin(1)


def sample_of_frames(clips: Sequence[np.ndarray], number: int, seed: int) -> np.ndarray:
    """At most so many frames `(number, dim)` of all clips together, drawn evenly; few clips are held at a time."""
    lengths = np.array([len(clip) for clip in clips])
    total = int(lengths.sum())
    if total <= number:
        chosen = np.arange(total)
    else:
        chosen = np.sort(np.random.default_rng(seed).choice(total, number, replace=False))
    edges = np.searchsorted(chosen, np.concatenate([[0], np.cumsum(lengths)]))
    starts = np.cumsum(lengths) - lengths
    parts = [
        np.asarray(clip)[chosen[begin:end] - start]
        for clip, start, begin, end in zip(clips, starts, edges, edges[1:], strict=False)
        if end > begin
    ]
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros((0, 1), np.float32)


def describe_units(clips: Sequence[np.ndarray], num_units: int) -> str:
    """How evenly units are in use, in a line for the log."""
    counts = np.zeros(num_units, np.int64)
    for units in clips:
        counts += np.bincount(units, minlength=num_units)
    shares = np.sort(counts / max(counts.sum(), 1))[::-1]
    perplexity = float(np.exp(-(shares[shares > 0] * np.log(shares[shares > 0])).sum()))
    # a histogram in words: what share of all frames each tenth of the units has, the most frequent first
    tenths = [part.sum() for part in np.array_split(shares, min(10, num_units))]
    return (
        f"{int((counts > 0).sum())} of {num_units} units in use, as many as {perplexity:.0f} of equal frequency; "
        f"shares of the frames by tenths of the units: {' '.join(f'{share:.0%}' for share in tenths)}"
    )


def unit_quality(units: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How well units go with labels of the same frames.

    Args:
        units, labels (`np.ndarray` of integers and shape `(num_frames,)`):
            Of each frame; a label may be that of the whole clip.

    Returns:
        `dict[str, float]`: `purity`, the share of the frames that have the most frequent label of their unit;
        `mutual_information`, normalised: 0 where units say nothing of labels, 1 where each tells the other.
    """
    from sklearn.metrics import normalized_mutual_info_score

    table: dict[tuple[Any, Any], int] = {}
    pairs, counts = np.unique(np.stack([units, labels]), axis=1, return_counts=True)
    for unit, count in zip(pairs[0].tolist(), counts.tolist(), strict=True):
        table[unit] = max(table.get(unit, 0), count)
    return {
        "purity": sum(table.values()) / max(len(units), 1),
        "mutual_information": float(normalized_mutual_info_score(labels, units)),
    }
