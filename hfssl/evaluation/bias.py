"""Figures of bias in words and in tables: what tests of pairs and of associations show, and what they do not."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from .intervals import holm
from .results import Result


PAIRS, ASSOCIATIONS = "sentence_pairs", "associations"
PROTOCOLS = (PAIRS, ASSOCIATIONS)
# Of sentences of which neither is preferred.
NO_PREFERENCE = 0.5

_NOT_SHOWN = {
    PAIRS: "What it does not show: that there is no bias beyond these pairs, which are what their authors thought of "
    "(those of CrowS-Pairs are of the USA, in English, and some are ambiguous: Blodgett et al., 2021), or how a "
    "classifier made of the encoder decides. 50 % may also be stereotypes and their opposites in equal parts.",
    ASSOCIATIONS: "What it does not show: how a classifier made of the encoder decides, or, where no effect is found, "
    "that there is none. Other words, or other sentences around them, give other effects (May et al., 2019).",
}
_MOST_NAMED = 8


def is_bias(result: Result) -> bool:
    """Whether a figure is one of bias: neither more nor less of it is better without the sentences beside it."""
    return result.protocol in PROTOCOLS


def bias_lines(results: Sequence[Result]) -> list[str]:
    """What the figures of each file show, and do not show, in sentences."""
    said = []
    for found, of in _by_file(results):
        line = _line_of_pairs(found[0]) if found[0].protocol == PAIRS else _line_of_associations(found)
        said.append(f"{of}{line} {_NOT_SHOWN[found[0].protocol]}")
    return said


def bias_tables(results: Sequence[Result]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, head and rows of a table for each file."""
    tables = []
    for found, of in _by_file(results):
        title, *rest = _table_of_pairs(found[0]) if found[0].protocol == PAIRS else _table_of_associations(found)
        tables.append((of + title, *rest))
    return tables


def _by_file(results: Sequence[Result]) -> list[tuple[list[Result], str]]:
    """The newest figures of each file of tests, and whose they are where they are of several encoders."""
    found: dict[Any, dict[str, Result]] = {}
    for each in results:
        settings = each.hyperparameters
        key = (each.model, each.protocol, settings["data"], settings["fingerprint"], each.split)
        found.setdefault(key, {})[each.task] = each
    are_several = len({each.model for each in results}) > 1
    return [(list(of_file.values()), f"{key[0]}, " if are_several else "") for key, of_file in found.items()]


# -- pairs ----------------------------------------------------------------------------------------------------------


def _line_of_pairs(result: Result) -> str:
    low, high = result.details["interval"]
    beside = [f"{name.replace('_', ' ')} {_percent(value)}" for name, value in result.baselines.items()]
    shown = "it prefers them" if low > NO_PREFERENCE else "it prefers the opposite" if high < NO_PREFERENCE else ""
    said = (
        f"{result.task}: of {result.num_eval:,} pairs of sentences the more stereotypical one is the likelier in "
        f"{_percent(result.value)} ({_span(low, high)}; without a preference 50 %; {', '.join(beside)}): "
        f"{shown or 'no preference for stereotypes is shown'}. Compared by {result.hyperparameters['score']}."
    )
    types = result.details["types"]
    certain = holm([each["p_value"] for each in types])
    named = [
        f"{each['name']} {_percent(each['share'])} ({_span(*each['interval'])})"
        for each, is_shown in zip(types, certain, strict=True)
        if is_shown
    ]
    if len(types) > 1:
        said += f" By type of bias it is certain (Holm, 5 %) of {_listed(named) or 'none'}."
    for name, (change, low, high) in result.details["changes"].items():
        how = "more" if low > 0 else "less" if high < 0 else "no certain change"
        points = f"{100 * change:+.1f} points, 95 %: {100 * low:+.1f} to {100 * high:+.1f}"
        said += f" Against {name.replace('_', ' ')}: {how} ({points})."
    if ties := result.details["ties"]:
        said += f" Of {ties:,} it cannot tell the sentences apart (words that its tokenizer does not know): half each."
    if left_out := result.details["left_out"]:
        said += f" {left_out:,} more are left out: too long for it, or without a word in common."
    return said


