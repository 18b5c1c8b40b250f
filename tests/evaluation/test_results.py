import json
import os
import statistics

import pytest

from hfssl.evaluation import Result, format_table, read_results, write_results
from hfssl.evaluation.results import command_line, commit, versions, write_json
from hfssl.machine import fit_to_leave


def make_result(scores=None, **overrides):
    fields = {
        "protocol": "glue",
        "version": 1,
        "model": "outputs/mlm",
        "task": "cola",
        "split": "validation",
        "metric": "matthews_correlation",
        "num_train": 100,
        "num_eval": 50,
        "hyperparameters": {"learning_rate": 5e-5},
    }
    return Result.from_scores(
        scores or {0: 0.5, 1: 0.7}, {"random_init": {0: 0.1, 1: 0.2}, "majority": 0.0}, **fields | overrides
    )


def test_mean_and_standard_deviation_are_over_the_seeds():
    result = make_result()
    assert (result.value, result.seeds, result.per_seed) == (pytest.approx(0.6), [0, 1], [0.5, 0.7])
    assert result.std == pytest.approx(statistics.stdev([0.5, 0.7]))
    assert result.baselines == {"random_init": pytest.approx(0.15), "majority": 0.0}
    assert result.baselines_std == {"random_init": pytest.approx(statistics.stdev([0.1, 0.2]))}


def test_one_seed_has_no_deviation():
    assert make_result({0: 0.5}).std is None


def test_the_file_is_a_list_of_records_with_all_that_is_needed_to_repeat_them(tmp_path):
    write_results(tmp_path / "results.json", [make_result(command="python recipes/glue.py")])
    (record,) = json.loads((tmp_path / "results.json").read_text())
    assert {"protocol", "version", "metric", "value", "std", "seeds", "per_seed", "baselines", "task"} <= set(record)
    assert {"num_train", "num_eval", "split", "hyperparameters", "commit", "versions"} <= set(record)
    assert record["command"] == "python recipes/glue.py"
    assert {"python", "torch", "transformers", "evaluate"} <= set(record["versions"])


def test_the_same_experiment_is_replaced_and_others_are_kept(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, [{"protocol": "held_out", "value": 1.0}])
    write_results(path, [make_result(), make_result(task="rte")])
    write_results(path, [make_result({0: 0.9, 1: 0.9, 2: 0.9})])
    write_results(path, [make_result(hyperparameters={"learning_rate": 1e-3})])
    figures = [(record.get("task"), record["value"]) for record in read_results(path)]
    assert figures == [(None, 1.0), ("rte", pytest.approx(0.6)), ("cola", 0.9), ("cola", pytest.approx(0.6))]


def test_an_interruption_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(path, [make_result()])
    before = path.read_text()

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_results(path, [make_result({0: 0.9})])
    assert path.read_text() == before


def test_no_number_is_written_as_null(tmp_path):
    write_results(tmp_path / "results.json", [make_result({0: float("nan")})])
    assert read_results(tmp_path / "results.json")[0]["value"] is None


@pytest.mark.parametrize("content, message", [("{", "not valid JSON"), ("{}", "not a list of results")])
def test_a_file_that_is_something_else_is_not_overwritten(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path} is {message}"):
        write_results(path, [make_result()])
    assert path.read_text() == content


def test_table():
    lines = format_table([make_result(), make_result({0: 0.25}, task="mnli", split="validation_matched")]).splitlines()
    assert lines[0].split() == ["task", "metric", "encoder", "random", "init", "majority", "seeds", "train", "eval"]
    assert "0.600 ± 0.141" in lines[2] and "0.150 ± 0.071" in lines[2]
    assert "matthews_correlation (validation_matched)  0.250 " in lines[3]


def test_models_in_folders_of_one_name_are_told_apart_though_their_folders_stay_here(tmp_path):
    path = tmp_path / "results.json"
    models = [tmp_path / "a" / "out", tmp_path / "b" / "out"]
    write_results(path, [make_result(model=str(model)) for model in models])
    write_results(path, [make_result({0: 0.9}, model=str(models[0]))])
    records = read_results(path)
    assert [(record["model"], record["value"]) for record in records] == [("out", pytest.approx(0.6)), ("out", 0.9)]
    assert str(tmp_path) not in path.read_text()


def test_a_folder_is_the_same_in_whatever_way_it_is_named(tmp_path, monkeypatch):
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.mkdir()
    monkeypatch.chdir(tmp_path)
    for value, model in enumerate(("run", "run/", "./run", str(run), f"{run}/")):
        write_results(run / "results.json", [make_result({0: value}, model=model)])
    assert [record["value"] for record in read_results(run / "results.json")] == [4]
    write_results(run / "results.json", [make_result(model="other")])
    assert len(read_results(run / "results.json")) == 2
    # and where the folder has been moved
    run.rename(tmp_path / "moved")
    write_results("moved/results.json", [make_result({0: 5}, model="moved")])
    assert [record["value"] for record in read_results("moved/results.json")] == [pytest.approx(0.6), 5]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("python x.py --dataset /a/b c/d.txt:0.7,/e/f:0.3 -o=/g/h/", "python x.py --dataset b c/d.txt:0.7,f:0.3 -o=h"),
        ("python x.py --dataset '/a/my b/c [1].txt'", "python x.py --dataset 'c [1].txt'"),
        (f"{os.getcwd()}/recipes/mlm.py", "recipes/mlm.py"),
        ("file://" + os.path.expanduser("~") + "/a.txt", "file://a.txt"),
        ("https://huggingface.co/papers/1 and/or 1/2, org/name, outputs/mlm", None),
        ({"model": "/a/b", "k": [1, "/c/d/e.png"]}, {"model": "b", "k": [1, "e.png"]}),
        ("--output_dir runs/tmp/exp", None),  # the name of a folder, not the folder of that name
        ("./tmp/run", None),
        ("--dataset ../../home/alice/scans/ --seed 1", "--dataset scans --seed 1"),
        ("--dataset ~/private/scans", "--dataset scans"),
    ],
)
def test_what_may_leave_the_machine(text, expected):
    assert fit_to_leave(text) == (text if expected is None else expected)


def test_command_line_hides_tokens(monkeypatch):
    monkeypatch.setattr(
        "sys.argv", [os.path.abspath("recipes/glue.py"), "--hub_token", "hf_abcdefghij", "--task", "a b"]
    )
    assert command_line() == "python recipes/glue.py --hub_token *** --task 'a b'"


def test_versions_and_commit_of_this_checkout():
    assert versions()["hfssl"]
    assert commit() is None or len(commit().removesuffix("-dirty")) == 40
