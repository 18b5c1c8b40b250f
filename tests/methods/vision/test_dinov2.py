"""DINOv2: its losses over crops and masked patches, its heads and centres, its masks, and what it says where it cannot."""

import math

import pytest
import torch
import torch.nn.functional as F
from contract import Contract, split
from tiny_vision import BLOCKS, ENCODERS, SIZE, build, crops, masked_crops, two_layers, two_views, vit
from transformers import AutoModel, DINOv3ViTConfig

from hfssl import Dinov2ForPreTraining, Dinov2PreTrainingConfig
from hfssl.errors import UserError
from hfssl.losses import koleo_loss, sinkhorn_targets
from hfssl.modeling.masked_branch import has_mask_token, takes_masked_patches


TAKES = ["vit", "vit_msn", "deit", "ijepa", "dinov2", "dinov2_with_registers", "dinov3_vit"]
HEAD = {"projector_hidden_dim": 16, "projector_output_dim": 8, "num_prototypes": 12}
SEPARATE = {"patch_head": "separate", "patch_num_prototypes": 10, "patch_projector_output_dim": 6}


def without_sharpening(change):
    """All prototypes for all images and patches, and nothing that keeps features apart."""
    return {"teacher_temperature_start": 1.0, "teacher_temperature_end": 1.0, "koleo_weight": 0.0}


def dinov3():
    """Without what its stock model leaves to chance in training: the scale of the positions."""
    blocks = BLOCKS | {"num_hidden_layers": 2}
    return DINOv3ViTConfig(**blocks, **SIZE, num_register_tokens=2, pos_embed_rescale=None)


CONTRACT = Contract(
    encoder=two_layers,
    batch=masked_crops,
    # prototypes that learn from the first step, and nothing left to chance
    settings={**HEAD, "freeze_prototypes": 0.0, "drop_path_rate": 0.0},
    noise={"drop_path_rate": 0.1},
    accumulation=False,
    processes=False,
    why_not="KoLeo looks for the nearest among the images of one forward pass of one process; all else is equal",
    variants={
        "without koleo": (two_layers, {"koleo_weight": 0.0}),
        "sinkhorn, separate heads": (dinov3, {"koleo_weight": 0.0, "centering": "sinkhorn", **SEPARATE}),
        "as a checkpoint goes on": (
            two_layers,
            {
                "koleo_weight": 0.0,
                "centering": "sinkhorn",
                "projector_batch_norm": True,
                "freeze_encoder": 0.5,
                "gram_weight": 1.0,
                "gram_teacher_at": 0.2,
                "gram_start": 0.5,
            },
        ),
    },
    equal=frozenset({"without koleo", "sinkhorn, separate heads", "as a checkpoint goes on"}),
    collapse=without_sharpening,
)


