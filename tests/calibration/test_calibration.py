"""The rules of the verdict on runs of the recipes: no false alarm, and no collapse that goes unseen."""

import json
from pathlib import Path

from contract import contract, load

from hfssl.evaluation.verdict import LEARNING, UNTRAINED, has_ended, judge
from hfssl.methods import METHODS


record = load(Path(__file__).with_name("record.py"))

# By (data set, method), with the reason why the rules are right all the same.
FALSE_ALARMS: dict[tuple[str, str], str] = {}
MISSES: dict[tuple[str, str], str] = {}


def replayed(run):
    """The verdicts that the figures of a run give by the rules of today."""
    evaluations = run["evaluations"]
    return [judge(e, evaluations[:i], e["step"], e["progress"])[0] for i, e in enumerate(evaluations)]


def runs(variant):
    lines = [json.loads(line) for line in record.RUNS.read_text().splitlines()]
    return {(run["dataset"], run["method"]): replayed(run) for run in lines if run["variant"] == variant}


def test_no_run_that_learns_is_ever_called_collapsed():
    found = runs(record.SOUND)
    assert {name for name, verdicts in found.items() if any(map(has_ended, verdicts))} == set(FALSE_ALARMS)
    assert all(verdicts[0] == UNTRAINED for verdicts in found.values())
    ends = {name: verdicts[-1] for name, verdicts in found.items() if name not in FALSE_ALARMS}
    assert set(ends.values()) <= {LEARNING}, ends


def test_every_collapse_is_seen_by_the_end():
    found = runs(record.COLLAPSED)
    assert {name for name, verdicts in found.items() if not has_ended(verdicts[-1])} == set(MISSES)


def test_every_method_for_images_can_be_made_to_collapse():
    for name in record.image_methods():
        assert contract(METHODS[name].__name__).collapse is not None, f"`collapse=` in the CONTRACT of {name}"
