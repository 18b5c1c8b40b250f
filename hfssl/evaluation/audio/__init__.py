"""Evaluation of encoders of sound."""

from ...modeling.frames import check_pooling
from ..finetune_settings import FinetuneDefaults
from ..modality import EvaluationModality
from .embedder import AudioEmbedder
from .encoder import MAIN_INPUTS
from .features import probe_features
from .finetuning import AudioFinetuning
from .graph import audio_graph
from .inside import AudioInside
from .pictures import draw_pictures
from .samples import AudioSampleFeatures


MODALITY = EvaluationModality(
    "audio", MAIN_INPUTS, AudioEmbedder, probe_features, draw_pictures, AudioSampleFeatures, check_pooling,
    AudioFinetuning, FinetuneDefaults(unused=("shift", "flip", "max_length")),
    {"classification": "finetune", "ctc": "ctc"}, has_layers=True, inside=AudioInside, graph=audio_graph,
)  # fmt: skip
