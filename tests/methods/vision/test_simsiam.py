"""SimSiam: its equation, its heads and the rate of its predictor, and what it says where it cannot."""

import pytest
import torch
import torch.nn.functional as F
from contract import Contract
from tiny_vision import ENCODERS, resnet, two_layers, two_views
from torch import nn

from hfssl import SimsiamForPreTraining, SimsiamPreTrainingConfig
from hfssl.errors import UserError
from hfssl.losses import simsiam_loss
from hfssl.methods.vision import simsiam as simsiam_module
from hfssl.methods.vision.simsiam import SimsiamOutput
from hfssl.modeling.distributed import GlobalBatchNorm
from hfssl.modeling.heads import MlpHead


HEADS = {"projector_hidden_dim": 16, "projector_output_dim": 12, "predictor_hidden_dim": 8}


def without_stop_gradient(change):
    """Without the predictor as well, and not normalised over the batch: equal views are all that counts."""

    def forward(self, pixel_values, return_loss=True):
        z = torch.stack([self.branch(view) for view in pixel_values.unbind(1)], dim=1)
        return SimsiamOutput(loss=simsiam_loss(z, z))

    change(SimsiamForPreTraining, "forward", forward)
    change(simsiam_module, "MlpHead", lambda *args, last_norm=None, **more: MlpHead(*args, **more))
    return {}


CONTRACT = Contract(
    encoder=resnet,
    batch=two_views,
    settings=HEADS,
    accumulation=False,
    why_not="Batch norm, in the heads too, sees an accumulation step alone.",
    variants={"vit": (two_layers, {})},
    collapse=without_stop_gradient,
)


def simsiam(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    return SimsiamForPreTraining(SimsiamPreTrainingConfig(encoder_config=encoder or resnet(), **HEADS | config))


def test_the_defaults_are_the_papers():
    config = SimsiamPreTrainingConfig()
    assert config.encoder_config.model_type == "resnet" and config.encoder_config.hidden_sizes[-1] == 2048
    heads = config.projector_num_layers, config.projector_hidden_dim, config.projector_output_dim
    assert heads == (3, 2048, 2048) and config.predictor_hidden_dim == 512 and config.constant_predictor_rate


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_loss_is_equation_2_and_no_gradient_reaches_what_is_predicted(mode):
    model = simsiam()
    getattr(model, mode)()
    views = two_views()["pixel_values"]
    out = model(views)
    out.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    z1, z2 = (model.branch(view) for view in views.unbind(1))
    p1, p2 = model.predictor(z1), model.predictor(z2)
    expected = sum(-F.cosine_similarity(p, z.detach(), dim=-1).mean() / 2 for p, z in ((p1, z2), (p2, z1)))
    expected.backward()
    torch.testing.assert_close(out.loss, expected)
    assert out.predictions.shape == out.projections.shape == (6, 2, 12) and not out.projections.requires_grad
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], msg=name)


def test_the_heads_are_those_of_the_paper():
    model = simsiam()
    block = [nn.Linear, GlobalBatchNorm, nn.ReLU]
    assert [type(layer) for layer in model.branch.projector] == [*block, *block, nn.Linear, GlobalBatchNorm]
    assert not model.branch.projector[-1].affine
    assert [type(layer) for layer in model.predictor] == [*block, nn.Linear] and model.predictor[-1].bias is not None
    assert model.predictor[0].out_features == 8


def test_each_view_is_normalised_alone():
    model = simsiam().train()
    for view in model(**two_views()).projections.unbind(1):
        torch.testing.assert_close(view.mean(0), torch.zeros(12), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "dinov3_convnext"])
def test_any_encoder_and_every_parameter_learns(name):
    model = simsiam(ENCODERS[name]()).train()
    loss = model(**two_views()).loss
    loss.backward()
    assert loss.isfinite()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_predictor_alone_keeps_its_rate():
    assert simsiam().constant_rate == ("predictor.",) and simsiam(constant_predictor_rate=False).constant_rate == ()
    hints = [
        SimsiamForPreTraining.method.collapse_hints(simsiam(constant_predictor_rate=c).config) for c in (True, False)
    ]
    assert ["constant_predictor_rate" in hint["constant"] for hint in hints] == [False, True]


def test_a_batch_of_one_is_explained():
    with pytest.raises(
        UserError, match="SimSiam needs more than one image, as its batch norm does, but the batch has 1"
    ):
        simsiam().train()(**two_views(1))
    assert simsiam().eval()(**two_views(1)).loss.isfinite()


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 3, 3, 16, 16)])
def test_other_numbers_of_views_are_explained(shape):
    with pytest.raises(ValueError, match="SimSiam compares 2 views of each image: `pixel_values` has shape"):
        simsiam()(torch.randn(shape))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"predictor_hidden_dim": 0}, "predictor_hidden_dim.*at least 1, got 0"),
        ({"pooling": "cls"}, "needs a CLS token, and a resnet has none"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        simsiam(**config)


def test_a_few_steps_make_views_alike_and_samples_apart():
    """32 noisy pictures: views grow alike while the spread of the projections stays."""
    model = simsiam(seed=1).train()
    pictures = F.interpolate(torch.randn(32, 1, 3, 4, 4).flatten(0, 1), scale_factor=4).unflatten(0, (32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        out = model(pictures + 0.5 * torch.randn(32, 2, 3, 16, 16))
        losses.append(out.loss.item())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.2
    assert F.normalize(out.projections[:, 0], dim=-1).std(0).mean() > 0.5 / 12**0.5
