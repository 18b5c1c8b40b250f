import numpy as np

from hfssl.functional import keyed


def test_known_values_of_splitmix64():
    # the first outputs of the published generator seeded with 0 (Vigna's splitmix64.c): state = n times the increment
    with np.errstate(over="ignore"):
        states = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(v) for v in keyed.mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_keys_tell_parts_apart_and_broadcast():
    keys = {int(keyed.key(a, b)) for a in range(50) for b in range(50)}
    assert len(keys) == 2500
    array = keyed.key(3, np.arange(4), 5)
    assert [int(k) for k in array] == [int(keyed.key(3, i, 5)) for i in range(4)]


def test_uniform_is_uniform_over_consecutive_keys():
    values = keyed.uniform(keyed.key(0, np.arange(100_000)))
    assert values.min() >= 0 and values.max() < 1
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 45  # chi-squared with 19 degrees of freedom, p about 0.0007


def test_permutations_and_seeds_hang_on_their_parts():
    assert sorted(keyed.permutation(10, 1, 2)) == list(range(10))
    assert keyed.permutation(10, 1, 2).tolist() == keyed.permutation(10, 1, 2).tolist()
    assert keyed.permutation(10, 1, 2).tolist() != keyed.permutation(10, 2, 1).tolist()
    assert 0 <= keyed.torch_seed(2**63, 7) < 2**63
