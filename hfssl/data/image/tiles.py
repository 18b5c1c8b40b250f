"""Large images, cut into tiles while they are read: each is an image of its own to whatever comes after.

Tiles lie side by side from the top left; the last of a row or a column is moved in, so that it is whole. Of a tiled
TIFF and of an .npy file only what a tile shows is decoded, of all else the image once for all its tiles.
"""

from typing import Any

import numpy as np
import torch

from ...errors import UserError
from ...functional import keyed
from ...functional.keyed import Use
from ..stream import Block
from .arrays import DamagedImage, open_array
from .decode import array_pixels, decode_image


class Tiles:
    """Turns the images of a block into tiles, each a sample with a key and a place of its own.

    Args:
        size (`int`):
            Height and width of a tile. An image that is smaller is one tile, or a row or a column of them.
        most (`int`):
            Tiles of an image in a pass, at most: other ones in each pass.
        value_range (`tuple[float, ...]`, *optional*), num_channels (`int`, *optional*, defaults to 3):
            See [`~hfssl.data.image.decode.decode_image`].
    """

    def __init__(self, size: int, most: int, value_range: tuple[float, ...] | None = None, num_channels: int = 3):
        if size < 1 or most < 1:
            raise UserError(
                f"`--tile` is a number of pixels, `--tiles_per_image` how many at most: got {size}, {most}."
            )
        self.size, self.most = size, most
        self.value_range, self.num_channels = value_range, num_channels

    def __call__(self, block: Block) -> tuple[Block, list[tuple[int, str]]]:
        """The tiles, mixed, as a block of decoded images; and `(index, reason)` of the images that are damaged."""
        tiles, numbers, images, bad = [], [], [], []
        for index, data in enumerate(block.columns["image"]):
            try:
                found = self.of_image(data, int(block.keys[index]))
            except DamagedImage as error:
                bad.append((index, str(error)))
                continue
            for number, tile in found:
                tiles.append(tile)
                numbers.append(number)
                images.append(index)
        images, numbers = np.array(images, np.int64), np.array(numbers, np.int64)
        keys, places = keyed.key(Use.TILE, block.keys[images], numbers), block.places[images]
        places[:, 3] = numbers
        # or the tiles of an image would follow each other
        order = keyed.permutation(len(tiles), Use.ORDER_OF_ROWS, block.key)
        return Block({"image": [tiles[i] for i in order]}, keys[order], block.key, places[order]), bad

    def of_image(self, data: bytes, key: int) -> list[tuple[int, torch.Tensor]]:
        """Numbers and pixels `(num_channels, height, width)` of the tiles of an image that `key` draws."""
        array = open_array(data, self.num_channels, in_parts=True)
        if array is not None and array.read_region is not None:
            height, width = array.shape[1:]
            boxes = self.boxes(height, width)
            return [
                (number, array_pixels(array, self.value_range, self.num_channels, tuple(boxes[number].tolist())))
                for number in self._drawn(len(boxes), key)
            ]
        pixels = decode_image(data, 1, self.value_range, self.num_channels)
        boxes = self.boxes(*pixels.shape[1:])
        found = []
        for number in self._drawn(len(boxes), key):
            top, left, height, width = boxes[number].tolist()
            found.append((number, pixels[:, top : top + height, left : left + width].clone()))
        return found

    def boxes(self, height: int, width: int) -> np.ndarray:
        """Top, left, height and width of all tiles of an image of this size, in reading order."""
        tops, lefts = (_starts(length, self.size) for length in (height, width))
        corners = np.stack(np.meshgrid(tops, lefts, indexing="ij"), axis=-1).reshape(-1, 2)
        sizes = np.broadcast_to([min(height, self.size), min(width, self.size)], corners.shape)
        return np.concatenate([corners, sizes], axis=1)

    def _drawn(self, number: int, key: int) -> list[int]:
        return sorted(keyed.permutation(number, Use.TILE, key)[: self.most].tolist())

    @property
    def settings(self) -> dict[str, Any]:
        """What of the tiles makes a run this run."""
        return {"tile": self.size, "tiles_per_image": self.most}


def _starts(length: int, size: int) -> np.ndarray:
    number = -(-length // size)
    return np.minimum(np.arange(number) * size, max(length - size, 0))
