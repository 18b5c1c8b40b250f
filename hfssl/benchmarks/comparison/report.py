"""The table of a comparison, what it says of each method, the curves as a picture, and all of it side by side."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...evaluation.knn import KnnEvaluator
from ...evaluation.linear_probe import LinearProbeEvaluator
from ...evaluation.probe_features import MAJORITY, RANDOM_INIT, RAW_INPUT
from ...evaluation.results import Result
from ...machine import fit_to_leave
from ...report.comparison import write_records
from ...report.record import Record
from .plan import BASELINES, METHODS, OURS, Cell, Comparison, read_cell


# What a method is judged by: the first number of neighbours of the protocol.
MAIN = "knn_20"

Figures = list[float]


def report(arguments: Comparison) -> str:
    """Write `comparison.md`, `.png` and `.html` of the cells that have finished, and return the text."""
    records = {cell.name: record for cell in arguments.cells if (record := read_cell(arguments, cell)) is not None}
    baselines = records.pop(BASELINES, None)
    by_side: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records.values():
        by_side.setdefault((record["method"], record["side"]), []).append(record)
    text = _text(arguments, by_side, baselines)
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.md").write_text(text + "\n", encoding="utf-8")
    if by_side:
        plot_curves(by_side, baselines, folder / "comparison.png")
        cells = {name: as_record(arguments, name, record, baselines) for name, record in records.items()}
        page = write_records(cells, folder / "comparison.html")
        text += f"\n\nTable and curves: {folder / 'comparison.md'}, {folder / 'comparison.png'}; side by side: {page}"
    return text


# What is measured of a cell, by its name there: protocol, number of neighbours.
_FIGURES = {
    "knn_20": (KnnEvaluator, {"k": 20}),
    "knn_200": (KnnEvaluator, {"k": 200}),
    "linear": (LinearProbeEvaluator, {}),
}


def as_record(arguments: Comparison, name: str, cell: dict[str, Any], baselines: dict[str, Any] | None) -> Record:
    """A cell as a record of a run, such as `recipes/report.py` puts side by side."""
    seed, ends = cell["seed"], cell["curve"][-1] | {"linear": cell["linear"]}
    results = []
    for figure, (protocol, variant) in _FIGURES.items():
        beside: dict[str, float] = {}
        if baselines is not None:
            at_random = baselines["random_init"].get(str(seed))
            beside = {} if at_random is None else {RANDOM_INIT: at_random[figure]}
            beside |= {RAW_INPUT: baselines["raw_input"][figure], MAJORITY: baselines["majority"]}
        results.append(
            Result.from_scores(
                {seed: ends[figure]},
                beside,
                protocol=protocol.protocol,
                version=protocol.version,
                model=name,
                task=fit_to_leave(arguments.dataset or "letters"),
                split=arguments.test_split,
                metric="accuracy",
                num_train=arguments.max_train_samples,
                num_eval=arguments.max_test_samples,
                hyperparameters=variant,
                command=cell["command"],
                commit=cell["commit"],
                versions=cell["versions"],
            )  # fmt: skip
        )
    history = [
        {"step": point["step"], "loss": point["loss"], "eval_knn_accuracy": point[MAIN]}
        | {key: value for key, value in point.items() if key.startswith("health_")}
        for point in cell["curve"]
    ]
    title = METHODS[cell["method"]].title
    threads = cell["threads"]
    protocol = cell["protocol"]
    run = {
        "title": title if cell["side"] == OURS else f"{title}, {cell['side']}", "method": cell["method"],
        "step": cell["steps"], "history": history, "cost": {"seconds": cell["seconds"]}, "processes": 1,
        "device": f"{threads} thread{'s' * (threads != 1)}", "command": cell["command"],
        "settings": {
            "run": {"seed": seed, **protocol["training"]}, "method": {"name": cell["method"], **protocol["config"]},
            "data": {key: value for key, value in protocol.items() if key not in ("config", "training")},
        },
    }  # fmt: skip
    return Record(Path(arguments.output_dir) / name, fit_to_leave(run), results)


def at_time_of(record: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The last point of a curve that was reached in no more training seconds than the whole of the other took."""
    return [point for point in record["curve"] if point["seconds"] <= other["seconds"]][-1]


