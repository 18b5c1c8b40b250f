"""Losses of patches and of the spread of features against their definitions, written out, and against lightly's."""

import math

import pytest
import torch
import torch.nn.functional as F

from hfssl.losses import gram_loss, ibot_loss, koleo_loss, sinkhorn_targets


A = torch.tensor([[1.0, 2, 0], [0, 1, -1], [2, 0, 1]])
B = torch.tensor([[1.0, 1, 0], [1, 1, -1], [2, -1, 1]])
IMAGES = torch.tensor([0, 0, 1])


def koleo_by_hand(features):
    rows = [row / row.norm() for row in features]
    nearest = [min((row - other).norm() for other in rows if other is not row) for row in rows]
    return -sum(torch.log(distance) for distance in nearest) / len(rows)


def test_the_values_of_the_definitions():
    assert koleo_loss(A).item() == pytest.approx(0.072201, abs=1e-6)
    assert ibot_loss(A, B.softmax(-1), IMAGES, 2, 0.1).item() == pytest.approx(4.968998, abs=1e-5)
    assert ibot_loss(A, B.softmax(-1), IMAGES, 4, 0.1).item() == pytest.approx(2.484499, abs=1e-5)
    assert gram_loss(A[None], B[None]).item() == pytest.approx(0.032503, abs=1e-6)


def test_ibot_is_a_mean_over_the_patches_of_an_image_and_over_all_images():
    torch.manual_seed(0)
    student, teacher = torch.randn(7, 5), torch.randn(7, 5).softmax(-1)
    images = torch.tensor([3, 0, 3, 3, 0, 1, 3])
    of_images = []
    for image in range(6):
        terms = [
            -(t * F.log_softmax(s / 0.2, -1)).sum()
            for s, t, i in zip(student, teacher, images, strict=True)
            if i == image
        ]
        of_images.append(sum(terms) / len(terms) if terms else torch.zeros(()))
    torch.testing.assert_close(ibot_loss(student, teacher, images, 6, 0.2), sum(of_images) / 6)
    uniform = ibot_loss(torch.zeros(7, 5), teacher, images, 6, 0.1)
    assert uniform.item() == pytest.approx(math.log(5) * 3 / 6)


def test_rows_that_fill_up_a_batch_change_nothing():
    student = A.clone().requires_grad_()
    more = torch.cat([student, student[:1], student[1:2]])
    filled = torch.cat([B.softmax(-1), torch.zeros(2, 3)])
    loss = ibot_loss(more, filled, torch.tensor([0, 0, 1, 4, 4]), 4, 0.1)
    torch.testing.assert_close(loss, ibot_loss(student, B.softmax(-1), IMAGES, 4, 0.1))
    alone = torch.autograd.grad(ibot_loss(student, B.softmax(-1), IMAGES, 4, 0.1), student)
    torch.testing.assert_close(torch.autograd.grad(loss, student), alone)
    nothing = ibot_loss(student, B.softmax(-1), torch.tensor([4, 4, 4]), 4, 0.1)
    assert nothing.item() == 0.0 and torch.autograd.grad(nothing, student)[0].eq(0).all()


def test_they_are_those_of_lightly():
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    torch.manual_seed(0)
    features = torch.randn(9, 6)
    torch.testing.assert_close(koleo_loss(features), loss.KoLeoLoss()(features))
    mask = torch.rand(5, 3, 3) < 0.4
    mask[2] = False
    number, index = int(mask.sum()), mask.flatten(1).nonzero()[:, 0]
    student, teacher = torch.randn(number, 12), torch.randn(number, 12)
    theirs = loss.IBOTPatchLoss(output_dim=12, teacher_temp=0.07, student_temp=0.1)(teacher, student, mask)
    torch.testing.assert_close(ibot_loss(student, (teacher / 0.07).softmax(-1), index, 5, 0.1), theirs)


def test_koleo_is_its_definition_and_has_a_gradient_where_features_are_the_same():
    torch.manual_seed(0)
    features = torch.randn(8, 5)
    torch.testing.assert_close(koleo_loss(features), koleo_by_hand(features))
    torch.testing.assert_close(koleo_loss(features * torch.rand(8, 1).add(0.1)), koleo_loss(features))
    same = torch.ones(3, 4, requires_grad=True)
    loss = koleo_loss(same)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-8), rel=1e-4) and same.grad.isfinite().all()
    with pytest.raises(ValueError, match="at least 2 features, got 1"):
        koleo_loss(torch.ones(1, 4))


def test_gram_compares_how_alike_patches_are_and_not_what_they_are():
    torch.manual_seed(0)
    patches = torch.randn(2, 6, 5)
    turned = patches @ torch.linalg.qr(torch.randn(5, 5))[0] * torch.rand(2, 6, 1).add(0.1)
    assert gram_loss(patches, turned).item() == pytest.approx(0.0, abs=1e-10)
    wider = torch.randn(2, 6, 9)
    expected = 0.0
    for mine, theirs in zip(patches, wider, strict=True):
        mine, theirs = (F.normalize(x, dim=-1) for x in (mine, theirs))
        expected += (mine @ mine.T - theirs @ theirs.T).square().mean() / 2  # negative ones as they are
    torch.testing.assert_close(gram_loss(patches, wider), expected)


def test_sinkhorn_shares_prototypes_among_those_that_count():
    torch.manual_seed(0)
    logits = F.normalize(torch.randn(7, 5), dim=-1)
    counts = torch.tensor([True, False, True, True, False, True, True])
    found = sinkhorn_targets(logits, 0.1, counts=counts)
    torch.testing.assert_close(found[counts], sinkhorn_targets(logits[counts], 0.1))
    assert found.isfinite().all()


@pytest.mark.parametrize("loss, inputs", [
    (koleo_loss, (A,)),
    (lambda a, b: ibot_loss(a, b.float(), IMAGES, 2, 0.1), (A, B.softmax(-1))),
    (gram_loss, (A[None], B[None])),
], ids=["koleo", "ibot", "gram"])  # fmt: skip
def test_they_are_made_in_full_precision(loss, inputs):
    expected = loss(*(x.bfloat16().float() for x in inputs))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*(x.bfloat16() for x in inputs))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)
