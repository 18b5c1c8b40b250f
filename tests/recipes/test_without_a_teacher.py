"""`recipes/simsiam.py`, `barlow_twins.py`, `vicreg.py`, `lejepa.py`, and `simclr.py` with neighbours, as commands."""

import json

import pytest
from image_recipes import check_result, run, stopped_and_continued, the_error


ADAM = {"optim": "adamw_torch_fused", "learning_rate": 1e-3}
# small heads, and what has a state of its own
METHODS = {
    "simsiam": {"projector_hidden_dim": 64, "projector_output_dim": 32, "predictor_hidden_dim": 16},
    "barlow_twins": {"projector_hidden_dim": 64, "projector_output_dim": 32, "bias_rate": 0.5},
    "vicreg": {"projector_hidden_dim": 64, "projector_output_dim": 32},
    "lejepa": {"projector_hidden_dim": 64, "local_crops": 2, "gradient_accumulation_steps": 2},
    "simclr": {"nearest_neighbour_queue": 40, "predictor_hidden_dim": 32},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_continued_it_is_the_same_run(tmp_path, method):
    stopped_and_continued(method, tmp_path, **ADAM | METHODS[method])
    check_result(tmp_path / "parts" / "out")


@pytest.mark.slow
def test_terms_are_logged_by_name_and_drawn(tmp_path):
    done = run("vicreg", tmp_path, logging_steps=6, **METHODS["vicreg"])
    assert done.poll() == 0, done.stderr
    check_result(tmp_path / "out")
    [state] = (tmp_path / "out").glob("checkpoint-6/trainer_state.json")
    [entry] = [entry for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    terms = {name: entry[f"loss_{name}"] for name in ("invariance", "variance", "covariance")}
    expected = 25 * terms["invariance"] + 25 * terms["variance"] + terms["covariance"]
    assert entry["loss"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, settings, words",
    [
        ("simsiam", {"per_device_train_batch_size": 1}, "SimSiam needs more than one image"),
        ("vicreg", {"variance_weight": -1}, "`variance_weight` must be at least 0, got -1"),
        ("barlow_twins", {"local_crops": 2}, "--local_crops has no meaning in barlow_twins.py"),
        ("lejepa", {"sigreg_weight": 2}, "`sigreg_weight` must be between 0 and 1, got 2"),
        ("simclr", {"nearest_neighbour_queue": 8, "decoupled": "true"}, "Leave one of them out"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, method, settings, words):
    error = the_error(run(method, tmp_path / "log", output_dir=tmp_path / "out", **settings))
    assert words in error, error
