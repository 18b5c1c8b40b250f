"""Embedded images, on every machine without a download: the handwritten digits of scikit-learn."""

import logging
import zlib
from struct import pack

import numpy as np

from ...functional import keyed
from ...functional.keyed import Use


logger = logging.getLogger(__name__)


def embedded_images(split: str | None = None) -> tuple[list[bytes], list[int]]:
    """Handwritten digits: 1,797 greyscale images of 8×8 pixels in 10 classes (Alpaydin, Kaynak, 1998; scikit-learn).

    Args:
        split (`str`, *optional*):
            `"train"` (four fifths of each class) or `"test"` (the rest); all when left out.

    Returns:
        `tuple[list[bytes], list[int]]`: the images as PNG files, and the digit that each shows. The bytes are the same
        on every machine.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    pixels = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # of 0 … 16
    rows = np.arange(len(labels))
    if split is not None:
        test = [_test_rows(np.flatnonzero(labels == digit), digit) for digit in range(10)]
        is_test = np.isin(rows, np.concatenate(test))
        rows = rows[is_test == (split == "test")]
    return [_png(image) for image in pixels[rows]], labels[rows].tolist()


def load_embedded(split: str) -> tuple[str, dict[str, list], dict]:
    """The digits as [`~hfssl.data.modality.EmbeddedData`] wants them."""
    import datasets

    images, labels = embedded_images(split)
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("0123456789"))}
    name = f"embedded images (handwritten digits of scikit-learn, {split})"
    return name, {"image": images, "label": labels}, features


def _test_rows(rows: np.ndarray, digit: int) -> np.ndarray:
    return rows[keyed.permutation(len(rows), Use.EMBEDDED_TEST_SPLIT, digit)[: len(rows) // 5]]


def _png(image: np.ndarray) -> bytes:
    """An 8-bit greyscale PNG file. Not compressed, since what zlib makes of the same pixels depends on its version."""
    height, width = image.shape
    lines = np.pad(image, ((0, 0), (1, 0))).tobytes()  # each behind the number of its filter, 0
    header = pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 0)), (b"IEND", b"")):
        file += pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))
    return file
