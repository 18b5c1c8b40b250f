"""Probes by name: the table at the end of a recipe, and k-NN while it trains."""

import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from .. import random as keyed
from ..errors import UserError
from ..pooling import check_pooling
from .evaluator import EvaluationError, Evaluator
from .features import encode, normalized, probe_features, resized_images
from .few_shot import FewShotEvaluator
from .finetune import FinetuneEvaluator, FinetuneSettings
from .frozen import RAW_INPUT, FrozenEvaluator, aligned_labels, classification_scores, process_state
from .held_out_loss import HeldOutLossEvaluator
from .knn import KnnEvaluator, knn_predict
from .label_efficiency import LabelEfficiencyEvaluator
from .linear_probe import LinearProbeEvaluator
from .results import Result, format_table, write_results
from .vision_encoder import evaluating


if TYPE_CHECKING:
    from ..data.image_data import ImageData
    from ..data.labelled import LabelledImages
    from ..data.views import Views
    from ..training_args import SSLTrainingArguments

logger = logging.getLogger(__name__)

PROTOCOLS: dict[str, type[Evaluator]] = {
    "knn": KnnEvaluator,
    "linear": LinearProbeEvaluator,
    "few_shot": FewShotEvaluator,
    "label_efficiency": LabelEfficiencyEvaluator,
    "finetune": FinetuneEvaluator,
}
# What `--probe_dataset` calls the images that come with hfssl.
EMBEDDED = "embedded"


@dataclass
class ProbeArguments:
    r"""
    > Probes

    Args:
        probe_dataset (`str`, *optional*):
            Labelled images for k-NN during the run and for the table at its end, as `--dataset` names them; embedded
            for the digits that come with hfssl, none for no probes. Left out, it is the embedded set in runs on it.
        probe_split (`str`, *optional*, defaults to `"train"`):
            Split that probes learn from.
        probe_test_split (`str`, *optional*, defaults to `"auto"`):
            Split that they are measured on. auto takes test or validation where there is one, else holds out a fifth
            of each class.
        probe_label_column (`str`, *optional*):
            Column of the labels; found by its type when left out.
        probe_max_samples (`int`, *optional*, defaults to `20000`):
            Use so many images of each split at most.
        probe_pooling (`str`, *optional*):
            cls, mean, cls+mean or last4. Left out: the feature that the method projects, or for MAE what fits the
            encoder.
    """

    probe_dataset: str | None = None
    probe_split: str = "train"
    probe_test_split: str = "auto"
    probe_label_column: str | None = None
    probe_max_samples: int | None = 20_000
    probe_pooling: str | None = None

    def load(self, dataset: str | None) -> "tuple[LabelledImages, LabelledImages] | None":
        """Both splits, or `None` where nothing is to be probed; `dataset` is what the run trains on."""
        name = self.probe_dataset or (EMBEDDED if dataset is None else "none")
        if name == "none":
            return None
        flags = ("dataset", "split", "test_split", "label_column")
        with _named_flags({flag: f"probe_{flag}" for flag in flags}):
            return load_splits(
                name, self.probe_split, self.probe_test_split, label_column=self.probe_label_column,
                max_train_samples=self.probe_max_samples, max_test_samples=self.probe_max_samples,
            )  # fmt: skip


