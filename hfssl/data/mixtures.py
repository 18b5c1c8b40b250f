"""Mixtures: several data sets read as one, in stated shares.

`--dataset a:0.7,b:0.3` makes 70 % of what a run reads come from `a` and 30 % from `b`. The shares are shares of text
(UTF-8 bytes), not of documents: a source of long documents is not drawn more often for it, and what the model sees in
tokens is close to them. Of images they are shares of images, however large each is: the modality says which
(`shares_in_bytes`). Each source is gone through again and again on its own: all of its samples once, in a new order,
then all of them again. So a small source repeats and a large one may never be read whole; no source runs dry.

A [`MixtureStream`] is an [`~hfssl.data.stream.ExactStream`] whose blocks hold pieces of all sources. Of each source it
needs a known number of pieces a block (the quota, a fraction), so where block 1,000,000 begins in each source is a
multiplication: blocks are still pure functions of their number, and the position of the stream is still a few
integers.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import DataError
from ..functional import keyed
from ..functional.keyed import Use
from ..machine import last_part
from .blocks import shuffled_units
from .modality import Modality, modality
from .sources import PieceRows, Source, open_source
from .sources.base import PIECE_BYTES, content_bytes, new_digest
from .stream import BLOCK_BYTES, ExactStream


# Quotas are counted in such fractions of a piece: integers, so that no position depends on rounding.
_FRACTION = 1 << 20
# A source of a small share has smaller pieces, so that it comes a little at a time.
_MIN_PIECE_BYTES = 1 << 12
# How much a block may grow for a source whose pieces are large beside its share.
_MAX_GROWTH = 4
# Up to so much is read to measure the text in a source; of a larger one, so many pieces.
_MEASURED_BYTES = 4 << 20
_MEASURED_PIECES = 16


@dataclass(frozen=True)
class Part:
    """One source of a mixture: a short name that no other has, and its share of what is read, in (0, 1]."""

    name: str
    source: Source
    share: float


class Mixture(Source):
    """Several sources as one. All have the same inputs, by name and modality.

    Args:
        names (`Sequence[str]`):
            What the user calls the sources.
        sources (`Sequence[Source]`):
            The sources.
        weights (`Sequence[float]`, *optional*):
            Their shares of what is read, normalised to add up to 1. Left out, all counts the
            same: shares follow the sizes, and a pass over the mixture is a pass over each source.
    """

    unit = "position"

    def __init__(self, names: Sequence[str], sources: Sequence[Source], weights: Sequence[float] | None = None):
        self.weighted = weights is not None
        kinds = [{name: wanted.modality for name, wanted in source.inputs.items()} for source in sources]
        for name, of_source in zip(names, kinds, strict=True):
            if of_source != kinds[0]:
                raise DataError(
                    f"The sources of a mixture have the same inputs, but {names[0]!r} has {kinds[0]} and {name!r} has "
                    f"{of_source}."
                )
        kind = modality(sources[0].modality)
        measure = _num_bytes if kind.shares_in_bytes else _num_samples
        # what shares are counted in: bytes, or samples, in a piece of each source, on average
        self.size_per_piece = [max(measure(source) / len(source), 1.0) for source in sources]
        sizes = [mean * len(source) for mean, source in zip(self.size_per_piece, sources, strict=True)]
        weights = list(weights or sizes)
        shares = [weight / sum(weights) for weight in weights]
        self.parts = [Part(*part) for part in zip(_short(names), sources, shares, strict=True)]
        self.first_pieces = np.cumsum([0, *map(len, sources)])

        pieces, first_file, first_group = [], 0, 0
        for source in sources:
            pieces.append(source.pieces + np.array([first_file, 0, 0, first_group]))
            first_file, first_group = first_file + len(source.files), int(pieces[-1][:, 3].max()) + 1
        super().__init__(
            files=[f"{name}: {file}" for name, source in zip(names, sources, strict=True) for file in source.files],
            inputs={name: replace(wanted, column=name) for name, wanted in sources[0].inputs.items()},
            features={
                name: modality(wanted.modality).feature() if wanted.modality else sources[0].features[wanted.column]
                for name, wanted in sources[0].inputs.items()
            },
            pieces=np.concatenate(pieces),
            piece_bytes=np.concatenate([source.piece_bytes for source in sources]),
            fingerprint=new_digest("mixture", *(source.fingerprint for source in sources)).hexdigest(),
        )
        self._first_files = np.cumsum([0, *(len(source.files) for source in sources)])
        self.num_rows = sum(source.num_rows for source in sources)
        self.num_rows_exact = all(source.num_rows_exact for source in sources)
        self.description = "mixture of " + ", ".join(
            f"{part.share:.1%} {last_part(str(name))} ({_size(size, kind)}; {part.source.description})"
            for name, part, size in zip(names, self.parts, sizes, strict=True)
        )

    def read(self, index: int) -> PieceRows:
        part = int(np.searchsorted(self.first_pieces, index, side="right")) - 1
        return self.parts[part].source.read(int(index - self.first_pieces[part]))

    def place(self, files: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        part = np.searchsorted(self._first_files, files, side="right") - 1
        return part, files - self._first_files[part]

    def where(self, file: int, row: int) -> str:
        part = int(np.searchsorted(self._first_files, file, side="right")) - 1
        source = self.parts[part].source
        return f"{self.parts[part].name}: {source.where(int(file - self._first_files[part]), row)}"


class MixtureStream(ExactStream):
    """The [`~hfssl.data.stream.ExactStream`] of a [`Mixture`] with weights; the arguments are the same.

    Each block holds pieces of every source in the wanted shares, and its rows are shuffled: so is every batch, on
    average. Each sample of a source comes once in a pass over that source, over all ranks.
    """

    def _plan(self, block_size: float, piece_size: float) -> dict[str, Any]:
        parts, sizes = self.source.parts, self.source.size_per_piece
        if not modality(self.source.modality).shares_in_bytes:  # but in samples
            block_size *= self.source.num_rows / (len(self.source) * piece_size)
        # a source whose pieces are larger than its part of a block comes in some blocks only
        wanted = max(mean / part.share for part, mean in zip(parts, sizes, strict=True))
        wanted = min(max(wanted, block_size), _MAX_GROWTH * block_size)
        per_block = [wanted * part.share / mean for part, mean in zip(parts, sizes, strict=True)]
        at_least_one = max(1.0, 1.0 / sum(per_block))
        quotas = [max(1, round(number * at_least_one * _FRACTION)) for number in per_block]
        # a lane never waits for the end of a pass, so that any number of them has enough to read
        return {"lanes": self.stated_lanes or self._choose_lanes(math.inf), "quotas": quotas}

    def _lay_out(self, plan: dict[str, Any]) -> None:
        super()._lay_out(plan)
        parts, self.quotas = self.source.parts, plan["quotas"]
        # sources that come in some blocks only do not all come in the same ones
        self._phases = [int(keyed.key(Use.PHASE_OF_SOURCE, self.seed, i)) % _FRACTION for i in range(len(parts))]
        # each source has passes of its own; of the mixture there is one, without an end
        blocks_to_see_all = max(
            len(part.source) * _FRACTION / quota for part, quota in zip(parts, self.quotas, strict=True)
        )
        self.most_empty_blocks = math.ceil(blocks_to_see_all / self.lanes) + 1

    def _drawn(self, part: int, block: int) -> int:
        """How many pieces of a source the blocks before `block` (of all lanes) hold."""
        return (block * self.quotas[part] + self._phases[part]) // _FRACTION

    def _units(self, pass_index: int, block: int) -> list[tuple[int, int, int]]:
        units = []
        for part, first_piece in enumerate(self.source.first_pieces[:-1].tolist()):
            for drawn in range(self._drawn(part, block), self._drawn(part, block + 1)):
                pass_of_source, place = divmod(drawn, len(self.source.parts[part].source))
                units.append((pass_of_source, first_piece + int(self._order_of(part, pass_of_source)[place]), 0))
        return units

    def _order_of(self, part: int, pass_index: int) -> np.ndarray:
        """The pieces of a source in the order of one of its passes."""
        orders = self._orders.setdefault(part, {})
        if pass_index not in orders:
            source = self.source.parts[part].source
            orders[pass_index] = shuffled_units(source, 1, Use.ORDER_OF_PIECES, self.seed, pass_index, part)
            if len(orders) > 2:
                del orders[next(iter(orders))]
        return orders[pass_index]

    def _passes_begun(self, pass_index: int, block: int) -> dict[str, int]:
        begun = {}
        for i, part in enumerate(self.source.parts):
            before = self._drawn(i, max(block - self.lanes, 0)) // len(part.source)
            now = self._drawn(i, block) // len(part.source)
            if now > before:
                begun[part.name] = now
        return begun

    @property
    def passes(self) -> dict[str, float]:
        blocks = [lane + at["block"] * self.lanes for lane, at in self.positions.items()]
        return {
            part.name: sum(self._drawn(i, block) for block in blocks) / (len(blocks) * len(part.source))
            for i, part in enumerate(self.source.parts)
        }

    def layout(self) -> dict[str, Any]:
        layout = super().layout()
        # in the order in which a difference explains itself
        return {"data": layout["data"], "shares": [round(part.share, 12) for part in self.source.parts], **layout}


def parts_of(source: Source) -> list[Part]:
    """The sources behind what `--dataset` named: those of a mixture, or the one that there is."""
    return source.parts if isinstance(source, Mixture) else [Part("", source, 1.0)]


def stream_class(source: Source) -> type[ExactStream]:
    """The stream that goes through a source as its user asked for."""
    return MixtureStream if isinstance(source, Mixture) and source.weighted else ExactStream


def open_mixture(
    dataset: str | os.PathLike | None, *, prepare: Callable[[str | None, Source], Source] | None = None, **options
) -> Source:
    """Open what the user typed for `--dataset`: one data set, or several with commas between them.

    Args:
        dataset (`str`, *optional*):
            What [`parse_mixture`] and, for each of its names, [`~hfssl.data.sources.open_source`] take.
        prepare (`Callable[[str | None, Source], Source]`, *optional*):
            What is read instead of a source, by its name and the source.
        options (`dict`, *optional*):
            Arguments of [`~hfssl.data.sources.open_source`]; they hold for each of the data sets.

    Returns:
        [`~hfssl.data.sources.Source`]: a [`Mixture`] where there are several.
    """

    def prepared(name: str | None, options: dict[str, Any]) -> Source:
        source = open_source(name, **options)
        return prepare(name, source) if prepare is not None else source

    named = parse_mixture(dataset)
    if len(named) == 1:
        return prepared(named[0][0], options)
    if options.get("config") is not None:
        raise DataError(
            f"`--dataset_config {options['config']}` cannot hold for each data set of {str(dataset)!r}. Leave it out "
            "and name the files of a configuration instead, such as hf://datasets/org/name/config/*.parquet:0.5."
        )
    weighted = named[0][1] is not None
    total = sum(weight or 1.0 for _, weight in named)
    sources = []
    for name, weight in named:
        small = int((weight or total) / total * BLOCK_BYTES / 2)
        piece_bytes = min(max(small, _MIN_PIECE_BYTES), PIECE_BYTES)
        sources.append(prepared(name, {**options, "piece_bytes": piece_bytes}))
    names = [name for name, _ in named]
    return Mixture(names, sources, [weight for _, weight in named] if weighted else None)


def parse_mixture(dataset: str | os.PathLike | None) -> list[tuple[str | None, float | None]]:
    """Names and weights of what the user typed for `--dataset`.

    A comma separates data sets, and a number after the last colon of one is its weight, except where a file or folder
    of that very name exists. Commas in brackets belong to the name. Weights are positive numbers; they need not add up
    to 1.

    Raises:
        DataError: for what can be read in no way.

    Example:

    ```python
    >>> parse_mixture("org/books:7,texts/*.txt:3")
    [('org/books', 7.0), ('texts/*.txt', 3.0)]
    >>> parse_mixture("hf://datasets/org/name/**.jsonl")
    [('hf://datasets/org/name/**.jsonl', None)]
    ```
    """
    if dataset is None or not str(dataset).strip() or _exists(str(dataset)):
        return [(None if dataset is None else str(dataset), None)]
    words = re.split(r",(?![^\[{]*[\]}])", str(dataset))
    named: list[tuple[str, float | None]] = []
    while words:
        # the longest run of words that names a file: a name may hold commas
        runs = range(len(words), 1, -1)
        end = next((end for end in runs if _exists_without_weight(",".join(words[:end]))), 1)
        name, weight = _split_weight(",".join(words[:end]))
        del words[:end]
        if not name:
            raise DataError(
                f"`--dataset {dataset}` names an empty data set. Write several as a:0.7,b:0.3, with commas between."
            )
        named.append((name, weight))
    names = [name for name, _ in named]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"`--dataset {dataset}` names {twice!r} twice. Name it once, with the sum of the weights.")
    without = [name for name, weight in named if weight is None]
    if without and len(without) < len(named):
        raise DataError(
            f"`--dataset {dataset}` gives {without[0]!r} no weight, but others one. Give all of them one, as in "
            "a:0.7,b:0.3, or none: then each counts by its size."
        )
    for name, weight in named:
        if weight is not None and not 0.0 < weight < math.inf:
            raise DataError(f"The weight of {name!r} must be a number above 0, got {weight:g}.")
    return named


def _split_weight(text: str) -> tuple[str, float | None]:
    name, colon, weight = text.strip().rpartition(":")
    if not colon or _exists(text.strip()):
        return text.strip(), None
    try:
        return name.strip(), float(weight)
    except ValueError:
        if "/" not in weight and "\\" not in weight and (_exists(name) or not weight.strip()):
            raise DataError(f"The weight of {name!r} must be a number above 0, got {weight.strip()!r}.") from None
        return text.strip(), None


def _exists_without_weight(text: str) -> bool:
    name, _, weight = text.rpartition(":")
    return _exists(text.strip()) or ("," not in weight and _exists(name.strip()))


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def _short(names: Sequence[str]) -> list[str]:
    """The last parts of some paths and ids, where that tells them apart."""
    last = [str(name).rstrip("/").split("/")[-1] for name in names]
    count = Counter(last)
    return [short if short and count[short] == 1 else str(name) for short, name in zip(last, names, strict=True)]


def _num_bytes(source: Source) -> float:
    """Bytes of the samples in a source: files hold more than these. Measured on some pieces of a large one."""
    pieces = keyed.permutation(len(source), Use.TEXT_SIZE_SAMPLE)
    total = float(source.piece_bytes.sum())
    if total > _MEASURED_BYTES:
        pieces = pieces[:_MEASURED_PIECES]
    size = 0
    for piece in pieces.tolist():
        size += sum(len(content_bytes(value)) for value in source.read(piece).columns[source.leading])
    return size * total / max(float(source.piece_bytes[pieces].sum()), 1.0)


def _num_samples(source: Source) -> float:
    return float(source.num_rows)


def _size(size: float, kind: Modality) -> str:
    return f"{_in_bytes(size)} of {kind.name}" if kind.shares_in_bytes else f"{size:,.0f} {kind.samples}"


def _in_bytes(num_bytes: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"
