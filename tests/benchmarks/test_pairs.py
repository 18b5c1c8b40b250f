"""Both sides of the benchmark of pairs train the same model on the same pairs, and its modes end in their figures."""

import json
import math

import pytest
import tiny_pairs
import torch
from paces import Steps
from transformers import AutoModel

from hfssl import ClipForPreTraining, ClipPreTrainingConfig
from hfssl.benchmarks import pairs
from hfssl.benchmarks.base import count_flops, num_positions
from hfssl.benchmarks.pairs import PairsBenchmark, contenders, prepare, run_pairs_benchmark
from hfssl.cli.multimodal.data import PairDataArguments
from hfssl.data.image.characters import characters
from hfssl.errors import UserError


NUMBER = 48


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Captioned images, one of which is none, and both kinds of towers."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "images").mkdir()
    drawn = characters("test")
    for i in range(NUMBER):
        (folder / "images" / f"{i:02}.png").write_bytes(drawn["image"][7 * i])
        (folder / "images" / f"{i:02}.txt").write_text(drawn["caption"][7 * i])
    (folder / "images" / "damaged.png").write_bytes(b"no image")
    (folder / "images" / "damaged.txt").write_text("nothing")
    for method, towers in (("clip", tiny_pairs.clip_towers()), ("siglip", tiny_pairs.siglip_towers())):
        for side, config in zip(("image", "text"), towers.values(), strict=True):
            config.to_json_file(folder / f"{method}-{side}.json")
    return folder


def arguments(files, method="clip", **changes):
    fields = {f"{side}_encoder": str(files / f"{method}-{side}.json") for side in ("image", "text")}
    fields |= {"batch_size": 4, "blocks": 2, "steps_per_block": 1, "use_cpu": True, "precision": "fp32"}
    return PairsBenchmark(**fields | changes)


def data(files):
    return PairDataArguments(dataset=str(files / "images"), max_lost_fraction=1.0, max_bad_fraction=0.1)


