"""A picture of views: what the model gets to see, beside the images that it is made from."""

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


def pick_images(source: Any, number: int, seed: int = 0) -> list[bytes]:
    """Some encoded images from all over a source, the same for the same `seed`."""
    pieces = keyed.permutation(len(source.pieces), Use.CONTACT_SHEET_PIECES, seed).tolist()
    images: list[bytes] = []
    left: dict[int, list[bytes]] = {}
    while pieces and len(images) < number:
        for piece in pieces[: number - len(images)]:
            if piece not in left:
                column = source.samples(source.read(piece))
                order = keyed.permutation(len(column), Use.CONTACT_SHEET_IMAGES, seed, piece)
                left[piece] = [column[i] for i in order]
            if left[piece]:
                images.append(left[piece].pop())
            else:
                pieces.remove(piece)
    return images


def contact_sheet(images: Sequence[bytes], views: Views, path: str | Path, seed: int = 0) -> int:
    """Draw a row for each image: the image, its views, its local views.

    Args:
        images (`Sequence[bytes]`):
            Encoded images.
        views ([`Views`]):
            What makes the views.
        path (`str` or `Path`):
            Of the picture; its folder is made.
        seed (`int`, *optional*, defaults to `0`):
            Another one gives other views.

    Returns:
        `int`: how many images it shows; damaged ones are left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    keys = keyed.key(Use.CONTACT_SHEET_VIEWS, seed, np.arange(len(images)))
    rows = views.rows(Block({"image": list(images)}, keys, seed))
    damaged = {index for index, _ in rows.bad}
    shown = [image for i, image in enumerate(images) if i not in damaged]
    batch = views.collator("cpu")(rows.columns)
    full = batch["pixel_values"] if batch["pixel_values"].ndim == 5 else batch["pixel_values"][:, None]
    columns = [(f"view {i + 1}", full[:, i]) for i in range(full.shape[1])]
    local = batch.get("local_pixel_values")
    columns += [(f"local {i + 1}", local[:, i]) for i in range(views.num_local)]
    figure, axes = plt.subplots(
        len(shown), 1 + len(columns), figsize=(1.4 * (1 + len(columns)), 1.5 * len(shown) + 0.6), squeeze=False
    )
    for i, line in enumerate(axes):
        original = decode_image(shown[i], value_range=views.value_range)
        pictures = [("original" if i == 0 else "", original.permute(1, 2, 0).numpy())]
        pictures += [(title if i == 0 else "", _visible(view[i], views)) for title, view in columns]
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


def _visible(view: torch.Tensor, views: Views) -> np.ndarray:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (views.mean, views.std))
    return (view * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
