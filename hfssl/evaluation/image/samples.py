"""Features of the images of a whole data set."""

from typing import Any

from ...data.corpus import ResultRows
from ...data.image.decode import DamagedImage, decode_image
from ...data.image.value_range import range_of
from ...data.sources.base import Damage
from ..sample_features import EmbedSettings
from .encoder import VisionEncoder
from .features import EncoderFeatures


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
        self.model, self.samples_at_once = vision.load(), settings.batch_size
        self._features = EncoderFeatures(vision, self.model, settings.pooling, settings.precision)
        self.pooling, self.value_range = self._features.pooling, range_of(vision.processor)
        self.identity = {
            "encoder": vision.digest(self.model), "pooling": self.pooling, "precision": self._features.precision,
        }  # fmt: skip

    def prepare(self, image: bytes) -> Any:
        try:
            return decode_image(image, value_range=self.value_range)
        except DamagedImage as error:
            return Damage(str(error))

    def __call__(self, images: list) -> ResultRows:
        return ResultRows({"features": self._features(images)})
