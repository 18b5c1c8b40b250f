"""Makers of columns: what a method's batch holds beside each other, such as crops, noise or masks, each made by one.

A maker has two halves, as [`~hfssl.data.image.views.Views`] has. In the worker `rows` makes numpy columns for the
samples of a block that are left, all at once, drawing each number from the key of its sample. On the device of the
training `collate` makes tensors of those that it knows, of any rank and type. A column whose rows differ in length is
a list of arrays; its maker pads it to one tensor and puts the lengths beside it, as `<name>_lengths`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from ...functional import keyed
from ...functional.keyed import Use
from ...functional.masking import block_masks
from ...functional.views import View
from ..device import send
from ..stream import Block
from .color_ops import Finish
from .crops import PixelRows


class ColumnMaker(Protocol):
    """What [`~hfssl.data.image.views.Views`] asks of a maker."""

    def rows(self, block: Block, kept: np.ndarray) -> dict[str, Any]:
        """Columns of the samples of `block` with the indices `kept`: arrays, or lists of arrays, one entry each."""

    def collate(self, columns: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
        """Tensors on `device` of the maker's own among the columns of some rows."""


class Crops:
    """Randomly cropped and recoloured versions of the images. Decoding them says which samples are left.

    Args:
        groups (`dict[str, Sequence[View]]`):
            Views of one size each, by the name of their column.
        mean, std (`Sequence[float]`):
            Of each channel in [0, 1], to normalise with.
        single (`str`, *optional*):
            The group of one view whose tensor is to have no axis for it.
        value_range (`tuple[float, ...]`, *optional*):
            See [`~hfssl.data.image.decode.decode_image`].
        colors (`tuple[int, ...]`, *optional*):
            Which of the channels are red, green and blue. All three when left out.
    """

    def __init__(
        self,
        groups: dict[str, Sequence[View]],
        mean: Sequence[float],
        std: Sequence[float],
        single: str | None = None,
        value_range: tuple[float, ...] | None = None,
        colors: tuple[int, ...] | None = None,
    ):
        self.pixels = PixelRows(groups, value_range, len(mean))
        self.mean, self.std, self.single, self.colors = tuple(mean), tuple(std), single, colors

    def read(self, block: Block) -> tuple[dict[str, np.ndarray], np.ndarray, list[tuple[int, str]]]:
        """Columns, the indices of the samples that are left, and `(index, reason)` of the others."""
        return self.pixels(block.columns["image"], block.keys)

    def collate(self, columns: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
        finish = _finish(self.mean, self.std, device, self.colors)
        batch = {name: finish(columns[name], columns[f"{name}_draws"]) for name in self.pixels.groups}
        if self.single is not None:
            batch[self.single] = batch[self.single][:, 0]
        return batch


# its numbers lie on the device: not to be sent there for every batch, nor to travel to a worker with the views
@cache
def _finish(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, colors: tuple[int, ...] | None
) -> Finish:
    return Finish(mean, std, device, colors)


class Noise:
    """Numbers by which MAE ranks the patches: `noise` `(batch_size, num_patches)`, float32 in [0, 1).

    Args:
        num_patches (`int`):
            Numbers a sample.
    """

    def __init__(self, num_patches: int):
        self.num_patches = num_patches

    def rows(self, block: Block, kept: np.ndarray) -> dict[str, np.ndarray]:
        keys = keyed.key(Use.NOISE, block.keys[kept][:, None], np.arange(self.num_patches))
        # 24 bits: rounded to float32, 53 of them could be 1
        return {"noise": (keys >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)}

    def collate(self, columns: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
        return {"noise": send(columns["noise"], device)}


class BlockMasks:
    """Patches that DINOv2 masks: `masked_patches` `(batch_size, most)`, int32, of half of the views of each image.

    They count through the patches of all its full-size views, view by view and in reading order. Those of an image
    that has fewer than the most end in -1: so all batches have one shape, and nobody has to count on the device.

    Args:
        num_views (`int`):
            Full-size views an image, at least 2.
        side (`int`):
            Patches in a row of a view.
        ratio (`tuple[float, float]`):
            Smallest and largest share of the patches of a view that is masked.
        name (`str`, *optional*, defaults to `"masked_patches"`):
            Of the column.
    """

    def __init__(self, num_views: int, side: int, ratio: tuple[float, float], name: str = "masked_patches"):
        self.num_views, self.side, self.ratio, self.name = num_views, side, ratio, name

    def rows(self, block: Block, kept: np.ndarray) -> dict[str, np.ndarray]:
        keys, num_patches = block.keys[kept][:, None], self.side**2
        masked_views = self.num_views // 2
        draws = keyed.key(Use.MASKED_VIEW, keys, np.arange(self.num_views))
        views = np.argsort(draws, axis=1)[:, :masked_views]
        low, high = self.ratio
        shares = low + (high - low) * keyed.uniform(keyed.key(Use.MASK_RATIO, keys, views))
        numbers = (num_patches * shares).astype(np.int64)
        keys_of_masks = keyed.key(Use.BLOCK_MASK, keys, views)
        masks = np.zeros((len(kept), self.num_views, num_patches), bool)
        found = block_masks(keys_of_masks.ravel(), numbers.ravel(), self.side).reshape(*views.shape, num_patches)
        np.put_along_axis(masks, views[..., None], found, axis=1)
        masks = masks.reshape(len(kept), self.num_views * num_patches)  # also of none
        most = masked_views * int(num_patches * high)
        patches = np.argsort(~masks, axis=1, kind="stable")[:, :most].astype(np.int32)
        return {self.name: np.where(np.arange(most) < masks.sum(1, keepdims=True), patches, -1)}

    def collate(self, columns: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
        return {self.name: send(columns[self.name], device)}


class MixedSizes:
    """Views of another size in each step: they are cut out at the largest and reduced with the batch.

    The size is drawn from the key of the step, so that no process waits for another with larger views; batches that
    are of no step, such as held-out ones, have the largest. Local views are reduced in proportion. What depends on the
    number of patches, such as masks, is made for each size, as `<name>_<size>`, and chosen then.

    Args:
        sizes (`Sequence[int]`):
            Pixels a side.
        unit (`int`):
            Of which the side of a local view stays a multiple.
    """

    def __init__(self, sizes: Sequence[int], unit: int):
        self.sizes, self.unit, self.largest = tuple(sizes), unit, max(sizes)

    def resized(self, batch: dict[str, torch.Tensor], key_of_step: np.uint64 | None) -> dict[str, torch.Tensor]:
        """A batch at the size of its step."""
        size = self.largest
        if key_of_step is not None:
            size = self.sizes[int(keyed.key(Use.VIEW_SIZE, key_of_step)) % len(self.sizes)]
        chosen = {}
        for name, values in batch.items():
            base, _, number = name.rpartition("_")
            if base in batch and number.isdigit():
                continue
            chosen[name] = batch.get(f"{name}_{size}", values)
            if name.endswith("pixel_values") and size != self.largest:
                side = max(round(values.shape[-1] * size / self.largest / self.unit), 1) * self.unit
                images = values.flatten(0, -4)
                images = F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)
                chosen[name] = images.view(*values.shape[:-2], side, side)
        return chosen
