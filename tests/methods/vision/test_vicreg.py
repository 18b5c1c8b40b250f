"""VICReg: its equation, what its figures of health see, its encoders, and what it says where it cannot."""

import pytest
import torch
from contract import Contract
from tiny_vision import resnet, two_layers, two_views
from torch import nn

from hfssl import VicregForPreTraining, VicregPreTrainingConfig
from hfssl.errors import UserError
from hfssl.functional.embedding_figures import spread
from hfssl.losses import vicreg_loss
from hfssl.modeling.branch import with_unit_length
from hfssl.modeling.distributed import GlobalBatchNorm
from hfssl.report.curves import history_figure


HEAD = {"projector_hidden_dim": 16, "projector_output_dim": 12}

CONTRACT = Contract(
    encoder=resnet,
    batch=two_views,
    settings=HEAD,
    accumulation=False,
    why_not="Variances and covariances are those of an accumulation step, and batch norm sees no other either.",
    variants={"vit": (two_layers, {})},
    collapse=lambda change: {"variance_weight": 0.0},
)


def vicreg(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    return VicregForPreTraining(VicregPreTrainingConfig(encoder_config=encoder or resnet(), **HEAD | config))


def test_the_defaults_are_the_papers():
    config = VicregPreTrainingConfig()
    assert config.encoder_config.model_type == "resnet" and config.encoder_config.hidden_sizes[-1] == 2048
    heads = config.projector_num_layers, config.projector_hidden_dim, config.projector_output_dim
    assert heads == (3, 8192, 8192)
    assert (config.invariance_weight, config.variance_weight, config.covariance_weight) == (25, 25, 1)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_loss_is_that_of_both_views_through_encoder_and_projector(mode):
    model = vicreg(invariance_weight=2.0, variance_weight=3.0, covariance_weight=4.0)
    getattr(model, mode)()
    views = two_views()["pixel_values"]
    out = model(views)
    z1, z2 = (model.branch(view) for view in views.unbind(1))
    torch.testing.assert_close(out.loss, vicreg_loss(z1, z2, 2, 3, 4))
    torch.testing.assert_close(out.projections, torch.stack([z1, z2], dim=1))
    assert list(out.loss_terms) == list(model.loss_units) == ["invariance", "variance", "covariance"]


def test_the_projector_is_that_of_the_paper():
    layers = list(vicreg().branch.projector)
    block = [nn.Linear, GlobalBatchNorm, nn.ReLU]
    assert [type(layer) for layer in layers] == [*block, *block, nn.Linear]
    assert all(layer.bias is None for layer in layers if isinstance(layer, nn.Linear))


def test_health_sees_projections_shrink_to_a_point():
    """By their directions alone nothing would have changed."""
    z = torch.randn(200, 16)
    stds = [spread(with_unit_length(size * z))["std"] for size in (1.0, 0.1, 0.001)]
    assert stds[0] == pytest.approx(0.5**0.5, rel=0.1) and stds[1] < 0.15 and stds[2] < 0.002
    assert spread(0.001 * z)["std"] > 0.9
    model = vicreg().eval()
    assert model.compared_embeddings(two_views()).shape == (6, 2, 13)


def test_each_term_has_a_picture_and_no_picture_is_empty():
    terms = {f"loss_{name}": 1.0 for name in VicregForPreTraining.loss_units}
    history = [{"step": 0, "eval_loss": 3.0}, {"step": 10, "loss": 2.0, **terms}, {"step": 20, "eval_loss": 2.0}]
    figure = history_figure(history, contrasted=(64, 53), units=VicregForPreTraining.loss_units)
    labels = [[line.get_label() for line in axes.lines] for axes in figure.axes]
    assert labels == [
        ["training (64 images at once)"], ["held out (53 images at once)"],
        *([f"{name}, training (64 images at once)"] for name in VicregForPreTraining.loss_units),
    ]  # fmt: skip
    assert len(history_figure([], units=VicregForPreTraining.loss_units).axes) == 1


def test_a_few_steps_spread_what_was_close():
    model = vicreg(seed=1).train()
    batch = two_views(32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    terms = []
    for _ in range(10):
        optimizer.zero_grad()
        out = model(**batch)
        out.loss.backward()
        optimizer.step()
        terms.append(out.loss_terms)
    assert terms[-1]["variance"] < 0.8 * terms[0]["variance"]


def test_a_batch_of_one_is_explained():
    with pytest.raises(UserError, match="VICReg needs more than one image, as its batch norm does"):
        vicreg().train()(**two_views(1))
    assert vicreg().eval()(**two_views(1)).loss.isfinite()


def test_other_numbers_of_views_are_explained():
    with pytest.raises(ValueError, match="VICReg compares 2 views of each image: `pixel_values` has shape"):
        vicreg()(torch.randn(4, 3, 3, 16, 16))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"projector_output_dim": 0}, "projector_output_dim.*at least 1, got 0"),
        ({"variance_weight": -1.0}, "variance_weight.*at least 0, got -1"),
        ({"pooling": "cls"}, "needs a CLS token, and a resnet has none"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        vicreg(**config)
