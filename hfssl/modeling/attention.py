"""`lean`: the attention of short rows on a CPU, as an implementation that stock models take by its name.

    encoder.set_attn_implementation("lean")

It gives what `eager` gives. But `eager` makes float32 of the scores, and keeps the probabilities for the backward pass
twice, in float32 and in the type of the values. A softmax of half-precision numbers is made in float32 anyway, inside
its kernel.

What it is worth beside `sdpa` in a whole training: the column "same config" in recipes/README.md.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import eager_mask

from ..errors import UserError
from .trial import FAILURES, once_per_config, small_copy, trial_images


LEAN = "lean"
_TRIAL = "lean_trial"


def lean_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as an `AttentionInterface` calls it.

    Args:
        module (`nn.Module`):
            The layer.
        query, key, value (`torch.Tensor` of shape `(batch_size, num_heads, num_tokens, head_dim)`):
            As many heads of each.
        attention_mask (`torch.Tensor`, *optional*):
            Added to the scores.
        scaling (`float`, *optional*):
            Factor of the scores. 1 / sqrt(head_dim) when left out.
        dropout (`float`, *optional*, defaults to 0.0):
            Share of the probabilities that are set to 0 in training.

    Returns:
        `tuple`: the result `(batch_size, num_tokens, num_heads, head_dim)` and the probabilities
        `(batch_size, num_heads, num_tokens, num_tokens)`.
    """
    scores = torch.matmul(query, key.mT) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.dropout(scores.softmax(-1), dropout, module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities


@once_per_config
@torch.no_grad()
def takes_lean_attention(config: PreTrainedConfig) -> bool:
    """Whether the attention of an encoder is nothing but this, by trying it on a small copy.

    Others have an implementation of their own, add biases to the scores, or have fewer keys than queries.
    """
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return lean_attention(*args, **kwargs)

    AttentionInterface.register(_TRIAL, counted)
    try:
        encoder = small_copy(config)
        images = trial_images(encoder)
        encoder.set_attn_implementation("eager")
        eager = encoder(images).last_hidden_state
        encoder.set_attn_implementation(_TRIAL)
        lean = encoder(images).last_hidden_state
    except (UserError, *FAILURES):
        return False
    return bool(calls) and torch.allclose(lean, eager, rtol=1e-3, atol=1e-4)


AttentionInterface.register(LEAN, lean_attention)
AttentionMaskInterface.register(LEAN, eager_mask)
AttentionMaskInterface.register(_TRIAL, eager_mask)
