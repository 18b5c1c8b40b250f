"""Keyed randomness: numbers that depend on what they are for, never on when or where they are drawn.

Masks, augmentations and shuffles draw from keys such as (use, seed, pass, file, row). The same key gives the same
number in every process, after every resume and for any number of workers, and whole arrays are drawn at once. The
first part of a key says what is drawn with it: [`Use`] has all uses, so that no two share numbers. The mixer is
the finaliser of SplitMix64 (Steele, Lea, Flood, 2014, "Fast splittable pseudorandom number generators"), which passes
BigCrush.
"""

from enum import IntEnum, unique

import numpy as np


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@unique
class Use(IntEnum):
    """What is drawn with a key.

    A new use takes a new number. A number that changes, changes what is drawn: then no run can be continued exactly.
    """

    # the stream: order, keys of samples, blocks and steps
    ORDER_OF_PIECES = 1
    HANDFULS = 2
    SAMPLE = 3
    BLOCK = 4
    ORDER_OF_ROWS = 5
    PHASE_OF_SOURCE = 6
    ORDER_OF_BATCHES = 7
    STEP = 8
    # drawn from the key of a sample
    MASK = 10
    WORD_MASK = 11
    MASKED_BECOMES = 12
    RANDOM_TOKEN = 13
    SENTENCE_PAIRS = 14
    PAIR = 15
    SPAN_MASK = 16
    NEGATIVES = 17
    GUMBEL = 18
    WINDOW = 19
    VIEW = 20
    FLIP = 21
    COLOR = 22
    CROP = 23
    NOISE = 24
    MASKED_VIEW = 25
    MASK_RATIO = 26
    BLOCK_MASK = 27
    CAPTION = 29
    # a training step
    TRAINING_STEP = 30
    DIRECTIONS = 31
    # images: what a view is cut out of, and its size
    TILE = 32
    VIEW_SIZE = 33
    # targets made of the whole corpus
    TARGETS = 35
    TARGET_SAMPLE = 36
    # samples of the data for something else than training
    HELD_OUT_ORDER = 40
    HELD_OUT_SAMPLE = 41
    HELD_OUT_IMAGES_ORDER = 42
    TOKENIZER_SAMPLE = 43
    STATISTICS_SAMPLE = 44
    TEXT_SIZE_SAMPLE = 45
    SEEN_SAMPLE = 46
    CONTACT_SHEET_VIEWS = 48
    LABELLED_SAMPLE = 49
    EMBEDDED_TEST_SPLIT = 50
    EMBEDDED_LETTERS = 51
    EMBEDDED_SPEECH = 52
    EMBEDDED_CHARACTERS = 55
    EMBEDDED_SCENES = 56
    # protocols
    FEW_SHOT = 60
    LABELLED_FRACTION = 61
    LINEAR_PROBE_SPLIT = 62
    ONLINE_KNN_SPLIT = 63
    FINETUNE_ORDER = 64
    FINETUNE_AUGMENTATION = 65
    QUERY_IMAGES = 66
    PLOTTED_IMAGES = 67
    PROBED_PATCHES = 75
    SECOND_VIEW = 76
    ATTENTIVE_PROBE = 77
    EXPLAINED_SAMPLES = 78
    # intervals and tests of figures
    BOOTSTRAP = 90
    PERMUTATION_TEST = 91
    # benchmarks
    BENCHMARK_IMAGES = 80
    BENCHMARK_PIECES = 81
    BENCHMARK_VIEWS = 82
    BENCHMARK_PICTURES = 83


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


def key(use: Use, *parts: "int | np.ndarray") -> np.ndarray:
    """Fold what is drawn and integers, or arrays of integers that broadcast, into one 64-bit key each.

    The order of the parts matters.

    Example:

    ```python
    >>> int(key(Use.MASK, 0, 1)) == int(key(Use.MASK, 0, 1)), int(key(Use.MASK, 0, 1)) == int(key(Use.MASK, 1, 0))
    (True, False)
    ```
    """
    result = np.uint64(0)
    with np.errstate(over="ignore"):
        for part in (use, *parts):
            if not isinstance(part, np.ndarray):
                part = np.uint64(int(part) & 0xFFFFFFFFFFFFFFFF)
            # the multiplication keeps (a, b) and (a + 1, b - 1) apart
            result = mix(result * _GOLDEN + np.asarray(part).astype(np.uint64))
    return result


def uniform(keys: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1) from keys, with the 53 bits that a float64 holds."""
    return (keys >> np.uint64(11)).astype(np.float64) * (1.0 / (1 << 53))


def permutation(size: int, use: Use, *parts: int) -> np.ndarray:
    """A permutation of `range(size)` that depends on `use` and `parts` only."""
    return generator(use, *parts).permutation(size)


def generator(use: Use, *parts: int) -> np.random.Generator:
    """A generator of random numbers that depend on `use` and `parts` only."""
    return np.random.Generator(np.random.Philox(key=int(key(use, *parts))))


def torch_seed(use: Use, *parts: int) -> int:
    """A seed for `torch.manual_seed` from `use` and `parts`: 63 bits, so that every backend takes it."""
    return int(key(use, *parts)) & 0x7FFFFFFFFFFFFFFF
