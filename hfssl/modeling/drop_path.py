"""Stochastic depth that does not compute what it drops.

Paper: Deep Networks with Stochastic Depth, Huang et al., 2016 (https://huggingface.co/papers/1603.09382). That rows
which are dropped need not be computed is how DINOv2 trains (https://huggingface.co/papers/2304.07193, Section 5).

Each residual branch of a block is dropped for rows of its own, and what the others add is scaled up, so that its mean
stays. Of `n` rows at rate `p` always `floor(n * p)` are taken out before the branch begins, and what is left of the
rate is drawn for each of the others: so every row is dropped with probability `p`, also in small batches, and shapes
do not depend on chance. Where nothing can be taken out (few rows, an encoder whose branches are not known) this is the
usual multiplication.
"""

import copy

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import UserError
from .trial import FAILURES, once_per_config, small_copy, trial_images
from .vision import build_vision_encoder, transformer_blocks


# The modules with which the branches of a block begin, by the names that stock blocks have for them.
_BEGINNINGS = (("layernorm_before", "layernorm_after"), ("norm1", "norm2"))


class DropPath(nn.Module):
    """The end of a residual branch, or of several that come one after the other.

    Args:
        drop_prob (`float`):
            Share of the rows to which a branch adds nothing, in [0, 1).
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob
        # whether what is dropped is left out of the work, not multiplied by 0
        self.skips = True
        # of the branch that is under way: which rows go through it, and of how many
        self._taken: tuple[torch.Tensor, int] | None = None

    def begin(self, first: nn.Module, args: tuple) -> tuple | None:
        """Hook before the first module of a branch: it gets the rows that go through the branch, in any order."""
        hidden = args[0]
        number = len(hidden)
        dropped = int(number * self.drop_prob) if self.training and self.skips else 0
        self._taken = None
        if dropped == 0:
            return None
        rows = torch.rand(number, device=hidden.device).argsort()[dropped:]
        self._taken = rows, number
        return hidden.index_select(0, rows), *args[1:]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        taken, self._taken = self._taken, None
        if not self.training or self.drop_prob == 0.0:
            return hidden
        number = len(hidden) if taken is None else taken[1]
        left = min(1.0, number * (1.0 - self.drop_prob) / len(hidden))  # of the chance to be kept
        kept = hidden.new_empty(len(hidden), *[1] * (hidden.ndim - 1)).bernoulli_(left)
        hidden = hidden * kept / (1.0 - self.drop_prob)
        return hidden if taken is None else put_back(hidden, *taken)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:g}"


def put_back(hidden: torch.Tensor, rows: torch.Tensor, number: int) -> torch.Tensor:
    """Rows at their places among `number` rows, the others of which are 0."""
    return hidden.new_zeros(number, *hidden.shape[1:]).index_copy(0, rows, hidden)


def build_with_drop_path(config: PreTrainedConfig, rate: float) -> PreTrainedModel:
    """A fresh encoder with stochastic depth.

    Encoders that have it themselves get it at `rate`, spread over their depth as they do; the others of the ViT kind
    at a rate that grows linearly with the depth, from 0 to `rate`. A ResNet has no branch that it could do without.
    """
    has_its_own = hasattr(config, "drop_path_rate")
    if has_its_own:
        config = copy.deepcopy(config)
        config.drop_path_rate = rate
    encoder = build_vision_encoder(config)
    blocks = transformer_blocks(encoder)
    skips = skips_dropped_rows(config)
    for i, block in enumerate(blocks):
        if not has_its_own:
            end = DropPath(rate * i / max(len(blocks) - 1, 1))
        elif skips and (drop_prob := getattr(getattr(block, "drop_path", None), "drop_prob", None)):
            end = DropPath(drop_prob)
        else:
            continue
        _install(block, end, has_its_own, skips)
    return encoder


def _install(block: nn.Module, end: nn.Module, has_its_own: bool, skips: bool) -> None:
    """Let the branches of a block end in `end`; with `skips` they also begin by it."""
    if has_its_own:
        block.drop_path = end
    # both branches of a block go through its dropout, one after the other, before they are added
    elif isinstance(getattr(block, "dropout", None), nn.Dropout):
        block.dropout = nn.Sequential(block.dropout, end)
    else:
        return
    for name in next((names for names in _BEGINNINGS if hasattr(block, names[0])), ()) if skips else ():
        getattr(block, name).register_forward_pre_hook(end.begin)


class _Trial(DropPath):
    """Two of three rows go through each branch, as they are."""

    def __init__(self):
        super().__init__(0.5)
        self.begun = self.ended = 0

    def begin(self, first: nn.Module, args: tuple) -> tuple:
        self.begun += 1
        return args[0][[2, 0]], *args[1:]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.ended += 1
        return put_back(hidden, torch.tensor([2, 0]), 3)


@once_per_config
@torch.no_grad()
def skips_dropped_rows(config: PreTrainedConfig) -> bool:
    """Whether rows can be taken out of the branches of an encoder's blocks, by trying it on a small copy.

    A branch has to begin and end where it is thought to, and to treat each row by itself.
    """
    try:
        encoder = small_copy(config)
        images = torch.cat([trial_images(encoder), trial_images(encoder)[:1].flip(-1)])
        expected = encoder(images).last_hidden_state
        ends = [_Trial() for _ in transformer_blocks(encoder)]
        for block, end in zip(transformer_blocks(encoder), ends, strict=True):
            _install(block, end, hasattr(config, "drop_path_rate"), skips=True)
        found = encoder(images).last_hidden_state
    except (UserError, *FAILURES):
        return False
    close = [torch.allclose(found[i], expected[i], rtol=1e-3, atol=1e-4) for i in range(3)]
    return bool(ends) and close == [True, False, True] and all(end.begun == end.ended == 2 for end in ends)


def drop_path_shares(encoder: PreTrainedModel, rate: float) -> dict[nn.Module, float]:
    """Which modules of an encoder drop paths, and what share of its `rate`, above 0, each of them has."""
    drop_probs = {module: getattr(module, "drop_prob", None) for module in encoder.modules()}
    return {module: drop_prob / rate for module, drop_prob in drop_probs.items() if drop_prob}
