"""The stock image processor that goes with an encoder: how a picture becomes what the encoder was trained on."""

from collections.abc import Sequence
from typing import Any

from transformers import BaseImageProcessor, BitImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


# The centre crop of ImageNet's evaluations: resize to 256, cut out 224. Smaller pictures are shown whole.
_CROPPED_FROM = 128
_CROP_RATIO = 224 / 256


def build_image_processor(
    image_size: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    value_range: Sequence[float] | None = None,
    colour_channels: Sequence[int] | None = None,
) -> BaseImageProcessor:
    """An image processor that `AutoImageProcessor` loads: resize the short side, cut out the centre, normalise.

    Args:
        image_size (`int`):
            Height and width of what the encoder gets. From 128 on, the centre is cut out of a picture whose short side
            is 8/7 of it, as ImageNet is evaluated; below, the short side is not cropped.
        mean, std (`Sequence[float]`, *optional*):
            Of each channel in [0, 1], as in training; ImageNet's of red, green and blue when left out. Their number is
            that of the channels: images with others than 1 or 3 are given to the processor as arrays
            `(num_channels, height, width)`, with `input_data_format="channels_first"`.
        value_range (`Sequence[float]`, *optional*):
            What became black and white in training, of images with more than 8 bits, or these two of each channel. A
            field that says it to whoever reads the processor, which itself takes 8 bits.
        colour_channels (`Sequence[int]`, *optional*):
            Which channels are red, green and blue. A field of the same kind, left out where they are all channels in
            this order.
    """
    mean = list(mean if mean is not None else IMAGENET_DEFAULT_MEAN)
    told = {"value_range": value_range, "colour_channels": _unlike_rgb(colour_channels, len(mean))}
    short_side = round(image_size / _CROP_RATIO) if image_size >= _CROPPED_FROM else image_size
    return BitImageProcessor(
        do_convert_rgb=len(mean) == 3,
        do_resize=True,
        size={"shortest_edge": short_side},
        resample=PILImageResampling.BICUBIC,
        do_center_crop=True,
        crop_size={"height": image_size, "width": image_size},
        do_rescale=True,
        do_normalize=True,
        image_mean=mean,
        image_std=list(std if std is not None else IMAGENET_DEFAULT_STD),
        **{name: list(values) for name, values in told.items() if values is not None},
    )


def _unlike_rgb(colors: Sequence[int] | None, num_channels: int) -> Sequence[int] | None:
    is_usual = num_channels == 3 and list(colors or ()) == [0, 1, 2]
    return None if not colors or is_usual else colors


def without_timm(processor: Any, name_or_path: str) -> Any:
    """An image processor whose steps can be told what to do, in the place of that of timm, which takes no options.

    Args:
        processor:
            As `AutoImageProcessor` gives it: of a folder with the configuration of timm that of timm, even if another
            one was saved there.
        name_or_path (`str`):
            Where it is from.
    """
    settings = getattr(processor, "data_config", None)
    if settings is None:
        return processor
    try:
        return BitImageProcessor.from_pretrained(name_or_path)
    except OSError:  # a checkpoint as timm has it
        return build_image_processor(settings["input_size"][-1], settings["mean"], settings["std"])


def processed_channels(processor: Any) -> int:
    """How many channels an image processor takes: as many as it has means; 3 where it has none."""
    mean = getattr(processor, "image_mean", None)
    return len(mean) if isinstance(mean, (list, tuple)) else 3
