"""Features of the samples of a whole data set: how they are to be made, and what makes them."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from transformers import PreTrainedModel

from ..data.corpus import ResultRows
from .evaluator import EvaluationError


@dataclass
class EmbedSettings:
    r"""
    > Features

    Args:
        pooling (`str`, *optional*):
            How one vector is made of an encoder's outputs. Images: cls, mean, cls+mean or last4; texts: mean, cls or
            last; recordings: mean, or cls of an AST. Left out: the one that the encoder was trained with, where its
            folder says so, else what fits it.
        batch_size (`int`, *optional*, defaults to `64`):
            Images, recordings (fewer of long ones), or windows of text, a forward pass.
        max_length (`int`, *optional*, defaults to `512`):
            Tokens a window of text, fewer where the encoder takes fewer. Longer texts are cut into windows.
        windows (`str`, *optional*, defaults to `"mean"`):
            What a text of several windows gives: their mean, weighted by tokens, or with each a row a window.
        layer (`int`, *optional*):
            Of recordings, the layer that features are of: 0 is what comes into the first block, 1 what that gives.
            Left out: the last one. `recipes/probe.py --protocol layers` says which one knows most of some labels.
        precision (`str`, *optional*, defaults to `"fp32"`):
            Autocast to bf16 or not; auto takes bf16 where the hardware computes in it.
        value_range (`list[float]`, *optional*):
            The values that become black and white, of images with more than 8 bits a value. Left out: those of the
            encoder's training, where its folder says so, else all that 16 bits hold.
    """

    pooling: str | None = None
    batch_size: int = 64
    max_length: int = 512
    windows: Literal["mean", "each"] = "mean"
    layer: int | None = None
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    value_range: list[float] | None = None

    def __post_init__(self):
        for name in ("batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise EvaluationError(f"`--{name}` must be at least 1, got {getattr(self, name)}.")


class SampleFeatures(Protocol):
    """Makes features of the samples of a modality, by an encoder on disk or on the Hub.

    Attributes:
        modality (`str`):
            Of the samples.
        model (`PreTrainedModel`):
            The encoder.
        pooling (`str`):
            How one vector is made of its outputs.
        samples_at_once (`int`):
            How many samples it is to be given in one call.
        identity (`dict[str, Any]`):
            All that the features depend on besides the samples: `encoder` (a digest), `pooling`, `precision` …
    """

    modality: str
    model: PreTrainedModel
    pooling: str
    samples_at_once: int
    identity: dict[str, Any]

    def prepare(self, sample: Any) -> Any:
        """What can be done in threads: decode, tokenise. A `Damage` for what cannot be used."""

    def __call__(self, samples: list) -> ResultRows:
        """The column `features` of prepared samples."""
