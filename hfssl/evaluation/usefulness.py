"""Whether an encoder is of use for some labels: its probes against those of what needs no training."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from .probe_features import BAG_OF_WORDS, BEFORE, MFCC_STATISTICS, RANDOM_INIT, RAW_INPUT, STATISTICS
from .results import Result


USEFUL, NO_BETTER, WORSE = "useful", "no better than", "worse than"

# Of each of them the figure that tables show first.
_PROBES, _METRICS, _K = ("knn", "linear"), ("accuracy", "auroc"), 20

_TITLES = {
    RANDOM_INIT: "untrained", RAW_INPUT: "raw input", STATISTICS: "simple statistics", BAG_OF_WORDS: "a bag of words",
    MFCC_STATISTICS: "MFCC statistics",
}  # fmt: skip

_WHAT_TO_TRY = {
    RANDOM_INIT: "train for longer (`--max_steps`), and see whether its loss falls below chance: if not, raise "
    "`--learning_rate`",
    RAW_INPUT: "for labels that pixels in their places give away an encoder is too much, or was trained too little: "
    "train for longer (`--max_steps`) on more images. Small crops and mirrored images throw away where things are: "
    "larger ones and none keep it (`--crop_scale 0.5 1.0 --flip_probability 0`); `--views auto` tries it on short "
    "runs",
    STATISTICS: "these labels go by colour and brightness, which jitter of hue and saturation and grey views throw "
    "away: without them (`--jitter 0 0 0 0 --grey_probability 0`) they are kept, as by a method that changes no "
    "colours (`recipes/mae.py`); `--views auto` tries it on short runs",
    BAG_OF_WORDS: "for labels that single words give away, counting them is enough; else fine-tune the whole encoder "
    "(`recipes/finetune.py`), train it for longer (`--max_steps`), or on texts nearer to these",
    MFCC_STATISTICS: "for labels that the sound as a whole gives away, such as a voice, an encoder is too much; see "
    "which layer knows most of them (`--protocol layers`), fine-tune the whole encoder (`recipes/finetune.py`), or "
    "train it for longer (`--max_steps`)",
}

# Behind the first of them, of images: texts and recordings have no views of which there are milder ones.
_OF_IMAGES = ", or make the views milder (`recipes/show_views.py` shows them)"

# Of a checkpoint that was continued.
WHEN_WORSE = (
    "What to try: keep more of it, with a lower `--learning_rate`, `--layer_decay 0.7`, its first blocks as they are "
    "(`--freeze_layers 1` and up) or, of a transformer, `--lora_rank 8`; train on more data, or use the checkpoint as "
    "it came."
)


def standard_error(share: float, number: int) -> float:
    """That of the difference of two shares of so many samples, near one of which both lie.

    As if of one sample more it were true, and of one more it were not: else nine of nine would differ for certain
    from eight of nine.
    """
    share = (number * share + 1) / (number + 2)
    return math.sqrt(2 * share * (1 - share) / (number + 2))


def usefulness(results: Sequence[Result]) -> tuple[str, str]:
    """What an encoder's k-NN and linear probe say of it together.

    Args:
        results (`Sequence[Result]`):
            Of one table; other protocols among them do not count.

    Returns:
        `tuple[str, str]`: `useful` where it is better than random weights and not worse than raw input, simple
        statistics, a bag of words and MFCC statistics; else `no better than untrained`, `worse than raw input` and the
        like, and what to try. Both empty where no such probe is among the results. A difference counts from two
        standard errors on.
    """
    probes = _probes(results)
    if not probes:
        return "", ""
    value, certain = _value(probes), _certain(probes)
    gains = {
        kind: value - fmean(each.baselines[kind] for each in probes)
        for kind in _TITLES
        if all(kind in each.baselines for each in probes)
    }
    if RANDOM_INIT not in gains:
        return "", ""
    if gains[RANDOM_INIT] < certain:
        more = _OF_IMAGES if RAW_INPUT in gains else ""
        return f"{NO_BETTER} {_TITLES[RANDOM_INIT]}", _WHAT_TO_TRY[RANDOM_INIT] + more
    worst = min(gains, key=gains.get)
    if gains[worst] < -certain:
        return f"{WORSE} {_TITLES[worst]}", _WHAT_TO_TRY[worst]
    return USEFUL, ""


def _probes(results: Sequence[Result]) -> list[Result]:
    """The figures that count."""
    # the area counts where a sample may have several labels
    found = [
        each
        for each in results
        if each.protocol in _PROBES and each.metric in _METRICS and each.hyperparameters.get("k", _K) == _K
    ]
    return [each for each in found if each.metric == "accuracy"] or found


def _value(probes: Sequence[Result]) -> float:
    return fmean(each.value for each in probes)


def _certain(probes: Sequence[Result]) -> float:
    """From where on a difference counts: two standard errors."""
    return 2 * standard_error(_value(probes), probes[0].num_eval)


def change_line(results: Sequence[Result]) -> str:
    """Whether a checkpoint that was continued is better or worse for some labels than before; empty without one."""
    probes = [each for each in _probes(results) if BEFORE in each.baselines]
    if not probes:
        return ""
    value, before = _value(probes), fmean(each.baselines[BEFORE] for each in probes)
    figures = f"{before:.3f} before, {value:.3f} now ({' and '.join(_titles_of(probes))})"
    if value - before < -_certain(probes):
        return f"The checkpoint that was continued got worse for these labels: {figures}. {WHEN_WORSE}"
    if value - before > _certain(probes):
        return f"The checkpoint that was continued got better for these labels: {figures}."
    return f"The checkpoint that was continued is as good for these labels as it came: {figures}."


def _titles_of(probes: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys({"knn": "k-NN", "linear": "linear probe"}[each.protocol] for each in probes))


def usefulness_lines(results: Sequence[Result]) -> list[str]:
    """[`usefulness_line`] and [`change_line`] of results that may be of several tables: for each task its own."""
    by_task: dict[Any, list[Result]] = {}
    for each in results:
        by_task.setdefault((each.task, each.split, each.num_eval), []).append(each)
    said = [
        (task, line)
        for (task, *_), found in by_task.items()
        for line in (usefulness_line(found), change_line(found))
        if line
    ]
    are_several = len({task for task, _ in said}) > 1
    return [f"{task}: {line}" if are_several else line for task, line in said]


def usefulness_line(results: Sequence[Result]) -> str:
    """The same as a sentence or two, or empty."""
    verdict, what_to_try = usefulness(results)
    advice = f" What to try: {what_to_try}." if what_to_try else ""
    return f"For these labels: {verdict}.{advice}" if verdict else ""
