"""Sound on the command line."""

from ..modality import CliModality
from .data import AudioDataArguments
from .encoders import AudioEncoderArguments, build
from .presets import AUDIO_PRESETS


MODALITY = CliModality("audio", AudioDataArguments, AudioEncoderArguments, AUDIO_PRESETS, build)
