"""How alike the layers of an encoder are: to each other, to those of its random initialisation, of other encoders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..functional.similarity import linear_cka
from ..machine import fit_to_leave
from .inside import PAPERS, Finding
from .results import Result


# The protocol of its records.
CKA = "cka"
# Samples of a minibatch of CKA.
CKA_BATCH = 128
# What an encoder of the same architecture is called that learned nothing.
RANDOM = "random weights"


def similarity(layers: Mapping[str, Sequence[np.ndarray]], folder: Path) -> tuple[Finding, dict[str, np.ndarray]]:
    """How alike the layers of an encoder, the first of `layers`, are to each other and to those of others.

    Returns:
        `tuple`: the finding, and the similarities by the name of the other, a row for each layer of the encoder.
    """
    name, *others = layers
    matrices = {other: cka_of(layers[name], layers[other]) for other in layers}
    draw_similarity(matrices, name, folder / "cka.png")
    number = len(layers[name][0])
    last = [f"{fit_to_leave(other)} {matrices[other][-1, -1]:.2f}" for other in others]
    said = [f"The last layer beside the last layer of others: {', '.join(last)} (over {number:,} samples)."]
    kept = np.nanmean(np.diag(matrices[RANDOM])) if len(set(matrices[RANDOM].shape)) == 1 else np.nan
    if np.isfinite(kept):
        said.append(f"Layer by layer it is like its own random initialisation by {kept:.2f} on average.")
    caption = "Similarity of layers (CKA): rows are the layers of this encoder, 0 is what comes into the first block."
    if any(np.isnan(matrix).any() for matrix in matrices.values()):
        caption += " –: a layer that says the same of all samples, as a CLS token does before the first block."
    return (
        Finding(
            "How alike layers are",
            "Linear centred kernel alignment (CKA) of pooled features, layer by layer, estimated from minibatches "
            "without the bias of few samples.",
            {"Kornblith et al., 2019": f"{PAPERS}1905.00414", "Nguyen et al., 2021": f"{PAPERS}2010.15327"},
            "Alike is said of these samples and of pooled features only, the directions in which samples differ most "
            "count most, and alike is not as good as: a probe says that.",
            said,
            [{"picture": "cka.png", "caption": caption}],
        ),
        {other: matrices[other] for other in others},
    )


def cka_of(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> np.ndarray:
    """[`~hfssl.functional.similarity.linear_cka`] of features of the same samples, in minibatches of like size."""
    number = len(one[0])
    parts = np.array_split(np.arange(number), max(1, round(number / CKA_BATCH)))
    batches = (tuple([torch.from_numpy(layer[part]) for layer in side] for side in (one, other)) for part in parts)
    return linear_cka(batches).numpy()


def cka_result(other: str, matrix: np.ndarray, pooling: str, about: dict[str, Any]) -> Result:
    """The record of the similarity to another encoder: that of the last layers; all are in its details."""
    return Result.from_scores(
        {0: float(matrix[-1, -1])}, {}, protocol=CKA, version=1, split="test", metric="linear_cka", num_train=0,
        hyperparameters={"beside": other, "pooling": pooling, "minibatch": CKA_BATCH},
        details={"layers": [[round(float(value), 4) for value in line] for line in matrix]}, **about,
    )  # fmt: skip


def draw_similarity(matrices: Mapping[str, np.ndarray], name: str, path: Path) -> None:
    """A square for each pair of layers, a panel for each encoder."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(matrices) + 0.6, 2.9), layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axis, (other, matrix) in zip(axes, matrices.items(), strict=True):
        axis.set_facecolor("0.9")  # of what is no number
        drawn = axis.imshow(matrix, vmin=0, vmax=1, origin="lower", cmap="viridis")
        axis.set_title("itself" if other == name else fit_to_leave(other)[-24:], fontsize=8)
        axis.set_xlabel("layer", fontsize=7)
        axis.tick_params(labelsize=6)
        if matrix.size <= 64:
            for (row, column), value in np.ndenumerate(matrix):
                colour, said = "white" if value < 0.6 else "black", "–" if np.isnan(value) else f"{value:.2f}"
                axis.text(column, row, said, ha="center", va="center", fontsize=5, color=colour)
    axes[0].set_ylabel("layer of this encoder", fontsize=7)
    figure.colorbar(drawn, ax=axes, shrink=0.8).ax.tick_params(labelsize=6)
    figure.savefig(path, dpi=120)
