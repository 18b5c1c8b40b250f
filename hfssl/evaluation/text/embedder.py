"""Texts of which an encoder makes features again and again while it trains."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.text.rows import TextCollator
from ...modeling.pooling import masked_mean
from ...modeling.tokenizer import working_copy


# Of a text: its beginning says what it is about.
MAX_TOKENS = 128


class TextEmbedder:
    """Texts, tokenised once, one a row; an [`~hfssl.evaluation.modality.Embedder`].

    Of texts that share a row, none could be told from the others.

    Args:
        samples (`Sequence[str]`):
            Texts.
        processor (`PreTrainedTokenizerBase`):
            Tokenizer that goes with the encoder.
        transform (*optional*):
            Of the run's stream: rows are no longer than its rows.
        batch_size (`int`, *optional*, defaults to `64`):
            Texts a forward pass.
    """

    def __init__(
        self, samples: Sequence[str], processor: PreTrainedTokenizerBase, transform: Any = None, batch_size: int = 64
    ):
        backend = working_copy(processor).backend_tokenizer
        longest = min(MAX_TOKENS, processor.model_max_length)
        if transform is not None:
            longest = min(longest, transform.max_length)
        tokens = [np.array(encoding.ids[:longest], np.int32) for encoding in backend.encode_batch_fast(list(samples))]
        order = sorted((row for row, ids in enumerate(tokens) if len(ids)), key=lambda row: len(tokens[row]))
        collate = TextCollator(processor.pad_token_id)
        self.rows = [np.array(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
        self.batches = [collate({"input_ids": [tokens[row] for row in rows]}) for rows in self.rows]

    @property
    def num_batches(self) -> int:
        return len(self.batches)

    def __call__(self, encoder: PreTrainedModel, index: int, pooling: str | None = None) -> torch.Tensor:
        device = next(encoder.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in self.batches[index].items()}
        hidden = encoder.base_model(**batch).last_hidden_state  # (batch_size, sequence_length, hidden_size)
        return masked_mean(hidden, batch["attention_mask"])
