"""Retrieval on held-out pairs, and their loss, while two encoders train and afterwards."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist

from ...data.blocks import take_rows
from ...data.caption.captions import texts_of
from ...data.held_out import content_keys
from ...data.multimodal.rows import PairRows
from ...data.sources import identity
from ...data.stream import Block
from ...errors import UserError
from ...functional import keyed
from ...functional.keyed import Use
from ...modeling.base import evaluating
from ...modeling.method import LossContext
from ..evaluator import Evaluator, name_of
from ..results import Result
from .scores import CUTS, retrieval_scores


def distinct(pairs: Sequence[dict[str, Any]]) -> tuple[list[bytes], list[str], np.ndarray]:
    """The images of some pairs and their texts, each once, and which of them belong together."""
    images: dict[Any, int] = {}
    samples: list[bytes] = []
    texts: dict[str, int] = {}
    rows = []
    for pair in pairs:
        image = images.setdefault(identity(pair["image"]), len(images))
        if image == len(samples):
            samples.append(pair["image"])
        rows += [(image, texts.setdefault(text, len(texts))) for text in texts_of(pair["text"])]
    return samples, list(texts), np.array(sorted(set(rows)), np.int64)


class RetrievalEvaluator(Evaluator):
    r"""
    Loss and retrieval of a method on held-out pairs: the same of them each time, prepared once as in training.

    Of several captions one is taken, and pairs of equal content on a side belong to each other.

    Args:
        pairs (`Sequence[dict[str, Any]]`):
            Held-out pairs, by the names of their sides.
        rows ([`~hfssl.data.multimodal.rows.PairRows`]):
            Of the run. What is random about a pair depends on the pair only.
        contents (`frozenset`, *optional*):
            Of the pairs, what the stream leaves out, see [`~hfssl.data.sources.base.Source.held_out_by`].
        batch_size (`int`, *optional*, defaults to `64`):
            Pairs a forward pass.
        rank, world_size (`int`, *optional*):
            This process embeds its share of the batches.
    """

    protocol: ClassVar[str] = "retrieval"
    version: ClassVar[int] = 1
    greater_is_better: ClassVar[bool] = True
    task: ClassVar[str] = "held-out pairs"

    def __init__(
        self,
        pairs: Sequence[dict[str, Any]],
        rows: PairRows,
        *,
        contents: frozenset = frozenset(),
        batch_size: int = 64,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.names = tuple(rows.sides)
        self.primary_metric = f"{self.names[0]}_to_{self.names[1]}_r1"
        self.measured_on, self.collate = contents, rows.collator
        keys = keyed.key(Use.HELD_OUT_SAMPLE, content_keys([tuple(sorted(pair.items())) for pair in pairs]))
        made = rows(Block({name: [pair[name] for pair in pairs] for name in self.names}, keys, key=0))
        if len(made) < 2:
            reason = f" One of them: {made.bad[0][1]}." if made.bad else ""
            raise UserError(
                f"{len(made)} of {len(pairs)} held-out pairs can be used, and two at least are needed.{reason} Pass "
                "more pairs, a larger `--held_out_fraction`, or an `--eval_split`."
            )
        self.num_samples = len(made)
        self.batch_size = min(batch_size, len(made))
        # even ones, none of which is a pair alone: it would have nothing to be compared with
        cuts = np.array_split(np.arange(len(made)), min(-(-len(made) // batch_size), len(made) // 2))
        self.batches = [{name: take_rows(column, cut) for name, column in made.columns.items()} for cut in cuts]
        self.rank, self.world_size = rank, world_size
        contents_of = [made.columns[f"{name}_content"] for name in self.names]
        self._first, self._rows = zip(*(_each_once(keys) for keys in contents_of), strict=True)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The figures of a measurement."""
        one, other = self.names
        ways = (f"{one}_to_{other}", f"{other}_to_{one}")
        return ("loss", *(f"{way}_{what}" for way in ways for what in (*(f"r{cut}" for cut in CUTS), "median_rank")))

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """The figures of a pre-training model; nothing of it changes."""
        loss, embeddings = self._embed(model)
        first, second = (
            torch.cat([part[side] for part in embeddings])[chosen].nan_to_num()
            for side, chosen in enumerate(self._first)
        )
        pairs = np.unique(np.stack(self._rows, axis=1), axis=0)
        return {"loss": loss} | retrieval_scores(first, second, pairs, self.names)

    def _embed(self, model: torch.nn.Module) -> tuple[float, list[tuple[torch.Tensor, torch.Tensor]]]:
        """The mean loss, and the embeddings of both sides, batch by batch."""
        device = next(model.parameters()).device
        collate, parts = self.collate(device), {}
        with evaluating(model):
            for i in range(self.rank, len(self.batches), self.world_size):
                found = model(**{name: values.to(device) for name, values in collate(self.batches[i]).items()})
                parts[i] = found.loss.item(), (found.first_embeds.float().cpu(), found.second_embeds.float().cpu())
        if self.world_size > 1:
            shares: list[Any] = [None] * self.world_size
            dist.all_gather_object(shares, parts)
            parts = {i: part for share in shares for i, part in share.items()}
        losses, embeddings = zip(*(parts[i] for i in range(len(self.batches))), strict=True)
        return float(np.average(losses, weights=[len(first) for first, _ in embeddings])), list(embeddings)

    def loss_context(self, model: torch.nn.Module) -> LossContext:
        # the loss is a mean over pairs, and its chance a logarithm of what each is compared with
        sizes = np.array([len(next(iter(batch.values()))) for batch in self.batches])
        return LossContext(float(np.exp(np.average(np.log(sizes), weights=sizes))))

    def __call__(self, encoder, processor=None, *, output_dir=None, command=None) -> list[Result]:
        """The records of a pre-training model."""
        return self.results(self.measure(encoder.eval()), model=name_of(encoder))

    def results(self, measured: dict[str, float], model: str, **baselines: dict[str, float]) -> list[Result]:
        """The records of what was measured, beside baselines given by name, and chance."""
        numbers = dict(zip(self.names, map(len, self._first), strict=True))
        found = []
        for metric, value in measured.items():
            beside = {name: figures[metric] for name, figures in baselines.items() if metric in figures}
            way, _, what = metric.rpartition("_r")
            if what.isdigit() and "chance" not in beside:
                beside["chance"] = min(int(what) / numbers[way.rpartition("_to_")[2]], 1.0)
            found.append(
                Result.from_scores(
                    {0: value}, beside, protocol=self.protocol, version=self.version, model=model, task=self.task,
                    split="held out", metric=metric, num_train=0, num_eval=self.num_samples,
                    greater_is_better=metric != "loss" and not metric.endswith("median_rank"),
                    hyperparameters=self.get_config_dict(),
                )
            )  # fmt: skip
        return found

    def get_config_dict(self) -> dict[str, Any]:
        return {"pairs": self.num_samples, "batch_size": self.batch_size}


def _each_once(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each of some keys stands first, and which of these each one is."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first, inverse
