"""Probes at the end of a run on text: the flags, the labelled texts that they name, and their table."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...data.labelled import LabelledData
from ...evaluation.probes import probe_table
from ...evaluation.results import Result
from ...training.checkpoints import STAGING
from ...training.trainer import SSLTrainer
from ..labelled import LabelledDataArguments, load_splits, named_flags
from .data import TextData


@dataclass
class TextProbeArguments:
    r"""
    > Probes

    Args:
        probe_dataset (`str`, *optional*, defaults to `"none"`):
            Labelled texts for a table of probes at the end of the run, as `--dataset` names them. A checkpoint that
            is continued stands beside, as it came. What the probes are measured on is never trained on.
        probe_split (`str`, *optional*, defaults to `"train"`):
            Split that probes learn from.
        probe_test_split (`str`, *optional*, defaults to `"auto"`):
            Split that they are measured on. auto takes test or validation where there is one, else holds out a fifth
            of each class.
        probe_text_column (`str`, *optional*):
            Column of the texts; found by its type when left out.
        probe_label_column (`str`, *optional*):
            Column of the labels; found by its type when left out.
        probe_max_samples (`int`, *optional*, defaults to `3000`):
            Use so many texts of each split at most. `recipes/probe.py` takes all.
    """

    probe_dataset: str = "none"
    probe_split: str = "train"
    probe_test_split: str = "auto"
    probe_text_column: str | None = None
    probe_label_column: str | None = None
    probe_max_samples: int | None = 3_000

    def load(self, data: TextData) -> "TextProbes | None":
        """The labelled texts, of which those to measure on are left out of what is trained on; or `None`."""
        if self.probe_dataset == "none":
            return None
        flags = ("dataset", "split", "test_split", "text_column", "label_column")
        with named_flags({flag: f"probe_{flag}" for flag in flags}):
            train, test = load_splits(
                self.probe_dataset, self.probe_split, self.probe_test_split, column=self.probe_text_column,
                label_column=self.probe_label_column, max_train_samples=self.probe_max_samples,
                max_test_samples=self.probe_max_samples, modality="text",
            )  # fmt: skip
        data.exclude |= frozenset(test.samples)
        usual = {field.name: field.default for field in fields(LabelledDataArguments)}
        named = {flag: getattr(self, f"probe_{flag}") for flag in flags}
        return TextProbes(train, test, {name: value for name, value in named.items() if value != usual[name]})


@dataclass
class TextProbes:
    """Labelled texts to learn from and to measure on, and the flags of `recipes/probe.py` that name them."""

    train: LabelledData
    test: LabelledData
    named: dict[str, Any]

    def table(self, trainer: SSLTrainer, base_model: str | None) -> list[Result]:
        """Print probes of what was trained beside what needs no training, and the checkpoint that was continued."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        folder = Path(trainer.args.output_dir)
        return probe_table(
            model, trainer.processing_class, self.train, self.test, output_dir=folder / STAGING / "probes",
            name=str(folder), before=base_model,
        )  # fmt: skip