def dinov2(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    settings = {**HEAD, "drop_path_rate": 0.0, **config}
    return Dinov2ForPreTraining(Dinov2PreTrainingConfig(encoder_config=encoder or vit(), **settings))


def moved(model):
    """With a student, centres and a progress that are not those of the start."""
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(0.1 * torch.randn_like(p))
        model.center.normal_(std=0.1)
        model.patch_center.normal_(std=0.1)
    model.schedule_position.fill_(0.15)
    return model


def test_the_defaults_are_those_of_the_reference_code():
    config = Dinov2PreTrainingConfig()
    assert (config.num_prototypes, config.projector_hidden_dim, config.projector_output_dim) == (65536, 2048, 256)
    assert (config.dino_weight, config.ibot_weight, config.koleo_weight) == (1.0, 1.0, 0.1)
    assert (config.momentum_start, config.drop_path_rate, config.patch_head) == (0.992, 0.3, "shared")


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
@pytest.mark.parametrize("name", ["vit", "dinov2_with_registers"])
def test_the_loss_is_that_of_the_reference_code(name, centering, separate):
    """Crop by crop through encoder and head, pair by pair, patch by patch, with its weights written out."""
    model = moved(dinov2(ENCODERS[name](), centering=centering, **SEPARATE if separate else {})).eval()
    batch, (large, small, size) = masked_crops(), (2, 3, 6)
    out = model(**batch)
    temperature = 0.04 + (0.07 - 0.04) * 0.15 / 0.3
    masks = torch.zeros(size, large * 16, dtype=torch.bool)
    for row, patches in zip(masks, batch["masked_patches"], strict=True):
        row[patches[patches >= 0]] = True
    masks = masks.view(size, large, 16)

    def tokens(branch, images, mask=None):
        embeddings = branch.encoder.embeddings
        token = branch.mask_token if name == "vit" else embeddings.mask_token
        hook = embeddings.patch_embeddings.register_forward_hook(
            lambda module, args, patches: patches if mask is None else torch.where(mask[..., None], token, patches)
        )
        options = {"interpolate_pos_encoding": True} if name == "vit" else {}
        hidden = branch.encoder(images, **options).last_hidden_state
        hook.remove()
        return hidden[:, 0], hidden[:, -16:]

    def logits(head, features):
        return F.normalize(head.layers(features), dim=-1) @ F.normalize(head.prototypes.weight, dim=-1).T

    def probabilities(logits, center):
        if centering == "sinkhorn":
            return sinkhorn_targets(logits, temperature)
        return F.softmax((logits - center) / temperature, dim=-1)

    def patch_head(branch):
        return branch.patch_projector if separate else branch.projector

    def entropy(target, logits):
        return -(target * F.log_softmax(logits / 0.1, dim=-1)).sum(-1)

    seen = [tokens(model.teacher, batch["pixel_values"][:, i]) for i in range(large)]
    masked = [tokens(model.student, batch["pixel_values"][:, i], masks[:, i]) for i in range(large)]
    local = [tokens(model.student, batch["local_pixel_values"][:, i]) for i in range(small)]
    # the reverse order of the teacher's two crops makes pairs of those of the student
    teacher = logits(model.teacher.projector, torch.cat([seen[1][0], seen[0][0]]))
    targets = probabilities(teacher, model.center).split(size)
    student = [logits(model.student.projector, features) for features, _ in [*masked, *local]]
    global_terms = sum(entropy(targets[i], student[i]).mean() for i in range(large))
    local_terms = sum(entropy(t, s).mean() for t in targets for s in student[large:])
    dino = (global_terms + local_terms) / (2 + large * small)
    torch.testing.assert_close(out.loss_terms["dino"], dino)

    teacher = torch.cat([logits(patch_head(model.teacher), seen[i][1][masks[:, i]]) for i in range(large)])
    targets = probabilities(teacher, model.patch_center)
    student = torch.cat([logits(patch_head(model.student), masked[i][1][masks[:, i]]) for i in range(large)])
    counts = masks.sum(-1).clamp(min=1)
    weights = torch.cat([(1 / counts[:, i, None]).expand(-1, 16)[masks[:, i]] for i in range(large)])
    ibot = (weights * entropy(targets, student)).sum() / (large * size)
    torch.testing.assert_close(out.loss_terms["ibot"], ibot)

    koleo = sum(koleo_loss(features) for features, _ in masked)
    torch.testing.assert_close(out.loss_terms["koleo"], koleo)
    torch.testing.assert_close(out.loss, dino + ibot + 0.1 * koleo)
    assert out.student_logits.shape == (5, 6, 12) and not out.teacher_logits.requires_grad


@pytest.mark.parametrize(
    "config, heads",
    [
        ({}, {"teacher": [12 + 48], "student": [12 + 18 + 48]}),
        (SEPARATE, {"teacher": [12, 48], "student": [30, 48]}),
    ],
    ids=["shared", "separate"],
)
def test_one_pass_for_each_size_and_one_through_each_head(config, heads):
    model = dinov2(**config).train()
    passes, rows = {"student": [], "teacher": []}, {"student": [], "teacher": []}
    for name in passes:
        branch = getattr(model, name)
        branch.encoder.register_forward_hook(
            lambda module, args, output, name=name: passes[name].append(output.last_hidden_state.shape[:2])
        )
        for head in (branch.projector, branch.patch_projector):
            if head is not None:
                head.register_forward_hook(lambda module, args, out, name=name: rows[name].append(len(out)))
    model(**masked_crops())
    assert passes == {"student": [(12, 17), (18, 5)], "teacher": [(12, 17)]} and rows == heads


@pytest.mark.parametrize("name", TAKES)
def test_encoders_of_patches_and_every_parameter_learns(name):
    config = ENCODERS[name]()
    model = dinov2(config, freeze_prototypes=0.0).train()
    loss = model(**masked_crops()).loss
    loss.backward()
    assert loss.isfinite()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert has_mask_token(config) == ("dino" in name) == (model.student.mask_token is None)
    token = model.student.mask_token
    assert (model.student.encoder.embeddings.mask_token if token is None else token).grad.any()


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in TAKES])
def test_other_encoders_are_refused_by_name(name):
    assert not takes_masked_patches(ENCODERS[name]())
    with pytest.raises(Exception, match=f"wants them back one by one, which a {name} does not give"):
        dinov2(ENCODERS[name]())


