"""Targets, such as clusters, that a method makes of its features of the whole corpus, anew at stated shares of a run.

What such a method says here is a few functions; [`~hfssl.training.corpus_targets.CorpusTargets`] goes through the data
for it, at the start and then evenly over the run, keeps what it made with each checkpoint, and puts `targets` and the
like into the batches by the place of each sample. A target may be a number or an array of fixed shape for each sample,
or a sequence as long as the sample is, such as the units of a recording.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import initialization as init

from ..machine import num_cores


# In place of a target, of a sample that has none: losses leave it out.
NO_TARGET = -100


class CorpusTargetsMixin:
    """A method with targets of the whole corpus, in front of [`SSLPreTrainedModel`] among the bases.

    In `__init__`, call [`track_targets`] before `self.post_init()`.
    """

    def track_targets(self) -> None:
        # how often targets were made: a run that goes on is to have those that it had
        self.register_buffer("target_passes", torch.zeros((), dtype=torch.long))
        self._num_passes_made: int | None = None

    @property
    def num_passes_made(self) -> int:
        """How often targets were made, as a number that no GPU is waited for in each step."""
        if self._num_passes_made is None:
            self._num_passes_made = int(self.target_passes)
        return self._num_passes_made

    @property
    def num_target_passes(self) -> int:
        """How often a run makes its targets, at least once. The first time is before its first step."""
        raise NotImplementedError

    def corpus_features(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """What targets are made of: a row for each sample of a batch without targets, in evaluation mode.

        A tensor has one row for each sample; where the rows differ in length, such as `(num_frames, dim)`, give a list
        of them. Samples are whole here, also where training cuts pieces out of them.
        """
        raise NotImplementedError

    def make_targets(self, features: dict[str, Any], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Targets of all samples, made in one process.

        Args:
            features (`dict[str, np.ndarray | list[np.ndarray]]`):
                What [`corpus_features`] gave of all of them, in the order of the data. Lists are of arrays that stay
                on disk until they are looked at.
            seed (`int`):
                For what is random about it; below 2³¹.

        Returns:
            `tuple[dict[str, np.ndarray | list[np.ndarray]], dict[str, np.ndarray]]`: columns with a row for each
            sample, which batches get; and tensors of the model by name, which take these values in all processes. A
            list has a sequence for each sample. In a batch sequences are filled up to the longest with [`NO_TARGET`],
            floats with 0, `(batch_size, longest)`, and begin where the sample does: a batch of pieces says by itself
            where each was cut out, as that of sounds does by `starts`.
        """
        raise NotImplementedError

    def no_targets(self, num_samples: int) -> dict[str, torch.Tensor]:
        """The columns of [`make_targets`] for so many samples that have no target, by which a step can be counted."""
        raise NotImplementedError

    @torch.no_grad()
    def take_targets(self, tensors: dict[str, torch.Tensor], number: int) -> None:
        """Become the model of the targets that were made for the `number`-th time."""
        state = self.state_dict(keep_vars=True)
        for name, values in tensors.items():
            state[name].copy_(values)
        self.target_passes.fill_(number)
        self._num_passes_made = number

    @torch.no_grad()
    def initialize_weights(self):
        super().initialize_weights()
        init.zeros_(self.target_passes)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._num_passes_made = None


def target_passes_due(progress: float, number: int) -> int:
    """How often targets are to have been made when a share `progress` of a run is done, of `number` times in all.

    Example:

    ```python
    >>> [target_passes_due(progress, 4) for progress in (0.0, 0.2, 0.25, 0.9, 1.0)]
    [1, 1, 2, 4, 4]
    ```
    """
    return min(int(progress * number + 1e-6), number - 1) + 1


def one_core_each(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """What `work` makes of each item, in their order: all at once, in threads, where there are so many cores.

    `work` is to release the interpreter, as scikit-learn and numpy do, and to run on one thread, as
    [`spherical_kmeans`] does: then the results do not depend on how many cores there are.
    """
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    items = list(items)
    # each item limits BLAS too, and the first that has finished must not lift it for the others
    with threadpool_limits(limits=1):
        return Parallel(min(len(items), num_cores()), prefer="threads")(delayed(work)(item) for item in items)


def whitened(vectors: Any, num_components: int) -> Any:
    """The first principal components of vectors, each with a variance of 1; on one thread, as [`spherical_kmeans`].

    Args:
        vectors (`np.ndarray` of dtype `float32` and shape `(num_vectors, dim)`):
            Any.
        num_components (`int`):
            How many, fewer where there are not so many.
    """
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        return PCA(min(num_components, *vectors.shape), whiten=True, svd_solver="covariance_eigh").fit_transform(
            vectors
        )


def spherical_kmeans(
    vectors: Any, num_clusters: int, iterations: int, seed: int, rows_at_once: int = 1 << 14
) -> tuple[Any, Any]:
    """Clusters of directions: k-means of scikit-learn, with centroids that are normalised at its end.

    It runs on one thread: with several, sums have another order each time, and a run that is stopped and goes on would
    not be the same run.

    Args:
        vectors (`np.ndarray` of dtype `float32` and shape `(num_vectors, dim)`):
            Of length 1.
        num_clusters (`int`):
            At most `num_vectors`.
        iterations (`int`):
            At most so many.
        seed (`int`):
            Of the vectors that are the first centroids.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the centroids, of length 1 and shape `(num_clusters, dim)`, and which of them
        each vector is nearest to, `int64` of shape `(num_vectors,)`.
    """
    import warnings

    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1), warnings.catch_warnings():
        # fewer different vectors than clusters: some clusters stay empty
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(num_clusters, init="random", n_init=1, max_iter=iterations, random_state=seed).fit(vectors)
        lengths = np.linalg.norm(found.cluster_centers_, axis=1, keepdims=True)
        centroids = found.cluster_centers_ / np.maximum(lengths, 1e-12)
        parts = (vectors[i : i + rows_at_once] @ centroids.T for i in range(0, len(vectors), rows_at_once))
        return centroids, np.concatenate([part.argmax(1) for part in parts])
