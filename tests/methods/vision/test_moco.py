"""MoCo: its algorithm, its queue, what it freezes, and what it says where it cannot."""

import pytest
import torch
import torch.nn.functional as F
from contract import Contract
from tiny_vision import ENCODERS, resnet, two_layers, two_views, vit
from torch import nn
from transformers import AutoModelForPreTraining

from hfssl import MocoForPreTraining, MocoPreTrainingConfig
from hfssl.errors import UserError
from hfssl.losses import moco_v3_loss
from hfssl.methods.vision.moco import MocoOutput
from hfssl.modeling.distributed import GlobalBatchNorm


FITTING = [name for name in ENCODERS if name != "dinov3_convnext"]


HEAD = {"projector_hidden_dim": 16, "projector_output_dim": 8}


def without_negatives(change):
    """Without predictor and stop-gradient as well: equal views are all that counts."""

    def forward(self, pixel_values, return_loss=True):
        z1, z2 = (self.student(view) for view in pixel_values.unbind(1))
        return MocoOutput(loss=2 - 2 * F.cosine_similarity(z1, z2).mean())

    change(MocoForPreTraining, "forward", forward)
    return {}


CONTRACT = Contract(
    encoder=two_layers,
    batch=two_views,
    settings=HEAD,
    accumulation=False,
    why_not="Negatives are those of an accumulation step, and batch norm in the heads sees no other images either.",
    variants={"resnet-queue": (resnet, {"queue_size": 50})},
    collapse=without_negatives,
)


def moco(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    settings = {"projector_hidden_dim": 16, "projector_output_dim": 8, **config}
    return MocoForPreTraining(MocoPreTrainingConfig(encoder_config=encoder or vit(), **settings))


def test_the_defaults_are_the_papers():
    config = MocoPreTrainingConfig()
    assert config.encoder_config.model_type == "vit" and config.encoder_config.hidden_size == 768
    assert (config.contrastive_temperature, config.projector_hidden_dim, config.projector_output_dim) == (
        0.2,
        4096,
        256,
    )
    assert (config.projector_num_layers, config.predictor_num_layers, config.queue_size) == (3, 2, 0)
    assert (config.momentum_start, config.momentum_end) == (0.99, 1.0)


def test_the_loss_is_algorithm_1_of_the_paper():
    model = moco().eval()
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x1, x2 = two_views()["pixel_values"].unbind(1)
    q1, q2 = model.predictor(model.student(x1)), model.predictor(model.student(x2))
    k1, k2 = model.teacher(x1), model.teacher(x2)

    def ctr(q, k):
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).T
        return 2 * 0.2 * F.cross_entropy(logits / 0.2, torch.arange(len(q)))

    out = model(torch.stack([x1, x2], dim=1))
    torch.testing.assert_close(out.loss, ctr(q1, k2) + ctr(q2, k1))
    torch.testing.assert_close(out.teacher_projections, torch.stack([k1, k2], dim=1))
    assert not out.teacher_projections.requires_grad


def test_the_heads_are_those_of_the_paper():
    block = [nn.Linear, GlobalBatchNorm, nn.ReLU]
    model = moco()
    assert [type(layer) for layer in model.student.projector] == [*block, *block, nn.Linear, GlobalBatchNorm]
    assert [type(layer) for layer in model.predictor] == [*block, nn.Linear, GlobalBatchNorm]
    assert model.predictor[-1].weight is None and model.student.projector[-1].weight is None
    assert all(layer.bias is None for layer in model.predictor if isinstance(layer, nn.Linear))
    convolutional = moco(resnet(), projector_num_layers=2)
    assert [type(layer) for layer in convolutional.predictor] == [*block, nn.Linear]


@pytest.mark.parametrize("name", FITTING)
def test_any_encoder_and_every_parameter_learns(name):
    model = moco(ENCODERS[name]()).train()
    loss = model(**two_views()).loss
    loss.backward()
    assert loss.isfinite()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_projection_of_patches_stays_as_it_was_drawn(tmp_path):
    model = moco()
    embed = model.student.encoder.embeddings.patch_embeddings.projection
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path).train()
    for each in (embed, again.student.encoder.embeddings.patch_embeddings.projection):
        assert not each.weight.requires_grad and not each.bias.requires_grad
    assert moco(freeze_patch_embed=False).student.encoder.embeddings.patch_embeddings.projection.weight.requires_grad
    convolutional = moco(ENCODERS["convnextv2"]())
    assert all(p.requires_grad for p in convolutional.student.parameters())
    with pytest.raises(UserError, match="`freeze_patch_embed` is for encoders of patches, and a resnet has none"):
        moco(resnet(), freeze_patch_embed=True, projector_num_layers=2)


# -- the queue --------------------------------------------------------------------------------------------------------


def test_keys_of_a_step_enter_the_queue_after_it():
    model = moco(queue_size=20).train()
    random = model.queue.clone()
    batch = two_views(4)
    out = model(**batch)
    assert torch.equal(model.queue, random)  # not their own negatives
    keys = [F.normalize(out.teacher_projections.flatten(0, 1), dim=-1)]
    torch.testing.assert_close(
        out.loss,
        moco_v3_loss(
            *out.student_predictions.unbind(1), *out.teacher_projections.unbind(1), 0.2, queue=random
        ),
    )  # fmt: skip
    model.after_optimizer_step(0.1)
    torch.testing.assert_close(model.queue[:8], keys[0])
    assert torch.equal(model.queue[8:], random[8:]) and model.queue_position == 8
    for _ in range(2):  # two accumulation steps: around the end
        keys.append(F.normalize(model(**two_views(4)).teacher_projections.flatten(0, 1), dim=-1))
    model.after_optimizer_step(0.2)
    torch.testing.assert_close(model.queue[8:16], keys[1])
    torch.testing.assert_close(torch.cat([model.queue[16:], model.queue[:4]]), keys[2])
    assert model.queue_position == 4
    kept = model.queue.clone()
    model.eval()(**batch)
    with torch.no_grad():
        model.train()(**batch)
    model.after_optimizer_step(0.3)
    assert torch.equal(model.queue, kept)


def test_a_queue_smaller_than_a_batch_keeps_the_newest():
    model = moco(queue_size=3).train()
    keys = F.normalize(model(**two_views(4)).teacher_projections.flatten(0, 1), dim=-1)
    model.after_optimizer_step(0.1)
    torch.testing.assert_close(model.queue, keys[-3:])
    assert model.queue_position == 0


def test_the_queue_begins_with_random_directions():
    queue = moco(queue_size=500).queue
    assert queue.norm(dim=1).min() > 0.3 and queue.mean().abs() < 0.1
    assert not torch.equal(queue, moco(queue_size=500, seed=1).queue)


# -- what it says -----------------------------------------------------------------------------------------------------


def test_a_batch_of_one_is_explained():
    with pytest.raises(UserError, match="MoCo contrasts an image with the others of its batch"):
        moco().train()(**two_views(1))
    assert moco().eval()(**two_views(1)).loss == 0


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 3, 3, 16, 16)])
def test_other_numbers_of_views_are_explained(shape):
    with pytest.raises(ValueError, match="MoCo compares 2 views of each image"):
        moco()(torch.randn(shape))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"contrastive_temperature": 0.0}, "contrastive_temperature.*above 0, got 0"),
        ({"predictor_num_layers": 0}, "predictor_num_layers.*at least 1, got 0"),
        ({"queue_size": -1}, "queue_size.*number of keys, got -1"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        moco(**config)
