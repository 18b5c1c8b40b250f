"""Text on the command line."""

from ..modality import CliModality
from .data import TextDataArguments
from .encoders import TextEncoderArguments, build
from .presets import CAUSAL_PRESETS, TEXT_PRESETS


MODALITY = CliModality("text", TextDataArguments, TextEncoderArguments, TEXT_PRESETS | CAUSAL_PRESETS, build)
