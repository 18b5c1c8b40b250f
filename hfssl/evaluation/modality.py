"""What evaluation knows of a modality: `hfssl/evaluation/<modality>/__init__.py` declares it as `MODALITY`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel

from .encoder_folder import empty_encoder, load_config
from .evaluator import EvaluationError
from .finetune_settings import FinetuneDefaults
from .sample_features import EmbedSettings, SampleFeatures


class Embedder(Protocol):
    """Some samples, prepared once, of which an encoder makes features again and again while it trains.

    Attributes:
        num_batches (`int`):
            How many batches they are.
        rows (`list[np.ndarray]`):
            Which of the samples each batch is of.
    """

    num_batches: int
    rows: list[np.ndarray]

    def __call__(self, encoder: PreTrainedModel, index: int, pooling: str | None) -> torch.Tensor:
        """Pooled features `(batch_size, dim)` of a batch, by an encoder in evaluation mode."""


class Finetuning(Protocol):
    """An encoder and two labelled splits, as fine-tuning needs them.

    Made of folder or Hub id of the encoder, its processor (or `None` for the folder's), the splits to train and to
    measure on, and the settings. Labels are given apart, in the numbering of the classes that are told apart.

    Attributes:
        task (`str`):
            Of transformers' pipelines that takes the classifier, such as `"image-classification"`.
        eval_batch_size (`int`):
            Samples a forward pass where nothing is trained.
        encoder:
            Its `config` is that of the encoder.
        processor:
            What is saved beside the classifier.
        digests (`dict[str, str]`):
            Of what the trained encoder and its random initialisation begin with, processor included.
        has_batch_norm (`bool`):
            Whether the encoder needs more than one sample in each process.
    """

    task: str
    eval_batch_size: int
    encoder: Any
    processor: Any
    digests: dict[str, str]
    has_batch_norm: bool

    def classifier(self, class_names: list[str], seed: int, random_init: bool) -> PreTrainedModel:
        """The encoder with a new head, or its architecture with new weights throughout."""

    def training_rows(self, labels: np.ndarray, rows: np.ndarray, length: int, seed: int) -> Dataset:
        """So many samples, epoch after epoch over some rows of train."""

    def test_rows(self, labels: np.ndarray) -> Dataset:
        """All of test, in its order."""

    def collator(self, model: PreTrainedModel) -> Callable:
        """Makes batches of either."""


@dataclass(frozen=True)
class EvaluationModality:
    """What protocols need of a modality. What it has not is `None`, and protocols that need it say so.

    Args:
        name (`str`):
            Of its folders.
        main_inputs (`tuple[str, ...]`):
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
        check_pooling (`Callable[[PreTrainedConfig, str | None], str]`, *optional*):
            The pooling that is meant for an encoder, the default one where it is `None`; refuses one that it has not.
        finetuning (`Callable[..., Finetuning]`, *optional*):
            See [`Finetuning`].
        finetune_defaults ([`~hfssl.evaluation.finetune_settings.FinetuneDefaults`], *optional*):
            What fine-tuning takes where settings are left out.
        tasks (`dict[str, str]`, *optional*):
            What encoders are fine-tuned for, and the protocol of each.
        has_layers (`bool`, *optional*, defaults to `False`):
            Whether features are there of each layer.
        draw_report (`Callable`, *optional*):
            What stands out among samples, into a file; see [`~hfssl.evaluation.image.pictures.draw_report`].
        inside (`Callable[..., Inside]`, *optional*):
            An encoder opened up, see [`~hfssl.evaluation.inside.Inside`].
        graph (`Callable[[str, str | None], Graph]`, *optional*):
            What of an encoder is written as a graph, from its folder or Hub id and a pooling; see
            [`~hfssl.evaluation.graph.Graph`].
    """

    name: str
    main_inputs: tuple[str, ...]
    make_embedder: Callable[[Sequence, Any, Any, int], Embedder]
    probe_features: Callable[..., Any] | None = None
    draw_pictures: Callable[..., Any] | None = None
    sample_features: Callable[[str, EmbedSettings], SampleFeatures] | None = None
    check_pooling: Callable[[PreTrainedConfig, str | None], str] | None = None
    finetuning: Callable[..., Finetuning] | None = None
    finetune_defaults: FinetuneDefaults = field(default_factory=FinetuneDefaults)
    tasks: Mapping[str, str] = field(default_factory=lambda: {"classification": "finetune"})
    has_layers: bool = False
    draw_report: Callable[..., None] | None = None
    inside: Callable[..., Any] | None = None
    graph: Callable[[str, str | None], Any] | None = None


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
            if modality is not None and main_input in modality.main_inputs:
                return modality
    return None


def modality_of_encoder(encoder: str) -> EvaluationModality:
    """The modality of what an encoder takes, by its folder or Hub id.

    Raises:
        EvaluationError: where there is no such encoder, or it takes what nothing is known of.
    """
    config = load_config(encoder)
    main_input = empty_encoder(encoder, config).main_input_name
    found = modality_of_input(main_input)
    if found is None:
        raise EvaluationError(
            f'{encoder} is a "{config.model_type}" model, which takes `{main_input}`: features are made of texts, '
            "images and recordings, by an encoder such as a BERT, a ViT or a HuBERT."
        )
    return found
