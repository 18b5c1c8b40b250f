"""What the recipes of pairs share: the flags about data, and from them tokenizer, held-out pairs and stream."""

import json
import logging
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from ...data.caption.captions import texts_of
from ...data.held_out import held_out_parts, pieces_all_over
from ...data.image.decode import DamagedImage, ImageHeader, image_header
from ...data.image.value_range import ValueRange, judge_range
from ...data.mixtures import open_mixture, parts_of, stream_class
from ...data.modality import modality
from ...data.multimodal.rows import PairRows, pair_inputs, pair_names
from ...data.stream import ExactStream
from ...data.text.fit import check_fit_to_corpus, tokenizer_fit
from ...data.text.tokenizer import choose_vocab_size, load_tokenizer, train_tokenizer
from ...errors import UserError
from ...functional import keyed
from ...functional.keyed import Use
from ...machine import say_choice
from ...training.arguments import SSLTrainingArguments
from ...training.checkpoints import read_settings
from ..data import DataArguments, samples_a_block, stream_options


logger = logging.getLogger(__name__)

# What comes with hfssl for these sides.
EMBEDDED = {("image", "text"): "characters", ("text", "audio"): "speech", ("audio", "text"): "speech"}
# Enough for the frequencies of the words of captions: letters, and bytes of what is read for them with its images.
TOKENIZER_SAMPLE, _MOST_READ = 20_000_000, 4 << 30
# Held-out images by which their size and their range of values are judged.
_LOOKED_AT = 200
# Fewer captions may be the same by chance.
_FEWEST_CAPTIONS = 5


@dataclass
class PairDataArguments(DataArguments):
    r"""
    > Data

    Args:
        dataset (`str`, *optional*):
            Hub id, folder, file or glob: dog.jpg beside dog.txt, images with a metadata.jsonl or csv, a csv or json
            lines with a column of paths, webdataset tars, parquet, arrow; or several with their shares, such as
            a/:0.7,org/name:0.3. Left out: characters, some 40,000 drawn ones with captions, which come with hfssl.
        image_column (`str`, *optional*):
            Column with the images. Left out, it is found by its type.
        caption_column (`str`, *optional*):
            Column with the captions: a text, or a list of several of which each pass takes one; or several columns,
            such as caption,caption_de. Left out, it is found by its type and name.
        audio_column (`str`, *optional*):
            Column with the recordings. Left out, it is found by its type.

    > Text

    Args:
        tokenizer (`str`, *optional*):
            Hub id or folder of a tokenizer. Left out: that of the text encoder to continue, else one is trained on the
            captions.
        vocab_size (`int`, *optional*):
            Entries of a tokenizer that is trained. Left out, they follow the size of the data.
        max_lost_fraction (`float`, *optional*, defaults to `0.05`):
            Share of the letters that the tokenizer may lose.
        max_length (`int`, *optional*):
            Most tokens of a caption. What is longer is cut. Left out: 32, of SigLIP's text encoder 64, and of a text
            encoder that is continued as many as it takes, up to CLIP's 77.
        mask_duplicates (`bool`, *optional*, defaults to `False`):
            Whether pairs of a batch that have the same image or the same caption are no negatives of each other. How
            many there are is said at the end of a run. Of several captions of an image the one counts that is taken.
    """

    image_column: str | None = None
    caption_column: str | None = None
    audio_column: str | None = None
    tokenizer: str | None = None
    vocab_size: int | None = None
    max_lost_fraction: float = 0.05
    max_length: int | None = None
    mask_duplicates: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 <= self.max_lost_fraction <= 1.0:
            raise UserError(f"`--max_lost_fraction` is a share between 0 and 1, got {self.max_lost_fraction}.")


