"""The checks of `tests/gpu`, asked of the CPU: that they can be run, and for a few methods that they hold."""

import device_checks
import pytest
import tiny
import torch
from contract import METHODS, variants_of
from device_checks import assert_near, one_of_each_family
from transformers import AutoModelForMaskedLM


FEW = ["MlmForPreTraining", "DinoForPreTraining"]


@pytest.mark.parametrize("method", FEW)
def test_a_step(method):
    device_checks.loss_and_gradients_are_those_of_the_cpu(method, "cpu", "fp32")
    device_checks.loss_and_gradients_are_those_of_the_cpu(method, "cpu", "bf16")
    device_checks.nothing_waits_within_a_step(method, "cpu")


def test_what_differs_is_found():
    gradients = {"a": torch.ones(3), "b": torch.zeros(3)}
    with pytest.raises(AssertionError, match="b"):
        assert_near((torch.ones(()), gradients | {"b": torch.full((3,), 0.1)}), (torch.ones(()), gradients), 1e-2)
    with pytest.raises(AssertionError):
        assert_near((torch.full((), 1.1), gradients), (torch.ones(()), gradients), 1e-2)


def test_activations():
    device_checks.checkpointed_activations_have_the_same_gradients("MlmForPreTraining", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, variant", [(method, variant) for method in METHODS for variant in variants_of(method)]
)
def test_compilation(method, variant):
    device_checks.compiled_it_is_the_same_and_is_compiled_once(method, "cpu", backend="eager", variant=variant)


def test_a_family_is_a_modality_and_a_base():
    assert {"DinoForPreTraining", "MaeForPreTraining", "MlmForPreTraining"} <= set(one_of_each_family(METHODS))
    assert one_of_each_family(["MocoForPreTraining", "ByolForPreTraining"]) == ["MocoForPreTraining"]


def test_runs(tmp_path):
    device_checks.trains_saves_and_exports("SimclrForPreTraining", "cpu", "bf16", tmp_path)


@pytest.mark.slow  # the same is asked of each method in other tests
def test_resumed_and_measured_runs(tmp_path):
    device_checks.resumed_it_is_the_same_run("MlmForPreTraining", "cpu", "fp32", tmp_path / "a")
    device_checks.health_and_evaluators_run("cpu", tmp_path / "b")


def test_the_trainer_waits_for_nothing_between_two_logs(tmp_path):
    methods = ["ClipForPreTraining", "Wav2vec2ForPreTraining"]
    device_checks.the_trainer_waits_for_nothing_between_two_logs("cpu", tmp_path, methods)


def test_data():
    device_checks.views_are_those_of_the_cpu("DinoForPreTraining", "cpu", 32)
    device_checks.batches_are_those_of_the_cpu("image and text", "cpu")
    device_checks.packed_documents_equal_each_alone(tiny.bert_config(), "cpu", "sdpa", False, AutoModelForMaskedLM)


def test_the_loss_of_a_large_vocabulary():
    device_checks.the_loss_of_a_large_vocabulary_takes_little_memory("cpu")
