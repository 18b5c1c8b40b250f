"""CKA against another way to count, and what it must not depend on."""

import itertools

import numpy as np
import pytest
import torch

from hfssl.functional.similarity import linear_cka, unbiased_hsic


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cka(first, second, size=None):
    size = size or len(first)
    return float(linear_cka([([a], [b]) for a, b in zip(first.split(size), second.split(size), strict=True)]))


def test_hsic_is_the_mean_over_all_four_different_samples():
    """Its definition as a U-statistic: with i, j, q, r all different, k_ij (l_ij + l_qr - 2 l_iq)."""
    x, y = normal(6, 3), normal(6, 2, seed=1)
    k, l = (x @ x.T).numpy(), (y @ y.T).numpy()  # noqa: E741
    terms = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in itertools.permutations(range(6), 4)]
    assert float(unbiased_hsic(x @ x.T, y @ y.T)) == pytest.approx(np.mean(terms))


def test_it_is_the_same_for_rotated_scaled_and_shifted_features():
    x = normal(40, 6)
    rotation = torch.linalg.qr(normal(6, 6, seed=2)).Q
    assert cka(x, 3 * x @ rotation + 100) == pytest.approx(1, abs=1e-9)
    y = x + normal(40, 6, seed=3)
    assert cka(x @ rotation, y) == pytest.approx(cka(x, y), abs=1e-9) and 0.2 < cka(x, y) < 0.9
    # not for any invertible map: directions of large variance count more
    assert cka(x, x * torch.tensor([10.0, 1, 1, 1, 1, 1])) < 0.9


def test_many_samples_give_what_the_paper_writes():
    """The ratio of norms of Kornblith et al., Section 3: biased, which many samples of few dimensions do not show."""
    x = normal(800, 4)
    y = x @ normal(4, 5, seed=4) + normal(800, 5, seed=5)
    a, b = x - x.mean(0), y - y.mean(0)
    biased = (b.T @ a).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())
    assert cka(x, y) == pytest.approx(float(biased), abs=1e-2)
    assert cka(x, y, size=100) == pytest.approx(float(biased), abs=3e-2)


def test_wide_layers_that_have_nothing_in_common_are_not_alike():
    x, y = normal(600, 300), normal(600, 300, seed=6)
    assert abs(cka(x, y, size=60)) < 0.05
    a, b = x[:60] - x[:60].mean(0), y[:60] - y[:60].mean(0)
    assert (b.T @ a).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()) > 0.7  # what the bias would make of it


def test_a_row_for_each_layer_of_the_one_and_a_column_for_each_of_the_other():
    layers, others = [normal(30, d, seed=d) for d in (2, 3)], [normal(30, d, seed=d) for d in (3, 4, 2)]
    found = linear_cka([(layers, others)])
    assert found.shape == (2, 3)
    assert [float(found[0, 2]), float(found[1, 0])] == pytest.approx([1, 1])
    assert torch.isnan(linear_cka([([torch.ones(9, 2)], [normal(9, 2)])])).all()
    with pytest.raises(ValueError, match="4 samples in a batch, got 3"):
        linear_cka([([normal(3, 2)], [normal(3, 2)])])