@dataclass
class LabelledDataArguments:
    r"""
    > Data

    Args:
        dataset (`str`, *optional*, defaults to `"embedded"`):
            Labelled images: a Hub id, a folder with a folder for each class, parquet or arrow files; embedded for
            scikit-learn's digits.
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
    """

    dataset: str = EMBEDDED
    dataset_config: str | None = None
    split: str = "train"
    test_split: str = "auto"
    image_column: str | None = None
    label_column: str | None = None
    max_train_samples: int | None = None
    max_test_samples: int | None = None

    def load(self) -> "tuple[LabelledImages, LabelledImages]":
        """Both splits."""
        return load_splits(
            self.dataset, self.split, self.test_split, config=self.dataset_config, image_column=self.image_column,
            label_column=self.label_column, max_train_samples=self.max_train_samples,
            max_test_samples=self.max_test_samples,
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
) -> "tuple[LabelledImages, LabelledImages]":
    """The labelled images to learn from and those to measure on, checked to be of the same classes."""
    from ..data.labelled import hold_out, open_labelled
    from ..data.sources import available_splits

    name = None if dataset == EMBEDDED else dataset
    if split == test_split:
        raise EvaluationError(f'Both splits are "{split}": what a probe learned from says nothing of what it knows.')
    columns = {"image_column": image_column, "label_column": label_column, "config": config}
    train = open_labelled(name, split, max_samples=max_train_samples, **columns)
    if test_split == "auto":
        splits = available_splits(name, modality="image", config=config)
        usual = ("test", "validation", "dev", "valid", "val")
        test_split = next((other for other in usual if other in splits and other != split), None)
    if test_split is None:
        train, test = hold_out(train)
        logger.info("There is no split to measure on: %s images of %s are held out.", f"{len(test):,}", train.name)
    else:
        with _named_flags({"split": "test_split"}):
            test = open_labelled(name, test_split, max_samples=max_test_samples, **columns)
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


def parse_protocols(text: str | Sequence[str]) -> list[str]:
    """Names of protocols from `"a,b,c"`, or from a sequence of them."""
    names = text.split(",") if isinstance(text, str) else text
    names = [name.strip().lower().replace("-", "_") for name in names if name.strip()]
    for name in names:
        if name not in PROTOCOLS:
            nearest = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0.5)
            hint = f' Did you mean "{nearest[0]}"?' if nearest else ""
            raise EvaluationError(f'There is no protocol "{name}"; there are {", ".join(PROTOCOLS)}.{hint}')
    if not names:
        raise EvaluationError(f"No protocol is named; there are {', '.join(PROTOCOLS)}.")
    return list(dict.fromkeys(names))


def probe_table(
    encoder: str | Path | PreTrainedModel,
    processor: Any,
    train: "LabelledImages",
    test: "LabelledImages",
    protocols: str | Sequence[str] = ("knn", "linear"),
    *,
    output_dir: str | Path | None = None,
    pooling: str | None = None,
    batch_size: int = 256,
    precision: str = "fp32",
    settings: FinetuneSettings | None = None,
    pictures: bool = True,
    name: str | None = None,
    command: str | None = None,
) -> list[Result]:
    r"""
    Measure an encoder by several protocols beside its baselines, and print a table.

    Args:
        encoder (`str`, `Path` or [`~transformers.PreTrainedModel`]):
            Folder or Hub id of a stock encoder, or a model.
        processor (*optional*):
            Image processor; that of the folder when `None`.
        train, test ([`~hfssl.data.labelled.LabelledImages`]):
            Labelled images to learn from and to measure on.
        protocols (`str` or `Sequence[str]`, *optional*, defaults to `("knn", "linear")`):
            knn, linear, few_shot, label_efficiency, finetune.
        output_dir (`str` or `Path`, *optional*):
            Folder for `results.json`, for pictures in `assets/` and for features in `features/`.
        pooling (`str`, *optional*):
            cls, mean, cls+mean or last4; what fits the encoder when left out.
        batch_size (`int`, *optional*, defaults to `256`):
            Images a forward pass.
        precision (`str`, *optional*, defaults to `"fp32"`):
            Autocast to bf16 or not.
        settings ([`FinetuneSettings`], *optional*):
            Of protocols that train.
        pictures (`bool`, *optional*, defaults to `True`):
            Draw nearest neighbours, a map of the features and what the patches tell apart.
        name (`str`, *optional*):
            Name of the encoder in the records, where it is not its folder.
        command (`str`, *optional*):
            The command to write beside the figures; that of this process when left out.

    Returns:
        `list[Result]`: the same in all processes.
    """
    names = parse_protocols(protocols)
    state = process_state()
    output_dir = Path(output_dir) if output_dir is not None else None
    settings = settings or FinetuneSettings()
    made = {}
    # all of them at once: what is wrong shows before hours of work, not after
    for protocol in names:
        kind = PROTOCOLS[protocol]
        options = {"pooling": pooling, "batch_size": batch_size} if kind is not FinetuneEvaluator else {}
        options |= {"settings": settings} if not issubclass(kind, FrozenEvaluator) else {}
        made[protocol] = kind(train, test, precision=precision, **options)
    features = None
    if names != ["finetune"]:
        features = probe_features(
            encoder, processor, train, test, pooling=pooling, batch_size=batch_size, precision=precision,
            cache_dir=output_dir / "features" if output_dir is not None else None,
        )  # fmt: skip
        features.model = name or features.model
    results: list[Result] = []
    for evaluator in made.values():
        if isinstance(evaluator, FrozenEvaluator):
            found = evaluator.results(features, command)
        else:
            options = {"features": features} if isinstance(evaluator, LabelEfficiencyEvaluator) else {}
            found = evaluator(encoder, processor, output_dir=output_dir, command=command, **options)
            found = [replace(result, model=name or result.model) for result in found]
        results += found
        if output_dir is not None and state.is_main_process:
            write_results(output_dir / "results.json", found)
    if pictures and features is not None and output_dir is not None and state.is_main_process:
        from .pictures import draw_pictures

        draw_pictures(encoder, processor, train, test, features, output_dir / "assets")
    state.print("\n" + probe_lines(results, features.settings["pooling"] if features else None))
    state.wait_for_everyone()
    return results


