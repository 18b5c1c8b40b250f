"""What the image recipes share: the flags about data, and from them source, held-out images and stream."""

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data.held_out import held_out_parts, pieces_all_over
from ...data.image.decode import DamagedImage, decode_image, image_header
from ...data.image.value_range import ValueRange, check_range, judge_range
from ...data.image.views import Views
from ...data.mixtures import open_mixture, parts_of, stream_class
from ...data.modality import modality
from ...data.sources import DataError, Source, identity
from ...data.stream import LANES, ExactStream
from ...functional import keyed
from ...functional.keyed import Use
from ...training.arguments import SSLTrainingArguments
from ...training.checkpoints import read_settings
from ..data import DataArguments


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
            Hub id, folder, file or glob (image files with or without class folders, webdataset tars, parquet, arrow,
            `save_to_disk`), or several with their shares of the images, such as photos/:0.7,org/name:0.3; letters
            (drawn ones, 32 pixels), scenes (several of them, 64 pixels) or digits (scikit-learn's, 8 pixels), which
            come with hfssl. Left out: letters.
        image_column (`str`, *optional*):
            Column with the images. Left out, it is found by its type.
        value_range (`tuple[float, float]`, *optional*):
            The values that become black and white, of images with more than 8 bits a value (16, or floats). Left out,
            they are judged on some of the images. Part of the run, and kept with the encoder for its probes.
    """

    image_column: str | None = None
    value_range: tuple[float, float] | None = None

    def __post_init__(self):
        super().__post_init__()
        check_range(self.value_range)


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
            return self.arguments.value_range
        if self.checkpoint is not None:
            stored = read_settings(self.checkpoint).get("value_range")
            return stored and tuple(json.loads(stored))
        return judge_range(
            image
            for part in parts_of(self.source)
            for _, image in islice(_images(part.source), max(round(part.share * STATISTICS_SAMPLE), 1))
        )

    @cached_property
    def short_side(self) -> int:
        """The shorter side of a usual image, in pixels."""
        sides = []
        for part in parts_of(self.source):
            for _, image in islice(_images(part.source), max(round(part.share * SIZES_SAMPLE), 1)):
                with suppress(DamagedImage):
                    header = image_header(image)
                    sides.append(min(header.height, header.width))
        if not sides:
            raise DataError(
                f"No image of {self.source.description} can be read. Pass other data, or another `--image_column`."
            )
        return int(np.median(sides))

    @cached_property
    def is_grey(self) -> bool:
        """Whether the images of a sample have no colour, whatever their number of channels."""
        # what JPEG makes of shades of grey in three channels differs by rounding
        return all(int((pixels.amax(0) - pixels.amin(0)).max()) <= 2 for pixels in self._sample)

    def channel_mean_std(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of red, green and blue over the pixels of a sample, for values in [0, 1].

        Every image counts the same, however large it is.
        """
        means = torch.stack([pixels.double().mean((1, 2)) for pixels in self._sample]) / 255
        squares = torch.stack([pixels.double().square().mean((1, 2)) for pixels in self._sample]) / 255**2
        mean = means.mean(0)
        return mean.tolist(), (squares.mean(0) - mean.square()).clamp(min=0).sqrt().tolist()

    @cached_property
    def _sample(self) -> list[torch.Tensor]:
        """Pixels of images from all over the data, in the shares of a mixture."""
        sample = []
        for part in parts_of(self.source):
            failures: list[str] = []
            decoded = _decoded(part.source, self.value_range, failures)
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
        # about a batch in the blocks of all lanes, so that a few workers have the next ones ready when a step ends
        lanes_a_process = (args.lanes or max(LANES, args.world_size)) / args.world_size
        images = args.per_device_train_batch_size / lanes_a_process
        return stream_class(self.source)(
            self.source,
            views.rows,
            views.collator(args.device),
            args.per_device_train_batch_size,
            seed=args.seed,
            rank=args.process_index,
            world_size=args.world_size,
            lanes=args.lanes,
            num_workers=args.dataloader_num_workers,
            exclude=self.exclude,
            max_bad_fraction=self.arguments.max_bad_fraction,
            block_cost=float(np.clip(images, *modality("image").samples_per_block)),
            piece_cost=max(self.num_images, 1) / len(self.source),
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
        return settings if self.value_range is None else settings | {"value_range": list(self.value_range)}


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


def _decoded(source: Source, value_range: ValueRange | None, failures: list[str]) -> Iterator[torch.Tensor]:
    """Pixels of images from all over a source, of large JPEG files at a reduced scale; and the first that fails."""
    for name, image in _images(source):
        try:
            header = image_header(image)
            side = min(header.height, header.width)
            shrink = next((by for by in (8, 4, 2) if side >= by * STATISTICS_SIDE), 1)
            yield decode_image(image, shrink, value_range)
        except DamagedImage as error:
            failures.append(f"{name}: {error}")
