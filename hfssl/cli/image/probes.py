"""What the image recipes share about probes: the flags, the labelled images that they name, and the evaluators."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ...data.image.value_range import RangeOfSet, check_range
from ...data.image.views import Views
from ...data.labelled import LabelledImages, hold_out, open_labelled
from ...data.modality import modality
from ...data.sources import available_splits
from ...errors import UserError
from ...evaluation.evaluator import EvaluationError, Evaluator
from ...evaluation.facts import read_facts
from ...evaluation.frozen import aligned_labels
from ...evaluation.held_out_loss import HeldOutLossEvaluator
from ...evaluation.online_knn import OnlineKnn
from ...training.arguments import SSLTrainingArguments
from .data import ImageData


logger = logging.getLogger(__name__)


@dataclass
class ProbeArguments:
    r"""
    > Probes

    Args:
        probe_dataset (`str`, *optional*, defaults to `"auto"`):
            Labelled images for k-NN during the run and for the table at its end, as `--dataset` names them; none for
            no probes. auto is the embedded set in runs on one, else none.
        probe_split (`str`, *optional*, defaults to `"train"`):
            Split that probes learn from.
        probe_test_split (`str`, *optional*, defaults to `"auto"`):
            Split that they are measured on. auto takes test or validation where there is one, else holds out a fifth
            of each class.
        probe_label_column (`str`, *optional*):
            Column of the labels; found by its type when left out.
        probe_max_samples (`int`, *optional*, defaults to `3000`):
            Use so many images of each split at most. `recipes/probe.py` takes all.
        probe_pooling (`str`, *optional*):
            cls, mean, cls+mean or last4. Left out: the feature that the method projects, or for MAE what fits the
            encoder.
    """

    probe_dataset: str = "auto"
    probe_split: str = "train"
    probe_test_split: str = "auto"
    probe_label_column: str | None = None
    probe_max_samples: int | None = 3_000
    probe_pooling: str | None = None

    def load(self, dataset: str | None) -> tuple[LabelledImages, LabelledImages] | None:
        """Both splits, or `None` where nothing is to be probed; `dataset` is what the run trains on."""
        name = self.probe_dataset
        if name == "auto":
            embedded = modality("image").embedded_set(dataset)
            name = embedded.name if embedded else "none"
        if name == "none":
            return None
        flags = ("dataset", "split", "test_split", "label_column")
        with _named_flags({flag: f"probe_{flag}" for flag in flags}):
            return load_splits(
                name, self.probe_split, self.probe_test_split, label_column=self.probe_label_column,
                max_train_samples=self.probe_max_samples, max_test_samples=self.probe_max_samples,
            )  # fmt: skip

    def named(self, dataset: str | None, *splits: LabelledImages) -> dict[str, Any]:
        """The flags of `recipes/probe.py` for the images that [`load`] gives."""
        embedded = modality("image").embedded_set(dataset) if self.probe_dataset == "auto" else None
        most = self.probe_max_samples
        # a fifth of what was taken of the split, where there was none to measure on
        limits = [most if len(images) == most else None for images in splits]
        if sum(map(len, splits)) == most:
            limits = [most, None]
        flags = {
            "dataset": embedded.name if embedded else self.probe_dataset, "split": self.probe_split,
            "test_split": self.probe_test_split, "label_column": self.probe_label_column,
            "max_train_samples": limits[0], "max_test_samples": limits[1],
        }  # fmt: skip
        usual = {field.name: field.default for field in fields(LabelledDataArguments)}
        return {name: value for name, value in flags.items() if value != usual[name]}


@dataclass
class LabelledDataArguments:
    r"""
    > Data

    Args:
        dataset (`str`, *optional*):
            Labelled images: a Hub id, a folder with a folder for each class, parquet or arrow files; letters or
            digits, which come with hfssl. Left out, they are those of the encoder's run as far as its folder
            remembers them, and letters for an encoder from elsewhere.
        dataset_config (`str`, *optional*):
            Configuration of a data set on the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split to learn from.
        test_split (`str`, *optional*, defaults to `"auto"`):
            Split to measure on. auto takes test or validation where there is one, else holds out a fifth of each
            class.
        image_column (`str`, *optional*):
            Column of the images; found by its type when left out.
        label_column (`str`, *optional*):
            Column of the labels; found by its type when left out.
        max_train_samples (`int`, *optional*):
            Learn from so many images at most.
        max_test_samples (`int`, *optional*):
            Measure on so many images at most.
        value_range (`tuple[float, float]`, *optional*):
            The values that become black and white, of images with more than 8 bits a value. Left out: those of the
            encoder's training, where its folder says so, else judged on some of the images.
    """

    dataset: str | None = None
    dataset_config: str | None = None
    split: str = "train"
    test_split: str = "auto"
    image_column: str | None = None
    label_column: str | None = None
    max_train_samples: int | None = None
    max_test_samples: int | None = None
    value_range: tuple[float, float] | None = None

    def __post_init__(self):
        check_range(self.value_range)

    def of_run(self, encoder: str) -> "LabelledDataArguments":
        """With the labelled images that the folder of an encoder remembers, where none are named.

        Raises:
            UserError: where it remembers none, but that it was trained on other data than the embedded ones.
        """
        facts = read_facts(encoder)
        if self.dataset is not None or not facts:
            return self
        remembered = facts.get("labelled")
        if remembered is None and (embedded := modality("image").embedded_set(facts.get("dataset"))):
            remembered = {"dataset": embedded.name}
        if remembered is None:
            raise UserError(
                f"{encoder} was trained on {facts['dataset']}, and its folder names no labelled images. Pass "
                "`--dataset`: a Hub id, a folder with a folder for each class, or letters for the images that come "
                "with hfssl."
            )
        usual = {field.name: field.default for field in fields(self)}
        missing = {n: v for n, v in remembered.items() if n in usual and getattr(self, n) == usual[n]}
        if missing:
            words = ", ".join(f"--{name} {value}" for name, value in missing.items())
            logger.info("Labelled images, as the encoder's folder remembers them: %s.", words)
        return replace(self, **missing)

    def load(self) -> tuple[LabelledImages, LabelledImages]:
        """Both splits."""
        return load_splits(
            self.dataset, self.split, self.test_split, config=self.dataset_config, image_column=self.image_column,
            label_column=self.label_column, max_train_samples=self.max_train_samples,
            max_test_samples=self.max_test_samples, value_range=self.value_range,
        )  # fmt: skip


def load_splits(
    dataset: str | None,
    split: str = "train",
    test_split: str = "auto",
    *,
    config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    max_train_samples: int | None = None,
    max_test_samples: int | None = None,
    value_range: tuple[float, float] | None = None,
) -> tuple[LabelledImages, LabelledImages]:
    """The labelled images to learn from and those to measure on, checked to be of the same classes."""
    if split == test_split:
        raise EvaluationError(f'Both splits are "{split}": what a probe learned from says nothing of what it knows.')
    columns = {"image_column": image_column, "label_column": label_column, "config": config}
    train = open_labelled(dataset, split, max_samples=max_train_samples, **columns)
    train.images.value_range = RangeOfSet(train.images, value_range)
    if test_split == "auto":
        splits = available_splits(dataset, modality="image", config=config)
        usual = ("test", "validation", "dev", "valid", "val")
        test_split = next((other for other in usual if other in splits and other != split), None)
    if test_split is None:
        train, test = hold_out(train)
        logger.info("There is no split to measure on: %s images of %s are held out.", f"{len(test):,}", train.name)
    else:
        with _named_flags({"split": "test_split"}):
            test = open_labelled(dataset, test_split, max_samples=max_test_samples, **columns)
            test.images.value_range = train.images.value_range
    aligned_labels(train, test)
    return train, test


@contextmanager
def _named_flags(names: dict[str, str]) -> Iterator[None]:
    """Let what is wrong with the data be told with the flags that the user has."""
    try:
        yield
    except UserError as error:
        told = re.sub("`--([a-z_]+)", lambda flag: f"`--{names.get(flag[1], flag[1])}", str(error))
        raise type(error)(told) from error


def image_evaluators(
    model: torch.nn.Module,
    data: ImageData,
    views: Views,
    processor: Any,
    arguments: ProbeArguments,
    args: SSLTrainingArguments,
) -> list[Evaluator]:
    """What the image recipes measure while they train: the held-out loss, and k-NN where there are labelled images.

    Args:
        model ([`~hfssl.modeling.vision.SSLVisionModel`]):
            What is trained: the feature that it projects is the one that is probed, where the user asks for no other.
        data ([`~hfssl.cli.image.data.ImageData`]), views ([`~hfssl.data.image.views.Views`]):
            What the run trains on.
        processor:
            Image processor that goes with the encoder.
        arguments ([`ProbeArguments`]):
            What the user asked for.
        args ([`SSLTrainingArguments`]):
            The run; of several processes each measures its share.
    """
    share = {"rank": args.process_index, "world_size": args.world_size}
    evaluators: list[Evaluator] = [HeldOutLossEvaluator(data.held_out, views, **share)]
    probes = arguments.load(data.arguments.dataset)
    if probes is not None:
        pooling = arguments.probe_pooling or getattr(model.config, "pooling", None)
        evaluators.append(
            OnlineKnn(*probes, processor, pooling=pooling, named=arguments.named(data.arguments.dataset, *probes))
        )
    return evaluators
