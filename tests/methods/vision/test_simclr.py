"""SimCLR: its loss, its encoders, and what it says where it cannot."""

import pytest
import torch
import torch.nn.functional as F
from contract import Contract
from tiny_vision import ENCODERS, build, resnet, two_layers, two_views, vit
from torch import nn
from transformers import ASTConfig, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from hfssl import ByolForPreTraining, ByolPreTrainingConfig, SimclrForPreTraining, SimclrPreTrainingConfig
from hfssl.errors import UserError
from hfssl.losses import nt_xent_loss
from hfssl.methods.vision import simclr as simclr_module
from hfssl.modeling.distributed import GlobalBatchNorm, convert_batch_norm
from hfssl.modeling.pooling import pool_features


# DINOv3's convolutions halve small images to nothing
FITTING = [name for name in ENCODERS if name != "dinov3_convnext"]


def without_negatives(change):
    """Equal views are all that counts."""
    loss = lambda z1, z2, *_, **__: 1 - F.cosine_similarity(z1, z2).mean()  # noqa: E731
    change(simclr_module, "nt_xent_loss", loss)
    return {}


CONTRACT = Contract(
    encoder=resnet,
    batch=two_views,
    settings={"projector_output_dim": 16},
    accumulation=False,
    why_not="An image is contrasted with those of its accumulation step, and batch norm sees no others either.",
    variants={
        "vit": (two_layers, {}),
        "decoupled": (resnet, {"decoupled": True}),
        "neighbours": (resnet, {"nearest_neighbour_queue": 20, "predictor_hidden_dim": 16}),
    },
    collapse=without_negatives,
)


def simclr(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    settings = {"projector_output_dim": 16, **config}
    return SimclrForPreTraining(SimclrPreTrainingConfig(encoder_config=encoder or resnet(), **settings))


def test_the_defaults_are_the_papers():
    config = SimclrPreTrainingConfig()
    assert config.encoder_config.model_type == "resnet" and config.encoder_config.hidden_sizes[-1] == 2048
    assert (config.contrastive_temperature, config.projector_num_layers, config.projector_output_dim) == (0.1, 2, 128)


@pytest.mark.parametrize("name", FITTING)
def test_any_encoder_and_every_parameter_learns(name):
    model = simclr(ENCODERS[name]()).train()
    loss = model(**two_views()).loss
    loss.backward()
    without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert loss.isfinite() and without == []
    assert not any("pooler" in key for key, _ in model.named_parameters())
    masks = [p for key, p in model.named_parameters() if "mask_token" in key]
    assert all(not p.requires_grad for p in masks)
    assert bool(masks) == ("dino" in name)


@pytest.mark.parametrize("encoder, pooling", [(resnet(), None), (vit(), None), (vit(), "mean"), (vit(), "last4")])
def test_the_loss_is_that_of_both_views_through_encoder_and_projector(encoder, pooling):
    model = simclr(encoder, pooling=pooling, contrastive_temperature=0.3).eval()
    views = two_views()["pixel_values"]
    out = model(views)
    outputs = [model.encoder(views[:, i], output_hidden_states=True) for i in (0, 1)]
    z1, z2 = (model.projector(pool_features(o, encoder, pooling)) for o in outputs)
    torch.testing.assert_close(out.projections, torch.stack([z1, z2], dim=1))
    torch.testing.assert_close(out.loss, nt_xent_loss(z1, z2, 0.3))


def test_the_projector_is_that_of_the_paper():
    layers = [type(layer) for layer in simclr(projector_num_layers=3).projector]
    block = [nn.Linear, GlobalBatchNorm, nn.ReLU]
    assert layers == [*block, *block, nn.Linear, GlobalBatchNorm]
    assert all(layer.bias is None for layer in simclr().projector if isinstance(layer, nn.Linear))


def test_both_views_are_normalised_together():
    model = simclr().train()
    projections = model(**two_views()).projections.flatten(0, 1)
    torch.testing.assert_close(projections.mean(0), torch.zeros(16), rtol=0, atol=1e-5)
    norm = model.projector[1]
    assert norm.num_batches_tracked == 1


def test_alone_the_batch_norm_is_that_of_torch():
    ours, theirs = simclr(), nn.BatchNorm2d(8)
    norm = next(module for module in ours.encoder.modules() if isinstance(module, GlobalBatchNorm))
    assert list(norm.state_dict()) == list(theirs.state_dict())
    assert isinstance(norm, nn.BatchNorm2d)  # by which transformers knows how to initialise it
    images = torch.randn(4, 8, 3, 3)
    torch.testing.assert_close(norm(images), theirs(images), rtol=0, atol=0)
    torch.testing.assert_close(norm.running_var, theirs.running_var, rtol=0, atol=0)


def test_converting_keeps_weights_and_names():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3), nn.Sequential(nn.BatchNorm1d(4)))
    weight, state = network[1].weight, {name: t.clone() for name, t in network.state_dict().items()}
    convert_batch_norm(network.eval())
    assert isinstance(network[2][0], GlobalBatchNorm) and network[1].momentum == 0.3 and not network[1].training
    assert network[1].weight is weight
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize("name", ["resnet", "convnextv2", "vit", "dinov2_with_registers", "swin"])
def test_the_exported_encoder_is_stock(name, tmp_path):
    model = simclr(ENCODERS[name]()).train()
    model(**two_views())  # moves the statistics of batch norms
    model.eval().export_encoder(tmp_path)
    stock, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {name for name in info["missing_keys"] if "pooler" not in name} == set()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model.encoder(images).last_hidden_state
        torch.testing.assert_close(stock.eval()(images).last_hidden_state, expected)
    classifier = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=3)
    assert classifier(images).logits.shape == (2, 3)
    assert torch.equal(next(classifier.base_model.parameters()), next(stock.parameters()))


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = simclr(ENCODERS["dinov2"]()).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    batch = two_views()
    torch.testing.assert_close(again(**batch).loss, model(**batch).loss, rtol=0, atol=0)
    assert not again.train().encoder.embeddings.mask_token.requires_grad


