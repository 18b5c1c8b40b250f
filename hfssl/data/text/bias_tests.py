"""Files of tests of bias: pairs of sentences as in CrowS-Pairs, and association tests as in WEAT and SEAT.

What a file holds, its columns say: `sent_more` and `sent_less` (and `bias_type`, where it is there) are pairs, one a
row; `targ1_examples`, `targ2_examples`, `attr1_examples` and `attr2_examples` (lists, or texts with ; between them) an
association test a row, called as `name` says, and its sets as `targ1_name` and so on.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from ...errors import DataError
from ..labelled import read_all
from ..modality import Input
from ..sources import available_splits, open_source


_SETS = ("targ1", "targ2", "attr1", "attr2")
_LISTS = tuple(f"{each}_examples" for each in _SETS)
# By what a file holds, the columns that it must have, and those that it may have.
_PAIRS = {each: Input("text", each) for each in ("sent_more", "sent_less")}
_ASSOCIATIONS = {"name": Input("text", "name"), **{each: Input(None) for each in _LISTS}}
_OF_PAIRS, _OF_ASSOCIATIONS = ("bias_type",), tuple(f"{each}_name" for each in _SETS)
# Splits in the order in which they are looked for.
_SPLITS = ("test", "validation", "train")


@dataclass(frozen=True)
class SentencePair:
    """Two sentences that differ in whom they speak of.

    Args:
        more, less (`str`):
            The one that says the stereotype, and the other.
        bias_type (`str`):
            What it is about, such as gender; empty where nothing says so.
    """

    more: str
    less: str
    bias_type: str = ""


@dataclass(frozen=True)
class AssociationTest:
    """Whether one set of words, or sentences, is nearer to some attributes than another set is.

    Args:
        name (`str`):
            Of the test.
        targets, attributes (`tuple[tuple[str, ...], tuple[str, ...]]`):
            Two sets of each.
        target_names, attribute_names (`tuple[str, str]`):
            What the sets are.
    """

    name: str
    targets: tuple[tuple[str, ...], tuple[str, ...]]
    attributes: tuple[tuple[str, ...], tuple[str, ...]]
    target_names: tuple[str, str] = ("target 1", "target 2")
    attribute_names: tuple[str, str] = ("attribute 1", "attribute 2")

    @property
    def items(self) -> list[str]:
        """All words or sentences: those of the targets, then those of the attributes."""
        return [item for items in (*self.targets, *self.attributes) for item in items]


@dataclass
class BiasTests:
    """What a file holds: pairs, or association tests.

    Args:
        name (`str`), split (`str`):
            Of the data.
        fingerprint (`str`):
            Changes with them.
        pairs (`list[SentencePair]`), associations (`list[AssociationTest]`):
            One of them is empty.
    """

    name: str
    split: str
    fingerprint: str
    pairs: list[SentencePair] = field(default_factory=list)
    associations: list[AssociationTest] = field(default_factory=list)


def open_bias_tests(dataset: str | os.PathLike, split: str = "auto", config: str | None = None) -> BiasTests:
    """Read the tests of a file, folder or Hub id.

    Args:
        dataset (`str`):
            As in [`~hfssl.data.sources.open_source`].
        split (`str`, *optional*, defaults to `"auto"`):
            Which split. auto takes test, validation or train, the first that is there.
        config (`str`, *optional*):
            Configuration of a data set of the Hub that has several.

    Raises:
        DataError: where the columns are those of neither, no row is whole, or a test lacks a set.
    """
    there = available_splits(dataset, config=config)
    if split == "auto":
        split = next((each for each in (*_SPLITS, *there) if each in there), "train")
    try:
        rows, fingerprint = _read(dataset, split, config, _PAIRS, _OF_PAIRS)
    except DataError as no_pairs:
        try:
            rows, fingerprint = _read(dataset, split, config, _ASSOCIATIONS, _OF_ASSOCIATIONS)
        except DataError as error:
            raise DataError(
                f"{str(dataset)!r} holds neither pairs of sentences (columns {', '.join(_PAIRS)}) nor association "
                f"tests (columns {', '.join(_ASSOCIATIONS)}). {no_pairs}"
            ) from error
    name = Path(str(dataset).rstrip("/"))
    # a file of one split is called as the folder that it lies in, where that was named
    folder = name.parent.name if name.stem in (split, *_SPLITS) else ""
    tests = BiasTests(folder or name.stem, split, fingerprint)
    if "sent_more" in rows:
        types = rows.get("bias_type") or [""] * len(rows["sent_more"])
        pairs = zip(rows["sent_more"], rows["sent_less"], types, strict=True)
        tests.pairs = [SentencePair(more, less, str(of or "")) for more, less, of in pairs]
    else:
        tests.associations = [_association(rows, row, str(dataset)) for row in range(len(rows["name"]))]
    if not (tests.pairs or tests.associations):
        raise DataError(f"{str(dataset)!r} has no whole row in split {split!r}: pass one with tests.")
    return tests


def _read(
    dataset: str | os.PathLike, split: str, config: str | None, needed: dict[str, Input], others: tuple[str, ...]
) -> tuple[dict[str, list], str]:
    """The columns of a kind of tests, and the fingerprint of the data."""
    source = open_source(dataset, split=split, config=config, inputs=needed)
    beside = {each: Input(None, required=False) for each in others if each in source.features}
    if beside:
        source = open_source(dataset, split=split, config=config, inputs=needed | beside)
    columns, _ = read_all(source)
    return {name: _named(values, source.features.get(name)) for name, values in columns.items()}, source.fingerprint


def _named(values: list, feature: Any) -> list:
    """Names in place of the numbers of a `ClassLabel`."""
    if not isinstance(feature, datasets.ClassLabel):
        return values
    return [feature.names[value] if isinstance(value, int) and value >= 0 else None for value in values]


def _association(rows: dict[str, list], row: int, dataset: str) -> AssociationTest:
    sets = {each: _items(rows[each][row]) for each in _LISTS}
    few = next((each for each, items in sets.items() if len(items) < 2), None)
    if few is not None:
        raise DataError(
            f"The test {rows['name'][row]!r} of {dataset!r} has {len(sets[few])} item(s) in column {few!r}: an "
            "association test needs two or more in each of its four sets."
        )
    names = {
        each: str(rows[each][row] or each) if each in rows else each.removesuffix("_name") for each in _OF_ASSOCIATIONS
    }
    (x, y, a, b), (of_x, of_y, of_a, of_b) = sets.values(), names.values()
    return AssociationTest(str(rows["name"][row]), (x, y), (a, b), (of_x, of_y), (of_a, of_b))


def _items(value: Any) -> tuple[str, ...]:
    items = value.split(";") if isinstance(value, str) else value or ()
    return tuple(str(item).strip() for item in items if item is not None and str(item).strip())
