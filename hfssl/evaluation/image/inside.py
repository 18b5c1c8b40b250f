"""Encoders of images opened up: the parts of an image are patches, or places of about their size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from ...machine import compute_device
from ...modeling.base import evaluating
from ...modeling.image_processing import processed_channels
from ...modeling.pooling import check_pooling, num_own_tokens, outputs_for, pool_features
from ...modeling.trial import FAILURES
from ..inside import Group, Opened, Row, attentions_of, telling_attention
from .encoder import VisionEncoder, size_arguments
from .features import ImageReader, normalized, range_for, resized_images
from .patch_features import grid_of
from .pictures import _grid, _save, _show


# Parts a side where an encoder has no patches, and parts a side that are hidden one after the other.
_PLACES, _HIDDEN = 14, 8


class ImageInside:
    """A [`~hfssl.evaluation.inside.Inside`] of images.

    Args:
        encoder (`str`):
            Folder or Hub id.
        pooling (`str`, *optional*):
            See [`~hfssl.modeling.pooling.pool_features`].
        batch_size (`int`, *optional*, defaults to `64`):
            Images a forward pass.
        random_init (`bool`, *optional*, defaults to `False`):
            Take new weights.
    """

    part, several_parts, hidden = "patch", "patches", "the mean colour"

    def __init__(self, encoder: str, pooling: str | None = None, batch_size: int = 64, random_init: bool = False):
        vision = VisionEncoder(encoder)
        self.name, self.processor, self.batch_size = vision.name, vision.processor, batch_size
        model = vision.random_init(seed=0) if random_init else vision.load()
        self.model = telling_attention(model).to(compute_device())
        self.pooling = check_pooling(model.config, pooling)

    def reader(self, samples: Sequence[bytes]) -> ImageReader:
        return ImageReader(range_for(self.processor, samples), processed_channels(self.processor))

    def layers(self, samples: Sequence[bytes], rows: Sequence[int]) -> list[np.ndarray]:
        found: list[list[torch.Tensor]] = []
        with evaluating(self.model):
            for start in range(0, len(rows), self.batch_size):
                pixels = resized_images(self.processor, samples, rows[start : start + self.batch_size])
                outputs = self._outputs(normalized(self.processor, pixels, self.model.device))
                made = pooled_layers(outputs, self.model.config, self.pooling)
                found.append([each.float().cpu() for each in made])
        return [torch.cat(parts).numpy() for parts in zip(*found, strict=True)]

    def open(self, samples: Sequence[bytes], row: int) -> Opened:
        pixels = resized_images(self.processor, samples, [row])
        return Opened(normalized(self.processor, pixels, self.model.device), pixels[0])

    def forward(self, inputs: torch.Tensor, sample: Opened) -> tuple[torch.Tensor, torch.Tensor | None]:
        height, width = inputs.shape[-2:]
        options = size_arguments(self.model, height, width) | outputs_for(self.pooling)
        outputs = self.model(pixel_values=inputs, **options)
        places = outputs.last_hidden_state if outputs.last_hidden_state.ndim == 4 else None
        return pool_features(outputs, self.model.config, self.pooling), places

    def cells(self, relevance: torch.Tensor, sample: Opened) -> np.ndarray:
        by_place = relevance.sum(1)  # (1, height, width)
        grid = self._cells(*by_place.shape[1:], _PLACES)
        pixels_of_each = by_place[0].numel() / (grid[0] * grid[1])
        return (F.adaptive_avg_pool2d(by_place, grid)[0] * pixels_of_each).numpy()

    def occluded(self, sample: Opened) -> tuple[torch.Tensor, tuple[int, ...]]:
        height, width = sample.inputs.shape[-2:]
        rows, columns = (min(number, _HIDDEN) for number in self._cells(height, width, _HIDDEN))
        variants = sample.inputs.repeat(rows * columns, 1, 1, 1)
        for at, image in enumerate(variants):
            top, left = at // columns, at % columns
            # of normalised pixels 0 is the mean
            image[
                :,
                top * height // rows : (top + 1) * height // rows,
                left * width // columns : (left + 1) * width // columns,
            ] = 0.0
        return variants, (rows, columns)

    def attentions(self, sample: Opened) -> Sequence[torch.Tensor] | None:
        options = size_arguments(self.model, *sample.inputs.shape[-2:])
        found = attentions_of(self.model, pixel_values=sample.inputs, **options)
        if found is None:
            return None
        num_patches = found[0].shape[-1] - num_own_tokens(self.model.config)
        return found if grid_of(self.model.config, num_patches, *sample.inputs.shape[-2:]) else None

    def read_from(self, num_tokens: int, sample: Opened) -> torch.Tensor:
        own = num_own_tokens(self.model.config)
        cls, patches = torch.zeros(num_tokens), torch.zeros(num_tokens)
        cls[0], patches[own:] = 1.0, 1.0 / (num_tokens - own)
        return {"mean": patches, "cls+mean": (cls + patches) / 2}.get(self.pooling, cls)

    def parts(self, tokens: torch.Tensor, sample: Opened) -> np.ndarray:
        patches = tokens[num_own_tokens(self.model.config) :]
        return patches.view(grid_of(self.model.config, len(patches), *sample.inputs.shape[-2:])).numpy()

    def show_maps(self, rows: Sequence[Row], folder: Path, name: str, caption: str) -> dict[str, Any]:
        heads = list(rows[0].maps)
        signed = {head: any((row.maps[head] < 0).any() for row in rows) for head in heads}
        figure, axes = _grid(len(rows), 1 + len(heads), size=1.5)
        for line, row in zip(axes, rows, strict=True):
            _show(line[0], row.sample.shown)
            line[0].set_xlabel(row.title, fontsize=6, labelpad=2)
            height, width = row.sample.shown.shape[-2:]
            for axis, head in zip(line[1:], heads, strict=True):
                axis.imshow(row.sample.shown.float().mean(0).numpy(), cmap="gray", vmin=0, vmax=255)
                colours, extent = _colours(row.maps[head], signed[head]), (-0.5, width - 0.5, height - 0.5, -0.5)
                axis.imshow(row.maps[head], extent=extent, alpha=0.6, **colours)
        for axis, head in zip(axes[0], ("image", *heads), strict=True):
            axis.set_title(head, fontsize=8)
        _save(figure, folder / f"{name}.png")
        said = " Red speaks for it, blue against." if any(signed.values()) else ""
        return {"picture": f"{name}.png", "caption": caption + said}

    def show_groups(
        self, samples: Sequence[bytes], groups: Sequence[Group], folder: Path, name: str, caption: str
    ) -> dict[str, Any]:
        rows = [row for group in groups for row, _ in group.samples]
        pixels = iter(resized_images(self.processor, samples, rows))
        figure, axes = _grid(len(groups), max(len(group.samples) for group in groups), size=1.15)
        for line, group in zip(axes, groups, strict=True):
            for axis in line[len(group.samples) :]:
                axis.set_axis_off()
            for axis, (_, said) in zip(line, group.samples, strict=False):
                _show(axis, next(pixels))
                axis.set_xlabel(said, fontsize=6, labelpad=2)
            line[0].set_ylabel(group.title, fontsize=6)
        _save(figure, folder / f"{name}.png")
        return {"picture": f"{name}.png", "caption": caption}

    def _outputs(self, pixel_values: torch.Tensor) -> ModelOutput:
        options = size_arguments(self.model, *pixel_values.shape[-2:])
        try:
            return self.model(pixel_values=pixel_values, **options, output_hidden_states=True)
        except FAILURES:  # one that tells its last state only
            return self.model(pixel_values=pixel_values, **options)

    def _cells(self, height: int, width: int, otherwise: int) -> tuple[int, int]:
        patch = getattr(self.model.config, "patch_size", None)
        side = patch if isinstance(patch, int) and patch >= 4 else max(1, max(height, width) // otherwise)
        return max(1, height // side), max(1, width // side)


def pooled_layers(outputs: ModelOutput, config: PreTrainedConfig, pooling: str) -> list[torch.Tensor]:
    """One vector an image and layer, `(batch_size, dim)` with a `dim` of its own: what comes into the first block,
    what each block gives, and as the last one the feature."""
    own, found = num_own_tokens(config), []
    for hidden in outputs.get("hidden_states") or ():
        if hidden.ndim == 4:
            found.append(hidden.mean((2, 3)))
        elif pooling == "mean":
            found.append(hidden[:, own:].mean(1))
        elif pooling == "cls+mean":
            found.append(torch.cat([hidden[:, 0], hidden[:, own:].mean(1)], dim=-1))
        else:
            found.append(hidden[:, 0])
    return [*found[:-1], pool_features(outputs, config, pooling)]


def _colours(values: np.ndarray, signed: bool) -> dict[str, Any]:
    """How a map is drawn: with two colours where it may be against."""
    largest = float(np.abs(values).max()) or 1.0
    if signed:
        return {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
    return {"cmap": "inferno", "vmin": 0.0, "vmax": largest}
