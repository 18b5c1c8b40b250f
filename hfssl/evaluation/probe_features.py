"""Features that probes are fitted to, and what they are of."""

from dataclasses import dataclass, field
from typing import Any


ENCODER, RANDOM_INIT, RAW_INPUT, MAJORITY = "encoder", "random_init", "raw_input", "majority"
# a few numbers about a sample that need no network: of images mean and deviation of each channel
STATISTICS = "simple_statistics"
# the checkpoint that a run continued, as it came
BEFORE = "before"
# which words a text has, with their weights: sparse
BAG_OF_WORDS = "bag_of_words"
# of sounds mean and deviation of what their spectrum is like at a time
MFCC_STATISTICS = "mfcc_statistics"


@dataclass
class ProbeFeatures:
    """Features of both splits, by what they are of: `"encoder"`, `"random_init"`, `"raw_input"`,
    `"simple_statistics"`, `"bag_of_words"`, `"mfcc_statistics"`, `"before"`.

    Args:
        model (`str`):
            Name of the encoder.
        train, test (`dict[str, np.ndarray | scipy.sparse.csr_matrix]`):
            Arrays of shape `(num_rows, dim)`, or sparse matrices.
        settings (`dict[str, Any]`):
            How they were made.
        layers (`dict[str, tuple[np.ndarray, np.ndarray]]`, *optional*):
            Of the encoder and its random initialisation, features of both splits by each layer, of shape
            `(num_rows, num_layers + 1, dim)`; empty where there are none.
    """

    model: str
    train: dict[str, Any]
    test: dict[str, Any]
    settings: dict[str, Any]
    layers: dict[str, tuple[Any, Any]] = field(default_factory=dict)
