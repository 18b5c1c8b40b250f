"""The flags about data that all modalities have."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.modality import modality
from ..data.stream import LANES
from ..errors import UserError
from ..training.arguments import SSLTrainingArguments


# Fewest and most, where a modality says nothing of it.
_SAMPLES_PER_BLOCK = (4, 256)


@dataclass
class DataArguments:
    r"""
    > Data

    Args:
        dataset (`str`, *optional*):
            Hub id, folder, file or glob; several with commas between them are mixed.
        dataset_config (`str`, *optional*):
            Configuration of a Hub data set.
        split (`str`, *optional*, defaults to `"train"`):
            Split to train on.
        eval_split (`str`, *optional*, defaults to `"auto"`):
            Split to measure on. auto takes validation where there is one, else holds out some of the training split.
        streaming (`bool`, *optional*, defaults to `True`):
            Read in place. false converts the data to Arrow first.
        held_out_fraction (`float`, *optional*, defaults to `0.01`):
            Share of the samples held out where there is no split for it (more of small data sets, up to 10 %).
        max_held_out (`int`, *optional*, defaults to `1000`):
            Most samples to measure on.
        max_bad_fraction (`float`, *optional*, defaults to `0.01`):
            Share of damaged samples above which the run stops.
    """

    dataset: str | None = None
    dataset_config: str | None = None
    split: str = "train"
    eval_split: str = "auto"
    streaming: bool = True
    held_out_fraction: float = 0.01
    max_held_out: int = 1000
    max_bad_fraction: float = 0.01

    def __post_init__(self):
        if not 0.0 < self.held_out_fraction < 1.0:
            raise UserError(f"`--held_out_fraction` is a share between 0 and 1, got {self.held_out_fraction}.")
        if not 0.0 <= self.max_bad_fraction <= 1.0:
            raise UserError(f"`--max_bad_fraction` is a share between 0 and 1, got {self.max_bad_fraction}.")
        if self.max_held_out < 1:
            raise UserError(f"`--max_held_out` must be at least 1, got {self.max_held_out}.")


def stream_options(args: SSLTrainingArguments, data: Any) -> dict[str, Any]:
    """What the stream of this process is made with, whatever its rows are: its place in the run, and what of the data
    is left out or may be damaged."""
    return {
        "seed": args.seed, "rank": args.process_index, "world_size": args.world_size, "lanes": args.lanes,
        "num_workers": args.dataloader_num_workers, "exclude": data.exclude,
        "max_bad_fraction": data.arguments.max_bad_fraction,
    }  # fmt: skip


def samples_a_block(args: SSLTrainingArguments, name: str, of_each: int = 1) -> float:
    """Samples in a block of a stream whose batches are of so many samples, of a modality.

    About a batch in the blocks of all lanes, so that a few workers have the next ones ready when a step ends. Where
    each sample that is read becomes several (`of_each`, as tiles of an image), a block has so many fewer.
    """
    lanes_a_process = (args.lanes or max(LANES, args.world_size)) / args.world_size
    fewest, most = modality(name).samples_per_block or _SAMPLES_PER_BLOCK
    samples = args.per_device_train_batch_size / lanes_a_process / of_each
    return float(np.clip(samples, fewest if of_each == 1 else 1, most))
