"""Several result folders side by side, on one page."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..evaluation.finetune_settings import FinetuneSettings
from ..evaluation.results import Result
from .blocks import Code, Drawing, Folded, Section, Table, Text
from .curves import curves_figure
from .page import page
from .record import Record, read_record, write_whole
from .sections import last_verdict, named
from .svg import inline_svg
from .words import cost_in_words, number, size_in_words


_OF_TRAININGS = tuple(each.name for each in fields(FinetuneSettings))
# What can be compared between runs of any method, by its name in the log.
_CURVES = {
    "eval_knn_accuracy": "k-NN accuracy while it trained",
    "eval_knn_auroc": "k-NN AUROC while it trained",
    "health_projection_effective_rank": "effective rank of projections",
    "health_std": "std of embeddings",
}


def write_comparison(folders: Sequence[str | Path], path: Path) -> Path:
    """Write a page on several result folders, and return its path.

    Raises:
        UserError: for a folder that has nothing to report on.
    """
    return write_records(dict(zip(names_of(folders), map(read_record, folders), strict=True)), path)


def write_records(records: dict[str, Record], path: Path) -> Path:
    """Write a page on several records, by what they are called, and return its path."""
    made = (overview(records), figures(records), curves(records), settings(records), commands(records))
    sections = [each for each in made if each is not None]
    path.parent.mkdir(parents=True, exist_ok=True)
    lead = ["Figures stand side by side where protocol, data and settings of the measurement are the same."]
    return write_whole(path, page(f"{len(records)} runs side by side", lead, sections))


def names_of(folders: Sequence[str | Path]) -> list[str]:
    """What folders are called: by as much of the end of their paths as tells them apart."""
    parts = [Path(folder).resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(each[-1:])} ({i})" for i, each in enumerate(parts, start=1)]


def overview(records: dict[str, Record]) -> Section:
    """What each run is, what became of it and what it cost."""
    rows = []
    for name, record in records.items():
        run, verdict = record.run, last_verdict(record)
        parameters = size_in_words(run["parameters"]) if "parameters" in run else "–"
        encoder = " and ".join(run.get("architecture", ["–"]))
        said = verdict["health_verdict"] if verdict else "–"
        steps = f"{run['step']:,}" if "step" in run else "–"
        rows.append((name, run.get("title", "–"), encoder, parameters, steps, said, cost_in_words(run) or "–"))
    head = ("", "method", "encoder", "parameters", "steps", "health", "cost")
    missing = [Text(f"{name}: {text}") for name, record in records.items() for text in record.missing]
    return Section("The runs", [Table("", head, rows), *missing])


def figures(records: dict[str, Record]) -> Section | None:
    """Each figure that at least one of them has, a column for each run, and the baselines of each."""
    by_figure: dict[Any, dict[str, Result]] = {}
    for name, record in records.items():
        for each in record.figures:
            by_figure.setdefault(_figure(each), {})[name] = each
    if not by_figure:
        return None
    blocks: list[Any] = []
    rows, others = [], []
    for found in by_figure.values():
        first = next(iter(found.values()))
        title = named(first, f" on {first.task}:")
        title += "" if first.greater_is_better else " (less is better)"
        # what was measured of one of them only says nothing of another
        table = rows if len(found) > 1 else others
        table.append((title, *(_cell(found.get(name)) for name in records)))
        for kind in dict.fromkeys(kind for each in found.values() for kind in each.baselines):
            table.append((f"… {kind.replace('_', ' ')}", *(_cell(found.get(name), kind) for name in records)))
    head = ("", *records)
    if rows:
        blocks.append(Table("Measured in the same way; below each figure its baselines", head, rows))
    if others:
        blocks.append(Folded("Measured of one of them only", [Table("", head, others)]))
    return Section("Figures", blocks)


def curves(records: dict[str, Record]) -> Section | None:
    """What can be compared while they trained. Losses of different methods cannot."""
    shown = dict(_CURVES)
    if len({record.run.get("method") for record in records.values()}) == 1:
        shown |= {"eval_loss": "held-out loss"}
    blocks = []
    for name, title in shown.items():
        points = {
            run: [(entry["step"], entry[name]) for entry in record.history if name in entry]
            for run, record in records.items()
        }
        points = {run: each for run, each in points.items() if each}
        if len(points) > 1:
            said = f"{title[0].upper()}{title[1:]} of {', '.join(points)} over the steps"
            blocks.append(Drawing(inline_svg(curves_figure(points, title), name.replace("_", "-"), said), f"{said}."))
    return Section("Curves", blocks) if blocks else None


def settings(records: dict[str, Record]) -> Section | None:
    """In what settings they differ."""
    told = {
        name: {
            f"{kind}: {key}": value for kind, found in record.run["settings"].items() for key, value in found.items()
        }
        for name, record in records.items()
        if "settings" in record.run
    }
    if len(told) < 2:
        return None
    keys = dict.fromkeys(key for each in told.values() for key in each)
    rows = [
        (key, *(str(each.get(key, "–")) for each in told.values()))
        for key in keys
        if len({str(each.get(key, "–")) for each in told.values()}) > 1
    ]
    blocks = [Table("", ("setting", *told), rows)] if rows else [Text("All settings are the same.")]
    return Section("In what they differ", blocks)


def commands(records: dict[str, Record]) -> Section | None:
    """How to get each of them again."""
    found = {name: record.first("command") for name, record in records.items()}
    blocks = [each for name, command in found.items() if command for each in (Text(name), Code(command))]
    return Section("Do it again", blocks) if blocks else None


def _figure(result: Result) -> tuple:
    """What makes figures of several models comparable: all of a record but the model and how it makes features."""
    own = ("layer", "k", "shots", "fraction", "method", "probe", "fingerprints", "group_column")
    # of trainings all that decides what comes out
    own += _OF_TRAININGS if "min_steps" in result.hyperparameters else ()
    kept = {name: result.hyperparameters[name] for name in own if name in result.hyperparameters}
    same = (result.protocol, result.version, result.task, result.split, result.metric)
    return (*same, result.num_train, result.num_eval, str(kept))


def _cell(result: Result | None, baseline: str | None = None) -> str:
    if result is None:
        return "–"
    value = result.value if baseline is None else result.baselines.get(baseline)
    std = result.std if baseline is None else result.baselines_std.get(baseline)
    return number(value, std)
