"""How well the units that a method predicts go with what is known of recordings, such as the word or the speaker.

Protocol "unit_quality", version 1. A unit has the label of its recording. `purity` is the share of the frames that
have the most frequent label of their unit, beside that of the most frequent label of all; `mutual_information` is
normalised: 0 where units say nothing of labels, 1 where each tells the other. Neither is of the encoder: units are
there before it has learned, and those of a next iteration should go better with words than those of the one before.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ...data.held_out import content_keys
from ...data.stream import Block, ExactStream
from ...functional import keyed
from ...functional.keyed import Use
from ...modeling.corpus_targets import NO_TARGET
from ...modeling.units import unit_quality
from ..evaluator import Evaluator, name_of
from ..online_knn import stratified
from ..results import Result


if TYPE_CHECKING:
    from ...data.labelled import LabelledData

logger = logging.getLogger(__name__)

# Enough for two digits.
MOST_SAMPLES = 256
# Recordings that are decoded at once.
_AT_ONCE = 16


class UnitQuality(Evaluator):
    r"""
    Purity and mutual information of units with labels, and how often each unit is there.

    Args:
        labelled (`dict[str, LabelledData]`):
            Labelled recordings, by what the labels are called; of each 256 are taken, of each class its share.
        stream ([`~hfssl.data.stream.ExactStream`]):
            Of the run: makes of recordings what the model takes.
    """

    protocol: ClassVar[str] = "unit_quality"
    version: ClassVar[int] = 1
    primary_metric = "purity"

    def __init__(self, labelled: Mapping[str, "LabelledData"], stream: ExactStream):
        self.labelled, self.stream = dict(labelled), stream
        self._of_pass: tuple[int, dict[str, dict[str, float]]] = (-1, {})

    def _batches(self, data: "LabelledData") -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
        """Batches of windows, and the label of each of these; few recordings are in memory at a time."""
        # of class folders the first ones would be of one class
        numbers = stratified(data.labels, MOST_SAMPLES)
        for first in range(0, len(numbers), _AT_ONCE):
            some = numbers[first : first + _AT_ONCE]
            samples = [data.samples[int(number)] for number in some]
            keys = keyed.key(Use.HELD_OUT_SAMPLE, content_keys(samples))
            rows = self.stream.transform(Block({self.stream.source.leading: samples}, keys, key=0))
            if len(rows):
                labels = data.labels[some[rows.places[:, 2]]]
                yield from ((labels[of], batch) for of, batch in self.stream.collate_whole(rows.columns))

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """`unit_purity_<label>` and `unit_mutual_information_<label>`; nothing before there are units."""
        scores = self.scores(model)
        return {f"unit_{metric}_{name}": of[metric] for name, of in scores.items() for metric in METRICS}

    def scores(self, model: torch.nn.Module) -> dict[str, dict[str, float]]:
        """By the name of the labels, the metrics and `majority`, the share of the most frequent label."""
        if not model.num_passes_made:
            return {}
        if self._of_pass[0] != model.num_passes_made:  # units are the same until they are made anew
            found = {name: self._scores(model, name) for name in self.labelled}
            self._of_pass = model.num_passes_made, {name: scores for name, scores in found.items() if scores}
        return self._of_pass[1]

    def _scores(self, model: torch.nn.Module, name: str) -> dict[str, float]:
        units, labels = [], []
        for of_rows, batch in self._batches(self.labelled[name]):
            made = model.units_of(**{key: batch[key].to(model.device) for key in _TAKEN if key in batch}).cpu().numpy()
            units.append(made[made != NO_TARGET])
            labels.append(np.repeat(of_rows, (made != NO_TARGET).sum(1)))
        if not units:  # all are damaged, silent or too short
            return {}
        units, labels = np.concatenate(units), np.concatenate(labels)
        found = unit_quality(units, labels) | {"majority": float(np.bincount(labels).max() / len(labels))}
        logger.info(
            "Units and %s of %d recordings: purity %.3f (%.3f if all were one), normalised mutual information %.3f.",
            name, min(len(self.labelled[name]), MOST_SAMPLES), found["purity"], found["majority"],
            found["mutual_information"],
        )  # fmt: skip
        return found

    def results(self, model: torch.nn.Module, name: str) -> list[Result]:
        """The records of a model that is called `name`."""
        records = []
        for label, scores in self.scores(model).items():
            number = min(len(self.labelled[label]), MOST_SAMPLES)
            for metric in METRICS:
                baselines = {"majority": scores["majority"]} if metric == "purity" else {}
                records.append(
                    Result.from_scores(
                        {0: scores[metric]},
                        baselines,
                        protocol=self.protocol,
                        version=self.version,
                        model=name,
                        task=f"units and {label}",
                        split=self.labelled[label].name,
                        metric=metric,
                        num_train=0,
                        num_eval=number,
                        hyperparameters={"units": model.config.num_units},
                    )  # fmt: skip
                )
        return records

    def __call__(self, encoder, processor=None, *, output_dir=None, command=None) -> list[Result]:
        """The records of a pre-training model."""
        return self.results(encoder.eval(), name_of(encoder))

    def get_config_dict(self) -> dict[str, Any]:
        return {name: data.name for name, data in self.labelled.items()}


METRICS = ("purity", "mutual_information")
_TAKEN = ("input_values", "attention_mask")


def plot_units(counts: np.ndarray, path: Path) -> None:
    """How often each unit is there, the most frequent first, as a picture.

    Args:
        counts (`np.ndarray` of shape `(num_units,)`):
            Frames of each.
        path (`Path`):
            The picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = np.sort(counts)[::-1] / max(counts.sum(), 1)
    figure = Figure(figsize=(7, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.bar(np.arange(len(shares)), shares, width=1.0)
    axes.axhline(1 / len(shares), linestyle="--", color="grey", linewidth=1, label="if all were as frequent")
    axes.set(xlabel="unit, the most frequent first", ylabel="share of the frames")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
