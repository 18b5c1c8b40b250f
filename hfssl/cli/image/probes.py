"""What the image recipes share about probes: the flags, the labelled images that they name, and the evaluators."""

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from ...data.image.value_range import RangeOfSet
from ...data.image.views import Views
from ...data.labelled import LabelledData
from ...data.modality import modality
from ...evaluation.evaluator import Evaluator
from ...evaluation.held_out_loss import HeldOutLossEvaluator
from ...evaluation.online_knn import OnlineKnn
from ...training.arguments import SSLTrainingArguments
from ..labelled import LabelledDataArguments, load_splits, named_flags
from .data import ImageData


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
        views (`str`, *optional*, defaults to `"usual"`):
            auto chooses views by these labels: colours kept or taken away, larger crops, nothing mirrored are tried in
            short runs (a tenth of the length each), and what is better for k-NN is taken. What is stated stays.
    """

    probe_dataset: str = "auto"
    probe_split: str = "train"
    probe_test_split: str = "auto"
    probe_label_column: str | None = None
    probe_max_samples: int | None = 3_000
    probe_pooling: str | None = None
    views: Literal["usual", "auto"] = "usual"

    def load(self, dataset: str | None) -> tuple[LabelledData, LabelledData] | None:
        """Both splits, or `None` where nothing is to be probed; `dataset` is what the run trains on."""
        name = self.probe_dataset
        if name == "auto":
            embedded = modality("image").embedded_set(dataset)
            name = embedded.name if embedded else "none"
        if name == "none":
            return None
        flags = ("dataset", "split", "test_split", "label_column")
        with named_flags({flag: f"probe_{flag}" for flag in flags}):
            return load_splits(
                name, self.probe_split, self.probe_test_split, label_column=self.probe_label_column,
                max_train_samples=self.probe_max_samples, max_test_samples=self.probe_max_samples,
            )  # fmt: skip

    def named(self, dataset: str | None, *splits: LabelledData) -> dict[str, Any]:
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


def share_value_range(train: LabelledData, test: LabelledData, stated: tuple[float, float] | None) -> None:
    """Let both splits have one range of values: what is stated, the encoder's, or that of the images of train."""
    train.images.value_range = test.images.value_range = RangeOfSet(train.images, stated)
