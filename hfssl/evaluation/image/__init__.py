"""Evaluation of encoders of images."""

from ..modality import EvaluationModality
from .embedder import ImageEmbedder
from .features import probe_features
from .pictures import draw_pictures
from .samples import ImageSampleFeatures


MODALITY = EvaluationModality(
    "image", "pixel_values", ImageEmbedder, probe_features, draw_pictures, ImageSampleFeatures
)
