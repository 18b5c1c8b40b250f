"""New words for the vocabulary of a checkpoint: those of one's own corpus that its tokenizer breaks into many pieces.

That a vocabulary of the domain pays is shown by AVocaDo (https://huggingface.co/papers/2110.13434). Each word becomes
a token of its own. Its embedding starts as the mean of the embeddings of its pieces, and so do its weights and bias in
the output layer: the model begins with a guess of the meaning, and continued pre-training makes it one.
"""

import json
import logging
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from tokenizers import AddedToken, Tokenizer
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError
from .base import SSLPreTrainedModel
from .tokenizer import table_size, working_copy


logger = logging.getLogger(__name__)

# A word that is seen less often in the sample would hardly learn an embedding.
MIN_COUNT = 10
# A word of two pieces, such as a plural, gains little, and loses what it shares with others.
MIN_PIECES = 3


def find_words(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, number: int) -> list[str]:
    """The words of a corpus whose breaking into pieces costs most tokens.

    Words of at least `MIN_PIECES` pieces that occur `MIN_COUNT` times, in the order of the tokens that they save. The
    same texts give the same words. A tokenizer of byte-level BPE takes the space before a word as part of it, and
    finds a new word also at the beginning of a longer one: words that would break a longer word of the corpus into
    more pieces are left out.

    Args:
        texts (`Iterable[str]`):
            Sample of the corpus.
        tokenizer (`PreTrainedTokenizerBase`):
            WordPiece or byte-level BPE.
        number (`int`):
            Most words to find.

    Raises:
        UserError: for tokenizers that new words would harm.
    """
    backend = working_copy(tokenizer).backend_tokenizer
    with_space = _space_is_part_of_word(tokenizer)
    counts: Counter[str] = Counter()
    for text in texts:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        counts.update(text[start:end] for _, (start, end) in backend.pre_tokenizer.pre_tokenize_str(text))
    words = sorted(word for word in counts if _is_word(word, with_space))
    pieces = dict(zip(words, _encode(backend, words), strict=True))
    unknown = tokenizer.unk_token_id

    def saved(word: str) -> int:
        known = unknown is None or unknown not in pieces[word]
        return counts[word] * (len(pieces[word]) - 1 if known else MIN_PIECES - 1)

    candidates = [
        word
        for word in words
        if counts[word] >= MIN_COUNT
        and (len(pieces[word]) >= MIN_PIECES or unknown in pieces[word])
        and word not in tokenizer.get_added_vocab()
    ]
    if with_space:
        candidates = [word for word in candidates if not _breaks_a_longer_word(word, words, pieces, backend)]
    return sorted(candidates, key=lambda word: (-saved(word), word))[:number]


