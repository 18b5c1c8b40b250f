"""A stream over the rows of a batch of a contract: any method trains on it as a run does."""

import numpy as np
import torch
from contract import contract

from hfssl import ExactStream
from hfssl.data.sources import MemorySource
from hfssl.data.stream import Rows


class Numbered:
    """Makes of the sample "7" row 7 of a batch of the contract."""

    def __init__(self, batch):
        self.batch = batch

    def __call__(self, block):
        [samples] = block.columns.values()
        rows = [int(sample) for sample in samples]
        columns = {name: values[rows].numpy() for name, values in self.batch.items()}
        return Rows(columns, np.ones(len(rows), dtype=np.int64), places=block.places)


def collate(columns):
    return {name: torch.from_numpy(values) for name, values in columns.items()}


def numbered_stream(method: str, number: int = 18, batch_size: int = 4, seed: int = 5) -> ExactStream:
    """Few rows, so that a pass ends within a short run; a step lies in two blocks."""
    torch.manual_seed(1)
    transform = Numbered(contract(method).batch(number))
    source = MemorySource([f"{i:03d}" for i in range(number)], name="numbers", piece_bytes=9)
    return ExactStream(source, transform, collate, batch_size, seed=seed, block_bytes=18)
