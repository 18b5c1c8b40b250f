"""Encoded images to pixels: 8 bits, upright; pictures in RGB and on white, all else in the channels that it has.

A picture comes out as `(3, height, width)` of `uint8`: turned as its EXIF data say, transparent parts on white,
greyscale in three equal channels, the first frame of an animation. Where one channel is wanted, it is its luma. What
has other channels comes from `arrays.py`, and is not turned into colours: it has the channels that are wanted, or is
refused. Of values with more than 8 bits a stated range becomes black to white, of each channel its own where they are
no colours: their file does not say which part of the bits is in use (12 of 16 from many sensors), nor what floats
mean. What is no number is the least of that range. Left out, the range is all that the bits hold. Colour profiles are
not applied. Plain JPEG files are decoded by torchvision, which takes less time than Pillow (2.4 times less for 32×32
pixels, 1.3 times for 375×500); all else by Pillow: torchvision has no reduced scale, and its decoder of PNG, hardly
faster, may crash the process on damaged files.

No image is decoded on a GPU, though torchvision can decode a list of JPEG files there. What is damaged has to be known
where the stream deals out its rows, before there is a batch, or a batch would be short and a run that goes on would
have other ones. Crops would have to be cut there as well, out of images of as many sizes as there are images, at full
size: a reduced scale, which saves most where images are large, is not to be had there. What helps instead are more
cores (`--dataloader_num_workers`), one decode for all crops of an image, and files hardly larger than the views.

What cannot be decoded raises [`DamagedImage`] with a short reason; nothing is decoded beyond a limit on pixels.
"""

import io
import logging
import struct
import warnings
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ...errors import first_line
from .arrays import WHITE_IS_0, ArrayFile, DamagedImage, open_array, tiff_array, turned_round


try:
    from torchvision.io import ImageReadMode, decode_jpeg, decode_png
except ImportError:  # no torchvision, or one whose decoders have moved on to torchcodec
    decode_jpeg = decode_png = None

