"""Cross-entropy over a vocabulary without a float32 copy of all logits."""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


# Numbers that are in float32 at a time. On a CPU 2 MB, which stay in the cache of a core; on a GPU 128 MB, so that it
# gets few kernels and has work in each.
_PIECE = 1 << 19
_PIECE_ON_GPU = 1 << 25


def cross_entropy_sum(logits: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
    """`F.cross_entropy(logits.float(), labels, reduction="sum")`, some rows at a time.

    The float32 copy of the logits, their log-softmax and its gradient are the largest tensors of a step: five to seven
    times the logits in half precision. Only the logits and their gradient are left. On a CPU it is also faster, since
    that memory is new in each step and takes longer to write than the arithmetic.

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
    on_cpu = logits.device.type == "cpu"
    piece = _PIECE if on_cpu else _PIECE_ON_GPU
    # few logits cost a GPU little memory, and the compiler fuses better than this and would unroll the loop
    if torch.compiler.is_compiling() or not on_cpu and logits.numel() <= piece:
        return F.cross_entropy(logits.float(), labels, reduction="sum")
    return _CrossEntropySum.apply(logits, labels, piece)


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: torch.Tensor, labels: torch.LongTensor, piece: int) -> torch.Tensor:
        ctx.rows = max(1, piece // logits.shape[1])
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
        return grad_logits, None, None
