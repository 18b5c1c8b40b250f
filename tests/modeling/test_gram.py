"""Gram anchoring: which teacher anchors and when, what it is compared with, and that a run that goes on still has it."""

import pytest
import torch
import torch.nn.functional as F
from tiny_vision import ENCODERS, build, masked_crops, two_layers, vit

from hfssl import Dinov2ForPreTraining, Dinov2PreTrainingConfig
from hfssl.errors import UserError
from hfssl.losses import gram_loss


HEAD = {"projector_hidden_dim": 16, "projector_output_dim": 8, "num_prototypes": 12, "drop_path_rate": 0.0}


def anchored(encoder=None, **config):
    torch.manual_seed(0)
    settings = {**HEAD, "gram_weight": 2.0, "gram_start": 0.0, "gram_teacher_at": 0.0, **config}
    return Dinov2ForPreTraining(Dinov2PreTrainingConfig(encoder_config=encoder or two_layers(), **settings)).train()


def shaken(module):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))


@pytest.mark.parametrize("size", [None, 16, 32])
@pytest.mark.parametrize("name", ["vit", "dinov2_with_registers", "dinov3_vit"])
def test_the_patches_of_masked_crops_are_compared_with_those_that_the_teacher_sees(name, size):
    model, batch = anchored(ENCODERS[name](), gram_image_size=size), masked_crops(3)
    assert set(model(**batch).loss_terms) == {"dino", "ibot", "koleo"}
    model.after_optimizer_step(0.1)
    shaken(model.student)
    model.eval()
    out = model(**batch)
    images = batch["pixel_values"].transpose(0, 1).flatten(0, 1)
    masks = torch.zeros(3, 32, dtype=torch.bool)
    for row, patches in zip(masks, batch["masked_patches"], strict=True):
        row[patches[patches >= 0]] = True
    masks = masks.view(3, 2, 16).transpose(0, 1).flatten(0, 1)
    with torch.no_grad():
        student = model.student.encode(images, bool_masked_pos=masks).last_hidden_state[:, -16:]
        enlarged = images if size in (None, 16) else F.interpolate(images, (32, 32), mode="bicubic")
        options = {"interpolate_pos_encoding": True} if name == "vit" and size == 32 else {}
        teacher = model.gram_teacher.encoder(enlarged, **options).last_hidden_state
        teacher = teacher[:, -(64 if size == 32 else 16) :]
        if size == 32:
            grid = F.interpolate(teacher.mT.unflatten(2, (8, 8)), (4, 4), mode="bicubic")
            teacher = grid.flatten(2).mT
    torch.testing.assert_close(out.loss_terms["gram"], gram_loss(student, teacher))
    assert out.loss_terms["gram"] > 1e-4
    weighted = {"dino": 1.0, "ibot": 1.0, "koleo": 0.1, "gram": 2.0}
    torch.testing.assert_close(out.loss, sum(weighted[key] * term for key, term in out.loss_terms.items()))


def test_the_runs_own_teacher_is_kept_as_it_was(tmp_path):
    model = anchored(gram_teacher_at=0.3, gram_start=0.5)
    kept = None
    for progress in (0.1, 0.3, 0.4, 0.5, 0.8):
        assert ("gram" in model(**masked_crops(3)).loss_terms) == (model.progress >= 0.5)
        shaken(model.student)
        model.after_optimizer_step(progress)
        if progress == 0.3:
            kept = {name: tensor.clone() for name, tensor in model.teacher.encoder.state_dict().items()}
        if progress == 0.4:  # as a run that goes on
            model.save_pretrained(tmp_path)
            model = Dinov2ForPreTraining.from_pretrained(tmp_path).train()
    for name, tensor in model.gram_teacher.encoder.state_dict().items():
        assert torch.equal(tensor, kept[name]), name
    assert not all(torch.equal(t, kept[name]) for name, t in model.teacher.encoder.state_dict().items())


def test_what_adapters_have_learned_is_part_of_the_teacher_that_is_kept():
    pytest.importorskip("peft", reason="peft is not installed")
    model = anchored()
    model.keep_of_checkpoint(lora_rank=2)
    model.train()(**masked_crops(3))
    shaken(model.teacher)
    model.after_optimizer_step(0.5)
    images = torch.randn(2, 3, 16, 16)
    kept, expected = (
        each.eval()(images).last_hidden_state for each in (model.gram_teacher.encoder, model.teacher.encoder)
    )
    torch.testing.assert_close(kept, expected)


def test_it_is_frozen_and_moves_the_student():
    model = anchored()
    model(**masked_crops(3))
    model.after_optimizer_step(0.5)
    shaken(model.student)
    assert not model.gram_teacher.training and not any(p.requires_grad for p in model.gram_teacher.parameters())
    losses = []
    for weight in (0.0, 2.0):
        model.config.gram_weight = weight
        model.zero_grad()
        torch.manual_seed(1)
        model(**masked_crops(3)).loss.backward()
        losses.append(model.student.encoder.layers[0].attention.q_proj.weight.grad.clone())
    assert not torch.allclose(*losses)
    assert all(p.grad is None for p in model.gram_teacher.parameters())


def test_a_checkpoint_anchors_and_is_needed_once(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    build("vit", seed=3).save_pretrained(checkpoint)
    model = anchored(vit(), gram_teacher=str(checkpoint), gram_teacher_at=1.0)
    assert "gram" in model(**masked_crops(3)).loss_terms
    expected = build("vit", seed=3).state_dict()
    model.after_optimizer_step(0.5)
    model.save_pretrained(tmp_path / "run")
    checkpoint.rename(tmp_path / "elsewhere")
    again = Dinov2ForPreTraining.from_pretrained(tmp_path / "run").train()
    assert "gram" in again(**masked_crops(3)).loss_terms
    for name, tensor in again.gram_teacher.encoder.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_without_a_weight_there_is_no_such_teacher():
    model = anchored(gram_weight=0.0)
    model.after_optimizer_step(1.0)
    assert model.gram_teacher is None and not any("gram" in name for name in model.state_dict())


def test_a_checkpoint_of_another_encoder_is_refused(tmp_path):
    build("vit").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has other weights than this vit.*Pass a checkpoint of the encoder that is"):
        anchored(two_layers(), gram_teacher=str(tmp_path))(**masked_crops(3))
    with pytest.raises(UserError, match=f"gram_teacher={tmp_path}/nothing. is no folder with an encoder of images"):
        anchored(gram_teacher=f"{tmp_path}/nothing")(**masked_crops(3))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"gram_weight": -1.0}, "gram_weight.*at least 0, got -1"),
        ({"gram_start": 1.5}, "gram_start.*between 0 and 1, got 1.5"),
        ({"gram_start": 0.2, "gram_teacher_at": 0.4}, "gram_start=0.2.*gram_teacher_at=0.4.*lower this one"),
        ({"gram_weight": 0.0, "gram_image_size": 32}, "mean nothing with `gram_weight=0`"),
        ({"gram_image_size": 30}, "gram_image_size=30.*patches of 4 pixels. Pass 32"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        anchored(**config)
