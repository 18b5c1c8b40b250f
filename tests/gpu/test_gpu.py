"""On a GPU: every registered method, by its contract, and what lies between its data and its result.

    pytest -m gpu tests/gpu                 under five minutes on one large GPU

What waits for a GPU is looked for between two logs. It may wait where something is logged, evaluated or saved, in the
first step, and where rows are padded instead of packed: transformers looks then whether there is any padding.
"""

import importlib.util

import device_checks
import pytest
import tiny
import torch
from batch_makers import MAKERS
from contract import METHODS
from device_checks import DTYPES, one_of_each_family
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, GPT2Config, LlamaConfig, ModernBertConfig

import hfssl.methods


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that PyTorch reaches through CUDA"),
]

PRECISIONS = list(DTYPES)
IMAGE_METHODS = [method for method in METHODS if getattr(hfssl.methods, method).method.views is not None]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 99,
}
MODELS = {
    "bert": (tiny.bert_config(max_position_embeddings=64), False),
    "modernbert": (ModernBertConfig(**SIZES, local_attention=8, global_attn_every_n_layers=2, pad_token_id=0), False),
    "gpt2": (GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=99, n_positions=64), True),
    "llama": (LlamaConfig(**SIZES, num_key_value_heads=1), True),
}  # fmt: skip


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_are_those_of_the_cpu(method, precision):
    device_checks.loss_and_gradients_are_those_of_the_cpu(method, "cuda", precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
def test_trains_saves_and_exports(method, precision, tmp_path):
    device_checks.trains_saves_and_exports(method, "cuda", precision, tmp_path)


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path):
    device_checks.a_batch_in_parts_has_the_gradient_of_the_whole("cuda", tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_resumed_it_is_the_same_run(method, tmp_path, deterministic):
    device_checks.resumed_it_is_the_same_run(method, "cuda", "fp32", tmp_path)


def test_resumed_in_half_precision_it_is_the_same_run(tmp_path, deterministic):
    for precision in ("bf16", "fp16"):
        device_checks.resumed_it_is_the_same_run("MlmForPreTraining", "cuda", precision, tmp_path / precision)


@pytest.mark.parametrize("method", METHODS)
def test_checkpointed_activations_have_the_same_gradients(method):
    device_checks.checkpointed_activations_have_the_same_gradients(method, "cuda")


# kernels take half a minute to compile; that each method and variant is traced once is seen on a CPU
@pytest.mark.parametrize("method", one_of_each_family(METHODS))
def test_compiled_it_is_the_same_and_is_compiled_once(method):
    device_checks.compiled_it_is_the_same_and_is_compiled_once(method, "cuda")


@pytest.mark.parametrize("method", METHODS)
def test_nothing_waits_within_a_step(method):
    device_checks.nothing_waits_within_a_step(method, "cuda")


def test_the_trainer_waits_for_nothing_between_two_logs(tmp_path):
    device_checks.the_trainer_waits_for_nothing_between_two_logs("cuda", tmp_path, one_of_each_family(METHODS))


def test_what_waits_is_found():
    from host_waits import no_waits

    with pytest.raises(RuntimeError, match="synchroniz"), no_waits("cuda"):
        torch.ones(3, device="cuda").sum().item()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_health_and_evaluators_run(tmp_path, precision):
    device_checks.health_and_evaluators_run("cuda", tmp_path, precision)


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("method", IMAGE_METHODS)
def test_views_are_those_of_the_cpu(method, size):
    device_checks.views_are_those_of_the_cpu(method, "cuda", size)


@pytest.mark.parametrize("name", MAKERS)
def test_batches_are_those_of_the_cpu(name):
    device_checks.batches_are_those_of_the_cpu(name, "cuda")


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention", "flash_attention_2"])
@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_equal_each_alone(name, attention):
    config, causal = MODELS[name]
    auto_class = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    dtype = torch.float32
    if attention == "flash_attention_2":
        if importlib.util.find_spec("flash_attn") is None:
            pytest.skip("flash-attn is not installed")
        dtype = torch.bfloat16
    device_checks.packed_documents_equal_each_alone(config, "cuda", attention, causal, auto_class, dtype)


def test_the_loss_of_a_large_vocabulary_takes_little_memory():
    device_checks.the_loss_of_a_large_vocabulary_takes_little_memory("cuda")
