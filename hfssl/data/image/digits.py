"""The handwritten digits of scikit-learn (Alpaydin, Kaynak, 1998): real images on every machine without a download."""

import numpy as np

from ...functional import keyed
from ...functional.keyed import Use
from .png import png_files


def digits(split: str | None = None) -> dict[str, list]:
    """1,797 greyscale images of 8 × 8 pixels in 10 classes.

    They are centred and of one size, so that raw pixels tell them apart (0.98 by k-NN): easy to train on, hard to
    improve on. The files are the same on every machine.

    Args:
        split (`str`, *optional*):
            `"train"` (four fifths of each class) or `"test"` (the rest); all when left out.

    Returns:
        `dict[str, list]`: `image`, PNG files, and `label`, the digit that each shows.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    pixels = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # of 0 … 16
    rows = np.arange(len(labels))
    if split is not None:
        test = [_test_rows(np.flatnonzero(labels == digit), digit) for digit in range(10)]
        is_test = np.isin(rows, np.concatenate(test))
        rows = rows[is_test == (split == "test")]
    return {"image": png_files(pixels[rows]), "label": labels[rows].tolist()}


def _test_rows(rows: np.ndarray, digit: int) -> np.ndarray:
    return rows[keyed.permutation(len(rows), Use.EMBEDDED_TEST_SPLIT, digit)[: len(rows) // 5]]
