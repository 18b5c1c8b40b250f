"""What a masked autoencoder fills in: held-out images, what it saw of them, what it made of that."""

from pathlib import Path
from typing import Any

import torch

from ...modeling.base import evaluating


def plot_reconstructions(
    model: Any, batch: dict[str, torch.Tensor], mean: list[float], std: list[float], path: Path, num_images: int = 8
) -> None:
    """Draw a row for each image: as it is, its visible patches, and with the hidden patches as predicted.

    Args:
        model ([`~hfssl.MaeForPreTraining`]):
            The model.
        batch (`dict[str, torch.Tensor]`):
            Normalised `pixel_values` `(batch_size, 3, height, width)` and `noise` `(batch_size, num_patches)`.
        mean, std (`list[float]`):
            That the images were normalised with.
        path (`Path`):
            The picture.
        num_images (`int`, *optional*, defaults to `8`):
            Rows, at most.
    """
    from matplotlib.figure import Figure

    batch = {name: tensor[:num_images] for name, tensor in batch.items()}
    with evaluating(model):
        reconstructed, hidden = model.reconstruct(**batch)
    images = batch["pixel_values"]
    scale, shift = (images.new_tensor(values).view(-1, 1, 1) for values in (std, mean))
    columns = {
        "image": images * scale + shift,
        "what it saw": torch.where(hidden, 0.5, images * scale + shift),
        "reconstruction": reconstructed * scale + shift,
    }
    figure = Figure(figsize=(3.6, 1.2 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=8)
        # the first three of many channels, the first of two
        pictures = pictures[:, :3] if pictures.shape[1] >= 3 else pictures[:, :1].expand(-1, 3, -1, -1)
        for row, picture in enumerate(pictures.clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()):
            axes[row, column].imshow(picture, interpolation="nearest")
            axes[row, column].set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
