"""DINO: its loss over crops, its head, its centre, its schedules, and what it says where it cannot."""

import pytest
import torch
import torch.nn.functional as F
from contract import Contract
from tiny_vision import ENCODERS, crops, resnet, two_layers, two_views, vit
from torch import nn

from hfssl import DinoForPreTraining, DinoPreTrainingConfig
from hfssl.losses import cross_view_entropy, sinkhorn_targets
from hfssl.modeling.branch import VisionBranch
from hfssl.modeling.drop_path import DropPath, build_with_drop_path
from hfssl.modeling.pooling import num_own_tokens
from hfssl.training.optim import Lars


# Swin's windows do not fit the small crops, and DINOv3's convolutions halve all of them to nothing
FITTING = [name for name in ENCODERS if name not in ("swin", "dinov3_convnext")]


def without_sharpening(change):
    """All prototypes for all images."""
    return {"teacher_temperature_start": 1.0, "teacher_temperature_end": 1.0}


CONTRACT = Contract(
    encoder=two_layers,
    batch=crops,
    # prototypes that learn from the first step, and nothing left to chance
    settings={
        "projector_hidden_dim": 16, "projector_output_dim": 8, "num_prototypes": 12, "freeze_prototypes": 0.0,
        "drop_path_rate": 0.0,
    },
    noise={"drop_path_rate": 0.1},
    variants={
        "resnet": (resnet, {}),
        "sinkhorn": (two_layers, {"projector_batch_norm": True, "centering": "sinkhorn"}),
        "frozen-prototypes": (two_layers, {"freeze_prototypes": 0.01}),
    },
    collapse=without_sharpening,
)  # fmt: skip


def dino(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    settings = {"projector_hidden_dim": 16, "projector_output_dim": 8, "num_prototypes": 12, **config}
    return DinoForPreTraining(DinoPreTrainingConfig(encoder_config=encoder or vit(), **settings))


def moved(model):
    """With a student, a centre and a progress that are not those of the start."""
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(0.1 * torch.randn_like(p))
        model.center.normal_(std=0.1)
    model.schedule_position.fill_(0.05)
    return model


def test_the_defaults_are_the_papers():
    config = DinoPreTrainingConfig()
    assert (config.num_prototypes, config.projector_hidden_dim, config.projector_output_dim) == (65536, 2048, 256)
    assert (config.student_temperature, config.teacher_temperature_start, config.teacher_temperature_end) == (
        0.1, 0.04, 0.07,
    )  # fmt: skip
    assert (config.center_momentum, config.momentum_start, config.momentum_end) == (0.9, 0.996, 1.0)
    assert config.drop_path_rate == 0.1 and config.projector_num_layers == 3


@pytest.mark.parametrize("encoder", ["vit", "resnet"])
def test_the_loss_is_algorithm_1_of_the_paper_over_all_pairs_of_crops(encoder):
    """One crop after the other through encoder and head, pair by pair."""
    model = moved(dino(ENCODERS[encoder]())).eval()
    batch = crops()
    out = model(**batch)
    temperature = 0.04 + (0.07 - 0.04) * 0.05 / 0.1

    def logits(branch, images):
        options = {"interpolate_pos_encoding": True} if encoder == "vit" else {}
        outputs = branch.encoder(images, **options)
        feature = outputs.last_hidden_state[:, 0] if encoder == "vit" else outputs.pooler_output.flatten(1)
        hidden = F.normalize(branch.projector.layers(feature), dim=-1)
        return hidden @ F.normalize(branch.projector.prototypes.weight, dim=-1).T

    views = [*batch["pixel_values"].unbind(1), *batch["local_pixel_values"].unbind(1)]
    terms = []
    for i, teacher_view in enumerate(views[:2]):
        t = F.softmax((logits(model.teacher, teacher_view) - model.center) / temperature, dim=-1)
        for j, student_view in enumerate(views):
            if i != j:
                s = F.log_softmax(logits(model.student, student_view) / 0.1, dim=-1)
                terms.append(-(t * s).sum(-1).mean())
    assert len(terms) == 2 * 5 - 2
    torch.testing.assert_close(out.loss, torch.stack(terms).mean())
    assert out.student_logits.shape == (5, 6, 12) and out.teacher_logits.shape == (2, 6, 12)
    assert not out.teacher_logits.requires_grad


def test_one_pass_for_each_size_and_one_through_the_head():
    model = dino().train()
    passes = {"student": [], "teacher": []}
    heads = []
    for name, seen in passes.items():
        branch = getattr(model, name)
        branch.encoder.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(output.last_hidden_state.shape[:2])
        )
        branch.projector.register_forward_hook(lambda module, inputs, output: heads.append(len(output)))
    model(**crops(4))
    assert passes == {"student": [(8, 17), (12, 5)], "teacher": [(8, 17)]}
    assert heads == [8, 20]


