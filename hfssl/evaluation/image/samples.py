"""Features of the images of a whole data set."""

import logging
from typing import Any

from ...data.corpus import ResultRows
from ...data.image.decode import DamagedImage, decode_image, image_header
from ...data.image.value_range import check_range, range_of
from ...data.sources.base import Damage
from ...modeling.image_processing import processed_channels
from ..sample_features import EmbedSettings
from .encoder import VisionEncoder
from .features import EncoderFeatures


logger = logging.getLogger(__name__)


class ImageSampleFeatures:
    """A [`~hfssl.evaluation.sample_features.SampleFeatures`] of images.

    Args:
        encoder (`str`):
            Folder or Hub id.
        settings ([`~hfssl.evaluation.sample_features.EmbedSettings`]):
            How features are made; see [`~hfssl.modeling.pooling.pool_features`] for the poolings.
    """

    modality = "image"

    def __init__(self, encoder: str, settings: EmbedSettings):
        vision = VisionEncoder(encoder)
        self.model, self.processor, self.samples_at_once = vision.load(), vision.processor, settings.batch_size
        self._features = EncoderFeatures(vision, self.model, settings.pooling, settings.precision)
        check_range(settings.value_range)
        self.pooling = self._features.pooling
        self.num_channels = processed_channels(vision.processor)
        self.value_range = tuple(settings.value_range or ()) or range_of(vision.processor)
        self._first = iter([True])  # for one of the threads
        self.identity = {
            "encoder": vision.digest(self.model), "pooling": self.pooling, "precision": self._features.precision,
        }  # fmt: skip
        if settings.value_range is not None:
            self.identity["value_range"] = list(settings.value_range)

    def prepare(self, image: bytes) -> Any:
        try:
            if (
                next(self._first, False)
                and self.value_range is None
                and image_header(image, self.num_channels).bits > 8
            ):
                logger.warning(
                    "These images have more than 8 bits a value, and nothing says which of them are in use: 0 to "
                    "65535 becomes black to white. Pass `--value_range LOW HIGH` where that is wrong."
                )
            return decode_image(image, 1, self.value_range, self.num_channels)
        except DamagedImage as error:
            return Damage(str(error))

    def __call__(self, images: list) -> ResultRows:
        return ResultRows({"features": self._features(images)})
