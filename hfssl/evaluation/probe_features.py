"""Features that probes are fitted to, and what they are of."""

from dataclasses import dataclass
from typing import Any

import numpy as np


ENCODER, RANDOM_INIT, RAW_INPUT, MAJORITY = "encoder", "random_init", "raw_input", "majority"
# a few numbers about a sample that need no network: of images mean and deviation of each channel
STATISTICS = "simple_statistics"


@dataclass
class ProbeFeatures:
    """Features of both splits, by what they are of: `"encoder"`, `"random_init"`, `"raw_input"` and
    `"simple_statistics"`.

    Args:
        model (`str`):
            Name of the encoder.
        train, test (`dict[str, np.ndarray]`):
            Arrays of shape `(num_rows, dim)`.
        settings (`dict[str, Any]`):
            How they were made.
    """

    model: str
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    settings: dict[str, Any]
