"""Linear probe: how well do the classes separate by planes in the space of the frozen features?

Protocol "linear", version 2: multinomial logistic regression with an L2 penalty on the weights, by L-BFGS to
convergence, on features standardised with the mean and deviation of train. There is no learning rate to tune: the
optimum is unique. The strength of the penalty is the one of a log grid with the lowest cross-entropy on a fifth of
train (of each class) when fitted to the rest; then all of train is fitted. Test is looked at once. The grid is walked
from strong to weak and left after two in a row that are worse than the best: the weakest take most of the time and
overfit the most. (Version 1 chose by accuracy, of which few rows have few values, and walked the grid to its end.)
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.sparse import csr_matrix, issparse

from ..functional import keyed
from ..functional.keyed import Use
from ..machine import compute_device
from .evaluator import EvaluationError
from .frozen import FrozenEvaluator, Measured, check_features


logger = logging.getLogger(__name__)

STRENGTHS = (1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
# So many in a row that are worse than the best end the search.
PATIENCE = 2
# Where train is too small to choose on, of the middle: scikit-learn's C = 1 for a hundred rows.
DEFAULT_STRENGTH = 1e-2


@dataclass
class LinearProbeEvaluator(FrozenEvaluator):
    r"""
    Regularised multinomial regression on frozen features. The protocol stands at the top of the module.

    Arguments: see [`~hfssl.evaluation.frozen.FrozenEvaluator`].
    """

    protocol: ClassVar[str] = "linear"
    version: ClassVar[int] = 2
    title: ClassVar[str] = "linear probe"
    tells_classes: ClassVar[bool] = True

    def predict(self, train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> list[Measured]:
        check_features(train_x, train_y, test_x)
        model, strength = fit_linear_probe(train_x, train_y, device=compute_device())
        logits = logits_of_all(model, test_x, train_y)
        predictions = logits.argmax(1)
        details = {"strength": strength}
        return [Measured({}, {0: predictions}, num_train=len(train_y), details=details, logits={0: logits})]


def logits_of_all(model: "LogisticRegression", x: np.ndarray, train_y: np.ndarray) -> np.ndarray:
    """Logits of all classes, -inf for those that the regression was not fitted to."""
    decision = model.decision(x)
    if train_y.ndim == 2:
        return decision
    logits = np.full((len(decision), int(train_y.max()) + 1), -np.inf)
    logits[:, model.classes] = decision
    return logits


@dataclass
class LogisticRegression:
    r"""
    Multinomial logistic regression: minimises the mean cross-entropy + `strength` / 2 × the sum of the squared
    weights (not biases), which for n rows is scikit-learn's with C = 1 / (n × strength). Of labels of 0 and 1 of shape
    `(num_rows, num_classes)` it is a logistic regression for each class, and the sum of their cross-entropies.

    Args:
        strength (`float`):
            Weight of the penalty, above 0.
        standardize (`bool`, *optional*, defaults to `True`):
            Shift and scale each dimension to mean 0 and deviation 1 over the rows that are fitted to; sparse features
            are taken as they are.
        tolerance (`float`, *optional*, defaults to `1e-4`):
            Largest entry that the gradient may have at the end, as a share of the largest one at weights of 0.
        max_iterations (`int`, *optional*, defaults to `2000`):
            Steps of L-BFGS.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
            Where to multiply.
    """

    strength: float
    standardize: bool = True
    tolerance: float = 1e-4
    max_iterations: int = 2000
    device: torch.device | str = "cpu"

    def fit(self, x: np.ndarray, y: np.ndarray, start: "LogisticRegression | None" = None) -> "LogisticRegression":
        """Fit to features of shape `(num_rows, dim)`; the search begins at the weights of `start`."""
        if not self.strength > 0:
            raise EvaluationError(f"The strength of the penalty must be above 0, got {self.strength}.")
        several = y.ndim == 2
        self.classes, target = (np.arange(y.shape[1]), y) if several else np.unique(y, return_inverse=True)
        self.mean, self.scale = _moments(x) if self.standardize and not issparse(x) else (0.0, 1.0)
        rows, target = self._rows(x), torch.as_tensor(target, device=self.device)
        shape = (rows.shape[1] + 1, len(self.classes))  # the last row are the biases
        penalty = self.strength * torch.ones(shape, device=self.device)
        penalty[-1] = 0.0

        def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights = torch.as_tensor(flat, dtype=torch.float32, device=self.device).view(shape)
            loss, error = _loss_and_error(_logits(rows, weights), target)
            error /= len(error)
            gradient = torch.cat([rows.T @ error, error.sum(0, keepdim=True)]) + penalty * weights
            loss += 0.5 * (penalty * weights * weights).cpu().double().sum().item()
            return loss, gradient.cpu().double().numpy().ravel()

        first = np.zeros(shape) if start is None else start.weights
        with torch.no_grad(), torch.autocast(torch.device(self.device).type, enabled=False):
            # relative, since features that hardly differ have small gradients from the beginning; and no further than
            # to where 32 bits tell losses apart
            wanted = self.tolerance * float(np.abs(loss_and_gradient(np.zeros(first.size))[1]).max())
            options = {"maxiter": self.max_iterations, "maxfun": 2 * self.max_iterations, "gtol": wanted, "ftol": 1e-8}
            found = minimize(loss_and_gradient, first.ravel(), jac=True, method="L-BFGS-B", options=options)
        self.weights, self.loss = found.x.reshape(shape), float(found.fun)
        largest = float(np.abs(found.jac).max())
        if largest > 100 * wanted:
            logger.warning(
                "The linear probe of strength %g has not converged after %d steps (gradient %.1e, wanted %.0e).",
                self.strength, found.nit, largest, wanted,
            )  # fmt: skip
        return self

    def decision(self, x: np.ndarray) -> np.ndarray:
        """Logits of shape `(num_rows, num_classes)`."""
        weights = torch.as_tensor(self.weights, dtype=torch.float32, device=self.device)
        with torch.no_grad(), torch.autocast(torch.device(self.device).type, enabled=False):
            return _logits(self._rows(x), weights).cpu().numpy()

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Classes of shape `(num_rows,)`, as `y` had them."""
        return self.classes[self.decision(x).argmax(1)]

    def cross_entropy(self, x: np.ndarray, y: np.ndarray) -> float:
        """Mean over rows whose classes are all among those that it was fitted to."""
        if y.ndim == 2:
            return _loss_and_error(torch.from_numpy(self.decision(x)).double(), torch.from_numpy(y))[0]
        log_probability = torch.from_numpy(self.decision(x)).double().log_softmax(1)
        target = torch.from_numpy(np.searchsorted(self.classes, y))
        return -log_probability.gather(1, target[:, None]).mean().item()

    def _rows(self, x: np.ndarray | csr_matrix) -> "torch.Tensor | _SparseRows":
        if issparse(x):
            return _SparseRows(csr_matrix(x, dtype=np.float32), self.device)
        return torch.as_tensor((x - self.mean) / self.scale, dtype=torch.float32, device=self.device)