def _text(
    arguments: Comparison,
    by_side: dict[tuple[str, str], list[dict[str, Any]]],
    baselines: dict[str, Any] | None,
) -> str:
    done, planned = sum(map(len, by_side.values())), len(arguments.cells) - 1
    heads = [
        "method", "k-NN, k = 20", "at the other's time", "k-NN, k = 200", "linear probe", "seconds", "CPU seconds",
        "verdict",
    ]  # fmt: skip
    rows, verdicts = [], []
    for method in METHODS:
        ours, theirs = by_side.get((method, OURS), []), by_side.get((method, arguments.against), [])
        for side, own, other in ((OURS, ours, theirs), (arguments.against, theirs, ours)):
            if own:
                rows.append(_row(f"{METHODS[method].title}, {side}", own, _paired(own, other)))
        verdicts += _verdicts(method, arguments.against, ours, theirs, baselines)
    if baselines is not None:
        rows += _baseline_rows(baselines)
    lines = [_setting(arguments, by_side), "", *_markdown(heads, rows)]
    if done < planned or baselines is None:
        missing = [cell.name for cell in arguments.cells if not _is_there(cell, by_side, baselines)]
        lines += ["", f"{done} of {planned} trainings have finished; missing: {', '.join(missing)}."]
    if verdicts:
        lines += ["", *(f"- {verdict}" for verdict in verdicts)]
    return "\n".join(lines)


def _is_there(cell: Cell, by_side: dict[tuple[str, str], list[dict[str, Any]]], baselines: Any) -> bool:
    if cell.method == BASELINES:
        return baselines is not None
    return any(record["seed"] == cell.seed for record in by_side.get((cell.method, cell.side), []))


