"""Zero-shot classification: images are given the class whose name, in a sentence, is nearest."""

from typing import Any, ClassVar

import numpy as np
import torch

from ...data.labelled import LabelledData
from ...data.sources import identity
from ..evaluator import Evaluator
from ..image.features import measured_images
from ..results import Result
from .embedders import PairEmbedder, TowerPair
from .prompts import Prompts
from .scores import class_embeddings, zero_shot_scores


def zero_shot(embedder: PairEmbedder, data: LabelledData, prompts: Prompts) -> dict[str, float]:
    """`zero_shot_top1` and `zero_shot_top5` of two encoders on labelled images, see
    [`~hfssl.evaluation.multimodal.scores.zero_shot_scores`]."""
    classes = class_embeddings(embedder.texts(prompts.texts), prompts.class_of, len(prompts.names))
    return _named(zero_shot_scores(embedder.images(data.samples), classes, data.labels))


def _named(scores: dict[str, float]) -> dict[str, float]:
    return {f"zero_shot_{name}": value for name, value in scores.items()}


class ZeroShotEvaluator(Evaluator):
    r"""
    Zero-shot accuracy, while two encoders train and afterwards: the same images each time, resized once.

    Args:
        data ([`~hfssl.data.labelled.LabelledData`]):
            Labelled images.
        prompts ([`~hfssl.evaluation.multimodal.prompts.Prompts`]):
            What the classes are called.
        image_processor, captions (*optional*):
            See [`~hfssl.evaluation.multimodal.embedders.TowerPair`]: of a method that trains.
        batch_size (`int`, *optional*, defaults to `64`):
            Samples a forward pass.
        split (`str`, *optional*, defaults to `"test"`):
            Which split of the data set these are, for the records.
    """

    protocol: ClassVar[str] = "zero_shot"
    version: ClassVar[int] = 1
    primary_metric = "zero_shot_top1"
    task: ClassVar[str] = "zero-shot"

    def __init__(
        self, data: LabelledData, prompts: Prompts, image_processor: Any = None, captions: Any = None,
        batch_size: int = 64, split: str = "test",
    ):  # fmt: skip
        self.data, self.prompts, self.batch_size, self.split = data, prompts, batch_size, split
        self.image_processor, self.captions = image_processor, captions
        self.pixels = None if image_processor is None else measured_images(image_processor, data.samples)
        self.measured_on = frozenset(map(identity, data.samples)) if image_processor is not None else frozenset()

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("zero_shot_top1", *(["zero_shot_top5"] if len(self.prompts.names) > 5 else []))

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """The figures of a pre-training model; nothing of it changes."""
        pair = TowerPair(model, self.image_processor, self.captions, self.batch_size)
        classes = class_embeddings(pair.texts(self.prompts.texts), self.prompts.class_of, len(self.prompts.names))
        scores = zero_shot_scores(pair.pixels(self.pixels).nan_to_num(), classes.nan_to_num(), self.data.labels)
        return _named(scores)

    def __call__(self, encoder, processor=None, *, output_dir=None, command=None) -> list[Result]:
        """The records of a pair of encoders ([`~hfssl.evaluation.multimodal.embedders.PairEmbedder`])."""
        return self.results(zero_shot(encoder, self.data, self.prompts), model=encoder.name)

    def results(self, measured: dict[str, float], model: str, **baselines: dict[str, float]) -> list[Result]:
        """The records of what was measured, beside baselines given by name, and the most frequent class."""
        most_frequent = float(np.bincount(self.data.labels).max() / len(self.data.labels))
        return [
            Result.from_scores(
                {0: value},
                {name: figures[metric] for name, figures in baselines.items() if metric in figures}
                | ({"majority": most_frequent} if metric == "zero_shot_top1" else {}),
                protocol=self.protocol, version=self.version, model=model, task=self.data.name, split=self.split,
                metric=metric, num_train=0, num_eval=len(self.data), hyperparameters=self.get_config_dict(),
            )
            for metric, value in measured.items()
        ]  # fmt: skip

    def get_config_dict(self) -> dict[str, Any]:
        return {"classes": len(self.prompts.names), "templates": list(self.prompts.templates)}
