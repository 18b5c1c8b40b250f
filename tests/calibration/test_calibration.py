"""The rules of the verdict on runs of the recipes: no false alarm, and no collapse that goes unseen."""

import json
from pathlib import Path

import pytest
from contract import contract, load
from recipe_process import ROOT

from hfssl import RecipeParser
from hfssl.cli.declared import declared_parser
from hfssl.evaluation.verdict import LEARNING, NARROWING, UNTRAINED, has_ended, judge
from hfssl.methods import METHODS


record = load(Path(__file__).with_name("record.py"))

# By (data set, method), with the reason why the rules are right all the same.
FALSE_ALARMS: dict[tuple[str, str], str] = {}
# Sound settings with which an encoder gets worse all the same, and is called narrowing at the end.
NARROWED: dict[tuple[str, str], str] = {("emoji", "simsiam"): "k-NN falls from .444 to .399, rank 10 of 83 is left"}
# Around a ResNet these collapse more slowly than in the 200 steps of a run, and are called narrowing at its end.
MISSES: dict[tuple[str, str], str] = {
    ("letters", "byol"): "the std of projections has come to .70, of .99",
    ("letters", "moco"): "the std of projections has come to .57, of .98",
    ("letters", "simclr"): "the std of projections has come to .18, of .97; .61 of the views are recognised",
}


def replayed(run):
    """The verdicts that the figures of a run give by the rules of today."""
    evaluations = run["evaluations"]
    return [judge(e, evaluations[:i], e["step"], e["progress"])[0] for i, e in enumerate(evaluations)]


def runs(variant):
    lines = [json.loads(line) for line in record.RUNS.read_text().splitlines()]
    found = {(run["dataset"], run["method"]): replayed(run) for run in lines if run["variant"] == variant}
    assert found, "python tests/calibration/record.py"
    return found


def test_no_run_that_learns_is_ever_called_collapsed():
    found = runs(record.SOUND)
    assert {name for name, verdicts in found.items() if any(map(has_ended, verdicts))} == set(FALSE_ALARMS)
    assert all(verdicts[0] == UNTRAINED for verdicts in found.values())
    ends = {name: verdicts[-1] for name, verdicts in found.items() if name not in FALSE_ALARMS}
    assert {name for name, end in ends.items() if end != LEARNING} == set(NARROWED), ends
    assert {ends[name] for name in NARROWED} <= {NARROWING}


def test_every_collapse_is_seen_by_the_end():
    found = runs(record.COLLAPSED)
    assert {name for name, verdicts in found.items() if not has_ended(verdicts[-1])} == set(MISSES)


@pytest.mark.parametrize("dataset", sorted(record.EMBEDDED))
def test_every_method_of_these_modalities_can_be_made_to_collapse(dataset):
    for name in record.methods_of(dataset):
        assert contract(METHODS[name].__name__).collapse is not None, f"`collapse=` in the CONTRACT of {name}"


def test_flags_of_a_run_are_flags_of_its_recipe():
    """What the recipes refuse would show only after a minute, in a process of its own."""
    for dataset in sorted(record.EMBEDDED):
        for name in record.methods_of(dataset):
            declared = declared_parser(ROOT / "recipes" / f"{name}.py")
            known = RecipeParser(*declared.classes(), **declared.options)._flags
            assert set(record.flags_of(dataset, name, {}, None)) <= set(known), name


@pytest.mark.slow
def test_a_run_is_recorded_with_what_the_verdict_goes_by(tmp_path, monkeypatch):
    runs_file = tmp_path / "runs.jsonl"
    words = ["record.py", "--runs", str(runs_file), "--max_steps", "2", "--only", "digits,mae"]
    monkeypatch.setattr("sys.argv", words)
    record.main()
    lines = [json.loads(line) for line in runs_file.read_text().splitlines()]
    assert [(line["dataset"], line["method"], line["variant"]) for line in lines] == [
        ("digits", "mae", record.SOUND), ("digits", "mae", record.COLLAPSED),
    ]  # fmt: skip
    for line in lines:
        assert [entry["step"] for entry in line["evaluations"]] == [0, 1, 2]
        assert replayed(line)[0] == UNTRAINED and line["evaluations"][-1]["progress"] == 1.0
        assert {"encoder", "random_init", "simple_statistics"} <= set(line["probes"]["linear"])
    record.main()  # those that are there are not made again
    assert len(runs_file.read_text().splitlines()) == 2
