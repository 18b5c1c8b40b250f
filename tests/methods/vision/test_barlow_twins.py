"""Barlow Twins: its equation, its normalisation, its encoders, and what it says where it cannot."""

import pytest
import torch
import torch.nn.functional as F
from contract import Contract
from tiny_vision import resnet, two_layers, two_views
from torch import nn

from hfssl import BarlowTwinsForPreTraining, BarlowTwinsPreTrainingConfig
from hfssl.errors import UserError
from hfssl.losses import barlow_twins_loss
from hfssl.methods.vision import barlow_twins as barlow_twins_module
from hfssl.modeling.distributed import GlobalBatchNorm
from hfssl.modeling.heads import MlpHead


HEAD = {"projector_hidden_dim": 16, "projector_output_dim": 12}


def with_equal_views_alone(change):
    """Neither normalised over the batch nor held apart: equal views are all that counts."""

    def terms(z1, z2, all_reduce=None):
        invariance = 1 - F.cosine_similarity(z1, z2).mean()
        return {"invariance": invariance, "redundancy": 0.0 * invariance}

    change(barlow_twins_module, "MlpHead", lambda *args, last_norm, **more: MlpHead(*args, **more))
    change(barlow_twins_module, "barlow_twins_terms", terms)
    return {}


CONTRACT = Contract(
    encoder=resnet,
    batch=two_views,
    settings=HEAD,
    accumulation=False,
    why_not="Correlations are those of an accumulation step, and batch norm sees no other either.",
    variants={"vit": (two_layers, {})},
    collapse=with_equal_views_alone,
)


def barlow_twins(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    return BarlowTwinsForPreTraining(BarlowTwinsPreTrainingConfig(encoder_config=encoder or resnet(), **HEAD | config))


def test_the_defaults_are_the_papers():
    config = BarlowTwinsPreTrainingConfig()
    assert config.encoder_config.model_type == "resnet" and config.encoder_config.hidden_sizes[-1] == 2048
    heads = config.projector_num_layers, config.projector_hidden_dim, config.projector_output_dim
    assert heads == (3, 8192, 8192) and config.redundancy_weight == 0.0051


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_loss_is_that_of_both_views_through_encoder_and_projector(mode):
    model = barlow_twins(redundancy_weight=0.3)
    getattr(model, mode)()
    views = two_views()["pixel_values"]
    out = model(views)
    z1, z2 = (model.branch(view) for view in views.unbind(1))
    torch.testing.assert_close(out.loss, barlow_twins_loss(z1, z2, 0.3))
    torch.testing.assert_close(out.projections, torch.stack([z1, z2], dim=1))
    assert list(out.loss_terms) == list(model.loss_units)
    torch.testing.assert_close(out.loss_terms["invariance"] + 0.3 * out.loss_terms["redundancy"], out.loss.detach())


def test_the_projector_is_that_of_the_paper_and_normalises_each_view_alone():
    model = barlow_twins().train()
    block = [nn.Linear, GlobalBatchNorm, nn.ReLU]
    layers = list(model.branch.projector)
    assert [type(layer) for layer in layers] == [*block, *block, nn.Linear, GlobalBatchNorm]
    assert not layers[-1].affine and all(layer.bias is None for layer in layers if isinstance(layer, nn.Linear))
    for view in model(**two_views()).projections.unbind(1):
        torch.testing.assert_close(view.mean(0), torch.zeros(12), rtol=0, atol=1e-5)


def test_the_weight_decides_between_dimensions_that_repeat_each_other_and_those_that_do_not():
    """Off the diagonal, what a step of the gradient changes most is what the weight asks for."""
    found = {}
    for weight in (0.0, 1.0):
        model = barlow_twins(seed=1, redundancy_weight=weight).train()
        batch = two_views(32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(8):
            optimizer.zero_grad()
            out = model(**batch)
            out.loss.backward()
            optimizer.step()
        found[weight] = out.loss_terms["redundancy"].item()
    assert found[1.0] < 0.7 * found[0.0]


def test_a_batch_of_one_is_explained():
    with pytest.raises(UserError, match="Barlow Twins needs more than one image, as its batch norm does"):
        barlow_twins().train()(**two_views(1))
    assert barlow_twins().eval()(**two_views(1)).loss.isfinite()


def test_other_numbers_of_views_are_explained():
    with pytest.raises(ValueError, match="Barlow Twins compares 2 views of each image: `pixel_values` has shape"):
        barlow_twins()(torch.randn(4, 3, 3, 16, 16))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"projector_output_dim": 0}, "projector_output_dim.*at least 1, got 0"),
        ({"redundancy_weight": -0.1}, "redundancy_weight.*at least 0, got -0.1"),
        ({"pooling": "cls"}, "needs a CLS token, and a resnet has none"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        barlow_twins(**config)
