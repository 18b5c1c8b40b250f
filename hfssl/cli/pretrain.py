"""What `recipes/pretrain.py` does with data: the flags, the steps, and the sentence at the end."""

import ast
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..commands import as_typed, recipes
from ..errors import UserError
from ..evaluation.finetune_settings import FinetuneSettings
from ..evaluation.modality import evaluation_modality
from ..evaluation.payoff import payoff_line
from ..evaluation.results import Result, read_json, read_results
from ..evaluation.usefulness import usefulness_lines
from ..evaluation.verdict import describe
from ..methods import METHODS
from ..report.record import RUN
from ..training.checkpoints import list_checkpoints
from .domains import Choice, Domain, find_domain, leading_modality
from .sheet import has_sheet
from .steps import Step


logger = logging.getLogger(__name__)

# Of the minutes, with labels and without; what is left is for probes, features and pictures.
SHARES = {"pre-training": 0.6, "fine-tuning": 0.3}
SHARES_WITHOUT_LABELS = {"pre-training": 0.9}
# Folders of the steps.
_PARTS = ("encoder", "features", "probes", "labels")
# Of the labels, as the protocol of label efficiency takes them.
_FRACTIONS = (1.0, 0.1, 0.01)
# Flags of a recipe that say how long it trains; and those that are flags of the whole.
_OF_LENGTH = ("max_steps", "epochs", "max_tokens")
_OWN = ("seed", "budget_minutes", "output_dir")
# Fewer passes and steps tell nothing of what labels are worth.
_FEWEST_EPOCHS, _FEWEST_STEPS = 1.0, 20


@dataclass
class PretrainArguments:
    r"""
    > Data

    Args:
        dataset (`str`, *optional*):
            What is pre-trained on, all of it: a folder, file or glob, a Hub id, or several with commas between them.
            Left out: letters, which come with hfssl, and their labels.
        labelled (`str`, *optional*):
            Labelled samples of the same kind, as `recipes/probe.py` takes them; may be the same data. What is measured
            on is not trained on; of images with captions it is, and a warning says so. Left out, the whole ends in
            features.
        modality (`str`, *optional*):
            image, text, audio, or multimodal (images with captions). Left out, opening the data tells.
        dataset_config (`str`, *optional*):
            Configuration of a Hub data set.
        labelled_config (`str`, *optional*):
            The same of the labelled samples. Left out, that of the data, where `labelled` names the same ones.
        split (`str`, *optional*, defaults to `"train"`):
            Split to train on.
        label_column (`str`, *optional*):
            Column of the labels; found by its type when left out.
        labels (`str`, *optional*):
            Table with the labels of a folder of files.
        split_by (`str`, *optional*):
            Column of what must not be on both sides, such as the patient.
        budget_minutes (`float`, *optional*, defaults to `10.0`):
            Minutes for the whole: 60 % for pre-training, 30 % for fine-tuning and training from scratch, which are
            made shorter where they would take longer; without labels 90 % for pre-training. The rest is for the
            other steps. With more of them the same command goes on with the pre-training.
        method (`str`, *optional*):
            Name of the recipe that pre-trains. Left out, it is chosen, and why is said.
        encoder (`str`, *optional*):
            Preset to train from scratch, or a checkpoint to continue. Left out, what the recipe takes.
        training (`dict`, *optional*):
            More flags of that recipe: '{"image_size": 96, "save_steps": 0.1}'.
        finetuning (`dict`, *optional*):
            More flags of `recipes/finetune.py`, which hold for training from scratch too: '{"epochs": 50}'.
        num_processes (`int`, *optional*, defaults to 1):
            Processes that share the pre-training, one for each GPU.
        seed (`int`, *optional*, defaults to 42):
            Of the pre-training.
        output_dir (`str`, *optional*, defaults to `"outputs/pretrain"`):
            Folder of the whole; each step has one in it.
    """

    dataset: str | None = None
    labelled: str | None = None
    modality: str | None = None
    dataset_config: str | None = None
    labelled_config: str | None = None
    split: str = "train"
    label_column: str | None = None
    labels: str | None = None
    split_by: str | None = None
    budget_minutes: float = 10.0
    method: str | None = None
    encoder: str | None = None
    training: dict | None = None
    finetuning: dict | None = None
    num_processes: int = 1
    seed: int = 42
    output_dir: str = "outputs/pretrain"

    def __post_init__(self):
        if not self.budget_minutes > 0:
            raise UserError(f"`--budget_minutes` must be more than 0, got {self.budget_minutes:g}.")
        if self.num_processes < 1:
            raise UserError(f"`--num_processes` must be at least 1, got {self.num_processes}.")
        for name in _OWN:
            if name in (self.training or {}):
                raise UserError(f"`--training` names `{name}`, which is a flag here: pass it as `--{name}`.")
        for name in ("labelled_config", "label_column", "labels", "split_by"):
            if self.labelled is None and getattr(self, name) is not None:
                raise UserError(
                    f"`--{name} {getattr(self, name)}` is about labelled samples: name them by `--labelled`."
                )


