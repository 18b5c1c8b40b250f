"""What images a checkpoint was trained on, as its image processor says it."""

import logging
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig

from ...data.image.views import Views
from ...errors import UserError
from ...modeling.image_processing import processed_channels, without_timm
from ...modeling.trial import num_channels_of


logger = logging.getLogger(__name__)

# Of means and deviations that are the same: they are measured on samples.
_NEAR = 0.02


def processor_of(checkpoint: str) -> Any:
    """The image processor of a checkpoint, `None` where it has none."""
    try:
        return without_timm(AutoImageProcessor.from_pretrained(checkpoint), checkpoint)
    except (OSError, ValueError):
        return None


def trained_colors(checkpoint: str) -> list[int] | None:
    """Which channels are red, green and blue, where they are not all channels in this order."""
    return getattr(processor_of(checkpoint), "colour_channels", None)


def trained_mean_std(
    checkpoint: str, num_channels: int, colors: list[int] | None
) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of each channel of images of so many channels, of which these are red, green and
    blue. `None` where the checkpoint does not say any, or says those of other channels."""
    processor = processor_of(checkpoint)
    if processor is None or processed_channels(processor) != num_channels:
        return None
    mean_std = list(processor.image_mean), list(processor.image_std)
    if num_channels == 3:
        order = getattr(processor, "colour_channels", None) or range(3)
        for values in mean_std:
            of_colors = [values[place] for place in order]
            for place, value in zip(colors or range(3), of_colors, strict=True):
                values[place] = value
    return mean_std


def check_input(checkpoint: str, views: Views, flag: str, config: PreTrainedConfig | None = None) -> None:
    """Refuse a checkpoint whose weights are taken as they are, and that was trained on other images than the views
    show.

    Args:
        checkpoint (`str`):
            Folder or Hub id. One that cannot be read is for whoever loads it to say.
        views ([`~hfssl.data.image.views.Views`]):
            What it will see.
        flag (`str`):
            That it was given by.
        config (`PreTrainedConfig`, *optional*):
            Of its encoder of images, where the checkpoint is more than that.

    Raises:
        UserError: if it takes other channels, or has red, green and blue in other places.
    """
    try:
        taken = num_channels_of(config or AutoConfig.from_pretrained(checkpoint))
    except (OSError, ValueError):
        return
    if taken != views.num_channels:
        raise UserError(
            f"`{flag} {checkpoint}` takes images of {taken} channel{'s' * (taken != 1)}, and these have "
            f"{views.num_channels}. Pass one that was trained on images of {views.num_channels}, or leave it out."
        )
    processor = processor_of(checkpoint)
    colors = tuple(getattr(processor, "colour_channels", None) or (range(3) if taken == 3 else ()))
    if colors and views.colors and colors != views.colors:
        theirs, ours = (" ".join(map(str, places)) for places in (colors, views.colors))
        raise UserError(
            f"`{flag} {checkpoint}` has red, green and blue in the channels {theirs}, and these images in {ours}. "
            f"Pass `--colour_channels {theirs}` if they have them there as well, or else another checkpoint."
        )
    if processor is None or processed_channels(processor) != taken:
        return
    ours, theirs = [*views.mean, *views.std], [*processor.image_mean, *processor.image_std]
    if any(abs(one - other) > _NEAR for one, other in zip(ours, theirs, strict=True)):
        of_both = processor.image_mean, processor.image_std, views.mean, views.std
        logger.warning(
            "`%s %s` was trained on images that were normalised otherwise (mean %s, deviation %s) than these (%s, "
            "%s), and sees them brighter or darker than it is used to. `--normalization` says how these are.",
            flag, checkpoint, *map(_words, of_both),
        )  # fmt: skip


def _words(values: list[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values)
