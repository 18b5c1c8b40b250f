"""Features of texts by a frozen encoder: one vector a text, however long it is, or one for each of its windows."""

import hashlib
import json
from contextlib import nullcontext

import numpy as np
import torch

from ...data.corpus import ResultRows
from ...data.sources.base import Damage
from ...machine import choose_precision, process_state
from ...modeling.pooling import masked_mean
from ..evaluator import EvaluationError
from ..sample_features import EmbedSettings
from .encoder import TextEncoder


POOLINGS = ("mean", "cls", "last")
# Texts for each row of a forward pass that are looked at together, so that those of one length are found.
TEXTS_PER_ROW = 16


class TextSampleFeatures:
    r"""
    A [`~hfssl.evaluation.sample_features.SampleFeatures`] of texts.

    A text that is longer than the encoder takes is cut into windows, each with the tokenizer's special tokens. The
    vector of a window is pooled over its tokens, special ones included, as sentence encoders do it; that of a text is
    the mean over its windows, weighted by their tokens.

    Args:
        encoder (`str`):
            Folder or Hub id.
        settings ([`~hfssl.evaluation.sample_features.EmbedSettings`]):
            How features are made: pooled over the tokens (`"mean"`, the default), or of the first (`"cls"`) or the
            `"last"` token.
        random_init (`bool`, *optional*, defaults to `False`):
            Take the architecture with new weights.
        seed (`int`, *optional*, defaults to 0):
            Of the new weights.
    """

    modality = "text"

    def __init__(self, encoder: str, settings: EmbedSettings, random_init: bool = False, seed: int = 0):
        text = TextEncoder(encoder, settings.max_length)
        self.name, self.tokenizer = encoder, text.tokenizer
        self.model = text.random_encoder(seed) if random_init else text.load_encoder()
        model, pooling = self.model, settings.pooling
        self.pooling = pooling or "mean"
        if self.pooling not in POOLINGS:
            raise EvaluationError(f"There is no pooling {pooling!r} of texts. Choose one of {', '.join(POOLINGS)}.")
        if model.config.is_encoder_decoder:
            raise EvaluationError(
                f"{self.name} is a {model.config.model_type} of an encoder and a decoder: features are those of an "
                "encoder alone, such as a BERT."
            )
        if not self.tokenizer.is_fast:
            raise EvaluationError(
                f"The tokenizer of {self.name} ({type(self.tokenizer).__name__}) does not cut texts into windows: "
                "save it as a fast one, a tokenizer.json."
            )
        self.max_length, self.num_special = text.max_length, self.tokenizer.num_special_tokens_to_add()
        if self.max_length <= self.num_special:
            raise EvaluationError(
                f"Windows of {self.max_length} tokens leave no room for text beside the {self.num_special} special "
                "tokens of the tokenizer. Pass a larger `--max_length`."
            )
        self.device = process_state().device
        self.precision = choose_precision(settings.precision, use_cpu=self.device.type == "cpu")
        self.batch_size, self.each_window = settings.batch_size, settings.windows == "each"
        self.samples_at_once = TEXTS_PER_ROW * self.batch_size
        tokenizer = hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
        weights = text.digest(random_init) + (f" {seed}" if random_init and seed else "")
        self.identity = {
            "encoder": hashlib.sha256(json.dumps([weights, tokenizer]).encode()).hexdigest(), "pooling": self.pooling,
            "precision": self.precision, "max_length": self.max_length, "each_window": self.each_window,
        }  # fmt: skip
        # the first call of a tokenizer sets how it cuts, which several threads must not do at once
        self.prepare("a")

    def prepare(self, text: str) -> list[list[int]] | Damage:
        """The windows of a text, as tokens."""
        windows = self.tokenizer(
            text, truncation=True, max_length=self.max_length, return_overflowing_tokens=True, verbose=False
        )["input_ids"]
        if len(windows[0]) <= self.num_special:
            return Damage("the tokenizer makes no token of this text")
        return windows

    def __call__(self, texts: list[list[list[int]]]) -> ResultRows:
        """Features of texts of which [`~TextSampleFeatures.prepare`] gave the windows."""
        windows = [window for text in texts for window in text]
        lengths = np.array([len(window) for window in windows])
        vectors = np.zeros((len(windows), self.model.config.hidden_size), np.float32)
        order = np.argsort(lengths, kind="stable")  # equally long ones together: little padding
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            vectors[rows] = self._pooled([windows[row] for row in rows], lengths[rows])
        counts = np.array([len(text) for text in texts])
        if self.each_window:
            return ResultRows({"features": vectors}, counts)
        first = np.cumsum(counts) - counts
        weighted = np.add.reduceat(vectors.astype(np.float64) * lengths[:, None], first)
        return ResultRows({"features": (weighted / np.add.reduceat(lengths, first)[:, None]).astype(np.float32)})

    def _pooled(self, windows: list[list[int]], lengths: np.ndarray) -> np.ndarray:
        there = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(there.shape, self.tokenizer.pad_token_id, np.int64)
        ids[there] = np.concatenate(windows)
        if ids[there].max() >= self.model.config.vocab_size:
            raise EvaluationError(
                f"The tokenizer of {self.name} gives token {ids[there].max()}, but the encoder embeds "
                f"{self.model.config.vocab_size} tokens only: they do not belong together."
            )
        mask = torch.from_numpy(there).to(self.device)
        self.model.to(self.device)
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        with autocast:
            inputs = {"input_ids": torch.from_numpy(ids).to(self.device), "attention_mask": mask.long()}
            hidden = self.model(**inputs).last_hidden_state.float()
        return pooled_tokens(hidden, mask, self.pooling).cpu().numpy()


def pooled_tokens(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector a row.

    Args:
        hidden (`torch.Tensor` of shape `(batch_size, num_tokens, dim)`):
            Of a layer.
        mask (`torch.BoolTensor` of shape `(batch_size, num_tokens)`):
            Which are tokens; the others, at the end, are padding.
        pooling (`str`):
            One of [`POOLINGS`].

    Returns:
        `torch.Tensor` of shape `(batch_size, dim)`.
    """
    if pooling == "mean":
        return masked_mean(hidden, mask)
    if pooling == "cls":
        return hidden[:, 0]
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
