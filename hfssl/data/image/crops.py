"""The worker's half of the views: everything about a sample is drawn from its key, its crops are cut out and resized.

Drawn as torchvision v2 does: a crop's area uniform in `scale`, its aspect log-uniform in `ratio`, ten tries for one
that fits, then the centre; factors of brightness, contrast and saturation uniform around 1, the shift of hue uniform
around 0, the four in random order. All numbers of a block are drawn at once.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ...functional import keyed
from ...functional.keyed import Use
from ...functional.views import View
from .color_ops import BLUR_REACH
from .decode import DamagedImage, decode_image, image_header
from .resize import SMALL, crop_and_resize, crop_and_resize_together


# Images that are decoded together: enough to draw for at once, few enough for memory when they are large.
_IMAGES_AT_ONCE = 64
# A JPEG comes out reduced as long as each of its crops keeps so many times the pixels of its view, each way.
_SHRUNK_ABOVE = 1.5
# A JPEG of fewer bytes is hardly larger than that: its header is not worth a look.
_MIN_BYTES_TO_SHRINK = 40_000
_TRIES = 10

# How a view is to be finished after its crop. `order`: the jitters in their order, as digits to the base 5 (brightness
# 1, contrast 2, saturation 3, hue 4), 0 for none; `sigma`: of the blur, 0 for none; `reach`: how many
# pixels to each side its kernel goes.
DRAWS = np.dtype(
    [("order", "i2"), ("factors", "f4", 4), ("grey", "?"), ("sigma", "f4"), ("reach", "i2"), ("solarize", "?")],
    align=True,  # torch reads fields in place
)


class PixelRows:
    """Turns encoded images into crops and what is to be done with them.

    Args:
        groups (`dict[str, Sequence[View]]`):
            Views of one size each, by the name of their column.
        value_range (`tuple[float, ...]`, *optional*), num_channels (`int`, *optional*, defaults to 3):
            See [`~hfssl.data.image.decode.decode_image`].
    """

    def __init__(
        self,
        groups: dict[str, Sequence[View]],
        value_range: tuple[float, ...] | None = None,
        num_channels: int = 3,
    ):
        self.value_range, self.num_channels = value_range, num_channels
        self.groups = {name: tuple(views) for name, views in groups.items()}
        # what is drawn alike is drawn together: (column, view, its places in the column, its numbers among all views)
        self.kinds: list[tuple[str, View, list[int], np.ndarray]] = []
        first = 0
        for name, views in self.groups.items():
            for view in dict.fromkeys(views):
                places = [place for place, other in enumerate(views) if other == view]
                self.kinds.append((name, view, places, first + np.array(places)))
            first += len(views)

    def __call__(
        self, encoded: Sequence[bytes | torch.Tensor], keys: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, list[tuple[int, str]]]:
        """Crops and draws of a block.

        Args:
            encoded (`Sequence[bytes | torch.Tensor]`):
                Images as files have them, or decoded: `uint8` of shape `(num_channels, height, width)`.
            keys (`np.ndarray` of dtype `uint64` and shape `(num_images,)`):
                Key of each.

        Returns:
            `tuple`: for each group its `uint8` column of shape `(num_kept, num_views, num_channels, size, size)` and,
            under its name with `_draws`, `(num_kept, num_views)` of `DRAWS`; the indices of the images that were kept;
            and `(index, reason)` of those that could not be decoded.
        """
        crops, draws = {}, {}
        for name, views in self.groups.items():
            shape = (len(encoded), len(views), self.num_channels, views[0].size, views[0].size)
            crops[name] = torch.from_numpy(np.empty(shape, np.uint8))  # numpy asks for huge pages
            draws[name] = np.empty((len(encoded), len(views)), DRAWS)
        bad = []
        for first in range(0, len(encoded), _IMAGES_AT_ONCE):
            part = slice(first, first + _IMAGES_AT_ONCE)
            damaged = self._cut_out(encoded[part], keys[part], {name: pixels[part] for name, pixels in crops.items()})
            bad += [(first + index, reason) for index, reason in damaged]
        for name, view, places, numbers in self.kinds:
            view_keys = keyed.key(Use.VIEW, keys[:, None], numbers)
            draws[name][:, places] = draw_finish(view, view_keys.ravel()).reshape(view_keys.shape)
        columns = {name: pixels.numpy() for name, pixels in crops.items()}
        columns |= {f"{name}_draws": drawn for name, drawn in draws.items()}
        kept = np.delete(np.arange(len(encoded)), [index for index, _ in bad])
        return columns if not bad else {name: values[kept] for name, values in columns.items()}, kept, sorted(bad)

    def _cut_out(self, encoded: Sequence, keys: np.ndarray, crops: dict[str, torch.Tensor]) -> list[tuple[int, str]]:
        """Fill `crops[column][image, view]`; what cannot be decoded is left as it is and returned."""
        images: dict[int, torch.Tensor] = {}
        by_size: dict[tuple[int, ...], list[int]] = {}
        sizes, bad = [(1, 1)] * len(encoded), {}
        for i, data in enumerate(encoded):
            try:
                if _may_shrink(data):
                    header = image_header(data)
                    sizes[i] = header.height, header.width
                else:
                    images[i] = data if isinstance(data, torch.Tensor) else self._decode(data)
                    sizes[i] = height, width = tuple(images[i].shape[1:])
                    if height <= SMALL and width <= SMALL:
                        by_size.setdefault((height, width), []).append(i)
            except DamagedImage as error:
                bad[i] = str(error)
        sizes = np.array(sizes)
        drawn, room = [], np.full(len(encoded), np.inf)
        for name, view, places, numbers in self.kinds:
            view_keys = keyed.key(Use.VIEW, keys[:, None], numbers)
            heights, widths = (np.repeat(side, len(numbers)) for side in sizes.T)
            boxes = draw_boxes(view, view_keys.ravel(), heights, widths).reshape(*view_keys.shape, 4)
            flips = _uniform(Use.FLIP, view_keys) < view.flip_probability
            drawn.append((view, crops[name][:, places[0] : places[-1] + 1], boxes, flips))
            room = np.minimum(room, boxes[..., 2:].min(axis=(1, 2)) / view.size)

        together = [one for one in drawn if one[0].size <= SMALL]
        alone = [one for one in drawn if one[0].size > SMALL]
        for members in by_size.values() if together else ():
            stacked = torch.stack([images[i] for i in members])
            for view, out, boxes, flips in together:
                if len(members) == len(encoded):
                    crop_and_resize_together(stacked, boxes, flips, view.interpolation, out)
                else:
                    resized = torch.empty(len(members), *out.shape[1:], dtype=torch.uint8)
                    crop_and_resize_together(stacked, boxes[members], flips[members], view.interpolation, resized)
                    out.numpy()[members] = resized.numpy()
        done = set().union(*by_size.values())
        if len(done) == len(encoded) and not alone:
            return []
        drawn, alone = (
            [(view, out, boxes.tolist(), flips.tolist()) for view, out, boxes, flips in views]
            for views in (drawn, alone)
        )
        for i, data in enumerate(encoded):
            remaining = alone if i in done else drawn
            if i in bad or not remaining:
                continue
            image, shrink = images.pop(i, None), (1.0, 1.0)
            if image is None:
                try:
                    image = self._decode(data, _largest_shrink(room[i]))
                except DamagedImage as error:
                    bad[i] = str(error)
                    continue
                shrink = image.shape[1] / sizes[i, 0], image.shape[2] / sizes[i, 1]
            for view, out, boxes, flips in remaining:
                for place, (box, flip) in enumerate(zip(boxes[i], flips[i], strict=True)):
                    box = _scaled(box, shrink, image)
                    crop_and_resize(image, box, flip, view.interpolation, out[i, place : place + 1])
        return list(bad.items())

    def _decode(self, data: bytes, shrink: int = 1) -> torch.Tensor:
        return decode_image(data, shrink, self.value_range, self.num_channels)


def draw_boxes(view: View, keys: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """What to cut out of each image.

    Args:
        view ([`View`]):
            Its `scale` and `ratio`.
        keys (`np.ndarray` of dtype `uint64` and shape `(num_images,)`):
            Key of this view of each image.
        heights, widths (`np.ndarray` of shape `(num_images,)`):
            Sizes of the images.

    Returns:
        `np.ndarray` of dtype `int64` and shape `(num_images, 4)`: top, left, height and width.
    """
    boxes, fits = _try_boxes(view, keys, heights, widths, 0, 1)
    if not fits.all():
        again = np.flatnonzero(~fits)
        boxes[again], fits[again] = _try_boxes(view, keys[again], heights[again], widths[again], 1, _TRIES)
    if not fits.all():  # as much of the centre as the aspect allows
        height = np.maximum(np.minimum(heights, np.rint(widths / view.ratio[0])), 1)
        width = np.maximum(np.minimum(widths, np.rint(heights * view.ratio[1])), 1)
        centre = np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)
        boxes = np.where(fits[:, None], boxes, centre)
    return boxes.astype(np.int64)


def _try_boxes(
    view: View, keys: np.ndarray, heights: np.ndarray, widths: np.ndarray, first: int, last: int
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of the first tries that fit, from `first` to before `last`, and which have one."""
    numbers = _uniform(Use.CROP, keys, np.arange(4 * first, 4 * last)).reshape(len(keys), last - first, 4)
    area, aspect, down, right = np.moveaxis(numbers, -1, 0)
    area = (heights * widths)[:, None] * (view.scale[0] + (view.scale[1] - view.scale[0]) * area)
    low, high = np.log(view.ratio)
    aspect = np.exp(low + (high - low) * aspect)
    width, height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (width > 0) & (height > 0) & (width <= widths[:, None]) & (height <= heights[:, None])
    chosen = np.arange(len(keys)), np.argmax(fits, axis=1)
    width, height, down, right, fits = (values[chosen] for values in (width, height, down, right, fits))
    top, left = np.floor(down * (heights - height + 1)), np.floor(right * (widths - width + 1))
    return np.stack([top, left, height, width], axis=1), fits


