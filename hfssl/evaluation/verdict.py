"""Whether a run learns or collapses, seen from clean held-out samples: a few figures and one verdict an evaluation.

A falling loss does not show collapse: all samples get the same embedding (*constant*), or embeddings differ in a few
directions only (*few directions*). What is looked at depends on what a method compares.

| what is measured | of | 1 is | 0 is |
|---|---|---|---|
| `std` | embeddings; projections | as spread as random directions | all the same |
| effective rank | embeddings; projections | (the number of directions in use) | |
| margin | two views of a sample against other samples | views equal, samples orthogonal | views say nothing |
| recognition | how often a view is nearer to that of its own sample than to others | always | (1/2 is chance) |
| target margin | by what share of chance the targets of other samples raise the loss | | targets say nothing |
| targets in use | codes or units of held-out frames, as many as of equal frequency | all the same | |

The first rule that holds decides:

| verdict | if |
|---|---|
| diverged | loss or embeddings are no numbers, or the held-out loss is 10 times that before training |
| untrained | before training; and while nothing was ever learned and it is too early to call that collapsed |
| collapsed since step N | nothing is left of what there was before step N; N is 0 where nothing was ever learned |
| narrowing | nothing is left, and it is too early to call that collapsed; or much less than there was. It may pass |
| learning | otherwise |

*Too early* is in the first third of a run, in its first 100 steps, and at the first evaluation that finds nothing
unless it is the last of the run. Nothing is left, or was ever learned, if

| | figure | of methods |
|---|---|---|
| constant | `std` of embeddings below 1/100 of the most that this run had, or below what bfloat16 rounds away | all |
| constant | `std` of projections below 1/10 of the most | that compare samples |
| few directions | rank of projections below 1/10 of the most | the same |
| few directions | rank below half of the most, and a third of the entropy of random directions | the same |
| views apart | recognition no higher than by chance; or target margin below 1/500 | the same |
| constant | `std` of embeddings below 1/3 of the most, and a held-out loss not 1 % below chance | that compare none |
| one target | targets in use below 2: the loss falls, and there is nothing to learn | that predict codes or units |

and there is much less if `std` or rank of projections are below 1/3 of the most. "The most" of the rank is also that
of the encoder before training, which shows how many directions there are in the data, and never more than `n` random
vectors of size `d` have ([`~hfssl.functional.embedding_figures.random_rank`]): 256 samples of size 128 that keep 5
directions can hold a handful of groups apart, not samples. For narrowing only ranks of evaluations that told samples
apart count: two towers with new weights have the rank of noise, more than there is to learn. Recognition by chance is
1/2 and three standard errors, 0.55 for 256 samples. How large the margin is says little: views that differ much leave
a small one.

Masked and causal models compare no samples. Their embeddings often lie in a narrow cone and are none the worse for it:
cosine and rank are reported, and only whether the encoder still tells its inputs apart is judged. Language models pass
through less than a twentieth of their first `std` and recover, hence 1/100; chance is the loss of the best of all
answers that are the same for every input, so that nearly one embedding and such a loss are one answer to everything.

A verdict is a function of figures that are in the log: `tests/calibration` replays it over runs that learned and runs
that were made to collapse.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError


UNTRAINED, LEARNING, NARROWING, COLLAPSED, DIVERGED = "untrained", "learning", "narrowing", "collapsed", "diverged"
CONSTANT, FEW_DIRECTIONS, VIEWS_APART, NO_NUMBERS = "constant", "few directions", "views apart", "no numbers"
ONE_TARGET = "one target"


# What is left of a figure, relative to the most that there was: half a decade and a decade.
NARROW, GONE = 1 / 3, 1 / 10


# Of the `std` of an encoder. Language models pass through less than a twentieth of their first `std` while they learn
# how frequent each token is, and recover.
INPUTS_TOLD_APART = 1 / 100


# Of the entropy of random directions.
LEAST_ENTROPY = 1 / 3


# When a run must have something to show, and by how many evaluations in a row. A run of fewer steps may have learned
# nothing and be none the worse for it: Adam moves a weight by about its learning rate in each. And some that end well
# lose nearly everything on the way.
FAIR_SHARE, FAIR_STEPS, IN_A_ROW = 1 / 3, 100, 2


# Of the loss of chance.
TARGETS_TOLD_APART = 1 / 500


# Of the codes or units that frames have, as many as of equal frequency: one of them is nearly always right.
FEWEST_TARGETS = 2


# Of the loss of chance too: by what a loss is below it that is below it.
BETTER_THAN_CHANCE = 1 / 100


# Of the held-out loss before training.
TOO_MUCH_LOSS = 10


BFLOAT16_STEP = 2**-8


MEANING = (
    "What verdicts mean: untrained, nothing is learned yet; learning, samples are told apart; narrowing, by less or "
    "in fewer directions than before, which may pass; collapsed, nothing is left or was ever learned (said after "
    f"{FAIR_SHARE:.0%} of the run and {FAIR_STEPS} steps, by {IN_A_ROW} evaluations in a row or the last); diverged, "
    "loss or embeddings are no numbers, or the loss is many times what it was."
)


def judge(
    figures: dict[str, Any], past: Sequence[dict[str, Any]], step: int, progress: float = 0.0
) -> tuple[str, str | None]:
    """The verdict on some figures, by the rules at the top of the module.

    Args:
        figures (`dict[str, float]`):
            What was measured at `step`: those of health, and `eval_loss` where there is one.
        past (`Sequence[dict[str, Any]]`):
            What was measured before, each with its `step`; the first is the state before training.
        step (`int`):
            Steps that are done.
        progress (`float`, *optional*, defaults to `0.0`):
            Share of the run that is done, in [0, 1].

    Returns:
        `tuple[str, str | None]`: `untrained`, `learning`, `narrowing`, `collapsed since step N` or `diverged`; and
        what the embeddings have become (`constant`, `few directions`, `views apart` or `no numbers`), or the targets
        (`one target`), `None` while a run learns. N is 0 for a run that never told samples apart.
    """
    if _diverged(figures, past):
        return DIVERGED, NO_NUMBERS
    if not past:
        return UNTRAINED, None
    state, symptom = _state(figures, past)
    if state != COLLAPSED:
        return state, symptom
    since, in_a_row = step, 1
    for i in reversed(range(len(past))):
        if _state(past[i], past[:i])[0] != COLLAPSED:
            break
        since, in_a_row = past[i]["step"], in_a_row + 1
    if step >= FAIR_STEPS and progress >= FAIR_SHARE and (in_a_row >= IN_A_ROW or progress >= 1):
        return f"{COLLAPSED} since step {since}", symptom
    if in_a_row > len(past):
        return UNTRAINED, None
    return NARROWING, symptom


def _diverged(figures: dict[str, Any], past: Sequence[dict[str, Any]]) -> bool:
    loss = figures.get("eval_loss", 0.0)
    if figures.get("health_not_finite", 0.0) > 0 or not math.isfinite(loss):
        return True
    before = past[0].get("eval_loss", math.inf) if past else math.inf
    return loss > TOO_MUCH_LOSS * before > 0


def _state(figures: dict[str, Any], past: Sequence[dict[str, Any]]) -> tuple[str, str | None]:
    """What is left, as if it were never too early to say so."""
    if figures.get("health_target_perplexity", FEWEST_TARGETS) < FEWEST_TARGETS:
        return COLLAPSED, ONE_TARGET
    state, symptom = _compared(figures, past) if past else (LEARNING, None)
    if not _says_nothing(figures):
        return state, symptom
    if state != COLLAPSED:
        differs = figures["health_std"] >= BFLOAT16_STEP and figures.get("health_projection_std", 0.0) >= NARROW
        return COLLAPSED, VIEWS_APART if differs and "health_target_margin" not in figures else CONSTANT
    # to the loss, whatever it is that projections differ in
    return COLLAPSED, CONSTANT if "health_target_margin" in figures else symptom


def _says_nothing(figures: dict[str, Any]) -> bool:
    """Whether figures are such as no network has that has learned something."""
    if figures["health_std"] < BFLOAT16_STEP:
        return True
    if "health_target_margin" in figures:
        return figures["health_target_margin"] < TARGETS_TOLD_APART
    return "health_recognition" in figures and figures["health_recognition"] < figures["health_recognition_of_chance"]


def _compared(figures: dict[str, Any], past: Sequence[dict[str, Any]]) -> tuple[str, str | None]:
    """What has become of a run in comparison with what it was."""
    levels = limits(figures, past)
    if figures["health_std"] < levels["health_std"][COLLAPSED]:
        return COLLAPSED, CONSTANT
    if "health_projection_std" not in figures:
        least_loss = (1 - BETTER_THAN_CHANCE) * figures.get("eval_chance_loss", math.inf)
        at_chance = figures.get("eval_loss", 0.0) >= least_loss
        is_narrow = figures["health_std"] < NARROW * _most("health_std", [*past, figures])
        return (COLLAPSED, CONSTANT) if at_chance and is_narrow else (LEARNING, None)
    symptoms = {"health_projection_std": CONSTANT, "health_projection_effective_rank": FEW_DIRECTIONS}
    for state in (COLLAPSED, NARROWING):
        for name, symptom in symptoms.items():
            if figures[name] < levels[name][state]:
                return state, symptom
    return LEARNING, None


def limits(figures: dict[str, Any], past: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Below which levels a figure is that of a run that is narrowing, or that has collapsed.

    Args:
        figures (`dict[str, Any]`), past (`Sequence[dict[str, Any]]`):
            Of [`judge`]; something was measured before.

    Returns:
        `dict[str, dict[str, float]]`: by the name of the figure, levels by the verdict.
    """
    everything = [*past, figures]
    found = {"health_std": {COLLAPSED: INPUTS_TOLD_APART * _most("health_std", everything)}}
    if "health_projection_std" in figures:
        std = _most("health_projection_std", everything)
        most, learned = (
            min(_most_directions(entries, past[0]), figures["health_random_rank"])
            for entries in (everything, [entry for entry in everything if not _says_nothing(entry)] or everything)
        )
        least = figures["health_random_rank"] ** LEAST_ENTROPY
        found["health_projection_std"] = {NARROWING: NARROW * std, COLLAPSED: GONE * std}
        found["health_projection_effective_rank"] = {
            NARROWING: NARROW * learned, COLLAPSED: max(GONE * most, min(least, most / 2)),
        }  # fmt: skip
    if "health_target_margin" in figures:
        found["health_target_margin"] = {COLLAPSED: TARGETS_TOLD_APART}
    elif "health_recognition" in figures:
        found["health_recognition"] = {COLLAPSED: figures["health_recognition_of_chance"]}
    return found