def add_words(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> dict[int, list[int]]:
    """Add words to a tokenizer, as ordinary tokens at its end.

    Returns:
        `dict[int, list[int]]`: of each new token, the pieces that the word had before.
    """
    with_space = _space_is_part_of_word(tokenizer)
    pieces = _encode(working_copy(tokenizer).backend_tokenizer, words)
    known = table_size(tokenizer)
    if words and known > len(tokenizer):
        # new tokens would get the id after the number of entries, which another one has
        raise UserError(
            f"`--extend_vocab`: the ids of this {type(tokenizer).__name__} have holes ({len(tokenizer):,} entries, "
            f"highest id {known - 1:,}), so that new words would get ids of others. Leave it out."
        )
    tokenizer.add_tokens([AddedToken(word, single_word=not with_space, normalized=True) for word in words])
    ids = tokenizer.convert_tokens_to_ids(list(words))
    as_tokens = _encode(working_copy(tokenizer).backend_tokenizer, [f"a {word.strip()}" for word in words])
    for word, i, tokens in zip(words, ids, as_tokens, strict=True):
        if i < known or tokens[-1] != i:
            raise UserError(
                f"`--extend_vocab`: {type(tokenizer).__name__} does not take the word {word!r} as a token. Leave it "
                "out, or pass a smaller number of words."
            )
    return dict(zip(ids, pieces, strict=True))


def extend_model(model: SSLPreTrainedModel, new_tokens: dict[int, list[int]]) -> None:
    """Give the encoder of a method embeddings and outputs for new tokens: the means of those of their pieces.

    What the encoder says of texts without new words stays the same; tied weights stay tied.

    Args:
        model ([`SSLPreTrainedModel`]):
            The method around a stock language model.
        new_tokens (`dict[int, list[int]]`):
            From [`add_words`].

    Raises:
        UserError: for encoders whose parts that depend on the vocabulary are not all known.
    """
    if not new_tokens:
        return
    encoder, name = model.encoder, type(model.encoder).__name__
    inputs, outputs = encoder.get_input_embeddings(), encoder.get_output_embeddings()
    if not isinstance(inputs, nn.Embedding) or not isinstance(outputs, nn.Linear):
        raise UserError(
            f"`--extend_vocab` needs an encoder with an embedding and a linear output for each token; {name} has "
            f"{type(inputs).__name__} and {type(outputs).__name__}. Leave it out."
        )
    entries = inputs.num_embeddings
    if min(new_tokens) > entries:
        raise UserError(
            f"The tokenizer has {min(new_tokens):,} entries before the new words, the encoder has embeddings for "
            f"{entries:,}. Pass the encoder's own tokenizer with `--tokenizer`."
        )
    known = {table.data_ptr() for table in _tables(encoder)}
    stray = [n for n, p in encoder.named_parameters() if entries in p.shape and p.data_ptr() not in known]
    if stray or any(len(table) != entries for table in _tables(encoder)):
        raise UserError(
            f"`--extend_vocab` does not know what to do with {', '.join(stray) or 'the output layer'} of {name}. "
            "Leave it out."
        )
    needed = max(new_tokens) + 1
    if needed > entries:
        encoder.resize_token_embeddings(needed, mean_resizing=False)
    tables = _tables(encoder)
    with torch.no_grad():
        # tied weights are one table: it is written once for all of them
        for table in {table.data_ptr(): table for table in tables}.values():
            rows = torch.stack([table[pieces].mean(0) for pieces in new_tokens.values()])
            table[list(new_tokens)] = rows
    model.config.encoder_config.vocab_size = encoder.config.vocab_size


def _tables(encoder: PreTrainedModel) -> list[torch.Tensor]:
    """The parameters with a row for each token; tied ones are the same storage."""
    outputs = encoder.get_output_embeddings()
    tables = [encoder.get_input_embeddings().weight, outputs.weight, outputs.bias]
    return [table for table in tables if table is not None]


def _encode(backend: Tokenizer, words: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch(list(words), add_special_tokens=False)]


def _space_is_part_of_word(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether words are tokens with their space (byte-level BPE) or without (WordPiece); others are refused."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    if description["model"]["type"] == "WordPiece":
        return False
    pre_tokenizer = description["pre_tokenizer"] or {}
    steps = [pre_tokenizer, *pre_tokenizer.get("pretokenizers", [])]
    if description["model"]["type"] == "BPE" and any(step.get("type") == "ByteLevel" for step in steps):
        return True
    raise UserError(
        f"`--extend_vocab` works with WordPiece and byte-level BPE. {type(tokenizer).__name__} is "
        f"{description['model']['type']} of another kind, which would break the text after a new word differently. "
        "Leave it out."
    )


def _is_word(word: str, with_space: bool) -> bool:
    """Letters with their marks only; before them, where it belongs to the word, one space."""
    if with_space and not word.startswith(" "):
        return False
    return word[with_space:] != "" and all(unicodedata.category(c)[0] in "LM" for c in word[with_space:])


def _breaks_a_longer_word(word: str, words: list[str], pieces: dict[str, list[int]], backend: Tokenizer) -> bool:
    longer = []
    for i in range(bisect_left(words, word) + 1, len(words)):
        if not words[i].startswith(word):
            break
        longer.append(words[i])
    rests = _encode(backend, [other[len(word) :] for other in longer])
    return any(1 + len(rest) > len(pieces[other]) for other, rest in zip(longer, rests, strict=True))
