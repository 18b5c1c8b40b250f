"""Colour, blur and solarise of many views at once, each with parameters of its own, in place.

The numbers are those of torchvision v2's functions on one float image, clamps between the steps included; what differs
is the work. Images lie in [0, 255], so that a byte needs no scaling before the last step. Hue is turned on the hexagon
of the HSV model without going through HSV, see [`adjust_hue_`].

Each function takes `images` (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`), contiguous, and changes
them; one number per image has shape `(batch_size,)`. Channels that are no colours, of any number, are changed in
brightness and contrast, and blurred.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from ..device import send


WHITE = 255.0
# Rec. 601, as torchvision rounds it.
_GREY = (0.2989, 0.587, 0.114)
# How far red, green and blue are from red on the circle of hues, backwards, in turns.
_CHANNEL_TURNS = (0.0, -1 / 3, 1 / 3)
# Pixels that a core works on at a time: their floats, and those of the steps between, stay in its cache.
_PIXELS_AT_ONCE = 1 << 15
# A kernel that reaches further than so many pixels is applied as products of matrices, which then take less time.
_FEW_STEPS = 5
# About so many rows or columns at a time.
_BAND = 32
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
        colors (`tuple[int, ...]`, *optional*):
            Which of the channels are red, green and blue; none of them are where it is empty. All three when left out.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        colors: tuple[int, ...] | None = None,
    ):
        self.device, number = device, len(mean)
        self.scale = (1 / (WHITE * torch.tensor(std))).view(1, number, 1, 1).to(device)
        self.shift = -(torch.tensor(mean) / torch.tensor(std)).view(1, number, 1, 1).to(device)
        colors = list(range(number)) if colors is None else list(colors)
        others = [channel for channel in range(number) if channel not in colors]
        # channels, by numbers that lie on the device, and whether they are colours
        self.parts = [
            (torch.tensor(part, device=device), part is colors) for part in (colors, others) if len(part)
        ]  # fmt: skip
        self.is_one_part = list(range(number)) in (colors, others)  # then no copy has to be made

    def __call__(self, crops: np.ndarray, draws: np.ndarray) -> torch.Tensor:
        """What the model gets.

        Args:
            crops (`np.ndarray` of dtype `uint8` and shape `(batch_size, num_views, num_channels, size, size)`):
                Bytes, such as those of red, green and blue.
            draws (`np.ndarray` of `hfssl.data.image.crops.DRAWS` and shape `(batch_size, num_views)`):
                What is to be done with each.

        Returns:
            `torch.FloatTensor` of the shape of `crops`.
        """
        crops, draws = self._on_device(crops), draws.reshape(-1)
        if self.device.type == "cpu":  # numpy asks for huge pages: filling new memory takes a seventh of the time
            finished = torch.from_numpy(np.empty(crops.shape, np.float32))
        else:
            finished = torch.empty(crops.shape, dtype=torch.float32, device=self.device)
        source, target = crops.flatten(0, 1), finished.flatten(0, 1)
        with torch.autocast(self.device.type, enabled=False):
            for members in self._parts(draws["order"], crops.shape[-1] * crops.shape[-2]):
                if members[-1] - members[0] == len(members) - 1:  # neighbours
                    images = target[members[0] : members[-1] + 1]
                    self._finish_(images.copy_(source[members[0] : members[-1] + 1]), draws[members])
                else:
                    images = source.index_select(0, self._on_device(members)).float()
                    self._put(target, members, self._finish_(images, draws[members]))
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
        for channels, are_colors in self.parts:
            if self.is_one_part:
                self._change_(images, draws, are_colors)
            else:
                some = images[:, channels]
                self._change_(some, draws, are_colors)
                images[:, channels] = some
        return images.mul_(self.scale).add_(self.shift)

    def _change_(self, images: torch.Tensor, draws: np.ndarray, are_colors: bool) -> None:
        order, jitters = int(draws["order"][0]), _JITTERS if are_colors else _JITTERS_OF_OTHERS
        if order:
            factors = self._on_device(draws["factors"]).T
            while order:
                order, jitter = divmod(order, 5)
                if jitter <= len(jitters):
                    jitters[jitter - 1](images, factors[jitter - 1])
        if are_colors:
            self._change_some_(images, draws["grey"], lambda some, _: greyscale(some).expand_as(some))
        self._change_some_(images, draws["sigma"] > 0, lambda some, which: self._blurred(some, draws[which]))
        if are_colors:
            self._change_some_(images, draws["solarize"], lambda some, _: solarize(some))

    def _blurred(self, images: torch.Tensor, draws: np.ndarray) -> torch.Tensor:
        reach = self._on_device(draws["reach"].astype(np.float32))
        return gaussian_blur(images, self._on_device(draws["sigma"]), reach, int(draws["reach"].max()))

    def _change_some_(self, images: torch.Tensor, which: np.ndarray, change: Callable) -> None:
        if which.all():
            images.copy_(change(images, which))
        elif which.any():
            members = np.flatnonzero(which)
            some = images.index_select(0, self._on_device(members))
            self._put(images, members, change(some, which))

    def _put(self, images: torch.Tensor, members: np.ndarray, values: torch.Tensor) -> None:
        if self.device.type == "cpu":  # copies whole images, where `index_copy_` goes value by value
            images.numpy()[members] = values.numpy()
        else:
            images.index_copy_(0, self._on_device(members), values)

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return send(array, self.device)


def adjust_brightness_(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`factor` 0 gives black, 1 the image itself."""
    return images.mul_(_per_image(factor)).clamp_(max=WHITE)


