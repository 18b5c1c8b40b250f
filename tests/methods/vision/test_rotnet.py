"""RotNet: what it turns and by how much, its loss, and what it says where it cannot."""

import math

import pytest
import torch
import torch.nn.functional as F
from contract import Contract
from tiny_vision import ENCODERS, resnet, two_layers, vit

from hfssl import RotnetForPreTraining, RotnetPreTrainingConfig
from hfssl.methods.vision.rotnet import rotations


# its last stage has one pixel of an image of 16
FITTING = [name for name in ENCODERS if name != "dinov3_convnext"]


def images(rows=6):
    return {"pixel_values": torch.randn(rows, 3, 16, 16)}


def at_a_rate_too_high(change):
    """One answer to everything."""
    return {"learning_rate": 0.1, "warmup_steps": 0}


CONTRACT = Contract(encoder=two_layers, batch=images, variants={"resnet": (resnet, {})}, collapse=at_a_rate_too_high)


def rotnet(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    return RotnetForPreTraining(RotnetPreTrainingConfig(encoder_config=encoder or vit(), **config))


def test_an_arrow_that_points_up_points_left_down_and_right():
    up = torch.zeros(1, 1, 5, 5)
    up[0, 0, 0, 2] = 1.0
    turned = rotations(up)[0, :, 0]
    assert [(turn.argmax() // 5, turn.argmax() % 5) for turn in turned] == [(0, 2), (2, 0), (4, 2), (2, 4)]
    assert torch.equal(turned.sum((1, 2)), torch.ones(4))


@pytest.mark.parametrize("encoder", ["vit", "resnet"])
def test_the_loss_is_equation_2_of_the_paper(encoder):
    """One image and one rotation after the other."""
    model = rotnet(ENCODERS[encoder]()).eval()
    batch = images(3)
    terms = []
    for image in batch["pixel_values"]:
        for turns in range(4):
            outputs = model.encoder(torch.rot90(image, turns, (1, 2))[None])
            feature = outputs.last_hidden_state[:, 0] if encoder == "vit" else outputs.pooler_output.flatten(1)
            terms.append(-F.log_softmax(model.classifier(feature)[0], dim=-1)[turns])
    out = model(**batch)
    torch.testing.assert_close(out.loss, torch.stack(terms).mean())
    assert out.logits.shape == (3, 4, 4)


def test_chance_is_log_4():
    model = rotnet()
    torch.nn.init.zeros_(model.classifier.weight)
    assert model(**images()).loss.item() == pytest.approx(math.log(4))
    assert model.method.chance(model.config, None) == {"loss": pytest.approx(math.log(4))}


def test_images_that_look_the_same_in_all_rotations_say_nothing():
    """A classifier that is sure of itself is wrong three times out of four."""
    model = rotnet().eval()
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([3.0, 0.0, 0.0, 0.0]))
    loss = model(torch.ones(2, 3, 16, 16)).loss
    assert loss > math.log(4)


@pytest.mark.parametrize("name", FITTING)
def test_any_encoder_and_every_parameter_learns(name):
    model = rotnet(ENCODERS[name]()).train()
    loss = model(**images()).loss
    loss.backward()
    assert loss.isfinite()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_it_learns_which_way_is_up():
    """Images that are bright at the top: a few steps are enough to tell."""
    model = rotnet(resnet()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ramp = torch.linspace(1.0, -1.0, 16).view(1, 1, 16, 1).expand(8, 3, 16, 16)
    losses = []
    for _ in range(20):
        loss = model(ramp + 0.1 * torch.randn(8, 3, 16, 16)).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] > 1.0 and losses[-1] < 0.1


@pytest.mark.parametrize("shape", [(4, 2, 3, 16, 16), (4, 3, 16, 24)])
def test_other_than_single_square_images_are_explained(shape):
    with pytest.raises(ValueError, match=r"RotNet rotates square images: `pixel_values` has shape \(4, "):
        rotnet()(torch.randn(shape))
