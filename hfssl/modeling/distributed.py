"""What processes of one run compute together: negatives and batch statistics of the whole batch, with gradients.

DDP averages the gradients of the processes. So when each process returns its share of a loss, such as the mean over
its own samples, the gradient is that of the mean of the shares; what crosses the processes must send back the *sum* of
what all of them ask for. Then 2 processes of N samples have the gradient of 1 process of 2N.
"""

import torch
import torch.distributed as dist
from torch import nn

from ..losses import at_least_float32


def world_size() -> int:
    """Processes of this run; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_with_grad(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of all processes in the order of their ranks, as part of the graph.

    Args:
        tensor (`torch.Tensor` of shape `(batch_size, ...)`):
            The same shape in each process.

    Returns:
        `torch.Tensor` of shape `(world_size * batch_size, ...)`; `tensor` itself in a single process.
    """
    return _Gather.apply(tensor) if world_size() > 1 else tensor


def all_reduce_with_grad(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, as part of the graph."""
    return _Sum.apply(tensor) if world_size() > 1 else tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.contiguous()
        ctx.num_rows = len(tensor)
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.narrow(0, rank() * ctx.num_rows, ctx.num_rows)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.forward(ctx, gradient)


class GlobalBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, for inputs of any number of dimensions.

    Its state is that of `nn.BatchNorm1d` and `nn.BatchNorm2d`. On a GPU it computes what `nn.SyncBatchNorm` does; that
    class refuses a CPU, and so does DDP for it. In a single process and in evaluation mode it is plain batch norm.
    [`forward`] can be told which rows the statistics are of.
    """

    process_group = None
    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, input: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
        """Normalised rows.

        Args:
            input (`torch.Tensor` of shape `(n, num_features, ...)`):
                Rows.
            counts (`torch.BoolTensor` of shape `(n,)`, *optional*):
                Which rows the statistics of a batch are of; the others, which fill it up, are normalised by them. All
                are when left out.
        """
        if not self.training or (counts is None and world_size() == 1):
            return super().forward(input)
        if counts is None and input.device.type != "cpu":
            return nn.SyncBatchNorm.forward(self, input)
        dims = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        x = at_least_float32(input)
        rows = None if counts is None else counts.to(x.dtype).view(-1, *[1] * (input.ndim - 1))

        def total_of(values: torch.Tensor) -> torch.Tensor:
            return (values if rows is None else values * rows).sum(dims)

        places = x.numel() // x.shape[1]
        count = x.new_tensor([places]) if rows is None else rows.sum()[None] * input.shape[2:].numel()
        # the sum and how many it is of, in one message
        total = all_reduce_with_grad(torch.cat([total_of(x), count]))
        is_any = total[-1].detach() > 0
        count = total[-1].detach().clamp(min=1)
        mean = total[:-1] / count
        centred = x - mean.view(shape)
        variance = all_reduce_with_grad(total_of(centred.square())) / count
        if self.track_running_stats:
            self._track(mean.detach(), (variance * count / (count - 1).clamp(min=1)).detach(), is_any)
        weight, bias = (None if p is None else p.view(shape) for p in (self.weight, self.bias))
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        if weight is not None:
            normalised = torch.addcmul(bias, normalised, weight)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor, is_any: torch.Tensor) -> None:
        self.num_batches_tracked.add_(1)
        share = 1.0 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        # of no rows there is nothing to learn
        self.running_mean.lerp_(mean.where(is_any, self.running_mean), share)
        self.running_var.lerp_(variance.where(is_any, self.running_var), share)


def convert_batch_norm(module: nn.Module) -> nn.Module:
    """Let every batch norm in `module` see the batches of all processes; weights and names stay as they are."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and not isinstance(
            child, GlobalBatchNorm
        ):
            norm = GlobalBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats, device="meta"
            )
            norm._parameters, norm._buffers, norm.training = child._parameters, child._buffers, child.training
            setattr(module, name, norm)
        else:
            convert_batch_norm(child)
    return module