def probe_lines(results: Sequence[Result], pooling: str | None = None) -> str:
    """The table of some probes: a line for each figure, with what sets it apart."""
    head = f"Probes on {results[0].task}, {results[0].num_eval:,} images"
    rows = [replace(result, task=_title(result)) for result in results]
    return head + (f", pooling {pooling}" if pooling else "") + "\n\n" + format_table(rows)


def _title(result: Result) -> str:
    chosen = result.hyperparameters
    title = PROTOCOLS[result.protocol].title
    if result.protocol == "label_efficiency":
        return f"{chosen['method']}, {100 * chosen['fraction']:g} % of labels"
    if "k" in chosen:
        return f"{title}, k = {chosen['k']}" + (" (all)" if "neighbours" in result.details else "")
    return title + (f", {chosen['shots']} a class" if "shots" in chosen else "")


def image_evaluators(
    model: torch.nn.Module,
    data: "ImageData",
    views: "Views",
    processor: Any,
    arguments: ProbeArguments,
    args: "SSLTrainingArguments",
) -> list[Evaluator]:
    """What the image recipes measure while they train: the held-out loss, and k-NN where there are labelled images.

    Args:
        model ([`~hfssl.vision_modeling.SSLVisionModel`]):
            What is trained: the feature that it projects is the one that is probed, where the user asks for no other.
        data ([`~hfssl.data.image_data.ImageData`]), views ([`~hfssl.data.views.Views`]):
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
        evaluators.append(OnlineKnn(*probes, processor, pooling=pooling))
    return evaluators


class OnlineKnn(Evaluator):
    r"""
    k-NN accuracy of the encoder while it trains: the same images each time, resized once and kept as `uint8`.

    Of a run in several processes, each makes the features of its share; the figure is the same in all of them.

    Args:
        train, test ([`~hfssl.data.labelled.LabelledImages`]):
            Labelled images that vote, and that are classified.
        processor:
            Image processor that goes with the encoder.
        pooling (`str`, *optional*):
            See [`~hfssl.pooling.pool_features`]; what fits the architecture when left out.
        k (`int`, *optional*, defaults to `20`):
            Neighbours.
        temperature (`float`, *optional*, defaults to `0.07`):
            Of the votes, as in the protocol "knn".
        max_train_samples, max_test_samples (`int`, *optional*, default to `5000` and `1000`):
            A fixed sample of so many images, of each class its share.
        batch_size (`int`, *optional*, defaults to `256`):
            Images a forward pass.
    """

    protocol: ClassVar[str] = "online_knn"
    version: ClassVar[int] = 1
    primary_metric = "knn_accuracy"

    def __init__(
        self,
        train: "LabelledImages",
        test: "LabelledImages",
        processor: Any,
        *,
        pooling: str | None = None,
        k: int = 20,
        temperature: float = 0.07,
        max_train_samples: int = 5000,
        max_test_samples: int = 1000,
        batch_size: int = 256,
    ):
        self.train, self.test, self.processor, self.pooling = train, test, processor, pooling
        self.k, self.temperature, self.batch_size = k, temperature, batch_size
        train_y, test_y = aligned_labels(train, test)
        train_rows, test_rows = stratified(train_y, max_train_samples), stratified(test_y, max_test_samples)
        self.train_y, self.test_y = train_y[train_rows], test_y[test_rows]
        pixels = [
            resized_images(processor, train.images, train_rows),
            resized_images(processor, test.images, test_rows),
        ]
        self.pixels = torch.cat(pixels)

    @property
    def baselines(self) -> dict[str, float]:
        """Accuracy of raw pixels by the same votes, and of the most frequent class."""
        pixels = torch.nn.functional.interpolate(self.pixels.float(), (32, 32), mode="area").flatten(1) / 255
        majority = np.full_like(self.test_y, np.bincount(self.train_y).argmax())
        return {RAW_INPUT: self._accuracy(pixels), "majority": float(np.mean(majority == self.test_y))}

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """`knn_accuracy` of the encoder of a pre-training model; nothing of the model changes."""
        encoder = model.encoder
        pooling = check_pooling(encoder.config, self.pooling)
        device = next(encoder.parameters()).device
        size = dist.get_world_size() if dist.is_initialized() else 1
        rank = dist.get_rank() if size > 1 else 0
        starts = range(0, len(self.pixels), self.batch_size)
        parts = {}
        with evaluating(encoder):
            for start in starts[rank::size]:
                pixel_values = normalized(self.processor, self.pixels[start : start + self.batch_size], device)
                parts[start] = encode(encoder, pixel_values, pooling).float().cpu()
        if size > 1:
            shares: list[Any] = [None] * size
            dist.all_gather_object(shares, parts)
            parts = {start: part for share in shares for start, part in share.items()}
        # a run that diverges is stopped by its loss, not here
        features = torch.cat([parts[start] for start in starts]).nan_to_num()
        return {"knn_accuracy": self._accuracy(features, device)}

    def __call__(self, encoder, processor=None, *, output_dir=None, command=None) -> list[Result]:
        """The protocol "knn" on all images."""
        evaluator = KnnEvaluator(self.train, self.test, pooling=self.pooling, batch_size=self.batch_size)
        return evaluator(encoder, processor or self.processor, output_dir=output_dir, command=command)

    def get_config_dict(self) -> dict[str, Any]:
        return {
            "train": self.train.name, "test": self.test.name, "num_train": len(self.train_y),
            "num_test": len(self.test_y), "k": self.k, "temperature": self.temperature, "pooling": self.pooling,
        }  # fmt: skip

    def _accuracy(self, features: torch.Tensor, device: torch.device | str = "cpu") -> float:
        train_x, test_x = features.split([len(self.train_y), len(self.test_y)])
        predictions = knn_predict(train_x, self.train_y, test_x, self.k, self.temperature, device=device)[self.k]
        return classification_scores(predictions, self.test_y)["accuracy"]


def stratified(labels: np.ndarray, max_rows: int, seed: int = 0) -> np.ndarray:
    """At most `max_rows` rows, of each class its share and at least one, in ascending order."""
    if len(labels) <= max_rows:
        return np.arange(len(labels))
    order = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        order[rows[keyed.permutation(len(rows), seed, 15, int(label))]] = np.arange(len(rows)) / len(rows)
    return np.sort(np.argsort(order, kind="stable")[:max_rows])
