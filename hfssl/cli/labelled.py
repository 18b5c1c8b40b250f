"""Labelled data on the command line: the flags, and both splits that they name, of any modality."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np

from ..data.image.masks import masked_splits, open_masked
from ..data.image.value_range import check_range
from ..data.label_values import NoLabels
from ..data.labelled import LabelledData, LazySamples, hold_out, keep_groups_apart, open_labelled
from ..data.modality import modality as find_modality
from ..data.sources import available_splits, open_source
from ..errors import UserError
from ..evaluation.evaluator import EvaluationError
from ..evaluation.facts import given_name, read_facts
from ..evaluation.frozen import aligned_labels
from ..functional import keyed
from ..functional.keyed import Use
from .modality import cli_modality


logger = logging.getLogger(__name__)


@dataclass
class LabelledDataArguments:
    r"""
    > Data

    Args:
        dataset (`str`, *optional*):
            Labelled images, recordings or texts, as the encoder takes them: a Hub id, a folder with a folder for each
            class, parquet, arrow, and of texts csv and jsonl files; letters, characters, digits or scenes (images), or
            speech (recordings), which come with hfssl; of the protocol patches images with masks. Left out, they are
            those of the encoder's run as far as its folder remembers them, and letters or speech for an encoder from
            elsewhere; of the protocol patches the scenes.
        dataset_config (`str`, *optional*):
            Configuration of a data set on the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split to learn from.
        test_split (`str`, *optional*, defaults to `"auto"`):
            Split to measure on. auto takes test or validation where there is one, else holds out a fifth of each
            class.
        image_column (`str`, *optional*):
            Column of the images; found by its type when left out.
        audio_column (`str`, *optional*):
            Column of the recordings; found by its type when left out.
        text_column (`str`, *optional*):
            Column of the texts; found by its type when left out.
        label_column (`str`, *optional*):
            Column of the labels, or of the transcripts; found by its type and name when left out. Of samples with
            several labels a column of lists, or of words with ; between them, or several columns of 0 and 1 (cat,dog).
        mask_column (`str`, *optional*):
            Column of the masks of the protocol patches; found by its type and name when left out.
        labels (`str`, *optional*):
            Table (csv, tsv, parquet, json, jsonl) with the labels of a folder of files: one of its columns, whatever
            it is called, names the files.
        split_by (`str`, *optional*):
            Column of what must not be on both sides, such as the patient: rows of one value are learned from, or
            measured on.
        sample_by (`str`, *optional*, defaults to `"document"`):
            What a sample of a .txt file is: line, paragraph (blank lines between) or document (the whole file).
        max_train_samples (`int`, *optional*):
            Learn from so many at most.
        max_test_samples (`int`, *optional*):
            Measure on so many at most.
        value_range (`list[float]`, *optional*):
            The values that become black and white, of images with more than 8 bits a value. Left out: those of the
            encoder's training, where its folder says so, else judged on some of the images.
    """

    dataset: str | None = None
    dataset_config: str | None = None
    split: str = "train"
    test_split: str = "auto"
    image_column: str | None = None
    audio_column: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    mask_column: str | None = None
    labels: str | None = None
    split_by: str | None = None
    sample_by: str = "document"
    max_train_samples: int | None = None
    max_test_samples: int | None = None
    value_range: list[float] | None = None

    def __post_init__(self):
        check_range(self.value_range)

    def of_run(self, encoder: str, modality: str = "image", masks: bool = False) -> "LabelledDataArguments":
        """With the labelled data that the folder of an encoder remembers, where none are named; with `masks` the
        embedded scenes, for no run remembers masks.

        Raises:
            UserError: where it remembers none, but that it was trained on other data than embedded ones with labels.
        """
        if masks and self.dataset is None:
            logger.info("All protocols: the embedded scenes of letters, which have masks; `--dataset` takes yours.")
            return replace(self, dataset="scenes")
        kind, facts = find_modality(modality), read_facts(encoder)
        if self.dataset is not None or not facts and any(embedded.labelled for embedded in kind.embedded[:1]):
            return self
        remembered = facts.get("labelled")
        embedded = kind.embedded_set(facts.get("dataset"))
        if remembered is None and embedded and embedded.labelled:
            remembered = {"dataset": embedded.name}
        if remembered is None:
            known = " or ".join(embedded.name for embedded in kind.embedded if embedded.labelled)
            known = f", or {known} for the {kind.samples} that come with hfssl" if known else ""
            trained_on = facts.get("dataset") or f"the {kind.samples} that come with hfssl"
            was = f"was trained on {trained_on}, and its" if facts else "is no result of hfssl: its"
            raise UserError(
                f"{given_name(encoder)} {was} folder names no labelled {kind.samples}. Pass `--dataset`: a Hub id, a "
                f"file with a column of labels, or a folder with a folder for each class{known}."
            )
        usual = {field.name: field.default for field in fields(self)}
        missing = {n: v for n, v in remembered.items() if n in usual and getattr(self, n) == usual[n]}
        if missing:
            words = ", ".join(f"--{name} {value}" for name, value in missing.items())
            logger.info("Labelled %s, as the encoder's folder remembers them: %s.", kind.samples, words)
        return replace(self, **missing)

    def load(
        self,
        modality: str = "image",
        transcripts: bool = False,
        masks: bool = False,
        compared_by: Sequence[str] = (),
    ) -> tuple[LabelledData, LabelledData]:
        """Both splits; with `transcripts` what is said is the label, with `masks` it is the class of each pixel.
        Figures are told apart by the columns `compared_by`.

        Raises:
            UserError: also where a column of another modality is named.
        """
        columns = {"image": self.image_column, "audio": self.audio_column, "text": self.text_column}
        check_columns(columns, modality)
        if masks and modality != "image":
            kind = find_modality(modality).samples
            raise UserError(f"The protocol patches is for encoders of images, and this one takes {kind}.")
        return load_splits(
            self.dataset, self.split, self.test_split, config=self.dataset_config, column=columns.get(modality),
            label_column=self.label_column, max_train_samples=self.max_train_samples,
            max_test_samples=self.max_test_samples, value_range=self.value_range, modality=modality,
            sample_by=self.sample_by, split_by=self.split_by, labels=self.labels, transcripts=transcripts,
            masks=masks, mask_column=self.mask_column, compared_by=compared_by,
        )  # fmt: skip


def load_with_or_without_labels(
    arguments: LabelledDataArguments, encoder: str, modality: str
) -> tuple[LabelledData | None, LabelledData]:
    """Both splits, those of the encoder's run where none are named; of data without labels nothing to learn from, and
    samples of which none has a label (-1)."""
    facts = read_facts(encoder)
    try:
        named = arguments.of_run(encoder, modality)
    except UserError:
        if arguments.dataset is not None or not facts.get("dataset"):
            raise
        named = replace(arguments, dataset=facts["dataset"])
    try:
        return named.load(modality)
    except NoLabels as error:
        logger.info("Without labels, since there are none: %s", error)
    kind = find_modality(modality)
    column = getattr(named, f"{modality}_column")
    source = open_source(
        named.dataset, modality=modality, column=column, config=named.dataset_config, split=named.split,
        sample_by=named.sample_by,
    )  # fmt: skip
    samples = LazySamples(source, np.arange(source.num_rows))
    labels = np.full(len(samples), -1, np.int64)
    name = f"{kind.samples} of {named.dataset}"
    data = LabelledData(samples, labels, [], source.fingerprint, name, modality)
    prepare = cli_modality(modality).prepare_labelled
    if prepare is not None:
        prepare(data, data, named.value_range)
    return None, data


def check_columns(columns: dict[str, str | None], modality: str) -> None:
    """Refuse a column, named by its modality, that is of another one than the encoder takes.

    Raises:
        UserError: where there is one.
    """
    for other, column in columns.items():
        if other != modality and column is not None:
            raise UserError(
                f"`--{other}_column {column}` does not fit this encoder, which takes "
                f"{find_modality(modality).samples}. Leave it out, or pass an encoder of "
                f"{find_modality(other).samples}."
            )


def load_splits(
    dataset: str | None,
    split: str = "train",
    test_split: str = "auto",
    *,
    config: str | None = None,
    column: str | None = None,
    label_column: str | None = None,
    max_train_samples: int | None = None,
    max_test_samples: int | None = None,
    value_range: list[float] | None = None,
    modality: str = "image",
    sample_by: str = "document",
    split_by: str | None = None,
    labels: str | None = None,
    transcripts: bool = False,
    masks: bool = False,
    mask_column: str | None = None,
    compared_by: Sequence[str] = (),
) -> tuple[LabelledData, LabelledData]:
    """The labelled samples to learn from and those to measure on, checked to be of the same classes unless labels are
    transcripts or of pixels.

    Args are the flags of [`LabelledDataArguments`] and the arguments of its `load`; `column` is that of the samples.

    Raises:
        DataError, EvaluationError: where there are no such data, no labels, or the splits do not go together.
    """
    if split == test_split:
        raise EvaluationError(f'Both splits are "{split}": what a probe learned from says nothing of what it knows.')
    options = {
        "column": column, "label_column": label_column, "config": config, "modality": modality,
        "sample_by": sample_by, "group_column": split_by, "labels_file": labels,
        "compared_by": compared_by, "transcripts": transcripts,
    }  # fmt: skip
    open_split, splits_of = open_labelled, partial(available_splits, modality=modality)
    if masks:
        other = {"label_column": label_column, "labels": labels, "split_by": split_by}
        other["group_column"] = next(iter(compared_by), None)
        if stated := [name for name, value in other.items() if value is not None]:
            raise UserError(
                f"`--{stated[0]} {other[stated[0]]}` is not for the protocol patches, whose labels are the masks. "
                "Leave it out, or probe the labels of whole images by a command of its own."
            )
        open_split, splits_of = open_masked, masked_splits
        options = {"column": column, "mask_column": mask_column, "config": config}
    train = open_split(dataset, split, max_samples=max_train_samples, **options)
    test = None
    if test_split != "auto":
        with named_flags({"split": "test_split"}):
            test = open_split(dataset, test_split, max_samples=max_test_samples, **options)
    else:
        splits = splits_of(dataset, config=config)
        for other in ("test", "validation", "dev", "valid", "val"):
            if test is None and other in splits and other != split:
                try:
                    test = open_split(dataset, other, max_samples=max_test_samples, **options)
                except NoLabels as error:
                    logger.info("Split %r is passed over, since it has no labels: %s", other, error)
    if test is None:
        train, test = hold_out(train, of_each_class=not transcripts)
        samples = find_modality(modality).samples
        if max_test_samples is not None and max_test_samples < len(test):
            rows = np.sort(keyed.permutation(len(test), Use.LABELLED_SAMPLE, 0)[:max_test_samples])
            test = test.take(rows, f"{max_test_samples:,} of {test.name}")
        logger.info(
            "There is no split to measure on: %s %s of %s are held out.", f"{len(test):,}", samples, train.name
        )
    elif split_by is not None:
        train = keep_groups_apart(train, test)
    prepare = cli_modality(modality).prepare_labelled
    if prepare is not None:
        prepare(train, test, value_range)
    if not (transcripts or masks):
        aligned_labels(train, test)
    return train, test


@contextmanager
def named_flags(names: dict[str, str]) -> Iterator[None]:
    """Let what is wrong with the data be told with the flags that the user has."""
    try:
        yield
    except UserError as error:
        told = re.sub("`--([a-z_]+)", lambda flag: f"`--{names.get(flag[1], flag[1])}", str(error))
        raise type(error)(told) from error
