"""What the image recipes share: the flags about data, and from them source, held-out images and stream."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any

import numpy as np
import torch

from ...data.held_out import held_out_parts, pieces_all_over
from ...data.image.decode import DamagedImage, decode_image, image_header
from ...data.image.views import Views
from ...data.mixtures import open_mixture, parts_of, stream_class
from ...data.modality import modality
from ...data.sources import DataError, Source, identity
from ...data.stream import LANES, ExactStream
from ...functional import keyed
from ...functional.keyed import Use
from ...training.arguments import SSLTrainingArguments
from ..data import DataArguments


logger = logging.getLogger(__name__)

# Enough for three digits of mean and standard deviation.
STATISTICS_SAMPLE = 256
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
            (drawn ones, 32 pixels) or digits (scikit-learn's, 8 pixels), which come with hfssl. Left out: letters.
        image_column (`str`, *optional*):
            Column with the images. Left out, it is found by its type.
    """

    image_column: str | None = None


class ImageData:
    """Held-out images and stream of an image recipe.

    Args:
        arguments ([`ImageDataArguments`]):
            What the user asked for.

    Attributes:
        source ([`~hfssl.data.sources.Source`]):
            The training split.
        held_out (`list[bytes]`):
            Encoded images that are never trained on.
        exclude (`frozenset[bytes]`):
            The [`~hfssl.data.sources.identity`] of each of them.
    """

    def __init__(self, arguments: ImageDataArguments):
        self.arguments = arguments
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
            decoded = list(islice(_decoded(part.source), max(round(part.share * STATISTICS_SAMPLE), 1)))
            if not decoded:
                raise DataError(
                    f"No image of {part.source.description} can be decoded. Pass other data, or another "
                    "`--image_column`."
                )
            sample += decoded
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
        return {
            "dataset": a.dataset or self.embedded,
            "split": a.split,
            "image_column": self.source.inputs["image"].column,
        }


def _decoded(source: Source) -> Iterator[torch.Tensor]:
    """Pixels of images from all over a source; of large JPEG files at a reduced scale."""
    pieces = pieces_all_over(source, Use.STATISTICS_SAMPLE)
    images = (image for piece in pieces for image in source.samples(source.read(int(piece))))
    for image in islice(images, 4 * STATISTICS_SAMPLE):
        try:
            header = image_header(image)
            side = min(header.height, header.width)
            shrink = next((by for by in (8, 4, 2) if side >= by * STATISTICS_SIDE), 1)
            yield decode_image(image, shrink)
        except DamagedImage as error:
            logger.debug("Left out of the statistics: %s", error)