def draw_finish(view: View, keys: np.ndarray) -> np.ndarray:
    """How each image is to be coloured and blurred: an array of `DRAWS` of the shape of `keys`."""
    draws = np.zeros(len(keys), DRAWS)
    jitter, grey, blur, sigma, solarize, *rest = _uniform(Use.COLOR, keys, np.arange(13)).T
    factors, places = np.array(rest[:4]), np.array(rest[4:])
    active = np.flatnonzero(view.jitter)
    order = active[np.argsort(places[active], axis=0)] + 1
    order = (order * 5 ** np.arange(len(active))[:, None]).sum(axis=0)
    draws["order"] = np.where(jitter < view.jitter_probability, order, 0)
    strength = np.array(view.jitter)[:, None]
    lowest = np.where([[True]] * 3 + [[False]], np.maximum(0.0, 1.0 - strength), -strength)
    highest = np.where([[True]] * 3 + [[False]], 1.0 + strength, strength)
    draws["factors"] = (lowest + (highest - lowest) * factors).T
    draws["grey"] = grey < view.grey_probability
    draws["solarize"] = solarize < view.solarize_probability
    sigma = view.blur_sigma[0] + (view.blur_sigma[1] - view.blur_sigma[0]) * sigma
    reach = np.ceil(BLUR_REACH * sigma)
    if view.blur_width is not None:
        reach = np.minimum(reach, max(1, int(view.blur_width * view.size) // 2))
    reach = np.minimum(reach, view.size - 1)
    blurred = (blur < view.blur_probability) & (reach > 0)
    draws["sigma"], draws["reach"] = np.where(blurred, sigma, 0.0), np.where(blurred, reach, 0)
    return draws


def _may_shrink(data: bytes | torch.Tensor) -> bool:
    return isinstance(data, bytes) and len(data) >= _MIN_BYTES_TO_SHRINK and data[:2] == b"\xff\xd8"


def _largest_shrink(room: float) -> int:
    return next((shrink for shrink in (8, 4, 2) if room >= shrink * _SHRUNK_ABOVE), 1)


def _scaled(box: list[int], shrink: tuple[float, float], image: torch.Tensor) -> list[int]:
    """`box` of an image that came out reduced."""
    if shrink == (1.0, 1.0):
        return box
    top, left, height, width = box
    height = min(max(1, round(height * shrink[0])), image.shape[1])
    width = min(max(1, round(width * shrink[1])), image.shape[2])
    return [min(round(top * shrink[0]), image.shape[1] - height), min(round(left * shrink[1]), image.shape[2] - width),
            height, width]  # fmt: skip


def _uniform(use: Use, keys: np.ndarray, numbers: np.ndarray | None = None) -> np.ndarray:
    """Uniform numbers in [0, 1): one for each key, or those with these `numbers` along a last axis."""
    if numbers is None:
        return keyed.uniform(keyed.key(use, keys))
    return keyed.uniform(keyed.key(use, keys[..., None], numbers))
