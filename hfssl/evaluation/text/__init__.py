"""Evaluation of encoders of text."""

from ..modality import EvaluationModality
from .embedder import TextEmbedder


MODALITY = EvaluationModality("text", TextEmbedder)
