"""Losses that compare all with all, by chunks: the value and the gradient of the whole, in the memory of a chunk."""

import pytest
import torch
import torch.nn.functional as F

from hfssl.losses import chunks, clip_loss, moco_v3_loss, nnclr_loss, nt_xent_loss, siglip_loss
from hfssl.losses.chunks import sum_over_chunks


NUMBER, DIM = 40, 4


def unit(tensor):
    return F.normalize(tensor, dim=-1)


LOSSES = {
    "clip": lambda a, b: clip_loss(unit(a), unit(b), 10.0),
    "siglip": lambda a, b: siglip_loss(unit(a), unit(b), 10.0, -5.0),
    "simclr": lambda a, b: nt_xent_loss(a, b, 0.1),
    "decoupled": lambda a, b: nt_xent_loss(a, b, 0.1, decoupled=True),
    "nnclr": lambda a, b: nnclr_loss(a, b, b, a, 0.1),
    "moco": lambda a, b: moco_v3_loss(a, b, b.detach(), a.detach(), 0.2, queue=torch.eye(DIM)),
}


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The numbers of the largest tensor that an operation made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_value_and_gradient_are_those_of_the_whole_in_the_memory_of_a_chunk(loss, monkeypatch):
    torch.manual_seed(0)
    inputs = [torch.randn(NUMBER, DIM, requires_grad=True) for _ in range(2)]
    found = []
    for similarities, fewest in ((2**20, 256), (NUMBER * 5, 3)):
        monkeypatch.setattr(chunks, "_SIMILARITIES", similarities)
        monkeypatch.setattr(chunks, "_FEWEST_ANCHORS", fewest)
        with Largest() as largest:
            value = loss(*inputs)
            gradients = torch.autograd.grad(value, inputs)
        found.append((value, *gradients, largest.numbers))
    (*whole, all_numbers), (*chunked, numbers) = found
    assert numbers < all_numbers / 3 and all_numbers >= NUMBER**2
    torch.testing.assert_close(chunked, whole)


def test_a_chunk_has_about_a_million_similarities(monkeypatch):
    sizes = []

    def count(anchors):
        sizes.append(len(anchors))
        return anchors.sum()

    rows = torch.zeros(1100, 1)
    for num_candidates in (100, 1024, 2048, 65_536):
        sizes.clear()
        sum_over_chunks(count, [rows], num_candidates=num_candidates)
        assert sizes[0] == {100: 1100, 1024: 1024, 2048: 512, 65_536: 256}[num_candidates]
        assert sum(sizes) == 1100
