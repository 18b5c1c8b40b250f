"""How far a figure may be trusted: intervals of shares and of what is made of samples, and tests of many figures."""

import math
from collections.abc import Sequence

import numpy as np


# 95 %, of an interval with two sides.
CONFIDENCE, Z = 0.95, 1.959964
NUM_RESAMPLED = 2_000


def wilson(share: float, number: int) -> tuple[float, float]:
    """Interval of a share of so many samples (Wilson, 1927): it stays in [0, 1], and has a width where all agree."""
    middle = share + Z * Z / (2 * number)
    half = Z * math.sqrt(share * (1 - share) / number + Z * Z / (4 * number * number))
    return (middle - half) / (1 + Z * Z / number), (middle + half) / (1 + Z * Z / number)


def percentiles(resampled: np.ndarray) -> tuple[float, float]:
    """Interval of a figure from what it is in resampled data, of shape `(num_resampled,)`."""
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def resampled_means(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Means of draws with replacement of as many values as there are, of shape `(num_resampled,)`."""
    number = len(values)
    if _are_yes_or_no(values):  # the same, without drawing each of them
        return random.binomial(number, values.mean(), NUM_RESAMPLED) / number
    return np.array([values[random.integers(0, number, number)].mean() for _ in range(NUM_RESAMPLED)])


def resampling(number: int, random: np.random.Generator) -> np.ndarray:
    """How often each of some samples is in each draw with replacement, of shape `(num_resampled, number)`."""
    return random.multinomial(number, np.full(number, 1 / number), size=NUM_RESAMPLED).astype(np.float64)


def mean_interval(values: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
    """Interval of a mean: Wilson's where the values are 0 and 1, else by resampling."""
    if _are_yes_or_no(values):
        return wilson(float(values.mean()), len(values))
    return percentiles(resampled_means(values, random))


def _are_yes_or_no(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def holm(p_values: Sequence[float], level: float = 1 - CONFIDENCE) -> list[bool]:
    """Which of several tests show something, at a `level` for all of them together (Holm, 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    shown = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - rank):
            break
        shown[i] = True
    return shown
