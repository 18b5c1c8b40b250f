"""Losses of clustering: against the equations, against lightly's, and where no view says anything."""

import math

import pytest
import torch
import torch.nn.functional as F

from hfssl.losses import swav_codes, swav_loss


def similarities(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.cosine_similarity(
        torch.randn(*shape[:-1], 1, 6, generator=generator), torch.randn(shape[-1], 6, generator=generator), dim=-1
    )


def codes_by_hand(logits, epsilon, iterations):
    """Q of equation 5, prototypes by images, as algorithm 1 scales its rows and its columns in turn."""
    q = (logits / epsilon).exp().T
    q = q / q.sum()
    num_prototypes, num_images = q.shape
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / num_prototypes
        q = q / q.sum(0, keepdim=True) / num_images
    return (q * num_images).T


def test_the_loss_is_the_sum_over_pairs_of_the_paper():
    logits = similarities(5, 7, 4)
    terms = []
    for i in range(2):
        code = codes_by_hand(logits[i], 0.05, 3)
        terms += [-(code * F.log_softmax(logits[v] / 0.1, dim=-1)).sum(-1).mean() for v in range(5) if v != i]
    torch.testing.assert_close(swav_loss(logits, 0.1, 0.05), torch.stack(terms).mean())


@pytest.mark.parametrize("queue", [0, 9])
@pytest.mark.parametrize("small", [0, 3])
def test_it_is_the_loss_of_lightly(small, queue):
    lightly = pytest.importorskip("lightly.loss")
    logits = similarities(2 + small, 7, 4).requires_grad_()
    queue_logits = similarities(2, queue, 4, seed=1) if queue else None
    theirs = lightly.SwaVLoss(temperature=0.2, sinkhorn_iterations=4, sinkhorn_epsilon=0.07)
    expected = theirs(list(logits[:2]), list(logits[2:]), None if queue_logits is None else list(queue_logits))
    found = swav_loss(logits, 0.2, 0.07, 4, queue_logits=queue_logits)
    torch.testing.assert_close(found, expected.squeeze())
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_every_prototype_gets_the_same_share_of_each_crop_alone():
    logits = similarities(2, 30, 5) + torch.tensor([0.3, 0.0, 0.0, 0.0, 0.0])  # that all would like best
    codes = swav_codes(logits.clamp(max=1.0), 0.05, iterations=50)
    torch.testing.assert_close(codes.mean(1), torch.full((2, 5), 1 / 5), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(codes[:1], swav_codes(logits[:1].clamp(max=1.0), 0.05, iterations=50))


def test_a_queue_takes_its_share():
    """What the earlier images take of a prototype is not left for those of the batch."""
    first, second = torch.eye(2)
    batch = torch.stack([first, second]).expand(2, 2, 2)
    queue = first.expand(2, 6, 2)
    alone, beside = swav_codes(batch, 0.5, 20), swav_codes(batch, 0.5, 20, queue_logits=queue)
    assert beside.shape == alone.shape
    assert (beside[:, :, 0] < 0.7 * alone[:, :, 0]).all()


def test_chance_and_no_gradient_of_codes():
    assert swav_loss(torch.zeros(4, 3, 5), 0.1, 0.05).item() == pytest.approx(math.log(5))
    assert not swav_codes(similarities(2, 3, 5).requires_grad_(), 0.05).requires_grad
