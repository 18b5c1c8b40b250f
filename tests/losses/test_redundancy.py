"""Losses on the statistics of a batch against their definitions, whole and in parts."""

import math

import pytest
import torch
import torch.nn.functional as F

from hfssl.losses import (
    barlow_twins_loss,
    barlow_twins_terms,
    lejepa_terms,
    sigreg_loss,
    vicreg_loss,
    vicreg_terms,
)


A = torch.tensor([[1.0, 2, 0], [0, 1, -1], [2, 0, 1]])
B = torch.tensor([[1.0, 1, 0], [1, 1, -1], [2, -1, 1]])
LOSSES = {
    "barlow_twins": lambda z1, z2, **more: barlow_twins_loss(z1, z2, 0.01, **more),
    "vicreg": vicreg_loss,
    "sigreg": lambda z1, z2, **more: sigreg_loss(torch.stack([z1, z2]), torch.eye(z1.shape[1]), **more),
}


def test_barlow_twins_has_the_value_of_its_definition():
    assert barlow_twins_loss(A, B, 0.0051).item() == pytest.approx(0.057583, abs=1e-6)
    z1, z2 = 3 + 2 * torch.randn(2, 9, 5)
    n1, n2 = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (z1, z2))
    c = n1.T @ n2 / 9
    expected = sum((c[i, j] - float(i == j)) ** 2 * (1.0 if i == j else 0.3) for i in range(5) for j in range(5))
    torch.testing.assert_close(barlow_twins_loss(z1, z2, 0.3), expected)
    assert set(barlow_twins_terms(z1, z2)) == {"invariance", "redundancy"}


def test_barlow_twins_sees_neither_lengths_nor_means():
    z1, z2 = torch.randn(2, 9, 5)
    scaled = barlow_twins_loss(z1 * torch.tensor([1.0, 2, 3, 4, 5]) + 7, 9 * z2 - 1, 0.3)
    torch.testing.assert_close(scaled, barlow_twins_loss(z1, z2, 0.3), rtol=1e-4, atol=1e-4)
    same = torch.ones(4, 3)
    assert barlow_twins_loss(same, same, 0.3).item() == pytest.approx(3)  # as many as there are dimensions


def test_vicreg_has_the_value_of_its_definition():
    assert vicreg_loss(A, B).item() == pytest.approx(12.22364, abs=1e-5)
    z1, z2 = torch.randn(2, 9, 5)
    terms = vicreg_terms(z1, z2)
    torch.testing.assert_close(terms["invariance"], (z1 - z2).square().mean())
    lacks = [F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (z1, z2)]
    torch.testing.assert_close(terms["variance"], sum(lacks) / 2)
    covariances = [torch.cov(z.T) for z in (z1, z2)]
    expected = sum(c[i, j] ** 2 / 5 for c in covariances for i in range(5) for j in range(5) if i != j)
    torch.testing.assert_close(terms["covariance"], expected)
    torch.testing.assert_close(
        vicreg_loss(z1, z2, 2, 3, 4), 2 * terms["invariance"] + 3 * terms["variance"] + 4 * terms["covariance"]
    )
    same = torch.ones(4, 3)
    assert vicreg_loss(same, same).item() == pytest.approx(25 * 0.99)


def test_sigreg_has_the_value_of_its_definition():
    assert sigreg_loss(A, torch.eye(3)).item() == pytest.approx(1.004178, abs=1e-6)
    z, directions = torch.randn(7, 5), F.normalize(torch.randn(4, 5), dim=-1)
    total, width = 0.0, 3 / 16
    for direction in directions:
        for k in range(17):
            t = k * width
            normal = math.exp(-t * t / 2)
            weight = 2 * width * normal / (2 if k in (0, 16) else 1)
            waves = torch.exp(1j * t * (z @ direction))
            total += weight * (waves.mean() - normal).abs() ** 2 * 7 / 4
    torch.testing.assert_close(sigreg_loss(z, directions), total)
    views = torch.randn(3, 7, 5)
    expected = torch.stack([sigreg_loss(view, directions) for view in views]).mean()
    torch.testing.assert_close(sigreg_loss(views, directions), expected)


def test_sigreg_tells_normal_numbers_from_others():
    directions = F.normalize(torch.randn(64, 8), dim=-1)
    normal = torch.randn(500, 8)
    found = [sigreg_loss(z, directions).item() for z in (normal, 2 * normal, normal + 1, normal[:, :1].expand(500, 8))]
    assert found[0] < 2 and min(found[1:]) > 10 * found[0]


def test_all_views_of_an_image_predict_the_mean_of_the_first_ones():
    z, directions = torch.randn(5, 7, 4), torch.eye(4)
    for num_targets in (None, 2):
        terms = lejepa_terms(z, directions, num_targets)
        expected = sum((view - z[: num_targets or 5].mean(0)).square().mean() for view in z) / 5
        torch.testing.assert_close(terms["invariance"], expected)
        torch.testing.assert_close(terms["sigreg"], sigreg_loss(z, directions))


def test_lejepa_is_that_of_lightly(monkeypatch):
    lightly = pytest.importorskip("lightly.loss")
    z, directions = torch.randn(5, 7, 4), F.normalize(torch.randn(6, 4), dim=-1)
    theirs = lightly.LeJEPALoss(lambda_param=0.05)
    monkeypatch.setattr(theirs.sigreg, "_generate_unit_vectors", lambda *_, **__: directions.T)
    terms = lejepa_terms(z, directions, num_targets=2)
    torch.testing.assert_close(
        0.05 * terms["sigreg"] + 0.95 * terms["invariance"], theirs(global_proj=z[:2], local_proj=z[2:])
    )


@pytest.mark.parametrize("name, theirs", [
    ("barlow_twins", lambda losses: losses.BarlowTwinsLoss(lambda_param=0.01)),
    ("vicreg", lambda losses: losses.VICRegLoss()),
])  # fmt: skip
def test_they_are_those_of_lightly(name, theirs):
    theirs = theirs(pytest.importorskip("lightly.loss"))
    z1, z2 = (2 + torch.randn(2, 12, 6)).unbind(0)
    torch.testing.assert_close(LOSSES[name](z1, z2), theirs(z1, z2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_they_are_made_in_full_precision(name):
    z1, z2 = torch.randn(2, 12, 6).bfloat16()
    expected = LOSSES[name](z1.float(), z2.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = LOSSES[name](z1, z2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_sample_alone_has_a_loss(name):
    z = torch.randn(1, 4, requires_grad=True)
    loss = LOSSES[name](z, z + 1)
    loss.backward()
    assert math.isfinite(loss.item()) and z.grad.isfinite().all()
