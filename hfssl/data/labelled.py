"""Labelled data, for measuring what an encoder has learned: labels in memory, large samples read when asked for."""

import hashlib
import logging
import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np

from ..errors import DataError
from ..functional import keyed
from ..functional.keyed import Use
from .held_out import content_keys
from .image.mask_folders import masked_folders
from .image.value_range import RangeOfSet
from .label_columns import FOLDERS, TRANSCRIPT_NAMES, find_label_column, say_which, transcript_column
from .label_files import LabelFile, only_table, tables_in
from .label_values import NoLabels, check_compared, group_names, names_of_groups, numbers, say_several, whole
from .label_values import classes as classes_of
from .mixtures import parse_mixture
from .modality import Modality
from .modality import modality as find_modality
from .multi_label import columns_of_classes, has_several, item_of, lists_of, matrix_of_columns, matrix_of_lists
from .sources import Input, Source, available_splits, open_source
from .sources.base import new_digest
from .sources.columns import check_column, list_columns
from .sources.found import list_folders
from .sources.walk import names_below


logger = logging.getLogger(__name__)


class LazySamples(Sequence):
    """Some rows of a source of large samples, each read when it is asked for.

    A damaged one (null, a missing file) is empty: like one that cannot be decoded, it is for the decoder to refuse.
    `value_range` says what becomes black and white of images with more than 8 bits; it may be set.
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
            self._last = (piece, dict(zip(read.rows.tolist(), read.columns[self.source.leading], strict=True)))
        return self._last[1].get(row, b"")

    def take(self, rows: np.ndarray) -> "LazySamples":
        """Those at some places."""
        return LazySamples(self.source, self.rows[rows], self.value_range)

    def where(self, index: int) -> str:
        """Name a sample for messages, such as `"cats/3.png"`."""
        piece, row = self._place(index)
        return self.source.where(int(self.source.pieces[piece, 0]), row)

    def _place(self, index: int) -> tuple[int, int]:
        """The piece that a sample is in, and its row in the file."""
        row = int(self.rows[index])
        piece = int(np.searchsorted(self._ends, row, side="right"))
        return piece, int(self.source.pieces[piece, 2] - self._ends[piece]) + row

    def __getstate__(self):
        return {**self.__dict__, "_last": (-1, {})}


class HeldSamples(list):
    """Samples that are in memory."""

    def take(self, rows: Sequence[int]) -> "HeldSamples":
        """Those at some places."""
        return HeldSamples(self[int(row)] for row in rows)


@dataclass
class LabelledData:
    """A split of labelled samples.

    Attributes:
        samples (`Sequence`):
            Encoded images or recordings, read when asked for: what is damaged raises when it is decoded. Or texts.
        labels (`np.ndarray` of dtype `int64` and shape `(num_samples,)` or `(num_samples, num_classes)`):
            Class of each, in `[0, num_classes)`; or, where a sample may have several or none, 1 for those that it has
            and 0 for the others.
        class_names (`list[str]`):
            Names of the classes, the same for all splits of a data set. A class may have no sample in a split.
        fingerprint (`str`):
            Changes with the samples and the labels.
        name (`str`):
            Data set and split, for tables.
        modality (`str`, *optional*, defaults to `"image"`):
            What the samples are.
        groups (`np.ndarray` of shape `(num_samples,)`, *optional*):
            Of what belongs together, such as pictures of one patient.
        masks (`Sequence`, *optional*):
            Encoded masks, see [`~hfssl.data.image.masks`].
        compared_by (`dict[str, np.ndarray]`, *optional*):
            By the name of a column, the group of each sample in it, such as the sex: what figures are told apart by.
    """

    samples: Sequence
    labels: np.ndarray
    class_names: list[str]
    fingerprint: str
    name: str
    modality: str = "image"
    groups: np.ndarray | None = None
    masks: Sequence | None = None
    compared_by: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Sequence:
        """The samples, where they are images."""
        return self.samples

    def take(self, rows: np.ndarray, name: str) -> "LabelledData":
        """Some of the samples, under another name."""
        digest = new_digest("some of", self.fingerprint, rows.tolist()).hexdigest()
        groups = None if self.groups is None else self.groups[rows]
        masks = None if self.masks is None else self.masks.take(rows)
        return replace(
            self, samples=self.samples.take(rows), labels=self.labels[rows], fingerprint=digest, name=name,
            groups=groups, masks=masks, compared_by={name: of[rows] for name, of in self.compared_by.items()},
        )  # fmt: skip


def open_labelled(
    dataset: str | os.PathLike | None,
    split: str,
    column: str | None = None,
    label_column: str | None = None,
    config: str | None = None,
    max_samples: int | None = None,
    seed: int = 0,
    *,
    modality: str = "image",
    sample_by: str = "document",
    group_column: str | None = None,
    compared_by: Sequence[str] = (),
    labels_file: str | os.PathLike | None = None,
    transcripts: bool = False,
) -> LabelledData:
    """Open a split of labelled samples. Those without a label (null, blank, or -1 among classes from 0 on) are left
    out.

    Args:
        dataset (`str`, *optional*):
            As in [`~hfssl.data.sources.open_source`]; `None` is the embedded set (`train` and `test`).
        split (`str`):
            Which split.
        column, label_column (`str`, *optional*):
            Where samples and labels are; found by type and name if not given. Class folders are the column `label`;
            a column of labels in a table beside the files goes before them.
            Labels may be `ClassLabel`, strings, whole numbers or booleans; of samples with several of them lists,
            words with ; or | between them, or columns of 0 and 1 (`"cat,dog"`).
        config (`str`, *optional*):
            Configuration of a Hub data set.
        max_samples (`int`, *optional*):
            Take so many at most, drawn at random.
        seed (`int`, *optional*, defaults to 0):
            Of the draw.
        modality (`str`, *optional*, defaults to `"image"`):
            What the samples are.
        sample_by (`str`, *optional*, defaults to `"document"`):
            What a sample of a txt file is.
        group_column (`str`, *optional*):
            Column that says what belongs together.
        compared_by (`Sequence[str]`, *optional*):
            Columns by which figures are told apart. They are neither samples nor labels.
        labels_file (`str`, *optional*):
            Table with the labels (and groups) of files, see [`~hfssl.data.label_files.LabelFile`].
        transcripts (`bool`, *optional*, defaults to `False`):
            Whether the labels are what is said: each text is a class of its own.

    Raises:
        DataError: if there is no label: names the columns that there are.
    """
    kind = find_modality(modality)
    if len(parse_mixture(dataset)) > 1:
        raise DataError(f"A probe takes one data set, got the mixture {str(dataset)!r}: name one of its data sets.")
    inputs = {modality: Input(modality, column)}
    options = {"config": config, "sample_by": sample_by}
    opened = open_source(dataset, split=split, inputs=inputs, **options)
    embedded = kind.embedded_set(dataset)
    name = f"the embedded {embedded.name}" if embedded else repr(str(dataset))
    lacks_labels = len(opened.features) == 1 or transcripts and not set(TRANSCRIPT_NAMES) & set(opened.features)
    asked = {part.strip() for each in (label_column, group_column) if each for part in each.split(",")}
    asked |= set(compared_by)
    lacks = not asked <= set(opened.features) or label_column is None and lacks_labels
    is_found = labels_file is None and opened.unit == "file" and lacks
    labels_file = only_table(str(dataset), opened.tables) if is_found else labels_file
    table = unfit = None
    if labels_file is not None:
        others = [other for other in available_splits(dataset, modality=modality, config=config) if other != split]
        try:
            table = _table_beside(
                opened, _path_of_table(labels_file, dataset), name, others,
                lambda other: open_source(dataset, split=other, inputs=inputs, **options),
            )  # fmt: skip
        except DataError as error:
            if not is_found:
                raise
            unfit = error  # of something else, then
        if is_found and table is not None:
            logger.info("What is known of the %s is read from %s, as with `--labels`.", kind.samples, labels_file)
    of_table = {} if table is None else table.features
    features = opened.features | of_table
    of_folders = FOLDERS if opened.class_folders and FOLDERS not in of_table else None
    is_chosen = label_column is None and not transcripts
    try:
        if transcripts and label_column is None:
            label_column = transcript_column(features, name)
        several = columns_of_classes(label_column, features, name)
        if not several:
            # a table that was named is there for its labels, if not for groups
            by_folder = table is None or is_found or group_column in of_table or bool(set(compared_by) & set(of_table))
            of_samples = opened.inputs[modality].column
            others = {each: feature for each, feature in features.items() if label_column or each not in compared_by}
            label_column = find_label_column(others, label_column, name, of_samples, of_folders, by_folder)
        wanted = {f"label {i}": column for i, column in enumerate(several)} or {"label": label_column}
        wanted |= {"group": group_column} if group_column is not None else {}
        wanted |= {f"compared by {each}": each for each in compared_by if each not in wanted.values()}
        for each in (*wanted.values(), *compared_by):
            check_column(features, each, name)
        check_compared(compared_by, several or [label_column], opened.inputs[modality].column)
    except DataError as error:
        there = tables_in(dataset, opened.tables) if table is None and opened.unit == "file" else []
        hint = f" There is {there[0]} in the folder: `--labels {there[0]}` takes what it says." if there else ""
        is_masked = isinstance(error, NoLabels) and opened.mask_folders
        said = _masks_instead(name, dataset, opened.mask_folders, kind) if is_masked else str(error)
        raise type(error)(f"{said}{hint if unfit is None else f' {unfit}'}") from error
    if is_chosen and of_folders and len(features) > 2:
        say_which(label_column, list_columns(features), name)
    # not required: a sample without a label is left out with a word, and damaged ones are not counted
    inputs |= {each: Input(None, of, required=False) for each, of in wanted.items() if of not in of_table}
    options["inputs"] = inputs
    source = open_source(dataset, split=split, **options)
    if kind.samples_are_small:
        columns, rows = read_all(source)
    else:
        columns, rows = {each: source.read_input(each) for each in inputs if each != modality}, range(source.num_rows)
    if table is not None:
        said = {each: table.values(of) for each, of in wanted.items() if of in of_table}
        columns |= {each: [values[row] for row in rows] for each, values in said.items()}
    where = f"Column {label_column!r} of split {split!r} of {name}"
    feature = features.get(label_column)
    item = item_of(feature)
    if several:
        class_names, known = several, range(len(several))
    elif isinstance(item, datasets.ClassLabel):
        class_names, known = list(item.names), range(item.num_classes)
    elif isinstance(feature, datasets.ClassLabel):
        class_names, known = list(feature.names), range(feature.num_classes)
    else:
        others = [other for other in available_splits(dataset, modality=modality, config=config) if other != split]
        is_in_table = label_column in of_table  # which has the classes of all splits
        of_others = [] if is_in_table else [_labels_of_split(dataset, other, options) for other in others]
        of_others += [table.all_values(label_column)] if is_in_table else []
        everything = [columns["label"], *of_others]
        if item is not None or not transcripts and any(map(has_several, everything)):
            item = item or feature
            everything = [[each for values in lists_of(split) for each in values or ()] for split in everything]
        classes = classes_of(everything)
        known = sorted(classes, key=lambda value: (isinstance(value, str), value))
        if -1 in classes and len(classes) > 2:
            logger.info("%s: -1 is taken for a class like the others. Leave blank what has no label.", where)
        class_names = [str(whole(value)) for value in known]
    if several:
        values = [columns[f"label {i}"] for i in range(len(several))]
        labels = matrix_of_columns(values, several, f"split {split!r} of {name}")
    elif item is not None:
        labels = matrix_of_lists(lists_of(columns["label"]), known, where)
    else:
        labels = numbers(columns["label"], known, where, features, kind.samples)
    if labels.ndim == 2:
        say_several(labels, class_names, where, kind.samples)
    rows = np.flatnonzero((labels >= 0).reshape(len(labels), -1).all(1))
    if max_samples is not None and max_samples < len(rows):
        rows = rows[np.sort(keyed.permutation(len(rows), Use.LABELLED_SAMPLE, seed)[:max_samples])]
    digest = new_digest("labelled", source.fingerprint, label_column, class_names, rows.tolist(), labels.tolist())
    short = f"embedded {embedded.name}" if embedded else Path(str(dataset).rstrip("/")).name
    samples = HeldSamples(columns[modality]).take(rows) if kind.samples_are_small else LazySamples(source, rows)
    groups = None
    if group_column is not None:
        groups = group_names(columns["group"], split, f"Column {group_column!r} of split {split!r} of {name}")[rows]
    by_column = {of: columns[each] for each, of in wanted.items()}
    by = {each: names_of_groups(by_column[each], features[each], each, name)[rows] for each in compared_by}
    return LabelledData(
        samples, labels[rows], class_names, digest.hexdigest(), f"{short} ({split})", modality, groups, compared_by=by
    )


def _masks_instead(name: str, dataset: str | os.PathLike, folders: Sequence[str], kind: Modality) -> str:
    """What to do with images that have no labels, but masks."""
    of, unpacked = "FOLDER", " with its files in a folder"
    # masks find their images in a folder, not in a zip or on the Hub
    if os.path.isdir(dataset):
        if "train" in masked_folders(names_below(str(dataset), kind.file_extensions)):
            of, unpacked = shlex.quote(str(dataset)), ""
        else:
            unpacked = " with all its images in images/ and all masks in masks/"
    return (
        f"{name} has masks ({list_folders(folders)}) and no labels of whole images. What an encoder knows of masks is "
        f"measured when it is trained: `recipes/probe.py ENCODER --protocol patches --dataset {of}`{unpacked}, and "
        "`--beside CHECKPOINT` puts the checkpoint that it was beside it. Whole images have labels where there is a "
        "folder for each class in that of the images, or a table (`--labels`)."
    )


def _table_beside(
    source: Source, labels_file: str | os.PathLike, name: str, others: list[str], open_split: Callable[[str], Source]
) -> LabelFile:
    if source.unit != "file":
        raise DataError(
            f"`--labels` is for data of which each file is a sample, and {name} is {source.description}. Put the "
            "labels into a column of it, or pass the files in a folder."
        )
    of_others: set[str] = set()
    for other in others:
        with suppress(DataError):  # a split of something else
            of_others |= set(open_split(other).files)
    return LabelFile(labels_file, source.files, of_others - set(source.files))


def _path_of_table(labels_file: str | os.PathLike, dataset: str | os.PathLike | None) -> str | os.PathLike:
    """A table as it was named, or, where there is none of that name here, the one in the folder of the data."""
    inside = None if dataset is None else Path(dataset, labels_file)
    return inside if inside is not None and not Path(labels_file).exists() and inside.is_file() else labels_file


def read_all(source: Source) -> tuple[dict[str, list], list[int]]:
    """The inputs of all good rows, in memory, and which rows they are."""
    columns: dict[str, list] = {name: [] for name in source.inputs}
    rows: list[int] = []
    bad: list[str] = []
    for piece in range(len(source)):
        read = source.read(piece)
        for name, values in columns.items():
            values += read.columns[name]
        rows += read.rows.tolist()
        bad += [f"{source.where(int(source.pieces[piece, 0]), row)}: {reason}" for row, reason in read.bad]
    if bad:
        logger.warning("%d damaged rows of %s are left out, such as %s.", len(bad), source.description, bad[0])
    return columns, rows


def hold_out(data: LabelledData, share: float = 0.2, of_each_class: bool = True) -> tuple[LabelledData, LabelledData]:
    """Cut a labelled set that has no split to measure on: what is left to learn from, and a share of each class.

    A sample is held out where the hash of its content says so, whatever it is called and wherever it lies, and copies
    of it with it. A class gives one at least, unless it has a single one. All samples are read once. Where samples
    have groups, whole groups are held out, in the order of the hash of their names, of which each class comes nearer
    to its share; the last one to learn a class from never is, if another can be held out.

    Args:
        data ([`LabelledData`]):
            As [`open_labelled`] gives it.
        share (`float`, *optional*, defaults to 0.2):
            Of the samples of each class, in (0, 1).
        of_each_class (`bool`, *optional*, defaults to `True`):
            Otherwise of all samples together.

    Raises:
        DataError: if no class has two different samples, or there is one group only.
    """
    drawn = data if of_each_class else replace(data, labels=np.zeros_like(data.labels), class_names=["all"])
    test = _groups_to_hold_out(drawn, share) if data.groups is not None else _rows_to_hold_out(drawn, share)
    kept, held_out = np.flatnonzero(~test), np.flatnonzero(test)
    return data.take(kept, f"{data.name} less a fifth"), data.take(held_out, f"a fifth of {data.name}")


def _rows_to_hold_out(data: LabelledData, share: float) -> np.ndarray:
    hashes = content_keys(data.samples)
    test = np.zeros(len(data), dtype=bool)
    # of samples with several labels, a share of them all
    labels = np.zeros(len(data), dtype=np.int64) if data.labels.ndim == 2 else data.labels
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        ranked = np.sort(hashes[rows])
        last = ranked[max(1, round(share * len(rows))) - 1]
        # never all: of copies that would leave nothing to learn from, none is held out
        if last < ranked[-1]:
            test[rows] = hashes[rows] <= last
    if not test.any():
        raise DataError(
            f"{data.name} has no class with two different {find_modality(data.modality).samples}, so that none can be "
            "held out to measure on. Name a split to measure on with `--test_split`."
        )
    return test


def _groups_to_hold_out(data: LabelledData, share: float) -> np.ndarray:
    names, of_row, counts = np.unique(data.groups, return_inverse=True, return_counts=True)
    names = names.tolist()

    def count(labels: np.ndarray) -> np.ndarray:
        return labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=len(data.class_names))

    if len(names) < 2:
        raise DataError(
            f"All of {data.name} belongs to one group ({names[0]!r}), so that none can be held out to measure on. "
            "Pass another `--split_by`, or leave it out."
        )
    totals = count(data.labels)
    rows_of = np.split(np.argsort(of_row, kind="stable"), np.cumsum(counts)[:-1])
    order = sorted(range(len(names)), key=lambda i: hashlib.blake2b(names[i].encode(), digest_size=8).digest())

    def labels_in(group: int) -> np.ndarray:
        return count(data.labels[rows_of[group]])

    def distance(held_out: np.ndarray) -> float:
        return float(((held_out - share * totals) ** 2 / np.maximum(totals, 1)).sum())

    def keeps_all(held_out: np.ndarray) -> bool:
        return bool(((held_out < totals) | (totals == 0)).all())

    chosen: set[int] = set()
    held_out = np.zeros_like(totals)
    # first those that make it too many of no class, so that a large group does not come before many that fit
    for no_more_than in (np.ceil(share * totals), totals):
        for group in order:
            with_it = held_out + labels_in(group)
            fits = keeps_all(with_it) and (with_it <= no_more_than).all() and distance(with_it) < distance(held_out)
            if fits and group not in chosen:
                chosen.add(group)
                held_out = with_it
    # of a class of which nothing is held out yet, the group that does so at the least cost
    for label in np.flatnonzero(totals):
        if held_out[label] == 0:
            able = (i for i in order if (here := labels_in(i))[label] and keeps_all(held_out + here))
            group = min(able, key=lambda i: distance(held_out + labels_in(i)), default=None)
            if group is not None:
                chosen.add(group)
                held_out = held_out + labels_in(group)
    if not chosen:  # each group is the only one of a class
        group = min(order, key=lambda i: distance(labels_in(i)))
        chosen, held_out = {group}, labels_in(group)
    for without, side in ((held_out == 0, "held out to measure on"), (held_out == totals, "left to learn from")):
        missing = [data.class_names[i] for i in np.flatnonzero(without & (totals > 0))]
        if missing:
            logger.warning(
                "Nothing of class %s is %s: too few groups of %s have it.", ", ".join(missing[:5]), side, data.name
            )
    return np.isin(of_row, list(chosen))


def keep_groups_apart(train: LabelledData, test: LabelledData) -> LabelledData:
    """What is left to learn from without the groups that are measured on."""
    shared = np.isin(train.groups, test.groups)
    if not shared.any():
        return train
    if shared.all():
        raise DataError(
            f"Every group of {train.name} is in {test.name} as well, so that nothing is left to learn from. Pass "
            "another `--split_by`, or leave it out."
        )
    logger.warning(
        "%d of the %d samples of %s belong to groups that %s has as well: they are not learned from.",
        shared.sum(), len(train), train.name, test.name,
    )  # fmt: skip
    return train.take(np.flatnonzero(~shared), f"{train.name} less groups of test")


def _labels_of_split(dataset: str | os.PathLike, split: str, options: dict) -> list:
    try:
        return open_source(dataset, split=split, **options).read_input("label")
    except DataError:  # a split without labels
        return []
