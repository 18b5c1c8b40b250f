"""Zero-shot classification and retrieval on the command line: the flags, and what they name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from ...data.held_out import all_samples
from ...data.labelled import LabelledData, open_labelled
from ...data.multimodal.rows import pair_inputs
from ...data.sources import available_splits, open_source
from ...errors import UserError
from ...evaluation.image.features import resized_images
from ...evaluation.multimodal.embedders import StockPair
from ...evaluation.multimodal.pictures import draw_pairs
from ...evaluation.multimodal.retrieval import distinct
from ...evaluation.multimodal.scores import CUTS, retrieval_scores
from ...evaluation.probes import warn_of_seen
from ...evaluation.results import Result
from ..measuring import result_folder


# Of these the first that is there is measured on.
_SPLITS = ("test", "validation")


@dataclass
class ZeroShot:
    r"""
    > Zero-shot

    Args:
        model (`str`):
            Folder or Hub id of the two encoders, with tokenizer and image processor.
        tokenizer (`str`, *optional*):
            Folder or Hub id of their tokenizer, where it does not lie beside them.
        classes (`str`, *optional*):
            File with what the classes are called: a name a line in their order, or a JSON object from class to name or
            names. Left out, they are called as in the data.
        templates (`str`, *optional*):
            File with sentences, one a line, {} where a name stands. Left out: a photo of a {}, and of
            the embedded characters the name alone.
        batch_size (`int`, *optional*, defaults to `64`):
            Images or texts a forward pass.
        output_dir (`str`, *optional*):
            Where results and pictures go; outputs/zero_shot-<name of the model> when left out.
    """

    model: str
    tokenizer: str | None = None
    classes: str | None = None
    templates: str | None = None
    batch_size: int = 64
    output_dir: str | None = None

    @property
    def folder(self) -> Path:
        """Where results go."""
        return result_folder("zero_shot", self.model, self.output_dir)


@dataclass
class ZeroShotDataArguments:
    r"""
    > Data

    Args:
        dataset (`str`, *optional*):
            Labelled images: a Hub id, a folder with a folder for each class, parquet, arrow, or letters, characters or
            digits, which come with hfssl.
        pairs (`str`, *optional*):
            Images with captions, for retrieval both ways: as recipes/clip.py takes them.
        dataset_config (`str`, *optional*):
            Configuration of a data set on the Hub.
        split (`str`, *optional*, defaults to `"auto"`):
            Split to measure on. auto takes test or validation where there is one, else train.
        image_column (`str`, *optional*):
            Column of the images; found by its type when left out.
        label_column (`str`, *optional*):
            Column of the labels; found by its type and name when left out.
        caption_column (`str`, *optional*):
            Column of the captions, or several such as caption,caption_de; found by its type and name when left out.
        max_samples (`int`, *optional*, defaults to `5000`):
            Measure on so many at most.
    """

    dataset: str | None = None
    pairs: str | None = None
    dataset_config: str | None = None
    split: str = "auto"
    image_column: str | None = None
    label_column: str | None = None
    caption_column: str | None = None
    max_samples: int = 5000

    def __post_init__(self):
        if self.dataset is None and self.pairs is None:
            raise UserError("Pass labelled images as `--dataset`, or images with captions as `--pairs`, or both.")
        if self.max_samples < 1:
            raise UserError(f"`--max_samples` must be at least 1, got {self.max_samples}.")

    def split_of(self, dataset: str) -> str:
        """The split of a data set that is measured on."""
        if self.split != "auto":
            return self.split
        splits = available_splits(dataset, modality="image", config=self.dataset_config)
        return next((split for split in (*_SPLITS, *splits) if split in splits), "train")

    def labelled(self) -> LabelledData:
        """The labelled images."""
        return open_labelled(
            self.dataset, self.split_of(self.dataset), self.image_column, self.label_column,
            config=self.dataset_config, max_samples=self.max_samples,
        )  # fmt: skip

    def captioned(self) -> list[dict[str, Any]]:
        """The images with their captions."""
        source = open_source(
            self.pairs, inputs=pair_inputs("image,text", {"image": self.image_column, "text": self.caption_column}),
            config=self.dataset_config, split=self.split_of(self.pairs),
        )  # fmt: skip
        found = all_samples(source, self.max_samples)
        if len(found) < 2:
            raise UserError(f"{source.description} has {len(found)} whole pairs, and retrieval needs two at least.")
        return found


def random_pair(pair: StockPair) -> StockPair:
    """The same two encoders with new weights: what has learned nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(pair.model.config)
    return StockPair(model, pair.tokenizer, pair.image_processor, batch_size=pair.batch_size, device=pair.model.device)


def measure_retrieval(
    pair: StockPair, untrained: StockPair, data: ZeroShotDataArguments, assets: Path
) -> list[Result]:
    """Retrieval by two encoders and by the same with new weights, as records; draws pictures into `assets`."""
    images, texts, rows = distinct(data.captioned())
    warn_of_seen(pair.name, images, f"images of {data.pairs}", "--split")
    embeds = {each: (each.images(images), each.texts(texts)) for each in (pair, untrained)}
    scores, of_random = (retrieval_scores(*embeds[each], rows) for each in (pair, untrained))
    numbers, split = {"image": len(images), "text": len(texts)}, data.split_of(data.pairs)
    shown = resized_images(pair.image_processor, images[:50])
    draw_pairs(shown, texts, *_first(embeds[pair], rows, len(shown)), assets)
    found = []
    for metric, value in scores.items():
        beside = {"random_init": of_random[metric]}
        way, _, what = metric.rpartition("_r")
        if what in map(str, CUTS):
            beside["chance"] = min(int(what) / numbers[way.rpartition("_to_")[2]], 1.0)
        found.append(
            Result.from_scores(
                {0: value}, beside, protocol="retrieval", version=1, model=pair.name, task=data.pairs, split=split,
                metric=metric, num_train=0, num_eval=len(rows), greater_is_better=not metric.endswith("rank"),
                hyperparameters={"images": len(images), "texts": len(texts)},
            )
        )  # fmt: skip
    return found


def _first(
    embeds: tuple[torch.Tensor, torch.Tensor], rows: np.ndarray, number: int
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Embeddings of the images that are shown and of all texts, and which of them belong together."""
    return embeds[0][:number], embeds[1], rows[rows[:, 0] < number]