def _most(name: str, entries: Sequence[dict[str, Any]]) -> float:
    """The most that a run had of a figure."""
    return max(max(entry.get(name, 0.0) for entry in entries), 1e-12)


def _most_directions(entries: Sequence[dict[str, Any]], before: dict[str, Any]) -> float:
    """The highest rank of projections, and of the encoder before training where that is among the entries."""
    most = _most("health_projection_effective_rank", entries)
    return max(most, before["health_effective_rank"]) if before in entries else most


def has_ended(verdict: str) -> bool:
    """Whether a verdict is one that `--stop_on_collapse` ends a run by."""
    return verdict.startswith((COLLAPSED, DIVERGED))


def describe(entry: dict[str, Any]) -> str:
    """Verdict, cause and the figures behind it, in one line."""
    if "health_projection_std" in entry:
        told = (("margin", "health_target_margin"), ("recognition", "health_recognition"))
        found = next((f"{title} {entry[name]:.2g}, " for title, name in told if name in entry), "")
        figures = (
            f"projections: effective rank {entry['health_projection_effective_rank']:.1f} of "
            f"{entry['health_random_rank']:.0f}, std {entry['health_projection_std']:.2g} of 1; "
            + found
            + f"alignment {entry['health_alignment']:.2f}, uniformity {entry['health_uniformity']:.2f}"
        )
    else:
        figures = (
            f"embeddings: effective rank {entry['health_effective_rank']:.1f}, std {entry['health_std']:.2g} of 1"
        )
    if "health_target_perplexity" in entry:
        figures += f"; targets in use {entry['health_target_perplexity']:.3g}"
    cause, taken_back = "", entry.get("health_taken_back", "")
    if "health_cause" in entry:
        certain = has_ended(entry["health_verdict"])
        cause = f". {'Likely cause' if certain else 'If it stays so, the likely cause'}: {entry['health_cause']}"
    taken_back = f", no longer {taken_back}" if taken_back else ""
    return f"{entry['health_verdict']}{taken_back} ({figures}){cause}"


