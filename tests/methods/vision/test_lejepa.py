"""LeJEPA: its equation, its directions, its crops, and what it says where it cannot."""

import pytest
import torch
from contract import Contract
from tiny_vision import crops, resnet, two_layers, two_views
from torch import nn

from hfssl import LejepaForPreTraining, LejepaPreTrainingConfig
from hfssl.errors import UserError
from hfssl.losses import lejepa_terms
from hfssl.modeling.distributed import GlobalBatchNorm


HEAD = {"projector_hidden_dim": 16, "projector_output_dim": 8, "num_directions": 32}

CONTRACT = Contract(
    encoder=two_layers,
    batch=crops,
    settings=HEAD,
    accumulation=False,
    why_not="Normal numbers are looked for in an accumulation step, and batch norm sees no other either.",
    variants={"resnet": (resnet, {})},
    collapse=lambda change: {"sigreg_weight": 0.0},
)


def lejepa(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    return LejepaForPreTraining(LejepaPreTrainingConfig(encoder_config=encoder or two_layers(), **HEAD | config))


def test_the_defaults_are_those_of_the_paper():
    config = LejepaPreTrainingConfig()
    assert config.encoder_config.model_type == "vit" and config.encoder_config.hidden_size == 768
    assert (config.sigreg_weight, config.num_directions) == (0.05, 1024) and config.invariance_weight == 0.95
    views = LejepaForPreTraining.method.views
    assert len(views.views) == 2 and views.num_local == 6
    assert [view.scale for view in (*views.views, views.local)] == [(0.3, 1.0)] * 2 + [(0.05, 0.3)]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("batch", [crops, two_views])
def test_the_loss_is_that_of_all_crops_through_encoder_and_projector(mode, batch):
    model = lejepa(sigreg_weight=0.3)
    getattr(model, mode)()
    batch = batch()
    out = model(**batch)
    features = [model.branch.features(view) for views in batch.values() for view in views.unbind(1)]
    z = model.branch.projector(torch.cat(features)).unflatten(0, (len(features), 6))
    terms = lejepa_terms(z, model._directions(z), num_targets=2)
    torch.testing.assert_close(out.projections, z)
    torch.testing.assert_close(out.loss, 0.7 * terms["invariance"] + 0.3 * terms["sigreg"])
    torch.testing.assert_close(out.loss_terms, {name: term.detach() for name, term in terms.items()})
    assert list(out.loss_terms) == list(model.loss_units)


def test_directions_follow_the_steps_and_are_saved_with_them(tmp_path):
    model = lejepa().train()
    like, seen = torch.zeros(1), []
    for _ in range(3):
        seen.append(model._directions(like))
        torch.testing.assert_close(seen[-1].norm(dim=-1), torch.ones(32))
        torch.manual_seed(99)  # nothing is drawn from the ambient generator
        assert torch.equal(model._directions(like), seen[-1])
        model.after_optimizer_step(0.1)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    model.save_pretrained(tmp_path)
    again, other = LejepaForPreTraining.from_pretrained(tmp_path).train(), lejepa(seed=3).train()
    assert torch.equal(other._directions(like), seen[0])
    other.load_state_dict(model.state_dict())
    for loaded in (again, other):
        assert loaded.num_steps == 3
        assert torch.equal(loaded._directions(like), model._directions(like))
        # the same measure for all steps
        assert torch.equal(loaded.eval()._directions(like), lejepa().eval()._directions(like))


def test_the_projector_is_that_of_the_code():
    layers = list(lejepa().branch.projector)
    block = [nn.Linear, GlobalBatchNorm, nn.ReLU]
    assert [type(layer) for layer in layers] == [*block, *block, nn.Linear] and layers[-1].bias is not None


def test_a_few_steps_make_normal_numbers_of_what_was_close():
    model = lejepa(seed=1, sigreg_weight=0.5).train()
    batch = two_views(64)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    terms = []
    for step in range(15):
        optimizer.zero_grad()
        out = model(**batch)
        out.loss.backward()
        optimizer.step()
        model.after_optimizer_step(step / 15)
        terms.append(out.loss_terms["sigreg"].item())
    assert terms[-1] < 0.6 * terms[0]


def test_a_batch_of_one_is_explained():
    with pytest.raises(UserError, match="LeJEPA needs more than one image, as its batch norm does"):
        lejepa().train()(**two_views(1))
    assert lejepa().eval()(**two_views(1)).loss.isfinite()


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 1, 3, 16, 16)])
def test_too_few_large_crops_are_explained(shape):
    with pytest.raises(ValueError, match="LeJEPA compares at least 2 large crops of each image"):
        lejepa()(torch.randn(shape))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"sigreg_weight": 1.5}, "sigreg_weight.*between 0 and 1, got 1.5"),
        ({"num_directions": 0}, "num_directions.*at least 1, got 0"),
        ({"encoder": resnet(), "pooling": "cls"}, "needs a CLS token, and a resnet has none"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        lejepa(**config)
