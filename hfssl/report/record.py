"""A result folder as its files tell it, for the card, the report and a comparison of several."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..evaluation.bias import is_bias
from ..evaluation.facts import read_facts
from ..evaluation.inside import FINDINGS, KEPT, read_findings
from ..evaluation.layer_similarity import CKA
from ..evaluation.results import Result, read_json, read_results
from ..machine import fit_to_leave
from .pictures import captions


# What a run has recorded of itself, in its result folder.
RUN = "run.json"
RESULTS = "results.json"
# What several steps have done together, each in a folder below: see `hfssl/cli/steps.py`.
PLAN = "plan.json"
# Entries of a log without evaluations that are kept: more cannot be told apart in a curve.
MOST_ENTRIES = 1000
# Drawn anew from the record.
_DRAWN = ("loss.png", "health.png", "layers.png")
_FIELDS = {each.name for each in fields(Result)}


@dataclass
class Record:
    r"""
    A result folder of a run or of an evaluation.

    Args:
        folder (`Path`):
            Where it lies.
        run (`dict[str, Any]`, *optional*):
            What a run of pre-training recorded; empty for an evaluation.
        results (`list[Result]`, *optional*):
            What was measured, but for
        biases (`list[Result]`, *optional*):
            what tests of bias found: of them neither more nor less is better.
        facts (`dict[str, Any]`, *optional*):
            See [`~hfssl.evaluation.facts.read_facts`].
        missing (`list[str]`, *optional*):
            Sentences on what the folder does not hold, and where that comes from.
        plan (`dict[str, Any]`, *optional*):
            Of a folder with several steps: what was chosen, the steps, and what came out.
        parts (`list[Path]`, *optional*):
            Their folders.
        findings (`list[tuple[Path, dict]]`, *optional*):
            What was seen inside an encoder, with the folder that it lies in; see
            [`~hfssl.evaluation.inside.Finding`].
    """

    folder: Path
    run: dict[str, Any] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    biases: list[Result] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    parts: list[Path] = field(default_factory=list)
    findings: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.run.get("name") or self.folder.resolve().name

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The log, without figures that were no numbers."""
        return [
            {name: value for name, value in entry.items() if value is not None}
            for entry in self.run.get("history", [])
            if "step" in entry
        ]

    @property
    def figures(self) -> list[Result]:
        """What was measured of what the encoder is good for: how alike layers are is no score."""
        return [each for each in self.results if each.protocol != CKA]

    @property
    def pictures(self) -> list[tuple[Path, str]]:
        """What there is to look at, with what it shows."""
        there = self._assets("*.png")
        there += sorted(self.folder.glob("*.png")) if self.plan else []
        for part in self.parts:
            there += sorted(part.glob("*.png"))
        return [picture for picture in self._captioned(there) if picture[0].name not in _DRAWN]

    @property
    def sounds(self) -> list[tuple[Path, str]]:
        """Pages with players, with what is heard."""
        return self._captioned(self._assets("*.html"))

    @property
    def listings(self) -> list[tuple[Path, str]]:
        """Files of sentences, each with lines of its own, with what they are."""
        return self._captioned(self._assets("*.json"))

    def _assets(self, pattern: str) -> list[Path]:
        """Files beside the records that no finding has in its own section."""
        told = {
            folder / "assets" / shown[kind]
            for folder, finding in self.findings
            for shown in finding["shows"]
            for kind in ("picture", "sounds")
            if kind in shown
        }
        there = [path for each in (self.folder, *self.parts) for path in sorted((each / "assets").glob(pattern))]
        return [path for path in there if path not in told]

    def _captioned(self, paths: Sequence[Path]) -> list[tuple[Path, str]]:
        """Files with what they show, in the order of what is known; of a page with players that of its picture."""
        told = dict(self.run.get("pictures", []))
        known = told | {name: said for name, said in captions().items() if name not in told}
        order = list(known)

        def name_of(path: Path) -> str:
            return path.with_suffix(".png").name if path.suffix == ".html" else path.name

        ordered = sorted(paths, key=lambda path: order.index(name_of(path)) if name_of(path) in known else len(order))
        return [(path, known.get(name_of(path), path.stem.replace("_", " ").capitalize() + ".")) for path in ordered]

    def first(self, name: str) -> Any:
        """A field of the run, or of the first thing that was measured in an evaluation."""
        measured = [*self.results, *self.biases]
        return self.run.get(name) or (getattr(measured[0], name, None) if measured else None)


