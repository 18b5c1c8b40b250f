"""What both sides of the benchmarks for images are made of, and how the benchmark runs."""

import inspect
import json
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import tiny_vision
import torch
from PIL import Image

from hfssl.benchmarks.base import count_flops
from hfssl.benchmarks.by_crop import take_crop_by_crop
from hfssl.benchmarks.vision import VisionBenchmark, contenders, prepare, run_vision_benchmark
from hfssl.cli.image.data import ImageDataArguments
from hfssl.errors import UserError
from hfssl.losses import (
    barlow_twins_loss,
    byol_loss,
    dino_loss,
    lejepa_terms,
    simsiam_loss,
    swav_loss,
    vicreg_loss,
)
from hfssl.methods.vision.dino import DinoForPreTraining, DinoPreTrainingConfig
from hfssl.methods.vision.dinov2 import Dinov2ForPreTraining, Dinov2PreTrainingConfig
from hfssl.methods.vision.mae import MaeForPreTraining, MaePreTrainingConfig
from hfssl.modeling.vision import encode_visible, transformer_blocks


NUMBER = 24


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images of noise in two formats, one file that is none, and an encoder."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(NUMBER):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
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
    assert made[1].settings["model"]["encoder_config"]["image_size"] == made[1].settings["views"][0]["size"] == 16
    # another library's process is to import nothing of ours by what it is told
    assert b"hfssl.data" not in pickle.dumps(made[1].settings)


def test_each_side_at_its_own_precision(files, tmp_path, monkeypatch):
    monkeypatch.setattr("hfssl.benchmarks.vision.choose_precision", lambda precision, use_cpu: "bf16")
    made = sides(files, tmp_path, against="transformers", precision="auto", defaults=True)
    assert {side.name: side.precision for side in made} == {
        "ours": "bf16",
        "theirs": "fp32",
        "ours_same_config": "bf16",
    }


