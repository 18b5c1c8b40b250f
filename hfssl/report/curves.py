"""Curves of a run: its losses beside chance, its health beside what the verdict goes by, its probes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.verdict import limits


if TYPE_CHECKING:
    from matplotlib.figure import Figure


# What the verdict looks at, of embeddings and of what a method compares.
_HEALTH = {
    "health_projection_std": "std of projections",
    "health_projection_effective_rank": "effective rank of projections",
    "health_recognition": "recognition of views",
    "health_target_margin": "margin of targets",
    "health_std": "std of embeddings",
}
_KNN = {"eval_knn_accuracy": "accuracy", "eval_knn_auroc": "AUROC"}


def plot_history(
    history: list[dict[str, Any]],
    path: Path,
    contrasted: tuple[int, int] | None = None,
    units: dict[str, str] | None = None,
) -> None:
    """Training and held-out loss over the steps of a run, and the terms of the loss by name, as a picture.

    Args:
        path (`Path`):
            The picture.
        history, contrasted, units:
            See [`history_figure`].
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    history_figure(history, contrasted, units).savefig(path, dpi=120)


def history_figure(
    history: list[dict[str, Any]],
    contrasted: tuple[int, int] | None = None,
    units: dict[str, str] | None = None,
) -> "Figure":
    """Only what can be compared shares an axis: terms of one unit, and with them the whole loss if all have that unit;
    training and held out, unless another number of images is contrasted at once in them.

    Args:
        history (`list[dict[str, Any]]`):
            The log of the run.
        contrasted (`tuple[int, int]`, *optional*):
            Images that are contrasted at once in training and of those held out, where a loss depends on it.
        units (`dict[str, str]`, *optional*):
            Unit of each term of the loss by its name: `loss_units` of a method.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    units = units or {}
    panels: dict[str, list[str]] = {"": ["loss"]}
    if len(set(units.values())) == 1:
        panels = {next(iter(units.values())): ["loss"]}
    for name, unit in units.items():
        panels.setdefault(unit, []).append(f"loss_{name}")
    # a held-out loss that is one term of several is drawn under the name of the term
    measured = [entry for entry in history if "eval_loss" in entry]
    repeated = any(all(entry.get(f"eval_loss_{name}") == entry["eval_loss"] for entry in measured) for name in units)
    kinds = {"": "training", "eval_": "held out"}
    if contrasted is not None:
        counts = zip(kinds.items(), contrasted, strict=True)
        kinds = {prefix: f"{kind} ({count:,} images at once)" for (prefix, kind), count in counts}
    axes_of = [(unit, losses, kinds) for unit, losses in panels.items()]
    if contrasted is not None and len(set(contrasted)) > 1:
        axes_of = [(unit, losses, {kind: kinds[kind]}) for unit, losses, _ in axes_of for kind in kinds]
    # terms are not measured on held-out data
    names = set().union(*history)
    seen = [each for each in axes_of if any(prefix + loss in names for loss in each[1] for prefix in each[2])]
    axes_of = seen or axes_of[:1]
    figure = Figure(figsize=(7, 4 * len(axes_of)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (unit, losses, shown) in zip(
        figure.subplots(len(axes_of), squeeze=False, sharex=True)[:, 0], axes_of, strict=True
    ):
        for i, loss in enumerate(losses):
            drawn = {}
            for prefix, kind in shown.items():
                points = [(entry["step"], entry[prefix + loss]) for entry in history if prefix + loss in entry]
                if not points or prefix + loss == "eval_loss" and repeated:
                    continue
                drawn[prefix] = kind
                label = kind if loss == "loss" else f"{loss.removeprefix('loss_')}, {kind}"
                color = f"C{i if units else list(kinds).index(prefix)}"
                # a line through one point is none
                style = "o-" if prefix or len(points) == 1 else "-"
                axes.plot(*zip(*points, strict=True), style, label=label, color=color, markersize=4, linewidth=1)
            for level, label in _chance_lines(history, loss, drawn).items():
                axes.axhline(level, linestyle="--", color=f"C{i}" if units else "grey", linewidth=1, label=label)
        axes.set(xlabel="step", ylabel=f"loss ({unit})" if unit else "loss")
        axes.tick_params(labelbottom=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    return figure


def _chance_lines(history: list[dict[str, Any]], loss: str, kinds: dict[str, str]) -> dict[float, str]:
    """The levels of chance of a loss, with what they are called; one where it is the same in training and held out."""
    levels: dict[float, str] = {}
    for prefix, kind in kinds.items():
        found = [entry[f"{prefix}chance_{loss}"] for entry in history if f"{prefix}chance_{loss}" in entry]
        if found:
            name = "chance" if loss == "loss" else f"{loss.removeprefix('loss_')}, chance"
            levels[found[-1]] = name if found[-1] in levels else f"{name}, {kind}"
    return levels


def health_figure(history: Sequence[dict[str, Any]]) -> "Figure | None":
    """What the verdict looked at over the steps of a run, with the levels below which it is narrowing or collapsed."""
    entries = [entry for entry in history if "health_verdict" in entry]
    names = [name for name in _HEALTH if any(name in entry for entry in entries)]
    if not names:
        return None
    figure = _figure(len(names))
    levels = [limits(entry, entries[:i]) if i else {} for i, entry in enumerate(entries)]
    for axes, name in zip(figure.axes, names, strict=True):
        _line(axes, [(entry["step"], entry[name]) for entry in entries if name in entry], "measured", "C0")
        for verdict, colour in (("narrowing", "C1"), ("collapsed", "C3")):
            points = [
                (entry["step"], of_entry[name][verdict])
                for entry, of_entry in zip(entries, levels, strict=True)
                if verdict in of_entry.get(name, {})
            ]
            if points:
                axes.plot(*zip(*points, strict=True), "--", label=f"{verdict} below", color=colour, linewidth=1)
        axes.set(title=_HEALTH[name], ylim=(0, None))
        axes.legend(fontsize=8)
    figure.axes[-1].set_xlabel("step")
    return figure


def knn_figure(history: Sequence[dict[str, Any]], baselines: dict[str, float]) -> "Figure | None":
    """k-NN of the encoder while it trained, beside the baselines that were measured at the end."""
    name = next((name for name in _KNN if any(name in entry for entry in history)), None)
    if name is None:
        return None
    figure = _figure(1)
    [axes] = figure.axes
    _line(axes, [(entry["step"], entry[name]) for entry in history if name in entry], "while it trained", "C0")
    for i, (kind, value) in enumerate(baselines.items()):
        axes.axhline(value, linestyle="--", color=f"C{1 + i}", linewidth=1, label=kind)
    axes.set(xlabel="step", ylabel=f"k-NN {_KNN[name]}")
    axes.legend(fontsize=8)
    return figure


def pace_figure(history: Sequence[dict[str, Any]]) -> "Figure | None":
    """Learning rate and norm of the gradient."""
    shown = {"learning_rate": "learning rate", "grad_norm": "norm of the gradient"}
    shown = {name: title for name, title in shown.items() if any(name in entry for entry in history)}
    if not shown:
        return None
    figure = _figure(len(shown))
    for axes, (name, title) in zip(figure.axes, shown.items(), strict=True):
        _line(axes, [(entry["step"], entry[name]) for entry in history if name in entry], None, "C0")
        axes.set(title=title)
    figure.axes[-1].set_xlabel("step")
    return figure


def curves_figure(curves: dict[str, list[tuple[float, float]]], label: str) -> "Figure":
    """One figure of several runs over their steps."""
    figure = _figure(1)
    [axes] = figure.axes
    for i, (name, points) in enumerate(curves.items()):
        _line(axes, points, name, f"C{i}")
    axes.set(xlabel="step", ylabel=label)
    axes.legend(fontsize=8)
    return figure


def _figure(rows: int) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 0.6 + 2.2 * rows), layout="constrained")
    for axes in figure.subplots(rows, 1, squeeze=False)[:, 0]:
        axes.grid(alpha=0.3)
    return figure


def _line(axes: Any, points: Sequence[tuple[float, float]], label: str | None, color: str) -> None:
    style = "o-" if len(points) <= 30 else "-"
    axes.plot(*zip(*points, strict=True), style, label=label, color=color, markersize=3, linewidth=1)