class Pretraining:
    """The whole: what is chosen for some data, and its steps.

    Attributes:
        folder (`Path`):
            Where everything goes.
        about (`dict[str, Any]`):
            What is chosen and why, for the record.
    """

    def __init__(self, asked: PretrainArguments):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "This is one process, which starts those of its steps: start it with python, and pass as many GPUs as "
                "there are as `--num_processes`."
            )
        self.asked, self.folder, self.said, self.shortened = asked, Path(asked.output_dir), "", ""
        training = asked.training or {}
        columns = {name: value for name, value in training.items() if name.endswith("_column")}
        self.domain, source, how = find_domain(
            asked.dataset, asked.modality, columns, split=asked.split, config=asked.dataset_config
        )
        self.labelled = asked.labelled
        embedded = leading_modality(self.domain).embedded_set(asked.dataset)
        if asked.dataset is None and asked.labelled is None and embedded is not None and embedded.labelled:
            self.labelled = embedded.name
        on_cpu = torch.accelerator.current_accelerator(check_available=True) is None
        chosen = self.domain.choose(source.num_rows, on_cpu)
        self.choice = chosen if asked.method in (None, chosen.method) else _as_asked(asked.method, self.domain)
        self.shares = SHARES if self.labelled else SHARES_WITHOUT_LABELS
        self.about = {
            "data": source.description, "labelled": self.labelled, "modality": self.domain.name, "found": how,
            "method": self.choice.method, "why": self.choice.why, "budget_minutes": asked.budget_minutes,
            "shares": self.shares, "parts": _PARTS,
        }  # fmt: skip

    @property
    def encoder(self) -> Path:
        """What pre-training leaves for the other steps."""
        return self.folder / "encoder" / self.domain.encoder

    def intro(self) -> str:
        """What was found and chosen, in words."""
        shares = ", ".join(f"{self.asked.budget_minutes * share:g} for {name}" for name, share in self.shares.items())
        return as_typed(
            f"Data: {self.about['data']}\nFound: {self.about['found']}\nChosen: {self.choice.why}\n"
            f"Minutes: {self.asked.budget_minutes:g}, {shares}"
        )

    def steps(self) -> Iterator[Step]:
        """The steps in their order. What has to be known of one before another begins is read when it is due."""
        asked, method = self.asked, METHODS[self.choice.method]
        data = {"dataset": asked.dataset, "dataset_config": asked.dataset_config}
        data["split"] = None if asked.split == "train" else asked.split
        of_recipe = {**data, "encoder": asked.encoder, **self.choice.flags, **(asked.training or {})}
        if has_sheet(method):
            output = self.folder / "views.png"
            sheet = {"method": self.choice.method, **of_recipe, "seed": asked.seed, "output": output}
            yield Step("views", "show_views", sheet)
        labels = {name: getattr(asked, name) for name in ("label_column", "labels", "split_by")}
        is_same = asked.labelled is not None and asked.labelled == asked.dataset
        config = asked.labelled_config or (asked.dataset_config if is_same else None)
        labels = {"dataset": self.labelled, "dataset_config": config, **labels}
        online = {self.domain.labels_flags[name]: value for name, value in labels.items() if self.domain.labels_flags}
        column = f"{self.domain.modality}_column"
        known = {name: value for name, value in (asked.training or {}).items() if name == column}
        labels |= known if is_same else {}
        if self.labelled and online:
            # by default it takes some of the labelled samples, of which it holds out others than the probes after it
            of_recipe = {"probe_max_samples": "none", "probe_column": labels.get(column), **of_recipe}
        minutes = asked.budget_minutes * self.shares["pre-training"]
        training = {
            **of_recipe, "seed": asked.seed, "budget_minutes": float(f"{minutes:.4g}"),
            **(online if self.labelled else {}), "output_dir": self.folder / "encoder",
        }  # fmt: skip
        if any(name in (asked.training or {}) for name in _OF_LENGTH):
            training.pop("budget_minutes")
        yield Step("pre-training", self.choice.method, training, asked.num_processes)
        if self.labelled is None:
            report = {"report": "duplicates,outliers,clusters", "output_dir": self.folder / "features"}
            yield Step("features", "embed", {"encoder": self.encoder, **data, **known, **report})
            return
        yield Step("probes", "probe", {"encoder": self.encoder, **labels, "output_dir": self.folder / "probes"})
        lengths = self._lengths() | (asked.finetuning or {})
        # of all labels the trainings are the same, and are done once: they share a folder
        folder = self.folder / "labels"
        trained = {"encoder": self.encoder, **labels, **lengths, "precision": "auto", "output_dir": folder}
        yield Step("fine-tuning", "finetune", trained)
        yield Step("label efficiency", "probe", {**trained, "protocol": "label_efficiency"})
        made = [self.folder / name for name in ("encoder", "probes", "labels")]
        yield Step("report", "report", {"folders": made, "output_file": self.folder / "side_by_side.html"})

    def outcome(self) -> dict[str, str]:
        """What came out, in words: health of the pre-training, of what use it is, up to how many labels it pays."""
        probes = results_in(self.folder / "probes") + results_in(self.folder / "labels")
        useful = " ".join(usefulness_lines(probes))
        found = {"health": self._health(), "usefulness": useful, "payoff": payoff_line(probes)}
        if found["payoff"] and self.shortened:
            found["payoff"] += (
                f" Both were trained for less than by default ({self.shortened}), of which a start from scratch "
                "suffers more: with a larger `--budget_minutes` it may come nearer."
            )
        return {name: as_typed(said) for name, said in found.items() if said}

    def _health(self) -> str:
        measured = [each for each in self._state().get("log_history", []) if "health_verdict" in each]
        return f"Pre-training: {describe(measured[-1])}." if measured else ""

    def _state(self) -> dict[str, Any]:
        """What the trainer knows at the newest checkpoint of pre-training."""
        there = list_checkpoints(self.folder / "encoder")
        return read_json(there[0] / "trainer_state.json", default={}) if there else {}

    def _lengths(self) -> dict[str, Any]:
        """Flags that make trainings on labels as short as their share of the minutes asks for; none where they fit.

        How long they take is judged by how many samples a second pre-training saw, where each view of one counts.
        """
        self.shortened = ""
        run = read_json(self.folder / "encoder" / RUN, default={})
        seconds, seen = run.get("cost", {}).get("seconds"), run.get("seen", {}).get("rows")
        probed = results_in(self.folder / "probes")
        if not (seconds and seen and probed):
            return {}
        views = 1 if METHODS[self.choice.method].method.views is None else 2
        settings = FinetuneSettings(**self._known_settings()).filled(
            evaluation_modality(self.domain.modality).finetune_defaults
        )
        number = max(each.num_train for each in probed)
        # one process trains on labels; those of a CPU have shared it
        processes = 1 if run.get("device") == "CPU" else run.get("processes", 1)
        minutes = _samples(settings, number) * processes * seconds / (seen * views) / 60
        allowed = self.asked.budget_minutes * self.shares["fine-tuning"]
        share = min(allowed / minutes, 1.0)
        # two digits: more of them would say more than is known
        shorter = {
            "epochs": max(_FEWEST_EPOCHS, float(f"{settings.epochs * share:.2g}")),
            "min_steps": max(_FEWEST_STEPS, int(float(f"{settings.min_steps * share:.2g}"))),
        }
        stated = self.asked.finetuning or {}
        shorter = {n: each for n, each in shorter.items() if each < getattr(settings, n) and n not in stated}
        if shorter:
            self.shortened = changes = ", ".join(
                f"--{n} {each:g} instead of {getattr(settings, n):g}" for n, each in shorter.items()
            )
            said = (
                f"Trainings on labels would take about {minutes:.0f} minutes, and {allowed:.3g} are theirs: "
                f"{changes}. `--budget_minutes` gives them more, `--finetuning` states them."
            )
            if said != self.said:
                logger.info("%s", said)
                self.said = said
        return shorter

    def _known_settings(self) -> dict[str, Any]:
        known = {each.name for each in fields(FinetuneSettings)}
        return {name: value for name, value in (self.asked.finetuning or {}).items() if name in known}


