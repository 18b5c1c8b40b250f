"""BYOL: its equation, its batch norms, its encoders, and what it says where it cannot."""

import pytest
import torch
import torch.nn.functional as F
from contract import Contract
from tiny_vision import ENCODERS, resnet, two_views, vit
from torch import nn

from hfssl import ByolForPreTraining, ByolPreTrainingConfig
from hfssl.errors import UserError
from hfssl.losses import byol_loss
from hfssl.methods.vision.byol import ByolOutput
from hfssl.modeling.distributed import GlobalBatchNorm


# DINOv3's convolutions halve small images to nothing
FITTING = [name for name in ENCODERS if name != "dinov3_convnext"]


HEAD = {"projector_hidden_dim": 16, "projector_output_dim": 8}


def without_stop_gradient(change):
    """Without the predictor as well: equal views are all that counts."""

    def forward(self, pixel_values, return_loss=True):
        z = torch.stack([self.student(view) for view in pixel_values.unbind(1)], dim=1)
        return ByolOutput(loss=byol_loss(z, z))

    change(ByolForPreTraining, "forward", forward)
    return {}


CONTRACT = Contract(
    encoder=resnet,
    batch=two_views,
    settings=HEAD,
    accumulation=False,
    why_not="Batch norm, in the heads too, sees an accumulation step alone.",
    collapse=without_stop_gradient,
)


def byol(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    settings = {"projector_hidden_dim": 16, "projector_output_dim": 8, **config}
    return ByolForPreTraining(ByolPreTrainingConfig(encoder_config=encoder or resnet(), **settings))


def test_the_defaults_are_the_papers():
    config = ByolPreTrainingConfig()
    assert config.encoder_config.model_type == "resnet" and config.encoder_config.hidden_sizes[-1] == 2048
    assert (config.projector_hidden_dim, config.projector_output_dim) == (4096, 256)
    assert (config.momentum_start, config.momentum_end) == (0.996, 1.0)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_loss_is_equation_2_in_both_directions(mode):
    """The squared distance of unit vectors, with a student and a teacher that differ, view by view."""
    model = byol()
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(0.1 * torch.randn_like(p))
    getattr(model, mode)()
    first, second = two_views()["pixel_values"].unbind(1)
    out = model(torch.stack([first, second], dim=1))
    expected = 0.0
    for here, there in ((first, second), (second, first)):
        q, z = model.predictor(model.student(here)), model.teacher(there)
        expected = expected + (F.normalize(q, dim=-1) - F.normalize(z, dim=-1)).square().sum(-1).mean() / 2
    torch.testing.assert_close(out.loss, expected)
    assert out.student_predictions.shape == out.teacher_projections.shape == (6, 2, 8)
    assert not out.teacher_projections.requires_grad


def test_no_gradient_reaches_the_targets():
    """With a predictor that copies, the gradient is that of a target which is a constant."""
    model = byol(vit()).eval()
    model.predictor = nn.Identity()
    views = two_views()["pixel_values"]
    model(views).loss.backward()
    gradient = next(model.student.parameters()).grad.clone()
    model.zero_grad()
    targets = torch.stack([model.teacher(view) for view in views.unbind(1)], dim=1).detach()
    predictions = torch.stack([model.student(view) for view in views.unbind(1)], dim=1)
    (2 - 2 * F.cosine_similarity(predictions, targets.flip(1), dim=-1).mean()).backward()
    torch.testing.assert_close(next(model.student.parameters()).grad, gradient)
    assert all(p.grad is None for p in model.teacher.parameters())


def test_the_heads_are_those_of_the_paper():
    model = byol()
    for head in (model.student.projector, model.predictor):
        assert [type(layer) for layer in head] == [nn.Linear, GlobalBatchNorm, nn.ReLU, nn.Linear]
        assert all(layer.bias is not None for layer in head if isinstance(layer, nn.Linear))
    assert not hasattr(model.teacher, "predictor")


def test_vision_transformers_are_held_up():
    model = byol(vit(), last_batch_norm=True, freeze_patch_embed=True).train()
    hidden = [nn.Linear, GlobalBatchNorm, nn.ReLU]
    for head in (model.student.projector, model.predictor):
        assert [type(layer) for layer in head] == [*hidden, nn.Linear, GlobalBatchNorm]
        assert not head[-1].affine and not any(
            layer.bias is not None for layer in head if isinstance(layer, nn.Linear)
        )
    projection = model.student.encoder.embeddings.patch_embeddings.projection
    assert not projection.weight.requires_grad and not projection.bias.requires_grad
    model(**two_views()).loss.backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_each_view_is_normalised_alone():
    model = byol().train()
    seen = []
    model.predictor[1].register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    model(**two_views())
    assert len(seen) == 2
    for output in seen:
        torch.testing.assert_close(output.mean(0), torch.zeros(16), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FITTING)
def test_any_encoder_and_every_parameter_learns(name):
    model = byol(ENCODERS[name]()).train()
    loss = model(**two_views()).loss
    loss.backward()
    assert loss.isfinite()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(not p.requires_grad for key, p in model.named_parameters() if "mask_token" in key)


def test_a_batch_of_one_is_explained():
    with pytest.raises(UserError, match="batch norm needs more than one image, but the batch has 1"):
        byol().train()(**two_views(1))
    assert byol().eval()(**two_views(1)).loss.isfinite()


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 1, 3, 16, 16), (4, 3, 3, 16, 16)])
def test_other_numbers_of_views_are_explained(shape):
    with pytest.raises(ValueError, match="BYOL compares 2 views of each image: `pixel_values` has shape"):
        byol()(torch.randn(shape))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"projector_hidden_dim": 0}, "projector_hidden_dim.*at least 1, got 0"),
        ({"pooling": "cls"}, "needs a CLS"),
        ({"freeze_patch_embed": True}, "is for encoders of patches, and a resnet has none"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        byol(**config)
