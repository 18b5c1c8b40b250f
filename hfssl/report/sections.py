"""The sections of a report. Each is a function of a record that returns `None` where there is nothing to tell, or
several sections.

What a folder holds decides what is told, not what it is of: a method or a modality that records figures, examples or
pictures has them here without a line of its own. `SECTIONS` is their order.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.bias import bias_lines, bias_tables
from ..evaluation.groups import group_lines, group_tables
from ..evaluation.layers import layers_figure
from ..evaluation.probes import title_of
from ..evaluation.results import Result, read_json
from ..evaluation.usefulness import usefulness_lines
from ..evaluation.verdict import MEANING, describe, health_rows
from ..machine import fit_to_leave
from .blocks import Bars, Code, Drawing, Facts, Folded, Listing, Matrix, Section, Table, Text, Words
from .card import example_lines
from .curves import health_figure, history_figure, knn_figure, pace_figure
from .pictures import EXPLAINING, embedded_pictures, embedded_sounds
from .record import Record
from .svg import inline_svg
from .words import cost_in_words, in_words, number, plain, seen_in_words


# Classes of which a matrix can still be read.
MOST_IN_MATRIX = 30
# Of what several steps came to, what is told here anyway.
_SAID = ("health", "usefulness")
# A protocol that has a section of its own, of many figures.
_LAYERS = "layers"


def summary(record: Record) -> Section | None:
    """What it came to, in a few lines."""
    facts = [(name, said) for name, said in record.plan.get("outcome", {}).items() if name not in _SAID]
    if (verdict := last_verdict(record)) is not None:
        facts.append(("Health", describe(verdict)))
    facts += [("Use", said) for said in usefulness_lines(record.results)]
    results = record.figures
    for result in results:
        if result.metric == "loss" or result in main_results(results)[:3]:
            facts.append((named(result, ","), in_words(result)))
    if cost := cost_in_words(record.run):
        facts.append(("Cost", cost))
    return Section("Summary", [Facts(facts)]) if facts else None


def choices(record: Record) -> Section | None:
    """What was chosen, by whom and why."""
    run = record.run
    if "settings" not in run:
        return None
    said = [Text(text) for text in (record.plan.get("found"), record.plan.get("why"), *run["choices"]) if text]
    told = {name: value for kind in ("data", "run", "method") for name, value in run["settings"][kind].items()}
    changed = [(name, plain(told[name])) for name in run["changed"] if told.get(name) is not None]
    blocks = [
        Facts([("Data", run["data"] or "not recorded"), ("Seen", seen_in_words(run) or "not recorded")]),
        *said,
        Table("Settings that are not the defaults of hfssl", ("setting", "value"), changed),
        Folded(
            "All settings",
            [Table("", ("setting", "value"), [(name, plain(value)) for name, value in sorted(told.items())])],
        ),
    ]
    return Section("What was chosen, and why", blocks)


def curves(record: Record) -> Section | None:
    """How the losses went, beside their levels of chance."""
    history = record.history
    if not any("loss" in entry or "eval_loss" in entry for entry in history):
        return None
    contrasted, units = record.run.get("contrasted"), record.run.get("loss_units")
    figure = history_figure(history, tuple(contrasted) if contrasted else None, units)
    figure.set_size_inches(5.4, 0.6 + 2.6 * len(figure.axes))
    last = next((entry for entry in reversed(history) if "eval_loss" in entry), {})
    said = "Losses over the steps of the run"
    if "eval_loss" in last:
        said += f"; held out {last['eval_loss']:.4g} at step {last['step']:,}"
        said += f", chance {last['eval_chance_loss']:.4g}" if "eval_chance_loss" in last else ""
    has_chance = any("chance_loss" in name for entry in history for name in entry)
    none = "" if has_chance or "title" not in record.run else _NO_CHANCE
    blocks: list[Any] = [Drawing(inline_svg(figure, "loss", said), f"{said}. {none}".strip())]
    baselines = next((each.baselines for each in record.results if each.protocol == "knn"), {})
    baselines = {name.replace("_", " "): value for name, value in baselines.items()}
    if (figure := knn_figure(history, baselines)) is not None:
        said = "k-NN of the encoder while it trained, beside the baselines as they were measured at the end"
        blocks.append(Drawing(inline_svg(figure, "knn", said), f"{said}."))
    if (figure := pace_figure(history)) is not None:
        said = "Learning rate and norm of the gradient over the steps"
        blocks.append(Folded("Learning rate and gradient", [Drawing(inline_svg(figure, "pace", said), f"{said}.")]))
    return Section("Losses", blocks)


_NO_CHANCE = "There is no level of chance: a loss of this method is as low for outputs that say nothing."


def health(record: Record) -> Section | None:
    """The verdict, and what it went by."""
    if last_verdict(record) is None:
        return None
    head, rows = health_rows(record.history)
    blocks = [Text(f"At the end, on clean held-out samples: {describe(last_verdict(record))}.")]
    if (figure := health_figure(record.history)) is not None:
        said = "What the verdict goes by, and the levels below which a run is narrowing or collapsed"
        blocks.append(Drawing(inline_svg(figure, "health", said), f"{said}."))
    blocks.append(Folded("Figures where the verdict changed", [Table("", head, rows), Text(MEANING)]))
    return Section("Health", blocks)


def measured(record: Record) -> Section | None:
    """Each figure beside its baselines."""
    results = [each for each in record.figures if each.protocol != _LAYERS]
    if not results:
        return None
    main = main_results(results)
    others = [each for each in results if each not in main]
    blocks: list[Any] = [bars(each) for each in main]
    if others:
        blocks.append(Folded("Other figures", [bars(each) for each in others]))
    return Section("What was measured", blocks)


def layers(record: Record) -> Section | None:
    """What a probe of each layer knows."""
    results = [each for each in record.results if each.protocol == _LAYERS and each.metric == "accuracy"]
    # those of one table: a folder may hold several
    results = [each for each in results if (each.task, each.num_train) == (results[-1].task, results[-1].num_train)]
    if not results:
        return None
    said = "Accuracy of a linear probe of each layer and of their learned weighted sum, beside random weights"
    table = [(title_of(each), *figures_of(each, results)) for each in results]
    head = ("layer", "this model", *(name.replace("_", " ") for name in baselines_of(results)))
    blocks = [
        Drawing(inline_svg(layers_figure(results), "layers", said), f"{said}."),
        Folded("As numbers", [Table("", head, table)]),
    ]
    return Section("Layer by layer", blocks)


def classes(record: Record) -> Section | None:
    """Which classes are told apart, and what the others are taken for."""
    told = [each for each in record.results if each.details.get("classes")]
    if not told:
        return None
    best = next((each for each in told if each.protocol == "linear"), told[0])
    found = best.details["classes"]
    blocks: list[Any] = [Text(f"By the {title_of(best)} on {best.task}, over all seeds ({len(best.seeds)}).")]
    confused = sorted(
        ((count, each["name"], other) for each in found for other, count in each["taken_for"].items()), reverse=True
    )
    if confused:
        rows = [(name, other, f"{count:,}") for count, name, other in confused[:12]]
        blocks.append(Table("Most often confused", ("class", "taken for", "times"), rows))
    if len(found) <= MOST_IN_MATRIX:
        names = list(dict.fromkeys([each["name"] for each in found] + [other for _, _, other in confused]))
        counts = [
            [each["right"] if name == each["name"] else each["taken_for"].get(name, 0) for name in names]
            for each in found
        ]
        blocks.append(Matrix("Confusion matrix: rows are the classes, columns what they are taken for", names, counts))
    kinds = list(dict.fromkeys(kind for each in found for kind in each["baselines"]))
    head = ("class", "test rows", "right", *(kind.replace("_", " ") for kind in kinds), "most often taken for")
    rows = [
        (
            each["name"], f"{each['rows']:,}", _percent(each["right"] / max(each["rows"], 1)),
            *(_percent(each["baselines"][kind]) if kind in each["baselines"] else "" for kind in kinds),
            ", ".join(f"{name} ({count:,})" for name, count in list(each["taken_for"].items())[:3]),
        )
        for each in found
    ]  # fmt: skip
    per_class = Table("Each class beside the baselines", head, rows)
    blocks.append(per_class if len(rows) <= MOST_IN_MATRIX else Folded(f"All {len(rows):,} classes", [per_class]))
    return Section("Class by class", blocks)


def groups(record: Record) -> Section | None:
    """How groups of samples fare."""
    tables = group_tables(record.results)
    said = [Text(line) for line in group_lines(record.results)]
    return Section("Group by group", [*said, *(Table(*each) for each in tables)]) if tables else None


def bias(record: Record) -> Section | None:
    """What tests of bias found, with what they do not show."""
    if not record.biases:
        return None
    blocks: list[Any] = [Text(line) for line in bias_lines(record.biases)]
    for title, head, rows in bias_tables(record.biases):
        table = Table(title, head, rows)
        blocks.append(table if len(rows) <= MOST_IN_MATRIX else Folded(f"All {len(rows):,} tests", [table]))
    return Section("Bias", blocks)


def pictures(record: Record) -> Section | None:
    """What there is to look at, to read and to listen to."""
    shown, others = embedded_pictures(record.pictures)
    # what is seen and heard is said once, and stands together
    seen = {path.with_suffix(".html") for path in shown}
    players, more = embedded_sounds([(page, "" if page in seen else said) for page, said in record.sounds])
    blocks: list[Any] = []
    for path, picture in shown.items():
        blocks.append(picture)
        if (page := path.with_suffix(".html")) in players:
            blocks.append(players.pop(page))
    blocks += players.values()
    for path, caption in record.listings:
        blocks += [Text(caption), Listing(fit_to_leave(read_json(path, default=[])))]
    blocks += _too_large([*others, *more])
    return Section("What it looks like", blocks) if blocks else None


def explained(record: Record) -> list[Section]:
    """What was seen inside the encoder: a section for each method, with where it comes from and what it does not
    show."""
    number = max(1, sum(len(finding["shows"]) for _, finding in record.findings))
    found = []
    for folder, finding in record.findings:
        blocks: list[Any] = [Text(finding["method"]), *map(Text, fit_to_leave(finding["said"]))]
        for shown in finding["shows"]:
            blocks += _shown(shown, folder / "assets", EXPLAINING // number)
        sources = [("Source", f"{paper} ({address})") for paper, address in finding["papers"].items()]
        blocks.append(Facts([("What it does not show", finding["limits"]), *sources]))
        found.append(Section(finding["title"], blocks))
    return found


def _shown(shown: dict[str, Any], assets: Path, most: int) -> list[Any]:
    """What a finding shows as parts of a page; pictures and sounds take so many bytes at most."""
    caption, blocks = shown["caption"], []
    named = [shown[kind] for kind in ("picture", "sounds") if kind in shown]
    # the end of a run writes assets/ anew
    if gone := [name for name in named if not (assets / name).is_file()]:
        return [Text(f"{caption} Not there any more: {', '.join(gone)} in assets/.")]
    if "picture" in shown:
        made, others = embedded_pictures([(assets / shown["picture"], caption)], 2 * most)
        blocks += [*made.values(), *_too_large(others)]
    if "sounds" in shown:
        said = "" if "picture" in shown else caption
        players, others = embedded_sounds([(assets / shown["sounds"], said)], most)
        blocks += [*players.values(), *_too_large(others)]
    if "words" in shown:
        blocks.append(Words(caption, [(title, list(maps.items())) for title, maps in shown["words"]]))
    if "listing" in shown:
        blocks += [Text(caption), Listing(fit_to_leave(shown["listing"]))]
    if "table" in shown:
        blocks.append(Table(caption, shown["table"]["head"], shown["table"]["rows"]))
    return blocks


def _too_large(names: Sequence[str]) -> list[Text]:
    """What of these files is not on the page, or not all of it."""
    return [Text(f"Too large for this page, and in assets/ of the folder: {', '.join(names)}.")] if names else []


def words(record: Record) -> Section | None:
    """What a language model says."""
    examples = record.run.get("examples")
    if not examples:
        return None
    lines = [example_lines(example) for example in examples]
    return Section("What it says", [Text("On held-out text:"), Listing([(text, more) for text, *more in lines])])


def again(record: Record) -> Section | None:
    """The command, and what it ran on."""
    command = record.first("command")
    if not command:
        return None
    versions = ", ".join(f"{package} {version}" for package, version in (record.first("versions") or {}).items())
    steps = [
        (each["name"], f"{each['seconds']:,.0f} s", each["state"], each["command"])
        for each in record.plan.get("steps", [])
    ]
    facts = [("Commit of hfssl", record.first("commit") or "unknown"), ("Versions", versions)]
    run = record.run
    if "settings" in run:
        facts += [("Seed", str(run["settings"]["run"].get("seed", ""))), ("Precision", run["precision"])]
        facts.append(("Machine", f"{run['device']}, {run['processes']} process(es)"))
    if cost := cost_in_words(run):
        facts.append(("Cost", cost))
    commands = dict.fromkeys([command, *(each.command for each in [*record.results, *record.biases])])
    blocks: list[Any] = [Code(each) for each in commands]
    if steps:
        blocks = [Table("The steps", ("step", "time", "state", "command"), steps)]
    return Section("Do it again", [*blocks, Facts([each for each in facts if each[1]])])


def missing(record: Record) -> Section | None:
    """What the folder does not hold."""
    return Section("What is missing", [Text(text) for text in record.missing]) if record.missing else None


SECTIONS: Sequence[Callable[[Record], Section | list[Section] | None]] = (
    summary, choices, curves, health, measured, layers, classes, groups, bias, explained, pictures, words, again,
    missing,
)  # fmt: skip


# -- what they share ------------------------------------------------------------------------------------------------


def last_verdict(record: Record) -> dict[str, Any] | None:
    """The last entry of the log with a verdict."""
    return next((entry for entry in reversed(record.history) if "health_verdict" in entry), None)


def main_results(results: Sequence[Result]) -> list[Result]:
    """Of each protocol, task and variant the figure that comes first."""
    first: dict[Any, Result] = {}
    for each in results:
        first.setdefault((each.protocol, each.version, each.task, each.num_train, str(each.hyperparameters)), each)
    return list(first.values())


def named(result: Result, between: str) -> str:
    """What a figure is called: its protocol, and its metric where that does not say it."""
    title = title_of(result)
    return f"{title}{between.rstrip(':,')}" if result.metric in title else f"{title}{between} {result.metric}"


def bars(result: Result) -> Bars:
    """A figure beside its baselines, each with a bar where it is a share of 1 or less."""
    rows = {"this model": (result.value, result.std)} | {
        name.replace("_", " "): (value, result.baselines_std.get(name)) for name, value in result.baselines.items()
    }
    values = [value for value, _ in rows.values() if value is not None]
    largest = 1.0 if all(0 <= value <= 1 for value in values) else max(map(abs, values), default=1.0)
    about = [f"{result.num_eval:,} rows of {result.split}"]
    about += [f"{result.num_train:,} to learn from"] if result.num_train else []
    about += [f"{len(result.seeds)} seeds"] if len(result.seeds) > 1 else []
    about += [] if result.greater_is_better else ["less is better"]
    return Bars(
        named(result, f" on {result.task}:"),
        ", ".join(about),
        [(name, number(*value), _length(value[0], largest)) for name, value in rows.items()],
    )


def baselines_of(results: Sequence[Result]) -> list[str]:
    """The baselines that any of some results has."""
    return list(dict.fromkeys(name for each in results for name in each.baselines))


def figures_of(result: Result, results: Sequence[Result]) -> list[str]:
    """A result and its baselines as cells of a table of all of them."""
    return [
        number(result.value, result.std),
        *(number(result.baselines.get(n), result.baselines_std.get(n)) for n in baselines_of(results)),
    ]


def _length(value: float | None, largest: float) -> float | None:
    return None if value is None else min(max(value / (largest or 1.0), 0.0), 1.0)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%"
