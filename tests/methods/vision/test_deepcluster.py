"""DeepCluster: its loss over heads and crops, its clusters, and what it says where it cannot."""

import math
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contract import Contract
from tiny_vision import ENCODERS, crops, resnet, two_layers, two_views, vit

from hfssl import DeepclusterForPreTraining, DeepclusterPreTrainingConfig
from hfssl.errors import UserError
from hfssl.losses import deepcluster_loss
from hfssl.methods.vision import deepcluster as module
from hfssl.modeling import corpus_targets
from hfssl.modeling.corpus_targets import spherical_kmeans, target_passes_due, whitened


# Swin's windows do not fit the small crops, and DINOv3's convolutions halve all of them to nothing
FITTING = [name for name in ENCODERS if name not in ("swin", "dinov3_convnext")]
HEAD = {
    "projector_hidden_dim": 16, "projector_output_dim": 8, "num_heads": 2, "num_prototypes": 4, "num_clusterings": 2,
}  # fmt: skip


def with_targets(rows=6):
    return {**crops(rows), "targets": torch.arange(2 * rows).view(rows, 2) % 4}


def one_cluster(change):
    """Every image is in the first cluster."""

    def kmeans(vectors, *args, **kwargs):
        centroids, clusters = spherical_kmeans(vectors, *args, **kwargs)
        return centroids, np.zeros_like(clusters)

    change(module, "spherical_kmeans", kmeans)
    return {}


CONTRACT = Contract(
    encoder=two_layers,
    batch=with_targets,
    settings=HEAD,
    accumulation=False,
    why_not="Batch norm in the head sees the images of one accumulation step.",
    variants={"resnet": (resnet, {}), "first-version": (resnet, {"classifier": "linear"})},
    collapse=one_cluster,
)


