"""Losses of all similarities between anchors and candidates, of which only some are in memory at once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


# Similarities that are in memory at once, as long as they are those of a number of anchors that is worth a product.
_SIMILARITIES, _FEWEST_ANCHORS = 2**20, 256


def sum_over_chunks(
    function: Callable[..., torch.Tensor],
    rows: Sequence[torch.Tensor | None],
    *others: Any,
    num_candidates: int,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """The sum of `function(*rows, *others)` over chunks of the rows: of several, each is computed a second time for
    the gradient.

    Args:
        function (`Callable`):
            A sum over the anchors of a chunk.
        rows (`Sequence[torch.Tensor]`):
            What has a row for each anchor; `None` where it is left out.
        others (`tuple`):
            What is the same for all chunks.
        num_candidates (`int`):
            With how many an anchor is compared.
        chunk_size (`int`, *optional*):
            Anchors of a chunk. Left out, so many that a chunk has about a million similarities, at least 256.

    Raises:
        ValueError: for chunks of nothing.
    """
    if chunk_size is None:
        chunk_size = max(_SIMILARITIES // max(num_candidates, 1), _FEWEST_ANCHORS)
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}.")
    number = next(len(row) for row in rows if row is not None)
    if number <= chunk_size:
        return function(*rows, *others)
    num_chunks = -(-number // chunk_size)
    cut = [[None] * num_chunks if row is None else row.split(chunk_size) for row in rows]
    parts = [
        checkpoint(function, *chunk, *others, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(*cut, strict=True)
    ]
    return torch.stack(parts).sum()
