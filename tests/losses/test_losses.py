"""Losses against their definitions, written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from hfssl.losses import (
    byol_loss,
    dino_loss,
    mae_loss,
    moco_v3_loss,
    nearest_neighbours,
    nnclr_loss,
    nt_xent_loss,
    simsiam_loss,
    sinkhorn_targets,
)


A = torch.tensor([[1.0, 2, 0], [0, 1, -1], [2, 0, 1]])
B = torch.tensor([[1.0, 1, 0], [1, 1, -1], [2, -1, 1]])


def nt_xent_by_hand(z1, z2, temperature):
    """Equation 1 of the paper, anchor by anchor."""
    z = [row / row.norm() for row in (*z1, *z2)]
    total = 0.0
    for i in range(len(z)):
        positive = (i + len(z1)) % len(z)
        others = [torch.exp(z[i] @ z[k] / temperature) for k in range(len(z)) if k != i]
        total += -torch.log(torch.exp(z[i] @ z[positive] / temperature) / sum(others))
    return total / len(z)


def test_nt_xent_has_the_value_of_its_definition():
    assert nt_xent_loss(A, B, 0.5).item() == pytest.approx(0.921779, abs=1e-6)
    z1, z2 = torch.randn(2, 7, 5)
    for temperature in (0.1, 1.0):
        torch.testing.assert_close(nt_xent_loss(z1, z2, temperature), nt_xent_by_hand(z1, z2, temperature))


def test_nt_xent_does_not_depend_on_lengths_or_on_the_order_of_the_views():
    z1, z2 = torch.randn(2, 7, 5)
    loss = nt_xent_loss(z1, z2, 0.5)
    torch.testing.assert_close(nt_xent_loss(3 * z1, z2 * torch.rand(7, 1).add(0.1), 0.5), loss)
    torch.testing.assert_close(nt_xent_loss(z2, z1, 0.5), loss)
    shuffled = torch.randperm(7)
    torch.testing.assert_close(nt_xent_loss(z1[shuffled], z2[shuffled], 0.5), loss)


def test_decoupled_nt_xent_leaves_the_positive_out():
    z1, z2 = torch.randn(2, 7, 5)
    z = F.normalize(torch.cat([z1, z2]), dim=-1)
    total = 0.0
    for i in range(14):
        positive = (i + 7) % 14
        others = [torch.exp(z[i] @ z[k] / 0.3) for k in range(14) if k not in (i, positive)]
        total += (-z[i] @ z[positive] / 0.3 + torch.log(sum(others))) / 14
    torch.testing.assert_close(nt_xent_loss(z1, z2, 0.3, decoupled=True), total)
    parts = [nt_xent_loss(z1[i : i + 1], z2[i : i + 1], 0.3, z1, z2, first=i, decoupled=True) for i in range(7)]
    torch.testing.assert_close(torch.stack(parts).mean(), total)
    same = torch.ones(4, 3)
    assert nt_xent_loss(same, same, 0.5, decoupled=True).item() == pytest.approx(math.log(2 * 4 - 2))


def test_decoupled_nt_xent_is_that_of_lightly():
    lightly = pytest.importorskip("lightly.loss")
    z1, z2 = torch.randn(2, 7, 5)
    torch.testing.assert_close(nt_xent_loss(z1, z2, 0.3, decoupled=True), lightly.DCLLoss(temperature=0.3)(z1, z2))


def test_nnclr_has_the_value_of_its_definition():
    n1, n2, p1, p2 = torch.randn(4, 6, 5)
    found = nnclr_loss(n1, n2, p1, p2, 0.3)
    unit = [F.normalize(x, dim=-1) for x in (n1, n2, p1, p2)]
    expected = sum(F.cross_entropy(unit[n] @ unit[p].T / 0.3, torch.arange(6)) / 2 for n, p in ((0, 3), (1, 2)))
    torch.testing.assert_close(found, expected)
    parts = [nnclr_loss(n1[i : i + 2], n2[i : i + 2], p1, p2, 0.3, first=i) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), found)
    queue = torch.tensor([[0.1, 0.0], [0.0, 5.0], [-3.0, -3.0]])
    nearest = nearest_neighbours(torch.tensor([[2.0, 1.0], [1.0, 2.0], [-1.0, 0.0]]), queue)
    torch.testing.assert_close(nearest, F.normalize(queue, dim=-1))


def test_nt_xent_at_its_ends():
    same = torch.ones(4, 3)
    assert nt_xent_loss(same, same, 0.5).item() == pytest.approx(math.log(2 * 4 - 1))  # collapsed: chance
    apart = torch.eye(4)
    assert nt_xent_loss(apart, apart, 0.05).item() == pytest.approx(0.0, abs=1e-7)


def test_nt_xent_of_parts_is_that_of_the_whole():
    z1, z2 = torch.randn(2, 6, 5, requires_grad=True)
    whole = nt_xent_loss(z1, z2, 0.2)
    parts = [nt_xent_loss(z1[i : i + 2], z2[i : i + 2], 0.2, z1, z2, first=i) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    gradients = [torch.autograd.grad(loss, (z1, z2)) for loss in (whole, sum(parts) / 3)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_simsiam_has_the_value_of_its_definition():
    predictions, targets = torch.stack([A, B], dim=1), torch.stack([A + 1, B - 1], dim=1)
    assert simsiam_loss(predictions, targets).item() == pytest.approx(-0.598396, abs=1e-6)
    torch.testing.assert_close(simsiam_loss(3 * predictions, targets / 2), simsiam_loss(predictions, targets))
    assert simsiam_loss(predictions, predictions.flip(1)).item() == pytest.approx(-1.0)


def test_simsiam_is_that_of_lightly():
    lightly = pytest.importorskip("lightly.loss")
    predictions, targets = torch.randn(2, 5, 2, 7)
    theirs = lightly.NegativeCosineSimilarity()
    (p1, p2), (z1, z2) = predictions.unbind(1), targets.unbind(1)
    torch.testing.assert_close(simsiam_loss(predictions, targets), (theirs(p1, z2) + theirs(p2, z1)) / 2)


def test_mae_loss_has_the_value_of_its_definition():
    prediction = (torch.arange(12) / 10).view(1, 3, 4)
    masked = torch.tensor([[1, 0, 1]])
    assert mae_loss(prediction, torch.ones(1, 3, 4), masked).item() == pytest.approx(0.375, abs=1e-6)
    assert mae_loss(prediction, torch.ones(1, 3, 4), masked.bool()).item() == pytest.approx(0.375, abs=1e-6)


def test_mae_loss_sees_no_visible_patch():
    prediction, target = torch.randn(2, 3, 5, 4)
    masked = torch.rand(3, 5) < 0.5
    masked[:, 0], masked[:, 1] = True, False
    loss = mae_loss(prediction, target, masked)
    torch.testing.assert_close(loss, F.mse_loss(prediction[masked], target[masked]))
    changed = torch.where(masked[..., None], prediction, 1e6)
    torch.testing.assert_close(mae_loss(changed, target, masked), loss)


@pytest.mark.parametrize("loss", [nt_xent_loss, mae_loss])
def test_losses_are_made_in_full_precision(loss):
    first, second = torch.randn(2, 4, 6, 8)
    last = 0.1 if loss is nt_xent_loss else torch.ones(4, 6)
    if loss is nt_xent_loss:
        first, second = first[0], second[0]
    expected = loss(first.bfloat16().float(), second.bfloat16().float(), last)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(first.bfloat16(), second.bfloat16(), last)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    assert loss(first.double(), second.double(), last).dtype == torch.float64


# -- with a teacher ---------------------------------------------------------------------------------------------------


def byol_by_hand(predictions, targets):
    """Equation 2 of the paper in both directions: squared distances of unit vectors."""
    total = 0.0
    for p, t in zip(predictions, targets, strict=True):
        for i in (0, 1):
            total += (p[i] / p[i].norm() - t[1 - i] / t[1 - i].norm()).square().sum() / 2
    return total / len(predictions)


def moco_by_hand(q1, q2, k1, k2, temperature):
    """Algorithm 1 of the paper, query by query."""
    total = 0.0
    for queries, keys in ((q1, k2), (q2, k1)):
        for i, query in enumerate(queries):
            similar = torch.stack([query @ key / query.norm() / key.norm() for key in keys]) / temperature
            total += -(similar[i] - similar.exp().sum().log()) / len(queries)
    return 2 * temperature * total


def dino_by_hand(student, teacher, center, student_temperature, teacher_temperature):
    """Equation 3 of the paper with the sharpening and centring of its algorithm 1, pair by pair."""
    terms = []
    for i, t in enumerate(teacher):
        p = F.softmax((t - center) / teacher_temperature, dim=1)
        for j, s in enumerate(student):
            if i != j:
                terms.append(-(p * F.log_softmax(s / student_temperature, dim=1)).sum(1).mean())
    return sum(terms) / len(terms)


CENTER = torch.tensor([0.1, 0.2, 0.3])


def test_losses_with_a_teacher_have_the_values_of_their_definitions():
    predictions, targets = torch.stack([A, B], dim=1), torch.stack([A + 1, B - 1], dim=1)
    assert byol_loss(predictions, targets).item() == pytest.approx(0.803208, abs=1e-6)
    assert moco_v3_loss(A, B, A + 1, B - 1, 0.2).item() == pytest.approx(0.378977, abs=1e-6)
    student, teacher = torch.stack([A, B, A + B]), torch.stack([B, A])
    assert dino_loss(student, teacher, CENTER, 0.1, 0.04).item() == pytest.approx(1.655793, abs=1e-6)


def test_losses_with_a_teacher_are_their_definitions_written_out():
    torch.manual_seed(0)
    p, t = torch.randn(2, 7, 2, 5)
    torch.testing.assert_close(byol_loss(p, t), byol_by_hand(p, t))
    q1, q2, k1, k2 = torch.randn(4, 7, 5)
    torch.testing.assert_close(moco_v3_loss(q1, q2, k1, k2, 0.3), moco_by_hand(q1, q2, k1, k2, 0.3))
    for views in (2, 3, 6):
        student, teacher = torch.randn(views, 4, 9), torch.randn(2, 4, 9)
        center = torch.randn(9)
        found = dino_loss(student, teacher, center, 0.2, 0.1)
        torch.testing.assert_close(found, dino_by_hand(student, teacher, center, 0.2, 0.1))


def test_losses_with_a_teacher_at_their_ends():
    views = torch.randn(6, 2, 5)
    assert byol_loss(views, 3 * views.flip(1)).item() == pytest.approx(0.0, abs=1e-6)
    same = torch.ones(4, 3)
    assert moco_v3_loss(same, same, same, same, 0.5).item() == pytest.approx(2 * math.log(4))  # collapsed: chance
    apart = torch.eye(4)
    assert moco_v3_loss(apart, apart, apart, apart, 0.05).item() == pytest.approx(0.0, abs=1e-6)
    uniform, sharp = torch.zeros(3, 2, 8), 10 * torch.eye(8)[:2].expand(2, 2, 8)
    assert dino_loss(uniform, sharp, torch.zeros(8), 0.1, 0.04).item() == pytest.approx(math.log(8))
    agreed = 10 * torch.eye(8)[:2].expand(3, 2, 8)
    assert dino_loss(agreed, sharp, torch.zeros(8), 0.1, 0.04).item() == pytest.approx(0.0, abs=1e-6)


def sinkhorn_by_hand(logits, temperature, iterations):
    """DINOv2's: prototypes in rows, the whole scaled to the sum 1 first."""
    shares = torch.exp(logits / temperature).T
    shares = shares / shares.sum()
    prototypes, samples = shares.shape
    for _ in range(iterations):
        shares = shares / shares.sum(1, keepdim=True) / prototypes
        shares = shares / shares.sum(0, keepdim=True) / samples
    return (samples * shares).T


