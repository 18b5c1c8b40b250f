"""Samples kept away from training, to measure on."""

import logging
import zlib
from typing import Any

import numpy as np

from ..functional import keyed
from .mixtures import parse_mixture, parts_of
from .sources import DataError, Source, available_splits, identity, open_source
from .stream import shuffled_units


logger = logging.getLogger(__name__)

# Below this many held-out texts a figure says little; small sources give up a larger share of theirs.
MIN_HELD_OUT = 100
MAX_FRACTION = 0.1
# A set of images that is larger is not read through for its held-out ones: of those looked at, this share is taken.
READ_THROUGH_BYTES = 256 << 20
SHARE_OF_LARGE_SETS = 0.25
# Of the pieces in a row group of images, one in so many is taken before the next group's turn comes.
PIECES_SKIPPED = 8
# What a split to measure on during training is called; test is for the end.
VALIDATION_SPLITS = ("validation", "dev", "valid", "val")


def held_out_parts(source: Source, arguments: Any, options: dict[str, Any]) -> dict[str, list]:
    """The held-out samples of what `--dataset` named: of a split for it, or else taken from the training data.

    Args:
        source (`Source`):
            The training data.
        arguments:
            Has `dataset`, `dataset_config`, `split`, `eval_split`, `held_out_fraction` and `max_held_out`.
        options (`dict[str, Any]`):
            Of [`~hfssl.data.sources.open_source`], but for the split.

    Returns:
        `dict[str, list[str]]` or `dict[str, list[bytes]]`: those of each source by its name. A mixture has as many of
        each as its share says, but some of all.

    Raises:
        DataError: if there are too few samples, or no such split.
    """
    held_out = {}
    parts = parts_of(source)
    fewest = min(MIN_HELD_OUT, arguments.max_held_out // len(parts))
    for part, (name, _) in zip(parts, parse_mixture(arguments.dataset), strict=True):
        most = max(round(part.share * arguments.max_held_out), fewest, 1)
        split = arguments.eval_split
        if split == "auto":
            splits = available_splits(name, modality=source.modality, config=arguments.dataset_config)
            split = next((s for s in VALIDATION_SPLITS if s in splits and s != arguments.split), None)
        if split:
            try:
                samples = all_samples(open_source(name, **options, split=split), most)
            except DataError as error:
                raise DataError(str(error).replace("`--split`", "`--eval_split`")) from error
        else:
            samples = held_out_samples(part.source, arguments.held_out_fraction, most)
        logger.info(
            "Held out: %s %ss%s%s.", f"{len(samples):,}", source.modality, f" of the split {split}" if split else "",
            f" of {name}" if len(parts) > 1 else "",
        )  # fmt: skip
        held_out[part.name] = samples
    return held_out


def held_out_samples(source: Source, fraction: float = 0.01, max_samples: int = 1000) -> list:
    """Choose the held-out samples of a source that has no split for it.

    A sample is held out where the hash of its content says so: the same in every run, in whatever order or files they
    lie, and copies of a held-out sample are held out with it. Pieces are visited in a fixed shuffled order until
    `max_samples` are found, so that a large source is not read through. Of images that would still be much: of a large
    set of them the number is the one asked for, and of what is visited more is taken.

    Args:
        source (`Source`):
            The training data.
        fraction (`float`, *optional*, defaults to 0.01):
            Share of the samples, in (0, 1). More, up to 10 %, where the source has fewer than 10,000.
        max_samples (`int`, *optional*, defaults to 1000):
            Most samples to hold out. Training must leave out these and no others.

    Returns:
        `list[str]` or `list[bytes]`: the samples, without duplicates.

    Raises:
        DataError: if there are too few samples to hold one out.
    """
    fraction = share = max(fraction, min(MAX_FRACTION, MIN_HELD_OUT / max(source.num_rows, 1)))
    if source.modality == "image" and source.piece_bytes.sum() > READ_THROUGH_BYTES:
        max_samples = min(max_samples, max(round(fraction * source.num_rows), 1))
        share = max(fraction, SHARE_OF_LARGE_SETS)
    limit = int(share * 2**32)
    chosen: dict = {}
    num_samples = 0
    for piece in pieces_all_over(source, 13):
        for sample in source.read(int(piece)).columns[source.columns[0]]:
            num_samples += 1
            if _hash(sample) < limit:
                chosen[sample] = None
                if len(chosen) >= max_samples:
                    return list(chosen)
    what = source.modality
    if not num_samples:
        raise DataError(
            f"{source.description} has no {what}: every sample is empty or damaged. Pass other data, or another "
            f"`--{what}_column`."
        )
    if not chosen:
        raise DataError(
            f"{source.description} is too small to hold out a sample: none of about {source.num_rows} falls into the "
            f"held-out {fraction:.1%}. Pass more data, a larger `--held_out_fraction`, or an `--eval_split`."
        )
    return list(chosen)


def pieces_all_over(source: Source, part: int) -> np.ndarray:
    """The pieces of a source in a fixed order of which every beginning is a sample.

    Row groups of images are large: of those that are read, several pieces come one after another.
    """
    if source.modality != "image":
        return keyed.permutation(len(source.pieces), 0, part)
    order = shuffled_units(source, 1, 0, part)
    return np.concatenate([order[start::PIECES_SKIPPED] for start in range(PIECES_SKIPPED)])


def _hash(sample: str | bytes) -> int:
    """32 bits that depend on the content only."""
    if isinstance(sample, str):
        return zlib.crc32(sample.encode())
    # not CRC-32: the chunks of a PNG file end with theirs, so that of the file does not depend on the pixels
    return int.from_bytes(identity(sample)[:4])


def all_samples(source: Source, max_samples: int) -> list:
    """Up to `max_samples` samples of a split that is there for measuring, in a fixed order from all over it."""
    samples: dict = {}
    for piece in pieces_all_over(source, 13):
        samples |= dict.fromkeys(source.read(int(piece)).columns[source.columns[0]])
        if len(samples) >= max_samples:
            break
    return list(samples)[:max_samples]