def read_record(folder: str | Path) -> Record:
    """Read a result folder; what is damaged or not there is `missing`.

    Raises:
        UserError: for a folder that has none of it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: name the result folder of a run, of a probe or of fine-tuning.")
    record = Record(folder, facts=fit_to_leave(read_facts(folder)))
    if (folder / PLAN).is_file():
        return _together(record)
    try:
        run = read_json(folder / RUN, default={})
        if not isinstance(run, dict):
            raise UserError(f"{folder / RUN} is no record of a run.")
        history = run.pop("history", None)
        record.run = fit_to_leave(run) | ({} if history is None else {"history": history})
    except UserError as error:
        record.missing.append(f"{RUN}: {fit_to_leave(str(error))}")
    _read_results(record)
    _leave_out_others(record)
    for place in (folder, folder / KEPT):
        _take_findings(record, place)
    if not record.run:
        _take_checkpoint(record)
    if not (record.run or record.results or record.biases or record.findings or record.missing):
        raise UserError(
            f"{folder} holds nothing to report on: no {RUN}, no {RESULTS} and no checkpoint. Name the result folder "
            "of a run, of a probe or of fine-tuning."
        )
    if record.run and not (record.results or record.biases):
        record.missing.append(f"{RESULTS}: nothing has been measured yet.")
    return record


def record_of_weights(folder: Path, run: dict[str, Any]) -> Record:
    """A run that was written into a folder, with the figures there that are known to be of its weights."""
    record = Record(folder, run)
    _read_results(record)
    own = run.get("encoder")
    record.results, record.biases = (
        [each for each in found if own is not None and each.encoder == own]
        for found in (record.results, record.biases)
    )
    return record


def _read_results(record: Record) -> None:
    """The figures that lie in the folder."""
    try:
        records = read_results(record.folder / RESULTS)
    except UserError as error:
        record.missing.append(f"{RESULTS}: {fit_to_leave(str(error))}")
        records = []
    for each in records:
        try:
            result = Result(**{name: value for name, value in each.items() if name in _FIELDS})
            (record.biases if is_bias(result) else record.results).append(result)
        except TypeError:
            record.missing.append(f"{RESULTS}: one of its records is not whole, and is left out.")


def _leave_out_others(record: Record) -> None:
    """Leave out figures of an encoder that lay in the folder before the one that lies there now."""
    own = record.run.get("encoder")
    for name in ("results", "biases"):
        of_this = [each for each in getattr(record, name) if own is None or each.encoder in (None, own)]
        if number := len(getattr(record, name)) - len(of_this):
            setattr(record, name, of_this)
            recipe = "probe" if name == "results" else "bias"
            record.missing.append(
                f"{RESULTS}: {number} of its figures are of an encoder that lay here before this one, and are left "
                f"out. `recipes/{recipe}.py --update_card true` measures this one."
            )


def _take_findings(record: Record, place: Path) -> None:
    """What was seen inside the encoder that lies in the folder, not inside one that lay there before."""
    try:
        found = read_findings(place)
    except UserError as error:
        record.missing.append(f"{FINDINGS}: {fit_to_leave(str(error))}")
        return
    own = record.run.get("encoder")
    if own is not None and found.get("weights") not in (None, own):
        record.missing.append(
            f"{FINDINGS}: it is about an encoder that lay here before this one, and is left out. "
            "`recipes/explain.py --update_report true` looks into this one."
        )
        return
    record.findings += [(place, each) for each in found.get("findings", [])]


def _together(record: Record) -> Record:
    """What the steps in a folder have left, as one record: the run, and all that was measured of it."""
    try:
        record.plan = fit_to_leave(read_json(record.folder / PLAN, default={}))
    except UserError as error:
        record.missing.append(f"{PLAN}: {fit_to_leave(str(error))}")
    # others may lie beside those of the steps
    named = record.plan.get("parts")
    there = [part for part in record.folder.iterdir() if part.is_dir() and (named is None or part.name in named)]
    for part in sorted(there, key=lambda part: (not (part / RUN).is_file(), part.name)):
        if not _holds_something(part):
            record.parts += [part] * (named is not None)  # it may hold pictures
            continue
        record.parts.append(part)
        try:
            found = read_record(part)
        except UserError as error:
            record.missing.append(f"{part.name}: {fit_to_leave(str(error))}")
            continue
        record.run = record.run or found.run
        record.results += found.results
        record.findings += found.findings
        record.biases += found.biases
        record.missing += [f"{part.name}/{text}" for text in found.missing]
    # the same probe at the end of the run and as a step of its own is one
    record.results = list({_same(each): each for each in record.results}.values())
    undone = [each["name"] for each in record.plan.get("steps", []) if each.get("state") != "done"]
    if undone:
        record.missing.append(f"Not done yet: {', '.join(undone)}. The command of the whole, once more, does it.")
    return record


def _holds_something(folder: Path) -> bool:
    return any((folder / name).exists() for name in (RUN, RESULTS, FINDINGS)) or any(folder.glob("checkpoint-*"))


def _same(result: Result) -> str:
    own = ("protocol", "version", "task", "split", "metric", "num_train", "num_eval", "hyperparameters")
    return json.dumps([getattr(result, name) for name in own], sort_keys=True)


def _take_checkpoint(record: Record) -> None:
    """The log of the newest checkpoint, of a run that has not ended or that recorded nothing else."""
    there = [path for path in record.folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(there, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            record.run = {"history": state["log_history"], "step": state["global_step"]}
        except (OSError, ValueError, KeyError):
            continue
        has_ended = (record.folder / "config.json").is_file()
        why = "an older version of hfssl wrote it" if has_ended else "the run has not ended"
        record.missing.append(
            f"{RUN}: {why}. The curves are those of {path.name}; settings, data and cost are not known. The command "
            f"of the run, once more, {'writes it without training again' if has_ended else 'goes on and writes it'}."
        )
        return


def write_whole(path: Path, text: str) -> Path:
    """Write a text in one step: an interruption leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def thinned(history: Sequence[dict[str, Any]], most: int = MOST_ENTRIES) -> list[dict[str, Any]]:
    """A log with all its evaluations, and so many of the other entries at most, evenly over it."""
    plain = [i for i, entry in enumerate(history) if "loss" in entry]
    kept = {plain[i * len(plain) // most] for i in range(most)} if len(plain) > most else set(plain)
    kept |= set(plain[-1:])
    return [entry for i, entry in enumerate(history) if i in kept or "loss" not in entry]
