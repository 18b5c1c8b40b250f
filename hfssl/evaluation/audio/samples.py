"""Features of the recordings of a whole data set."""

import numpy as np

from ...data.audio.decode import DamagedAudio, decode_audio
from ...data.corpus import ResultRows
from ...data.sources.base import Damage
from ..evaluator import EvaluationError
from ..sample_features import EmbedSettings
from .encoder import AudioEncoder
from .features import EncoderLayers


class AudioSampleFeatures:
    """A [`~hfssl.evaluation.sample_features.SampleFeatures`] of recordings.

    One that is longer than an encoder takes at once is cut into windows of about the same length; its feature is their
    mean, weighted by their lengths.

    Args:
        encoder (`str`):
            Folder or Hub id.
        settings ([`~hfssl.evaluation.sample_features.EmbedSettings`]):
            How features are made.
    """

    modality = "audio"

    def __init__(self, encoder: str, settings: EmbedSettings):
        audio = AudioEncoder(encoder)
        self.model, self.sampling_rate = audio.load(), audio.sampling_rate
        self.samples_at_once = 4 * settings.batch_size  # so that those of about one length are found
        self._layers = EncoderLayers(audio, self.model, settings.pooling, settings.precision, settings.batch_size)
        self.pooling, self.layer = self._layers.pooling, settings.layer
        num_layers = self._layers.layers([np.zeros(self.sampling_rate, np.float32)]).shape[1] - 1
        if self.layer is not None and not 0 <= self.layer <= num_layers:
            raise EvaluationError(
                f"`--layer {self.layer}`: this {self.model.config.model_type} has the layers 0 (what comes into the "
                f"first block) to {num_layers}."
            )
        self.identity = {
            "encoder": audio.digest(self.model), "pooling": self.pooling, "precision": self._layers.precision,
            "layer": num_layers if self.layer is None else self.layer,
        }  # fmt: skip

    def prepare(self, recording: bytes) -> np.ndarray | Damage:
        try:
            return decode_audio(recording, self.sampling_rate)
        except DamagedAudio as error:
            return Damage(str(error))

    def __call__(self, clips: list[np.ndarray]) -> ResultRows:
        """The column `features` of waveforms."""
        return ResultRows({"features": self._layers.layers(clips)[:, self.identity["layer"]]})
