"""From texts to sentence pairs: what BERT's next-sentence prediction is trained on.

Paper: BERT, Devlin et al., 2018 (https://huggingface.co/papers/1810.04805), Section 3.1 and Appendix A.2.
Reference code: `create_instances_from_document` in
https://github.com/google-research/bert/blob/eedf5716ce1268e56f0a50264a88cafad334ac61/create_pretraining_data.py.

Departures from the reference: sentences are found by a rule, not given one a line; a sentence of more than half a row
is cut, where the reference would throw away what does not fit; "another document" is one of the same block of the
stream (about a megabyte of text) and never the document itself, where the reference takes it after ten unlucky draws;
pairs and masks are new in every pass instead of ten fixed copies.
"""

import logging
import random
import re
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ...errors import UserError
from ...functional import keyed
from ...functional.keyed import Use
from ...functional.masking import mask_tokens
from ...modeling.tokenizer import working_copy
from ..stream import Block, Rows
from .rows import TextRows, _arange_within
from .words import WordSegmenter


logger = logging.getLogger(__name__)

# . ! ? … (and those of Arabic, Indic, Ethiopic and Armenian) and closing quotes or brackets before white space;
# those of East Asia, Burmese, Khmer and Tibetan need none
_SENTENCE_END = re.compile(r"""(?:[.!?…؟۔।॥።։]+["'”’»)\]]*\s+|[。！？။។།]+[”’»）」』]*\s*)(?=\S)""")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text.

    A sentence ends at a line break, and within a line after `.`, `!`, `?` or `…` (and closing quotes or brackets)
    where white space follows and the next character is not a small letter. That also splits after "Mr."; a segment is
    several sentences in a row, so little depends on it. Text with one sentence a line, as BERT's own scripts want it,
    stays as it is.

    Example:

    ```python
    >>> split_sentences('He asked: "Why?" Nobody knew, e.g. why not.\\nThe end')
    ['He asked: "Why?"', 'Nobody knew, e.g. why not.', 'The end']
    ```
    """
    sentences = []
    for line in text.splitlines():
        start = 0
        for end in _SENTENCE_END.finditer(line):
            if not line[end.end()].islower():
                sentences.append(line[start : end.end()].strip())
                start = end.end()
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


def require_unpacked(arguments: Any, given: set[str]) -> None:
    """Set `packing` to false, as sentence pairs need it.

    Args:
        arguments ([`~hfssl.cli.text.data.TextDataArguments`]):
            The flags about data.
        given (`set[str]`):
            The flags that the user set.

    Raises:
        UserError: if the user asked for packing.
    """
    if arguments.packing and "packing" in given:
        raise UserError(
            "`--packing true` and `--next_sentence_objective` exclude each other: a row is one pair of sentences. "
            "Leave one of them out."
        )
    arguments.packing = False
    logger.info("Rows are sentence pairs, padded and not packed (`--next_sentence_objective`).")


class SentencePairRows(TextRows):
    """Turns a block of texts into sentence pairs `[CLS] A [SEP] B [SEP]` of at most `max_length` tokens.

    Each text is a document. B follows A in its document (`next_sentence_label` 0), or comes from another document of
    the block (label 1): half of the time, and always where A is the last sentence left. The columns are `input_ids`,
    `token_type_ids` (0 for `[CLS] A [SEP]`, 1 for `B [SEP]`), `next_sentence_label` and, with `masking`, `labels`.
    Rows are not packed. Everything random about a pair is drawn from the key of A's document.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            A fast tokenizer that joins two texts with special tokens around and between.
        max_length (`int`):
            Tokens a row, special tokens included.
        masking, segmenter (*optional*):
            As for [`TextRows`].
        short_ratio (`float`, *optional*, defaults to 0.1):
            Share of the documents that are cut into shorter pairs, of random length, as fine-tuning will bring
            (`short_seq_prob` in the reference).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        masking: dict[str, Any] | None = None,
        segmenter: WordSegmenter | None = None,
        short_ratio: float = 0.1,
    ):
        super().__init__(tokenizer, max_length, packing=False, masking=masking, segmenter=segmenter)
        self.middle = self._special_tokens_between(working_copy(tokenizer))
        num_special = len(self.prefix) + len(self.middle) + len(self.suffix)
        self.capacity = max_length - num_special
        if self.capacity < 2:
            raise UserError(
                f"`--max_length {max_length}` leaves no room for two sentences beside the {num_special} special "
                f"tokens of a pair. Pass at least {num_special + 2}."
            )
        self.short_ratio = short_ratio
        self.has_warned = False

    def __call__(self, block: Block) -> Rows:
        texts = block.columns["text"]
        sentences = [split_sentences(text) for text in texts]
        tokens, lengths, words = self._tokenize([sentence for document in sentences for sentence in document])
        document = np.repeat(np.arange(len(texts)), [len(document) for document in sentences])
        bounds = self._bounds(lengths, document, len(texts))
        filled = [index for index, own in enumerate(bounds) if len(own) > 1]
        empty = [(i, "the tokenizer makes no token of this text") for i, own in enumerate(bounds) if len(own) == 1]
        if len(filled) == 1 and not self.has_warned:
            self.has_warned = True
            logger.warning(
                "A block of the stream holds a single document, so none of its pairs is random. Next-sentence "
                "prediction needs many documents: pass shorter ones (of .txt files, `--sample_by paragraph`)."
            )
        bounds, pairs, keys = [bounds[index] for index in filled], [], []
        for position, index in enumerate(filled):
            rng = random.Random(int(keyed.key(Use.SENTENCE_PAIRS, block.keys[index])))
            found = self._pairs(bounds, position, rng)
            pairs += found
            keys.append(keyed.key(Use.PAIR, block.keys[index], np.arange(len(found))))
        order = keyed.permutation(len(pairs), Use.ORDER_OF_ROWS, block.key)
        pairs = np.array(pairs, dtype=np.int64).reshape(-1, 5)[order]
        keys = np.concatenate([np.empty(0, np.uint64), *keys])[order]
        return self._to_pair_rows(tokens, lengths, words, pairs, keys, empty)

    def _bounds(self, lengths: np.ndarray, document: np.ndarray, num_documents: int) -> list[list[int]]:
        """For each document the token at which it starts, and the one behind each of its sentences."""
        longest = -(-self.capacity // 2)  # two fill a row
        num_pieces = -(-lengths // longest)
        cut = _arange_within(num_pieces) * longest
        length = np.minimum(longest, np.repeat(lengths, num_pieces) - cut)
        ends, document = np.cumsum(length), np.repeat(document, num_pieces)
        first = np.searchsorted(document, np.arange(num_documents + 1))
        starts = np.concatenate([[0], ends])[first]
        return [[int(starts[i]), *ends[first[i] : first[i + 1]].tolist()] for i in range(num_documents)]

    def _pairs(self, bounds: list[list[int]], document: int, rng: random.Random) -> list[tuple[int, ...]]:
        """The pairs of a document, `(start of A, end of A, start of B, end of B, label)` in the tokens of the block.

        Draws from `rng` what the reference draws, in the same order.
        """
        own, pairs = bounds[document], []
        target = self.capacity
        if rng.random() < self.short_ratio:
            target = rng.randint(2, self.capacity)
        first, num_sentences = 0, len(own) - 1
        while first < num_sentences:
            # a chunk: sentences first … last - 1, as many as fill the row
            last = _fill(own, first, target)
            split = first + (rng.randint(1, last - first - 1) if last - first > 1 else 1)
            a_start, a_end = own[first], own[split]
            is_random = len(bounds) > 1 and (last - first == 1 or rng.random() < 0.5)
            if is_random:
                other = document
                while other == document:
                    other = rng.randint(0, len(bounds) - 1)
                theirs = bounds[other]
                start = rng.randint(0, len(theirs) - 2)
                b_start, b_end = theirs[start], theirs[_fill(theirs, start, target - (a_end - a_start))]
                first = split  # the rest of the chunk is put back
            else:
                b_start, b_end = own[split], own[last]
                first = last
            if b_start == b_end:
                continue  # a single sentence, and no document to pair it with
            # the longer of the two loses tokens until both fit, at its front or at its back
            while a_end - a_start + b_end - b_start > self.capacity:
                at_front = rng.random() < 0.5
                if a_end - a_start > b_end - b_start:
                    a_start, a_end = a_start + at_front, a_end - (not at_front)
                else:
                    b_start, b_end = b_start + at_front, b_end - (not at_front)
            pairs.append((a_start, a_end, b_start, b_end, int(is_random)))
        return pairs

    def _to_pair_rows(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        words: np.ndarray | None,
        pairs: np.ndarray,
        keys: np.ndarray,
        empty: list[tuple[int, str]],
    ) -> Rows:
        a_start, a_end, b_start, b_end, label = pairs.T
        a_length, b_length = a_end - a_start, b_end - b_start
        # A and B of a pair, one after another
        segment_length = np.stack([a_length, b_length], axis=1).ravel()
        within = _arange_within(segment_length)
        source = np.repeat(np.stack([a_start, b_start], axis=1).ravel(), segment_length) + within
        columns = {"input_ids": tokens[source]}
        if self.masking:
            unit_keys = None
            token_pair_keys = np.repeat(keys, a_length + b_length)
            if words is not None:
                sentence = np.repeat(np.arange(len(lengths)), lengths)
                unit_keys = keyed.key(Use.WORD_MASK, token_pair_keys, sentence[source], words[source])
            columns["input_ids"], columns["labels"] = mask_tokens(
                columns["input_ids"],
                keyed.key(Use.MASK, token_pair_keys, _arange_within(a_length + b_length)),
                mask_token_id=self.mask_token_id,
                token_ids=self.token_ids,
                is_special=self.is_special,
                unit_keys=unit_keys,
                **self.masking,
            )
        # [CLS] A [SEP] B [SEP]
        row_length = a_length + b_length + len(self.prefix) + len(self.middle) + len(self.suffix)
        row_end = np.cumsum(row_length)
        a_slot = row_end - row_length + len(self.prefix)
        b_slot = a_slot + a_length + len(self.middle)
        slot = np.repeat(np.stack([a_slot, b_slot], axis=1).ravel(), segment_length) + within
        total = int(row_length.sum())
        flat = {name: np.full(total, -100, np.int32) for name in columns}
        for name, values in columns.items():
            flat[name][slot] = values
        special = ((a_slot - len(self.prefix), self.prefix), (b_slot - len(self.middle), self.middle))
        for where, ids in (*special, (b_slot + b_length, self.suffix)):
            for i, token in enumerate(ids):
                flat["input_ids"][where + i] = token
        flat["token_type_ids"] = (np.arange(total) >= np.repeat(b_slot, row_length)).astype(np.int32)
        rows = {name: np.split(values, row_end[:-1]) if len(pairs) else [] for name, values in flat.items()}
        return Rows({**rows, "next_sentence_label": label.astype(np.int32)}, row_length, empty)

    def _special_tokens_between(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The special tokens that the tokenizer puts between two texts."""
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        full = tokenizer("a", "a")["input_ids"]
        middle = full[len(self.prefix) + len(bare) : len(full) - len(bare) - len(self.suffix)]
        if not middle or full != [*self.prefix, *bare, *middle, *bare, *self.suffix]:
            raise UserError(
                "`--next_sentence_objective` needs a tokenizer that joins two texts as BERT's does, but "
                f"{type(tokenizer).__name__} makes {full} of {bare} and {bare}. Pass another `--tokenizer`, or leave "
                "it out and one is trained."
            )
        return middle


def _fill(bounds: list[int], first: int, target: int) -> int:
    """The sentence behind those that, from `first` on, reach `target` tokens or the end of the document."""
    last = first + 1
    while last < len(bounds) - 1 and bounds[last] - bounds[first] < target:
        last += 1
    return last
