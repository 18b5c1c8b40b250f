"""The runner of a comparison, what both sides have in common, and what its table says."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny_vision
import torch
from transformers import AutoImageProcessor, AutoModel

from hfssl.benchmarks.comparison import cells as comparison_cells
from hfssl.benchmarks.comparison import plan as comparison_plan
from hfssl.benchmarks.comparison import run as comparison_run
from hfssl.benchmarks.comparison.cells import Curve, build_ours
from hfssl.benchmarks.comparison.plan import Comparison, read_cell
from hfssl.benchmarks.comparison.report import at_time_of, report
from hfssl.benchmarks.comparison.run import run_comparison
from hfssl.errors import UserError
from hfssl.methods.vision.simclr import METHOD as SIMCLR


TINY_MOCO = {"projector_hidden_dim": 16, "projector_output_dim": 8}
TINY_DINO = {"num_prototypes": 16, "projector_hidden_dim": 16, "projector_output_dim": 8}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "vit.json"
    tiny_vision.vit().to_json_file(path)
    return str(path)


@pytest.fixture
def arguments(encoder, tmp_path):
    return Comparison(
        dataset="digits", methods="simclr,moco", encoder=encoder, output_dir=str(tmp_path), max_images=40, batch_size=16, passes=2, max_train_samples=60,
        max_test_samples=40, seeds="0", against="lightly", precision="fp32", use_cpu=True, local_crops=1, cpu_threads=1,
        method_config={"dino": TINY_DINO, "moco": TINY_MOCO}, learning_rate=1e-3,
    )  # fmt: skip


@pytest.fixture
def in_this_process(monkeypatch):
    """Cells that were run, instead of processes."""
    ran = []

    def run(arguments, cell):
        ran.append(cell.name)
        comparison_run.run_cell(arguments, cell)

    monkeypatch.setattr(comparison_run, "_run_in_a_process", run)
    return ran


def test_a_half_done_table_goes_on_and_ends_with_the_table(arguments, in_this_process, tmp_path):
    pytest.importorskip("lightly")
    said = run_comparison(replace(arguments, cell="simclr, lightly, 0"))
    assert "simclr-lightly-0.json" in said and in_this_process == []
    text = run_comparison(replace(arguments, table=True))
    assert "1 of 3 trainings have finished; missing: baselines, simclr-hfssl-0, moco-hfssl-0." in text
    written = (tmp_path / "simclr-lightly-0.json").stat().st_mtime_ns

    text = run_comparison(arguments)
    assert in_this_process == ["baselines", "simclr-hfssl-0", "moco-hfssl-0"]
    assert (tmp_path / "simclr-lightly-0.json").stat().st_mtime_ns == written
    for row in ("SimCLR, hfssl", "SimCLR, lightly", "MoCo v3, hfssl", "random initialisation", "raw pixels"):
        assert f"| {row} |" in text
    assert "MoCo v3, lightly" not in text and "missing" not in text
    assert (tmp_path / "comparison.md").read_text() in text + "\n" and (tmp_path / "comparison.png").is_file()
    page = (tmp_path / "comparison.html").read_text()
    assert "… random init" in page and "… raw input" in page and str(tmp_path) not in page

    ours, theirs = (json.loads((tmp_path / f"simclr-{side}-0.json").read_text()) for side in ("hfssl", "lightly"))
    assert ours["steps"] == theirs["steps"] == 4 and ours["num_images"] == 40
    assert [point["images"] for point in theirs["curve"]] == [0, 32, 64]
    # both began with the same weights, those of the baseline
    baseline = json.loads((tmp_path / "baselines.json").read_text())["random_init"]["0"]
    for name in ("knn_20", "knn_200"):
        assert ours["curve"][0][name] == theirs["curve"][0][name] == baseline[name]
    for cell in ("simclr-hfssl-0", "simclr-lightly-0", "moco-hfssl-0"):
        AutoImageProcessor.from_pretrained(tmp_path / cell)
        assert AutoModel.from_pretrained(tmp_path / cell).config.model_type == "vit"

    in_this_process.clear()
    run_comparison(arguments)
    assert in_this_process == []
    with pytest.raises(UserError, match="batch_size = 16, this command says 8.*--output_dir"):
        run_comparison(replace(arguments, batch_size=8))


def test_a_run_of_so_many_steps_is_measured_at_each_fifth_and_judged(arguments, in_this_process, tmp_path):
    text = run_comparison(replace(arguments, methods="simclr", against="none", steps=10))
    record = json.loads((tmp_path / "simclr-hfssl-0.json").read_text())
    assert [point["step"] for point in record["curve"]] == [0, 2, 4, 6, 8, 10]
    assert all(point["loss"] > 1 for point in record["curve"][1:])
    assert record["curve"][0]["health_verdict"] == "untrained"
    assert f"| {record['curve'][-1]['health_verdict']} |" in text and "10 steps of 16, 4 times 40 images" in text
    assert replace(arguments, steps=3).points(3) == [1, 2, 3]
    # given no rate, each method has that of its recipe
    images = comparison_run.prepare_images(arguments)
    own = build_ours(replace(arguments, learning_rate=None), "simclr", 0, images).args.learning_rate
    assert own == pytest.approx(SIMCLR.learning_rates.narrow * 16 / 256)


def test_both_sides_see_all_images_and_start_alike(arguments, tmp_path):
    images = comparison_run.prepare_images(arguments)
    assert len(list(images.iterdir())) == 40
    # another cell that begins later finds them, and leaves nothing beside them
    assert comparison_run.prepare_images(arguments) == images
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    simclr, dino = (build_ours(arguments, method, 0, images) for method in ("simclr", "dino"))
    assert simclr.data.exclude == frozenset() and simclr.args.max_steps == 4
    start = simclr.model.encoder.state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in dino.model.encoder.state_dict().items())
    assert (dino.views.num_local, dino.model.config.num_prototypes) == (1, 16)
    assert (dino.args.weight_decay, dino.args.weight_decay_end, dino.args.max_grad_norm) == (0.04, 0.4, 3.0)


def test_the_other_side_trains_with_our_weights_schedules_and_clipping(arguments, monkeypatch):
    pytest.importorskip("lightly")
    images = comparison_run.prepare_images(arguments)
    parts = build_ours(arguments, "dino", 0, images)
    rates, decays = [], []

    class Watched(torch.optim.AdamW):
        def step(self, *args):
            rates.append(self.param_groups[0]["lr"])
            decays.append([round(group["weight_decay"], 4) for group in self.param_groups])
            return super().step(*args)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    curve = SimpleNamespace(begin=lambda encoder: begun.append(encoder), stepped=lambda loss: None)
    begun = []
    start = {name: tensor.clone() for name, tensor in parts.model.encoder.state_dict().items()}
    teacher = comparison_cells.train_lightly(arguments, "dino", parts, images, curve)
    assert begun == [teacher]
    assert any(not torch.equal(tensor, start[name]) for name, tensor in teacher.state_dict().items())
    # 4 steps: one of warm-up from 0, then half a cosine
    assert rates == pytest.approx([0.0, 1e-3, 7.5e-4, 2.5e-4])
    assert decays == [[0.04, 0.0], [0.0927, 0.0], [0.22, 0.0], [0.3473, 0.0]]


def test_from_the_same_batches_both_sides_learn_the_same(arguments, tmp_path, monkeypatch):
    """From the same weights too, and in float64: rounding is no part of it, which SimSiam makes grow."""
    pytest.importorskip("lightly")
    import hfssl.benchmarks.lightly as lightly_sides
    from hfssl.training.trainer import SSLTrainer

    tiny_vision.resnet().to_json_file(tmp_path / "resnet.json")
    sizes = {"projector_hidden_dim": 16, "projector_output_dim": 8}
    arguments = replace(arguments, encoder=str(tmp_path / "resnet.json"), method_config={"simsiam": sizes})
    images = comparison_run.prepare_images(arguments)
    parts, theirs = (build_ours(arguments, "simsiam", 0, images) for _ in range(2))
    # the bias that only ours has is taken away again by batch norm
    heads = [
        tensor.double()
        for name, tensor in parts.model.state_dict().items()
        if "encoder." not in name and name != "predictor.0.bias"
    ]
    batches, losses = [], {"hfssl": [], "lightly": []}
    compute_loss, lightly_side = SSLTrainer.compute_loss, lightly_sides.lightly_side

    def of_kept_batches(self, model, inputs, *args, **kwargs):
        inputs["pixel_values"] = inputs["pixel_values"].double()
        batches.append(inputs["pixel_values"].clone())
        return compute_loss(self, model, inputs, *args, **kwargs)

    def with_our_heads(*args):
        side = lightly_side(*args)
        side.model.double()
        theirs = [tensor for name, tensor in side.model.state_dict().items() if "backbone." not in name]
        for tensor, ours in zip(theirs, heads, strict=True):
            tensor.copy_(ours)
        return side

    class Pace(SimpleNamespace):
        def stepped(self, loss):
            losses[self.side].append(loss.item())

    def pace(side):
        probe = SimpleNamespace(samples=[path.read_bytes() for path in images.iterdir()])
        return Pace(side=side, probe=probe, begin=lambda *_: None, mark=lambda: None, fetched=lambda *_: None)

    monkeypatch.setattr(SSLTrainer, "compute_loss", of_kept_batches)
    monkeypatch.setattr(lightly_sides, "lightly_side", with_our_heads)
    parts.model.double()
    comparison_cells.train_ours(parts, pace("hfssl"))
    monkeypatch.setattr("torch.utils.data.DataLoader", lambda *_, **__: [(b.unbind(1),) for b in batches])
    theirs.model.double()
    encoder = comparison_cells.train_lightly(arguments, "simsiam", theirs, images, pace("lightly"))
    assert len(batches) == 4 and losses["hfssl"] == pytest.approx(losses["lightly"], rel=1e-9)
    expected = encoder.state_dict()
    for name, tensor in parts.model.encoder.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-9)


def test_the_clock_stands_while_it_measures(monkeypatch):
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: now[0])
    monkeypatch.setattr(comparison_cells, "time", clock)

    def features(encoder):
        now[0] += 100.0
        return [None, None]

    curve = Curve(
        "a run", SimpleNamespace(features=features, knn=lambda *_: {"knn_20": 0.5, "knn_200": 0.25}), [2, 4], 8
    )
    curve.begin(None)
    for loss in (1.0, 3.0, 5.0, 7.0):
        now[0] += 10.0
        curve.stepped(torch.tensor(loss))
    assert [(point["step"], point["images"], point["seconds"], point["loss"]) for point in curve.points] == [
        (0, 0, 0.0, None), (2, 16, 20.0, 2.0), (4, 32, 40.0, 6.0),
    ]  # fmt: skip


def write(arguments, method, side, seed, *, seconds, knn, linear=0.5):
    """A finished cell of which the k-NN grows by halves of `knn`."""
    curve = [
        {
            "step": 2 * i,
            "images": 32 * i,
            "seconds": seconds * i / 2,
            "knn_20": knn * i / 2,
            "knn_200": knn * i / 2,
            "loss": None,
        }
        for i in range(3)
    ]
    record = {
        "method": method, "side": side, "seed": seed, "curve": curve, "linear": linear, "seconds": seconds, "cpu_seconds": 2 * seconds, "steps": 4,
        "num_images": 40, "precision": "fp32", "threads": 1, "protocol": arguments.protocol(method),
        "command": "python recipes/compare.py", "commit": None, "versions": {},
    }  # fmt: skip
    path = comparison_plan.cell_path(arguments, comparison_plan.Cell(method, side, seed))
    path.write_text(json.dumps(record))
    return record


def test_the_table_compares_at_equal_steps_and_at_equal_time(arguments, tmp_path):
    arguments = replace(arguments, methods="simclr", seeds="0,1")
    for seed in (0, 1):
        write(arguments, "simclr", "hfssl", seed, seconds=100.0, knn=0.40 + 0.02 * seed)
        write(arguments, "simclr", "lightly", seed, seconds=150.0, knn=0.41 + 0.01 * seed)
    text = report(arguments)
    ours, theirs = (line for line in text.splitlines() if line.startswith("| SimCLR"))
    # ours had ended before; at 100 s theirs stands at its half
    assert ours.split(" | ")[1:3] == ["41.0 ± 1.4", "41.0 ± 1.4 (ended, 100 s)"]
    assert theirs.split(" | ")[1:3] == ["41.5 ± 0.7", "20.8 ± 0.4 (not ended, 75 s)"]
    assert "equal to lightly at equal steps (-0.5 points, one standard deviation is 1.4)" in text
    assert "-0.5 points at its wall time; 1.50 × its speed" in text
    page = (tmp_path / "comparison.html").read_text()
    assert "4 runs side by side" in page and "SimCLR, lightly" in page and "K-NN accuracy while it trained of" in page
    assert "linear probe on " in page and ">0.42<" in page and "side by side: " in text
    write(arguments, "simclr", "hfssl", 0, seconds=400.0, knn=0.30)
    write(arguments, "simclr", "hfssl", 1, seconds=400.0, knn=0.30)
    text = report(arguments)
    assert "below lightly at equal steps (-11.5 points" in text and "-41.5 points at its wall time" in text


def test_a_point_counts_that_was_reached_in_the_time():
    curve = [{"seconds": seconds} for seconds in (0.0, 10.0, 20.0)]
    assert at_time_of({"curve": curve}, {"seconds": 19.9})["seconds"] == 10.0
    assert at_time_of({"curve": curve}, {"seconds": 20.0})["seconds"] == 20.0
    assert at_time_of({"curve": curve}, {"seconds": 1.0})["seconds"] == 0.0


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"methods": "simclr,jigsaw"}, "--methods.*'jigsaw'.*byol, .*dino, .*mae, .*simclr"),
        ({"methods": ""}, "a method and a seed"),
        ({"seeds": "0;1"}, "--seeds.*'0;1'"),
        ({"passes": 0}, "--passes.*at least 1, got 0"),
        ({"steps": 0}, "--steps.*at least 1, got 0"),
        ({"max_images": 100}, "--max_images 100.*--batch_size.*256"),
        ({"encoder": "org/model"}, "org/model.*from scratch"),
        ({"cell": "mae,lightly,0"}, "no cell 'mae,lightly,0'.*simclr,hfssl,0"),
        ({"method_config": {"num_prototypes": 8}}, "--method_config.*by method.*'num_prototypes'"),
    ],
)
def test_bad_settings_are_named(fields, words):
    with pytest.raises(UserError, match=words):
        Comparison(**fields)


def test_a_cell_needs_a_batch_of_images_and_the_other_side(arguments, monkeypatch):
    with pytest.raises(UserError, match=r"fewer than `--batch_size 1000000`"):
        comparison_run.prepare_images(replace(arguments, batch_size=10**6, max_images=10**6))
    for name in ("lightly", "lightly.transforms"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"lightly, which is not installed.*--against none"):
        run_comparison(arguments)
    assert read_cell(arguments, arguments.cells[0]) is None


@pytest.mark.slow
def test_a_cell_of_its_own_process_hands_its_error_over(arguments, tmp_path):
    (tmp_path / "images").mkdir()  # a folder without any
    with pytest.raises(UserError, match="images"):
        comparison_run._run_in_a_process(arguments, arguments.cells[0])
