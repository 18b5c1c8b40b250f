"""Layers: which layer of a frozen encoder knows most of some labels, and what do all of them know together?

Protocol "layers", version 1. A linear probe (protocol "linear") of each layer, from what comes into the first block
(layer 0) to the encoder's output. And of their weighted sum, as SUPERB evaluates encoders of speech
(https://huggingface.co/papers/2105.01051): one weight a layer, by a softmax over numbers that begin at 0 and are
learned with the classifier. Departures: each layer is standardised with the mean and deviation of train first, so that
all weight on one layer is that layer's linear probe, and a weight says how much a layer counts; so is the sum. Both
are found by L-BFGS, with the penalty of the protocol "linear" on the classifier alone, chosen as there. The optimum
need not be unique: the search begins where all layers count the same.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from scipy.optimize import minimize

from ..machine import compute_device
from .evaluator import EvaluationError
from .frozen import FrozenEvaluator, Measured
from .linear_probe import LinearProbeEvaluator, LogisticRegression, fit_linear_probe
from .modality import evaluation_modality
from .probe_features import ENCODER, MFCC_STATISTICS, RANDOM_INIT, ProbeFeatures
from .progress import Progress
from .results import Result


if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# What stands in a record in place of the number of a layer.
WEIGHTED_SUM = "weighted sum"


@dataclass
class LayersEvaluator(FrozenEvaluator):
    r"""
    Linear probes of each layer and of their weighted sum. The protocol stands at the top of the module.

    Arguments: see [`~hfssl.evaluation.frozen.FrozenEvaluator`].
    """

    protocol: ClassVar[str] = "layers"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "linear probe"

    def __post_init__(self):
        super().__post_init__()
        if not evaluation_modality(self.train.modality).has_layers:
            raise EvaluationError(
                "The protocol layers is for encoders of recordings. Of images, `--pooling last4` takes several layers."
            )

    def predict(self, train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray) -> list[Measured]:
        """By layer, of features of shape `(num_rows, num_layers + 1, dim)`."""
        linear = LinearProbeEvaluator(self.train, self.test)
        found = []
        for layer in range(train_x.shape[1]):
            [measured] = linear.predict(train_x[:, layer], train_y, test_x[:, layer])
            measured.variant = {"layer": layer}
            found.append(measured)
        model, strength = fit_linear_probe(train_x, train_y, device=compute_device(), kind=LayersRegression)
        details = {"strength": strength, "weights": [round(float(weight), 6) for weight in model.layer_weights]}
        predictions = {0: model.predict(test_x)}
        return [*found, Measured({"layer": WEIGHTED_SUM}, predictions, num_train=len(train_y), details=details)]

    def measured(self, features: ProbeFeatures) -> dict[str, list[Measured]]:
        train_y = self.labels[0]
        if train_y.ndim == 2:
            raise EvaluationError("The protocol layers is for one label a sample: leave it out of `--protocol`.")
        found = {}
        with Progress(len(features.train), self.title, " kinds of features") as progress:
            for kind in features.train:
                if kind in (ENCODER, RANDOM_INIT):
                    train_x, test_x = features.layers[kind]
                    found[kind] = self.predict(train_x, train_y, test_x)
                else:  # of what has no layers, the same figure beside each
                    [of_input] = LinearProbeEvaluator(self.train, self.test).predict(
                        features.train[kind], train_y, features.test[kind]
                    )
                    found[kind] = [of_input] * len(found[ENCODER])
                # layers have no logits for all of the classes
                for each in found[kind]:
                    each.logits = {}
                progress.update()
        return found

    def draw(self, results: Sequence[Result], folder: Path) -> None:
        plot_layers(results, folder / "layers.png")


@dataclass
class LayersRegression(LogisticRegression):
    """Multinomial logistic regression on a learned weighted sum of layers, see the top of the module.

    Arguments: see [`~hfssl.evaluation.linear_probe.LogisticRegression`]. Features have the shape
    `(num_rows, num_layers, dim)`. After the fit, `layer_weights` are the weights of the layers, which sum up to 1.
    """

    def fit(self, x: np.ndarray, y: np.ndarray, start: "LayersRegression | None" = None) -> "LayersRegression":
        self.classes, target = np.unique(y, return_inverse=True)
        scale = x.std(0, dtype=np.float64)
        # a dimension that never changes says nothing
        scale[scale <= 1e-6 * np.abs(x).max(0, initial=0.0)] = 1.0
        scale[scale == 0.0] = 1.0
        self.mean, self.scale = x.mean(0, dtype=np.float64).astype(np.float32), scale.astype(np.float32)
        rows, target = self._rows(x), torch.as_tensor(target, device=self.device)
        num_layers, dim = rows.shape[1:]
        self.covariance = torch.einsum("nld,nkd->lkd", rows, rows) / len(rows)
        shape = (dim + 1, len(self.classes))  # the last row are the biases

        def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
            values = torch.as_tensor(flat, dtype=torch.float32, device=self.device).requires_grad_()
            weights, numbers = values[num_layers:].view(shape), values[:num_layers]
            loss = torch.nn.functional.cross_entropy(self._logits(rows, weights, numbers.softmax(0)), target)
            loss = loss + 0.5 * self.strength * weights[:-1].square().sum()
            loss.backward()
            return loss.item(), values.grad.cpu().double().numpy()

        first = np.zeros(num_layers + shape[0] * shape[1])
        if start is not None:
            first = np.concatenate([start.numbers, start.weights.ravel()])
        with torch.autocast(torch.device(self.device).type, enabled=False):
            zeros = np.zeros(first.size)
            wanted = self.tolerance * float(np.abs(loss_and_gradient(zeros)[1]).max())
            options = {"maxiter": self.max_iterations, "maxfun": 2 * self.max_iterations, "gtol": wanted, "ftol": 1e-8}
            found = minimize(loss_and_gradient, first, jac=True, method="L-BFGS-B", options=options)
        self.numbers, self.weights = found.x[:num_layers], found.x[num_layers:].reshape(shape)
        self.loss = float(found.fun)
        return self

    @property
    def layer_weights(self) -> np.ndarray:
        """How much each layer counts, of shape `(num_layers,)`."""
        return torch.from_numpy(self.numbers).softmax(0).numpy()

    def decision(self, x: np.ndarray) -> np.ndarray:
        weights, numbers = (
            torch.as_tensor(each, dtype=torch.float32, device=self.device) for each in (self.weights, self.numbers)
        )
        with torch.no_grad(), torch.autocast(torch.device(self.device).type, enabled=False):
            return self._logits(self._rows(x), weights, numbers.softmax(0)).cpu().numpy()

    def _logits(self, rows: torch.Tensor, weights: torch.Tensor, layer_weights: torch.Tensor) -> torch.Tensor:
        mixed = torch.einsum("nld,l->nd", rows, layer_weights)
        # standardised as well: else layers that have little in common would make a small sum, and the penalty take one
        variance = torch.einsum("lkd,l,k->d", self.covariance, layer_weights, layer_weights)
        return torch.addmm(weights[-1], mixed / (variance + 1e-12).sqrt(), weights[:-1])


def plot_layers(results: Sequence[Result], path: Path) -> None:
    """[`layers_figure`] as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layers_figure(results).savefig(path, dpi=120)


