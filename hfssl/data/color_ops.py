"""Colour, blur and solarise of many views at once, each with parameters of its own, in place.

The numbers are those of torchvision v2's functions on one float image, clamps between the steps included; what differs
is the work. Images lie in [0, 255], so that a byte needs no scaling before the last step. Hue is turned on the hexagon
of the HSV model without going through HSV, see [`adjust_hue_`].

Each function takes `images` (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`), contiguous, and changes
them; one number per image has shape `(batch_size,)`.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F


WHITE = 255.0
# Rec. 601, as torchvision rounds it.
_GREY = (0.2989, 0.587, 0.114)
# How far red, green and blue are from red on the circle of hues, backwards, in turns.
_CHANNEL_TURNS = (0.0, -1 / 3, 1 / 3)
# Pixels that a core works on at a time: their floats, and those of the steps between, stay in its cache.
_PIXELS_AT_ONCE = 1 << 15
# A Gaussian further out than so many sigma is left out: less than one part in 15,000 of its weight.
BLUR_REACH = 4.0


class Finish:
    """Colours, blurs, solarises and normalises crops, each as it was drawn.

    Views with the same order of jitters go together, in parts that stay in the cache; on a GPU in one.

    Args:
        mean, std (`Sequence[float]`):
            Of red, green and blue in [0, 1], to normalise with.
        device (`torch.device`):
            Where the work is done.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device):
        self.device = device
        self.scale = (1 / (WHITE * torch.tensor(std))).view(1, 3, 1, 1).to(device)
        self.shift = -(torch.tensor(mean) / torch.tensor(std)).view(1, 3, 1, 1).to(device)

    def __call__(self, crops: np.ndarray, draws: np.ndarray) -> torch.Tensor:
        """What the model gets.

        Args:
            crops (`np.ndarray` of dtype `uint8` and shape `(batch_size, num_views, 3, size, size)`):
                Bytes of red, green and blue.
            draws (`np.ndarray` of `hfssl.data.crops.DRAWS` and shape `(batch_size, num_views)`):
                What is to be done with each.

        Returns:
            `torch.FloatTensor` of the shape of `crops`.
        """
        crops, draws = self._on_device(crops), draws.reshape(-1)
        finished = torch.empty(crops.shape, dtype=torch.float32, device=self.device)
        source, target = crops.flatten(0, 1), finished.flatten(0, 1)
        for members in self._parts(draws["order"], crops.shape[-1] * crops.shape[-2]):
            if members[-1] - members[0] == len(members) - 1:  # neighbours
                images = target[members[0] : members[-1] + 1]
                self._finish_(images.copy_(source[members[0] : members[-1] + 1]), draws[members])
            else:
                index = self._on_device(members)
                images = source.index_select(0, index).float()
                target.index_copy_(0, index, self._finish_(images, draws[members]))
        return finished

    def _parts(self, order: np.ndarray, num_pixels: int) -> list[np.ndarray]:
        """Indices of images with the same order of jitters, so many as are to be worked on at a time."""
        largest = len(order)
        if self.device.type == "cpu":
            largest = max(1, _PIXELS_AT_ONCE * torch.get_num_threads() // num_pixels)
        by_order = np.argsort(order, kind="stable")
        runs = np.split(by_order, np.flatnonzero(np.diff(order[by_order])) + 1)
        return [run[first : first + largest] for run in runs for first in range(0, len(run), largest)]

    def _finish_(self, images: torch.Tensor, draws: np.ndarray) -> torch.Tensor:
        order = int(draws["order"][0])
        if order:
            factors = self._on_device(draws["factors"]).T
            while order:
                order, jitter = divmod(order, 5)
                _JITTERS[jitter - 1](images, factors[jitter - 1])
        self._change_some_(images, draws["grey"], lambda some, _: greyscale(some).expand_as(some))
        self._change_some_(images, draws["sigma"] > 0, lambda some, which: self._blurred(some, draws[which]))
        self._change_some_(images, draws["solarize"], lambda some, _: solarize(some))
        return images.mul_(self.scale).add_(self.shift)

    def _blurred(self, images: torch.Tensor, draws: np.ndarray) -> torch.Tensor:
        reach = self._on_device(draws["reach"].astype(np.float32))
        return gaussian_blur(images, self._on_device(draws["sigma"]), reach, int(draws["reach"].max()))

    def _change_some_(self, images: torch.Tensor, which: np.ndarray, change: Callable) -> None:
        if which.all():
            images.copy_(change(images, which))
        elif which.any():
            index = self._on_device(np.flatnonzero(which))
            images.index_copy_(0, index, change(images.index_select(0, index), which))

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def adjust_brightness_(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`factor` 0 gives black, 1 the image itself."""
    return images.mul_(_per_image(factor)).clamp_(max=WHITE)


def adjust_contrast_(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`factor` 0 gives the mean grey of each image, 1 the image itself."""
    # the mean of the grey is the grey of the means
    grey = images.mean((2, 3)).mv(_constant(_GREY, images.device))
    return images.mul_(_per_image(factor)).add_(_per_image(grey.mul_(1 - factor))).clamp_(0.0, WHITE)


def adjust_saturation_(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`factor` 0 gives grey, 1 the image itself."""
    grey = greyscale(images).mul_(_per_image(1 - factor))
    return images.mul_(_per_image(factor)).add_(grey).clamp_(0.0, WHITE)


def adjust_hue_(images: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Turn the hue by `shift` turns, -0.5 to 0.5; the largest and the smallest channel of a pixel stay what they are.

    On the hexagon red, yellow, green, cyan, blue, magenta (corners 0 to 5), a pixel with the channels r, g, b between
    `low` and `low + spread` lies at `±(g + b - r + high - 2 low) / spread`, with the sign of g - b. A channel is full
    within one corner of its own, empty from two corners on, and linear between.
    """
    red, green, blue = images.unbind(1)
    high = torch.maximum(red, green)
    torch.maximum(high, blue, out=high)
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    spread = high - low
    corner = (green + blue).sub_(red).add_(high).sub_(low, alpha=2)
    # a grey pixel has no hue: 0 / tiny keeps it where it is
    corner.div_(spread.clamp_min(1e-6))
    # its sign, bit by bit: `where` and `copysign` take ten times as long
    sign = torch.sub(green, blue).view(torch.int32).bitwise_and_(-(1 << 31))
    corner.view(torch.int32).bitwise_or_(sign)
    # how far from the corner of each channel, within half a turn of it
    turn = shift[:, None] + _constant(_CHANNEL_TURNS, shift.device)
    distance = corner[:, None] + turn.sub_(turn.round()).mul_(6)[:, :, None, None]
    # the hexagon closes at 3: both ways round to full (1 and below) and empty (2 and above)
    full = distance.abs_().sub_(3).abs_().clamp_(1, 2)
    return torch.mul(full, spread[:, None], out=images).add_(low.sub_(spread)[:, None])


def greyscale(images: torch.Tensor) -> torch.Tensor:
    """The luma of the images, `(batch_size, 1, height, width)`."""
    red, green, blue = images.unbind(1)
    return (red * _GREY[0]).add_(green, alpha=_GREY[1]).add_(blue, alpha=_GREY[2])[:, None]


def solarize(images: torch.Tensor) -> torch.Tensor:
    """Invert what is at least half bright. For bytes it is torchvision's with the threshold 128; from 127.5 to 128,
    where bytes have no values, it inverts too, and is less than 1 away."""
    return torch.minimum(images, WHITE - images)


def gaussian_blur(images: torch.Tensor, sigma: torch.Tensor, reach: torch.Tensor, radius: int) -> torch.Tensor:
    """Blur each image with its own Gaussian, mirrored at the edges.

    Args:
        images (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`):
            Stay as they are.
        sigma (`torch.FloatTensor` of shape `(batch_size,)`):
            Standard deviation in pixels.
        reach (`torch.FloatTensor` of shape `(batch_size,)`):
            Pixels on either side of the centre that a kernel covers.
        radius (`int`):
            The largest reach. At most `min(height, width) - 1`.
    """
    height, width = images.shape[2:]
    steps = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    exponents = (-0.5 * (steps / sigma[:, None]) ** 2).masked_fill_(steps.abs() > reach[:, None], -torch.inf)
    weights = torch.softmax(exponents, dim=-1)  # (batch_size, 2 * radius + 1)
    padded = F.pad(images, (radius, radius, radius, radius), mode="reflect").flatten(1)
    # Rows one after another: a step down is a shift by a row, a step across by one. What a shift takes from the next
    # row lies in the margin, which is cut off. Long runs are several times as fast as rows on their own.
    row = width + 2 * radius
    blurred = _weighted_shifts(_weighted_shifts(padded, weights, row), weights, 1)
    strides = (blurred.shape[1], (height + 2 * radius) * row, row, 1)
    return blurred.as_strided(images.shape, strides)


def _weighted_shifts(values: torch.Tensor, weights: torch.Tensor, stride: int) -> torch.Tensor:
    """Each row of `values` convolved with its own symmetric row of `weights`, in steps of `stride`."""
    radius = weights.shape[1] // 2
    length = values.shape[1] - 2 * radius * stride
    result = values.narrow(1, radius * stride, length) * weights[:, radius, None]
    for step in range(1, radius + 1):
        before, after = (values.narrow(1, (radius + way * step) * stride, length) for way in (-1, 1))
        result.addcmul_(before + after, weights[:, radius + step, None])
    return result


_JITTERS = (adjust_brightness_, adjust_contrast_, adjust_saturation_, adjust_hue_)


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device)


def _per_image(numbers: torch.Tensor) -> torch.Tensor:
    return numbers[:, None, None, None]
