"""Keyed randomness: numbers that depend on what they are for, never on when or where they are drawn.

Masks, augmentations and shuffles draw from keys such as (seed, pass, file, row, token). The same key gives the same
number in every process, after every resume and for any number of workers, and whole arrays are drawn at once. The
mixer is the finaliser of SplitMix64 (Steele, Lea, Flood, 2014, "Fast splittable pseudorandom number generators"),
which passes BigCrush.
"""

import numpy as np


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers one by one (a bijection).

    Args:
        values (`np.ndarray` of dtype `uint64`):
            Any shape.

    Returns:
        `np.ndarray` of dtype `uint64` and the same shape.
    """
    with np.errstate(over="ignore"):
        z = values + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def key(*parts: "int | np.ndarray") -> np.ndarray:
    """Fold integers, or arrays of integers that broadcast, into one 64-bit key each. The order of the parts matters.

    Example:

    ```python
    >>> int(key(0, 1)) == int(key(0, 1)), int(key(0, 1)) == int(key(1, 0))
    (True, False)
    ```
    """
    result = np.uint64(0)
    with np.errstate(over="ignore"):
        for part in parts:
            if not isinstance(part, np.ndarray):
                part = np.uint64(int(part) & 0xFFFFFFFFFFFFFFFF)
            # the multiplication keeps (a, b) and (a + 1, b - 1) apart
            result = mix(result * _GOLDEN + np.asarray(part).astype(np.uint64))
    return result


def uniform(keys: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1) from keys, with the 53 bits that a float64 holds."""
    return (keys >> np.uint64(11)).astype(np.float64) * (1.0 / (1 << 53))


def permutation(size: int, *parts: int) -> np.ndarray:
    """A permutation of `range(size)` that depends on `parts` only."""
    return np.random.Generator(np.random.Philox(key=int(key(*parts)))).permutation(size)


def torch_seed(*parts: int) -> int:
    """A seed for `torch.manual_seed` from `parts`: 63 bits, so that every backend takes it."""
    return int(key(*parts)) & 0x7FFFFFFFFFFFFFFF