def adjust_contrast_(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`factor` 0 gives the mean grey of each image, 1 the image itself."""
    # the mean of the grey is the grey of the means
    grey = images.mean((2, 3)).mv(_constant(_GREY, images.device))
    return images.mul_(_per_image(factor)).add_(_per_image(grey.mul_(1 - factor))).clamp_(0.0, WHITE)


def adjust_contrast_of_each_(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`factor` 0 gives the mean of each channel of each image, 1 the image itself. Channels of any number."""
    means = images.mean((2, 3), keepdim=True)
    return images.mul_(_per_image(factor)).add_(means.mul_(_per_image(1 - factor))).clamp_(0.0, WHITE)


def adjust_saturation_(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`factor` 0 gives grey, 1 the image itself."""
    return torch.lerp(greyscale(images), images, _per_image(factor), out=images).clamp_(0.0, WHITE)


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
    steps = torch.arange(radius + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-0.5 * (steps / sigma[:, None]) ** 2).masked_fill_(steps > reach[:, None], 0.0)
    # those of the centre, which is 1 before, and of one side
    weights.div_(2 * weights.sum(1, keepdim=True) - 1)
    return (_blur_by_steps if radius <= _FEW_STEPS else _blur_by_bands)(images, weights)


def _blur_by_steps(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    height, width = images.shape[2:]
    radius = weights.shape[1] - 1
    padded = F.pad(images, (radius, radius, radius, radius), mode="reflect").flatten(1)
    # Rows one after another: a step down is a shift by a row, a step across by one. What a shift takes from the next
    # row lies in the margin, which is cut off. Long runs are several times as fast as rows on their own.
    row = width + 2 * radius
    blurred = _weighted_shifts(_weighted_shifts(padded, weights, row), weights, 1)
    strides = (blurred.shape[1], (height + 2 * radius) * row, row, 1)
    return blurred.as_strided(images.shape, strides)


def _weighted_shifts(values: torch.Tensor, weights: torch.Tensor, stride: int) -> torch.Tensor:
    """Each row of `values` convolved with its own symmetric kernel, in steps of `stride`."""
    radius = weights.shape[1] - 1
    length = values.shape[1] - 2 * radius * stride
    result = values.narrow(1, radius * stride, length) * weights[:, :1]
    for step in range(1, radius + 1):
        before, after = (values.narrow(1, (radius + way * step) * stride, length) for way in (-1, 1))
        result.addcmul_(before + after, weights[:, step, None])
    return result


def _blur_by_bands(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """As products of matrices: a band of the output needs a band of the input, wider by what the kernel reaches."""
    number, channels, height, width = images.shape
    radius = weights.shape[1] - 1
    down = _blur_matrices(weights, height)
    across = down if width == height else _blur_matrices(weights, width)
    rows = torch.empty_like(images).view(number * channels, height, width)
    for first, last, low, high in _bands(height, radius):
        part = down[:, None, first:last, low:high].expand(-1, channels, -1, -1).flatten(0, 1)
        torch.bmm(part, images.flatten(0, 1)[:, low:high], out=rows[:, first:last])
    rows = rows.view(number, channels * height, width)
    blurred = torch.empty_like(rows)
    for first, last, low, high in _bands(width, radius):
        part = across[:, first:last, low:high].transpose(1, 2)
        torch.bmm(rows[:, :, low:high], part, out=blurred[:, :, first:last])
    return blurred.view(images.shape)


def _bands(size: int, radius: int) -> Iterator[tuple[int, int, int, int]]:
    """First and last output of a band, first and last input."""
    width = -(-size // max(1, size // _BAND))
    for first in range(0, size, width):
        last = min(first + width, size)
        yield first, last, max(0, first - radius), min(size, last + radius)


def _blur_matrices(weights: torch.Tensor, size: int) -> torch.Tensor:
    """The convolution with symmetric kernels, mirrored at the edges, as matrices `(batch_size, size, size)`.

    `weights` `(batch_size, radius + 1)` are those of the centre and of one side.
    """
    radius = weights.shape[1] - 1
    # a line for each row of the matrix, read with a step that is one shorter: each row begins one further left
    line = torch.cat([weights, weights.new_zeros(len(weights), size - 1), weights[:, 1:].flip(1)], dim=1)
    length = line.shape[1]
    lines = line.repeat(1, size)
    matrices = lines.as_strided((len(weights), size, size), (lines.shape[1], length - 1, 1))
    # row i takes from column j what lies at -j, too: i + j from it
    beyond = F.pad(weights[:, 1:], (0, radius))
    mirrored = beyond.as_strided((len(weights), radius, radius), (2 * radius, 1, 1))
    matrices[:, :radius, 1 : radius + 1] += mirrored
    matrices[:, size - radius :, size - 1 - radius : size - 1] += mirrored.flip(1, 2)
    return matrices


_JITTERS = (adjust_brightness_, adjust_contrast_, adjust_saturation_, adjust_hue_)
_JITTERS_OF_OTHERS = (adjust_brightness_, adjust_contrast_of_each_)


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device)


def _per_image(numbers: torch.Tensor) -> torch.Tensor:
    return numbers[:, None, None, None]
