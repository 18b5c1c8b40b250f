"""What the image recipes share: the flags about data, and from them source, held-out images and stream."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data.held_out import held_out_parts, pieces_all_over
from ...data.image.decode import DamagedImage, ImageHeader, decode_image, image_header
from ...data.image.tiles import Tiles
from ...data.image.value_range import ValueRange, check_range, judge_range
from ...data.image.views import Views
from ...data.mixtures import open_mixture, parts_of, stream_class
from ...data.modality import modality
from ...data.sources import DataError, Source, identity
from ...data.stream import ExactStream
from ...errors import UserError
from ...functional import keyed
from ...functional.keyed import Use
from ...training.arguments import SSLTrainingArguments
from ...training.checkpoints import read_settings
from ..data import DataArguments, samples_a_block, stream_options


logger = logging.getLogger(__name__)

# Enough for three digits of mean and standard deviation.
STATISTICS_SAMPLE = 256
# Enough for the size of a usual image.
SIZES_SAMPLE = 64
# Shorter side to which a JPEG may be reduced for statistics: that of most views.
STATISTICS_SIDE = 224


@dataclass
class ImageDataArguments(DataArguments):
    r"""
    > Data

    Args:
        dataset (`str`, *optional*):
            Hub id, folder, file or glob (image files with or without class folders, a csv or json lines with their
            paths, webdataset tars, parquet, arrow, `save_to_disk`), or several with their shares of the images, such
            as photos/:0.7,org/name:0.3. Of a folder with images/ and masks/ the images alone, and npy and npz files
            only where there are no others. Letters or characters (drawn ones, 32 pixels), scenes (several letters, 64
            pixels) or digits (scikit-learn's, 8 pixels), which come with hfssl. Left out: letters.
        image_column (`str`, *optional*):
            Column with the images. Left out, it is found by its type.
        value_range (`list[float]`, *optional*):
            The values that become black and white, of images with more than 8 bits a value (16, or floats); or these
            two of each channel, one after the other. Left out, they are judged on some of the images, of channels that
            are no colours one by one. Part of the run, and kept with the encoder for its probes.
        num_channels (`int`, *optional*):
            Channels of an image. Left out or auto, those of the data: 3 of all pictures, in grey or in colours, and as
            many as there are of other arrays (TIFF, npy, DICOM). 1 takes pictures in grey; 4 of png files takes what
            is transparent as the fourth.
        tile (`int`, *optional*):
            Cut large images into tiles of so many pixels a side, each an image of its own. Of a tiled TIFF and of npy
            files only what a tile shows is decoded. All tiles of an image are trained on, or held out.
        tiles_per_image (`int`, *optional*, defaults to `16`):
            With `tile`: tiles of an image in each pass, at most; other ones in the next.
    """

    image_column: str | None = None
    value_range: list[float] | None = None
    num_channels: int | None = None
    tile: int | None = None
    tiles_per_image: int = 16

    def __post_init__(self):
        super().__post_init__()
        check_range(self.value_range)
        if self.num_channels is not None and self.num_channels < 1:
            raise UserError(f"`--num_channels` is how many channels images have, got {self.num_channels}.")
        for name in ("tile", "tiles_per_image"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"`--{name}` is a number of at least 1, got {getattr(self, name)}.")


class ImageData:
    """Held-out images and stream of an image recipe.

    Args:
        arguments ([`ImageDataArguments`]):
            What the user asked for.
        checkpoint (`Path`, *optional*):
            Checkpoint that the run continues from: holds the range of values that it began with.

    Attributes:
        source ([`~hfssl.data.sources.Source`]):
            The training split.
        held_out (`list[bytes]`):
            Encoded images that are never trained on.
        exclude (`frozenset[bytes]`):
            The [`~hfssl.data.sources.identity`] of each of them.
    """

    def __init__(self, arguments: ImageDataArguments, checkpoint: Path | None = None):
        self.arguments, self.checkpoint = arguments, checkpoint
        options = {
            "modality": "image", "column": arguments.image_column, "config": arguments.dataset_config,
            "streaming": arguments.streaming,
        }  # fmt: skip
        self.source = open_mixture(arguments.dataset, **options, split=arguments.split)
        logger.info("Data: %s.", self.source.description)
        self.held_out = self._held_out(options)
        self.exclude = frozenset(map(identity, self.held_out))

    def _held_out(self, options: dict[str, Any]) -> list[bytes]:
        parts = held_out_parts(self.source, self.arguments, options)
        images = list(chain.from_iterable(parts.values()))
        # evaluators may take the first ones only
        return (
            [images[i] for i in keyed.permutation(len(images), Use.HELD_OUT_IMAGES_ORDER)]
            if len(parts) > 1
            else images
        )

    @property
    def embedded(self) -> str | None:
        """The name of the embedded set that this is."""
        embedded = modality("image").embedded_set(self.arguments.dataset)
        return embedded.name if embedded else None

    @property
    def num_images(self) -> int:
        """Images of the training split, damaged and held-out ones included."""
        return self.source.num_rows

    @cached_property
    def value_range(self) -> ValueRange | None:
        """What becomes black and white of images with more than 8 bits: as stated, as the run began, or judged."""
        if self.arguments.value_range is not None:
            return tuple(self.arguments.value_range)
        if self.checkpoint is not None:
            stored = read_settings(self.checkpoint).get("value_range")
            return stored and tuple(json.loads(stored))
        images = (
            image
            for part in parts_of(self.source)
            for _, image in islice(_images(part.source), max(round(part.share * STATISTICS_SAMPLE), 1))
        )
        return judge_range(images, self.num_channels)

    @property
    def _is_cut(self) -> bool:
        return self.arguments.tile is not None

    @cached_property
    def _headers(self) -> list[tuple[str, ImageHeader]]:
        """Names and headers of some images, in the shares of a mixture."""
        headers, reason = [], None
        for part in parts_of(self.source):
            for name, image in islice(_images(part.source), max(round(part.share * SIZES_SAMPLE), 1)):
                try:
                    headers.append((name, image_header(image, self.arguments.num_channels, self._is_cut)))
                except DamagedImage as error:
                    reason = reason or f" One of them: {name}: {error}."
        if not headers:
            raise DataError(
                f"No image of {self.source.description} can be decoded.{reason or ''} Pass other data, or another "
                "`--image_column`."
            )
        return headers

    @property
    def short_side(self) -> int:
        """The shorter side of a usual image or tile, in pixels."""
        side = int(np.median([min(header.height, header.width) for _, header in self._headers]))
        return side if self.arguments.tile is None else min(side, self.arguments.tile)

    @property
    def tiles(self) -> Tiles | None:
        """What cuts images up, where the user asks for it."""
        arguments = self.arguments
        if arguments.tile is None:
            return None
        return Tiles(arguments.tile, arguments.tiles_per_image, self.value_range, self.num_channels)

    @cached_property
    def num_channels(self) -> int:
        """Channels of an image: as stated, as the run began, or those of the data.

        Raises:
            DataError: where images have different ones.
        """
        if self.arguments.num_channels is not None:
            return self.arguments.num_channels
        if self.checkpoint is not None:
            return int(read_settings(self.checkpoint).get("num_channels", 3))
        found: dict[int, list[str]] = {}
        for name, header in self._headers:
            found.setdefault(header.num_channels or 3, []).append(name)
        if len(found) > 1:
            usual = max(found, key=lambda number: len(found[number]))
            each = ", ".join(
                f"{len(names)} of {'1 or 3' if number == 3 else number} channels (such as {names[0]})"
                for number, names in sorted(found.items())
            )
            raise DataError(
                f"Images with different numbers of channels: {each}. Pass `--num_channels {usual}`, which leaves out "
                "the others as damaged, or images that all have the same."
            )
        return next(iter(found))

    @cached_property
    def is_grey(self) -> bool:
        """Whether the images of a sample have no colour, whatever the number of channels in their files."""
        if self.num_channels != 3:
            return self.num_channels == 1
        # what JPEG makes of shades of grey in three channels differs by rounding
        return all(int((pixels.amax(0) - pixels.amin(0)).max()) <= 2 for pixels in self._sample)

    def channel_mean_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over the pixels of a sample, for values in [0, 1].

        Every image counts the same, however large it is. A channel of one value has a deviation of 1.
        """
        means = torch.stack([pixels.double().mean((1, 2)) for pixels in self._sample]) / 255
        squares = torch.stack([pixels.double().square().mean((1, 2)) for pixels in self._sample]) / 255**2
        mean = means.mean(0)
        std = (squares.mean(0) - mean.square()).clamp(min=0).sqrt()
        return mean.tolist(), std.where(std > 0, 1.0).tolist()

    @cached_property
    def _sample(self) -> list[torch.Tensor]:
        """Pixels of images from all over the data, in the shares of a mixture."""
        sample = []
        for part in parts_of(self.source):
            failures: list[str] = []
            decoded = _decoded(part.source, self.value_range, self.num_channels, self.tiles, failures)
            taken = list(islice(decoded, max(round(part.share * STATISTICS_SAMPLE), 1)))
            if not taken:
                raise DataError(
                    f"No image of {part.source.description} can be decoded. One of them: {failures[0]}. Pass other "
                    "data, or another `--image_column`."
                )
            sample += taken
        return sample

    def stream(self, args: SSLTrainingArguments, views: Views) -> ExactStream:
        """The stream of this process.

        Args:
            args ([`~hfssl.training.arguments.SSLTrainingArguments`]):
                Batch size, seed, workers and place among the processes.
            views ([`~hfssl.data.image.views.Views`]):
                Turns encoded images into views: `rows` in a worker, `collator(device)` where the model is.
        """
        if self.arguments.tile is not None and args.epochs is not None:  # each image is several
            raise UserError(
                f"`--epochs {args.epochs:g}` counts images, and with `--tile` each is several: pass `--max_steps`."
            )
        return stream_class(self.source)(
            self.source,
            views.rows,
            views.collator(args.device),
            args.per_device_train_batch_size,
            **stream_options(args, self),
            block_cost=samples_a_block(args, "image", self.arguments.tiles_per_image if self.arguments.tile else 1),
            piece_cost=max(self.num_images, 1) / len(self.source),
            rows_per_step=args.global_batch_size,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What of the data makes a run this run."""
        a = self.arguments
        settings = {
            "dataset": a.dataset or self.embedded,
            "split": a.split,
            "image_column": self.source.inputs["image"].column,
        }
        if self.value_range is not None:
            settings["value_range"] = list(self.value_range)
        # what was begun before there was a choice goes on
        return settings if self.num_channels == 3 else settings | {"num_channels": self.num_channels}


def _images(source: Source) -> Iterator[tuple[str, bytes]]:
    """Names and encoded images from all over a source, a limited number of them."""
    some = 0
    for piece in pieces_all_over(source, Use.STATISTICS_SAMPLE).tolist():
        read, file = source.read(piece), int(source.pieces[piece, 0])
        for row, image in zip(read.rows.tolist(), source.samples(read), strict=True):
            yield source.where(file, row), image
            some += 1
            if some == 4 * STATISTICS_SAMPLE:
                return


def _decoded(
    source: Source, value_range: ValueRange | None, num_channels: int, tiles: Tiles | None, failures: list[str]
) -> Iterator[torch.Tensor]:
    """Pixels of images from all over a source, of large JPEG files at a reduced scale; and the first that fails.

    With `tiles`, a tile of each, from anywhere in it: corners are often empty.
    """
    one = None if tiles is None else Tiles(tiles.size, 1, tiles.value_range, tiles.num_channels)
    for number, (name, image) in enumerate(_images(source)):
        try:
            if one is not None:
                yield one.of_image(image, int(keyed.key(Use.TILE, number)))[0][1]
                continue
            header = image_header(image, num_channels)
            side = min(header.height, header.width)
            shrink = next((by for by in (8, 4, 2) if side >= by * STATISTICS_SIDE), 1)
            yield decode_image(image, shrink, value_range, num_channels)
        except DamagedImage as error:
            failures.append(f"{name}: {error}")
