"""Pictures of what two encoders find: captions for images, images for captions, and how similar all are to all."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..gallery import nearest_rows
from ..image.pictures import _grid, _save, _show


RIGHT, WRONG = "#2e7d32", "#c62828"
MOST_SHOWN = 10
_NEAREST = 3
# What is in the files.
CAPTIONS = {
    "captions.png": "Held-out images, and the captions that are nearest (green: its own).",
    "images.png": "Held-out captions, and the images that are nearest (green frame: its own).",
    "similarity.png": "How similar ten held-out images and their captions are, each to each.",
}


def draw_pairs(
    images: torch.Tensor, texts: Sequence[str], image_embeds: torch.Tensor, text_embeds: torch.Tensor,
    pairs: np.ndarray, folder: Path,
) -> list[tuple[Path, str]]:  # fmt: skip
    """Write `captions.png`, `images.png` and `similarity.png`; their paths, and what each shows.

    Args:
        images (`torch.Tensor` of dtype `uint8` and shape `(num_images, 3, height, width)`):
            Each once.
        texts (`Sequence[str]`):
            Each once.
        image_embeds, text_embeds (`torch.Tensor`):
            Their embeddings.
        pairs (`np.ndarray` of shape `(num_pairs, 2)`):
            Which of the images and of the texts belong together.
        folder (`Path`):
            Where the pictures go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    belong = set(map(tuple, pairs.tolist()))
    number = min(MOST_SHOWN, len(images), len(texts))
    found = nearest_rows(text_embeds, image_embeds[:number], _NEAREST)
    figure, axes = _grid(number, 2, size=1.0)
    figure.set_size_inches(7.0, 0.85 * number)
    for row in range(number):
        _show(axes[row, 0], images[row])
        axes[row, 1].axis("off")
        for place, text in enumerate(found[row]):
            axes[row, 1].text(
                -0.6, 0.8 - 0.32 * place, shown_text(texts[text], 72), fontsize=7, va="center",
                transform=axes[row, 1].transAxes, color=RIGHT if (row, text) in belong else WRONG,
            )  # fmt: skip
    figure.suptitle("image, and the captions that are nearest (green: its own)", fontsize=8)
    _save(figure, folder / "captions.png")

    queries = [int(pairs[pairs[:, 0] == row][0, 1]) for row in range(number)]
    found = nearest_rows(image_embeds, text_embeds[queries], 5)
    figure, axes = _grid(number, found.shape[1], size=1.1)
    for row, text in enumerate(queries):
        for column, image in enumerate(found[row]):
            _show(axes[row, column], images[image], RIGHT if (image, text) in belong else WRONG)
        axes[row, 0].set_title(shown_text(texts[text], 60), fontsize=7, loc="left")
    _save(figure, folder / "images.png")

    similar = image_embeds[:number] @ text_embeds[queries].T
    figure, axes = _grid(1, 1, size=6.0)
    drawn = axes[0, 0].imshow(similar.numpy())
    figure.colorbar(drawn, ax=axes[0, 0], shrink=0.6)
    axes[0, 0].set_yticks(range(number), [shown_text(texts[text], 40) for text in queries], fontsize=6)
    axes[0, 0].set_ylabel("images (by their captions)", fontsize=7)
    axes[0, 0].set_xticks(range(number), [shown_text(texts[text], 40) for text in queries], fontsize=6, rotation=90)
    axes[0, 0].set_title("cosine of image and caption", fontsize=8)
    _save(figure, folder / "similarity.png")
    return [(folder / name, caption) for name, caption in CAPTIONS.items()]


def shown_text(text: str, width: int) -> str:
    """A text of at most so many letters."""
    return textwrap.shorten(text, width, placeholder=" …") or text[:width]
