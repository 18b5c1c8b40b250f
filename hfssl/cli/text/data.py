"""What the text recipes share: the flags about data, and from them tokenizer, held-out texts and stream."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...data.held_out import held_out_parts, split_to_measure_on
from ...data.mixtures import open_mixture, parts_of, stream_class
from ...data.sources import Source
from ...data.stream import BLOCK_BYTES, ExactStream
from ...data.text.fit import check_fit_to_corpus, check_words, tokenizer_fit
from ...data.text.passages import in_passages
from ...data.text.rows import TextCollator, TextRows, sample_texts
from ...data.text.sentence_pairs import SentencePairRows
from ...data.text.tokenizer import choose_vocab_size, load_tokenizer, train_bpe_tokenizer, train_tokenizer
from ...data.text.words import WordSegmenter
from ...errors import UserError
from ...machine import say_choice
from ...modeling.tokenizer import table_size
from ...modeling.vocabulary import add_words, find_words
from ...training.arguments import SSLTrainingArguments
from ..data import DataArguments, stream_options
from .presets import CAUSAL_PRESETS, TEXT_PRESETS


logger = logging.getLogger(__name__)

# Enough for the frequencies of every entry of a vocabulary of 30,000; tokenizers trains on it in seconds.
TOKENIZER_SAMPLE = 50_000_000
# Of ordinary text, to state the size of a block in bytes.
BYTES_PER_TOKEN = 4
ROWS_PER_BLOCK = 64
BATCHES_PER_BLOCK = 64
# Enough to find the frequent words.
VOCABULARY_SAMPLE = 20_000_000


@dataclass
class TextDataArguments(DataArguments):
    r"""
    > Data

    Args:
        dataset (`str`, *optional*):
            Hub id, file, folder or glob (txt, jsonl, csv, parquet, arrow, a zip of them, `save_to_disk`). Several with
            commas between them are mixed: a:0.7,b:0.3 takes 70 % of the text (bytes, not documents) from a, and goes
            through each again and again on its own; without weights they are read as one. Left out: docstrings and
            language reference of this Python.
        text_column (`str`, *optional*):
            Column with the text. Left out, it is found by its type.
        sample_by (`str`, *optional*, defaults to `"line"`):
            What a document of a .txt file is: line, paragraph (blank lines between) or document (the whole file). Of
            fewer than ten long ones, passages are taken for documents, so that some can be held out.

    > Text

    Args:
        tokenizer (`str`, *optional*):
            Hub id or folder of a tokenizer. Left out: that of the encoder to continue, else one is trained on the
            corpus.
        extend_vocab (`int`, *optional*, defaults to `0`):
            When a checkpoint is continued: add up to so many words of the corpus that its tokenizer breaks into many
            pieces.
        vocab_size (`int`, *optional*):
            Entries of a tokenizer that is trained. Left out, they follow the size of the corpus; where its characters
            alone fill them, as in a mixture of many scripts, they are more.
        lowercase (`bool`, *optional*, defaults to `True`):
            Whether a WordPiece tokenizer that is trained ignores case. Byte-level BPE, for causal language models,
            keeps it.
        strip_accents (`bool`, *optional*, defaults to `False`):
            Whether it also takes the marks off letters: accents, and vowels of some scripts.
        max_lost_fraction (`float`, *optional*, defaults to `0.05`):
            Share of the letters that the tokenizer may lose. It is measured on held-out text before the run, which
            does not start where more are lost. Accents do not count, nor do signs that are no letters.
        max_length (`int`, *optional*, defaults to `128`):
            Tokens a row.
        packing (`bool`, *optional*, defaults to `True`):
            Several documents a row, none sees another. false: one document a row, padded.
        batch_tokens (`int`, *optional*):
            With `--packing false`: batches of documents of about the same length, at most so many positions each with
            padding, instead of `--per_device_train_batch_size` documents.
    """

    text_column: str | None = None
    sample_by: str = "line"
    tokenizer: str | None = None
    extend_vocab: int = 0
    vocab_size: int | None = None
    lowercase: bool = True
    strip_accents: bool = False
    max_lost_fraction: float = 0.05
    max_length: int = 128
    packing: bool = True
    batch_tokens: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.extend_vocab < 0:
            raise UserError(f"`--extend_vocab` is a number of words, got {self.extend_vocab}.")
        if not 0.0 <= self.max_lost_fraction <= 1.0:
            raise UserError(f"`--max_lost_fraction` is a share between 0 and 1, got {self.max_lost_fraction}.")
        if self.max_length < 1:
            raise UserError(f"`--max_length` must be at least 1, got {self.max_length}.")
        if self.batch_tokens is not None:
            self._check_batch_tokens()

    def _check_batch_tokens(self) -> None:
        if self.packing:
            raise UserError(
                f"`--batch_tokens {self.batch_tokens}` is for documents with a row each. Packed rows all have "
                "`--max_length` tokens: pass `--per_device_train_batch_size` for them, or `--packing false`."
            )
        if self.batch_tokens < self.max_length:
            raise UserError(
                f"`--batch_tokens {self.batch_tokens}` must hold a row of `--max_length {self.max_length}` tokens. "
                f"Pass at least {self.max_length}."
            )


class TextData:
    """Tokenizer, held-out texts and stream of a text recipe.

    Args:
        arguments ([`TextDataArguments`]):
            What the user asked for.
        encoder (`str`):
            `--encoder`: where it is a checkpoint, its tokenizer is the default one.
        checkpoint (`Path`, *optional*):
            Checkpoint that the run continues from: holds the tokenizer that it began with.
        causal (`bool`, *optional*, defaults to `False`):
            Whether next tokens are to be predicted: byte-level BPE where a tokenizer is trained, and documents with an
            end.
    """

    def __init__(
        self,
        arguments: TextDataArguments,
        encoder: str | None = None,
        checkpoint: Path | None = None,
        causal: bool = False,
    ):
        self.arguments, self.causal = arguments, causal
        options = {
            "column": arguments.text_column, "config": arguments.dataset_config, "sample_by": arguments.sample_by,
            "streaming": arguments.streaming,
        }  # fmt: skip

        def prepare(name: str | None, source: Source) -> Source:
            return source if split_to_measure_on(name, "text", arguments) else in_passages(source)

        self.source = open_mixture(arguments.dataset, prepare=prepare, **options, split=arguments.split)
        logger.info("Data: %s.", self.source.description)
        self.held_out_of = held_out_parts(self.source, arguments, options)
        self.held_out = list(dict.fromkeys(chain.from_iterable(self.held_out_of.values())))
        self.exclude = frozenset(self.held_out)
        self.segmenter: WordSegmenter | None = None  # where whole words are masked
        self.new_tokens: dict[int, list[int]] = {}  # with the pieces that they were before
        planned = None
        if arguments.extend_vocab:
            self.tokenizer = self._extended_tokenizer(encoder, checkpoint)
        elif checkpoint is not None:
            self.tokenizer = load_tokenizer(str(checkpoint))
        elif arguments.tokenizer:
            self.tokenizer = load_tokenizer(arguments.tokenizer)
        elif encoder:
            self.tokenizer = self._tokenizer_of(encoder)
        else:
            self.tokenizer, planned = self._train_tokenizer()
        fit = tokenizer_fit(self.tokenizer, self.held_out, planned)
        say_choice(logger, f"Tokenizer: {fit}.")
        check_fit_to_corpus(fit, arguments.max_lost_fraction, self._remedies(encoder))

    def _sample(self, max_characters: int) -> Iterable[str]:
        """Training texts from all over the data, in the shares of a mixture as far as its sources reach."""
        for part in parts_of(self.source):
            yield from sample_texts(part.source, max(int(part.share * max_characters), 1), self.exclude)

    def _tokenizer_of(self, encoder: str) -> PreTrainedTokenizerBase:
        presets = CAUSAL_PRESETS if self.causal else TEXT_PRESETS
        try:
            return load_tokenizer(encoder)
        except UserError as error:
            raise UserError(
                f"`--encoder {encoder}` is no preset ({', '.join(presets)}) and no checkpoint with a tokenizer: "
                f"{error}"
            ) from error

    def _extended_tokenizer(self, encoder: str | None, checkpoint: Path | None) -> PreTrainedTokenizerBase:
        number = self.arguments.extend_vocab
        if not encoder:
            raise UserError(
                f"`--extend_vocab {number}` is for checkpoints, named with `--encoder`. From scratch the tokenizer is "
                "trained on the corpus: pass a larger `--vocab_size`."
            )
        given = self.arguments.tokenizer
        tokenizer = load_tokenizer(given) if given else self._tokenizer_of(encoder)
        if checkpoint is not None:
            added, known = load_tokenizer(str(checkpoint)).get_added_vocab(), table_size(tokenizer)
            words = sorted((word for word, i in added.items() if i >= known), key=added.get)
        else:
            words = find_words(self._sample(VOCABULARY_SAMPLE), tokenizer, number)
            listed = ", ".join(word.strip() for word in words[:8]) + (" …" if len(words) > 8 else "")
            logger.info("New words: %s%s.", len(words), f" ({listed})" if words else "")
            if len(words) < number:
                logger.warning("Only %d words of the corpus can be added for `--extend_vocab %d`.", len(words), number)
        self.new_tokens = add_words(tokenizer, words)
        return tokenizer

    def _train_tokenizer(self) -> tuple[PreTrainedTokenizerBase, int]:
        """A tokenizer of this corpus, and the number of entries that it was to have."""
        texts = list(self._sample(TOKENIZER_SAMPLE))
        a, vocab_size = self.arguments, self.arguments.vocab_size
        planned = vocab_size or choose_vocab_size(sum(map(len, texts)))
        logger.info("Training a tokenizer of %s entries on %s texts.", f"{planned:,}", f"{len(texts):,}")
        if self.causal:
            return train_bpe_tokenizer(texts, planned, model_max_length=max(1024, a.max_length)), planned
        tokenizer = train_tokenizer(
            texts, vocab_size, lowercase=a.lowercase, strip_accents=a.strip_accents,
            model_max_length=max(512, a.max_length),
        )  # fmt: skip
        return tokenizer, planned

    def _remedies(self, encoder: str | None) -> list[str]:
        """What can be done about a tokenizer that does not fit the corpus."""
        a = self.arguments
        if a.tokenizer:
            other = "that of the encoder is taken" if encoder else "one is trained on the corpus"
            return [f"Pass another `--tokenizer`, or leave it out and {other}."]
        if encoder:
            return [
                "Continue a checkpoint whose tokenizer knows these letters, or train from scratch (`--encoder "
                f"{next(iter(CAUSAL_PRESETS if self.causal else TEXT_PRESETS))}`), and one is trained on the corpus."
            ]
        remedies = ["Leave out `--strip_accents`."] if a.strip_accents else []
        return remedies + (["Pass a larger `--vocab_size`, or leave it out."] if a.vocab_size else [])

    def stream(
        self, args: SSLTrainingArguments, masking: dict[str, Any] | None = None, sentence_pairs: bool = False
    ) -> ExactStream:
        """The stream of this process. `masking`: see [`~hfssl.data.text.rows.TextRows`]."""
        whole_words = bool(masking and masking.get("whole_word_masking"))
        if whole_words:
            self.segmenter = WordSegmenter.for_texts(self.held_out)
        if sentence_pairs:
            transform = SentencePairRows(
                self.tokenizer, self.arguments.max_length, masking=masking, segmenter=self.segmenter
            )
        else:
            transform = TextRows(
                self.tokenizer, self.arguments.max_length, packing=self.arguments.packing, masking=masking,
                segmenter=self.segmenter, next_tokens=self.causal,
            )  # fmt: skip
        if whole_words:
            logger.info("Whole words: %s.", check_words(transform, self.held_out))
        return stream_class(self.source)(
            self.source,
            transform,
            TextCollator(
                self.tokenizer.pad_token_id, positions="target_positions" if self.causal else "masked_positions"
            ),
            args.per_device_train_batch_size,
            **stream_options(args, self),
            batch_cost=self.arguments.batch_tokens,
            block_bytes=self._block_bytes(),
        )

    def _block_bytes(self) -> int:
        """Text in a block: enough rows that packing, or batches of equal lengths, waste little of them."""
        if self.arguments.batch_tokens is not None:
            return max(BLOCK_BYTES, BATCHES_PER_BLOCK * self.arguments.batch_tokens * BYTES_PER_TOKEN)
        return max(BLOCK_BYTES, ROWS_PER_BLOCK * self.arguments.max_length * BYTES_PER_TOKEN)

    def training_sample(self, max_characters: int = 2_000_000) -> list[str]:
        """Some training texts from all over the data."""
        return list(self._sample(max_characters))

    @property
    def settings(self) -> dict[str, Any]:
        """What of the data makes a run this run."""
        a = self.arguments
        # others would hide other words
        words = {"words": str(self.segmenter)} if self.segmenter is not None and str(self.segmenter) else {}
        return words | {
            "dataset": a.dataset or "embedded", "split": a.split, "max_length": a.max_length, "packing": a.packing,
            "vocabulary": table_size(self.tokenizer), "tokenizer": a.tokenizer, "vocab_size": a.vocab_size,
            "lowercase": a.lowercase, "strip_accents": a.strip_accents,
            "extend_vocab": a.extend_vocab, "batch_tokens": a.batch_tokens,
        }  # fmt: skip

    def set_max_steps(self, args: SSLTrainingArguments) -> None:
        """Turn `--max_tokens` into steps.

        Raises:
            UserError: where rows have no fixed number of tokens.
        """
        if args.max_tokens is None:
            return
        if not self.arguments.packing:
            raise UserError(
                "`--max_tokens` counts packed rows, which all have `--max_length` tokens. With `--packing false` pass "
                "`--max_steps`."
            )
        args.max_steps = -(-args.max_tokens // (args.global_batch_size * self.arguments.max_length))
