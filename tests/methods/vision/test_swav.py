"""SwAV: its loss over crops, its prototypes, its queue, and what it says where it cannot."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from contract import Contract, split
from tiny_vision import ENCODERS, crops, resnet, two_layers, two_views, vit
from transformers import AutoModelForPreTraining

import hfssl.losses.clustering
from hfssl import SwavForPreTraining, SwavPreTrainingConfig
from hfssl.errors import UserError
from hfssl.losses import swav_loss


# Swin's windows do not fit the small crops, and DINOv3's convolutions halve all of them to nothing
FITTING = [name for name in ENCODERS if name not in ("swin", "dinov3_convnext")]
HEAD = {"projector_hidden_dim": 16, "projector_output_dim": 8, "num_prototypes": 12}


def without_equal_shares(change):
    """Codes are what an image likes best, and so one prototype gets all."""

    def softmax(logits, temperature, *args, **kwargs):
        return F.softmax(logits / temperature, dim=-1)

    change(hfssl.losses.clustering, "sinkhorn_targets", softmax)
    return {}


CONTRACT = Contract(
    encoder=two_layers,
    batch=crops,
    # prototypes that learn from the first step
    settings={**HEAD, "freeze_prototypes": 0.0},
    accumulation=False,
    why_not="Prototypes are shared out among the images of an accumulation step, and batch norm in the head sees no "
    "others either.",
    variants={
        "resnet-queue": (resnet, {"queue_size": 10, "queue_start": 0.0}),
        "frozen-prototypes": (two_layers, {"freeze_prototypes": 0.01}),
    },
    collapse=without_equal_shares,
)


def swav(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    return SwavForPreTraining(
        SwavPreTrainingConfig(encoder_config=encoder or vit(), **{**HEAD, "freeze_prototypes": 0.0, **config})
    )


def step(model, batch, progress=0.5, lr=0.1):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    model.after_optimizer_step(progress)


def test_the_defaults_are_the_papers():
    config = SwavPreTrainingConfig()
    assert config.encoder_config.model_type == "resnet" and list(config.encoder_config.depths) == [3, 4, 6, 3]
    assert (config.projector_hidden_dim, config.projector_output_dim, config.num_prototypes) == (2048, 128, 3000)
    assert (config.student_temperature, config.sinkhorn_epsilon, config.sinkhorn_iterations) == (0.1, 0.05, 3)
    assert config.queue_size == 0 and config.queue_start == 15 / 200


@pytest.mark.parametrize("encoder", ["vit", "resnet"])
def test_the_loss_is_that_of_the_paper_over_all_crops(encoder):
    """One crop after the other through encoder and head."""
    model = swav(ENCODERS[encoder]()).eval()
    batch = crops()
    out = model(**batch)
    options = {"interpolate_pos_encoding": True} if encoder == "vit" else {}
    projections = []
    for view in [*batch["pixel_values"].unbind(1), *batch["local_pixel_values"].unbind(1)]:
        outputs = model.encoder(view, **options)
        feature = outputs.last_hidden_state[:, 0] if encoder == "vit" else outputs.pooler_output.flatten(1)
        projections.append(F.normalize(model.branch.projector(feature), dim=-1))
    logits = torch.stack([z @ model.prototypes.weight.T for z in projections])
    torch.testing.assert_close(out.loss, swav_loss(logits, 0.1, 0.05))
    torch.testing.assert_close(out.logits, logits)
    assert out.projections.shape == (5, 6, 8) and out.logits.shape == (5, 6, 12)


def test_one_pass_for_each_size_and_one_through_the_head():
    model, passes, heads = swav().train(), [], []
    model.encoder.register_forward_hook(lambda module, inputs, out: passes.append(out.last_hidden_state.shape[:2]))
    model.branch.projector.register_forward_hook(lambda module, inputs, output: heads.append(len(output)))
    model(**crops(4))
    assert passes == [(8, 17), (12, 5)] and heads == [20]


@pytest.mark.parametrize("name", FITTING)
def test_any_encoder_and_every_parameter_learns(name):
    model = swav(ENCODERS[name]()).train()
    loss = model(**crops()).loss
    loss.backward()
    assert loss.isfinite()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


# -- prototypes -------------------------------------------------------------------------------------------------------


def test_prototypes_learn_and_have_length_1_before_each_step():
    model = swav().train()
    lengths, before = [], model.prototypes.weight.clone()
    for _ in range(2):
        lengths.append(model.prototypes.weight.norm(dim=-1))
        step(model, two_views(), lr=1.0)
    assert not torch.allclose(model.prototypes.weight, before, atol=1e-3)
    for length in [*lengths, model.prototypes.weight.norm(dim=-1)]:
        torch.testing.assert_close(length, torch.ones(12))


def test_prototypes_wait_at_first():
    """As if they were in no optimizer: not decayed, and no part of the norm that is clipped."""
    model = swav(freeze_prototypes=0.5).train()
    before = model.prototypes.weight.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for number in range(3):
        optimizer.zero_grad()
        model(**two_views()).loss.backward()
        assert model.prototypes.weight.grad.any() == (number == 2)  # never none, for which DDP would wait
        optimizer.step()
        model.after_optimizer_step((number + 1) / 4)
        assert torch.equal(model.prototypes.weight, before) == (number < 2)


def test_a_model_that_is_not_told_of_its_steps_refuses_to_go_on():
    """Its prototypes would wait forever, and its queue would never fill."""
    model = swav(freeze_prototypes=0.5).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**two_views()).loss.backward()
    optimizer.step()
    with pytest.raises(UserError, match="moved this SwavForPreTraining, and it was not told.*MethodCallback"):
        model(**two_views())


# -- the queue --------------------------------------------------------------------------------------------------------


def test_the_queue_fills_from_its_start_on_and_counts_when_it_is_full(tmp_path):
    model = swav(queue_size=10, queue_start=0.5).train()
    step(model, two_views(4), progress=0.4)
    step(model, two_views(4), progress=0.5)
    assert model.queue_count == 0 and not model.queue.any()
    entered = []
    for _ in range(3):
        batch = two_views(4)
        assert model._code_options()["queue_logits"] is None
        rows = batch["pixel_values"].transpose(0, 1).flatten(0, 1)
        entered.append(F.normalize(model.branch(rows), dim=-1).unflatten(0, (2, 4)))
        step(model, batch, lr=0.0)
    assert model.queue_count == 12
    newest = torch.cat(entered, dim=1)[:, -10:]
    torch.testing.assert_close(model.queue, newest.roll(2, dims=1))  # the last two have taken the first places
    model.eval()
    batch = crops()
    out = model(**batch)
    queue_logits = model.queue @ model.prototypes.weight.T
    torch.testing.assert_close(out.loss, swav_loss(out.logits, 0.1, 0.05, queue_logits=queue_logits))
    assert out.loss != swav_loss(out.logits, 0.1, 0.05)
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**batch).loss, out.loss) and again.queue_count == 12


def test_images_enter_the_queue_after_the_step():
    model = swav(queue_size=4, queue_start=0.0).train()
    for part in split(two_views(4), 2):  # accumulation steps
        model(**part)
        assert model.queue_count == 0
    model.after_optimizer_step(0.5)
    assert model.queue_count == 4
    torch.testing.assert_close(model.queue.norm(dim=-1), torch.ones(2, 4))
    model.eval()(**two_views(4))
    model.after_optimizer_step(0.6)
    assert model.queue_count == 4


def with_a_full_queue(rank, world_size):
    """Loss and gradient of 6 images beside a queue of 9, however they are cut."""
    model = swav(resnet(), queue_size=9).double().train()
    torch.manual_seed(1)
    model.queue.copy_(F.normalize(torch.randn(2, 9, 8), dim=-1))
    model.queue_count.fill_(9)
    part = split(crops(6), world_size)[rank]
    loss = model(**{name: pixels.double() for name, pixels in part.items()}).loss
    loss.backward()
    results = [loss.detach(), *(p.grad for p in model.parameters())]
    for result in results if world_size > 1 else ():
        dist.all_reduce(result.div_(world_size))
    return results


@pytest.mark.distributed
def test_two_processes_share_prototypes_and_queue(pair):
    alone = with_a_full_queue(0, 1)
    for found in pair.ask(Path(__file__), "with_a_full_queue"):
        torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-11)


# -- health -----------------------------------------------------------------------------------------------------------


def test_codes_of_other_images_raise_the_loss_unless_all_have_the_same():
    model = swav(resnet(), num_prototypes=4).eval()
    images = torch.randn(12, 1, 3, 16, 16).expand(-1, 2, -1, -1, -1)
    assert model.target_margin({"pixel_values": images}).mean() > 0.01
    same = {"pixel_values": images[:1].expand(12, -1, -1, -1, -1)}
    torch.testing.assert_close(model.target_margin(same), torch.zeros(12), atol=1e-6, rtol=0)


# -- what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 1, 3, 16, 16)])
def test_other_than_two_large_crops_are_explained(shape):
    with pytest.raises(ValueError, match="SwAV compares 2 views of each image"):
        swav()(torch.randn(shape))


def test_one_image_has_nobody_to_share_with():
    with pytest.raises(UserError, match="the batch has 1 image. Pass a larger `--per_device_train_batch_size`"):
        swav().train()(**two_views(1))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"student_temperature": 0.0}, "student_temperature.*above 0, got 0"),
        ({"sinkhorn_epsilon": -1.0}, "sinkhorn_epsilon.*above 0, got -1"),
        ({"queue_start": 1.5}, "queue_start.*between 0 and 1, got 1.5"),
        ({"num_prototypes": 1}, "num_prototypes.*at least 2, got 1"),
        ({"queue_size": -1}, "queue_size.*at least 0, got -1"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        swav(**config)
