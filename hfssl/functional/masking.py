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
