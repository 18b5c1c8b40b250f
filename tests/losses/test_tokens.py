"""Cross-entropy in pieces is cross-entropy, and so is its gradient."""

import pytest
import torch
import torch.nn.functional as F

from hfssl.losses import tokens as cross_entropy
from hfssl.losses.tokens import cross_entropy_sum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_targets", [0, 1, 7, 40])
def test_value_and_gradient(dtype, num_targets, monkeypatch):
    monkeypatch.setattr(cross_entropy, "_PIECE", 700)  # 7 rows at a time
    logits = (5 * torch.randn(num_targets, 100)).to(dtype).requires_grad_()
    same = logits.detach().clone().requires_grad_()
    labels = torch.randint(100, (num_targets,))
    loss = cross_entropy_sum(logits, labels)
    expected = F.cross_entropy(same.float(), labels, reduction="sum")
    torch.testing.assert_close(loss, expected)
    (loss / 3).backward()
    (expected / 3).backward()
    torch.testing.assert_close(logits.grad, same.grad)
    assert logits.grad.dtype == dtype


def test_logits_are_left_as_they_are():
    logits = torch.randn(4, 10, requires_grad=True)
    before = logits.detach().clone()
    cross_entropy_sum(logits, torch.zeros(4, dtype=torch.long)).backward()
    assert torch.equal(logits, before)
