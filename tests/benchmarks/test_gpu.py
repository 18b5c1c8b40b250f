"""The benchmark of one GPU: its rows, what becomes of those that cannot run, and that all of it runs, tiny, on a CPU."""

import importlib.util
import json

import pytest
import torch
from PIL import Image

from hfssl.benchmarks import gpu
from hfssl.benchmarks.base import Contender
from hfssl.benchmarks.gpu import PHOTO, ROWS, GpuBenchmark, run_gpu_benchmark, sides_of, write_photos
from hfssl.errors import UserError


TINY = {"tiny": True, "use_cpu": True, "blocks": 1, "steps_per_block": 1, "precision": "fp32"}


def figures(side):
    return {
        "title": side.title, "precision": side.precision, "unit": side.unit, "items_per_s": 200.0 - len(side.name),
        "step_s": 0.02, "utilisation": 0.4, "data_wait": 0.1, "gpu_wait": 0.03, "peak_gpu_mb": 2048.0,
        "other_load": 0.0, "steal": 0.0,
    }  # fmt: skip


@pytest.fixture
def told(monkeypatch):
    """What would be measured. The sides of text are not prepared; that they can be is tried by the slow test."""
    told = []

    def measure(sides, **how):
        told.append([side.name for side in sides])
        return {side.name: figures(side) for side in sides}

    def text(row, arguments, folder):
        return [Contender(name, name, "fp32", print) for name in ("ours", "theirs", "ours_same_config")]

    monkeypatch.setattr(gpu, "measure", measure)
    for name in ("_mlm_sides", "_clm_sides"):
        monkeypatch.setattr(gpu, name, text)
    return told


def test_rows_beside_what_is_installed(told, monkeypatch):
    installed = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lightly" else installed(name))
    text, report = run_gpu_benchmark(GpuBenchmark(rows=["bert", "gpt2", "moco"], **TINY))
    assert told == [["ours", "theirs"], ["ours", "theirs"], ["ours"]]
    assert json.loads(json.dumps(report)) == report
    assert (report["device"], report["rows"]["moco"]["encoder"]) == ("cpu", "vit-mini-patch4")
    assert (
        "| bert | bert-tiny, 4 × 64 | fp32 | 20 | 196 tokens | 40.0% | 3.0% | 2.0 GB | 1.01 × theirs (194/s) |" in text
    )
    assert "these are no figures" in text
    told.clear()
    run_gpu_benchmark(GpuBenchmark(rows=["bert"], against="none", **TINY))
    assert told == [["ours"]]


def test_a_row_that_cannot_run_says_why_and_the_others_go_on(told, monkeypatch):
    def fails(row, arguments, folder):
        raise UserError("Out of memory, for a change.")

    monkeypatch.setattr(gpu, "_mlm_sides", fails)
    text, report = run_gpu_benchmark(GpuBenchmark(rows=["bert", "gpt2"], **TINY))
    assert "| bert | bert-tiny, 4 × 64 | Out of memory, for a change. |" in text
    assert "ours" in report["rows"]["gpt2"] and "ours" not in report["rows"]["bert"]

    def says_nothing(row, arguments, folder):
        raise AssertionError

    monkeypatch.setattr(gpu, "_mlm_sides", says_nothing)
    assert run_gpu_benchmark(GpuBenchmark(rows=["bert"], **TINY))[1]["rows"]["bert"]["error"] == "AssertionError"
    text, _ = run_gpu_benchmark(GpuBenchmark(rows=["gpt2"], minutes=1e-9, **TINY))
    assert "not run: `--minutes 1e-09` were over" in text


def test_nothing_of_the_other_side_is_needed_where_it_is_left_out(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(gpu.vision, "contenders", lambda method, benchmark, *_: asked.append(benchmark.against) or [])
    sides_of(ROWS["simclr"].tiny(), GpuBenchmark(against="none", **TINY), tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sides_of(ROWS["simclr"].tiny(), GpuBenchmark(**TINY), tmp_path)
    assert asked == ["none", "none"]


def test_every_row_has_a_method_and_a_size(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    full = GpuBenchmark(batch_scale=0.5)
    for row in ROWS.values():
        assert row.method in ("mlm", "clm", *gpu.vision.METHODS)
        assert row.sized(full).batch_size == row.batch_size // 2 and row.sized(full).encoder == row.encoder
        assert row.sized(GpuBenchmark(tiny=True)).length in (32, 64, 2)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"tiny": True, "rows": ["bert", "byol"]}, "`--rows byol` is unknown. Choose some of bert, "),
        ({"use_cpu": True}, "reaches no GPU.*`--tiny`"),
        ({"tiny": True, "blocks": 0}, "`--blocks` must be at least 1, got 0"),
        ({"tiny": True, "batch_scale": 0.0}, "must be above 0, got 0"),
    ],
)
def test_bad_settings_are_named(fields, words):
    with pytest.raises(UserError, match=words):
        GpuBenchmark(**fields)


def test_photos_have_the_bytes_of_photos(tmp_path):
    write_photos(tmp_path, 1, PHOTO)
    [file] = tmp_path.iterdir()
    assert Image.open(file).size == PHOTO[::-1] and 40_000 < file.stat().st_size < 160_000


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_it_runs(row, tmp_path):
    arguments = GpuBenchmark(rows=[row], **TINY)
    text, report = run_gpu_benchmark(arguments)
    measured = report["rows"][row]
    assert "error" not in measured, measured["error"]
    assert measured["ours"]["step_s"] > 0 and measured["ours"]["utilisation"] > 0
    if ROWS[row].peer == "transformers":
        assert measured["theirs"]["items_per_s"] > 0
    elif ROWS[row].peer is None:
        assert [side.name for side in sides_of(ROWS[row].sized(arguments), arguments, tmp_path)] == ["ours"]
