"""PNG files from arrays, the same bytes on every machine."""

import zlib
from struct import pack

import numpy as np


def png_files(images: np.ndarray) -> list[bytes]:
    """8-bit PNG files of images `(number, height, width)` or `(number, height, width, 3)`.

    Not compressed, since what zlib makes of the same pixels depends on its version.
    """
    number, height, width, *channels = images.shape
    lines = np.zeros((number, height, 1 + images[0, 0].size), np.uint8)
    lines[..., 1:] = images.reshape(number, height, -1)  # behind the number of their filter, 0
    header = pack(">2I5B", width, height, 8, 2 if channels else 0, 0, 0, 0)
    files = []
    for image in lines:
        file = b"\x89PNG\r\n\x1a\n"
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(image.tobytes(), 0)), (b"IEND", b"")):
            file += pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))
        files.append(file)
    return files
