"""From texts to rows of tokens: tokenise, cut, mask, pack; and from rows to a batch."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from ...errors import UserError
from ...functional import keyed
from ...functional.keyed import Use
from ...functional.masking import mask_tokens
from ...modeling.packing import pack
from ...modeling.tokenizer import table_size, token_ids, working_copy
from ..stream import Block, Rows
from .tokenizer import require_prompt_tokenizer
from .words import WordSegmenter


# A tokenizer's results are large objects: few at a time stay in the cache of the processor (a third faster than a
# block at once for short texts).
TEXTS_AT_ONCE = 1000
# Words that a segmenter found have numbers from here on, those of the pre-tokenizer smaller ones.
_SEGMENTED = 1 << 40


class TextRows:
    """Turns a block of texts into rows of at most `max_length` tokens.

    Each text is a document. A long one is cut into pieces; each piece gets the tokenizer's special tokens; nothing is
    dropped. With `packing`, pieces share rows (best-fit decreasing) and `sequence_ids` says which token belongs to
    which; without, a row is one piece, and its place is that of the text with the number of the piece.

    For causal language modelling (`next_tokens`) a document is what the tokenizer puts before a text, the text, and
    `eos_token`: a prompt, which the tokenizer begins in the same way, is the beginning of a document, and its end is
    something to predict. A tokenizer that adds nothing, such as GPT-2's, gives documents that begin with the first
    token of the text, which is then not predicted. Only the document has these ends, not its pieces: a piece of a long
    document begins with the last token of the piece before it, whose label is -100.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            A fast tokenizer.
        max_length (`int`):
            Tokens a row, special tokens included.
        packing (`bool`, *optional*, defaults to `True`):
            Whether pieces share rows.
        masking (`dict[str, float | bool]`, *optional*):
            `mask_ratio`, `mask_token_ratio`, `random_token_ratio` and `whole_word_masking`, for masked language
            modelling. Without it nothing is masked and there are no labels.
        segmenter ([`~hfssl.data.text.words.WordSegmenter`], *optional*):
            Finds the words of scripts without spaces, for `whole_word_masking`. Left out: with what is installed.
        next_tokens (`bool`, *optional*, defaults to `False`):
            Rows for causal language modelling. `labels` are the tokens themselves as transformers has them (the model
            shifts), -100 at the first token of a piece, which has nothing before it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        packing: bool = True,
        masking: dict[str, Any] | None = None,
        segmenter: WordSegmenter | None = None,
        next_tokens: bool = False,
    ):
        if masking and next_tokens:
            raise ValueError("Tokens are masked (`masking`) or predicted from those before (`next_tokens`), got both.")
        tokenizer = working_copy(tokenizer)
        self.tokenizer = tokenizer.backend_tokenizer
        # around each piece, or around the whole document
        self.prefix, self.suffix = _special_tokens_around(tokenizer)
        self.begin, self.end, self.overlap = [], [], 0
        if next_tokens:
            require_prompt_tokenizer(tokenizer)
            self.begin, self.end, self.overlap = self.prefix, [tokenizer.eos_token_id], 1
            self.prefix, self.suffix = [], []
        self.max_length, self.packing = max_length, packing
        self.capacity = max_length - len(self.prefix) - len(self.suffix)
        if self.capacity < 1 + self.overlap:
            if next_tokens:
                raise UserError(f"`--max_length {max_length}` leaves no next token to predict. Pass 2 at least.")
            raise UserError(
                f"`--max_length {max_length}` leaves no room for text beside the {max_length - self.capacity} special "
                f"tokens that the tokenizer adds. Pass at least {max_length - self.capacity + 1}."
            )
        self.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.mask_token_id = tokenizer.mask_token_id
        self.token_ids = token_ids(tokenizer)
        self.is_special = np.zeros(table_size(tokenizer), dtype=bool)
        self.is_special[tokenizer.all_special_ids] = True
        masking = dict(masking or {})
        self.whole_word_masking = masking.pop("whole_word_masking", False)
        self.masking = masking
        self.segmenter = segmenter or WordSegmenter()

    def __call__(self, block: Block) -> Rows:
        texts = block.columns["text"]
        tokens, lengths, words = self._tokenize(texts)
        empty = [(int(i), "the tokenizer makes no token of this text") for i in np.flatnonzero(lengths == 0)]
        columns = {"input_ids": tokens}
        if self.overlap:
            columns["input_ids"], lengths = self._with_ends(tokens, lengths)
            columns["labels"] = columns["input_ids"]
        if self.masking:
            of_text = np.repeat(block.keys, lengths)
            keys = keyed.key(Use.MASK, of_text, _arange_within(lengths))
            unit_keys = None if words is None else keyed.key(Use.WORD_MASK, of_text, words)
            columns["input_ids"], columns["labels"] = mask_tokens(
                tokens,
                keys,
                mask_token_id=self.mask_token_id,
                token_ids=self.token_ids,
                is_special=self.is_special,
                unit_keys=unit_keys,
                **self.masking,
            )
        return self._to_rows(columns, lengths, block, empty)

    def _tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """All tokens in a row, the number of tokens of each text, and each token's word for whole-word masking."""
        parts = [self._tokenize_some(texts[i : i + TEXTS_AT_ONCE]) for i in range(0, len(texts), TEXTS_AT_ONCE)]
        tokens, lengths, words = zip(*parts, strict=True) if parts else ([], [], [])
        empty = np.zeros(0, np.int64)
        return (
            np.concatenate([empty.astype(np.int32), *tokens]),
            np.concatenate([empty, *lengths]),
            np.concatenate([empty, *words]) if self.whole_word_masking else None,
        )

    def _tokenize_some(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        encode = self.tokenizer.encode_batch if self.whole_word_masking else self.tokenizer.encode_batch_fast
        encodings = encode(texts, add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        tokens = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum()))
        words = None
        if self.whole_word_masking:
            words = np.concatenate(
                [np.zeros(0, np.int64), *map(self._words_of, texts, encodings)],
            )
        return tokens, lengths, words

    def _words_of(self, text: str, encoding: Encoding) -> np.ndarray:
        """Of each token of a text the number of its word."""
        # a token outside every word (None) is a word of its own
        words = np.array(
            [word if word is not None else -1 - position for position, word in enumerate(encoding.word_ids)], np.int64
        )
        numbers = self.segmenter(text)
        if numbers is None or not len(words):
            return words
        # In a script without spaces, a token belongs to the word of its last character: before that may be a space.
        begin, end = np.array(encoding.offsets).T
        found = np.where(end > begin, numbers[np.maximum(end, 1) - 1], -1)
        return np.where(found >= 0, _SEGMENTED + found, words)

    def word_lengths(self, texts: list[str]) -> list[np.ndarray]:
        """Of each text, the numbers of tokens of the words that are hidden together."""
        _, lengths, words = self._tokenize(texts)
        return [np.unique(of, return_counts=True)[1] for of in np.split(words, np.cumsum(lengths)[:-1])]

    def _with_ends(self, tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of whole documents, from beginning to end. A text without tokens stays empty."""
        there = lengths > 0
        full = lengths + there * (len(self.begin) + len(self.end))
        start = np.cumsum(full) - full
        text = start + len(self.begin)
        out = np.empty(int(full.sum()), np.int32)
        out[np.repeat(text, lengths) + _arange_within(lengths)] = tokens
        for i, token in enumerate(self.begin):
            out[start[there] + i] = token
        for i, token in enumerate(self.end):
            out[(text + lengths)[there] + i] = token
        return out, full

    def _to_rows(self, columns: dict[str, np.ndarray], lengths: np.ndarray, block: Block, bad: list) -> Rows:
        # pieces: each document cut into runs of `capacity` tokens, of which `overlap` were in the piece before
        stride = self.capacity - self.overlap
        num_pieces = -(-np.maximum(lengths - self.overlap, 0) // stride)
        first_token = np.cumsum(lengths) - lengths
        cut = _arange_within(num_pieces) * stride
        piece_start = np.repeat(first_token, num_pieces) + cut
        piece_length = np.minimum(self.capacity, np.repeat(lengths, num_pieces) - cut)
        full_length = piece_length + len(self.prefix) + len(self.suffix)
        if not self.packing:
            places = np.repeat(block.places, num_pieces, axis=0)
            places[:, 3] = _arange_within(num_pieces)
            return self._unpacked(columns, piece_start, piece_length, places, block.key, bad)
        row, offset = pack(full_length, self.max_length)
        num_rows = int(row.max()) + 1 if len(row) else 0
        # or rows of equally long pieces would follow one another
        row = keyed.permutation(num_rows, Use.ORDER_OF_ROWS, block.key)[row]
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
            elif self.overlap:
                out[slot] = -100
            packed[name] = out.reshape(num_rows, self.max_length)
        packed["sequence_ids"] = sequence_ids.reshape(num_rows, self.max_length)
        return Rows(packed, np.count_nonzero(packed["sequence_ids"], axis=1), bad)

    def _unpacked(self, columns, piece_start, piece_length, places, key, bad) -> Rows:
        order = keyed.permutation(len(piece_start), Use.ORDER_OF_ROWS, key)
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
                row = np.concatenate([around[0], values[span], around[1]])
                if self.overlap and name == "labels":
                    row[0] = -100
                rows[name].append(row)
        return Rows(rows, piece_length[order] + len(self.prefix) + len(self.suffix), bad, places[order])


class TextCollator:
    """Turns the columns of some rows into a batch.

    Returns `input_ids` `(batch_size, sequence_length)`; `sequence_ids` for packed rows, `attention_mask` for padded
    ones; and, where rows have labels, `labels` `(batch_size, sequence_length)` with -100 where nothing is predicted
    and `masked_positions` `(num_masked,)`, the flat indices of the others: known here on the CPU, they save the model
    a synchronisation. `positions` gives them another name: `"target_positions"` for causal language modelling.
    Sentence pairs also have `token_type_ids` `(batch_size, sequence_length)` and `next_sentence_label`
    `(batch_size,)`.
    """

    def __init__(self, pad_token_id: int | None, positions: str = "masked_positions"):
        self.pad_token_id = pad_token_id if pad_token_id is not None else 0
        self.positions = positions

    def __call__(self, columns: dict[str, Any]) -> dict[str, torch.Tensor]:
        if isinstance(columns["input_ids"], list):
            columns = self._pad(columns)
        batch = {name: torch.from_numpy(np.ascontiguousarray(values)).long() for name, values in columns.items()}
        if "labels" in batch:
            batch[self.positions] = torch.from_numpy(np.flatnonzero(columns["labels"] != -100))
        return batch

    def _pad(self, columns: dict[str, list]) -> dict[str, np.ndarray]:
        lengths = np.array([len(row) for row in columns["input_ids"]])
        there = np.arange(lengths.max()) < lengths[:, None]
        padded = {"attention_mask": there.astype(np.int32)}
        padding = {"input_ids": self.pad_token_id, "token_type_ids": 0}
        for name, rows in columns.items():
            if isinstance(rows, np.ndarray):  # one number a row
                padded[name] = rows
                continue
            values = np.full(there.shape, padding.get(name, -100), np.int32)
            values[there] = np.concatenate(rows)
            padded[name] = values
        return padded


def sample_texts(source: Any, max_characters: int, exclude: frozenset[str] = frozenset()) -> Iterable[str]:
    """Texts from all over a source, up to `max_characters` of them: pieces are visited in a fixed shuffled order."""
    seen = 0
    for piece in keyed.permutation(len(source.pieces), Use.TOKENIZER_SAMPLE):
        for text in source.samples(source.read(int(piece))):
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
    raise UserError(
        f"The special tokens of {type(tokenizer).__name__} do not stand before and after the text: {full} for {bare}. "
        "hfssl cannot cut and pack its documents; use another tokenizer."
    )


def _arange_within(lengths: np.ndarray) -> np.ndarray:
    """0, 1, … length - 1 for each length, one after another."""
    total = int(lengths.sum())
    return np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