def _loss_and_error(logits: torch.Tensor, target: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Mean cross-entropy over the rows, and its derivative by the logits for one row of each."""
    # summed in 64 bits: the line search compares values that hardly differ
    if target.ndim == 2:
        target = target.to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return losses.cpu().double().sum(1).mean().item(), logits.sigmoid() - target
    log_probability = logits.log_softmax(1)
    loss = -log_probability.gather(1, target[:, None]).cpu().double().mean().item()
    error = log_probability.exp_()
    error[torch.arange(len(error), device=error.device), target] -= 1.0
    return loss, error


class _SparseRows:
    """Sparse features that are multiplied as a tensor is; the products are made by scipy, on the CPU."""

    def __init__(self, x: csr_matrix, device: torch.device | str):
        self.x, self.device, self.shape = x, device, x.shape

    @property
    def T(self) -> "_SparseRows":
        return _SparseRows(self.x.T, self.device)

    def __matmul__(self, other: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.x @ other.cpu().numpy()).to(self.device)


def _logits(rows: "torch.Tensor | _SparseRows", weights: torch.Tensor) -> torch.Tensor:
    if isinstance(rows, _SparseRows):
        return rows @ weights[:-1] + weights[-1]
    return torch.addmm(weights[-1], rows, weights[:-1])


def linear_probe_predict(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    *,
    strengths: Sequence[float] = STRENGTHS,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, float]:
    """Predicted classes of `test_x`, of shape `(num_test,)`, and the strength that was chosen on train."""
    logits, strength = linear_probe_logits(train_x, train_y, test_x, strengths=strengths, device=device)
    return logits.argmax(1), strength


def linear_probe_logits(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    *,
    strengths: Sequence[float] = STRENGTHS,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, float]:
    """Logits of all classes, see [`logits_of_all`], and the strength that was chosen on train."""
    check_features(train_x, train_y, test_x)
    model, strength = fit_linear_probe(train_x, train_y, strengths=strengths, device=device)
    return logits_of_all(model, test_x, train_y), strength


def fit_linear_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    *,
    strengths: Sequence[float] = STRENGTHS,
    device: torch.device | str = "cpu",
    kind: type[LogisticRegression] = LogisticRegression,
) -> tuple[LogisticRegression, float]:
    """The regression fitted to all of train, and the strength that was chosen on it; `kind` may be one with more."""
    held_out = held_out_rows(train_y)
    if held_out.any():
        chosen = choose_strength(
            train_x[~held_out], train_y[~held_out], train_x[held_out], train_y[held_out], strengths, device, kind
        )
        strength = chosen.strength
    else:
        chosen, strength = None, DEFAULT_STRENGTH
        logger.info("One label a class leaves nothing to choose a strength on: it is %g.", strength)
    # the optimum is unique: where the search for it begins decides how long it takes only
    model = kind(strength, device=device).fit(train_x, train_y, start=chosen)
    return model, strength


def choose_strength(
    fit_x: np.ndarray,
    fit_y: np.ndarray,
    held_out_x: np.ndarray,
    held_out_y: np.ndarray,
    strengths: Sequence[float] = STRENGTHS,
    device: torch.device | str = "cpu",
    kind: type[LogisticRegression] = LogisticRegression,
) -> LogisticRegression:
    """The regression with the lowest cross-entropy on the held-out rows; of two equals, the more regularised."""
    best, chosen, model, num_worse = float("inf"), None, None, 0
    for strength in sorted(strengths, reverse=True):
        # from strong to weak, each begins where the one before ended
        model = kind(strength, device=device).fit(fit_x, fit_y, model)
        cross_entropy = model.cross_entropy(held_out_x, held_out_y)
        num_worse = num_worse + 1 if cross_entropy > best else 0
        if num_worse == PATIENCE:
            break
        if cross_entropy < best:
            best, chosen = cross_entropy, model
    return chosen


def held_out_rows(labels: np.ndarray, share: float = 0.2) -> np.ndarray:
    """A mask of shape `(num_rows,)`: of each class a fifth, at least one of two, and none of a single row.

    Where a row may have several classes it is a fifth of them all.
    """
    mask = np.zeros(len(labels), dtype=bool)
    labels = np.zeros(len(labels), dtype=np.int64) if labels.ndim == 2 else labels
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) > 1:
            order = keyed.permutation(len(rows), Use.LINEAR_PROBE_SPLIT, int(label))
            mask[rows[order[: max(1, int(share * len(rows)))]]] = True
    return mask


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale = x.std(0, dtype=np.float64)
    # a dimension that never changes says nothing; dividing its rounding error by itself would make it noise
    scale[scale <= 1e-6 * np.abs(x).max(0, initial=0.0)] = 1.0
    scale[scale == 0.0] = 1.0
    return x.mean(0, dtype=np.float64).astype(np.float32), scale.astype(np.float32)