def test_large_crops_alone_are_enough():
    model = dino().train()
    loss = model(**two_views()).loss
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("name", FITTING)
def test_any_encoder_and_every_parameter_learns(name):
    model = dino(ENCODERS[name](), freeze_prototypes=0.0).train()
    loss = model(**crops()).loss
    loss.backward()
    assert loss.isfinite()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_head_is_that_of_the_paper():
    model = dino()
    head = model.student.projector
    assert [type(layer) for layer in head.layers] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    features = torch.randn(5, 32)
    logits = head(features)
    assert logits.abs().max() <= 1.0 + 1e-6
    with torch.no_grad():
        head.prototypes.weight.mul_(3.0)  # the gain is 1 whatever the length
        head.layers[-1].weight.mul_(2.0), head.layers[-1].bias.mul_(2.0)
    torch.testing.assert_close(head(features), logits)
    reference = nn.utils.parametrizations.weight_norm(nn.Linear(8, 12, bias=False))
    with torch.no_grad():
        reference.parametrizations.weight.original0.fill_(1.0)
        reference.parametrizations.weight.original1.copy_(head.prototypes.weight)
    torch.testing.assert_close(reference(F.normalize(head.layers(features), dim=-1)), logits)


def test_the_head_begins_as_in_the_reference_code(tmp_path):
    """Layers at 0.02, prototypes as torch draws linear layers, which decides how fast they turn."""
    head = {"projector_hidden_dim": 400, "projector_output_dim": 100, "num_prototypes": 500}
    model = dino(**head)
    model.student.encoder.save_pretrained(tmp_path)
    lacking = {key: t for key, t in model.state_dict().items() if ".encoder." in key}
    model.save_pretrained(tmp_path / "without a head", state_dict=lacking)
    for begun in (model, DinoForPreTraining.from_pretrained(tmp_path / "without a head")):
        for branch in (begun.student, begun.teacher):
            layers, prototypes = branch.projector.layers, branch.projector.prototypes.weight
            assert layers[2].weight.std().item() == pytest.approx(0.02, rel=0.02) and not layers[2].bias.any()
            assert prototypes.std().item() == pytest.approx((3 * 100) ** -0.5, rel=0.02)
            assert prototypes.abs().max() <= 0.1
        assert torch.equal(begun.student.projector.prototypes.weight, begun.teacher.projector.prototypes.weight)


