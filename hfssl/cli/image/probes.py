"""What the image recipes measure while they train."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from ...data.image.value_range import RangeOfSet
from ...data.image.views import Views
from ...data.labelled import LabelledData
from ...evaluation.evaluator import Evaluator
from ...evaluation.held_out_loss import HeldOutLossEvaluator
from ...evaluation.online_knn import OnlineKnn
from ...training.arguments import SSLTrainingArguments
from ..probes import ProbeArguments
from .data import ImageData


@dataclass
class ImageProbeArguments(ProbeArguments):
    r"""
    > Probes

    Args:
        views (`str`, *optional*, defaults to `"usual"`):
            auto chooses views by these labels: colours kept or taken away, larger crops, nothing mirrored are tried in
            short runs (a tenth of the length each), and what is better for k-NN is taken. What is stated stays. It
            cannot tell what pays in long runs only.
    """

    views: Literal["usual", "auto"] = "usual"


def image_evaluators(
    model: torch.nn.Module,
    data: ImageData,
    views: Views,
    processor: Any,
    arguments: ImageProbeArguments,
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
        arguments ([`ImageProbeArguments`]):
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


def share_value_range(train: LabelledData, test: LabelledData, stated: list[float] | None) -> None:
    """Let both splits have one range of values: what is stated, the encoder's, or that of the images of train."""
    train.images.value_range = test.images.value_range = RangeOfSet(train.images, stated)
