"""Encoded images to pixels: 8 bits, RGB, upright, on white.

Every image comes out as `(3, height, width)` of `uint8`: turned as its EXIF data say, transparent parts on white,
greyscale in three equal channels, 16 bits scaled to 8, the first frame of an animation. Colour profiles are not
applied. Plain JPEG files are decoded by torchvision, which takes less time than Pillow (2.4 times less for 32×32
pixels, 1.3 times for 375×500); all else by Pillow: torchvision has no reduced scale, and its decoder of PNG, hardly
faster, may crash the process on damaged files.

What cannot be decoded raises [`DamagedImage`] with a short reason; nothing is decoded beyond a limit on pixels.
"""

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ...errors import first_line


try:
    from torchvision.io import decode_jpeg
except ImportError:  # no torchvision, or one whose decoders have moved on to torchcodec
    decode_jpeg = None

# What Pillow warns of: a quarter of a GiB of pixels. A small file can hold far more than there is memory.
MAX_PIXELS = 89_478_485
# Formats that are opened, where this Pillow has them. Others run programs (EPS), or take any file for theirs (TGA).
_WANTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "PCX", "SGI")
Image.init()
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)

_ORIENTATION = 0x0112
# What makes an image upright, by its orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N", "I")
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class DamagedImage(ValueError):
    """These bytes are no image that can be decoded; the message says why, in a few words."""


@dataclass(frozen=True)
class ImageHeader:
    """What an image file says about itself.

    Attributes:
        height, width (`int`):
            Pixels, of the upright image.
        is_grey (`bool`):
            Whether the file has one channel of colour. An RGB file may still show shades of grey only.
        format (`str`):
            Pillow's name of the file format, such as `"JPEG"`.
    """

    height: int
    width: int
    is_grey: bool
    format: str


def image_header(data: bytes) -> ImageHeader:
    """Size and kind of an encoded image, without decoding its pixels.

    Raises:
        DamagedImage: if it is no image, or one with too many pixels.
    """
    plain = _plain_jpeg(data)
    if plain is not None:
        return plain
    with _opened(data) as image:
        return _header(image)


def decode_image(data: bytes, shrink: int = 1) -> torch.Tensor:
    """The pixels of an encoded image.

    Args:
        data (`bytes`):
            The content of an image file.
        shrink (`int`, *optional*, defaults to 1):
            1, 2, 4 or 8: a JPEG comes out reduced by this factor (sides rounded up), which saves part of its decoding
            and all that the other pixels would cost later. Other formats, and JPEGs with a side shorter than the
            factor, come out larger.

    Returns:
        `torch.Tensor` of dtype `uint8` and shape `(3, height, width)`; the channels may lie together in memory.

    Raises:
        DamagedImage: if it cannot be decoded.
    """
    if shrink not in (1, 2, 4, 8):
        raise ValueError(f"`shrink` must be 1, 2, 4 or 8, got {shrink}.")
    if shrink == 1 and decode_jpeg is not None and _plain_jpeg(data) is not None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), "RGB")
        except RuntimeError as error:
            raise DamagedImage(_reason(error)) from error
    with _opened(data) as image:
        _header(image)  # checks the size
        turn = _TURNS.get(_orientation(image))
        try:
            if shrink > 1 and image.format in ("JPEG", "MPO"):
                image.draft(None, (max(image.width // shrink, 1), max(image.height // shrink, 1)))
            image.load()
            upright = _rgb(image, image.format) if turn is None else _rgb(image, image.format).transpose(turn)
            pixels = np.array(upright)
        except DamagedImage:
            raise
        except Exception as error:
            raise DamagedImage(_reason(error)) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _opened(data: bytes) -> Image.Image:
    if not data:
        raise DamagedImage("it is empty")
    try:
        with warnings.catch_warnings():
            # of many pixels, for which there is a limit here, and of odd metadata, which are not used
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise DamagedImage("it is no image, or of an unknown format") from None
    except Image.DecompressionBombError:
        raise DamagedImage(f"it has more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:
        raise DamagedImage(_reason(error)) from error


def _header(image: Image.Image) -> ImageHeader:
    width, height = image.size
    if _orientation(image) in (5, 6, 7, 8):
        width, height = height, width
    _check_size(height, width)
    return ImageHeader(height, width, image.mode in _GREY_MODES, "JPEG" if image.format == "MPO" else image.format)


def _orientation(image: Image.Image) -> int:
    """As EXIF data before the pixels say."""
    # Pillow turns a TIFF by itself, and decodes a PNG to look for what may stand behind the pixels
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata: as if there were none
        return 1


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise DamagedImage(f"it has {width} × {height} pixels")
    if height * width > MAX_PIXELS:
        raise DamagedImage(f"it has {width} × {height}, more than {MAX_PIXELS:,} pixels")


def _rgb(image: Image.Image, format: str) -> Image.Image:
    """In three channels of 8 bits, on white."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N") or (image.mode == "I" and format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise DamagedImage("its pixels have 32 bits, and so no known range; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _plain_jpeg(data: bytes) -> ImageHeader | None:
    """The header of a JPEG file without EXIF data, in 8 bits and 1 or 3 channels; None where Pillow has to look."""
    at = 2 if data[:3] == b"\xff\xd8\xff" else len(data)
    while at + 9 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker in _START_OF_FRAME:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
            if bits != 8 or channels not in (1, 3):
                return None
            _check_size(height, width)
            return ImageHeader(height, width, channels == 1, "JPEG")
        has_no_length = not 0xC0 < marker < 0xFF or 0xD0 <= marker <= 0xD9
        if has_no_length or (marker == 0xE1 and data[at + 4 : at + 8] == b"Exif"):
            return None
        at += 2 + length
    return None


def _reason(error: Exception) -> str:
    return f"it cannot be decoded ({first_line(error)[:200]})"