def test_sinkhorn_is_its_definition_written_out():
    logits = F.normalize(torch.randn(2, 9, 12), dim=-1)
    for iterations in (1, 3):
        expected = sinkhorn_by_hand(logits.flatten(0, 1).double(), 0.07, iterations).float()
        torch.testing.assert_close(sinkhorn_targets(logits, 0.07, iterations).flatten(0, 1), expected)
    targets = sinkhorn_targets(logits, 0.07, 200)
    torch.testing.assert_close(targets.sum(-1), torch.ones(2, 9))
    torch.testing.assert_close(targets.sum((0, 1)), torch.full((12,), 18 / 12))  # the same share for each


def test_sinkhorn_of_parts_is_that_of_the_whole():
    logits = F.normalize(torch.randn(6, 8), dim=-1)
    whole = sinkhorn_targets(logits, 0.05)
    sums = []  # of each iteration, as a process with all samples has them
    sinkhorn_targets(logits, 0.05, all_reduce=lambda total: sums.append(total) or total)
    assert len(sums) == 3
    part = sinkhorn_targets(logits[:2], 0.05, all_reduce=lambda total: sums.pop(0))
    torch.testing.assert_close(part, whole[:2])


def test_sinkhorn_has_no_holes():
    """Prototypes that no sample comes near to, at a temperature for which exp has no numbers left."""
    logits = torch.tensor([[1.0, -1.0, 0.9], [0.9, -1.0, 1.0]])
    targets = sinkhorn_targets(logits, 0.01)
    assert targets.isfinite().all()
    torch.testing.assert_close(targets.sum(-1), torch.ones(2))


