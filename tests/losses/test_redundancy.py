"""Losses on the statistics of a batch against their definitions, whole and in parts."""

import math

import pytest
import torch
import torch.nn.functional as F

from hfssl.losses import barlow_twins_loss, barlow_twins_terms, vicreg_loss, vicreg_terms


A = torch.tensor([[1.0, 2, 0], [0, 1, -1], [2, 0, 1]])
B = torch.tensor([[1.0, 1, 0], [1, 1, -1], [2, -1, 1]])
LOSSES = {"barlow_twins": lambda z1, z2, **more: barlow_twins_loss(z1, z2, 0.01, **more), "vicreg": vicreg_loss}


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
