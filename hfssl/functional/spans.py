"""Spans of frames that are hidden from an encoder of sound, and frames that are compared with the hidden ones."""

import numpy as np

from . import keyed
from .keyed import Use


def span_mask(
    num_frames: int, generator: np.random.Generator, mask_ratio: float, mask_length: int, min_masks: int = 2
) -> np.ndarray:
    """Spans of frames to hide, as [wav2vec 2.0](https://huggingface.co/papers/2006.11477) draws them (Section 3.1).

    Each frame is the first of a span with a probability of `mask_ratio / mask_length`; spans may overlap, so that
    fewer frames than `mask_ratio` are hidden (0.49 of them with 0.65, 0.56 with 0.8, and spans of 10). The number of
    spans is rounded up or down by chance, and their first frames differ from each other, as in the authors' code
    (`compute_mask_indices` of fairseq). Unlike there, no sequence loses masks so that all of a batch have as many:
    what is hidden of a sequence does not depend on its neighbours. And where `min_masks` spans are more than
    `mask_ratio` of a sequence, they are shorter: of a word of 0.4 s two spans of 0.4 s would leave nothing to see.

    Args:
        num_frames (`int`):
            Frames of the sequence without padding. Of one frame nothing is hidden; of few at least one is left.
        generator (`np.random.Generator`):
            What spans are drawn from.
        mask_ratio (`float`):
            Share of the frames in spans, where these do not overlap.
        mask_length (`int`):
            Frames of a span.
        min_masks (`int`, *optional*, defaults to `2`):
            Spans at least, where the sequence has room for them.

    Returns:
        `np.ndarray` of dtype `bool` and shape `(num_frames,)`.
    """
    mask = np.zeros(num_frames, dtype=bool)
    if num_frames < 2:
        return mask
    number = max(int(mask_ratio * num_frames / mask_length + generator.random()), min_masks)
    number = min(number, num_frames - 1)
    # room for the last span to end within the sequence, and for as many first frames as there are spans
    length = min(mask_length, num_frames - number)
    if mask_ratio * num_frames < min_masks * mask_length:  # of a short sequence they would hide nearly everything
        length = min(length, max(round(mask_ratio * num_frames / number), 1))
    starts = generator.choice(num_frames - length, number, replace=False)
    covered = (starts[:, None] + np.arange(length)).ravel()
    mask[covered] = True
    return mask


def negative_frames(mask: np.ndarray, generator: np.random.Generator, num_negatives: int) -> np.ndarray:
    """For each hidden frame others of the same sequence, drawn evenly from its other hidden frames.

    Args:
        mask (`np.ndarray` of dtype `bool` and shape `(num_frames,)`):
            Hidden frames.
        generator (`np.random.Generator`):
            What they are drawn from.
        num_negatives (`int`):
            How many, with repetitions.

    Returns:
        `np.ndarray` of dtype `int32` and shape `(num_frames, num_negatives)`: numbers of frames; of a frame that is
        not hidden, or is the only one that is, its own.
    """
    negatives = np.broadcast_to(np.arange(len(mask), dtype=np.int32)[:, None], (len(mask), num_negatives)).copy()
    at = np.flatnonzero(mask)
    if len(at) > 1:
        drawn = generator.integers(0, len(at) - 1, (len(at), num_negatives))
        drawn += drawn >= np.arange(len(at))[:, None]  # all but the frame itself
        negatives[at] = at[drawn]
    return negatives


def frame_masks(
    num_frames: np.ndarray,
    keys: np.ndarray,
    *,
    mask_ratio: float,
    mask_length: int,
    min_masks: int = 2,
    num_negatives: int = 0,
) -> dict[str, list[np.ndarray]]:
    """Masks and negatives of several sequences, each drawn from its own key: whatever stands beside it.

    Args:
        num_frames (`np.ndarray` of shape `(num_sequences,)`):
            Length of each, without padding.
        keys (`np.ndarray` of dtype `uint64` and shape `(num_sequences,)`):
            Key of each for this pass.
        mask_ratio, mask_length, min_masks:
            See [`span_mask`]. With a ratio of 0 nothing is hidden, and negatives are drawn from all frames.
        num_negatives (`int`, *optional*, defaults to `0`):
            See [`negative_frames`]. 0 draws none.

    Returns:
        `dict[str, list[np.ndarray]]`: `mask_time_indices`, of shape `(num_frames,)` each, unless nothing is hidden;
        with negatives `negative_indices`, of shape `(num_frames, num_negatives)`.
    """
    columns: dict[str, list[np.ndarray]] = {}
    masks = [np.ones(int(length), dtype=bool) for length in num_frames]
    if mask_ratio:
        masks = [
            span_mask(int(length), keyed.generator(Use.SPAN_MASK, key), mask_ratio, mask_length, min_masks)
            for length, key in zip(num_frames, keys, strict=True)
        ]
        columns["mask_time_indices"] = masks
    if num_negatives:
        columns["negative_indices"] = [
            negative_frames(mask, keyed.generator(Use.NEGATIVES, key), num_negatives)
            for mask, key in zip(masks, keys, strict=True)
        ]
    return columns