# It tells of odd files in the log, each time: here the reason is in the error.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)

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
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_GREY_MODES = ("1", "L", "LA", *_DEEP_MODES)
ALL_OF_SIXTEEN_BITS = (0.0, 65535.0)
# Pixels a side of an array, of whose values it is judged what range they have.
_ENOUGH_TO_JUDGE = 2048
# Rec. 601
_LUMA = (0.299, 0.587, 0.114)
# Tags of a TIFF.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
# With these a JPEG 2000 begins its description, in which so many bytes further stand the bits of a value.
_START_OF_JPEG2000, _BITS_IN_JPEG2000 = b"\xff\x4f\xff\x51", 42
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


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
        bits (`int`, *optional*, defaults to 8):
            Bits of a value, where the file leaves open which of them are in use: then its values have a range that
            has to be stated. 8 otherwise.
        num_channels (`int`, *optional*):
            How many there are, of an image that is no picture in grey or in colours.
    """

    height: int
    width: int
    is_grey: bool
    format: str
    bits: int = 8
    num_channels: int | None = None


def image_header(data: bytes, num_channels: int | None = None, any_size: bool = False) -> ImageHeader:
    """Size and kind of an encoded image, without decoding its pixels.

    Args:
        data (`bytes`):
            The content of an image file.
        num_channels (`int`, *optional*):
            See [`~hfssl.data.image.arrays.open_array`].
        any_size (`bool`, *optional*, defaults to `False`):
            Whether an array may have more pixels than are decoded at once, where its parts can be decoded alone.

    Raises:
        DamagedImage: if it is no image, or one with too many pixels.
    """
    plain = _plain_jpeg(data)
    if plain is not None:
        return plain
    array = open_array(data, num_channels, any_size)
    if array is not None:
        channels, height, width = array.shape
        if not any_size or array.read_region is None:
            _check_size(height, width)
        others = None if channels in (1, 3) else channels
        return ImageHeader(height, width, channels == 1, array.format, array.bits, others)
    with _opened(data) as image:
        return _header(image, data)


def decode_image(
    data: bytes, shrink: int = 1, value_range: tuple[float, ...] | None = None, num_channels: int = 3
) -> torch.Tensor:
    """The pixels of an encoded image.

    Args:
        data (`bytes`):
            The content of an image file.
        shrink (`int`, *optional*, defaults to 1):
            1, 2, 4 or 8: a JPEG comes out reduced by this factor (sides rounded up), which saves part of its decoding
            and all that the other pixels would cost later. Other formats, and JPEGs with a side shorter than the
            factor, come out larger.
        value_range (`tuple[float, ...]`, *optional*):
            What becomes black and white of values with more than 8 bits, or these two of each channel one after the
            other; left out, all that unsigned ones of 16 bits hold. Formats that say it themselves, and 8 bits, need
            none.
        num_channels (`int`, *optional*, defaults to 3):
            Channels that are wanted. Pictures have 1 or 3 as one likes; any other number is to be that of the file,
            of which what is transparent is a channel then.

    Returns:
        `torch.Tensor` of dtype `uint8` and shape `(num_channels, height, width)`; the channels may lie together in
        memory.

    Raises:
        DamagedImage: if it cannot be decoded.
    """
    if shrink not in (1, 2, 4, 8):
        raise ValueError(f"`shrink` must be 1, 2, 4 or 8, got {shrink}.")
    if shrink == 1 and decode_jpeg is not None and num_channels in (1, 3) and _plain_jpeg(data) is not None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                mode = "RGB" if num_channels == 3 else "GRAY"
                return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode)
        except RuntimeError as error:
            raise DamagedImage(_reason(error)) from error
    array = open_array(data, num_channels)
    if array is not None:
        return array_pixels(array, value_range, num_channels)
    with _opened(data) as image:
        bits = _header(image, data).bits  # checks the size
        turn = _TURNS.get(_orientation(image))
        try:
            if shrink > 1 and image.format in ("JPEG", "MPO"):
                image.draft(None, (max(image.width // shrink, 1), max(image.height // shrink, 1)))
            image.load()
            if num_channels in (1, 3):
                upright = _rgb(image, bits, data, value_range)
                upright = upright if num_channels == 3 else upright.convert("L")
            else:
                upright = _bands(image, bits, data, value_range, num_channels)
            pixels = np.array(upright if turn is None else upright.transpose(turn))
        except DamagedImage:
            raise
        except Exception as error:
            raise DamagedImage(_reason(error)) from error
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)


def array_pixels(
    array: ArrayFile,
    value_range: tuple[float, ...] | None,
    num_channels: int,
    box: tuple[int, int, int, int] | None = None,
) -> torch.Tensor:
    """Bytes of an array, as [`decode_image`] gives them; of a part of it by its top, left, height and width.

    Raises:
        DamagedImage: if it has other channels, or cannot be decoded.
    """
    channels, height, width = array.shape
    _check_size(*(array.shape[1:] if box is None else box[2:]))
    if channels != num_channels and not (channels in (1, 3) and num_channels in (1, 3)):
        raise _other_channels(array.format, channels, num_channels)
    try:
        if box is None:
            values = array.read()
        elif array.read_region is not None:
            values = array.read_region(*box)
        else:
            top, left, height, width = box
            values = array.read()[:, top : top + height, left : left + width]
    except DamagedImage:
        raise
    except Exception as error:
        raise DamagedImage(_reason(error)) from error
    if values.dtype.kind == "b":
        pixels = values.astype(np.uint8) * np.uint8(255)
    elif values.dtype == np.uint8:
        pixels = np.ascontiguousarray(values)
    else:
        if value_range is None and (values.dtype.kind, values.dtype.itemsize) != ("u", 2):
            raise DamagedImage(_no_known_range("floats" if values.dtype.kind == "f" else f"{values.dtype} integers"))
        pixels = _in_bytes(values, value_range or ALL_OF_SIXTEEN_BITS)
    if channels == 3 and num_channels == 1:
        pixels = np.rint(np.tensordot(_LUMA, pixels, 1)).astype(np.uint8)[None]
    if not pixels.flags.writeable:
        pixels = pixels.copy()
    return torch.from_numpy(pixels).expand(num_channels, -1, -1)


def raw_values(data: bytes, num_channels: int | None = None) -> np.ndarray | None:
    """The values of an image with more than 8 bits as they are in the file; `None` where 8 bits are all there is.

    Of large arrays those of the centre, where they can be read alone. Of colours of 16 bits of which only the upper 8
    can be read these, as `uint8`. Of several channels the shape is `(num_channels, height, width)`.

    Args:
        data (`bytes`):
            The content of an image file.
        num_channels (`int`, *optional*):
            See [`~hfssl.data.image.arrays.open_array`].

    Raises:
        DamagedImage: if it cannot be decoded.
    """
    if _plain_jpeg(data) is not None:
        return None
    array = open_array(data, num_channels, in_parts=True)
    if array is not None:
        height, width = array.shape[1:]
        try:
            if array.bits <= 8:
                return None
            if array.read_region is not None and height * width > _ENOUGH_TO_JUDGE**2:
                size = min(height, _ENOUGH_TO_JUDGE), min(width, _ENOUGH_TO_JUDGE)
                return array.read_region((height - size[0]) // 2, (width - size[1]) // 2, *size)
            _check_size(height, width)
            return array.read()
        except DamagedImage:
            raise
        except Exception as error:
            raise DamagedImage(_reason(error)) from error
    with _opened(data) as image:
        if (bits := _header(image, data).bits) <= 8:
            return None
        try:
            image.load()
            if image.mode in _DEEP_MODES:
                return _values(image, bits)
            colours = _deep_colours(image, data)
            if colours is None:
                return np.asarray(image.convert("RGB"))
            return colours[:-1] if len(colours) in (2, 4) else colours  # what is transparent has no range of its own
        except Exception as error:
            raise DamagedImage(_reason(error)) from error


def _opened(data: bytes) -> Image.Image:
    if not data:
        raise DamagedImage("it is empty")
    try:
        with warnings.catch_warnings():
            # of many pixels, for which there is a limit here, and of odd metadata, which are not used
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise DamagedImage(_why_unknown(data)) from None
    except Image.DecompressionBombError:
        raise DamagedImage(f"it has more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:
        raise DamagedImage(_reason(error)) from error


def _header(image: Image.Image, data: bytes) -> ImageHeader:
    width, height = image.size
    if _orientation(image) in (5, 6, 7, 8):
        width, height = height, width
    _check_size(height, width)
    format = "JPEG" if image.format == "MPO" else image.format
    return ImageHeader(height, width, image.mode in _GREY_MODES, format, _open_bits(image, data))


def _open_bits(image: Image.Image, data: bytes) -> int:
    """Bits of a value in a format that does not say which of them are in use; Pillow scales the others: 8."""
    if image.format == "TIFF":
        return max(8, *image.tag_v2.get(_BITS, (1,)))
    if image.format == "JPEG2000" and image.mode in _DEEP_MODES:
        at = data.find(_START_OF_JPEG2000) + _BITS_IN_JPEG2000
        return min((data[at] & 127) + 1, 16) if at < len(data) else 16
    # after loading there is no tile, and a header is looked at before
    return 16 if image.format == "PNG" and image.tile and "16" in str(image.tile[0][3]) else 8


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


def _rgb(image: Image.Image, bits: int, data: bytes, value_range: tuple[float, float] | None) -> Image.Image:
    """In three channels of 8 bits, on white."""
    if image.mode in _DEEP_MODES:
        chosen = value_range if bits > 8 else None
        if chosen is None and (image.mode == "F" or (image.mode == "I" and image.format == "TIFF")):
            raise DamagedImage(
                _no_known_range("floats" if image.mode == "F" else "integers with a sign or of 32 bits")
            )
        all_of_them = (0.0, 2.0**bits - 1) if bits > 8 else ALL_OF_SIXTEEN_BITS
        image = Image.fromarray(_in_bytes(_values(image, bits), chosen or all_of_them))
    elif bits > 8 and value_range not in (None, ALL_OF_SIXTEEN_BITS):
        image = _colours_in_range(image, data, value_range)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _no_known_range(kind: str) -> str:
    return (
        f"its values are {kind}, which have no known range: state it (`--value_range LOW HIGH`), or convert it to 8 "
        "or 16 bits"
    )


def _other_channels(format: str, channels: int, wanted: int) -> DamagedImage:
    return DamagedImage(f"it is {'an' if format[0] == 'N' else 'a'} {format} of {channels} channels, not of {wanted}")


def _bands(
    image: Image.Image, bits: int, data: bytes, value_range: tuple[float, ...] | None, num_channels: int
) -> Image.Image:
    """The channels of a file as they are, of which there are so many."""
    bands = len(image.getbands())
    if bands != num_channels or image.mode in ("CMYK", "HSV", "LAB", "YCbCr", "PA"):
        raise _other_channels(image.format, 3 if image.mode in ("P", "PA") else bands, num_channels)
    if bits <= 8 or value_range in (None, ALL_OF_SIXTEEN_BITS):
        return image
    colours = _deep_colours(image, data)
    if colours is None:
        raise _upper_bits_only(image.format, value_range)
    return Image.fromarray(_in_bytes(colours, value_range).transpose(1, 2, 0))


def _values(image: Image.Image, bits: int) -> np.ndarray:
    """The values of an image in one channel, as the file has them, the greatest of them white."""
    values = np.asarray(image)
    if image.format == "JPEG2000":  # Pillow makes them fill 16 bits
        return values >> (16 - bits)
    if image.format != "TIFF" or image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] != 1:
        return values
    # Pillow takes the bits of unsigned integers for those of signed ones
    values = values.view(np.uint32) if image.mode == "I" else values
    # which it turns round in 8 bits only
    return turned_round(values, bits) if image.tag_v2.get(_PHOTOMETRIC) == WHITE_IS_0 else values


def _in_bytes(values: np.ndarray, value_range: tuple[float, ...]) -> np.ndarray:
    low, high = value_range[::2], value_range[1::2]
    if len(low) == 1:
        low, high = low[0], high[0]
    elif values.ndim == 3 and len(low) == len(values):
        low, high = (np.array(ends)[:, None, None] for ends in (low, high))
    else:
        raise DamagedImage(
            f"`--value_range` is of {len(low)} channels, and it has {len(values) if values.ndim == 3 else 1}"
        )
    values = values.astype(np.float64)
    values = np.where(np.isnan(values), low, values)
    return np.rint((values.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)


def _colours_in_range(image: Image.Image, data: bytes, value_range: tuple[float, ...]) -> Image.Image:
    colours = _deep_colours(image, data)
    if colours is None:
        raise _upper_bits_only(image.format, value_range)
    if len(colours) in (2, 4):  # what is transparent has no range of its own
        transparent = _in_bytes(colours[-1], ALL_OF_SIXTEEN_BITS)[None]
        return Image.fromarray(np.concatenate([_in_bytes(colours[:-1], value_range), transparent]).transpose(1, 2, 0))
    return Image.fromarray(_in_bytes(colours, value_range).transpose(1, 2, 0))


def _upper_bits_only(format: str | None, value_range: tuple[float, ...]) -> DamagedImage:
    return DamagedImage(
        f"of {format} files with colours of 16 bits the upper 8 are read, and so no other range than 0 to 65535, but "
        f"it is {' '.join(f'{end:g}' for end in value_range)}; pass `--value_range 0 65535`, or convert it to 8 bits "
        f"or to PNG{', or `pip install tifffile imagecodecs`' * (format == 'TIFF')}"
    )


def _deep_colours(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Channels of 16 bits, of which Pillow keeps the upper 8: `uint16` of shape `(num_channels, height, width)`.

    To be called when Pillow has decoded the file without an error, since this decoder may crash on a damaged one.
    """
    if image.format == "TIFF":
        with suppress(DamagedImage):
            return tiff_array(data).read()
    if image.format != "PNG" or decode_png is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.UNCHANGED).numpy()


def _why_unknown(data: bytes) -> str:
    """Why Pillow does not know what this is."""
    is_tiff = data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    return "it is a damaged TIFF" if is_tiff else "it is no image, or of an unknown format"


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
