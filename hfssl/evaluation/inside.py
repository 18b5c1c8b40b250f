"""An encoder opened up: what [`~hfssl.evaluation.explain.explain`] asks of each modality, and what it writes down.

`hfssl/evaluation/<modality>/inside.py` has an [`Inside`] for its encoders. It knows how a sample becomes the input of
an encoder and back: what the parts of a sample are (patches, tokens, stretches of time), how one is hidden, and how a
number for each part is shown. What is done with them is the same for all.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from ..machine import fit_to_leave
from ..modeling.trial import FAILURES
from .results import read_json, write_json


if TYPE_CHECKING:
    from .extraction import Reader


# What was found, in a result folder; the report tells it.
FINDINGS = "explain.json"
# The folder in that of an encoder where this is kept for its own report.
KEPT = "explain"
PAPERS = "https://huggingface.co/papers/"


@dataclass
class Opened:
    """A sample, as an encoder takes it.

    Args:
        inputs (`torch.Tensor` of shape `(1, ...)`):
            What is asked of: pixels, embeddings of tokens, a waveform.
        shown (`Any`):
            What is drawn.
        options (`dict[str, torch.Tensor]`, *optional*):
            What the encoder takes beside it.
    """

    inputs: torch.Tensor
    shown: Any
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """A sample beside maps of it, for a picture.

    Args:
        sample ([`Opened`]):
            The sample.
        title (`str`):
            What is said of it.
        maps (`dict[str, np.ndarray]`):
            By the name of a method, a number for each part.
    """

    sample: Opened
    title: str
    maps: Mapping[str, np.ndarray]


@dataclass
class Group:
    """Samples that are shown together.

    Args:
        title (`str`):
            Of the group.
        samples (`list[tuple[int, str]]`):
            Rows of samples, and what is said of each.
    """

    title: str
    samples: list[tuple[int, str]]


class Inside(Protocol):
    """An encoder, and how the samples of its modality go in.

    Made of folder or Hub id, pooling (or `None` for what fits) and samples a forward pass; with `random_init` it has
    new weights.

    Attributes:
        name, pooling (`str`):
            What it is called, and how a feature is made of what it gives.
        model (`PreTrainedModel`):
            The encoder, which can tell its attention.
        part, several_parts (`str`):
            What a part of a sample is, such as `"patch"`, and `"patches"`.
        hidden (`str`):
            What stands in place of a hidden part, in words.
    """

    name: str
    pooling: str
    model: PreTrainedModel
    part: str
    several_parts: str
    hidden: str

    def reader(self, samples: Sequence) -> "Reader | None":
        """What decodes some samples; `None` where there is nothing to decode."""

    def layers(self, samples: Sequence, rows: Sequence[int]) -> list[np.ndarray]:
        """Pooled features `(num_rows, dim)` of some samples by each layer; the last is the encoder's own feature."""

    def open(self, samples: Sequence, row: int) -> Opened:
        """A sample, ready to go in; a damaged one is blank."""

    def forward(self, inputs: torch.Tensor, sample: Opened) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The feature `(n, dim)` of inputs `(n, ...)` like those of a sample, and the map `(n, dim, height, width)`
        that it is made of where the encoder is convolutional; both know their gradient."""

    def cells(self, relevance: torch.Tensor, sample: Opened) -> np.ndarray:
        """The sum over each part of numbers in the shape of the sample's inputs."""

    def occluded(self, sample: Opened) -> tuple[torch.Tensor, tuple[int, ...]]:
        """The sample's inputs with one part hidden after the other `(num_parts, ...)`, and the grid of the parts."""

    def attentions(self, sample: Opened) -> Sequence[torch.Tensor] | None:
        """The attention of each layer `(1, num_heads, num_tokens, num_tokens)`; `None` where it has none that is over
        all of the sample."""

    def read_from(self, num_tokens: int, sample: Opened) -> torch.Tensor:
        """The share `(num_tokens,)` that each token has in the feature of a sample."""

    def parts(self, tokens: torch.Tensor, sample: Opened) -> np.ndarray:
        """Numbers `(num_tokens,)` of tokens as those of parts: without tokens that are of no part, such as CLS."""

    def show_maps(self, rows: Sequence[Row], folder: Path, name: str, caption: str) -> dict[str, Any]:
        """Draw samples beside maps of them into a folder, and return what a [`Finding`] shows."""

    def show_groups(
        self, samples: Sequence, groups: Sequence[Group], folder: Path, name: str, caption: str
    ) -> dict[str, Any]:
        """Draw groups of samples likewise."""


@dataclass
class Finding:
    r"""
    What a method says of an encoder.

    Args:
        title (`str`):
            Of its section.
        method (`str`), papers (`dict[str, str]`):
            What was done, and where that comes from: paper and address.
        limits (`str`):
            What it does not show.
        said (`list[str]`, *optional*):
            What came out, in sentences.
        shows (`list[dict]`, *optional*):
            What there is to see: `picture` (a file in `assets/`), `sounds` (a page with players there), `words`
            (title, and by method the tokens with their strengths), `listing` (sentences with lines of their own) or
            `table` (head and rows), each with a `caption`.
    """

    title: str
    method: str
    papers: dict[str, str]
    limits: str
    said: list[str] = field(default_factory=list)
    shows: list[dict[str, Any]] = field(default_factory=list)


def write_findings(folder: Path, about: dict[str, Any], findings: Sequence[Finding]) -> None:
    """Keep what was found in a result folder."""
    write_json(folder / FINDINGS, fit_to_leave(about) | {"findings": [vars(each) for each in findings]})


def read_findings(folder: Path) -> dict[str, Any]:
    """What was found; nothing where there is no such file."""
    return read_json(folder / FINDINGS, default={})


def keep_findings(folder: str | Path, encoder: str | Path) -> None:
    """Keep what was found, and what there is to see of it, in the folder of the encoder for its own report."""
    folder, kept = Path(folder).resolve(), Path(encoder).resolve() / KEPT
    if folder in (kept, kept.parent):  # its report finds them there
        return
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder / "assets", kept / "assets")
    shutil.copyfile(folder / FINDINGS, kept / FINDINGS)


def telling_attention(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder in evaluation mode, with the implementation of attention that tells its weights."""
    with suppress(*FAILURES):  # it has no attention, or one implementation only
        model.set_attn_implementation("eager")
    return model.eval()


def attentions_of(model: PreTrainedModel, **inputs: Any) -> Sequence[torch.Tensor] | None:
    """The attention of each layer of one sample, where it is over all tokens that come out."""
    try:
        with torch.no_grad():
            outputs = model(**inputs, output_attentions=True)
    except (TypeError, ValueError):  # it knows no such word, or tells no attention, such as those of timm
        return None
    found = outputs.get("attentions")
    if not found or any(each is None or each.ndim != 4 for each in found):
        return None
    length = outputs.last_hidden_state.shape[1]
    whole = outputs.last_hidden_state.ndim == 3 and all(
        len(each) == 1 and each.shape[2:] == (length, length) for each in found
    )
    return [each.float() for each in found] if whole else None
