"""An image encoder as probes and fine-tuning need it: its processor, and models with old, new or some new weights."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from ...errors import first_line
from ...modeling.base import evaluating
from ...modeling.image_processing import processed_channels, without_timm
from ...modeling.trial import num_channels_of
from ..encoder_folder import empty_encoder, quiet
from ..evaluator import EvaluationError
from ..processed_encoder import ProcessedEncoder, seeded
from .classifier import EncoderForImageClassification
from .sizes import size_arguments


class VisionEncoder(ProcessedEncoder):
    """An image encoder and its image processor, see [`~hfssl.evaluation.processed_encoder.ProcessedEncoder`]."""

    processor_words: ClassVar[str] = "image processor"
    processor_example: ClassVar[str] = 'ViTImageProcessor(size={"height": 32, "width": 32})'
    auto_processor: ClassVar[type] = AutoImageProcessor
    auto_classifier: ClassVar[type] = AutoModelForImageClassification
    classifies: ClassVar[str] = "image classification"

    def __init__(self, encoder: str | Path | PreTrainedModel, processor: Any = None):
        super().__init__(encoder, processor)
        made, taken = processed_channels(self.processor), num_channels_of(self.config)
        if made != taken:
            raise EvaluationError(
                f"{self.name} takes images of {taken} channel{'s' * (taken != 1)}, and its image processor has means "
                f"and deviations of {made}: save one beside it with as many, such as image_mean={[0.5] * taken}."
            )

    def _load_processor(self) -> Any:
        return without_timm(super()._load_processor(), self.source)

    def check_modality(self) -> None:
        model = empty_encoder(self.name, self.config)
        if model.main_input_name != "pixel_values":
            raise EvaluationError(
                f'{self.name} is a "{self.config.model_type}" model, which takes `{model.main_input_name}` and no '
                "images: image probes need a vision encoder, such as a ViT or a ResNet."
            )

    def with_head(
        self, auto_class: type, config: PreTrainedConfig, seed: int, random_init: bool, purpose: str
    ) -> PreTrainedModel:
        if type(config) in auto_class._model_mapping:
            return super().with_head(auto_class, config, seed, random_init, purpose)
        with seeded(seed), quiet():
            encoder = AutoModel.from_config(config)
            if not random_init:
                encoder.load_state_dict(self.load().state_dict())
            return EncoderForImageClassification(config, encoder)

    def try_on_a_sample(self, model: PreTrainedModel) -> None:
        """Refuse a processor that makes images of a size which the encoder does not take."""
        blank = np.zeros((processed_channels(self.processor), 32, 32), dtype=np.uint8)
        pixel_values = self.processor(images=[blank], return_tensors="pt", input_data_format="channels_first")[
            "pixel_values"
        ]
        height, width = pixel_values.shape[-2:]
        try:
            with evaluating(model):
                model(pixel_values=pixel_values.to(model.device), **size_arguments(model, height, width))
        except (RuntimeError, ValueError, IndexError) as error:
            raise EvaluationError(
                f"{self.name} does not take images of {height} × {width} pixels, which its image processor makes "
                f"({first_line(error).rstrip('.')}): save one beside it that resizes to the size of its pre-training."
            ) from error