def test_targets_are_made_in_float32_also_under_autocast():
    head = dino().student.projector
    features = torch.randn(5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        projections = F.normalize(head.layers(features).float(), dim=-1)
        trained = head(features)
        with torch.no_grad():
            targets = head(features)
    expected = F.linear(projections, F.normalize(head.prototypes.weight, dim=-1))
    assert torch.equal(targets, expected)
    torch.testing.assert_close(trained.float(), expected, rtol=0.02, atol=0.02)
    assert trained.dtype == torch.bfloat16  # the larger part of the work
    half = head.bfloat16()
    torch.testing.assert_close(half(features.bfloat16()).float(), expected, rtol=0.02, atol=0.02)


def test_batch_norm_in_the_head_tells_alike_features_apart():
    plain, normed = (dino(projector_batch_norm=on).train().student.projector for on in (False, True))
    assert [type(layer).__name__ for layer in normed.layers] == [
        "Linear", "GlobalBatchNorm", "GELU", "Linear", "GlobalBatchNorm", "GELU", "Linear",
    ]  # fmt: skip
    features = 3.0 + 1e-3 * torch.randn(64, 32)  # of a fresh ViT
    alike, apart = (F.normalize(head.layers(features), dim=-1).std(0).norm() for head in (plain, normed))
    assert alike < 0.01 and apart > 0.3
    model = dino(projector_batch_norm=True, freeze_prototypes=0.0).train()
    model(**crops()).loss.backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_sinkhorn_takes_the_place_of_the_centre():
    model = dino(centering="sinkhorn").train()
    batch = crops()
    model(**batch)
    model.after_optimizer_step(0.5)
    assert not model.center.any()
    out = moved(model).eval()(**batch)
    temperature = model.schedules(model.progress)["teacher_temperature"]
    targets = sinkhorn_targets(out.teacher_logits, temperature)
    torch.testing.assert_close(out.loss, cross_view_entropy(out.student_logits, targets, 0.1))
    with torch.no_grad():
        model.center.add_(torch.randn(12))
    torch.testing.assert_close(model(**batch).loss, out.loss)


# -- the centre -------------------------------------------------------------------------------------------------------


def test_the_centre_is_the_running_mean_of_the_teachers_logits():
    model = dino(center_momentum=0.9).train()
    expected = torch.zeros(12)
    for step in range(3):
        logits = []
        for _ in range(2):  # accumulation steps
            batch = crops(3)
            logits.append(model.teacher(batch["pixel_values"].flatten(0, 1)))
            before = model.center.clone()
            model(**batch)
            assert torch.equal(model.center, before)
        model.after_optimizer_step((step + 1) / 4)
        expected = 0.9 * expected + 0.1 * torch.cat(logits).mean(0)
        torch.testing.assert_close(model.center, expected)
    assert "center" in model.state_dict()
    model.eval()(**crops())
    model.after_optimizer_step(1.0)
    torch.testing.assert_close(model.center, expected)


# -- schedules --------------------------------------------------------------------------------------------------------


def test_the_temperature_of_the_teacher_warms_up():
    model = dino()
    found = [model.schedules(p)["teacher_temperature"] for p in (0.0, 0.05, 0.1, 0.5, 1.0)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])
    assert dino(teacher_temperature_warmup=0.0).schedules(0.0)["teacher_temperature"] == 0.07
    assert [model.schedules(p)["teacher_momentum"] for p in (0.0, 1.0)] == pytest.approx([0.996, 1.0])


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "lars": lambda p: Lars(p, lr=0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_prototypes_wait_for_their_share_of_the_run(name):
    """As if they were in no optimizer: not decayed, no step counted, and no part of the norm that is clipped."""
    model = dino(freeze_prototypes=0.5).train()
    prototypes = model.student.projector.prototypes.weight
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[name](trained)
    before = prototypes.clone()
    for step in range(3):
        optimizer.zero_grad()
        for _ in range(2):  # accumulation steps
            model(**crops()).loss.backward()
        assert prototypes.grad.any() == (step == 2)  # never none, for which DDP would wait
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        assert torch.equal(prototypes, before) == (step < 2)
        assert bool(optimizer.state.get(prototypes)) == (step == 2)
        model.after_optimizer_step((step + 1) / 4)
    if name != "lars":
        assert optimizer.state[prototypes]["step"] == 1  # the correction of its first steps is not used up


def test_the_prototypes_of_another_model_do_not_wait_for_this_one():
    waiting, other = dino(freeze_prototypes=1.0).train(), dino(freeze_prototypes=0.0).train()
    for model in (waiting, other):
        model(**crops()).loss.backward()
    torch.optim.SGD([p for p in other.parameters() if p.requires_grad], lr=0.1).step()
    assert other.student.projector.prototypes.weight.grad is not None
    assert waiting.student.projector.prototypes.weight.grad is not None


# -- drop path --------------------------------------------------------------------------------------------------------


def test_drop_path_drops_rows_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, rows = DropPath(0.25).train(), torch.ones(4000, 3, 2)
    dropped = drop(rows)
    gone = (dropped == 0).all((1, 2))
    assert 0.22 < gone.float().mean() < 0.28
    torch.testing.assert_close(dropped[~gone], torch.full_like(dropped[~gone], 1 / 0.75))
    assert drop.eval()(rows) is rows


@pytest.mark.parametrize("name", ["vit", "deit", "dinov2", "convnextv2"])
def test_only_the_student_drops_paths(name):
    torch.manual_seed(0)
    model = dino(ENCODERS[name](), drop_path_rate=0.5).train()
    images = torch.randn(8, 3, 16, 16)
    assert not torch.equal(model.student(images), model.student(images))
    assert torch.equal(model.teacher(images), model.teacher(images))
    model.eval()
    torch.testing.assert_close(model.student(images), model.teacher(images))


def test_the_rate_grows_with_the_depth_and_changes_no_name():
    plain, dropping = build_with_drop_path(vit(), 0.0), build_with_drop_path(vit(), 0.3)
    assert list(plain.state_dict()) == list(dropping.state_dict())
    rates = [module.drop_prob for module in dropping.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    dinov2 = ENCODERS["dinov2"]()
    assert build_with_drop_path(dinov2, 0.3).config.drop_path_rate == 0.3 and dinov2.drop_path_rate == 0.0


def drop_path_rates(branch):
    return [module.drop_prob for module in branch.modules() if hasattr(module, "drop_prob")]


@pytest.mark.parametrize("start, end", [(0.0, 0.3), (0.3, 0.1), (0.2, 0.0)])
@pytest.mark.parametrize("name", ["vit", "dinov2", "convnextv2"])
def test_the_rate_follows_the_run(name, start, end, tmp_path):
    model = dino(ENCODERS[name](), drop_path_rate=start, drop_path_rate_end=end).train()
    of_one = [rate / 0.3 for rate in drop_path_rates(build_with_drop_path(ENCODERS[name](), 0.3))]
    for progress in (0.0, 0.25, 1.0):
        if progress:
            model.after_optimizer_step(progress)
        model(**two_views())
        rates = drop_path_rates(model.student)
        assert rates == pytest.approx([(start + (end - start) * progress) * share for share in of_one])
        assert max(of_one) == pytest.approx(1.0)
        if progress == 0.25:
            model.save_pretrained(tmp_path)
            again = DinoForPreTraining.from_pretrained(tmp_path).train()
            again(**two_views())
            assert drop_path_rates(again.student) == rates  # to the bit, and before any step


def test_the_rate_stays_where_no_end_is_given():
    model = dino(drop_path_rate=0.3).train()
    before = drop_path_rates(model.student)
    model.after_optimizer_step(0.5)
    model(**two_views())
    assert drop_path_rates(model.student) == before and max(before) == pytest.approx(0.3)


def test_the_exported_configuration_is_the_one_that_was_given(tmp_path):
    model = dino(ENCODERS["dinov2"](), drop_path_rate=0.3)
    model.export_encoder(tmp_path)
    from transformers import AutoConfig

    assert AutoConfig.from_pretrained(tmp_path).drop_path_rate == 0.0


# -- what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 1, 3, 16, 16)])
def test_fewer_than_two_large_crops_are_explained(shape):
    with pytest.raises(ValueError, match="DINO compares at least 2 large crops of each image"):
        dino()(torch.randn(shape))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"student_temperature": 0.0}, "student_temperature.*above 0, got 0"),
        ({"teacher_temperature_warmup": 1.5}, "teacher_temperature_warmup.*between 0 and 1, got 1.5"),
        ({"drop_path_rate": 1.0}, "drop_path_rate.*below 1, got 1"),
        ({"drop_path_rate_end": -0.1}, "drop_path_rate_end.*below 1, got -0.1"),
        ({"num_prototypes": 0}, "num_prototypes.*at least 1, got 0"),
        ({"centering": "median"}, "centering"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        dino(**config)


def test_bf16_autocast_trains():
    model = dino(resnet()).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**crops()).loss
    loss.backward()
    model.after_optimizer_step(0.5)
    assert loss.dtype == torch.float32 and model.center.dtype == torch.float32 and model.center.any()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_a_branch_pools_as_it_is_told():
    encoder = build_with_drop_path(vit(), 0.0)
    branch = VisionBranch(encoder, nn.Identity(), vit(), "mean").eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(branch(images), encoder(images).last_hidden_state[:, 1:].mean(1))
    small = branch(images, torch.randn(3, 3, 8, 8))
    assert small.shape == (5, 32)
    torch.testing.assert_close(small[:2], branch(images))


def test_the_steps_of_a_branch_are_there_for_losses_of_patches_and_of_features():
    """A pass with some patches masked, of which image and patches go through the head together."""

    class WithMasks(DinoForPreTraining):
        uses_mask_token = True

    encoder = ENCODERS["dinov2_with_registers"]()
    torch.manual_seed(0)
    model = WithMasks(dino(encoder).config).train()
    student, images = model.student, torch.randn(4, 3, 16, 16)
    masked = torch.rand(4, 16) < 0.5
    outputs = student.encode(images, bool_masked_pos=masked)
    features = student.pool(outputs)
    patches = outputs.last_hidden_state[:, num_own_tokens(encoder) :][masked]
    logits = student.projector(torch.cat([features, patches]))
    assert logits.shape == (4 + masked.sum(), 12)
    logits.square().sum().backward()
    assert student.encoder.embeddings.mask_token.grad.any()
    model.eval()
    torch.testing.assert_close(student.projector(student.pool(student.encode(images))), student(images))
    assert not torch.allclose(student.pool(student.encode(images, bool_masked_pos=masked)), student.features(images))
