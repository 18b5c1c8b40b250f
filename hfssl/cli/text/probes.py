"""Probes at the end of a run on text: the flags, the labelled texts that they name, and their table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...data.labelled import LabelledData
from ...evaluation.probes import probe_table
from ...evaluation.results import Result
from ...training.checkpoints import STAGING
from ...training.trainer import SSLTrainer
from ..probes import ProbeArguments
from .data import TextData


@dataclass
class TextProbeArguments(ProbeArguments):
    r"""
    > Probes

    Args:
        probe_dataset (`str`, *optional*, defaults to `"none"`):
            Labelled texts for a table of probes at the end of the run, as `--dataset` names them. A checkpoint that
            is continued stands beside, as it came. What the probes are measured on is never trained on.
        probe_max_samples (`int`, *optional*, defaults to `3000`):
            Use so many texts of each split at most. `recipes/probe.py` takes all.
        probe_pooling (`str`, *optional*):
            mean, cls or last. Left out: what fits the encoder.
    """

    modality: ClassVar[str] = "text"

    probe_dataset: str = "none"
    probe_max_samples: int | None = 3_000
    probe_pooling: str | None = None

    def probes(self, data: TextData) -> "TextProbes | None":
        """The labelled texts, of which those to measure on are left out of what is trained on; or `None`."""
        dataset = data.arguments.dataset
        splits = self.load(dataset)
        if splits is None:
            return None
        data.exclude |= frozenset(splits[1].samples)
        return TextProbes(*splits, self.named(dataset, *splits), self.probe_pooling)


@dataclass
class TextProbes:
    """Labelled texts to learn from and to measure on, and the flags of `recipes/probe.py` that name them."""

    train: LabelledData
    test: LabelledData
    named: dict[str, Any]
    pooling: str | None = None

    def table(self, trainer: SSLTrainer, base_model: str | None) -> list[Result]:
        """Print probes of what was trained beside what needs no training, and the checkpoint that was continued."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        return probe_table(
            model, trainer.processing_class, self.train, self.test, output_dir=probed_folder(trainer),
            pooling=self.pooling, name=str(Path(trainer.args.output_dir)), before=base_model,
        )  # fmt: skip


def probed_folder(trainer: SSLTrainer) -> Path:
    """Where probes at the end of a run leave what the result folder takes of them."""
    return Path(trainer.args.output_dir) / STAGING / "probes"
