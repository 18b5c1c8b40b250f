"""A picture of views: what the model gets to see, beside the images that it is made from."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...functional import keyed
from ...functional.keyed import Use
from ..stream import Block
from .decode import decode_image
from .views import Views


class Originals:
    """The encoded images, or decoded tiles of them, beside what is made of them: a [`ColumnMaker`] for the sheet."""

    def rows(self, block: Block, kept: np.ndarray) -> dict[str, list]:
        return {"original": [block.columns["image"][i] for i in kept]}

    def collate(self, columns: dict[str, Any], device: torch.device) -> dict[str, list]:
        return {"original": columns["original"]}


def views_of(images: Sequence[bytes], views: Views) -> dict[str, Any]:
    """A batch of views of some images, with `original`; damaged ones are left out."""
    keys = keyed.key(Use.CONTACT_SHEET_VIEWS, np.arange(len(images)))
    views = copy.copy(views)
    views.makers = [*views.makers, Originals()]
    return views.collator("cpu")(views.rows(Block({"image": list(images)}, keys, 0)).columns)


def contact_sheet(
    batch: dict[str, Any], views: Views, path: str | Path, number: int = 6, hidden: torch.Tensor | None = None
) -> int:
    """Draw a row for each image: the image, its views, its local views.

    Args:
        batch (`dict[str, Any]`):
            As a model gets it, with the encoded images as `original`.
        views ([`Views`]):
            What made it.
        path (`str` or `Path`):
            Of the picture; its folder is made.
        number (`int`, *optional*, defaults to `6`):
            Rows, at most.
        hidden (`torch.BoolTensor` of shape `(batch_size, num_views, height, width)`, *optional*):
            Pixels of the views that the method hides: shown beside the views, in grey.

    Returns:
        `int`: how many images it shows.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = batch["original"][:number]
    batch = {name: values[:number].cpu() for name, values in batch.items() if isinstance(values, torch.Tensor)}
    full = batch["pixel_values"] if batch["pixel_values"].ndim == 5 else batch["pixel_values"][:, None]
    columns = [(f"view {i + 1}", _visible(full[:, i], views)) for i in range(full.shape[1])]
    local = batch.get("local_pixel_values")
    columns += [(f"local {i + 1}", _visible(local[:, i], views)) for i in range(views.num_local)]
    if hidden is not None:
        for i, of_view in enumerate(hidden[:number].cpu().unbind(1)):
            seen = torch.where(of_view[:, None], 0.5, columns[i][1])
            columns.append((f"seen{f' of {i + 1}' * (hidden.shape[1] > 1)} ({1 - of_view.float().mean():.0%})", seen))
    figure, axes = plt.subplots(
        len(shown), 1 + len(columns), figsize=(1.4 * (1 + len(columns)), 1.5 * len(shown) + 0.6), squeeze=False
    )
    for i, line in enumerate(axes):
        original = shown[i]
        if isinstance(original, bytes):
            original = decode_image(original, 1, views.value_range, views.num_channels)
        original = original[visible_channels(views)]
        pictures = [("original" if i == 0 else "", original.permute(1, 2, 0).numpy())]
        pictures += [(title if i == 0 else "", view[i].permute(1, 2, 0).numpy()) for title, view in columns]
        for axis, (title, picture) in zip(line, pictures, strict=True):
            # pixels as they are: what interpolation would hide is what one wants to see
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title, fontsize=8)
            axis.axis("off")
        line[0].text(
            0.5, -0.02, f"{original.shape[2]} × {original.shape[1]}", fontsize=6, ha="center", va="top",
            transform=line[0].transAxes,
        )  # fmt: skip
    figure.suptitle(f"{views.image_size} pixels", fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return len(shown)


def visible_channels(views: Views) -> list[int]:
    """Three channels to look at: the colours, else the first three, else the first one in grey."""
    return list(views.colors or (range(3) if views.num_channels >= 3 else [0, 0, 0]))


def _visible(pixels: torch.Tensor, views: Views) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (views.mean, views.std))
    return (pixels * std + mean).clamp(0, 1)[:, visible_channels(views)]
