"""Captions as they lie in tables and files, and what a tokenizer makes of one of them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedTokenizerBase

from ...errors import UserError
from ...functional import keyed
from ...functional.keyed import Use
from ...modeling.tokenizer import working_copy
from ..held_out import content_keys
from ..sources.base import Damage, decode_utf8
from ..stream import Block, Rows
from ..text.readers import from_arrow as texts_from_arrow


# Batches are multiples of it wide: of few shapes, memory does not fall to pieces, and little is compiled again.
_WIDTHS = 8


def from_arrow(column: pa.ChunkedArray) -> list:
    """The captions of a column: of each row a text, or a list of several; `Damage` stands for no UTF-8."""
    of = column.type
    if not (pa.types.is_list(of) or pa.types.is_large_list(of) or pa.types.is_fixed_size_list(of)):
        return texts_from_arrow(column)
    return [_values(row) for chunk in column.chunks for row in chunk]


def _values(row: pa.Scalar) -> list | Damage | None:
    try:
        return row.as_py()
    except UnicodeDecodeError:
        return Damage("not valid UTF-8")


def decode_file(data: bytes) -> str | Damage:
    """The caption that a file holds; a mark of the order of its bytes is none of it."""
    text = decode_utf8(data.removeprefix(b"\xef\xbb\xbf"))
    return text.strip() if isinstance(text, str) else text


def texts_of(caption: str | list) -> list[str]:
    """The captions of a sample that say something."""
    several = [caption] if isinstance(caption, str) else caption
    return [text for text in several if isinstance(text, str) and text and not text.isspace()]


class CaptionRows:
    """Turns captions into tokens: a pure function of the block.

    Of several captions of a sample each pass takes one, drawn from the key of the sample. What is longer than
    `max_length` is cut, and keeps the special tokens at its end.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Of the text encoder.
        max_length (`int`, *optional*, defaults to `64`):
            Most tokens, special ones included.
        pad_to_max (`bool`, *optional*, defaults to `False`):
            Whether all batches are `max_length` wide, for encoders that were made for it, such as SigLIP's. Otherwise
            a batch is as wide as its longest caption, rounded up to a multiple of 8.
        name (`str`, *optional*, defaults to `"text"`):
            Of the input.
    """

    has_mask = True

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 64,
        *,
        pad_to_max: bool = False,
        name: str = "text",
    ):
        self.tokenizer, self.name = working_copy(tokenizer), name
        self.max_length, self.pad_to_max = max_length, pad_to_max
        self.num_special = len(self.tokenizer("")["input_ids"])
        if max_length <= self.num_special:
            raise UserError(
                f"`--max_length {max_length}` leaves no room for a caption beside the {self.num_special} special "
                f"tokens that the tokenizer adds. Pass at least {self.num_special + 1}."
            )
        self.pad_token_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    def rows(self, block: Block) -> Rows:
        """Tokens of a block, one list each."""
        several = [texts_of(caption) for caption in block.columns[self.name]]
        draws = keyed.uniform(keyed.key(Use.CAPTION, block.keys))
        texts = [each[int(draw * len(each))] for each, draw in zip(several, draws.tolist(), strict=True)]
        tokens = self.tokens(texts)
        nothing = [i for i, row in enumerate(tokens) if len(row) <= self.num_special]
        bad = [(i, "the tokenizer makes no token of this caption") for i in nothing]
        left = np.setdiff1d(np.arange(len(tokens)), nothing)
        columns = {
            "input_ids": [tokens[i] for i in left],
            # what is equal is the text that was drawn, not the list that it is from
            f"{self.name}_content": content_keys([texts[i] for i in left]),
        }
        return Rows(columns, np.ones(len(left), np.int64), bad, block.places[left])

    def tokens(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of some captions, cut to `max_length`."""
        if not texts:
            return []
        found = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"]
        return [np.array(row, np.int32) for row in found]

    def num_cut(self, texts: Sequence[str]) -> int:
        """How many of some captions are longer than `max_length`."""
        # not to the end: tokenizers warn of what is longer than a model takes
        lengths = map(len, self.tokenizer(list(texts), truncation=True, max_length=self.max_length + 1)["input_ids"])
        return sum(length > self.max_length for length in lengths)

    def collator(self, device: torch.device | str = "cpu") -> Callable[[dict[str, Any]], dict[str, torch.Tensor]]:
        """What makes `input_ids` and `attention_mask` `(batch_size, num_tokens)` of the columns of some rows."""
        return self.collate

    def collate(self, columns: dict[str, Any]) -> dict[str, torch.Tensor]:
        rows = columns["input_ids"]
        width = (
            self.max_length if self.pad_to_max else min(-(-max(map(len, rows)) // _WIDTHS) * _WIDTHS, self.max_length)
        )
        there = np.arange(width) < np.array(list(map(len, rows)))[:, None]
        tokens = np.full(there.shape, self.pad_token_id, np.int64)
        tokens[there] = np.concatenate(rows)
        return {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(there.astype(np.int64))}

    def batch(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Some captions as a batch, for measuring."""
        return self.collate({"input_ids": self.tokens(texts)})
