"""What evaluation knows of a modality: `hfssl/evaluation/<modality>/__init__.py` declares it as `MODALITY`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from .evaluator import EvaluationError
from .sample_features import EmbedSettings, SampleFeatures


class Embedder(Protocol):
    """Some samples, prepared once, of which an encoder makes features again and again while it trains."""

    num_batches: int

    def __call__(self, encoder: PreTrainedModel, index: int, pooling: str | None) -> torch.Tensor:
        """Pooled features `(batch_size, dim)` of a batch, by an encoder in evaluation mode."""


@dataclass(frozen=True)
class EvaluationModality:
    """What protocols need of a modality. What it has not is `None`, and protocols that need it say so.

    Args:
        name (`str`):
            Of its folders.
        main_input (`str`):
            What stock encoders call it: the `main_input_name` of the model.
        make_embedder (`Callable[[Sequence, Any, Any, int], Embedder]`):
            From samples, processor, the transform of the run's stream (or `None`) and a batch size.
        probe_features (`Callable`, *optional*):
            Features of two labelled splits by an encoder, its random initialisation and the raw input; see
            [`~hfssl.evaluation.image.features.probe_features`].
        draw_pictures (`Callable`, *optional*):
            What such features look like, into a folder.
        sample_features (`Callable[[str, EmbedSettings], SampleFeatures]`, *optional*):
            What makes features of a whole data set, from folder or Hub id of an encoder and how they are to be made.
    """

    name: str
    main_input: str
    make_embedder: Callable[[Sequence, Any, Any, int], Embedder]
    probe_features: Callable[..., Any] | None = None
    draw_pictures: Callable[..., Any] | None = None
    sample_features: Callable[[str, EmbedSettings], SampleFeatures] | None = None


def evaluation_modality(name: str) -> EvaluationModality:
    """The declaration of a modality, found by its name.

    Raises:
        EvaluationError: where there is none.
    """
    try:
        return import_module(f"{__package__}.{name}").MODALITY
    except (ModuleNotFoundError, AttributeError) as error:
        raise EvaluationError(
            f"Nothing is known of evaluating the modality {name!r}: hfssl/evaluation/{name}/ declares none."
        ) from error


def modality_of_input(main_input: str) -> EvaluationModality | None:
    """The modality of which stock encoders call their input so; `None` where none of the folders here declares it."""
    for folder in iter_modules(import_module(__package__).__path__):
        if folder.ispkg:
            modality = getattr(import_module(f"{__package__}.{folder.name}"), "MODALITY", None)
            if modality is not None and modality.main_input == main_input:
                return modality
    return None
