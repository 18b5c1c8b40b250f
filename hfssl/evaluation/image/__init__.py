"""Evaluation of encoders of images."""

from ...modeling.pooling import check_pooling
from ..finetune_settings import FinetuneDefaults
from ..modality import EvaluationModality
from .embedder import ImageEmbedder
from .features import probe_features
from .finetuning import ImageFinetuning
from .graph import image_graph
from .inside import ImageInside
from .pictures import draw_pictures, draw_report
from .samples import ImageSampleFeatures


MODALITY = EvaluationModality(
    "image", ("pixel_values",), ImageEmbedder, probe_features, draw_pictures, ImageSampleFeatures, check_pooling,
    ImageFinetuning, FinetuneDefaults(unused=("max_length", "max_seconds")),
    draw_report=draw_report, inside=ImageInside, graph=image_graph,
)  # fmt: skip
