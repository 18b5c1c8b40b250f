import numpy as np
import pytest

from hfssl.functional import keyed
from hfssl.functional.masking import mask_tokens


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