def test_a_projector_that_a_checkpoint_lacks_starts_like_a_fresh_one(tmp_path):
    model = simclr()
    state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("encoder.")}
    model.save_pretrained(tmp_path, state_dict=state)
    again = SimclrForPreTraining.from_pretrained(tmp_path).train()
    norm = again.projector[1]
    assert norm.weight.eq(1).all() and norm.running_var.eq(1).all() and norm.num_batches_tracked == 0
    for weight in (again.projector[0].weight, model.projector[0].weight):
        bound = weight.shape[1] ** -0.5
        assert 0.9 * bound < weight.abs().max() <= bound
    assert again(**two_views()).loss.isfinite()


def test_a_checkpoint_is_continued(tmp_path):
    build("resnet", seed=3).save_pretrained(tmp_path)
    model = SimclrForPreTraining.from_encoder(str(tmp_path), projector_output_dim=8)
    stock = AutoModel.from_pretrained(tmp_path)
    for name, tensor in stock.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], tensor)
    assert model.config.projector_output_dim == 8


def test_a_batch_of_one_is_explained():
    with pytest.raises(UserError, match="its batch norm needs them too, but the batch has 1 image"):
        simclr().train()(**two_views(1))
    assert simclr().eval()(**two_views(1)).loss == 0


@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (4, 1, 3, 16, 16), (4, 3, 3, 16, 16)])
def test_other_numbers_of_views_are_explained(shape):
    with pytest.raises(ValueError, match="SimCLR compares 2 views of each image: `pixel_values` has shape"):
        simclr()(torch.randn(shape))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"contrastive_temperature": 0.0}, "contrastive_temperature.*above 0, got 0"),
        ({"projector_num_layers": 0}, "projector_num_layers.*at least 1, got 0"),
        ({"pooling": "cls"}, "needs a CLS token, and a resnet has none"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        simclr(**config)


def test_encoders_of_other_things_are_refused():
    from transformers import BertConfig, ViTMAEConfig

    with pytest.raises(UserError, match="A bert is no encoder of images alone"):
        simclr(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(UserError, match="A vit_mae hides patches in every forward pass"):
        simclr(ViTMAEConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))


def test_bf16_autocast_trains():
    model = simclr(vit()).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**two_views()).loss
    loss.backward()
    assert loss.dtype == torch.float32 and all(p.grad.isfinite().all() for p in model.parameters())