@pytest.mark.parametrize("against", ["lightly", "transformers"])
def test_their_mae_is_one_of_vits(files, tmp_path, against):
    with pytest.raises(UserError, match="masked autoencoder of .* has a ViT.*not a dinov2"):
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
    masked_side = pytest.importorskip("hfssl.benchmarks.lightly.masked", reason="lightly is not installed")
    encoder = tiny_vision.build("vit").eval()
    masked = masked_side.MaskedViT(encoder)
    images, visible = torch.randn(3, 3, 16, 16), torch.tensor([[5, 0, 2], [1, 2, 3], [15, 14, 13]])
    keep = torch.cat([torch.zeros(3, 1, dtype=torch.long), visible + 1], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(masked.encode(images, idx_keep=keep), encode_visible(encoder, images, visible))
        torch.testing.assert_close(masked(images), encoder(images).last_hidden_state[:, 0])


@pytest.fixture
def lightly_sides(files, tmp_path):
    lightly = pytest.importorskip("hfssl.benchmarks.lightly", reason="lightly is not installed")

    def build(method, **changes):
        settings = sides(files, tmp_path, method, against="none")[0].settings
        settings["model"] |= changes
        torch.manual_seed(0)
        return lightly.lightly_side(method, settings), settings

    return build


@pytest.mark.parametrize(
    "method, sizes",
    [("simclr", [16] * 2), ("byol", [16] * 2), ("dino", [16] * 2 + [8] * 6), ("swav", [16] * 2 + [8] * 6)],
)
def test_views_of_lightly_have_our_parameters(lightly_sides, method, sizes):
    side, settings = lightly_sides(method)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
    assert [view.shape for view in side.transform(image)] == [(3, size, size) for size in sizes]
    ours = settings["views"] + [settings["local_view"]] * settings["num_local"]
    for view, theirs in zip(ours, side.transform.transforms, strict=True):
        parts = {type(part).__name__: part for part in flat([theirs])}
        jitter, crop = parts["ColorJitter"], parts["RandomResizedCrop"]
        for name, strength in zip(("brightness", "contrast", "saturation"), view["jitter"], strict=False):
            assert getattr(jitter, name) == pytest.approx((1 - strength, 1 + strength)), name
        assert jitter.hue == pytest.approx((-view["jitter"][3], view["jitter"][3]))
        # lightly takes torchvision's first or second generation of transforms
        interpolation = getattr(crop.interpolation, "value", crop.interpolation)
        assert tuple(crop.scale) == tuple(view["scale"]) and interpolation == view["interpolation"]
        assert parts["RandomApply"].p == view["jitter_probability"]
        assert parts["RandomGrayscale"].p == view["grey_probability"]
        assert parts["GaussianBlur"].prob == view["blur_probability"] == 0.0  # small images
        assert parts["RandomHorizontalFlip"].p == view["flip_probability"]
        if method in ("byol", "dino", "barlow_twins", "vicreg"):
            assert parts["RandomSolarization"].prob == view["solarize_probability"]
        assert parts["Normalize"].mean == settings["mean"] and parts["Normalize"].std == settings["std"]


def flat(transforms):
    for transform in transforms:
        yield transform
        inner = getattr(transform, "transform", None)  # of torchvision's second generation a method
        yield from flat(getattr(transform, "transforms", [] if inner is None or inspect.ismethod(inner) else [inner]))


@pytest.mark.parametrize(
    "method",
    ["simclr", "mae", "byol", "dino", "dinov2", "swav", "simsiam", "barlow_twins", "vicreg", "lejepa"],
)
def test_lightly_trains_all_but_the_teacher(lightly_sides, method):
    side, settings = lightly_sides(method)
    side.model.train()
    sizes = [view["size"] for view in settings["views"]] + [8] * settings["num_local"]
    trained = {name: p.detach().clone() for name, p in side.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD([p for p in side.model.parameters() if p.requires_grad], lr=1.0)
    side.before_step(0.5)
    teachers = {name: p.clone() for name, p in side.model.named_parameters() if not p.requires_grad}
    loss = side.loss_of([torch.randn(4, 3, size, size) for size in sizes])
    loss.backward()
    side.after_backward()
    optimizer.step()
    for name, parameter in side.model.named_parameters():
        if name in teachers:
            assert torch.equal(parameter, teachers[name]), name
        elif "k_proj.bias" not in name:  # what is added to all keys alike changes no attention
            assert not torch.equal(parameter, trained[name]), name
    assert any(parameter is own for own in side.backbone.parameters() for parameter in side.model.parameters())
    encoder_is_trained = next(side.backbone.parameters()).requires_grad
    assert encoder_is_trained == (method not in ("dino", "dinov2"))
    assert bool(teachers) == (method in ("mae", "byol", "dino", "dinov2"))  # the positions of MAE are fixed


def test_byol_of_lightly_has_our_loss_and_teacher(lightly_sides):
    side, settings = lightly_sides("byol", momentum_start=0.9)
    model = side.model.train()
    views = [torch.randn(4, 3, 16, 16) for _ in range(2)]
    predictions = torch.stack([model(view) for view in views], dim=1)
    targets = torch.stack([model.forward_momentum(view) for view in views], dim=1)
    assert byol_loss(predictions, targets).item() == pytest.approx(2 + 2 * side.loss_of(views).item(), rel=1e-5)
    check_teacher(side, model.projection_head, model.projection_head_momentum)


def check_teacher(side, student, teacher, momentum=0.9):
    with torch.no_grad():
        student.layers[0].weight.add_(1.0)
    before = teacher.layers[0].weight.clone()
    side.before_step(0.0)
    expected = momentum * before + (1 - momentum) * student.layers[0].weight
    torch.testing.assert_close(teacher.layers[0].weight, expected)


def test_dino_of_lightly_has_our_loss_schedules_and_teacher(lightly_sides):
    side, settings = lightly_sides("dino", momentum_start=0.9, drop_path_rate=0.0, freeze_prototypes=0.1)
    model = side.model.train()
    views = [torch.randn(4, 3, size, size) for size in [16] * 2 + [8] * 6]
    with torch.no_grad():
        model.criterion.center.normal_(std=0.01)
    check_teacher(side, model.student_head, model.teacher_head)
    with torch.no_grad():
        student_logits = torch.stack([model(view) for view in views])
        teacher_logits = torch.stack([model.forward_teacher(view) for view in views[:2]])
    for progress, temperature in ((0.0, 0.04), (0.05, 0.055), (0.5, 0.07)):
        before = {name: p.clone() for name, p in model.named_parameters()}
        side.before_step(progress)
        model.load_state_dict(before, strict=False)  # the teacher as it was
        center = model.criterion.center.flatten().clone()
        expected = dino_loss(student_logits, teacher_logits, center, 0.1, temperature)
        loss = side.loss_of(views)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5), progress
        moved = center.lerp(teacher_logits.mean((0, 1)), 0.1)
        torch.testing.assert_close(model.criterion.center.flatten(), moved)
        model.zero_grad()
        loss.backward()
        side.after_backward()
        assert (model.student_head.last_layer.weight_v.grad is None) == (progress < 0.1)


@pytest.mark.parametrize("patch_head", ["shared", "separate"])
def test_dinov2_of_lightly_has_our_loss_and_schedules(lightly_sides, patch_head):
    """Whole models: of the same weights, crops and masks."""
    utils = pytest.importorskip("lightly.models.utils")
    sizes = {"projector_hidden_dim": 16, "projector_output_dim": 8, "num_prototypes": 32, "patch_head": patch_head}
    settings = {"drop_path_rate": 0.0, "freeze_prototypes": 0.1, "pooling": None, **sizes}
    side, found = lightly_sides("dinov2", **settings)
    ours = Dinov2ForPreTraining(Dinov2PreTrainingConfig.from_dict(found["model"])).train()
    theirs = side.model.train()
    with torch.no_grad():
        for part in ("student", "teacher"):
            branch, backbone = getattr(ours, part), getattr(theirs, f"{part}_backbone")
            branch.encoder.load_state_dict(backbone.vit.state_dict())
            branch.mask_token.copy_(backbone.mask_token.normal_())
            heads = getattr(theirs, f"{part}_head")
            for own, head in ((branch.projector, heads["dino"]), (branch.patch_projector, heads["ibot"])):
                if own is not None:
                    layers = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
                    linear = [layer for layer in own.layers if isinstance(layer, torch.nn.Linear)]
                    for layer, other in zip(linear, layers, strict=True):
                        layer.load_state_dict(other.state_dict())
                    own.prototypes.weight.copy_(head.last_layer.weight)
        for center, criterion in (
            ("center", theirs.dino_criterion.center),
            ("patch_center", theirs.ibot_criterion.center.value),
        ):
            getattr(ours, center).copy_(criterion.normal_(std=0.01).flatten())
    crops = [torch.randn(4, 3, size, size) for size in [16] * 2 + [8] * 6]
    random.seed(5)
    mask = utils.random_block_mask((8, 4, 4), min_num_masks_per_block=1).flatten(1)
    masked = torch.full((4, 32), -1)
    for row, of_image in zip(masked, torch.cat(mask.chunk(2), dim=1), strict=True):
        row[: of_image.sum()] = of_image.nonzero()[:, 0]
    expected = ours(torch.stack(crops[:2], 1), torch.stack(crops[2:], 1), masked).loss
    random.seed(5)
    assert side.loss_of(crops).item() == pytest.approx(expected.item(), rel=1e-5)
    check_teacher(side, theirs.student_head["dino"], theirs.teacher_head["dino"], found["model"]["momentum_start"])
    for progress in (0.05, 0.1):
        side.before_step(progress)
        theirs.zero_grad()
        side.loss_of(crops).backward()
        side.after_backward()
        for head in theirs.student_head.values():
            assert (head.last_layer.weight_v.grad is None) == (progress < 0.1)


def test_what_lightly_has_not_is_refused(lightly_sides, files, tmp_path):
    with pytest.raises(UserError, match="have a centre.*`centering` is sinkhorn.*--against none"):
        lightly_sides("dinov2", centering="sinkhorn")


@pytest.mark.parametrize("method", ["dino", "dinov2"])
def test_crop_by_crop_the_loss_is_the_same(method):
    kinds = {
        "dino": (DinoForPreTraining, DinoPreTrainingConfig, tiny_vision.crops),
        "dinov2": (Dinov2ForPreTraining, Dinov2PreTrainingConfig, tiny_vision.masked_crops),
    }
    model_class, config_class, make = kinds[method]
    torch.manual_seed(0)
    sizes = {"projector_hidden_dim": 16, "projector_output_dim": 8, "num_prototypes": 32}
    config = config_class(encoder_config=tiny_vision.ENCODERS["dinov2"](), drop_path_rate=0.5, **sizes)
    model, batch = model_class(config).eval(), make(4)
    expected = model(**batch).loss
    take_crop_by_crop(model, 4, 2)
    calls = []
    for part in (model.student.encoder, model.student.projector, model.teacher.encoder):
        part.register_forward_hook(lambda module, args, output, part=part: calls.append((part, len(args[0]))))
    torch.testing.assert_close(model(**batch).loss, expected)
    rows = {part: [number for each, number in calls if each is part] for part, _ in calls}
    assert rows[model.student.encoder] == [4] * 5 and rows[model.teacher.encoder] == [4] * 2
    assert (
        rows[model.student.projector][:5] == [4] * 5
        and len(rows[model.student.projector]) == (5, 7)[method == "dinov2"]
    )
    # in training what is dropped is computed
    model.train()
    seen = []
    transformer_blocks(model.student.encoder)[-1].mlp.register_forward_hook(
        lambda module, args, output: seen.append(len(args[0]))
    )
    model(**batch)
    assert seen == [4] * 5


def test_swav_of_lightly_has_our_loss_and_prototypes(lightly_sides):
    side, settings = lightly_sides("swav", freeze_prototypes=0.1)
    model = side.model.train()
    prototypes = model.prototypes.heads[0]
    views = [torch.randn(4, 3, size, size) for size in [16] * 2 + [8] * 6]
    for progress in (0.0, 0.1):
        with torch.no_grad():
            prototypes.weight.mul_(2.0)
        side.before_step(progress)
        torch.testing.assert_close(prototypes.weight.norm(dim=-1), torch.ones(256))
        logits = torch.stack([model(view) for view in views])
        loss = side.loss_of(views)
        # its bias makes logits that may be above 1
        expected = swav_loss(logits, settings["model"]["student_temperature"], settings["model"]["sinkhorn_epsilon"])
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        model.zero_grad()
        loss.backward()
        assert (prototypes.weight.grad is None) == (progress < 0.1)


@pytest.mark.parametrize("method", ["simsiam", "barlow_twins", "vicreg", "lejepa"])
def test_lightly_has_our_loss(lightly_sides, method):
    side, settings = lightly_sides(method)
    model, config = side.model.train(), settings["model"]
    sizes = [16] * 2 + [8] * settings["num_local"]
    views = [torch.randn(8, 3, size, size) for size in sizes]
    if method == "simsiam":
        targets, predictions = (torch.stack(each, dim=1) for each in zip(*map(model, views), strict=True))
        expected = simsiam_loss(predictions, targets)
    elif method == "lejepa":
        torch.manual_seed(3)
        directions = torch.nn.functional.normalize(
            torch.randn(config["projector_output_dim"], config["num_directions"]), dim=0
        ).T
        projections = torch.stack([model(view) for view in views])
        terms, weight = lejepa_terms(projections, directions, 2), config["sigreg_weight"]
        expected = weight * terms["sigreg"] + (1 - weight) * terms["invariance"]
        torch.manual_seed(3)
    else:
        loss, names = {
            "barlow_twins": (barlow_twins_loss, ["redundancy"]),
            "vicreg": (vicreg_loss, ["invariance", "variance", "covariance"]),
        }[method]
        expected = loss(*map(model, views), *(config[f"{name}_weight"] for name in names))
    assert side.loss_of(views).item() == pytest.approx(expected.item(), rel=1e-4)


def measured(files, method, **changes):
    text, report = run_vision_benchmark(method, arguments(files, **changes), data(files))
    assert json.loads(json.dumps(report)) == report
    for side in (value for value in report.values() if isinstance(value, dict)):
        assert side["items_per_s"] > 0 and 0 <= side["data_wait"] < 1 and side["peak_mb"] > side["peak_above_start_mb"]
        assert side["utilisation"] > 0 and side["first_step_s"] > 0
    assert "Not comparable" in text and "images/s" in text and "padding" not in text
    assert report.get("local_crops") == (6 if method in ("dino", "dinov2", "swav") else None)
    assert (report["method"], report["num_images"], report["image_size"]) == (method, NUMBER, 16)
    return report


@pytest.mark.slow
def test_dino_against_nobody(files):
    report = measured(files, "dino", against="none")
    assert [name for name, value in report.items() if isinstance(value, dict)] == ["ours", "bare"]
    # the loop moves the teacher as the trainer does, but drops other paths
    assert report["bare"]["loss_last"] == pytest.approx(report["ours"]["loss_last"], rel=2e-3)
    assert "ratio" not in report and report["local_size"] == 8


@pytest.mark.slow
def test_dinov2_crop_by_crop(files):
    report = measured(files, "dinov2", against="none", by_crop=True)
    assert [name for name, value in report.items() if isinstance(value, dict)] == ["ours", "by_crop"]
    assert report["ratio_by_crop"] == pytest.approx(
        report["ours"]["items_per_s"] / report["by_crop"]["items_per_s"], rel=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, ours_between, theirs_between",
    [
        ("simclr", (0.5, 8.0), (0.5, 8.0)),  # log(7) = 1.9 where all are equally similar, more with noise
        ("byol", (0.0, 4.0), (-1.0, 1.0)),
        ("dino", (6.0, 8.0), (6.0, 8.0)),  # log(1024) = 6.9 is chance
        ("dinov2", (6.0, 16.0), (6.0, 16.0)),  # one and a half times as much, and KoLeo
        ("swav", (5.0, 6.5), (5.0, 6.5)),  # log(256) = 5.5
    ],
)
def test_against_lightly(files, method, ours_between, theirs_between):
    pytest.importorskip("lightly", reason="lightly is not installed")
    report = measured(files, method, bare=True)
    ours, theirs, bare = report["ours"], report["theirs"], report["bare"]
    assert ours["flops_per_position"] == pytest.approx(theirs["flops_per_position"], rel=0.02)
    # other paths are dropped in DINO
    assert bare["loss_last"] == pytest.approx(ours["loss_last"], rel=2e-3 if method.startswith("dino") else 1e-4)
    for side, (least, most) in ((ours, ours_between), (theirs, theirs_between)):
        assert least < side["loss_last"] < most
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
        "import sys, hfssl.benchmarks.lightly; print(*(m for m in ('datasets', 'accelerate') if m in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert "datasets" not in result.stdout, result.stdout
