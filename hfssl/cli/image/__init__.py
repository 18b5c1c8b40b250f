"""Images on the command line."""

from ..modality import CliModality
from .data import ImageDataArguments
from .encoders import VisionEncoderArguments, build
from .presets import VISION_PRESETS
from .probes import share_value_range


MODALITY = CliModality(
    "image", ImageDataArguments, VisionEncoderArguments, VISION_PRESETS, build, prepare_labelled=share_value_range
)
