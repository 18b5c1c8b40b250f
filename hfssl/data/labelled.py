"""Labelled images, for measuring what an encoder has learned: all labels in memory, images read when asked for."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from ..errors import DataError
from ..functional import keyed
from ..functional.keyed import Use
from .held_out import content_keys
from .image.value_range import RangeOfSet
from .mixtures import parse_mixture
from .modality import modality
from .sources import Input, Source, available_splits, open_source
from .sources.base import new_digest
from .sources.columns import check_column, list_columns


# In the order in which they are looked for, where no column or several have the type of a label.
LABEL_NAMES = ("label", "labels", "fine_label", "class", "category", "target", "cls", "y")


class LazyImages(Sequence):
    """Some rows of a source with an input `image`, each read when it is asked for.

    A damaged one (null, a missing file) is empty: like one that cannot be decoded, it is for the decoder to refuse.
    `value_range` says what becomes black and white of those with more than 8 bits; it may be set.
    """

    def __init__(self, source: Source, rows: np.ndarray, value_range: RangeOfSet | None = None):
        self.source, self.value_range = source, value_range
        self.rows = rows  # places in the source, counted over all of its pieces
        self._ends = np.cumsum(source.pieces[:, 2] - source.pieces[:, 1])
        self._last: tuple[int, dict[int, bytes]] = (-1, {})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        piece, row = self._place(index)
        if self._last[0] != piece:
            read = self.source.read(piece)
            self._last = (piece, dict(zip(read.rows.tolist(), read.columns["image"], strict=True)))
        return self._last[1].get(row, b"")

    def where(self, index: int) -> str:
        """Name an image for messages, such as `"cats/3.png"`."""
        piece, row = self._place(index)
        return self.source.where(int(self.source.pieces[piece, 0]), row)

    def _place(self, index: int) -> tuple[int, int]:
        """The piece that an image is in, and its row in the file."""
        row = int(self.rows[index])
        piece = int(np.searchsorted(self._ends, row, side="right"))
        return piece, int(self.source.pieces[piece, 2] - self._ends[piece]) + row

    def __getstate__(self):
        return {**self.__dict__, "_last": (-1, {})}


@dataclass
class LabelledImages:
    """A split of labelled images.

    Attributes:
        images (`Sequence[bytes]`):
            Encoded images, read when asked for. What is damaged raises when it is decoded.
        labels (`np.ndarray` of dtype `int64` and shape `(num_images,)`):
            Class of each image, in `[0, num_classes)`.
        class_names (`list[str]`):
            Names of the classes, the same for all splits of a data set. A class may have no image in a split.
        fingerprint (`str`):
            Changes with the images and the labels.
        name (`str`):
            Data set and split, for tables.
        modality (`str`, *optional*, defaults to `"image"`):
            What the samples are.
    """

    images: Sequence
    labels: np.ndarray
    class_names: list[str]
    fingerprint: str
    name: str
    modality: str = "image"

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray, name: str) -> "LabelledImages":
        """Some of the images, under another name."""
        images = LazyImages(self.images.source, self.images.rows[rows], self.images.value_range)
        digest = new_digest("some of", self.fingerprint, rows.tolist()).hexdigest()
        return LabelledImages(images, self.labels[rows], self.class_names, digest, name)


def open_labelled(
    dataset: str | os.PathLike | None,
    split: str,
    image_column: str | None = None,
    label_column: str | None = None,
    config: str | None = None,
    max_samples: int | None = None,
    seed: int = 0,
) -> LabelledImages:
    """Open a split of labelled images.

    Args:
        dataset (`str`, *optional*):
            As in [`~hfssl.data.sources.open_source`]; `None` is the embedded set (`train` and `test`).
        split (`str`):
            Which split.
        image_column, label_column (`str`, *optional*):
            Where images and labels are; found by type and name if not given. Class folders are the column `label`.
            Labels may be `ClassLabel`, strings, integers or booleans.
        config (`str`, *optional*):
            Configuration of a Hub data set.
        max_samples (`int`, *optional*):
            Take so many images at most, drawn at random.
        seed (`int`, *optional*, defaults to 0):
            Of the draw.

    Raises:
        DataError: if there is no label, or none for some images: names the columns that there are.
    """
    if len(parse_mixture(dataset)) > 1:
        raise DataError(f"A probe takes one data set, got the mixture {str(dataset)!r}: name one of its data sets.")
    inputs = {"image": Input("image", image_column)}
    features = open_source(dataset, split=split, config=config, inputs=inputs).features
    embedded = modality("image").embedded_set(dataset)
    name = f"the embedded {embedded.name}" if embedded else repr(str(dataset))
    label_column = _label_column(features, label_column, name)
    # not required: an image without a label is for the probe to refuse, not to be passed over
    options = {"inputs": {**inputs, "label": Input(None, label_column, required=False)}, "config": config}
    source = open_source(dataset, split=split, **options)
    values = source.read_input("label")
    where = f"Column {label_column!r} of split {split!r} of {name}"
    feature = source.features[label_column]
    if isinstance(feature, datasets.ClassLabel):
        class_names, known = list(feature.names), range(feature.num_classes)
    else:
        others = [other for other in available_splits(dataset, modality="image", config=config) if other != split]
        of_others = [_labels_of_split(dataset, other, options) for other in others]
        seen = {value for labels in (values, *of_others) for value in labels if value is not None}
        known = sorted(seen, key=lambda value: (isinstance(value, str), value))
        class_names = [str(value) for value in known]
    labels = _numbers(values, known, where, source.features)
    rows = np.arange(len(labels))
    if max_samples is not None and max_samples < len(rows):
        rows = np.sort(keyed.permutation(len(rows), Use.LABELLED_SAMPLE, seed)[:max_samples])
    digest = new_digest("labelled", source.fingerprint, label_column, class_names, rows.tolist(), labels.tolist())
    short = f"embedded {embedded.name}" if embedded else Path(str(dataset).rstrip("/")).name
    return LabelledImages(
        LazyImages(source, rows), labels[rows], class_names, digest.hexdigest(), f"{short} ({split})"
    )


def has_labels(source: Source) -> bool:
    """Whether the samples of a source have a column of labels that is found without being named."""
    try:
        _label_column(source.features, None, "")
    except DataError:
        return False
    return True


def hold_out(data: LabelledImages, share: float = 0.2) -> tuple[LabelledImages, LabelledImages]:
    """Cut a labelled set that has no split to measure on: what is left to learn from, and a share of each class.

    An image is held out where the hash of its content says so, whatever it is called and wherever it lies, and copies
    of it with it. A class gives one image at least, unless it has a single one. All images are read once.

    Args:
        data ([`LabelledImages`]):
            As [`open_labelled`] gives it.
        share (`float`, *optional*, defaults to 0.2):
            Of the images of each class, in (0, 1).

    Raises:
        DataError: if no class has two different images.
    """
    hashes = content_keys(data.images)
    test = np.zeros(len(data), dtype=bool)
    for label in np.unique(data.labels):
        rows = np.flatnonzero(data.labels == label)
        ranked = np.sort(hashes[rows])
        last = ranked[max(1, round(share * len(rows))) - 1]
        # never all: of copies that would leave nothing to learn from, none is held out
        if last < ranked[-1]:
            test[rows] = hashes[rows] <= last
    if not test.any():
        raise DataError(
            f"{data.name} has no class with two different images, so that none can be held out to measure on. Name a "
            "split to measure on with `--test_split`."
        )
    kept, held_out = np.flatnonzero(~test), np.flatnonzero(test)
    return data.take(kept, f"{data.name} less a fifth"), data.take(held_out, f"a fifth of {data.name}")


def _label_column(features: dict, asked: str | None, name: str) -> str:
    if asked is not None:
        check_column(features, asked, name)
        if not _is_label(features[asked]):
            raise DataError(
                f"Column {asked!r} of {name} holds no labels: ClassLabel, strings, integers or booleans are needed. "
                f"The columns are: {list_columns(features)}. Choose one with `--label_column`."
            )
        return asked
    typed = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(typed) == 1:
        return typed[0]
    candidates = typed or [column for column, feature in features.items() if _is_label(feature)]
    by_lower_name = {column.lower(): column for column in reversed(candidates)}
    for usual in LABEL_NAMES:
        if usual in by_lower_name:
            return by_lower_name[usual]
    problem = f"{len(typed)} columns of labels" if typed else "no column of labels"
    raise DataError(
        f"{name} has {problem}. Its columns are: {list_columns(features)}. Choose one with `--label_column`; the "
        "files of a folder have labels where each class has a folder of its own."
    )


def _is_label(feature) -> bool:
    if isinstance(feature, datasets.ClassLabel):
        return True
    kinds = ("string", "large_string", "int", "uint", "bool")
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)


def _labels_of_split(dataset: str | os.PathLike, split: str, options: dict) -> list:
    try:
        return open_source(dataset, split=split, **options).read_input("label")
    except DataError:  # a split without labels
        return []


def _numbers(values: list, known: Sequence, where: str, features: dict) -> np.ndarray:
    """The place of each label among the known ones."""
    number = {value: i for i, value in enumerate(known)}
    missing = sum(value is None for value in values)
    if missing:
        raise DataError(
            f"{where} is null for {missing} of {len(values)} images, and a probe needs a label for each. The columns "
            f"are: {list_columns(features)}. Take another split or `--label_column`, or leave these images out."
        )
    strange = next((value for value in values if value not in number), None)
    if strange is not None:
        raise DataError(
            f"{where} holds {strange!r}, which is none of its {len(known)} classes: a split without labels? The "
            f"columns are: {list_columns(features)}. Take another split or `--label_column`."
        )
    return np.array([number[value] for value in values], dtype=np.int64)