def test_a_few_steps_find_the_other_view():
    """64 noisy pictures with two noisy views each: nearest neighbours of the projections become the other view."""
    model = simclr(seed=1).train()
    pictures = F.interpolate(torch.randn(64, 1, 3, 4, 4).flatten(0, 1), scale_factor=4).unflatten(0, (64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses, found = [], []
    for _ in range(30):
        views = pictures + 1.5 * torch.randn(64, 2, 3, 16, 16)
        out = model(views)
        z = F.normalize(out.projections.detach(), dim=-1)
        found.append((z[:, 0] @ z[:, 1].T).argmax(1).eq(torch.arange(64)).float().mean().item())
        losses.append(out.loss.item())
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert sum(found[-5:]) / 5 > 2 * sum(found[:2]) / 2


def test_neighbours_are_not_looked_for_in_a_queue_that_never_fills():
    model = simclr(nearest_neighbour_queue=20, predictor_hidden_dim=16).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # accumulation: nothing has moved yet
        model(**two_views(4)).loss.backward()
    optimizer.step()
    with pytest.raises(UserError, match="moved this SimclrForPreTraining.*MethodCallback"):
        model(**two_views(4))
    model.after_optimizer_step(0.5)
    model(**two_views(4))


def test_neighbours_among_earlier_images_stand_for_the_views():
    model = simclr(nearest_neighbour_queue=40, predictor_hidden_dim=32, contrastive_temperature=0.3).eval()
    views = two_views()["pixel_values"]
    out = model(views)
    z, queue = F.normalize(out.projections, dim=-1), F.normalize(model.queue, dim=-1)
    p = F.normalize(model.predictor(out.projections.flatten(0, 1)), dim=-1).unflatten(0, (6, 2))
    expected = 0.0
    for here, there in ((0, 1), (1, 0)):
        for i in range(6):
            neighbour = queue[(queue @ z[i, here]).argmax()]
            scores = torch.stack([(neighbour @ p[k, there] / 0.3).exp() for k in range(6)])
            expected = expected - (scores[i] / scores.sum()).log() / 12
    torch.testing.assert_close(out.loss, expected)


def test_the_queue_takes_in_first_views_after_the_step():
    model = simclr(nearest_neighbour_queue=10, predictor_hidden_dim=0).train()
    before = model.queue.clone()
    z1 = F.normalize(model(**two_views()).projections[:, 0].detach(), dim=-1)
    assert torch.equal(model.queue, before)  # an image does not meet itself
    model.after_optimizer_step(0.5)
    torch.testing.assert_close(model.queue[:6], z1)
    assert torch.equal(model.queue[6:], before[6:]) and model.queue_position == 6
    model.eval()(**two_views())
    model.after_optimizer_step(0.6)
    assert model.queue_position == 6
    assert model.predictor is None and not simclr().has_queue and simclr().predictor is None


def test_what_goes_with_neighbours_and_what_does_not():
    assert simclr(nearest_neighbour_queue=4).predictor[0].out_features == 4096
    for config, words in [
        ({"nearest_neighbour_queue": -1}, "is a number of projections, got -1"),
        ({"nearest_neighbour_queue": 4, "decoupled": True}, "Leave one of them out"),
        ({"predictor_hidden_dim": 8}, "Pass a `nearest_neighbour_queue` too"),
        ({"nearest_neighbour_queue": 4, "predictor_hidden_dim": -8}, "at least 0, got -8"),
    ]:
        with pytest.raises(Exception, match=words):
            simclr(**config)


def test_decoupled_it_is_the_loss_without_the_positive_in_the_denominator():
    model = simclr(decoupled=True, contrastive_temperature=0.3).train()
    out = model(**two_views())
    torch.testing.assert_close(out.loss, nt_xent_loss(*out.projections.unbind(1), 0.3, decoupled=True))
    assert simclr(decoupled=True).eval()(**two_views(1)).loss.isfinite()


def ast():
    return ASTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=8,
        frequency_stride=8, time_stride=8, max_length=32, num_mel_bins=16,
    )  # fmt: skip


def spectrograms(rows=6):
    torch.manual_seed(3)
    return {"input_values": torch.randn(rows, 1, 32, 16) + 0.3 * torch.randn(rows, 2, 32, 16)}


def test_an_encoder_of_spectrograms_takes_views_of_recordings(tmp_path):
    model = simclr(ast()).train()
    assert model.main_input_name == "input_values"
    loss = model(**spectrograms()).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    output = model.eval()(**spectrograms())
    pooled = model.encoder(spectrograms()["input_values"].flatten(0, 1)).last_hidden_state[:, 0]
    torch.testing.assert_close(output.projections.flatten(0, 1), model.projector(pooled))
    torch.testing.assert_close(model.compared_embeddings(spectrograms()), output.projections)
    model.save_pretrained(tmp_path / "whole")
    again = AutoModelForPreTraining.from_pretrained(tmp_path / "whole").eval()
    torch.testing.assert_close(again(**spectrograms()).loss, output.loss)
    model.export_encoder(tmp_path / "stock")
    stock = AutoModel.from_pretrained(tmp_path / "stock").eval()
    assert type(stock).__name__ == "ASTModel"
    torch.testing.assert_close(stock(spectrograms()["input_values"][:, 0]).last_hidden_state[:, 0], pooled[::2])
    continued = SimclrForPreTraining.from_encoder(str(tmp_path / "stock"), projector_output_dim=16)
    torch.testing.assert_close(continued.encoder.state_dict()["layernorm.weight"], stock.layernorm.weight)
    for wrong, said in (
        (two_views(), "batch has `pixel_values`, expected `input_values` of shape .batch_size, 2, num_frames"),
        ({}, "batch has nothing, expected `input_values`"),
        ({"input_values": torch.zeros(2, 3, 32, 16)}, r"`input_values` has shape \(2, 3, 32, 16\)"),
    ):
        with pytest.raises(ValueError, match=said):
            model(**wrong)


def test_other_methods_for_images_take_no_spectrograms():
    with pytest.raises(UserError, match="is no encoder of images alone"):
        ByolForPreTraining(ByolPreTrainingConfig(encoder_config=ast()))
