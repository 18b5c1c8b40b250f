"""The loss over a vocabulary without any logits: Liger's kernel multiplies by the output layer and adds up, in pieces.

With a vocabulary of 128,000 the logits of a step and their gradient are larger than all else that it keeps. What the
kernel does is not known to a CPU, nor to `torch.compile`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_liger_kernel_available

from ..errors import UserError
from ..losses import cross_entropy_sum
from .base import SSLPreTrainedModel, evaluating


class TokenLossMixin:
    """A method that predicts tokens by the output layer of a stock model, in front of [`SSLPreTrainedModel`]."""

    # whether training makes no logits, see [`use_liger`]
    fuses_loss = False

    @contextmanager
    def output_layer(self) -> Iterator[nn.Module | None]:
        """Within it, and if it gives a layer, the stock model returns that layer's inputs in place of logits."""
        if not (self.fuses_loss and self.training) or torch.compiler.is_compiling():
            yield None
            return
        with _left_out(self.encoder) as layer:
            yield layer

    def token_loss(self, outputs: torch.Tensor, layer: nn.Module | None, labels: torch.LongTensor) -> torch.Tensor:
        """Sum of the cross-entropies of what the stock model returned, within [`output_layer`] or not.

        Args:
            outputs (`torch.Tensor` of shape `(num_targets, vocab_size)`, or `(num_targets, dim)` with a layer):
                Logits, or what the output layer would make them of.
            layer (`nn.Module`, *optional*):
                What [`output_layer`] gave.
            labels (`torch.LongTensor` of shape `(num_targets,)`):
                The right tokens.
        """
        if layer is None:
            return cross_entropy_sum(outputs, labels)
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        bias = getattr(layer, "bias", None)
        return LigerFusedLinearCrossEntropyLoss(reduction="sum")(layer.weight, outputs, labels, bias)


def use_liger(model: SSLPreTrainedModel, device: torch.device) -> None:
    """Let a method that predicts tokens train by Liger's kernel (`--use_liger_kernel`).

    Raises:
        UserError: where there is no such kernel, or nothing for it to do.
    """
    if not is_liger_kernel_available():
        raise UserError(
            "`--use_liger_kernel true` needs a package that is not installed: `pip install liger-kernel`. Without it "
            "the loss is made in pieces too, of logits that are kept in half precision: leave the flag out."
        )
    if device.type == "cpu":
        raise UserError("`--use_liger_kernel true` needs a GPU: Liger's kernels do not run on a CPU. Leave it out.")
    if not isinstance(model, TokenLossMixin):
        raise UserError(
            f"`--use_liger_kernel true` is for losses over a vocabulary, and {type(model).__name__} has none. Leave "
            "it out."
        )
    if not _ends_in_its_output_layer(model.encoder):
        raise UserError(
            f"`--use_liger_kernel true` does not know what {type(model.encoder).__name__} does to its logits after "
            "its output layer. Leave it out."
        )
    model.fuses_loss = True


@contextmanager
def _left_out(encoder: PreTrainedModel) -> Iterator[nn.Module]:
    layer = encoder.get_output_embeddings()
    layer.forward = nn.Identity().forward  # of this one layer, in front of that of its class
    try:
        yield layer
    finally:
        del layer.forward


def _ends_in_its_output_layer(encoder: PreTrainedModel) -> bool:
    """Whether the logits of a stock model are what its output layer gives, by trying it on a few tokens."""
    layer = encoder.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        return False
    tokens = torch.arange(8, device=layer.weight.device)[None] % layer.out_features
    with evaluating(encoder):
        logits = encoder(input_ids=tokens)[0]
        with _left_out(encoder):
            inputs = encoder(input_ids=tokens)[0]
        # times 100: a cap far above small logits would not show
        made = F.linear(100 * inputs, layer.weight, layer.bias)
        with _scaled(layer, 100):
            expected = encoder(input_ids=tokens)[0]
    same = inputs.shape[-1] == layer.in_features and logits.shape == made.shape
    return same and torch.allclose(made, expected, rtol=1e-2, atol=1e-2)


@contextmanager
def _scaled(layer: nn.Module, factor: float) -> Iterator[None]:
    handle = layer.register_forward_pre_hook(lambda module, args: (factor * args[0], *args[1:]))
    try:
        yield
    finally:
        handle.remove()
