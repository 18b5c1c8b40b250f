"""Steps without numbers: their FLOPs and messages are those that can be counted by hand."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import ViTConfig

from hfssl.benchmarks import scale
from hfssl.benchmarks.gpu import ROWS
from hfssl.benchmarks.scale import Messages, ScaleBenchmark, Step, all_rows, predict, run_scale_benchmark, step_of
from hfssl.errors import UserError
from hfssl.methods import METHODS


SIMCLR = replace(ROWS["simclr"].tiny(), batch_size=8)


@pytest.fixture(autouse=True)
def small_encoder(request, monkeypatch):
    if "slow" not in request.keywords:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        monkeypatch.setitem(
            scale.VISION_PRESETS, "vit-mini-patch4", lambda: ViTConfig(**sizes, image_size=32, patch_size=4)
        )


def two_views():
    return {"pixel_values": torch.zeros(4, 2, 3, 32, 32)}


def test_flops_and_messages_of_simclr_grow_with_the_gpus_by_its_similarities_alone():
    alone, eight = (step_of(SIMCLR, gpus, two_views()) for gpus in (1, 8))
    dim = METHODS["simclr"].config_class().projector_output_dim
    # forward, and backward into anchors and candidates: 16 anchors against those of all GPUs
    assert eight.flops - alone.flops == 3 * 2 * 16 * (8 * 16 - 16) * dim
    assert alone.messages == Messages() and eight.gradient_bytes == alone.gradient_bytes
    assert eight.messages.gathered == 4 * 16 * dim  # its own projections
    # the gradient of those of all, and the batch norms of the projector
    assert eight.messages.reduced > 4 * 8 * 16 * dim and eight.messages.number > 1


def test_flops_are_those_that_a_real_step_counts():
    from hfssl.benchmarks.base import count_flops_of

    model_class = METHODS["simclr"]
    model = model_class(model_class.config_class(encoder_config=scale._encoder_config(SIMCLR)))
    for part in (model, model.encoder):
        part.set_attn_implementation("eager")
    counted = count_flops_of(lambda: model.train()(pixel_values=torch.randn(8, 2, 3, 32, 32)).loss)
    assert step_of(SIMCLR, 1, two_views()).flops == counted
    assert step_of(SIMCLR, 1, two_views()).gradient_bytes == 4 * sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def test_what_follows_is_arithmetic():
    arguments = ScaleBenchmark(tflops=100.0, utilisation=0.5, link_gb_s=100.0, network_gb_s=10.0, cores_per_gpu=10)
    row, step = replace(SIMCLR, batch_size=100), Step(5e12, 1e9, Messages(reduced=1e8, gathered=1e7, number=10))
    alone = predict(arguments, row, 1, step, 1e5, 1e-3)
    assert alone["step_s"] == alone["compute_s"] == pytest.approx(0.1) and alone["bottleneck"] == "compute"
    assert alone["rows_per_s"] == pytest.approx(1000) and alone["cores_per_gpu_needed"] == pytest.approx(1.0)
    assert alone["disk_bytes_per_s"] == pytest.approx(1e8)
    many = predict(arguments, row, 16, step, 1e5, 1e-3)
    gradients = 2 * 15 / 16 * 1e9 / 1e10
    method = 2 * 15 / 16 * 1e8 / 1e10 + 15 * 1e7 / 1e10 + 10 * 20e-6
    assert many["step_s"] == pytest.approx(0.1 + gradients - 2 / 3 * 0.1 + method)
    assert many["bottleneck"] == "communication"
    slow = predict(arguments, row, 1, step, 1e5, 20e-3)
    assert slow["bottleneck"] == "data" and slow["step_s"] == pytest.approx(0.2)


def test_a_table_of_what_can_be_worked_out(monkeypatch):
    def small_batch(row):
        if row.method == "mae":
            raise RuntimeError("a number is asked for")
        return two_views(), 1e5, 1e-3

    monkeypatch.setattr(scale, "small_batch", small_batch)
    text, report = run_scale_benchmark(ScaleBenchmark(rows=["simclr", "mae"], gpus=[1, 8], tiny=True))
    assert json.loads(json.dumps(report)) == report
    assert [entry["gpus"] for entry in report["rows"]["simclr"]] == [1, 8]
    assert "| mae | not worked out: RuntimeError: a number is asked for |" in text
    assert "Nothing of this was measured" in text


@pytest.mark.parametrize("name", ["swav", "lejepa", "deepcluster"])
def test_what_a_method_knows_of_its_run_it_knows_without_numbers_too(name):
    step = step_of(replace(SIMCLR, method=name), 8, two_views())
    assert step.flops > 0 and step.messages.number > 0


def test_every_method_for_images_and_text_has_a_row():
    expected = {name for name, method in METHODS.items() if method.method.modality in ("image", "text")}
    assert {row.method for row in all_rows().values()} == expected


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"rows": ["nothing"]}, "`--rows nothing` is unknown. Choose some of bert"),
        ({"gpus": [0]}, "`--gpus` takes numbers from 1"),
        ({"utilisation": 0.0}, "`--utilisation` must be above 0, got 0"),
    ],
)
def test_bad_settings_are_named(fields, words):
    with pytest.raises(UserError, match=words):
        ScaleBenchmark(**fields)


@pytest.mark.slow
@pytest.mark.parametrize("row", all_rows())
def test_every_row_is_worked_out(row):
    _, report = run_scale_benchmark(ScaleBenchmark(rows=[row], gpus=[1, 8], tiny=True))
    assert isinstance(report["rows"][row], list), report["rows"][row]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_prediction_is_compared_with_steps_that_are_measured(processes):
    found = scale.compare_step(processes, steps=1)
    assert found["processes"] == processes and found["factor"] > 0 and 0 < found["products_share"] < 1
    assert (found["messages_s"] > 0) == (processes > 1)
