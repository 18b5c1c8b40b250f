"""Embeddings of images and texts by two encoders that were trained together: a stock model, or one that trains."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from ...data.caption.captions import CaptionRows
from ...data.text.tokenizer import load_tokenizer
from ...errors import first_line
from ...modeling.base import evaluating
from ...modeling.packing import position_limit
from ...modeling.tokenizer import table_size
from ..encoder_folder import load_config, quiet
from ..evaluator import EvaluationError, name_of
from ..image.features import measured_images, normalized


# Texts that a model was made for at full length, padding included.
_PADDED_TO_MAX = ("siglip", "siglip2")


class PairEmbedder(Protocol):
    """What measures ask of two encoders. Embeddings are `(number, dim)`, on the CPU and of length 1."""

    name: str

    def images(self, samples: Sequence[bytes]) -> torch.Tensor:
        """Of encoded images."""

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Of texts."""


class StockPair:
    """A stock model of two encoders with its processors: `CLIPModel`, `SiglipModel`, `VisionTextDualEncoderModel` and
    whatever else has `get_image_features` and `get_text_features`.

    Args:
        model (`str`, `Path` or [`~transformers.PreTrainedModel`]):
            Folder or Hub id, or a model.
        tokenizer, image_processor (*optional*):
            Of a model that is given as an object.
        batch_size (`int`, *optional*, defaults to 64):
            Samples a forward pass.
        device (*optional*):
            Where it runs; where it is when left out.

    Raises:
        EvaluationError: where it is no such model, or its processors are not there or not its own.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_processor: Any = None,
        *,
        batch_size: int = 64,
        device: torch.device | str | None = None,
    ):
        self.name = name_of(model)
        self.model = _load(str(model)) if isinstance(model, str | Path) else model
        if device is not None:
            self.model.to(device)
        if isinstance(model, str | Path):
            tokenizer = tokenizer or load_tokenizer(self.name)
            image_processor = image_processor or _image_processor(self.name)
        self.tokenizer, self.image_processor, self.batch_size = tokenizer, image_processor, batch_size
        text = self.model.config.get_text_config()
        needed, entries = table_size(tokenizer), text.vocab_size
        if needed > entries:
            raise EvaluationError(
                f"The tokenizer of {self.name} has {needed:,} entries, and its text encoder has embeddings for "
                f"{entries:,}: they do not belong together. Put the tokenizer that it was trained with beside it."
            )
        length = position_limit(self.model.text_model) or getattr(text, "max_position_embeddings", 512)
        self.captions = CaptionRows(tokenizer, length, pad_to_max=self.model.config.model_type in _PADDED_TO_MAX)

    def images(self, samples: Sequence[bytes]) -> torch.Tensor:
        pixels = measured_images(self.image_processor, samples, max_bad_fraction=1.0)
        with evaluating(self.model):
            parts = [
                self.model.get_image_features(
                    pixel_values=normalized(self.image_processor, part, self.model.device)
                ).pooler_output
                for part in pixels.split(self.batch_size)
            ]
        return F.normalize(torch.cat(parts).float(), dim=-1).cpu()

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        parts = []
        with evaluating(self.model):
            for batch in _batches(self.captions, texts, self.batch_size):
                if self.captions.pad_to_max:  # it sees padding as it sees words
                    batch.pop("attention_mask")
                batch = {name: values.to(self.model.device) for name, values in batch.items()}
                parts.append(self.model.get_text_features(**batch).pooler_output)
        return F.normalize(torch.cat(parts).float(), dim=-1).cpu()


class TowerPair:
    """The two towers of a method while it trains, or afterwards.

    Args:
        model:
            A [`~hfssl.modeling.pairs.PairModel`] of image and text.
        image_processor:
            That goes with its image encoder.
        captions ([`~hfssl.data.caption.captions.CaptionRows`]):
            Makes tokens of texts, as in training.
        batch_size (`int`, *optional*, defaults to 64):
            Samples a forward pass.
    """

    def __init__(self, model: PreTrainedModel, image_processor: Any, captions: CaptionRows, batch_size: int = 64):
        self.name, self.model = name_of(model), model
        self.image_processor, self.captions, self.batch_size = image_processor, captions, batch_size

    def images(self, samples: Sequence[bytes]) -> torch.Tensor:
        # of the data of a run, whose share of damaged samples `--max_bad_fraction` bounds
        return self.pixels(measured_images(self.image_processor, samples, max_bad_fraction=1.0))

    def pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Of images that [`~hfssl.evaluation.image.features.resized_images`] gave."""
        device, tower = next(self.model.parameters()).device, self.model.towers["image"]
        with evaluating(self.model):
            parts = [tower(normalized(self.image_processor, part, device)) for part in pixels.split(self.batch_size)]
        return F.normalize(torch.cat(parts).float(), dim=-1).cpu()

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        device, tower = next(self.model.parameters()).device, self.model.towers["text"]
        with evaluating(self.model):
            parts = [
                tower(batch["input_ids"].to(device), batch["attention_mask"].to(device))
                for batch in _batches(self.captions, texts, self.batch_size)
            ]
        return F.normalize(torch.cat(parts).float(), dim=-1).cpu()


def _batches(captions: CaptionRows, texts: Sequence[str], batch_size: int) -> list[dict[str, torch.Tensor]]:
    return [captions.batch(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)]


def _load(name: str) -> PreTrainedModel:
    config = load_config(name)
    try:
        with quiet():
            model = AutoModel.from_pretrained(name, dtype=torch.float32)
    except Exception as error:  # a damaged or foreign file shows itself in many ways
        raise EvaluationError(f"{name} cannot be loaded: {first_line(error)}") from error
    if not all(hasattr(model, method) for method in ("get_image_features", "get_text_features")):
        raise EvaluationError(
            f'{name} is a "{config.model_type}" model, and two encoders that were trained together are needed, of '
            "images and of texts, such as clip, siglip or vision-text-dual-encoder. recipes/clip.py makes one."
        )
    return model


def _image_processor(name: str) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(name)
    except Exception as error:  # likewise
        raise EvaluationError(
            f"{name} has no image processor that can be loaded: {first_line(error)}. Save the one that it was trained "
            "with beside it."
        ) from error
