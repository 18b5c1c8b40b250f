"""PNG files from arrays, the same bytes on every machine."""

import io
import zlib
from struct import pack
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...errors import UserError
from .arrays import encoded_array


def png_files(images: np.ndarray) -> list[bytes]:
    """8-bit PNG files of images `(number, height, width)` or `(number, height, width, 3)`.

    Not compressed, since what zlib makes of the same pixels depends on its version.
    """
    number, height, width, *channels = images.shape
    header = pack(">2I5B", width, height, 8, 2 if channels else 0, 0, 0, 0)
    return [_png(header, lines) for lines in images.reshape(number, height, -1)]


def palette_png_files(images: np.ndarray, palettes: np.ndarray) -> list[bytes]:
    """PNG files of images of 16 colours, in a sixth of the bytes.

    Args:
        images (`np.ndarray` of dtype `uint8` and shape `(number, height, width)`):
            Which of its colours each pixel of an image has, 0 to 15; the width is even.
        palettes (`np.ndarray` of dtype `uint8` and shape `(number, 16, 3)`):
            The colours of each image.
    """
    header = pack(">2I5B", images.shape[2], images.shape[1], 4, 3, 0, 0, 0)
    lines = images[..., ::2] << 4 | images[..., 1::2]
    return [_png(header, *each) for each in zip(lines, palettes, strict=True)]


def _png(header: bytes, lines: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    lines = np.pad(lines, ((0, 0), (1, 0)))  # behind the number of their filter, 0
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 0)), (b"IEND", b"")]
    if palette is not None:
        chunks.insert(1, (b"PLTE", palette.tobytes()))
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        file += pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))
    return file


def encoded_image(image: Any) -> bytes:
    """A picture, a tensor `(num_channels, height, width)` or an array `(height, width, ...)`, encoded: as a PNG where
    that holds it, else as an .npy.

    Raises:
        UserError: for anything else; what is encoded already stays as it is.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, torch.Tensor) and image.ndim == 3 and image.dtype != torch.bfloat16:
        image = image.detach().cpu().numpy().transpose(1, 2, 0)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
        if image.ndim == 2 or image.shape[2] == 3:
            return png_files(image[None])[0]
    if isinstance(image, np.ndarray) and image.dtype.kind in "buif" and image.ndim in (2, 3):
        return encoded_array(image)
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=0)
        return file.getvalue()
    what = f"{type(image).__name__} of shape {tuple(image.shape)}" if hasattr(image, "shape") else type(image).__name__
    kind = f" and type {image.dtype}" if hasattr(image, "dtype") else ""
    raise UserError(
        "An image is a PIL image, encoded bytes, a tensor (channels, height, width) or an array (height, width, "
        f"channels) of numbers, got {what}{kind}."
    )
