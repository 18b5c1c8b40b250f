"""Association tests of embeddings: WEAT of words (Caliskan et al., 2017), SEAT of sentences (May et al., 2019).

A word w is associated with attributes A rather than B by s(w) = mean cos(w, a) - mean cos(w, b). The effect size of
two sets of targets X and Y is d = (mean of s over X - mean of s over Y) / deviation of s over both, with n - 1. The
p-value is the share of the ways to divide X and Y into sets of their sizes that have a difference at least as large:
all of them where they are few, else a sample. The interval of d is that of targets and attributes drawn again with
replacement, each set for itself.
"""

from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from ...functional import keyed
from ...functional.keyed import Use
from ..intervals import percentiles, resampling


# Ways to divide the targets that are all looked at; of more a sample of so many.
MOST_EXACT, NUM_SAMPLED = 20_000, 20_000
# Differences of cosines that are nothing but rounding of 32 bits, and of sums of them in 64.
_ROUNDING, _ROUNDING_OF_SUMS = 1e-6, 1e-9


@dataclass(frozen=True)
class Association:
    """What an association test finds.

    Args:
        effect (`float`):
            d; above 0 the first targets are nearer to the first attributes.
        low, high (`float`):
            Its interval.
        p_value (`float`):
            Of so large an effect or a larger one by chance; one-sided.
        exact (`bool`):
            Whether all divisions were looked at.
    """

    effect: float
    low: float
    high: float
    p_value: float
    exact: bool


def association(x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray, seed: int = 0) -> Association:
    """Measure how much nearer `x` is to `a`, and `y` to `b`, than the other way round.

    Args:
        x, y (`np.ndarray` of shape `(num_targets, dim)`):
            Embeddings of the targets.
        a, b (`np.ndarray` of shape `(num_attributes, dim)`):
            Embeddings of the attributes.
        seed (`int`, *optional*, defaults to 0):
            Of the draws.
    """
    targets = _unit(np.concatenate([x, y]))
    to_a, to_b = targets @ _unit(a).T, targets @ _unit(b).T
    s, number = to_a.mean(1) - to_b.mean(1), len(x)
    low, high = percentiles(_resampled_effects(to_a, to_b, number, keyed.generator(Use.BOOTSTRAP, seed)))
    p_value, exact = permutation_p_value(s, number, seed)
    return Association(effect_size(s, number), low, high, p_value, exact)


def effect_size(s: np.ndarray, number: int) -> float:
    """d of associations `s`, of which the first `number` are those of X; 0 where all are the same."""
    deviation = s.std(ddof=1)
    if deviation < _ROUNDING:
        return 0.0
    return float((s[:number].mean() - s[number:].mean()) / deviation)


def permutation_p_value(s: np.ndarray, number: int, seed: int = 0) -> tuple[float, bool]:
    """The share of divisions with a difference of means at least as large, and whether all were looked at."""
    # of sets of given sizes the sum over X says the difference
    wanted = s[:number].sum() - _ROUNDING_OF_SUMS
    ways = comb(len(s), number)
    if ways <= MOST_EXACT:
        rows = np.fromiter((i for chosen in combinations(range(len(s)), number) for i in chosen), np.int64)
        return float((s[rows.reshape(ways, number)].sum(1) >= wanted).mean()), True
    random = keyed.generator(Use.PERMUTATION_TEST, seed)
    drawn = random.permuted(np.tile(s, (NUM_SAMPLED, 1)), axis=1)[:, :number].sum(1)
    # with the division that was found: no share is 0
    return float(((drawn >= wanted).sum() + 1) / (NUM_SAMPLED + 1)), False


def _resampled_effects(to_a: np.ndarray, to_b: np.ndarray, number: int, random: np.random.Generator) -> np.ndarray:
    num_x, num_y, num_a, num_b = number, len(to_a) - number, to_a.shape[1], to_b.shape[1]
    of_a, of_b = resampling(num_a, random) / num_a, resampling(num_b, random) / num_b
    s = to_a @ of_a.T - to_b @ of_b.T  # (num_targets, num_resampled)
    x, y = resampling(num_x, random).T, resampling(num_y, random).T  # how often each target is drawn
    of_x, of_y = s[:num_x], s[num_x:]
    difference = (x * of_x).sum(0) / num_x - (y * of_y).sum(0) / num_y
    total = num_x + num_y
    mean = ((x * of_x).sum(0) + (y * of_y).sum(0)) / total
    squares = (x * (of_x - mean) ** 2).sum(0) + (y * (of_y - mean) ** 2).sum(0)
    deviation = np.sqrt(squares / (total - 1))
    return np.where(deviation < _ROUNDING, 0.0, difference / np.maximum(deviation, _ROUNDING))


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
