"""From texts to rows of tokens: tokenise, cut, mask, pack; and from rows to a batch."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .. import random as keyed
from ..masking import mask_tokens
from ..packing import pack
from .stream import Block, Rows


class TextRows:
    """Turns a block of texts into rows of at most `max_length` tokens.

    Each text is a document. A long one is cut into pieces; each piece gets the tokenizer's special tokens; nothing is
    dropped. With `packing`, pieces share rows (best-fit decreasing) and `sequence_ids` says which token belongs to which;
    without, a row is one piece.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            A fast tokenizer.
        max_length (`int`):
            Tokens a row, special tokens included.
        packing (`bool`, *optional*, defaults to `True`):
            Whether pieces share rows.
        masking (`dict[str, float | bool]`, *optional*):
            `mask_ratio`, `mask_token_ratio`, `random_token_ratio` and `whole_word_masking`, for masked language modelling.
            Without it nothing is masked and there are no labels.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        packing: bool = True,
        masking: dict[str, Any] | None = None,
    ):
        self.tokenizer = tokenizer.backend_tokenizer
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.prefix, self.suffix = _special_tokens_around(tokenizer)
        self.max_length, self.packing = max_length, packing
        self.capacity = max_length - len(self.prefix) - len(self.suffix)
        if self.capacity < 1:
            raise ValueError(
                f"max_length={max_length} leaves no room for text beside the {max_length - self.capacity} special tokens "
                "that the tokenizer adds. Pass a larger `--max_length`."
            )
        self.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.mask_token_id = tokenizer.mask_token_id
        self.vocab_size = len(tokenizer)
        self.is_special = np.zeros(self.vocab_size, dtype=bool)
        self.is_special[tokenizer.all_special_ids] = True
        masking = dict(masking or {})
        self.whole_word_masking = masking.pop("whole_word_masking", False)
        self.masking = masking

    def __call__(self, block: Block) -> Rows:
        texts = next(iter(block.columns.values()))
        tokens, lengths, words = self._tokenize(texts)
        keys = keyed.key(np.repeat(block.keys, lengths), _arange_within(lengths))
        empty = [(int(i), "the tokenizer makes no token of this text") for i in np.flatnonzero(lengths == 0)]
        columns = {"input_ids": tokens}
        if self.masking:
            unit_keys = None if words is None else keyed.key(np.repeat(block.keys, lengths), words, 7)
            columns["input_ids"], columns["labels"] = mask_tokens(
                tokens,
                keys,
                mask_token_id=self.mask_token_id,
                vocab_size=self.vocab_size,
                is_special=self.is_special,
                unit_keys=unit_keys,
                **self.masking,
            )
        return self._to_rows(columns, lengths, block.key, empty)

    def _tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """All tokens in a row, the number of tokens of each text, and each token's word where words are masked whole."""
        if self.whole_word_masking:
            encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        else:
            encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)  # no offsets: faster
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        total = int(lengths.sum())
        tokens = np.fromiter((i for piece in ids for i in piece), dtype=np.int32, count=total)
        words = None
        if self.whole_word_masking:
            # a token outside every word (None) is a word of its own
            words = np.fromiter(
                (
                    word if word is not None else -1 - position
                    for encoding in encodings
                    for position, word in enumerate(encoding.word_ids)
                ),
                dtype=np.int64,
                count=total,
            )
        return tokens, lengths, words

    def _to_rows(self, columns: dict[str, np.ndarray], lengths: np.ndarray, key: int, bad: list) -> Rows:
        # pieces: each document cut into runs of `capacity` tokens
        num_pieces = -(-lengths // self.capacity)
        first_token = np.cumsum(lengths) - lengths
        cut = _arange_within(num_pieces) * self.capacity
        piece_start = np.repeat(first_token, num_pieces) + cut
        piece_length = np.minimum(self.capacity, np.repeat(lengths, num_pieces) - cut)
        full_length = piece_length + len(self.prefix) + len(self.suffix)
        if not self.packing:
            return self._unpacked(columns, piece_start, piece_length, key, bad)
        row, offset = pack(full_length, self.max_length)
        num_rows = int(row.max()) + 1 if len(row) else 0
        row = keyed.permutation(num_rows, key)[row]  # or rows of equally long pieces would follow one another
        slot = row * self.max_length + offset
        source = np.repeat(piece_start, piece_length) + _arange_within(piece_length)
        target = np.repeat(slot + len(self.prefix), piece_length) + _arange_within(piece_length)
        order = np.argsort(slot, kind="stable")
        number = np.empty(len(slot), np.int32)
        sorted_rows = row[order]
        number[order] = np.arange(len(slot)) - np.searchsorted(sorted_rows, sorted_rows) + 1
        sequence_ids = np.zeros(num_rows * self.max_length, np.int32)
        sequence_ids[np.repeat(slot, full_length) + _arange_within(full_length)] = np.repeat(number, full_length)
        packed = {}
        for name, values in columns.items():
            out = np.full(num_rows * self.max_length, self.pad_token_id if name == "input_ids" else -100, np.int32)
            out[target] = values[source]
            if name == "input_ids":
                for i, token in enumerate(self.prefix):
                    out[slot + i] = token
                for i, token in enumerate(self.suffix):
                    out[slot + len(self.prefix) + piece_length + i] = token
            packed[name] = out.reshape(num_rows, self.max_length)
        packed["sequence_ids"] = sequence_ids.reshape(num_rows, self.max_length)
        return Rows(packed, np.count_nonzero(packed["sequence_ids"], axis=1), bad)

    def _unpacked(self, columns, piece_start, piece_length, key, bad) -> Rows:
        order = keyed.permutation(len(piece_start), key)
        rows: dict[str, list] = {name: [] for name in columns}
        prefix, suffix = np.array(self.prefix, np.int32), np.array(self.suffix, np.int32)
        for i in order:
            span = slice(piece_start[i], piece_start[i] + piece_length[i])
            for name, values in columns.items():
                around = (
                    (prefix, suffix)
                    if name == "input_ids"
                    else (np.full_like(prefix, -100), np.full_like(suffix, -100))
                )
                rows[name].append(np.concatenate([around[0], values[span], around[1]]))
        return Rows(rows, piece_length[order] + len(self.prefix) + len(self.suffix), bad)


class TextCollator:
    """Turns the columns of some rows into a batch.

    Returns `input_ids` `(batch_size, sequence_length)`; `sequence_ids` for packed rows, `attention_mask` for padded ones; and,
    where rows have labels, `labels` `(batch_size, sequence_length)` with -100 at unmasked positions and
    `masked_positions` `(num_masked,)`, their flat indices: known here on the CPU, they save the model a synchronisation.
    """

    def __init__(self, pad_token_id: int | None):
        self.pad_token_id = pad_token_id if pad_token_id is not None else 0

    def __call__(self, columns: dict[str, Any]) -> dict[str, torch.Tensor]:
        if isinstance(columns["input_ids"], list):
            columns = self._pad(columns)
        batch = {name: torch.from_numpy(np.ascontiguousarray(values)).long() for name, values in columns.items()}
        if "labels" in batch:
            batch["masked_positions"] = torch.from_numpy(np.flatnonzero(columns["labels"] != -100))
        return batch

    def _pad(self, columns: dict[str, list]) -> dict[str, np.ndarray]:
        lengths = np.array([len(row) for row in columns["input_ids"]])
        there = np.arange(lengths.max()) < lengths[:, None]
        padded = {"attention_mask": there.astype(np.int32)}
        for name, rows in columns.items():
            values = np.full(there.shape, self.pad_token_id if name == "input_ids" else -100, np.int32)
            values[there] = np.concatenate(rows)
            padded[name] = values
        return padded


def sample_texts(source: Any, max_characters: int, exclude: frozenset[str] = frozenset()) -> Iterable[str]:
    """Texts from all over a source, up to `max_characters` of them: pieces are visited in a fixed shuffled order."""
    seen = 0
    for piece in keyed.permutation(len(source.pieces), 0, 11):
        for text in source.read(int(piece)).columns[source.columns[0]]:
            if text in exclude:
                continue
            yield text
            seen += len(text)
            if seen >= max_characters:
                return


def _special_tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise ValueError(
        f"The special tokens of {type(tokenizer).__name__} do not stand before and after the text: {full} for {bare}. "
        "hfssl cannot cut and pack its documents; use another tokenizer."
    )


def _arange_within(lengths: np.ndarray) -> np.ndarray:
    """0, 1, … length - 1 for each length, one after another."""
    total = int(lengths.sum())
    return np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
