"""Figures in words, as card and report say them."""

from typing import Any

from ..evaluation.results import Result


def number(value: float | None, std: float | None = None, none: str = "–") -> str:
    """A figure with its standard deviation; `none` where there is no figure."""
    if value is None:
        return none
    return f"{value:.4g}" + (f" ± {std:.2g}" if std is not None else "")


def in_words(result: Result) -> str:
    """A figure and its baselines in a line."""
    beside = [f"{name.replace('_', ' ')} {number(value)}" for name, value in result.baselines.items()]
    return f"{number(result.value, result.std)} ({', '.join(beside)})" if beside else number(result.value, result.std)


def size_in_words(parameters: int) -> str:
    """How large a model is."""
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e5 else f"{parameters:,}"


def plain(value: Any) -> str:
    """A setting."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return " ".join(map(plain, value))
    return str(value)


def seen_in_words(run: dict[str, Any]) -> str:
    """What a run has been shown; empty where nothing counted it."""
    return f"{run['seen']['units']:,.0f} {run['unit']} in {run['step']:,} steps" if run["seen"] else ""


def cost_in_words(run: dict[str, Any]) -> str:
    """Time, device and energy of a run; empty where they are not known."""
    cost = run.get("cost") or {}
    if not cost.get("seconds"):
        return ""
    seconds, processes = cost["seconds"], run["processes"]
    said = f"{_time(seconds)} on {f'{processes} × ' if processes > 1 else ''}{run['device']}"
    if processes > 1:
        said += f", {processes * seconds / 3600:.3g} device-hours"
    if "joules" in cost:
        of = f" of one of {processes} GPUs" if processes > 1 else ""
        said += f", {cost['joules'] / 3.6e6:.3g} kWh by the counter{of}"
    return said


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