@pytest.mark.parametrize("name", ["vit", "dinov2", "dinov3_vit"])
def test_only_the_student_does_not_see_what_is_masked(name):
    model, batch = dinov2(ENCODERS[name]()).eval(), masked_crops(2)
    out = model(**batch)
    changed, size = batch["pixel_values"].clone(), 4
    for image, patches in zip(changed, batch["masked_patches"].tolist(), strict=True):
        for patch in patches:
            if patch >= 0:
                down, right = patch % 16 // 4 * size, patch % 4 * size
                image[patch // 16, :, down : down + size, right : right + size] = 9.0
    other = model(**batch | {"pixel_values": changed})
    torch.testing.assert_close(other.student_logits, out.student_logits, rtol=0, atol=0)
    assert not torch.allclose(other.teacher_logits, out.teacher_logits)
    whole = model(**batch | {"masked_patches": None})
    assert whole.loss_terms["ibot"] == 0.0 and not torch.allclose(whole.student_logits, out.student_logits)
    assert model.student.mask_token is None or model.student._bool_masked_pos is None


def test_rotary_positions_vary_for_the_student_in_training_only():
    found = {}
    for rescale in (None, 2.0):
        model, batch = dinov2(DINOv3ViTConfig(**BLOCKS, **SIZE, pos_embed_rescale=rescale)).train(), masked_crops(2)
        large = batch["pixel_values"].flatten(0, 1)
        with torch.no_grad():
            hidden = [
                getattr(model, name).encode(large).last_hidden_state for name in ("student", "student", "teacher")
            ]
            found[rescale] = [torch.equal(hidden[0], hidden[1]), torch.equal(hidden[0], hidden[2])]
            hidden = model.eval().student.encode(large).last_hidden_state
        assert torch.equal(hidden, model.teacher.encode(large).last_hidden_state)
    assert found == {None: [True, True], 2.0: [False, False]}


def test_hidden_pixels_are_those_of_the_masked_patches():
    batch = two_views(2) | {"masked_patches": torch.tensor([[0, 17, -1], [6, -1, -1]])}
    hidden = dinov2().hidden_pixels(batch)
    expected = torch.zeros(2, 2, 16, 16, dtype=torch.bool)
    expected[0, 0, :4, :4] = expected[0, 1, :4, 4:8] = expected[1, 0, 4:8, 8:12] = True
    assert torch.equal(hidden, expected)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"centering": "sinkhorn"},
        {"centering": "sinkhorn", "projector_batch_norm": True},
        {"projector_batch_norm": True, **SEPARATE},
    ],
    ids=["mean", "sinkhorn", "batch norm", "batch norm of patches"],
)
def test_places_that_fill_up_change_nothing(config):
    found = []
    for width in (0, 5):
        model, batch = moved(dinov2(**config)).train(), masked_crops()
        batch["masked_patches"] = F.pad(batch["masked_patches"], (0, width), value=-1)
        loss = model(**batch).loss
        loss.backward()
        model.after_optimizer_step(0.5)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append([loss, *model.buffers(), *gradients])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("centering", ["mean", "sinkhorn"])
