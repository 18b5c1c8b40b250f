"""Evaluation of encoders of images."""

from ..modality import EvaluationModality
from .embedder import ImageEmbedder
from .features import probe_features
from .pictures import draw_pictures


MODALITY = EvaluationModality("image", ImageEmbedder, probe_features, draw_pictures)
