"""Features of labelled texts: by a frozen encoder, by its random initialisation, and as bags of words."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import regex
import torch.distributed as dist
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from ...data.sources.base import Damage
from ...data.text.words import SPACELESS
from ...machine import process_state
from ...modeling.base import evaluating
from ..evaluator import EvaluationError, encoder_source, name_of
from ..feature_files import digest, read_features, write_features
from ..probe_features import BAG_OF_WORDS, ENCODER, RANDOM_INIT, ProbeFeatures
from ..progress import Progress
from ..sample_features import EmbedSettings
from .samples import TextSampleFeatures


if TYPE_CHECKING:
    from ...data.labelled import LabelledData

logger = logging.getLogger(__name__)

# A change that changes features: what older versions left on disk is not used any more.
_VERSION = 1
# Tokens of a text that count, as many as pre-training sees at once as a rule.
MAX_LENGTH = 512
# Most words, and pairs of them, that a bag of words tells apart.
MAX_WORDS = 200_000
# of scripts without spaces each sign is a word, so that pairs of words are pairs of signs
_WORD = regex.compile(rf"[{SPACELESS}]\p{{M}}*|[\w--[{SPACELESS}]]+", regex.V1)


def probe_features(
    encoder: str | Path | PreTrainedModel,
    processor: Any,
    train: "LabelledData",
    test: "LabelledData",
    *,
    pooling: str | None = None,
    batch_size: int = 256,
    precision: str = "fp32",
    cache_dir: str | Path | None = None,
) -> ProbeFeatures:
    """Features of both splits by the encoder, by its random initialisation (seed 0), and as bags of words."""
    settings = EmbedSettings(pooling=pooling, batch_size=batch_size, max_length=MAX_LENGTH, precision=precision)
    name = name_of(encoder)
    splits = {"train": train, "test": test}
    found: dict[str, dict[str, Any]] = {split: {} for split in splits}
    with encoder_source(encoder, processor) as source:
        for kind in (ENCODER, RANDOM_INIT):
            embedder = TextSampleFeatures(source, settings, random_init=kind == RANDOM_INIT)
            settings = replace(settings, pooling=embedder.pooling)
            for split, data in splits.items():
                found[split][kind] = extract(embedder, data, cache_dir, f"{split} ({kind.replace('_', ' ')})")
    found["train"][BAG_OF_WORDS], found["test"][BAG_OF_WORDS] = bags_of_words(train.samples, test.samples)
    how = {
        "pooling": embedder.pooling, "dim": found["train"][ENCODER].shape[1], "max_length": embedder.max_length,
        "precision": embedder.precision,
    }  # fmt: skip
    return ProbeFeatures(name, found["train"], found["test"], how)


def extract(
    embedder: TextSampleFeatures, data: "LabelledData", cache_dir: str | Path | None = None, title: str = "texts"
) -> np.ndarray:
    """Features of all texts, of shape `(num_texts, dim)`, the same in all processes; of a text of no token zeros."""
    state = process_state()
    path = None
    if cache_dir is not None:
        path = Path(cache_dir) / f"{digest('text', _VERSION, data.fingerprint, len(data), embedder.identity)[:32]}.npy"
    (features,) = broadcast_object_list([read_features(path, len(data)) if state.is_main_process else None])
    if features is not None:
        return features
    starts = range(0, len(data), embedder.samples_at_once)
    parts: dict[int, np.ndarray] = {}
    bar = Progress(len(data), f"Features of {title}", " texts")
    with bar, evaluating(embedder.model):
        for start in starts[state.process_index :: state.num_processes]:
            prepared = [embedder.prepare(text) for text in data.samples[start : start + embedder.samples_at_once]]
            there = [row for row, text in enumerate(prepared) if not isinstance(text, Damage)]
            parts[start] = np.zeros((len(prepared), embedder.model.config.hidden_size), np.float32)
            if there:
                parts[start][there] = embedder([prepared[row] for row in there]).columns["features"]
            bar.update(len(prepared) * state.num_processes)
    if state.num_processes > 1:
        shares: list[Any] = [None] * state.num_processes
        dist.all_gather_object(shares, parts)
        parts = {start: part for share in shares for start, part in share.items()}
    features = np.concatenate([parts[start] for start in starts])
    if not np.isfinite(features).all():
        raise EvaluationError(
            f"The features of {embedder.name} hold values that are no numbers: its training diverged, so take an "
            "earlier checkpoint."
        )
    if path is not None and state.is_main_process:
        write_features(path, features)
    return features


def bags_of_words(train: Sequence[str], test: Sequence[str]) -> tuple[Any, Any]:
    """Which words, and pairs of neighbours, a text has: sparse TF-IDF vectors of length 1, as train weighs them.

    With a linear classifier it is what an encoder has to be better than.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        tokenizer=_WORD.findall, token_pattern=None, ngram_range=(1, 2), sublinear_tf=True, max_features=MAX_WORDS,
        dtype=np.float32,
    )  # fmt: skip
    try:
        return vectorizer.fit_transform(train), vectorizer.transform(test)
    except ValueError as error:  # no text has a word
        raise EvaluationError("None of the texts to learn from has a word or a number in it.") from error
