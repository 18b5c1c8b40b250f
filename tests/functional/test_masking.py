import numpy as np
import pytest

from hfssl.functional import keyed
from hfssl.functional.masking import block_masks, mask_tokens


VOCABULARY, MASK = 1000, 4


def masked(ids, keys, **kwargs):
    special = np.zeros(VOCABULARY, bool)
    special[:5] = True
    return mask_tokens(ids, keys, mask_token_id=MASK, token_ids=np.arange(VOCABULARY), is_special=special, **kwargs)


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, 400_000).astype(np.int32)
    return ids, keyed.key(3, np.arange(len(ids)))


def test_the_shares_are_those_of_the_paper(tokens):
    ids, keys = tokens
    corrupted, labels = masked(ids, keys)
    chosen = labels != -100
    ordinary = ids >= 5
    assert abs(chosen[ordinary].mean() - 0.15) < 0.002  # four standard deviations of a binomial
    assert not chosen[~ordinary].any()
    assert (labels[chosen] == ids[chosen]).all() and (corrupted[~chosen] == ids[~chosen]).all()
    became_mask = (corrupted == MASK)[chosen].mean()
    stayed = (corrupted == ids)[chosen].mean()
    assert abs(became_mask - 0.8) < 0.01 and abs(stayed - 0.1) < 0.01
    random = chosen & (corrupted != MASK) & (corrupted != ids)
    # the whole vocabulary, special tokens too, about equally often
    counts = np.bincount(corrupted[random], minlength=VOCABULARY)
    assert counts.min() >= 0 and len(np.flatnonzero(counts)) > 0.98 * VOCABULARY


def test_the_choice_hangs_on_the_key_alone(tokens):
    ids, keys = tokens
    order = np.random.default_rng(1).permutation(1000)
    corrupted, labels = masked(ids[:1000], keys[:1000])
    shuffled, shuffled_labels = masked(ids[:1000][order], keys[:1000][order])
    assert (shuffled == corrupted[order]).all() and (shuffled_labels == labels[order]).all()
    assert (masked(ids[:1000], keyed.key(keys[:1000], 1))[1] != labels).any()


def test_whole_words_are_masked_together(tokens):
    ids, keys = np.maximum(tokens[0][:3000], 5), tokens[1][:3000]
    words = keyed.key(9, np.arange(3000) // 3)
    _, labels = masked(ids, keys, unit_keys=words)
    chosen = (labels != -100).reshape(-1, 3)
    assert set(chosen.sum(axis=1)) == {0, 3} and 0.1 < chosen.mean() < 0.2


def test_the_input_is_not_changed(tokens):
    ids, keys = tokens
    before = ids.copy()
    masked(ids, keys, mask_ratio=0.5)
    assert (ids == before).all()


# -- blocks -----------------------------------------------------------------------------------------------------------


def blocks(numbers, side, first=0, **kwargs):
    keys = keyed.key(5, np.arange(first, first + len(numbers)))
    return block_masks(keys, np.asarray(numbers), side, **kwargs)


@pytest.mark.parametrize("side", [1, 2, 3, 8, 14])
def test_exactly_so_many_patches_are_hidden(side):
    numbers = np.arange(side**2 + 1).repeat(3)
    assert blocks(numbers, side).sum((1, 2)).tolist() == numbers.tolist()


def test_a_mask_does_not_depend_on_what_stands_beside_it():
    numbers = np.array([20, 0, 98, 60, 30])
    whole = blocks(numbers, 14)
    for i, number in enumerate(numbers):
        assert np.array_equal(blocks([number], 14, first=i)[0], whole[i])
    assert not np.array_equal(whole[0], blocks([20], 14, first=7)[0])


def blocks_by_hand(number, side, rng):
    """The procedure of DINOv2, one image after the other; it may end with fewer."""
    mask = np.zeros((side, side), bool)
    while mask.sum() < number:
        missing = min(number - mask.sum(), side**2 // 2)
        for _ in range(10):
            area, aspect = 4 + (missing - 4) * rng.random(), np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
            height, width = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if height < side and width < side:
                top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
                block = mask[top : top + height, left : left + width]
                if 0 < height * width - block.sum() <= missing:
                    block[:] = True
                    break
        else:
            break
    return mask


def test_masks_are_drawn_as_by_the_reference():
    number, side = 59, 14
    masks = blocks(np.full(1000, number), side)
    rng = np.random.default_rng(0)
    theirs = np.stack([blocks_by_hand(number, side, rng) for _ in range(300)])
    assert np.abs(masks.mean(0) - theirs.mean(0)).max() < 0.12  # four standard errors of 300
    assert np.abs(masks.mean((0, 1)) - theirs.mean((0, 1))).max() < 0.05
    together, expected = ((each[:, 1:] & each[:, :-1]).mean() for each in (masks, theirs))
    assert together == pytest.approx(expected, abs=0.01)  # of patches drawn one by one it would be a third