def _setting(arguments: Comparison, by_side: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    encoder = arguments.encoder + (f" {arguments.encoder_config}" if arguments.encoder_config else "")
    some = next(iter(by_side.values()), [None])[0]
    words = [encoder]
    if some:
        seen = some["steps"] * arguments.batch_size / some["num_images"]
        words.append(f"{some['steps']:,} steps of {arguments.batch_size}")
        words.append(f"{seen:.3g} times {some['num_images']:,} images")
    else:
        words.append("nothing trained")
    given = arguments.learning_rate
    rate = "learning rate of the method" if given is None else f"learning rate {given:g}"
    words.append(f"AdamW, {rate}, warm-up {arguments.warmup:g}, cosine")
    if some:
        words.append(f"{some['precision']}, {some['threads']} thread{'s' if some['threads'] != 1 else ''}")
    probes = f"Probes: {arguments.max_train_samples:,} images of {arguments.split} at most, measured on at most "
    return ", ".join(words) + f".\n{probes}{arguments.max_test_samples:,} of {arguments.test_split}."


def _paired(own: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The runs of one side beside those of the other with the same seed."""
    by_seed = {record["seed"]: record for record in other}
    return [(record, by_seed[record["seed"]]) for record in own if record["seed"] in by_seed]


def _row(title: str, own: list[dict[str, Any]], pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    at_time = "–"
    if pairs:
        points = [at_time_of(record, other) for record, other in pairs]
        at_time = _percent([point[MAIN] for point in points])
        seconds = statistics.fmean(point["seconds"] for point in points)
        ended = all(point["step"] == record["steps"] for point, (record, _) in zip(points, pairs, strict=True))
        at_time += f" ({'ended' if ended else 'not ended'}, {seconds:,.0f} s)"
    ends = [record["curve"][-1] for record in own]
    return [
        title, _percent([end[MAIN] for end in ends]), at_time, _percent([end["knn_200"] for end in ends]),
        _percent([record["linear"] for record in own]),
        *(_spread([record[name] for record in own], ",.0f") for name in ("seconds", "cpu_seconds")),
        ", ".join(sorted({end.get("health_verdict", "–") for end in ends})),
    ]  # fmt: skip


def _baseline_rows(baselines: dict[str, Any]) -> list[list[str]]:
    at_random = list(baselines["random_init"].values())
    rows = []
    for title, figures in (("random initialisation", at_random), ("raw pixels", [baselines["raw_input"]])):
        knn, knn_200, linear = (_percent([f[name] for f in figures]) for name in (MAIN, "knn_200", "linear"))
        rows.append([title, knn, "–", knn_200, linear, "–", "–", "–"])
    majority = _percent([baselines["majority"]])
    return [*rows, ["most frequent class", majority, "–", majority, majority, "–", "–", "–"]]


def _verdicts(
    method: str,
    against: str,
    ours: list[dict[str, Any]],
    theirs: list[dict[str, Any]],
    baselines: dict[str, Any] | None,
) -> list[str]:
    """What the figures say, in words: against the other side, and against the baselines."""
    found = []
    pairs = _paired(ours, theirs)
    if pairs:
        mine, other = ([r["curve"][-1][MAIN] for r in side] for side in zip(*pairs, strict=True))
        difference = statistics.fmean(mine) - statistics.fmean(other)
        # the larger of the two: of so few seeds, each is a rough guess
        deviation = max(_deviation(mine), _deviation(other))
        word = "above" if difference > deviation else "equal to" if difference >= -deviation else "below"
        spread = f"one standard deviation is {100 * deviation:.1f}" if len(pairs) > 1 else "of one seed"
        at_time = [at_time_of(a, b)[MAIN] for a, b in pairs]
        at_equal_time = statistics.fmean(at_time) - statistics.fmean(other)
        speed = statistics.fmean(b["seconds"] / a["seconds"] for a, b in pairs)
        found.append(
            f"{METHODS[method].title}: {word} {against} at equal steps "
            f"({100 * difference:+.1f} points, {spread}); "
            f"{100 * at_equal_time:+.1f} points at its wall time; {speed:.2f} × its speed."
        )
    if ours and baselines is not None:
        pixels = baselines["raw_input"][MAIN]
        knn = statistics.fmean(r["curve"][-1][MAIN] for r in ours)
        at_random = statistics.fmean(f["linear"] for f in baselines["random_init"].values())
        linear = statistics.fmean(r["linear"] for r in ours)
        found.append(
            f"{METHODS[method].title}: k-NN {100 * (knn - pixels):+.1f} points beside raw pixels, linear probe "
            f"{100 * (linear - at_random):+.1f} points beside random initialisation."
        )
    return found


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _percent(values: Figures) -> str:
    return _spread([100 * value for value in values], ".1f")


def _spread(values: Figures, form: str) -> str:
    mean = f"{statistics.fmean(values):{form}}"
    return mean + (f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else "")


def _markdown(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def plot_curves(
    by_side: dict[tuple[str, str], list[dict[str, Any]]], baselines: dict[str, Any] | None, path: Path
) -> None:
    """k-NN over training seconds, a panel for each method: ours in full lines, the other side's dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = [method for method in METHODS if any(m == method for m, _ in by_side)]
    figure = Figure(figsize=(4 * len(methods), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, method in zip(figure.subplots(1, len(methods), squeeze=False)[0], methods, strict=True):
        for (name, side), records in by_side.items():
            if name != method:
                continue
            for number, record in enumerate(records):
                seconds = [point["seconds"] for point in record["curve"]]
                accuracy = [100 * point[MAIN] for point in record["curve"]]
                style = {"color": "C0"} if side == OURS else {"color": "C1", "linestyle": "--"}
                label = None if number else side
                axes.plot(seconds, accuracy, marker="o", markersize=3, linewidth=1.2, label=label, **style)
        if baselines is not None:
            axes.axhline(100 * baselines["raw_input"][MAIN], color="0.6", linewidth=1, label="raw pixels")
        axes.set(title=METHODS[method].title, xlabel="seconds of training", ylabel="k-NN accuracy in %, k = 20")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
