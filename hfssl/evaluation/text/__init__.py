"""Evaluation of encoders of text."""

from ..finetune_settings import FinetuneDefaults
from ..modality import EvaluationModality
from .embedder import TextEmbedder
from .features import probe_features
from .finetuning import TextFinetuning
from .graph import text_graph
from .inside import TextInside
from .pictures import draw_pictures
from .samples import TextSampleFeatures


MODALITY = EvaluationModality(
    "text", ("input_ids",), TextEmbedder, probe_features, draw_pictures, TextSampleFeatures, None, TextFinetuning,
    FinetuneDefaults(
        {"epochs": 5.0, "learning_rate": 2e-4, "scratch_learning_rate": 3e-4}, unused=("shift", "flip", "max_seconds"),
    ),
    inside=TextInside, graph=text_graph,
)  # fmt: skip
