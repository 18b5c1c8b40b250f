"""Which positions are hidden from the encoder, and what stands there instead."""

import numpy as np

from . import keyed
from .keyed import Use


def mask_tokens(
    input_ids: np.ndarray,
    keys: np.ndarray,
    *,
    mask_token_id: int,
    token_ids: np.ndarray,
    is_special: np.ndarray,
    mask_ratio: float = 0.15,
    mask_token_ratio: float = 0.8,
    random_token_ratio: float = 0.1,
    unit_keys: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose tokens to predict and corrupt them as BERT does.

    Each token is chosen with probability `mask_ratio` on its own; of the chosen ones 80 % become `[MASK]`, 10 % a
    random token of the whole vocabulary, 10 % stay ([BERT](https://huggingface.co/papers/1810.04805), Section 3.1; the
    paper's code chooses exactly 15 % of each sequence, transformers' collator and this function choose 15 % on
    average).

    Args:
        input_ids (`np.ndarray` of shape `(num_tokens,)`):
            Tokens, documents one after another.
        keys (`np.ndarray` of dtype `uint64` and shape `(num_tokens,)`):
            Key of each token. The same key gives the same choice, whatever stands around the token.
        mask_token_id (`int`):
            Of the tokenizer.
        token_ids (`np.ndarray` of shape `(vocab_size,)`):
            What a random token may be: the ids of the tokenizer, which may have holes.
        is_special (`np.ndarray` of dtype `bool` and shape `(highest id + 1,)`):
            Tokens that are never chosen.
        mask_ratio (`float`, *optional*, defaults to 0.15):
            Share of the tokens that are chosen.
        mask_token_ratio, random_token_ratio (`float`, *optional*, default to 0.8 and 0.1):
            Shares of the chosen tokens that become `[MASK]` and a random token.
        unit_keys (`np.ndarray` of dtype `uint64` and shape `(num_tokens,)`, *optional*):
            Keys that decide the choice, where it should not be made token by token: tokens of one word share one for
            whole-word masking. What a chosen token becomes is drawn per token all the same, as in the paper's code.

    Returns:
        `tuple[np.ndarray, np.ndarray]` of shape `(num_tokens,)`: the corrupted tokens, and the labels: the original
        token where one was chosen, -100 elsewhere.
    """
    chosen = keyed.uniform(keyed.mix(keys if unit_keys is None else unit_keys)) < mask_ratio
    chosen &= ~is_special[input_ids]
    at = np.flatnonzero(chosen)
    what = keyed.uniform(keyed.key(Use.MASKED_BECOMES, keys[at]))
    random_tokens = keyed.uniform(keyed.key(Use.RANDOM_TOKEN, keys[at])) * len(token_ids)
    random_tokens = token_ids[random_tokens.astype(np.int64)].astype(input_ids.dtype)
    becomes = np.where(what < mask_token_ratio, input_ids.dtype.type(mask_token_id), input_ids[at])
    is_random = (what >= mask_token_ratio) & (what < mask_token_ratio + random_token_ratio)
    corrupted = input_ids.copy()
    corrupted[at] = np.where(is_random, random_tokens, becomes)
    labels = np.full_like(input_ids, -100)
    labels[at] = input_ids[at]
    return corrupted, labels


def block_masks(
    keys: np.ndarray,
    num_masked: np.ndarray,
    side: int,
    *,
    min_patches: int = 4,
    min_aspect: float = 0.3,
    attempts: int = 10,
) -> np.ndarray:
    """Hide rectangles of patches until exactly so many are hidden, as [BEiT](https://huggingface.co/papers/2106.08254)
    and DINOv2 do.

    One rectangle after the other is drawn: its area between `min_patches` and what is missing (at most half of the
    image), the logarithm of height / width, and the place. It is taken if it hides at least one more patch and not
    more than are missing. After `attempts` in a row that are not, single patches are hidden at random: DINOv2 stops
    there, with fewer.

    Args:
        keys (`np.ndarray` of dtype `uint64` and shape `(num_images,)`):
            Key of each image. The same key gives the same mask, whatever stands beside it.
        num_masked (`np.ndarray` of shape `(num_images,)`):
            Patches to hide, from 0 to `side²`.
        side (`int`):
            Patches in a row of an image.
        min_patches (`int`, *optional*, defaults to 4):
            Smallest area of a rectangle, where so many are missing.
        min_aspect (`float`, *optional*, defaults to 0.3):
            Smallest height / width; the largest is 1 divided by it.
        attempts (`int`, *optional*, defaults to 10):
            How often in a row a rectangle may not fit.

    Returns:
        `np.ndarray` of dtype `bool` and shape `(num_images, side, side)`: `True` where a patch is hidden.
    """
    masks = np.zeros((len(keys), side, side), bool)
    missing, failures = np.array(num_masked, np.int64), np.zeros(len(keys), np.int64)
    places, turn = np.arange(side), 0
    left = np.flatnonzero(missing > 0)
    while len(left):
        draws = keyed.uniform(keyed.key(Use.BLOCK_MASK, keys[left][:, None], turn, np.arange(4)))
        most = np.minimum(missing[left], max(side**2 // 2, 1))
        area = min_patches + (most - min_patches) * draws[:, 0]
        root_of_aspect = np.exp(0.5 * np.log(min_aspect) * (1.0 - 2.0 * draws[:, 1]))
        size = np.rint(
            np.sqrt(area)[:, None] * np.stack([root_of_aspect, 1.0 / root_of_aspect], axis=1)
        )  # height, width
        start = np.floor(draws[:, 2:] * (side - size + 1))
        inside = (places >= start[..., None]) & (places < (start + size)[..., None])  # (n, 2, side)
        block = inside[:, 0, :, None] & inside[:, 1, None, :]
        new = (block & ~masks[left]).sum((1, 2))
        fits = ((size > 0) & (size < side)).all(1) & (new > 0) & (new <= most)
        masks[left[fits]] |= block[fits]
        missing[left] -= np.where(fits, new, 0)
        failures[left] = np.where(fits, 0, failures[left] + 1)
        left, turn = left[(missing[left] > 0) & (failures[left] < attempts)], turn + 1
    # one by one, what no rectangle fits
    for image in np.flatnonzero(missing):
        visible = np.flatnonzero(~masks[image])
        draws = keyed.key(Use.BLOCK_MASK, keys[image], -1, visible)
        masks[image].flat[visible[np.argsort(draws)[: missing[image]]]] = True
    return masks