def _table_of_pairs(result: Result) -> tuple[str, list[str], list[list[str]]]:
    whole = {
        "name": "all", "pairs": result.num_eval, "share": result.value, "interval": result.details["interval"],
        "baselines": result.baselines,
    }  # fmt: skip
    kinds = list(result.baselines)
    rows = [
        [each["name"], f"{each['pairs']:,}", _percent(each["share"]), _span(*each["interval"]), *_beside(each, kinds)]
        for each in [whole, *result.details["types"]]
    ]
    title = f"{result.task}: how often the more stereotypical sentence is the likelier"
    head = ["type of bias", "pairs", "this model", "interval", *(kind.replace("_", " ") for kind in kinds)]
    return title, head, rows


def _beside(each: Mapping[str, Any], kinds: Sequence[str]) -> list[str]:
    return [_percent(each["baselines"][kind]) if kind in each["baselines"] else "–" for kind in kinds]


# -- associations ---------------------------------------------------------------------------------------------------


def _line_of_associations(results: Sequence[Result]) -> str:
    first, number = results[0], len(results)
    p_values = [each.details["p_value"] for each in results]
    certain = [each for each, is_shown in zip(results, holm(p_values), strict=True) if is_shown]
    named = [f"{each.task} d = {each.value:.2f} ({_interval(each)})" for each in certain]
    said = (
        f"{first.hyperparameters['data']}: {len(certain)} of {number} association tests of embeddings show an effect "
        f"in the direction of the stereotype (one-sided permutation test, Holm, 5 %){': ' if named else ''}"
        f"{_listed(named)}."
    )
    # the test takes attributes as they are, and sentences made of one word as several; the interval draws them anew
    if doubtful := sum(each.details["interval"][0] <= 0 for each in certain):
        said += f" In {doubtful:,} of them the interval reaches 0: it may be of these very words alone."
    single = sum(p < 0.05 for p in p_values)
    if number > 1:
        said += f" Each by itself: {single} with p < 0.05, and {0.05 * number:.1f} would be by chance."
    said += f" Mean d: {fmean(each.value for each in results):+.2f}"
    for kind in first.baselines:
        said += f", {kind.replace('_', ' ')} {fmean(each.baselines[kind] for each in results):+.2f}"
        seeds = zip(*(each.details["p_values"][kind] for each in results), strict=True)
        shown = fmean(sum(holm(of_seed)) for of_seed in seeds)
        said += f" ({shown:.2g} of the tests)"
    unknown = sum(each.details["unknown"] for each in results) / sum(each.num_eval for each in results)
    said += "."
    if unknown > 0.01:
        said += f" Of the words or sentences {_percent(unknown)} hold a word that the tokenizer does not know."
    return said


def _table_of_associations(results: Sequence[Result]) -> tuple[str, list[str], list[list[str]]]:
    kinds = list(results[0].baselines)
    certain = holm([each.details["p_value"] for each in results])
    rows = [
        [
            each.task, " / ".join(each.details["sets"][:2]), " / ".join(each.details["sets"][2:]),
            f"{each.value:+.2f}", _interval(each), f"{each.details['p_value']:.2g}", "yes" if is_shown else "",
            *(f"{each.baselines[kind]:+.2f}" for kind in kinds),
        ]
        for each, is_shown in zip(results, certain, strict=True)
    ]  # fmt: skip
    title = f"{results[0].hyperparameters['data']}: effect sizes of association tests"
    head = ["test", "targets", "attributes", "d", "interval", "p", "certain"]
    return title, [*head, *(kind.replace("_", " ") for kind in kinds)], rows


def _interval(result: Result) -> str:
    low, high = result.details["interval"]
    return f"{low:+.2f} to {high:+.2f}"


def _listed(named: Sequence[str]) -> str:
    more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    return ", ".join(named[:_MOST_NAMED]) + more


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _span(low: float, high: float) -> str:
    return f"95 %: {100 * low:.1f} to {100 * high:.1f}"
