"""Texts kept away from training, to measure on."""

import zlib

from .. import random as keyed
from .sources import DataError, Source


# Below this many held-out texts a figure says little; small sources give up a larger share of theirs.
MIN_HELD_OUT = 100
MAX_FRACTION = 0.1


def held_out_texts(source: Source, fraction: float = 0.01, max_texts: int = 1000) -> list[str]:
    """Choose the held-out texts of a source that has no split for it.

    A text is held out where the hash of its content says so: the same texts in every run, in whatever order or files
    they lie, and copies of a held-out text are held out with it. Pieces are visited in a fixed shuffled order until
    `max_texts` are found, so that a large source is not read through.

    Args:
        source (`Source`):
            The training data.
        fraction (`float`, *optional*, defaults to 0.01):
            Share of the texts, in (0, 1). More, up to 10 %, where the source has fewer than 10,000 texts.
        max_texts (`int`, *optional*, defaults to 1000):
            Most texts to hold out. Training must leave out these and no others.

    Returns:
        `list[str]`: the texts, without duplicates.

    Raises:
        DataError: if there are too few texts to hold one out.
    """
    fraction = max(fraction, min(MAX_FRACTION, MIN_HELD_OUT / max(source.num_rows, 1)))
    limit = int(fraction * 2**32)
    chosen: dict[str, None] = {}
    num_texts = 0
    for piece in keyed.permutation(len(source.pieces), 0, 13):
        for text in source.read(int(piece)).columns[source.columns[0]]:
            num_texts += 1
            if zlib.crc32(text.encode()) < limit:
                chosen[text] = None
                if len(chosen) >= max_texts:
                    return list(chosen)
    if not num_texts:
        raise DataError(
            f"{source.description} has no text: every sample is empty or damaged. Pass other data, or another "
            "`--text_column`."
        )
    if not chosen:
        raise DataError(
            f"{source.description} is too small to hold out a text: none of about {source.num_rows} falls into the "
            "held-out "
            f"{fraction:.1%}. Pass more data, a larger `--held_out_fraction`, or an `--eval_split`."
        )
    return list(chosen)


def all_texts(source: Source, max_texts: int) -> list[str]:
    """Up to `max_texts` texts of a split that is there for measuring, in a fixed order from all over it."""
    texts: dict[str, None] = {}
    for piece in keyed.permutation(len(source.pieces), 0, 13):
        texts |= dict.fromkeys(source.read(int(piece)).columns[source.columns[0]])
        if len(texts) >= max_texts:
            break
    return list(texts)[:max_texts]