def test_sinkhorn_of_samples_far_from_every_prototype():
    """The sum of all their exp(logits / temperature) is 0 in float32."""
    logits = torch.tensor([[0.9, 0.8, 0.7], [0.6, 0.9, 0.8], [-0.93, -0.94, -0.92]])
    targets = sinkhorn_targets(logits, 0.01)
    torch.testing.assert_close(targets, sinkhorn_by_hand(logits.double(), 0.01, 3).float(), rtol=1e-3, atol=1e-5)
    far = sinkhorn_targets(logits[2:].expand(2, -1), 0.005)
    torch.testing.assert_close(far, torch.full((2, 3), 1 / 3))  # two alike share alike


def test_moco_of_parts_is_that_of_the_whole():
    q1, q2 = torch.randn(2, 6, 5, requires_grad=True)
    k1, k2 = torch.randn(2, 6, 5)
    whole = moco_v3_loss(q1, q2, k1, k2, 0.2)
    parts = [moco_v3_loss(q1[i : i + 2], q2[i : i + 2], k1, k2, 0.2, first=i) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    gradients = [torch.autograd.grad(loss, (q1, q2)) for loss in (whole, sum(parts) / 3)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_queue_adds_negatives():
    q1, q2, k1, k2 = torch.randn(4, 3, 5)
    queue = torch.randn(4, 5)
    expected = 0.0
    for q, k in ((q1, k2), (q2, k1)):
        logits = F.normalize(q, dim=1) @ F.normalize(torch.cat([k, queue]), dim=1).T / 0.2
        expected = expected + 2 * 0.2 * F.cross_entropy(logits, torch.arange(3))
    torch.testing.assert_close(moco_v3_loss(q1, q2, k1, k2, 0.2, queue=queue), expected)


def test_a_queue_is_not_rounded_to_the_precision_of_the_keys():
    inputs = [torch.randn(6, 8).bfloat16() for _ in range(4)]
    queue = inputs[0].float() + 0.01 * torch.randn(6, 8)  # so near that it decides
    expected = moco_v3_loss(*(x.float() for x in inputs), 0.1, queue=queue)
    with torch.autocast("cpu", torch.bfloat16):
        value = moco_v3_loss(*inputs, 0.1, queue=queue)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss, shapes, rest", [
    (byol_loss, [(6, 2, 8)] * 2, ()),
    (moco_v3_loss, [(6, 8)] * 4, (0.1,)),
    (dino_loss, [(4, 6, 8), (2, 6, 8)], (torch.zeros(8), 0.1, 0.04)),
], ids=["byol", "moco", "dino"])  # fmt: skip
def test_losses_with_a_teacher_are_made_in_full_precision(loss, shapes, rest):
    inputs = [torch.randn(shape) for shape in shapes]
    expected = loss(*(x.bfloat16().float() for x in inputs), *rest)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*(x.bfloat16() for x in inputs), *rest)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)
    assert loss(*(x.double() for x in inputs), *rest).dtype == torch.float64
