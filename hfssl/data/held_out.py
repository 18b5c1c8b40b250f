"""Samples kept away from training, to measure on."""

import logging
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import DataError
from ..functional import keyed
from ..functional.keyed import Use
from .blocks import shuffled_units
from .mixtures import parse_mixture, parts_of
from .modality import modality
from .sources import Source, available_splits, identity, open_source


logger = logging.getLogger(__name__)

# Below this many held-out texts a figure says little; small sources give up a larger share of theirs.
MIN_HELD_OUT = 100
MAX_FRACTION = 0.1
# Where a set is too large to be read through for its held-out samples, this share is taken of those looked at.
SHARE_OF_LARGE_SETS = 0.25
# Of the pieces in a row group of large samples, one in so many is taken before the next group's turn comes.
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
        `dict[str, list]`: those of each source by its name, see [`~hfssl.data.sources.Source.samples`]. A mixture has
        as many of each as its share says, but some of all.

    Raises:
        DataError: if there are too few samples, or no such split.
    """
    held_out = {}
    parts = parts_of(source)
    fewest = min(MIN_HELD_OUT, arguments.max_held_out // len(parts))
    for part, (name, _) in zip(parts, parse_mixture(arguments.dataset), strict=True):
        most = max(round(part.share * arguments.max_held_out), fewest, 1)
        split = split_to_measure_on(name, source.modality, arguments)
        if split:
            try:
                samples = all_samples(open_source(name, **options, split=split), most)
            except DataError as error:
                raise DataError(str(error).replace("`--split`", "`--eval_split`")) from error
        else:
            samples = held_out_samples(part.source, arguments.held_out_fraction, most)
        logger.info(
            "Held out: %s %s%s%s.", f"{len(samples):,}", modality(source.modality).samples,
            f" of the split {split}" if split else "", f" of {name}" if len(parts) > 1 else "",
        )  # fmt: skip
        held_out[part.name] = samples
    return held_out


def split_to_measure_on(name: str | None, modality: str, arguments: Any) -> str | None:
    """The split of a data set that `arguments` name (see [`held_out_parts`]), `None` to hold out training data."""
    if arguments.eval_split != "auto":
        return arguments.eval_split or None
    splits = available_splits(name, modality=modality, config=arguments.dataset_config)
    return next((split for split in VALIDATION_SPLITS if split in splits and split != arguments.split), None)


def held_out_samples(source: Source, fraction: float = 0.01, max_samples: int = 1000) -> list:
    """Choose the held-out samples of a source that has no split for it.

    A sample is held out where the hash of its content says so: the same in every run, in whatever order or files they
    lie, and copies of a held-out sample are held out with it. Pieces are visited in a fixed shuffled order until
    `max_samples` are found, so that a large source is not read through. Of large samples, such as images, that would
    still be much: of a large set of them the number is the one asked for, and of what is visited more is taken. Of few
    samples the hashes may say that none is held out, or all: the one with the smallest always is, the one with the
    largest never.

    Args:
        source (`Source`):
            The training data.
        fraction (`float`, *optional*, defaults to 0.01):
            Share of the samples, in (0, 1). More, up to 10 %, where the source has fewer than 10,000.
        max_samples (`int`, *optional*, defaults to 1000):
            Most samples to hold out. Training must leave out these and no others.

    Returns:
        `list`: the samples, without duplicates.

    Raises:
        DataError: if there are no two different samples.
    """
    fraction = share = max(fraction, min(MAX_FRACTION, MIN_HELD_OUT / max(source.num_rows, 1)))
    kind = modality(source.modality)
    if kind.read_through_bytes is not None and source.piece_bytes.sum() > kind.read_through_bytes:
        max_samples = min(max_samples, max(round(fraction * source.num_rows), 1))
        share = max(fraction, SHARE_OF_LARGE_SETS)
    limit = int(share * 2**32)
    chosen: dict = {}
    # by hash and content
    smallest = largest = first = None
    num_samples, example = 0, ""
    for piece in pieces_all_over(source, Use.HELD_OUT_ORDER):
        read = source.read(int(piece))
        if read.bad and not example:
            row, reason = read.bad[0]
            example = f" One of them: {source.where(int(source.pieces[piece, 0]), row)}: {reason}."
        for i, sample in enumerate(source.samples(read)):
            num_samples += 1
            content = source.held_out_by(read.columns, i)
            key = (_hash(content), content)
            if smallest is None or key < smallest:
                smallest, first = key, sample
            largest = key if largest is None else max(key, largest)
            if key[0] < limit:
                chosen[content] = sample
                if len(chosen) >= max_samples:
                    return list(chosen.values())
    if not num_samples:
        sides = [modality(given.modality) for given in source.inputs.values() if given.modality]
        if len(sides) > 1:
            sides_of = " and ".join(f"one {side.name}" for side in sides)
            problem = f"has no sample with {sides_of}: of each one is empty, missing or damaged"
        else:
            problem = f"has no {kind.name}: every sample is empty or damaged"
        flags = " or ".join(f"`{side.column_flag}`" for side in sides or [kind])
        raise DataError(f"{source.description} {problem}.{example} Pass other data, or another {flags}.")
    if smallest == largest:
        same = f"All {num_samples:,} {kind.samples} of {source.description} are one and the same"
        raise DataError(
            f"{same if num_samples > 1 else f'There is one sample in {source.description}'}, and the same cannot be "
            "trained on and measured on. Pass more data, or an `--eval_split`."
        )
    chosen.setdefault(smallest[1], first)
    chosen.pop(largest[1], None)
    return list(chosen.values())


def pieces_all_over(source: Source, use: Use) -> np.ndarray:
    """The pieces of a source in a fixed order of which every beginning is a sample.

    Row groups of large samples are large: of those that are read, several pieces come one after another.
    """
    if modality(source.modality).read_through_bytes is None:
        return keyed.permutation(len(source.pieces), use)
    order = shuffled_units(source, 1, use)
    return np.concatenate([order[start::PIECES_SKIPPED] for start in range(PIECES_SKIPPED)])


def content_keys(samples: Iterable) -> np.ndarray:
    """A key of each sample that depends on its content only: what is random about a measurement is drawn from it.

    Returns:
        `np.ndarray` of dtype `uint64` and shape `(num_samples,)`.
    """
    return np.array([_hash(identity(sample), 8) for sample in samples], dtype=np.uint64)


def _hash(content: str | bytes, num_bytes: int = 4) -> int:
    """What depends on the content of a sample only: the CRC-32 of a text, so many bytes of another digest."""
    # not CRC-32 of all: the chunks of a PNG file end with theirs, so that of the file does not depend on the pixels
    return zlib.crc32(content.encode()) if isinstance(content, str) else int.from_bytes(content[:num_bytes])


def all_samples(source: Source, max_samples: int) -> list:
    """Up to `max_samples` samples of a split that is there for measuring, in a fixed order from all over it."""
    samples: dict = {}
    for piece in pieces_all_over(source, Use.HELD_OUT_ORDER):
        read = source.read(int(piece))
        for i, sample in enumerate(source.samples(read)):
            samples.setdefault(source.content(read.columns, i), sample)
        if len(samples) >= max_samples:
            break
    return list(samples.values())[:max_samples]
