"""Cross-entropy over a vocabulary without a float32 copy of all logits."""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


# Numbers that are in float32 at a time: 2 MB, which stay in the cache of a CPU core.
_PIECE = 1 << 19


def cross_entropy_sum(logits: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
    """`F.cross_entropy(logits.float(), labels, reduction="sum")`, on a CPU some rows at a time.

    The float32 copy of the logits, their log-softmax and its gradient are the largest tensors of a step, and their
    memory is new in each: to write them takes longer than the arithmetic. Only the logits and their gradient are left.

    Args:
        logits (`torch.Tensor` of shape `(num_targets, vocab_size)`):
            In any floating-point type; softmax and sum are made in float32, the gradient has the type of the logits.
        labels (`torch.LongTensor` of shape `(num_targets,)`):
            The right tokens.

    Returns:
        `torch.Tensor` of shape `()`, in float32.

    Example:

    ```python
    >>> cross_entropy_sum(torch.zeros(3, 10), torch.tensor([1, 2, 3])).item()  # 3 log(10)
    6.907755374908447
    ```
    """
    # a GPU would wait for many small kernels, and the compiler fuses better than this and would unroll the loop
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        return F.cross_entropy(logits.float(), labels, reduction="sum")
    return _CrossEntropySum.apply(logits, labels)


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
        ctx.rows = max(1, _PIECE // logits.shape[1])
        log_normalizers = torch.cat([piece.float().logsumexp(1) for piece in logits.split(ctx.rows)])
        ctx.save_for_backward(logits, labels, log_normalizers)
        return (log_normalizers - logits.gather(1, labels[:, None]).squeeze(1)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: torch.Tensor):
        logits, labels, log_normalizers = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        for start in range(0, len(labels), ctx.rows):
            rows = slice(start, start + ctx.rows)
            # d loss / d logits = softmax - one-hot; float32, as log_normalizers are
            gradient = (logits[rows] - log_normalizers[rows, None]).exp_()
            gradient.scatter_add_(1, labels[rows, None], gradient.new_full((len(gradient), 1), -1.0))
            # scaled before it is rounded to the type of the logits, as autograd would do it
            grad_logits[rows] = gradient.mul_(grad_loss)
        return grad_logits, None