class PairData:
    """Held-out pairs, tokenizer and stream of a recipe of pairs.

    Args:
        arguments ([`PairDataArguments`]):
            What the user asked for.
        pair (`str`):
            Both sides, such as image,text.
        text_encoder (`str`, *optional*):
            A checkpoint whose tokenizer is the default one.
        checkpoint (`Path`, *optional*):
            Checkpoint that the run continues from: holds the tokenizer that it began with.

    Attributes:
        source ([`~hfssl.data.sources.Source`]):
            The training split.
        held_out (`list[dict]`):
            Pairs that are never trained on.
        exclude (`frozenset`):
            What they are left out by, see [`~hfssl.data.sources.base.Source.held_out_by`].
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            `None` where no side is text.
    """

    def __init__(
        self,
        arguments: PairDataArguments,
        pair: str,
        text_encoder: str | None = None,
        checkpoint: Path | None = None,
    ):
        self.arguments, self.names, self.checkpoint = arguments, pair_names(pair), checkpoint
        self.text_encoder = text_encoder
        if arguments.dataset is None:
            if self.names not in EMBEDDED:
                raise UserError(f"No pairs of {pair} come with hfssl. Name your own data with `--dataset`.")
            arguments.dataset = EMBEDDED[self.names]
        columns = {
            "image": arguments.image_column, "text": arguments.caption_column, "audio": arguments.audio_column,
        }  # fmt: skip
        options = {
            "inputs": pair_inputs(pair, columns), "config": arguments.dataset_config, "streaming": arguments.streaming,
        }  # fmt: skip
        self.source = open_mixture(arguments.dataset, **options, split=arguments.split)
        logger.info("Data: %s.", self.source.description)
        parts = held_out_parts(self.source, arguments, options)
        pairs = [pair for part in parts.values() for pair in part]
        # evaluators may take the first ones only
        order = keyed.permutation(len(pairs), Use.HELD_OUT_IMAGES_ORDER) if len(parts) > 1 else range(len(pairs))
        self.held_out = [pairs[i] for i in order]
        self.exclude = frozenset(
            self.source.held_out_by({name: [pair[name]] for name in pair}, 0) for pair in self.held_out
        )
        if "image" in self.names:
            self._check_channels()
        self.tokenizer = self._tokenizer(text_encoder, checkpoint) if "text" in self.names else None

    @property
    def embedded(self) -> str | None:
        """The name of the embedded set that this is."""
        embedded = modality(self.source.modality).embedded_set(self.arguments.dataset)
        return embedded.name if embedded else None

    @property
    def held_out_sides(self) -> dict[str, list]:
        """The held-out pairs, side by side."""
        return {name: [pair[name] for pair in self.held_out] for name in self.names}

    @cached_property
    def short_side(self) -> int:
        """The shorter side of a usual image, in pixels."""
        if not self._headers:
            raise UserError(
                f"No image of {self.source.description} can be decoded. Pass other data, or another `--image_column`."
            )
        return int(np.median([min(header.height, header.width) for header in self._headers]))

    def _check_channels(self) -> None:
        """Refuse images that are no pictures; of a few among many each is a damaged one."""
        found = Counter(header.num_channels or 3 for header in self._headers)
        usual = max(found, key=found.get, default=3)
        if usual != 3:
            raise UserError(
                f"The images of {self.source.description} have {usual} channels, and those of pairs are pictures: "
                "grey, or red, green and blue. Save the channels that are to be seen as pictures; or train on the "
                "images alone, which may have any number of channels, as `recipes/simclr.py` does."
            )

    @cached_property
    def _headers(self) -> list[ImageHeader]:
        """Of some images."""
        headers = []
        for image in self._some_images:
            with suppress(DamagedImage):
                headers.append(image_header(image))
        return headers

    @cached_property
    def value_range(self) -> ValueRange | None:
        """What becomes black and white of images with more than 8 bits: as the run began, or judged."""
        if "image" not in self.names:
            return None
        if self.checkpoint is not None:
            stored = read_settings(self.checkpoint).get("value_range")
            return stored and tuple(json.loads(stored))
        return judge_range(self._some_images)

    @property
    def _some_images(self) -> list[bytes]:
        return [pair["image"] for pair in self.held_out[:_LOOKED_AT]]

    def say_what_repeats(self, compared_at_once: int) -> None:
        """Refuse captions that are all the same, and say where pairs would be negatives of themselves or of others
        with their caption.

        Args:
            compared_at_once (`int`):
                Pairs of a step that are compared.
        """
        texts = [several for pair in self.held_out if (several := set(texts_of(pair["text"])))]
        captions, number = Counter(chain.from_iterable(texts)), len(texts)
        if len(captions) == 1 and number >= _FEWEST_CAPTIONS:
            raise UserError(
                f"All {number:,} captions looked at are the same, {next(iter(captions))!r}: they tell no pair from "
                "another. Pass other captions, or another `--caption_column`."
            )
        # of two pairs, how often both have the same one: each has one of several in its turn
        shown: Counter[str] = Counter()
        for several in texts:
            shown.update(dict.fromkeys(several, 1 / len(several)))
        same = sum(share**2 for share in shown.values()) - sum(1 / len(several) for several in texts)
        others = (compared_at_once - 1) * same / max(number * (number - 1), 1)
        there = max(self.source.num_rows - len(self.exclude), 1)
        if self.arguments.mask_duplicates:
            return
        if compared_at_once > there:
            logger.warning(
                "%s pairs are compared at once, and the data have %s to train on: some come several times in a batch, "
                "as negatives of themselves. Pass `--mask_duplicates true`, more pairs, or smaller batches.",
                f"{compared_at_once:,}", f"{there:,}",
            )  # fmt: skip
        elif others >= 1.0:
            logger.warning(
                "%s of %s captions looked at are different: of the %s pairs that are compared some %.0f others have "
                "the caption of a pair and are its negatives. `--mask_duplicates true` leaves them out.",
                f"{len(captions):,}", f"{captions.total():,}", f"{compared_at_once:,}", others,
            )  # fmt: skip

    @property
    def known_captions(self) -> list[str]:
        """Captions that have been read already: all that a tokenizer was trained on, else the held-out ones."""
        held_out = [text for pair in self.held_out for text in texts_of(pair["text"])]
        return self.__dict__.get("captions", []) + held_out

    @cached_property
    def captions(self) -> list[str]:
        """Captions from all over the training data, in the shares of a mixture."""
        return [text for part in parts_of(self.source) for text in _captions(part, self.exclude)]

    def _tokenizer(self, text_encoder: str | None, checkpoint: Path | None) -> PreTrainedTokenizerBase:
        a, planned = self.arguments, None
        named = str(checkpoint) if checkpoint is not None else a.tokenizer or text_encoder
        if named is not None:
            tokenizer = load_tokenizer(named)
        else:
            planned = a.vocab_size or choose_vocab_size(sum(map(len, self.captions)))
            logger.info(
                "Training a tokenizer of %s entries on %s captions.", f"{planned:,}", f"{len(self.captions):,}"
            )
            tokenizer = train_tokenizer(self.captions, a.vocab_size, model_max_length=max(512, a.max_length or 0))
        held_out = [text for pair in self.held_out for text in texts_of(pair["text"])]
        fit = tokenizer_fit(tokenizer, held_out, planned)
        say_choice(logger, f"Tokenizer: {fit}.")
        remedies = ["Pass another `--tokenizer`."] if named else ["Pass a larger `--vocab_size`, or leave it out."]
        check_fit_to_corpus(fit, a.max_lost_fraction, remedies)
        return tokenizer

    def say_what_is_cut(self, rows: PairRows) -> None:
        """Log how many captions are longer than the text encoder takes; nothing where no side is text."""
        if "text" not in self.names:
            return
        # held-out ones: to read others would read their images as well
        some = [text for pair in self.held_out for text in texts_of(pair["text"])][:1000]
        cut = rows.sides["text"].num_cut(some) if some else 0
        if cut:
            logger.info(
                "Captions: %s of %s looked at have more than %d tokens and are cut (`--max_length`).",
                f"{cut:,}", f"{len(some):,}", rows.sides["text"].max_length,
            )  # fmt: skip

    def stream(self, args: SSLTrainingArguments, rows: PairRows) -> ExactStream:
        """The stream of this process."""
        if "text" in self.names:
            self.say_what_repeats(args.compared_at_once)
        return stream_class(self.source)(
            self.source,
            rows,
            rows.collator(args.device, args.gradient_accumulation_steps if args.contrastive_batch_size else 1),
            args.per_device_train_batch_size,
            **stream_options(args, self),
            block_cost=samples_a_block(args, self.source.modality),
            piece_cost=self.source.num_rows / len(self.source),
            rows_per_step=args.global_batch_size,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What of the data makes a run this run."""
        a = self.arguments
        columns = {f"{name}_column": wanted.column for name, wanted in self.source.inputs.items()}
        ranges = None if self.value_range is None else list(self.value_range)
        # left out as in checkpoints from before they were settings
        others = {"dataset_config": a.dataset_config, "vocab_size": a.vocab_size, "value_range": ranges}
        return {
            "dataset": a.dataset, "split": a.split, "max_length": a.max_length, "tokenizer": a.tokenizer,
            "mask_duplicates": a.mask_duplicates, **columns,
            **{name: value for name, value in others.items() if value is not None},
        }  # fmt: skip


def _captions(part: Any, exclude: frozenset) -> list[str]:
    """Captions of a source that are trained on, a limited number of them, from all over it."""
    source, found, most = part.source, [], max(int(part.share * TOKENIZER_SAMPLE), 1)
    left = part.share * _MOST_READ
    for piece in islice(pieces_all_over(source, Use.TOKENIZER_SAMPLE).tolist(), 4096):
        read = source.read(piece)
        for i, caption in enumerate(read.columns["text"]):
            if source.held_out_by(read.columns, i) not in exclude:
                texts = texts_of(caption)
                found += texts
                most -= sum(map(len, texts))
        left -= float(source.piece_bytes[piece])
        if most <= 0 or left <= 0:
            break
    return found
