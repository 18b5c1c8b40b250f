"""Evaluation of encoders of text."""

from ..modality import EvaluationModality
from .embedder import TextEmbedder
from .samples import TextSampleFeatures


MODALITY = EvaluationModality("text", "input_ids", TextEmbedder, sample_features=TextSampleFeatures)