def model_of(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    return DeepclusterForPreTraining(
        DeepclusterPreTrainingConfig(encoder_config=encoder or vit(), **{**HEAD, **config})
    )


def test_the_defaults_are_the_papers():
    config = DeepclusterPreTrainingConfig()
    assert (config.num_heads, config.num_prototypes, config.student_temperature) == (3, 3000, 0.1)
    assert (config.projector_hidden_dim, config.projector_output_dim, config.kmeans_iterations) == (2048, 128, 10)


@pytest.mark.parametrize("encoder", ["vit", "resnet"])
def test_the_loss_is_that_of_the_paper_over_all_crops_and_heads(encoder):
    """One crop after the other through encoder and projector, head by head."""
    model = model_of(ENCODERS[encoder]()).eval()
    batch = with_targets()
    options = {"interpolate_pos_encoding": True} if encoder == "vit" else {}
    terms = []
    for view in [*batch["pixel_values"].unbind(1), *batch["local_pixel_values"].unbind(1)]:
        outputs = model.encoder(view, **options)
        feature = outputs.last_hidden_state[:, 0] if encoder == "vit" else outputs.pooler_output.flatten(1)
        z = F.normalize(model.branch.projector(feature), dim=-1)
        for head in range(2):
            log_shares = F.log_softmax(z @ model.prototypes[head].T / 0.1, dim=-1)
            terms.append(-log_shares[range(6), batch["targets"][:, head]].mean())
    assert len(terms) == 5 * 2
    torch.testing.assert_close(model(**batch).loss, torch.stack(terms).mean())


def test_an_image_without_a_cluster_is_left_out():
    logits = torch.randn(2, 3, 5, 4, requires_grad=True)  # heads, crops, images, clusters
    targets = torch.arange(10).view(5, 2) % 4
    targets[1] = -100
    rest = [0, 2, 3, 4]
    loss = deepcluster_loss(logits, targets, 0.1)
    torch.testing.assert_close(loss, deepcluster_loss(logits[:, :, rest], targets[rest], 0.1))
    none = deepcluster_loss(logits, torch.full((5, 2), -100), 0.1)
    none.backward()
    assert none == 0.0 and not logits.grad.any()
    assert deepcluster_loss(torch.zeros(2, 3, 5, 4), targets, 0.1).item() == pytest.approx(math.log(4))


def test_an_image_of_weight_2_counts_as_two():
    logits, targets = torch.randn(2, 3, 4, 5), torch.tensor([[0, 1], [2, 3], [4, 0], [1, 2]])
    weights = torch.tensor([[2.0, 2.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    twice = [0, 0, 1, 2]
    expected = deepcluster_loss(logits[:, :, twice], targets[twice], 1.0)
    torch.testing.assert_close(deepcluster_loss(logits, targets, 1.0, weights), expected)


@pytest.mark.parametrize("name", FITTING)
def test_any_encoder_and_every_parameter_learns_but_no_prototype(name):
    model = model_of(ENCODERS[name]()).train()
    loss = model(**with_targets()).loss
    loss.backward()
    assert loss.isfinite()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert "prototypes" in model.state_dict() and "prototypes" not in dict(model.named_parameters())


# -- clusters ---------------------------------------------------------------------------------------------------------


def test_directions_around_a_few_poles_are_their_clusters():
    generator = np.random.default_rng(0)
    poles = np.eye(4, 8, dtype=np.float32)
    which = generator.integers(0, 4, 200)
    vectors = poles[which] + 0.1 * generator.standard_normal((200, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    # the seed matters: two first centroids from one pole would share it
    tries = [spherical_kmeans(vectors, 4, 20, seed) for seed in range(5)]
    centroids, clusters = max(tries, key=lambda found: (vectors * found[0][found[1]]).sum())
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1.0, rtol=1e-5)
    names = centroids.argmax(1)  # of each centroid, its pole
    assert sorted(names) == [0, 1, 2, 3] and (names[clusters] == which).all()
    again = spherical_kmeans(vectors, 4, 20, 0, rows_at_once=7)
    assert np.array_equal(again[0], tries[0][0]) and np.array_equal(again[1], tries[0][1])


def test_heads_cluster_a_large_crop_each_with_a_seed_of_its_own():
    model = model_of(num_heads=3, num_prototypes=5)
    projections = F.normalize(torch.randn(40, 2, 8), dim=-1).half().numpy()
    columns, tensors = model.make_targets({"projections": projections}, seed=7)
    assert columns["targets"].shape == (40, 3) and tensors["prototypes"].shape == (3, 5, 8)
    for head in range(3):
        vectors = F.normalize(torch.from_numpy(projections[:, head % 2]).float(), dim=-1).numpy()
        nearest = (vectors @ tensors["prototypes"][head].T).argmax(1)
        assert np.array_equal(columns["targets"][:, head], nearest)
    assert not np.array_equal(columns["targets"][:, 0], columns["targets"][:, 2])
    blank = model.no_targets(40)
    assert {name: (each.shape, each.numpy().dtype) for name, each in blank.items()} == {
        name: (each.shape, each.dtype) for name, each in columns.items()
    }
    model.take_targets({"prototypes": torch.from_numpy(tensors["prototypes"])}, 3)
    assert model.target_passes == 3 and np.array_equal(model.prototypes.numpy(), tensors["prototypes"])


def test_heads_are_clustered_at_once_with_the_same_result_as_one_after_the_other(monkeypatch):
    model = model_of(num_heads=3, num_prototypes=5)
    projections = F.normalize(torch.randn(300, 2, 8), dim=-1).half().numpy()
    together = threading.Barrier(3)  # breaks where only one is at work

    def kmeans(*args):
        if num_cores > 1:
            together.wait(timeout=60)
        return spherical_kmeans(*args)

    monkeypatch.setattr(module, "spherical_kmeans", kmeans)
    found = []
    for num_cores in (1, 8):
        monkeypatch.setattr(corpus_targets, "num_cores", lambda n=num_cores: n)
        found.append(model.make_targets({"projections": projections}, seed=7))
    for alone, at_once in zip(*found, strict=True):
        assert all(np.array_equal(values, at_once[name]) for name, values in alone.items())


def test_clusters_are_made_at_the_start_and_evenly_over_the_run():
    due = [target_passes_due(step / 12, 4) for step in range(13)]
    assert due == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4]
    assert [target_passes_due(step / 300, 300) for step in range(300)] == list(range(1, 301))


def test_in_evaluation_an_image_has_the_nearest_prototypes():
    model = model_of().eval()
    batch = crops()
    out = model(**batch)
    z = F.normalize(model.compared_embeddings(batch), dim=-1)
    expected = torch.stack([(z[:, head] @ model.prototypes[head].T).argmax(-1) for head in range(2)], dim=1)
    assert torch.equal(out.targets, expected)
    torch.testing.assert_close(out.loss, model(**batch, targets=expected).loss)


def test_clusters_of_other_images_raise_the_loss_unless_all_are_in_the_same():
    model = model_of(resnet()).eval()
    images = torch.randn(12, 1, 3, 16, 16).expand(-1, 2, -1, -1, -1)
    with torch.no_grad():
        z = F.normalize(model.compared_embeddings({"pixel_values": images[:4]})[:, 0], dim=-1)
    model.prototypes.copy_(z.expand(2, -1, -1))
    assert model.target_margin({"pixel_values": images}).mean() > 0.005
    same = {"pixel_values": images[:1].expand(12, -1, -1, -1, -1)}
    torch.testing.assert_close(model.target_margin(same), torch.zeros(12), atol=1e-6, rtol=0)


# -- the first version ------------------------------------------------------------------------------------------------


def test_the_first_version_clusters_whitened_features_and_learns_a_new_layer():
    model = model_of(resnet(), classifier="linear", num_heads=1, num_prototypes=3, pca_dim=5)
    assert "prototypes" not in model.state_dict() and model.classifiers[0].weight.shape == (3, 16)
    features = torch.randn(60, 2, 16) * torch.linspace(0.1, 9.0, 16)
    columns, tensors = model.make_targets({"projections": features.half().numpy()}, seed=3)
    assert {name: tuple(each.shape) for name, each in model.no_targets(60).items()} == {
        name: each.shape for name, each in columns.items()
    }
    components = whitened(features[:, 0].half().float().numpy(), 5)
    np.testing.assert_allclose(np.cov(components.T), np.eye(5), atol=1e-3)
    directions = components / np.linalg.norm(components, axis=1, keepdims=True)
    assert np.array_equal(columns["targets"][:, 0], spherical_kmeans(directions, 3, 10, 3)[1])
    # every cluster counts the same, and an image 1 on average
    weights = [columns["target_weights"][columns["targets"] == cluster].sum() for cluster in range(3)]
    np.testing.assert_allclose(weights, [20.0] * 3, rtol=1e-5)
    model.take_targets({name: torch.from_numpy(values) for name, values in tensors.items()}, 1)
    layer = model.classifiers[0]
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.3) and not layer.bias.any()
    batch = {**two_views(), "targets": torch.tensor([[0], [1], [2], [0], [1], [-100]])}
    loss = model.train()(**batch, target_weights=torch.ones(6, 1)).loss
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3), rel=0.1)
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


# -- what it says -----------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_say_its_clusters_is_explained():
    with pytest.raises(UserError, match="does not say which ones its images are in. Train it with `SSLTrainer`"):
        model_of().train()(**two_views())


def test_fewer_images_than_clusters_are_explained():
    with pytest.raises(UserError, match="30 images cannot be in 40 clusters. Pass `--num_prototypes 3` or fewer"):
        model_of(num_prototypes=40).make_targets({"projections": np.ones((30, 2, 8), np.float16)}, seed=0)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"student_temperature": 0.0}, "student_temperature.*above 0, got 0"),
        ({"num_heads": 0}, "num_heads.*at least 1, got 0"),
        ({"num_prototypes": 1}, "num_prototypes.*at least 2, got 1"),
        ({"num_clusterings": 0}, "num_clusterings.*at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        model_of(**config)
