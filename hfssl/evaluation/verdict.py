"""Whether a run learns or collapses, seen from clean held-out samples: a few figures and one verdict an evaluation.

A falling loss does not show collapse: all samples get the same embedding (*constant*), or embeddings differ in a few
directions only (*few directions*). What is looked at depends on what a method compares.

| what is measured | of | 1 is | 0 is |
|---|---|---|---|
| `std` | embeddings; projections | as spread as random directions | all the same |
| effective rank | embeddings; projections | (the number of directions in use) | |
| margin | two views of a sample against other samples | views equal, samples orthogonal | views say nothing |
| target margin | by what share of chance the targets of other samples raise the loss | | targets say nothing |

The first measurement, before training, is never called collapsed: random transformers give nearly the same vector for
every input. After it, the first rule that holds decides:

| verdict | if | for |
|---|---|---|
| collapsed, constant | `std` of embeddings below 1/100 of the most that this run had | all methods |
| collapsed, constant | `std` of projections below 1/10 of the most | methods that compare samples |
| collapsed, few directions | rank of projections below 1/10 of the most | the same |
| collapsed, few directions | rank below half of the most, and a third of the entropy of random directions | the same |
| narrowing | `std` or rank of projections below 1/3 of the most | the same |
| collapsed, late | `std` of embeddings below what bfloat16 rounds away | all |
| collapsed, late | margin below 3 times that of random vectors; or target margin below 1/500 | the same |
| healthy | otherwise | all |

*Late* is after a third of the run and 100 steps. "The most" of the rank is also that of the encoder before training,
which shows how many directions there are in the data, and never more than `n` random vectors of size `d` have
([`~hfssl.functional.embedding_figures.random_rank`]): 256 samples of size 128 that keep 5 directions can hold a
handful of groups apart, not samples. The margin of random vectors is 1/√(n·d), 0.004 for 256 samples and dimensions;
runs that learn lie several times above. A run without a margin has collapsed since the first of its measurements
without one: since step 0 if it never learned anything.

Masked and causal models compare no samples. Their embeddings often lie in a narrow cone and are none the worse for it:
cosine and rank are reported, and only whether the encoder still tells its inputs apart is judged. Language models pass
through less than a twentieth of their first `std` and recover, hence 1/100.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError


HEALTHY, NARROWING, COLLAPSED = "healthy", "narrowing", "collapsed"
CONSTANT, FEW_DIRECTIONS, VIEWS_APART = "constant", "few directions", "views apart"


# What is left of a figure, relative to the most that there was: half a decade and a decade.
NARROW, GONE = 1 / 3, 1 / 10


# Of the `std` of an encoder. Language models pass through less than a twentieth of their first `std` while they learn
# how frequent each token is, and recover.
INPUTS_TOLD_APART = 1 / 100


# Of the entropy of random directions.
LEAST_ENTROPY = 1 / 3


# When a run must have something to show. A run of fewer steps may have learned nothing and be none the worse for it:
# Adam moves a weight by about its learning rate in each.
FAIR_SHARE, FAIR_STEPS = 1 / 3, 100


# Of the loss of chance.
TARGETS_TOLD_APART = 1 / 500


BFLOAT16_STEP = 2**-8


def judge(
    figures: dict[str, Any], past: Sequence[dict[str, Any]], step: int, progress: float = 0.0
) -> tuple[str, str | None]:
    """The verdict on some figures, by the rules at the top of the module.

    Args:
        figures (`dict[str, float]`):
            What was measured at `step`.
        past (`Sequence[dict[str, Any]]`):
            What was measured before, each with its `health_verdict`; the first is the state before training.
        step (`int`):
            Steps that are done.
        progress (`float`, *optional*, defaults to `0.0`):
            Share of the run that is done, in [0, 1].

    Returns:
        `tuple[str, str | None]`: `healthy`, `narrowing` or `collapsed since step N`; and what the embeddings have
        become (`constant`, `few directions` or `views apart`), `None` while they are healthy. N is 0 for a run that
        never told samples apart.
    """
    if not past:
        return HEALTHY, None
    verdict, symptom = _compared(figures, past)
    since = step
    if _says_nothing(figures):
        if verdict != COLLAPSED and step >= FAIR_STEPS and progress >= FAIR_SHARE:
            verdict, symptom = COLLAPSED, CONSTANT
            differs = figures["health_std"] >= BFLOAT16_STEP and figures.get("health_projection_std", 0.0) >= NARROW
            if differs and "health_target_margin" not in figures:
                symptom = VIEWS_APART
            for entry in reversed(past):
                if not _says_nothing(entry):
                    break
                since = entry["step"]
        elif symptom == FEW_DIRECTIONS and "health_target_margin" in figures:
            symptom = CONSTANT  # to the loss, whatever it is that projections differ in
    if verdict == COLLAPSED:
        before = past[-1]["health_verdict"]
        verdict = before if before.startswith(COLLAPSED) else f"{COLLAPSED} since step {since}"
    return verdict, symptom


def _says_nothing(figures: dict[str, Any]) -> bool:
    """Whether figures are such as no network has that has learned something."""
    if figures["health_std"] < BFLOAT16_STEP:
        return True
    if "health_target_margin" in figures:
        return figures["health_target_margin"] < TARGETS_TOLD_APART
    return "health_margin" in figures and figures["health_margin"] < figures["health_margin_of_chance"]


def _compared(figures: dict[str, Any], past: Sequence[dict[str, Any]]) -> tuple[str, str | None]:
    """What has become of a run in comparison with what it was."""
    everything = [*past, figures]

    def left(name: str) -> float:
        return figures[name] / max(max(entry.get(name, 0.0) for entry in everything), 1e-12)

    if left("health_std") < INPUTS_TOLD_APART:
        return COLLAPSED, CONSTANT
    if "health_projection_std" not in figures:
        return HEALTHY, None
    std, directions = left("health_projection_std"), figures["health_projection_effective_rank"]
    most = max(directions / max(left("health_projection_effective_rank"), 1e-12), past[0]["health_effective_rank"])
    most = min(most, figures["health_random_rank"])
    least = figures["health_random_rank"] ** LEAST_ENTROPY
    if std < GONE:
        return COLLAPSED, CONSTANT
    if directions < max(GONE * most, min(least, most / 2)):
        return COLLAPSED, FEW_DIRECTIONS
    if std < NARROW:
        return NARROWING, CONSTANT
    if directions < NARROW * most:
        return NARROWING, FEW_DIRECTIONS
    return HEALTHY, None


def describe(entry: dict[str, Any]) -> str:
    """Verdict, cause and the figures behind it, in one line."""
    if "health_projection_std" in entry:
        found = entry.get("health_target_margin", entry.get("health_margin"))
        figures = (
            f"projections: effective rank {entry['health_projection_effective_rank']:.1f} of "
            f"{entry['health_random_rank']:.0f}, std {entry['health_projection_std']:.2g} of 1; "
            + (f"margin {found:.2g}, " if found is not None else "")
            + f"alignment {entry['health_alignment']:.2f}, uniformity {entry['health_uniformity']:.2f}"
        )
    else:
        figures = (
            f"embeddings: effective rank {entry['health_effective_rank']:.1f}, std {entry['health_std']:.2g} of 1"
        )
    cause = f". Likely cause: {entry['health_cause']}" if "health_cause" in entry else ""
    return f"{entry['health_verdict']} ({figures}){cause}"


def last_healthy_step(history: Iterable[dict[str, Any]]) -> int | None:
    """The last step at which a run was healthy, so far as is known by now; `None` where there is none."""
    entries = [entry for entry in history if "health_verdict" in entry]
    since = math.inf
    if entries and entries[-1]["health_verdict"].startswith(COLLAPSED):
        since = int(entries[-1]["health_verdict"].rpartition(" ")[2])
    steps = [entry["step"] for entry in entries if entry["health_verdict"] == HEALTHY and entry["step"] < since]
    return max(steps, default=None)


def collapse_error(entry: dict[str, Any], step: int, healthy_checkpoint: Path | None) -> UserError:
    """The error of a run that `--stop_on_collapse` ends.

    Args:
        entry (`dict[str, Any]`):
            What [`~hfssl.training.health.HealthMonitor.check`] returned.
        step (`int`):
            Steps that are done.
        healthy_checkpoint (`Path`, *optional*):
            The newest one up to the last healthy evaluation.
    """
    return UserError(
        f"Stopped at step {step}, {entry['health_verdict']}, likely because {entry['health_cause']}; "
        f"last healthy checkpoint: {healthy_checkpoint or 'none'}."
    )


def health_table(history: Iterable[dict[str, Any]]) -> str:
    """The verdict of a run and how it came about, in Markdown; empty where nothing was measured."""
    entries = [entry for entry in history if "health_verdict" in entry]
    if not entries:
        return ""
    names = {
        "health_projection_effective_rank": "effective rank of projections",
        "health_projection_std": "std of projections",
        "health_margin": "margin of views",
        "health_target_margin": "margin of targets",
        "health_alignment": "alignment",
        "health_uniformity": "uniformity",
        "health_effective_rank": "effective rank of embeddings",
        "health_rankme": "RankMe",
        "health_std": "std of embeddings",
        "health_mean_cosine": "mean cosine",
        "health_teacher_distance": "distance of the teacher",
        "health_grad_norm": "norm of the gradient",
    }
    names = {name: title for name, title in names.items() if name in entries[-1]}
    changes = [b for a, b in zip(entries, entries[1:], strict=False) if a["health_verdict"] != b["health_verdict"]]
    rows = {entry["step"]: entry for entry in (entries[0], *changes, entries[-1])}
    lines = ["| " + " | ".join(["step", "verdict", *names.values()]) + " |", "|---" * (2 + len(names)) + "|"]
    for step, entry in rows.items():
        figures = [f"{entry[name]:.3g}" if name in entry else "" for name in names]
        lines.append("| " + " | ".join([f"{step:,}", entry["health_verdict"], *figures]) + " |")
    return f"At the end of training, on clean held-out samples: {describe(entries[-1])}.\n\n" + "\n".join(lines)


def plot_health(history: Iterable[dict[str, Any]], path: Path) -> bool:
    """Effective rank and std over the steps of a run, as a picture; `False` where nothing was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = [entry for entry in history if "health_verdict" in entry]
    if not entries:
        return False
    figure = Figure(figsize=(7, 3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, 2), ("effective_rank", "std"), strict=True):
        for prefix, label in (("health_projection_", "projections"), ("health_", "embeddings")):
            points = [(entry["step"], entry[prefix + name]) for entry in entries if prefix + name in entry]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", label=label, markersize=4, linewidth=1)
        axes.set(xlabel="step", ylabel=name.replace("_", " "))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return True
