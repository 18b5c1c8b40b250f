"""k-NN: an image has the class of the training images whose features are most similar to its own.

Protocol "knn", version 1, as DINO's `eval_knn.py` (https://huggingface.co/papers/2104.14294): features of length 1,
cosine similarity, each of the k nearest votes with weight exp(similarity / 0.07), k = 20 and k = 200. Nothing is
fitted or chosen. Departures: all that are as similar as the k-th vote, so that the order of the training rows never
matters; where there are fewer than k training rows, all of them vote.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix, issparse

from ..machine import compute_device
from .evaluator import EvaluationError
from .frozen import FrozenEvaluator, Measured, check_features
from .several_labels import logits_of_shares


# similarities that are held at once
_CHUNK = 1 << 25


@dataclass
class KnnEvaluator(FrozenEvaluator):
    r"""
    Weighted k-nearest-neighbour classification with frozen features. The protocol stands at the top of the module.

    Arguments: see [`~hfssl.evaluation.frozen.FrozenEvaluator`], and

    Args:
        k (`tuple[int, ...]`, *optional*, defaults to `(20, 200)`):
            Numbers of neighbours, one figure for each.
        temperature (`float`, *optional*, defaults to `0.07`):
            Lower lets the nearest neighbours outvote the others.

    Example:

    ```python
    >>> evaluator = KnnEvaluator(open_labelled(None, "train"), open_labelled(None, "test"))
    >>> at_20, at_200 = evaluator("outputs/simclr")
    >>> at_20.value, at_20.baselines["random_init"]
    ```
    """

    protocol: ClassVar[str] = "knn"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "k-NN"
    tells_classes: ClassVar[bool] = True

    k: tuple[int, ...] = (20, 200)
    temperature: float = 0.07

    def predict(self, train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> list[Measured]:
        shares = knn_shares(train_x, train_y, test_x, self.k, self.temperature, device=compute_device())
        measured = []
        for k, votes in shares.items():
            details = {"neighbours": len(train_y)} if k > len(train_y) else {}
            variant = {"k": k, "temperature": self.temperature}
            logits = {0: logits_of_shares(votes) if train_y.ndim == 2 else np.log(np.maximum(votes, 1e-300))}
            predictions = {0: votes.argmax(1)}
            measured.append(Measured(variant, predictions, num_train=len(train_y), details=details, logits=logits))
        return measured


def knn_predict(
    train_x: np.ndarray | torch.Tensor | csr_matrix,
    train_y: np.ndarray,
    test_x: np.ndarray | torch.Tensor | csr_matrix,
    k: int | Sequence[int] = (20, 200),
    temperature: float = 0.07,
    *,
    device: torch.device | str = "cpu",
) -> dict[int, np.ndarray]:
    r"""
    Class of each test row by the votes of its nearest training rows.

    Args:
        train_x (`np.ndarray`, `torch.Tensor` or sparse, of shape `(num_train, dim)`):
            Features, of any length.
        train_y (`np.ndarray` of shape `(num_train,)`):
            Classes, from 0 on.
        test_x (`np.ndarray`, `torch.Tensor` or sparse, of shape `(num_test, dim)`):
            Features to classify.
        k (`int` or `Sequence[int]`, *optional*, defaults to `(20, 200)`):
            Numbers of neighbours.
        temperature (`float`, *optional*, defaults to `0.07`):
            A neighbour's weight is exp(similarity / temperature), with the cosine similarity in [-1, 1].
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
            Where to multiply.

    Returns:
        `dict[int, np.ndarray]`: for each k, the classes, of shape `(num_test,)`. Of classes with equal votes it is
        the first.
    """
    shares = knn_shares(train_x, train_y, test_x, k, temperature, device=device)
    return {k: votes.argmax(1) for k, votes in shares.items()}


def knn_shares(
    train_x: np.ndarray | torch.Tensor | csr_matrix,
    train_y: np.ndarray,
    test_x: np.ndarray | torch.Tensor | csr_matrix,
    k: int | Sequence[int] = (20, 200),
    temperature: float = 0.07,
    *,
    device: torch.device | str = "cpu",
) -> dict[int, np.ndarray]:
    """For each k the share of the votes that each class has, of shape `(num_test, num_classes)`.

    Arguments: see [`knn_predict`]. Where `train_y` is 0 and 1 of shape `(num_train, num_classes)`, a row votes for
    each of its classes, and the share is of the votes of all rows.
    """
    ks = [k] if isinstance(k, int) else list(k)
    if min(ks) < 1 or not temperature > 0:
        raise EvaluationError(
            f"k-NN needs k ≥ 1 and a temperature above 0, got k = {ks}, temperature = {temperature}."
        )
    check_features(train_x, train_y, test_x)
    num_train, num_test = train_x.shape[0], test_x.shape[0]
    classes = torch.as_tensor(train_y, dtype=torch.int64)
    num_classes = classes.shape[1] if classes.ndim == 2 else int(classes.max()) + 1
    shares = {k: [] for k in ks}
    device = torch.device(device)
    # bf16 has too few digits to tell neighbours apart
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        similar = _cosines(train_x, test_x, device)
        step = max(1, _CHUNK // num_train)
        for start in range(0, num_test, step):
            similarity = similar(slice(start, start + step))
            top, index = similarity.topk(min(max(ks), num_train), dim=1)
            for k in ks:
                n = min(k, num_train)
                # votes are summed on the CPU: sums by index are not deterministic on a GPU
                votes = _votes(top[:, :n].cpu(), classes[index[:, :n].cpu()], temperature, num_classes)
                last = top[:, n - 1 : n]
                tied = ((similarity >= last).sum(1) > n).nonzero()[:, 0]
                for row in tied.tolist():
                    among = (similarity[row] >= last[row]).nonzero()[:, 0]
                    votes[row] = _votes(
                        similarity[row, among][None].cpu(), classes[among.cpu()][None], temperature, num_classes
                    )
                shares[k].append(votes)
    return {k: torch.cat(parts).numpy() for k, parts in shares.items()}


def _cosines(train_x: Any, test_x: Any, device: torch.device) -> Callable[[slice], torch.Tensor]:
    """What gives the similarities of some rows of test to all of train."""
    if issparse(train_x):
        # sparse products are made by scipy, on the CPU
        train, test = (unit_rows(x) for x in (train_x, test_x))
        return lambda rows: torch.from_numpy((test[rows] @ train.T).toarray()).to(device)
    train, test = (torch.as_tensor(x, dtype=torch.float32) for x in (train_x, test_x))
    train = F.normalize(train.to(device), dim=1)
    return lambda rows: F.normalize(test[rows].to(device), dim=1) @ train.T


def unit_rows(x: csr_matrix) -> csr_matrix:
    """Sparse rows, each of length 1; of length 0 where there is nothing in it."""
    lengths = np.sqrt(np.asarray(x.multiply(x).sum(1)))
    return csr_matrix(x.multiply(1 / np.maximum(lengths, 1e-12)), dtype=np.float32)


def _votes(similarity: torch.Tensor, classes: torch.Tensor, temperature: float, num_classes: int) -> torch.Tensor:
    # relative to a similarity of 1, so that no temperature overflows
    weights = ((similarity.double() - 1.0) / temperature).exp()
    if classes.ndim == 3:
        votes = (weights[:, :, None] * classes).sum(1)
    else:
        votes = torch.zeros(len(classes), num_classes, dtype=torch.float64).scatter_add_(1, classes, weights)
    return votes / weights.sum(1, keepdim=True)
