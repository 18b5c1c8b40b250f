"""The shape that all evaluators share: built with a protocol's settings, called with an encoder, giving results."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from ..errors import UserError
from ..modeling.method import LossContext
from .facts import write_facts
from .results import Result


class EvaluationError(UserError):
    """An evaluation that cannot be done as asked; the message is one sentence for the user."""


class Evaluator(ABC):
    r"""
    A protocol: what is measured on an encoder, and how.

    A subclass is a dataclass of the protocol's settings. It sets the attributes below and implements
    [`~Evaluator.__call__`]. A change that moves the figures raises `version`.

    Class attributes:
        protocol (`str`):
            Name of the protocol, written beside each figure.
        version (`int`):
            Version of the protocol, written beside each figure.
        primary_metric (`str`):
            The metric that stands for the whole evaluation.
        greater_is_better (`bool`):
            Whether more of `primary_metric` is better.
        loss_term (`str`, *optional*):
            Of a method whose loss has several terms, the one that the figure `loss` is on held-out data.
        measured_on (`frozenset[str | bytes]`):
            The [`~hfssl.data.sources.identity`] of each sample that the figures are of. Who trains leaves these out.
    """

    protocol: ClassVar[str]
    version: ClassVar[int]
    primary_metric: str
    greater_is_better: ClassVar[bool] = True
    loss_term: ClassVar[str | None] = None
    measured_on: frozenset[str | bytes] = frozenset()

    @abstractmethod
    def __call__(
        self,
        encoder: str | Path | PreTrainedModel,
        processor: Any = None,
        *,
        output_dir: str | Path | None = None,
        command: str | None = None,
    ) -> list[Result]:
        r"""
        Evaluate an encoder and its baselines.

        Args:
            encoder (`str`, `Path` or [`~transformers.PreTrainedModel`]):
                Folder or Hub id of a stock encoder, or a model.
            processor (*optional*):
                Tokenizer, image processor or feature extractor of a model that is given as an object.
            output_dir (`str` or `Path`, *optional*):
                Folder for `results.json` and for what lets an interrupted evaluation go on. Nothing is kept without.
            command (`str`, *optional*):
                The command to write beside the figures; that of this process when left out.

        Returns:
            `list[Result]`
        """

    def loss_context(self, model: torch.nn.Module) -> LossContext | None:
        """What the level of chance of a held-out `loss` depends on; `None` where none is measured."""
        return None

    def score(self, results: list[Result]) -> float:
        """The figure that stands for the whole evaluation: the mean of `primary_metric`."""
        return fmean(result.value for result in results if result.metric == self.primary_metric)

    def get_config_dict(self) -> dict[str, Any]:
        """The settings of the evaluation."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @property
    def description(self) -> str:
        return f"{self.protocol}, version {self.version}"


def name_of(encoder: str | Path | PreTrainedModel) -> str:
    """What an encoder is called: by its folder or Hub id, else by where it was loaded from, else by its class."""
    return str(encoder) if isinstance(encoder, (str, Path)) else encoder.name_or_path or type(encoder).__name__


@contextmanager
def encoder_source(encoder: str | Path | PreTrainedModel, processor: Any = None) -> Iterator[str]:
    """Folder or Hub id from which an encoder loads; a model given as an object is written to a temporary folder."""
    if isinstance(encoder, (str, Path)):
        yield str(encoder)
        return
    if processor is None:
        raise EvaluationError(
            f"A {type(encoder).__name__} given as an object needs its tokenizer or processor beside it (`processor`)."
        )
    with tempfile.TemporaryDirectory() as folder:
        # a pre-training model of ours knows which of its modules is the encoder
        export = getattr(encoder, "export_encoder", encoder.save_pretrained)
        export(folder)
        processor.save_pretrained(folder)
        write_facts(folder, given=name_of(encoder))
        yield folder
