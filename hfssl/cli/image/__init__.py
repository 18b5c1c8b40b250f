"""Images on the command line."""

from ..modality import CliModality
from .data import ImageDataArguments
from .encoders import VISION_PRESETS, VisionEncoderArguments, build


MODALITY = CliModality("image", ImageDataArguments, VisionEncoderArguments, VISION_PRESETS, build)
