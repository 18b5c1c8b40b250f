"""What both sides of the benchmarks for images are made of, and how the benchmark runs."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tiny_vision
import torch
from PIL import Image

from hfssl.benchmark import count_flops
from hfssl.benchmark_vision import VisionBenchmark, contenders, prepare, run_vision_benchmark
from hfssl.data.image_data import ImageDataArguments
from hfssl.errors import UserError
from hfssl.methods.vision.mae import MaeForPreTraining, MaePreTrainingConfig
from hfssl.vision_modeling import encode_visible


NUMBER = 24


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images of noise in two formats, one file that is none, and an encoder."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for i in range(NUMBER):
        pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.{'png' if i % 2 else 'jpg'}")
    (folder / "images" / "damaged.png").write_bytes(b"no image")
    tiny_vision.vit().to_json_file(folder / "vit.json")
    tiny_vision.ENCODERS["dinov2"]().to_json_file(folder / "dinov2.json")
    return folder


def arguments(files, **changes):
    fields = {"encoder": str(files / "vit.json"), "batch_size": 4, "blocks": 2, "steps_per_block": 2, "use_cpu": True}
    return VisionBenchmark(**fields | {"image_size": 16, "precision": "fp32"} | changes)


def data(files):
    return ImageDataArguments(dataset=str(files / "images"), max_bad_fraction=0.1)


def sides(files, folder, method="mae", **changes):
    prepare(data(files), folder / "images", arguments(files, **changes))
    return contenders(method, arguments(files, **changes), data(files), folder)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"blocks": 0}, "--blocks.*at least 1"),
        ({"batch_size": 1}, "--batch_size.*at least 2"),
        ({"encoder": "org/model"}, "org/model.*trains from scratch"),
        ({"defaults": True, "precision": "bf16"}, "--defaults.*--precision"),
    ],
)
def test_bad_settings_are_named(fields, words):
    with pytest.raises(UserError, match=words):
        VisionBenchmark(**fields)


def test_what_cannot_be_compared_is_said(files, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nothing that trains simclr.*--against lightly"):
        run_vision_benchmark("simclr", arguments(files, against="transformers"), data(files))
    with pytest.raises(UserError, match="24 images.*needs 26.*--batch_size 13"):
        prepare(data(files), tmp_path / "images", arguments(files, batch_size=13))
    for name in ("lightly", "lightly.transforms"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"lightly, which is not installed.*\[benchmark\]"):
        run_vision_benchmark("simclr", arguments(files), data(files))


def test_images_are_written_as_they_are(files, tmp_path):
    prepared = prepare(data(files), tmp_path / "images", arguments(files))
    written = sorted((tmp_path / "images").iterdir())
    assert prepared["num_images"] == len(written) == NUMBER
    assert {path.suffix for path in written} == {".png", ".jpeg"}
    originals = {path.read_bytes() for path in (files / "images").iterdir()}
    assert {path.read_bytes() for path in written} == originals - {b"no image"}


def test_sides_and_what_they_are_told(files, tmp_path):
    made = sides(files, tmp_path, against="transformers", bare=True, attention="eager")
    assert [side.name for side in made] == ["ours", "theirs", "ours_same_config", "bare"]
    assert {side.precision for side in made} == {"fp32"} and {side.unit for side in made} == {"images"}
    assert made[2].settings["recipe"]["attention"] == "sdpa" != made[0].settings["recipe"]["attention"]
    assert made[1].settings["model"]["encoder_config"]["image_size"] == made[1].settings["view"]["size"] == 16
    # another library's process is to import nothing of ours by what it is told
    assert b"hfssl.data" not in pickle.dumps(made[1].settings)


def test_each_side_at_its_own_precision(files, tmp_path, monkeypatch):
    monkeypatch.setattr("hfssl.benchmark_vision.choose_precision", lambda precision, use_cpu: "bf16")
    made = sides(files, tmp_path, against="transformers", precision="auto", defaults=True)
    assert {side.name: side.precision for side in made} == {
        "ours": "bf16",
        "theirs": "fp32",
        "ours_same_config": "bf16",
    }


@pytest.mark.parametrize("against", ["lightly", "transformers"])
def test_their_mae_is_one_of_vits(files, tmp_path, against):
    with pytest.raises(UserError, match=f"MAE of {against} has a ViT.*not a dinov2"):
        sides(files, tmp_path, against=against, encoder=str(files / "dinov2.json"))


def test_flops_are_those_of_one_image_whatever_the_attention():
    model = MaeForPreTraining(MaePreTrainingConfig(
        encoder_config=tiny_vision.vit(), decoder_hidden_size=16, decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
    )).train()  # fmt: skip
    rows, patches, visible, dim = 3, 16, 4, 4 * 4 * 3

    def blocks(number, length, width, inner):
        return number * (4 * width * width * length + 2 * width * inner * length + 2 * length * length * width)

    forward = patches * dim * 32 + blocks(4, 1 + visible, 32, 64)  # the images themselves have no gradient
    forward += (1 + visible) * 32 * 16 + blocks(1, 1 + patches, 16, 64) + patches * 16 * dim
    expected = 6 * forward - 2 * patches * dim * 32
    model.encoder.set_attn_implementation("sdpa")
    assert count_flops(model, tiny_vision.images_with_noise(rows)) == pytest.approx(expected, rel=1e-6)


def test_lightly_reaches_the_same_encoder():
    lightly = pytest.importorskip("hfssl.benchmark_lightly", reason="lightly is not installed")
    encoder = tiny_vision.build("vit").eval()
    masked = lightly.MaskedViT(encoder)
    images, visible = torch.randn(3, 3, 16, 16), torch.tensor([[5, 0, 2], [1, 2, 3], [15, 14, 13]])
    keep = torch.cat([torch.zeros(3, 1, dtype=torch.long), visible + 1], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(masked.encode(images, idx_keep=keep), encode_visible(encoder, images, visible))
        torch.testing.assert_close(masked(images), encoder(images).last_hidden_state[:, 0])


def measured(files, method, **changes):
    text, report = run_vision_benchmark(method, arguments(files, **changes), data(files))
    assert json.loads(json.dumps(report)) == report
    for side in (value for value in report.values() if isinstance(value, dict)):
        assert side["items_per_s"] > 0 and 0 <= side["data_wait"] < 1 and side["peak_mb"] > side["peak_above_start_mb"]
        assert side["utilisation"] > 0 and side["first_step_s"] > 0
    assert "Not comparable" in text and "images/s" in text and "padding" not in text
    assert (report["method"], report["num_images"], report["image_size"]) == (method, NUMBER, 16)
    return report


@pytest.mark.slow
def test_simclr_against_lightly(files):
    pytest.importorskip("lightly", reason="lightly is not installed")
    report = measured(files, "simclr", bare=True)
    ours, theirs, bare = report["ours"], report["theirs"], report["bare"]
    assert ours["flops_per_position"] == theirs["flops_per_position"]  # the same work
    assert bare["loss_last"] == pytest.approx(ours["loss_last"], rel=1e-4)
    for side in (ours, theirs):
        assert 0.5 < side["loss_last"] < 8.0  # log(7) = 1.9 where all are equally similar, more with noise
    assert report["ratio"] == pytest.approx(ours["items_per_s"] / theirs["items_per_s"], rel=1e-3)
    assert report["memory_ratio"] == pytest.approx(ours["peak_mb"] / theirs["peak_mb"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("against", ["lightly", "transformers"])
def test_mae_against(files, against):
    pytest.importorskip(against, reason=f"{against} is not installed")
    report = measured(files, "mae", against=against)
    ours, theirs = report["ours"], report["theirs"]
    assert ours["flops_per_position"] == pytest.approx(theirs["flops_per_position"], rel=0.02)
    for side in (ours, theirs):
        assert 0.7 < side["loss_last"] < 3.0  # 1 is what the mean of a patch gives
    assert report["ratio_same_config"] > 0


@pytest.mark.slow
def test_lightly_loads_nothing_of_our_data():
    pytest.importorskip("lightly", reason="lightly is not installed")
    command = (
        "import sys, hfssl.benchmark_lightly; print(*(m for m in ('datasets', 'accelerate') if m in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert "datasets" not in result.stdout, result.stdout
