"""The loss of a method on held-out recordings: always the same parts of them hidden."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist

from ...data.audio.collate import batches_by_length
from ...data.held_out import content_keys
from ...data.sources import identity
from ...data.stream import Block, Rows
from ...errors import UserError
from ...functional import keyed
from ...functional.keyed import Use
from ...losses import code_perplexity
from ...modeling.method import LossContext
from ..held_out_loss import MOST_SAMPLES, HeldOutLossEvaluator
from .clips import Kept


# Recordings that are decoded at once to know how long they are.
_AT_ONCE = 16


class AudioLossEvaluator(HeldOutLossEvaluator):
    r"""
    Mean loss over held-out recordings. Of a method with several terms it is the one that has a level of chance; what
    a term is a mean of (hidden frames) counts, not the recordings.

    Args:
        recordings (`Sequence[bytes]`):
            Encoded held-out recordings, of which the first 256 are taken.
        rows, collate (`Callable`):
            What the run's stream makes of a block, and of some rows. What is random about a recording depends on the
            recording only.
        model ([`~hfssl.modeling.base.SSLPreTrainedModel`]):
            What is measured, to know the terms of its loss.
        batch_seconds (`float`, *optional*, defaults to `32.0`):
            Sound in a batch, padding included.
        rank, world_size (`int`, *optional*):
            This process measures its share of the batches, and the sums are added up.
    """

    samples: ClassVar[str] = "recordings"

    def __init__(
        self,
        recordings: Sequence[bytes],
        rows: Callable,
        collate: Callable,
        model: torch.nn.Module,
        *,
        batch_seconds: float = 32.0,
        rank: int = 0,
        world_size: int = 1,
    ):
        recordings = list(recordings)[:MOST_SAMPLES]
        self.measured_on = frozenset(map(identity, recordings))
        keys = content_keys(recordings)
        self._recordings, self._rows = recordings, rows
        self._keys = keyed.key(Use.HELD_OUT_SAMPLE, keys)
        places, lengths, reason = [], [], None  # windows by recording and number, and their seconds
        for first in range(0, len(recordings), _AT_ONCE):
            made = self._made(range(first, min(first + _AT_ONCE, len(recordings))))
            places += [(first + int(place[2]), int(place[3])) for place in made.places]
            lengths += np.asarray(made.num_units, np.float64).tolist()
            reason = reason or next((why for _, why in made.bad), None)
        if not places:
            reason = reason or "all of them are too short or silent"
            raise UserError(
                f"Nothing can be measured on any of {len(recordings)} held-out recordings: {reason}. Pass other data."
            )
        self.num_samples, self.collate, self.world_size = len(recordings), collate, world_size
        self.batch_seconds = batch_seconds
        batches = batches_by_length(np.array(lengths), batch_seconds)
        self.batch_size = max(map(len, batches))
        self.batches = [[places[row] for row in batch] for batch in batches[rank::world_size]]
        self._columns = Kept(self._columns_of, _num_bytes)
        levels = model.method.chance(model.config, LossContext(self.batch_size))
        terms = [name.removeprefix("loss_") for name in levels if name.startswith("loss_")]
        self.loss_term = terms[0] if terms else None
        self.target_entropy: float | None = None  # known once it was measured

    def batch(self, device: torch.device | str, index: int = 0) -> dict[str, torch.Tensor]:
        return {name: tensor.to(device) for name, tensor in self.collate(dict(self._columns(index))).items()}

    def _made(self, recordings: Sequence[int]) -> Rows:
        """Rows of some recordings, by their numbers. Each depends on its recording only."""
        samples = [self._recordings[number] for number in recordings]
        return self._rows(Block({"audio": samples}, self._keys[list(recordings)], key=0))

    def _columns_of(self, index: int) -> dict[str, Any]:
        """The columns of a batch."""
        numbers = sorted({number for number, _ in self.batches[index]})
        made = self._made(numbers)
        row_of = {(numbers[place[2]], int(place[3])): row for row, place in enumerate(made.places)}
        rows = [row_of[place] for place in self.batches[index]]
        return {name: _take(column, rows) for name, column in made.columns.items()}

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """The loss of a pre-training model in evaluation mode, as it is; of one that predicts codes or units also
        `target_perplexity`, how many of them held-out frames have, as many as of equal frequency."""
        device = next(model.parameters()).device
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        shape = getattr(model, "num_targets", (0, 0))
        counts = torch.zeros(shape, dtype=torch.float64, device=device)
        with torch.no_grad():
            for index in range(len(self.batches)):
                batch = self.batch(device, index)
                items, outputs = model.loss_items(batch), model(**batch)
                if self.loss_term is not None:
                    items = items[self.loss_term] if isinstance(items, dict) else items
                loss = outputs.loss if self.loss_term is None else outputs.loss_terms[self.loss_term]
                if isinstance(items, dict):
                    items = None
                count = float(len(next(iter(batch.values()))) if items is None else items)
                if counts.numel():
                    numbers = model.targets_of(outputs).T
                    counts.scatter_add_(1, numbers, torch.ones_like(numbers, dtype=counts.dtype))
                sums += torch.stack([loss.double() * count, sums.new_tensor(count)])
        if self.world_size > 1:
            dist.all_reduce(sums)
            if counts.numel():
                dist.all_reduce(counts)
        loss, count = sums.tolist()
        if not counts.numel():
            return {"loss": loss / max(count, 1.0)}
        in_use = code_perplexity(counts[None])
        self.target_entropy = (in_use.log() + _too_little(counts)).mean().item()
        # codes of several books are one target together
        return {"loss": loss / max(count, 1.0), "target_perplexity": in_use.prod().item()}

    def loss_context(self, model: torch.nn.Module) -> LossContext:
        return LossContext(self.batch_size, target_entropy=self.target_entropy)

    def get_config_dict(self) -> dict[str, Any]:
        return {"recordings": self.num_samples, "batch_seconds": self.batch_seconds, "term": self.loss_term}


def _too_little(counts: torch.Tensor) -> torch.Tensor:
    """By what the entropy of few frames is too low, of each book, to the first order in their number (Miller, 1955):
    with as many frames as codes it would pass for that of half of the codes."""
    return ((counts > 0).sum(1) - 1) / (2 * counts.sum(1)).clamp(min=1.0)


def _num_bytes(columns: dict[str, Any]) -> int:
    return sum(np.asarray(row).nbytes for column in columns.values() for row in column)


def _take(column: Any, rows: list[int]) -> Any:
    return column[rows] if isinstance(column, np.ndarray) else [column[row] for row in rows]