@pytest.mark.parametrize("method", ["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def test_both_sides_train_the_same_model_on_the_same_pairs(files, tmp_path, method):
    settings = arguments(files, method)
    assert prepare(data(files), tmp_path, needed=8)["num_pairs"] == NUMBER
    ours, theirs = contenders(method, settings, data(files), tmp_path)
    args = pairs.plain_run(settings)
    _, model, rows, _ = pairs._our_parts(ours.settings, args)
    stock = AutoModel.from_pretrained(tmp_path / "stock")
    made = model.joint_model()
    for name, tensor in stock.state_dict().items():
        assert torch.equal(tensor, made.state_dict()[name]), name
    captions = {json.loads(line)["caption"] for line in (tmp_path / "train.json").read_text().splitlines()}
    assert (
        len(captions) > NUMBER / 2 and ours.settings["max_length"] == stock.config.text_config.max_position_embeddings
    )
    paces, flops = (Steps(2), Steps(2)), []
    for side, pace in zip((ours, theirs), paces, strict=True):
        flops.append(side.train(pace, side.settings))
        assert (len(pace.losses), pace.seconds, pace.positions) == (2, 8, 8)
    # CLIP's texts are as long as the longest of a batch with ours, as long as there are positions with theirs
    assert flops[0] == pytest.approx(flops[1], rel=1e-3) if method == "siglip" else 0 < flops[0] < flops[1]


def test_a_pair_counts_as_one_position():
    torch.manual_seed(0)
    batch = tiny_pairs.images_and_texts(6)
    assert num_positions(batch) == 6 == pairs.num_pairs(batch)
    half = tiny_pairs.images_and_texts(3)
    model = ClipForPreTraining(ClipPreTrainingConfig(**tiny_pairs.clip_towers(), projection_dim=16)).train()
    # twice the pairs are twice the work, but for what compares them
    assert count_flops(model, batch) == pytest.approx(count_flops(model, half), rel=0.05)


@pytest.fixture
def told(monkeypatch):
    """What would be measured, and figures for it."""
    told = []

    def measure(sides, **how):
        told.append((sides, how))
        rates = {"ours": 60.0, "theirs": 40.0, "plain": 75.0}
        return {
            side.name: {
                "title": side.title, "precision": side.precision, "unit": side.unit, "items_per_s": rates[side.name],
                "items_per_s_blocks": [rates[side.name]], "items_per_s_range": [rates[side.name]] * 2, "data_wait": 0.1,
                "data_wait_s": 0.1, "first_step_s": 1.0, "peak_mb": 900.0, "peak_above_start_mb": 6 * rates[side.name],
                "flops_per_position": 1e6, "utilisation": 0.2, "matrix_product_flops_per_s": 1e9, "other_load": 0.0,
                "steal": 0.0, "loss_first": 2.0, "loss_last": 1.0,
            }
            for side in sides
        }  # fmt: skip

    monkeypatch.setattr(pairs, "measure", measure)
    return told


def test_the_gradient_cache_is_measured_against_all_at_once_and_against_plain_steps(files, told):
    text, report = run_pairs_benchmark("clip", arguments(files, contrastive_batch_size=12), data(files))
    [(sides, how)] = told
    assert [(side.name, side.steps_as_one) for side in sides] == [("ours", 1), ("theirs", 1), ("plain", 3)]
    assert how["warm_up_steps"] == 1 and json.loads(json.dumps(report)) == report
    assert (report["ratio"], report["memory_ratio"]) == (1.5, 1.5)
    assert (report["time_ratio_plain"], report["memory_ratio_plain"]) == (1.25, 0.8)
    assert "12 pairs a step, of which 4 are embedded at once" in text and "time_ratio_plain: 1.25" in text
    text, report = run_pairs_benchmark("clip", arguments(files, against="none"), data(files))
    assert [side.name for side in told[1][0]] == ["ours"] and told[1][1]["warm_up_steps"] == 3
    assert "ratio" not in report and "Theirs" not in text


def test_each_side_of_the_gradient_cache_compares_all_pairs(files, tmp_path):
    settings = arguments(files, contrastive_batch_size=12)
    prepare(data(files), tmp_path, needed=12)
    ours, theirs, plain = contenders("clip", settings, data(files), tmp_path)
    for side, pairs_a_step in ((ours, 12), (theirs, 12), (plain, 4)):
        pace = Steps(2)
        assert side.train(pace, side.settings) > 0
        assert pace.seconds == pace.positions == 2 * pairs_a_step and len(pace.losses) == 2
        # the loss of a step, of which each batch has a share: at first nothing is told from anything
        assert 0.7 * math.log(pairs_a_step) < pace.losses[0] < 2.0 * math.log(pairs_a_step)


@pytest.mark.parametrize("cached", [None, 12])
def test_open_clip_trains_a_model_of_our_size(files, tmp_path, cached):
    pytest.importorskip("open_clip", reason="open_clip is not installed")
    settings = arguments(files, against="open_clip", contrastive_batch_size=cached)
    prepare(data(files), tmp_path, needed=12)
    ours, theirs, *_ = contenders("clip", settings, data(files), tmp_path)
    pace, number = Steps(2), 4 if cached is None else 12
    flops = theirs.train(pace, theirs.settings)
    assert pace.seconds == pace.positions == 2 * number and len(pace.losses) == 2
    assert all(0.5 < loss < 4.0 for loss in pace.losses)
    assert flops > 0.9 * ours.train(Steps(1), ours.settings)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"blocks": 0}, "--blocks.*at least 1"),
        ({"batch_size": 1}, "--batch_size.*at least 2"),
        ({"contrastive_batch_size": 100}, "--contrastive_batch_size 100.*several times `--batch_size 64`.*Pass 128"),
        ({"contrastive_batch_size": 64}, "Pass 128"),
        ({"text_encoder": "org/model"}, "--text_encoder org/model.*trains from scratch.*clip-text-mini"),
    ],
)
def test_bad_settings_are_named(fields, words):
    with pytest.raises(UserError, match=words):
        PairsBenchmark(**fields)


def test_what_cannot_be_measured_is_said(files, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="open_clip is measured at CLIP, not at SigLIP"):
        run_pairs_benchmark("siglip", arguments(files, "siglip", against="open_clip"), data(files))
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UserError, match="open_clip, which is not installed.*pip install open_clip_torch"):
            run_pairs_benchmark("clip", arguments(files, against="open_clip"), data(files))
    with pytest.raises(UserError, match="48 pairs.*needs 64"):
        run_pairs_benchmark("clip", arguments(files, batch_size=32), data(files))
    settings = arguments(files, image_encoder="convnextv2-atto-patch2")
    prepare(data(files), tmp_path, needed=8)
    with pytest.raises(
        UserError, match="transformers has no class that holds convnextv2-atto-patch2 and .*--against none"
    ):
        contenders("clip", settings, data(files), tmp_path)


@pytest.mark.slow
def test_ends_with_a_table_and_one_line_of_json(files):
    text, report = run_pairs_benchmark("clip", arguments(files, contrastive_batch_size=8), data(files))
    for name in ("ours", "theirs", "plain"):
        side = report[name]
        assert side["items_per_s"] > 0 and 0 <= side["data_wait"] < 1 and side["peak_above_start_mb"] > 0
        assert side["utilisation"] > 0 and 0.5 < side["loss_last"] < 4.0
    assert report["ratio"] == pytest.approx(report["ours"]["items_per_s"] / report["theirs"]["items_per_s"], rel=1e-3)
    assert "pairs/s" in text and "padding  " not in text