def results_in(folder: Path) -> list[Result]:
    """The figures that lie in a folder, in the order in which they were written."""
    names = [each.name for each in fields(Result)]
    return [
        Result(**{name: record[name] for name in names if name in record})
        for record in read_results(folder / "results.json")
    ]


def _samples(settings: FinetuneSettings, number: int) -> float:
    """Samples that all trainings of label efficiency go through: those of all labels are those of fine-tuning."""
    total = 0.0
    for fraction in _FRACTIONS:
        some = max(1.0, fraction * number)
        total += max(settings.min_steps * min(settings.train_batch_size, some), settings.epochs * some)
    return 2 * settings.seeds * total


def _as_asked(method: str, domain: Domain) -> Choice:
    """A method that was named.

    Raises:
        UserError: where it is none, or not for such data.
    """
    if method not in METHODS:
        raise UserError(f"`--method` is one of {', '.join(METHODS)}, got {method!r}.")
    own, why = METHODS[method].method.modality, f"{METHODS[method].method.title}, as asked"
    if own == domain.name:
        return Choice(method, why)
    source = ast.parse(recipes()[method].read_text(encoding="utf-8"))
    # a recipe for several modalities has a function for each
    if any(isinstance(node, ast.FunctionDef) and node.name == domain.name for node in source.body):
        return Choice(method, why, {"modality": domain.name})
    fitting = [name for name, each in METHODS.items() if each.method.modality == domain.name]
    raise UserError(
        f"`--method {method}` is for {own}, and the data are {domain.samples}: pass one of {', '.join(fitting)}, or "
        "`--modality` where they are something else."
    )
