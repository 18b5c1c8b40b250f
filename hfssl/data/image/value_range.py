"""Which values become black and white, of images with more than 8 bits a value.

Their files do not say it: a sensor of 12 bits writes 0 to 4095 into 16 of them, and floats go from 0 to 1, or are
degrees, or heights. So it is judged on a sample of the data, said in the log, and from then on part of the run.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import UserError
from .decode import ALL_OF_SIXTEEN_BITS, DamagedImage, raw_values


logger = logging.getLogger(__name__)

# What is black and what is white, of all channels; or these two of each channel, one after the other.
ValueRange = tuple[float, ...]

# Of an image, at most so many values are looked at.
_VALUES_AN_IMAGE = 1 << 14
# On so many labelled images the range of their values is judged.
_JUDGED_IMAGES = 64
# What may lie outside on each side: single dead or glaring pixels must not make all others dark.
_OUTSIDE = 0.001


def check_range(value_range: Sequence[float] | None) -> None:
    """Raise where `--value_range` is none.

    Raises:
        UserError: if it is not a smaller number and a larger one, or these of each channel.
    """
    if value_range is None:
        return
    ends = list(zip(value_range[::2], value_range[1::2], strict=False))
    is_whole = ends and len(value_range) % 2 == 0 and all(map(math.isfinite, value_range))
    if not is_whole or not all(low < high for low, high in ends):
        raise UserError(
            "`--value_range` is the value that is black and the larger one that is white, or these two of each "
            f"channel, one after the other, got {' '.join(f'{end:g}' for end in value_range)}."
        )


@dataclass
class RangeOfSet:
    """The range of values of a labelled set, for the encoders that are measured on it.

    Args:
        images (`Sequence[bytes]`):
            Those to learn from.
        stated (`Sequence[float]`, *optional*):
            What the user said.
    """

    images: Sequence[bytes]
    stated: Sequence[float] | None = None

    def __post_init__(self):
        self._judged: dict[int, ValueRange | None] = {}  # by the channels that are wanted

    def for_encoder(self, processor: Any) -> ValueRange | None:
        """What is stated, else what the encoder was trained with, else what is judged in the channels it takes."""
        from ...modeling.image_processing import processed_channels  # imports more than workers need

        known = (tuple(self.stated) if self.stated else None) or range_of(processor)
        return known or self._judge(processed_channels(processor))

    def _judge(self, num_channels: int) -> ValueRange | None:
        if num_channels not in self._judged:
            looked_at = range(0, len(self.images), -(-len(self.images) // _JUDGED_IMAGES) or 1)
            self._judged[num_channels] = judge_range((self.images[row] for row in looked_at), num_channels)
        return self._judged[num_channels]


def range_of(processor: Any) -> ValueRange | None:
    """The range of values that an encoder was trained with, as its image processor says it."""
    known = getattr(processor, "value_range", None)
    return tuple(known) if known else None


def judge_range(images: Iterable[bytes], num_channels: int | None = None) -> ValueRange | None:
    """The range of values of some encoded images, for the log too; `None` where none has more than 8 bits.

    It reaches from 0 to the next power of two (for integers, less 1) that holds nearly all values, as sensors have it,
    below 0 where values are. Where the values fill a corner of that only, such as temperatures around 300, it is what
    they fill. Channels that are no colours have each their own: a height is no reflectance.
    """
    samples = []
    for image in images:
        try:
            values = raw_values(image, num_channels)
        except DamagedImage:
            continue
        if values is None:
            continue
        if values.dtype == np.uint8:
            return ALL_OF_SIXTEEN_BITS  # no more of them can be read
        values = values.reshape(1 if values.ndim == 2 or len(values) in (1, 3) else len(values), -1)
        samples.append(values[:, :: max(1, values.size // _VALUES_AN_IMAGE)].copy())  # not to keep the whole image
    numbers = Counter(map(len, samples))
    # of other numbers of channels than most of them it is said elsewhere
    samples = [values for values in samples if len(values) == numbers.most_common(1)[0][0]]
    if not any(np.isfinite(values).any() for values in samples):
        return None
    whole = all(np.issubdtype(values.dtype, np.integer) for values in samples)
    judged: list[float] = []
    for values in zip(*samples, strict=True):
        values = np.concatenate([values.astype(np.float64) for values in values])
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, [_OUTSIDE, 1 - _OUTSIDE]).tolist() if len(values) else (0.0, 0.0)
        judged += _range_of(low, high, whole)
        logger.info(
            "Images with more than 8 bits: of the values of %d of them%s nearly all lie in %.6g to %.6g, and %.6g to "
            "%.6g become black to white. `--value_range LOW HIGH` states another range%s.",
            len(samples), f" (channel {len(judged) // 2})" if len(samples[0]) > 1 else "", low, high, *judged[-2:],
            ", or one of each channel" if len(samples[0]) > 1 else "",
        )  # fmt: skip
    return tuple(judged)


def _range_of(low: float, high: float, whole: bool) -> ValueRange:
    one = 1.0 if whole else 0.0
    # a little may be above for rounding: floats up to 1.001 are floats up to 1
    black = -_power_of_two(-low) if low < 0 else 0.0
    white = max(_power_of_two((high + one) / (1.0 if whole else 1.01)) - one, 0.0)
    if low < high and 4 * (high - low) < white - black:
        return low, high
    return black, white if white > black else black + 1.0  # of one value only, it is black


def _power_of_two(value: float) -> float:
    """The smallest power of two that is not below a positive value; 0 for others."""
    return 2.0 ** math.ceil(math.log2(value)) if value > 0 else 0.0
