"""What the text recipes share: the flags about data, and from them tokenizer, held-out texts and stream."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..training_args import SSLTrainingArguments
from .held_out import all_texts, held_out_texts
from .sources import Source, available_splits, open_source
from .stream import ExactStream
from .text import TextCollator, TextRows, sample_texts
from .tokenizer import choose_vocab_size, load_tokenizer, train_tokenizer


logger = logging.getLogger(__name__)

# Enough for the frequencies of every entry of a vocabulary of 30,000; tokenizers trains on it in seconds.
TOKENIZER_SAMPLE = 50_000_000


@dataclass
class TextDataArguments:
    r"""
    > Data

    Args:
        dataset (`str`, *optional*):
            Hub id, file, folder or glob (txt, jsonl, csv, parquet, arrow, `save_to_disk`). Left out: docstrings and language
            reference of this Python.
        dataset_config (`str`, *optional*):
            Configuration of a Hub data set.
        split (`str`, *optional*, defaults to `"train"`):
            Split to train on.
        eval_split (`str`, *optional*, defaults to `"auto"`):
            Split to measure on. auto takes validation where there is one, else holds out texts of the training split.
        text_column (`str`, *optional*):
            Column with the text. Left out, it is found by its type.
        sample_by (`str`, *optional*, defaults to `"line"`):
            What a document of a .txt file is: line, paragraph (blank lines between) or document (the whole file).
        streaming (`bool`, *optional*, defaults to `True`):
            Read in place. false converts the data to Arrow first.
        held_out_fraction (`float`, *optional*, defaults to `0.01`):
            Share of the texts held out where there is no split for it (more of small data sets, up to 10 %).
        max_held_out (`int`, *optional*, defaults to `1000`):
            Most texts to measure on.
        max_bad_fraction (`float`, *optional*, defaults to `0.01`):
            Share of damaged samples above which the run stops.

    > Text

    Args:
        tokenizer (`str`, *optional*):
            Hub id or folder of a tokenizer. Left out: that of the encoder to continue, else one is trained on the corpus.
        vocab_size (`int`, *optional*):
            Entries of a tokenizer that is trained. Left out, it follows the size of the corpus.
        lowercase (`bool`, *optional*, defaults to `True`):
            Whether a tokenizer that is trained ignores case and accents.
        max_length (`int`, *optional*, defaults to `128`):
            Tokens a row.
        packing (`bool`, *optional*, defaults to `True`):
            Several documents a row, none sees another. false: one document a row, padded.
    """

    dataset: str | None = None
    dataset_config: str | None = None
    split: str = "train"
    eval_split: str = "auto"
    text_column: str | None = None
    sample_by: str = "line"
    streaming: bool = True
    held_out_fraction: float = 0.01
    max_held_out: int = 1000
    max_bad_fraction: float = 0.01
    tokenizer: str | None = None
    vocab_size: int | None = None
    lowercase: bool = True
    max_length: int = 128
    packing: bool = True

    def __post_init__(self):
        if not 0.0 < self.held_out_fraction < 1.0:
            raise UserError(f"`--held_out_fraction` is a share between 0 and 1, got {self.held_out_fraction}.")
        if not 0.0 <= self.max_bad_fraction <= 1.0:
            raise UserError(f"`--max_bad_fraction` is a share between 0 and 1, got {self.max_bad_fraction}.")
        for name in ("max_held_out", "max_length"):
            if getattr(self, name) < 1:
                raise UserError(f"`--{name}` must be at least 1, got {getattr(self, name)}.")


class TextData:
    """Tokenizer, held-out texts and stream of a text recipe.

    Args:
        arguments ([`TextDataArguments`]):
            What the user asked for.
        encoder (`str`):
            `--encoder`: where it is a checkpoint, its tokenizer is the default one.
        checkpoint (`Path`, *optional*):
            Checkpoint that the run continues from: holds the tokenizer that it began with.
    """

    def __init__(self, arguments: TextDataArguments, encoder: str | None = None, checkpoint: Path | None = None):
        self.arguments = arguments
        self.source = self._open(arguments.split)
        logger.info("Data: %s.", self.source.description)
        self.held_out = self._held_out()
        self.exclude = frozenset(self.held_out)
        if checkpoint is not None:
            self.tokenizer = load_tokenizer(str(checkpoint))
        elif arguments.tokenizer or encoder:
            self.tokenizer = load_tokenizer(arguments.tokenizer or encoder)
        else:
            self.tokenizer = self._train_tokenizer()

    def _open(self, split: str) -> Source:
        a = self.arguments
        return open_source(
            a.dataset,
            column=a.text_column,
            config=a.dataset_config,
            split=split,
            sample_by=a.sample_by,
            streaming=a.streaming,
        )

    def _held_out(self) -> list[str]:
        a = self.arguments
        split = a.eval_split
        if split == "auto":
            splits = available_splits(a.dataset, config=a.dataset_config) if a.dataset else []
            split = next((name for name in ("validation", "dev", "valid") if name in splits and name != a.split), None)
        if split:
            texts = all_texts(self._open(split), a.max_held_out)
        else:
            texts = held_out_texts(self.source, a.held_out_fraction, a.max_held_out)
        logger.info("Held out: %s texts%s.", f"{len(texts):,}", f" of the split {split}" if split else "")
        return texts

    def _train_tokenizer(self) -> PreTrainedTokenizerBase:
        texts = list(sample_texts(self.source, TOKENIZER_SAMPLE, self.exclude))
        vocab_size = self.arguments.vocab_size or choose_vocab_size(sum(map(len, texts)))
        logger.info("Training a tokenizer of %s entries on %s texts.", f"{vocab_size:,}", f"{len(texts):,}")
        return train_tokenizer(
            texts, vocab_size, lowercase=self.arguments.lowercase, model_max_length=max(512, self.arguments.max_length)
        )

    def stream(self, args: SSLTrainingArguments, masking: dict[str, Any] | None = None) -> ExactStream:
        """The stream of this process. `masking`: see [`~hfssl.data.text.TextRows`]."""
        transform = TextRows(
            self.tokenizer, self.arguments.max_length, packing=self.arguments.packing, masking=masking
        )
        return ExactStream(
            self.source,
            transform,
            TextCollator(self.tokenizer.pad_token_id),
            args.per_device_train_batch_size,
            seed=args.seed,
            rank=args.process_index,
            world_size=args.world_size,
            num_workers=args.dataloader_num_workers,
            exclude=self.exclude,
            max_bad_fraction=self.arguments.max_bad_fraction,
        )

    def training_sample(self, max_characters: int = 2_000_000) -> list[str]:
        """Some training texts from all over the source."""
        return list(sample_texts(self.source, max_characters, self.exclude))

    @property
    def settings(self) -> dict[str, Any]:
        """What of the data makes a run this run."""
        a = self.arguments
        return {
            "dataset": a.dataset or "embedded", "split": a.split, "max_length": a.max_length, "packing": a.packing,
            "vocabulary": len(self.tokenizer),
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
                "`--max_tokens` counts packed rows, which all have `--max_length` tokens. With `--packing false` pass `--max_steps`."
            )
        args.max_steps = -(-args.max_tokens // (args.global_batch_size * self.arguments.max_length))


def main_process_first(work):
    """Run `work` on the main process, then on the others: downloads and conversions happen once."""
    distributed = dist.is_available() and dist.is_initialized()
    main = not distributed or dist.get_rank() == 0
    result = work() if main else None
    if distributed:
        dist.barrier()
        result = result if main else work()
    return result
