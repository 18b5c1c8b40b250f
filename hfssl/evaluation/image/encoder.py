"""An image encoder as probes and fine-tuning need it: its processor, and models with old, new or some new weights."""

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from ...errors import first_line
from ...modeling.base import evaluating
from ..encoder_folder import check_loaded, empty_encoder, load_config, quiet
from ..evaluator import EvaluationError


# fields of a configuration that do not change what a model computes
_INCIDENTAL = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "architectures", "_commit_hash")


class VisionEncoder:
    r"""
    An image encoder, checked: that it takes images, and that its image processor is there.

    Args:
        encoder (`str`, `Path` or [`~transformers.PreTrainedModel`]):
            Folder or Hub id of a stock encoder, or a model; of a pre-training model, its encoder is meant.
        processor (*optional*):
            Image processor, where the folder holds none or `encoder` is an object.

    Raises:
        EvaluationError: where one of them is missing, damaged, or of another modality.
    """

    def __init__(self, encoder: str | Path | PreTrainedModel, processor: Any = None):
        self.model = None
        if isinstance(encoder, (str, Path)):
            self.source = self.name = str(encoder)
            self.config = load_config(self.source)
        else:
            self.source = None
            self.name = encoder.name_or_path or type(encoder).__name__
            # a pre-training model of ours knows which of its modules is the encoder
            self.model = encoder.encoder if hasattr(encoder, "export_encoder") else encoder.base_model
            self.config = self.model.config
        _check_modality(self.name, self.config)
        self.processor = processor if processor is not None else self._load_processor()

    def _load_processor(self) -> Any:
        if self.source is None:
            raise EvaluationError(
                f"A {type(self.model).__name__} given as an object needs its image processor beside it (`processor`)."
            )
        try:
            with quiet():
                return AutoImageProcessor.from_pretrained(self.source)
        except Exception as error:  # a missing or foreign file shows itself in many ways
            raise EvaluationError(
                f"{self.source} has no image processor ({first_line(error)}): save the one it was pre-trained with "
                "beside it, as `processor.save_pretrained(folder)` does, for example "
                'ViTImageProcessor(size={"height": 32, "width": 32}).'
            ) from error

    def load(self) -> PreTrainedModel:
        """The encoder with its weights."""
        if self.model is not None:
            return self.model
        try:
            # a pooler that the checkpoint lacks is drawn at random: always the same one
            with _seeded(0), quiet():
                model, info = AutoModel.from_pretrained(self.source, dtype=torch.float32, output_loading_info=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise EvaluationError(f"Cannot load the encoder {self.source}: {first_line(error)}") from error
        check_loaded(self.source, [name for name, _ in model.named_parameters()], info["missing_keys"])
        self._try_on_an_image(model)
        return model

    def random_init(self, seed: int = 0) -> PreTrainedModel:
        """The architecture with new weights, a pure function of `seed`."""
        with _seeded(seed), quiet():
            return AutoModel.from_config(self._fresh_config())

    def classifier(self, class_names: Sequence[str], seed: int, random_init: bool = False) -> PreTrainedModel:
        """The encoder with a new classification head, or its architecture with new weights throughout."""
        config = self._fresh_config()
        config.num_labels = len(class_names)
        config.id2label = dict(enumerate(class_names))
        config.label2id = {name: index for index, name in config.id2label.items()}
        config.problem_type = "single_label_classification"
        try:
            with _seeded(seed), quiet():
                if random_init:
                    return AutoModelForImageClassification.from_config(config)
                model, info = AutoModelForImageClassification.from_pretrained(
                    self.source, config=config, dtype=torch.float32, output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )  # fmt: skip
        except (OSError, ValueError, RuntimeError) as error:
            raise EvaluationError(
                f'{self.name} is a "{config.model_type}" model that cannot be loaded for image classification: '
                f"{first_line(error)}"
            ) from error
        prefix = f"{model.base_model_prefix}."
        names = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
        check_loaded(self.source, names, info["missing_keys"])
        return model

    def digest(self, model: PreTrainedModel) -> str:
        """Changes with the configuration, the weights and the image processor."""
        config = {key: value for key, value in self.config.to_dict().items() if key not in _INCIDENTAL}
        processor = {key: value for key, value in self.processor.to_dict().items() if key not in _INCIDENTAL}
        digest = hashlib.sha256(json.dumps([config, processor], sort_keys=True, default=str).encode())
        for name, tensor in sorted(model.state_dict().items()):
            if name.startswith("pooler."):  # drawn at random where pre-training left none, and in no feature
                continue
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy() if tensor.numel() else b"")
        return digest.hexdigest()

    def _try_on_an_image(self, model: PreTrainedModel) -> None:
        """Refuse a processor that makes images of a size which the encoder does not take."""
        blank = np.zeros((32, 32, 3), dtype=np.uint8)
        pixel_values = self.processor(images=[blank], return_tensors="pt")["pixel_values"]
        height, width = pixel_values.shape[-2:]
        try:
            with evaluating(model):
                model(pixel_values=pixel_values.to(model.device), **size_arguments(model, height, width))
        except (RuntimeError, ValueError, IndexError) as error:
            raise EvaluationError(
                f"{self.source} does not take images of {height} × {width} pixels, which its image processor makes "
                f"({first_line(error).rstrip('.')}): save one beside it that resizes to the size of its pre-training."
            ) from error

    def _fresh_config(self) -> PreTrainedConfig:
        config = type(self.config).from_dict(self.config.to_dict())
        config.dtype = torch.float32  # a checkpoint in bf16 would lose the small updates of fine-tuning
        return config


def size_arguments(model: PreTrainedModel, height: int, width: int) -> dict[str, bool]:
    """Arguments of `forward` for images of another size than the position embeddings were made for."""
    size = getattr(model.config, "image_size", None)
    size = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    takes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    return {"interpolate_pos_encoding": True} if takes and size[0] and size != (height, width) else {}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _check_modality(name: str, config: PreTrainedConfig) -> None:
    model = empty_encoder(name, config)
    if model.main_input_name != "pixel_values":
        raise EvaluationError(
            f'{name} is a "{config.model_type}" model, which takes `{model.main_input_name}` and no images: image '
            "probes need a vision encoder, such as a ViT or a ResNet."
        )
    channels = getattr(config, "num_channels", 3)
    if channels != 3:
        raise EvaluationError(
            f"{name} takes images of {channels} channel(s), and probes give it 3 (red, green, blue)."
        )