def layers_figure(results: Sequence[Result]) -> "Figure":
    """Accuracy by layer, beside random weights, MFCC and the weighted sum; below it how much each layer counts."""
    from matplotlib.figure import Figure

    results = [result for result in results if result.metric == "accuracy"]
    by_layer = [result for result in results if result.hyperparameters["layer"] != WEIGHTED_SUM]
    [together] = [result for result in results if result.hyperparameters["layer"] == WEIGHTED_SUM]
    layers = [result.hyperparameters["layer"] for result in by_layer]
    figure = Figure(figsize=(5.0, 4.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot(layers, [result.value for result in by_layer], marker="o", label="encoder")
    top.axhline(together.value, color="C0", ls=":", label="encoder, weighted sum of the layers")
    if RANDOM_INIT in by_layer[0].baselines:
        top.plot(
            layers, [each.baselines[RANDOM_INIT] for each in by_layer], marker="o", c="C7", label="random weights"
        )
    if MFCC_STATISTICS in together.baselines:
        top.axhline(together.baselines[MFCC_STATISTICS], color="C1", ls="--", label="MFCC statistics")
    top.set_ylabel("test accuracy (linear probe)")
    top.legend(frameon=False, fontsize=8)
    top.grid(alpha=0.3)
    bottom.bar(layers, together.details["weights"])
    bottom.set_ylabel("weight")
    bottom.set_xlabel("layer (0: what comes into the first block)")
    bottom.set_xticks(np.array(layers))
    return figure
