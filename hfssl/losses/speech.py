"""Sequences of sound: say which unit a hidden frame is, or which of several frames it is."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .precision import at_least_float32, full_precision


def hubert_loss(
    hidden: torch.Tensor,
    unit_embeddings: torch.Tensor,
    units: torch.LongTensor,
    mask: torch.Tensor,
    temperature: float = 0.1,
    num_items: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Loss of [HuBERT](https://huggingface.co/papers/2106.07447), equations 1 and 3: the unit of each masked frame.

    Args:
        hidden (`torch.Tensor` of shape `(num_frames, dim)`):
            Projections of frames.
        unit_embeddings (`torch.Tensor` of shape `(num_units, dim)`):
            Of the units.
        units (`torch.LongTensor` of shape `(num_frames,)`):
            The unit of each frame; -100 of a frame without one, which is left out.
        mask (`torch.Tensor` of shape `(num_frames,)`):
            Frames that count: not 0.
        temperature (`float`, *optional*, defaults to `0.1`):
            Divisor of the cosines of frames and units (τ).
        num_items (`torch.Tensor` or `float`, *optional*):
            What the sum over frames is divided by; left out, the frames that count.

    Returns:
        `torch.Tensor` of shape `()`: the cross-entropy, mean over the frames that count; 0 where there is none.
        log(num_units) is that of frames that say nothing.

    Example:

    ```python
    >>> hidden = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0], [2.0, 0.0, 1.0]])
    >>> embeddings = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, -1.0]])
    >>> f"{hubert_loss(hidden, embeddings, torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0])).item():.6f}"
    '0.101465'
    ```
    """
    counts = (mask != 0) & (units >= 0)
    losses = F.cross_entropy(unit_logits(hidden, unit_embeddings, temperature), units, reduction="none")
    return _mean(torch.where(counts, losses, 0.0), counts, num_items)