def test_the_gradient_of_a_cut_batch_is_that_of_the_whole_but_for_koleo(centering):
    model, batch = moved(dinov2(koleo_weight=0.0, centering=centering)).train(), masked_crops()
    gradients = []
    for parts in (1, 3):
        model.zero_grad()
        for part in split(batch, parts):
            (model(**part).loss / parts).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    equal = [torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in zip(*gradients, strict=True)]
    assert all(equal) == (centering == "mean")


def test_each_centre_is_the_running_mean_of_its_logits():
    model = dinov2(**SEPARATE).train()
    expected, of_patches = torch.zeros(12), torch.zeros(10)
    for step in range(2):
        logits, patch_logits = [], []
        for _ in range(2):  # accumulation steps
            batch = masked_crops(3)
            outputs = model.teacher.encode(batch["pixel_values"].transpose(0, 1).flatten(0, 1))
            patches = outputs.last_hidden_state[:, 1:].unflatten(0, (2, 3)).transpose(0, 1).flatten(1, 2)
            kept = [row[places[places >= 0]] for row, places in zip(patches, batch["masked_patches"], strict=True)]
            with torch.no_grad():
                logits.append(model.teacher.projector(model.teacher.pool(outputs)))
                patch_logits.append(model.teacher.patch_projector(torch.cat(kept)))
            model(**batch)
        model.after_optimizer_step((step + 1) / 4)
        expected = 0.9 * expected + 0.1 * torch.cat(logits).mean(0)
        of_patches = 0.9 * of_patches + 0.1 * torch.cat(patch_logits).mean(0)
        torch.testing.assert_close(model.center, expected)
        torch.testing.assert_close(model.patch_center, of_patches)
    model(**crops())  # without a masked patch that of patches stays
    model.after_optimizer_step(0.9)
    torch.testing.assert_close(model.patch_center, of_patches)


def test_the_prototypes_of_both_heads_wait_for_their_share_of_the_run():
    model = dinov2(**SEPARATE, freeze_prototypes=0.5).train()
    heads = [model.student.projector.prototypes.weight, model.student.patch_projector.prototypes.weight]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = [weight.clone() for weight in heads]
    for step in range(3):
        optimizer.zero_grad()
        model(**masked_crops()).loss.backward()
        optimizer.step()
        same = [torch.equal(weight, was) for weight, was in zip(heads, before, strict=True)]
        assert same == [step < 2] * 2
        model.after_optimizer_step((step + 1) / 4)


def test_two_steps_move_what_learns_and_the_teacher_follows():
    model = dinov2(freeze_prototypes=0.0, momentum_start=0.5).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        model(**masked_crops()).loss.backward()
        optimizer.step()
        model.after_optimizer_step((step + 1) / 2)
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert still == set()
    assert all(not p.requires_grad for p in model.teacher.parameters())


@pytest.mark.parametrize("name", ["vit", "dinov2", "dinov2_with_registers", "dinov3_vit"])
def test_the_teacher_comes_out_as_the_stock_model(name, tmp_path):
    model = moved(dinov2(ENCODERS[name]())).eval()
    model.export_encoder(tmp_path)
    stock, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(stock) is type(model.encoder) and model.encoder is model.teacher.encoder
    assert not info["unexpected_keys"] and "embeddings.mask_token" not in info["missing_keys"]
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(stock.eval()(images).last_hidden_state, model.encoder(images).last_hidden_state)