def last_learning_step(history: Iterable[dict[str, Any]]) -> int | None:
    """The last step at which a run was learning, so far as is known by now; `None` where there is none."""
    entries = [entry for entry in history if "health_verdict" in entry]
    since = math.inf
    if entries and entries[-1]["health_verdict"].startswith(COLLAPSED):
        since = int(entries[-1]["health_verdict"].rpartition(" ")[2])
    steps = [entry["step"] for entry in entries if entry["health_verdict"] == LEARNING and entry["step"] < since]
    return max(steps, default=None)


def collapse_error(entry: dict[str, Any], step: int, good_checkpoint: Path | None) -> UserError:
    """The error of a run that `--stop_on_collapse` ends.

    Args:
        entry (`dict[str, Any]`):
            What [`~hfssl.training.health.HealthMonitor.check`] returned.
        step (`int`):
            Steps that are done.
        good_checkpoint (`Path`, *optional*):
            The newest one up to the last evaluation at which the run was learning.
    """
    return UserError(
        f"Stopped at step {step}, {entry['health_verdict']}, likely because {entry['health_cause']}; "
        f"last checkpoint from when it was learning: {good_checkpoint or 'none'}."
    )


def health_rows(history: Iterable[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of a table of how the verdict of a run came about; empty where nothing was measured."""
    entries = [entry for entry in history if "health_verdict" in entry]
    if not entries:
        return [], []
    names = {
        "health_projection_effective_rank": "effective rank of projections",
        "health_projection_std": "std of projections",
        "health_margin": "margin of views",
        "health_recognition": "recognition of views",
        "health_target_margin": "margin of targets",
        "health_target_perplexity": "targets in use",
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
    lines = [
        [f"{step:,}", entry["health_verdict"], *(f"{entry[name]:.3g}" if name in entry else "" for name in names)]
        for step, entry in rows.items()
    ]
    return ["step", "verdict", *names.values()], lines


def health_table(history: Sequence[dict[str, Any]]) -> str:
    """The verdict of a run and how it came about, in Markdown; empty where nothing was measured."""
    head, rows = health_rows(history)
    if not rows:
        return ""
    last = [entry for entry in history if "health_verdict" in entry][-1]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return f"At the end of training, on clean held-out samples: {describe(last)}.\n\n" + "\n".join(lines)


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