def unit_logits(hidden: torch.Tensor, unit_embeddings: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """Cosines of frames `(..., dim)` and units `(num_units, dim)`, divided by the temperature: `(..., num_units)`."""
    with full_precision(hidden):
        frames = F.normalize(at_least_float32(hidden), dim=-1)
        return frames @ F.normalize(at_least_float32(unit_embeddings), dim=-1).T / temperature


def frame_contrast(
    predictions: torch.Tensor,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    positions: torch.LongTensor,
    temperature: float = 1.0,
    codes: torch.LongTensor | None = None,
    ahead: int = 0,
    lengths: torch.LongTensor | None = None,
) -> torch.Tensor:
    """Logits by which a frame is told from other frames of its own sequence.

    All products of a prediction and a target come from one product of matrices a sequence, instead of one for each
    negative: the vectors of the negatives are never copied.

    Args:
        predictions, targets (`torch.Tensor` of shape `(batch_size, num_frames, dim)`):
            What is compared; for cosines, of length 1.
        negatives (`torch.Tensor` of shape `(batch_size, num_frames, num_negatives)`):
            Numbers of other frames of the same sequence, for each frame.
        positions (`torch.LongTensor` of shape `(num_positions,)`):
            Indices, into the flattened batch, of the frames that predict.
        temperature (`float`, *optional*, defaults to `1.0`):
            Divisor of the products.
        codes (`torch.LongTensor` of shape `(batch_size, num_frames)`, *optional*):
            Equal where targets are: a negative that is equal to what is to be predicted is none.
        ahead (`int`, *optional*, defaults to `0`):
            How many frames later the predicted frame is. Negatives are those of the frame that predicts, moved by as
            many frames (and around the end), so that none of them is the right one.
        lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Where each sequence ends, of those that are padded.

    Returns:
        `torch.Tensor` of shape `(num_positions, 1 + num_negatives)`: the right frame is the first. -inf of negatives
        that are none.
    """
    num_frames = predictions.shape[1]
    with full_precision(predictions):
        products = torch.bmm(at_least_float32(predictions), at_least_float32(targets).transpose(1, 2)) / temperature
        products = products.flatten(0, 1).index_select(0, positions)
    others = negatives.flatten(0, 1).index_select(0, positions).long()
    right = positions.remainder(num_frames).unsqueeze(1)
    sequences = positions.div(num_frames, rounding_mode="floor")
    if ahead:
        ends = num_frames if lengths is None else lengths.index_select(0, sequences).unsqueeze(1)
        others, right = (others + ahead).remainder(ends), (right + ahead).remainder(ends)
    candidates = torch.cat([right, others], dim=1)
    logits = products.gather(1, candidates)
    if codes is not None:
        of_candidates = codes.index_select(0, sequences).gather(1, candidates)
        is_right = of_candidates[:, 1:] == of_candidates[:, :1]
        logits = torch.cat([logits[:, :1], logits[:, 1:].masked_fill(is_right, float("-inf"))], dim=1)
    return logits


def wav2vec2_loss(
    predictions: torch.Tensor,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    positions: torch.LongTensor,
    temperature: float = 0.1,
    codes: torch.LongTensor | None = None,
    num_items: torch.Tensor | float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Contrastive loss of [wav2vec 2.0](https://huggingface.co/papers/2006.11477), equation 3.

    Args:
        predictions, targets, negatives, positions, temperature, codes:
            See [`frame_contrast`]; normalised here.
        num_items (`torch.Tensor` or `float`, *optional*):
            What the sum over frames is divided by; left out, the number of `positions`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shapes `()` and `(num_positions,)`: the cross-entropy, mean over the
        masked frames, and for which frames the right one is the nearest. log(1 + num_negatives) is chance.
    """
    with full_precision(predictions):
        predictions, targets = (F.normalize(at_least_float32(each), dim=-1) for each in (predictions, targets))
    logits = frame_contrast(predictions, targets, negatives, positions, temperature, codes)
    losses = logits.logsumexp(1) - logits[:, 0]
    # where two are alike that differ, neither is told from the other
    is_nearest = logits[:, :1].gt(logits[:, 1:]).all(1)
    return losses.sum() / (max(len(positions), 1) if num_items is None else num_items), is_nearest


def cpc_loss(
    predictions: torch.Tensor,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    lengths: torch.LongTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of [CPC](https://huggingface.co/papers/1807.03748), equation 4, over several steps into the future.

    Args:
        predictions (`torch.Tensor` of shape `(num_steps, batch_size, num_frames, dim)`):
            What each frame says of those 1, 2, 3 … frames later.
        targets (`torch.Tensor` of shape `(batch_size, num_frames, dim)`):
            The frames, with which predictions are multiplied.
        negatives (`torch.Tensor` of shape `(batch_size, num_frames, num_negatives)`):
            Other frames of the same sequence, see [`frame_contrast`].
        lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Where each sequence ends, of those that are padded.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shape `()`: the cross-entropy, mean over the frames of a sequence that
        have so many frames after them, and over all steps and sequences that have such frames; and the share of
        predictions to which the right frame is the nearest. log(1 + num_negatives) is chance.
    """
    batch_size, num_frames = targets.shape[:2]
    frames = torch.arange(num_frames, device=targets.device)
    every = torch.arange(batch_size * num_frames, device=targets.device).view(batch_size, num_frames)
    losses, is_there, hits = [], [], []
    for step, of_step in enumerate(predictions[: num_frames - 1], start=1):
        positions = every[:, : num_frames - step].flatten()
        logits = frame_contrast(of_step, targets, negatives, positions, ahead=step, lengths=lengths)
        each = (logits.logsumexp(1) - logits[:, 0]).view(batch_size, -1)
        is_hit = logits[:, :1].gt(logits[:, 1:]).all(1).view(batch_size, -1)
        counts = torch.ones_like(is_hit) if lengths is None else frames[step:] < lengths.unsqueeze(1)
        number = counts.sum(1)
        losses.append(torch.where(counts, each, 0.0).sum(1) / number.clamp(min=1))
        is_there.append(number > 0)
        hits.append(torch.stack([(is_hit & counts).sum(), counts.sum()]))
    # a sequence without so many frames says nothing of such a step: a 0 of it would look as if it were foretold
    of_steps, hits_and_all = torch.stack(losses), torch.stack(hits).sum(0)
    return of_steps.sum() / torch.stack(is_there).sum().clamp(min=1), hits_and_all[0] / hits_and_all[1].clamp(min=1)


def code_perplexity(
    shares: torch.Tensor,
    all_reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """How many codes of each codebook are in use: e to the power of the entropy of their mean share.

    Args:
        shares (`torch.Tensor` of shape `(num_frames, num_codebooks, num_codes)`):
            Distributions over the codes.
        all_reduce (`Callable`, *optional*):
            Sum of a tensor over processes, where the frames of several are counted together.

    Returns:
        `torch.Tensor` of shape `(num_codebooks,)`: from 1, all frames have one code, to `num_codes`.

    Example:

    ```python
    >>> code_perplexity(torch.eye(4)[:, None, :]).tolist()
    [4.0]
    ```
    """
    with full_precision(shares):
        total = at_least_float32(shares).sum(0)
        if all_reduce is not None:
            total = all_reduce(total)
        # each frame adds 1 to each codebook
        mean = total / total.sum(-1, keepdim=True).clamp(min=1.0)
        return torch.exp(-torch.xlogy(mean, mean).sum(-1))


def perplexity_of(numbers: torch.LongTensor, num_codes: int) -> torch.Tensor:
    """[`code_perplexity`] of codes that are given by their numbers `(num_frames,)`: `()`."""
    counts = torch.zeros(num_codes, device=numbers.device)
    # unlike `bincount`, nothing that a GPU would be waited for
    counts.index_add_(0, numbers, torch.ones_like(numbers, dtype=counts.dtype))
    return code_perplexity(counts[None, None])[0]


def _mean(losses: torch.Tensor, counts: torch.Tensor, num_items: torch.Tensor | float | None) -> torch.Tensor:
    return losses.sum() / (counts.sum().clamp(min=1) if num_items is None else num_items)