@pytest.mark.parametrize("name", ["vit", "dinov2", "dinov3_vit"])
def test_a_stock_checkpoint_is_continued(name, tmp_path):
    stock = build(name, seed=3)
    stock.save_pretrained(tmp_path)
    model = Dinov2ForPreTraining.from_encoder(str(tmp_path), **HEAD).train()
    for branch in (model.student, model.teacher):
        for key, tensor in branch.encoder.state_dict().items():
            assert torch.equal(tensor, stock.state_dict()[key]), key
    assert model(**masked_crops()).loss.isfinite()


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model, batch = moved(dinov2(**SEPARATE)).eval(), masked_crops()
    model.save_pretrained(tmp_path)
    again = Dinov2ForPreTraining.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**batch).loss, model(**batch).loss, rtol=0, atol=0)
    lacking = {key: tensor for key, tensor in model.state_dict().items() if ".encoder." in key}
    model.save_pretrained(tmp_path / "encoders", state_dict=lacking)
    begun = Dinov2ForPreTraining.from_pretrained(tmp_path / "encoders")
    assert begun.student.mask_token.eq(0).all() and begun.patch_center.eq(0).all()
    assert torch.equal(
        begun.student.patch_projector.prototypes.weight, begun.teacher.patch_projector.prototypes.weight
    )


def test_what_the_losses_are_by_chance():
    """Prototypes that tell nothing apart, and as many masked crops as the views make."""
    model, batch = dinov2(koleo_weight=0.0, **SEPARATE).eval(), masked_crops()
    with torch.no_grad():
        for branch in (model.student, model.teacher):
            for head in (branch.projector, branch.patch_projector):
                head.prototypes.weight.copy_(head.prototypes.weight[:1].expand_as(head.prototypes.weight))
    out, levels = model(**batch), model.method.chance(model.config, None)
    for name, term in out.loss_terms.items():
        assert term.item() == pytest.approx(levels[f"loss_{name}"], rel=1e-5)
    assert out.loss.item() == pytest.approx(levels["loss"], rel=1e-5) == math.log(12) + math.log(10) / 2
    assert "loss" not in model.method.chance(dinov2().config, None)
    assert model.target_margin(batch).abs().max() < 1e-6


# -- what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 1, 3, 16, 16)])
def test_fewer_than_two_large_crops_are_explained(shape):
    with pytest.raises(ValueError, match="DINOv2 compares at least 2 large crops of each image"):
        dinov2()(torch.randn(shape))


def test_one_image_has_no_neighbour():
    with pytest.raises(UserError, match="the batch of a process has 1.*--koleo_weight 0"):
        dinov2().train()(**two_views(1))
    assert dinov2().eval()(**two_views(1)).loss.isfinite()
    assert dinov2(koleo_weight=0.0).train()(**two_views(1)).loss.isfinite()


@pytest.mark.parametrize(
    "config, words",
    [
        ({"student_temperature": 0.0}, "student_temperature.*above 0, got 0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate.*below 1, got 1"),
        ({"num_prototypes": 0}, "num_prototypes.*at least 1, got 0"),
        ({"ibot_weight": -1.0}, "ibot_weight.*at least 0, got -1"),
        ({"patch_num_prototypes": 8}, "patch_num_prototypes=8.*patch_head=separate"),
        ({"patch_head": "both"}, "patch_head"),
        ({"freeze_encoder": 2.0}, "`freeze_encoder` must be between 0 and 1, got 2.0"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        dinov2(**config)


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_heads_learn_alone_for_their_share_of_the_run(name):
    model = dinov2(ENCODERS[name](), freeze_prototypes=0.0, freeze_encoder=0.5).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2, weight_decay=0.5)

    def what_moves(progress):
        before = {n: p.detach().clone() for n, p in model.student.named_parameters()}
        model(**masked_crops()).loss.backward()
        assert all(p.grad is not None for p in model.student.parameters() if p.requires_grad)  # DDP waits for all
        optimizer.step()
        optimizer.zero_grad()
        model.after_optimizer_step(progress)
        return {n.partition(".")[0] for n, p in model.student.named_parameters() if not torch.equal(p, before[n])}

    encoder = {n: p.clone() for n, p in model.teacher.encoder.state_dict().items()}
    assert what_moves(0.25) == what_moves(0.5) == {"projector"}
    # the teacher's encoder is still what it was
    assert all(torch.equal(p, encoder[n]) for n, p in model.teacher.encoder.state_dict().items())
    assert "encoder" in what_moves(0.75)
