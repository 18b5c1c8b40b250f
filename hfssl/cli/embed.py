"""What `recipes/embed.py` takes: an encoder, and data of any modality, all of it, nothing held out."""

from dataclasses import dataclass
from typing import Literal

from ..data.mixtures import open_mixture
from ..data.sources import Source
from ..errors import UserError
from .labelled import check_columns
from .measuring import GivenEncoder


@dataclass
class Embed(GivenEncoder):
    r"""
    > Features

    Args:
        format (`str`, *optional*, defaults to `"parquet"`):
            parquet (features.parquet), npy (features.npy, and places.parquet beside it) or dataset (a folder that
            `datasets.load_from_disk` reads).
        report (`str`, *optional*):
            Of duplicates, outliers and clusters, separated by commas: what is nearly the same to the encoder, like
            nothing else, or a group of its own, as csv files beside the features, and pictures of images.
    """

    recipe = "embed"

    format: Literal["parquet", "npy", "dataset"] = "parquet"
    report: str | None = None


@dataclass
class WholeDataArguments:
    r"""
    > Data

    Args:
        dataset (`str`, *optional*):
            Hub id, folder, file or glob: texts (txt, jsonl, csv, parquet, arrow, `save_to_disk`), images or recordings
            (files, webdataset tars, parquet, arrow), as the encoder takes them. Several with commas between them are
            read one after another. Left out: the texts, images or recordings that come with hfssl.
        dataset_config (`str`, *optional*):
            Configuration of a Hub data set.
        split (`str`, *optional*, defaults to `"train"`):
            Split to read.
        text_column (`str`, *optional*):
            Column with the text. Left out, it is found by its type.
        image_column (`str`, *optional*):
            Column with the images. Left out, it is found by its type.
        audio_column (`str`, *optional*):
            Column with the recordings. Left out, it is found by its type.
        sample_by (`str`, *optional*, defaults to `"line"`):
            What a sample of a .txt file is: line, paragraph (blank lines between) or document (the whole file).
        streaming (`bool`, *optional*, defaults to `True`):
            Read in place. false converts the data to Arrow first.
        max_bad_fraction (`float`, *optional*, defaults to `0.01`):
            Share of damaged samples above which the run stops.
    """

    dataset: str | None = None
    dataset_config: str | None = None
    split: str = "train"
    text_column: str | None = None
    image_column: str | None = None
    audio_column: str | None = None
    sample_by: str = "line"
    streaming: bool = True
    max_bad_fraction: float = 0.01

    def __post_init__(self):
        if not 0.0 <= self.max_bad_fraction <= 1.0:
            raise UserError(f"`--max_bad_fraction` is a share between 0 and 1, got {self.max_bad_fraction}.")

    def open(self, modality: str) -> Source:
        """The data as samples of a modality."""
        columns = {"text": self.text_column, "image": self.image_column, "audio": self.audio_column}
        check_columns(columns, modality)
        return open_mixture(
            self.dataset, modality=modality, column=columns.get(modality), config=self.dataset_config,
            split=self.split, sample_by=self.sample_by, streaming=self.streaming,
        )  # fmt: skip
