"""What recipes share about probes: the flags, and the labelled samples that they name."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..data.labelled import LabelledData
from ..data.modality import modality as find_modality
from .labelled import LabelledDataArguments, load_splits, named_flags


# Flags about labels, called as those of `recipes/probe.py` behind `probe_`.
_AS_IN_PROBES = ("label_column", "labels", "split_by")


@dataclass
class ProbeArguments:
    r"""
    > Probes

    Args:
        probe_dataset (`str`, *optional*, defaults to `"auto"`):
            Labelled images for k-NN during the run and for the table at its end, as `--dataset` names them; none for
            no probes. auto is the embedded set in runs on one, else none.
        probe_dataset_config (`str`, *optional*):
            Configuration of a data set on the Hub.
        probe_split (`str`, *optional*, defaults to `"train"`):
            Split that probes learn from.
        probe_test_split (`str`, *optional*, defaults to `"auto"`):
            Split that they are measured on. auto takes test or validation where there is one, else holds out a fifth
            of each class.
        probe_column (`str`, *optional*):
            Column of the samples; found by its type when left out.
        probe_label_column (`str`, *optional*):
            Column of the labels; found by its type when left out.
        probe_labels (`str`, *optional*):
            Table with the labels of a folder of files.
        probe_split_by (`str`, *optional*):
            Column of what must not be on both sides, such as the patient.
        probe_max_samples (`int`, *optional*, defaults to `3000`):
            Use so many images of each split at most. `recipes/probe.py` takes all.
        probe_pooling (`str`, *optional*):
            cls, mean, cls+mean or last4. Left out: the feature that the method projects, or for MAE what fits the
            encoder.
    """

    # of what is probed
    modality: ClassVar[str] = "image"

    probe_dataset: str = "auto"
    probe_dataset_config: str | None = None
    probe_split: str = "train"
    probe_test_split: str = "auto"
    probe_column: str | None = None
    probe_label_column: str | None = None
    probe_labels: str | None = None
    probe_split_by: str | None = None
    probe_max_samples: int | None = 3_000
    probe_pooling: str | None = None

    def load(self, dataset: str | None) -> tuple[LabelledData, LabelledData] | None:
        """Both splits, or `None` where nothing is to be probed; `dataset` is what the run trains on."""
        name = self.probe_dataset
        if name == "auto":
            embedded = find_modality(self.modality).embedded_set(dataset)
            name = embedded.name if embedded else "none"
        if name == "none":
            return None
        flags = {flag: f"probe_{flag}" for flag in ("dataset", "split", "test_split", *_AS_IN_PROBES)}
        with named_flags(flags | {f"{self.modality}_column": "probe_column"}):
            return load_splits(
                name, self.probe_split, self.probe_test_split, config=self.probe_dataset_config,
                column=self.probe_column,
                max_train_samples=self.probe_max_samples, max_test_samples=self.probe_max_samples,
                modality=self.modality, **self._as_in_probes(),
            )  # fmt: skip

    def named(self, dataset: str | None, *splits: LabelledData) -> dict[str, Any]:
        """The flags of `recipes/probe.py` for the samples that [`load`] gives."""
        embedded = find_modality(self.modality).embedded_set(dataset) if self.probe_dataset == "auto" else None
        most = self.probe_max_samples
        # a fifth of what was taken of the split, where there was none to measure on
        limits = [most if len(split) == most else None for split in splits]
        if sum(map(len, splits)) == most:
            limits = [most, None]
        flags = {
            "dataset": embedded.name if embedded else self.probe_dataset,
            "dataset_config": self.probe_dataset_config, "split": self.probe_split,
            "test_split": self.probe_test_split, f"{self.modality}_column": self.probe_column,
            "max_train_samples": limits[0], "max_test_samples": limits[1], **self._as_in_probes(),
        }  # fmt: skip
        usual = {field.name: field.default for field in fields(LabelledDataArguments)}
        return {name: value for name, value in flags.items() if value != usual[name]}

    def _as_in_probes(self) -> dict[str, str | None]:
        return {name: getattr(self, f"probe_{name}") for name in _AS_IN_PROBES}
