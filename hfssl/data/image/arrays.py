"""Images that are more than a picture: any number of channels and type of number, from numpy files, TIFF and DICOM.

Where the channels are follows from the file, by these rules. An array with two axes has one channel; of three axes the
shorter one of the first and the last are the channels, the last where they are equally long, and a number of channels
that is stated and fits only one of them decides; more axes have to be of length 1. Of an .npz it is the only array, or
the one called `image`. In a TIFF the samples of a pixel are the channels, together or plane by plane; where a pixel
has one sample, the pages of the size of the first are (or frames of a DICOM); of several pages with several samples it
is the first. Reduced copies and masks among the pages do not count. What a GeoTIFF calls no data, and a DICOM padding,
is no number (NaN), but for values of 8 bits. Where a TIFF or DICOM says that its least value is white, values are
turned round: the greatest is white in all that comes out.

TIFF that Pillow cannot read is read by `tifffile`, DICOM by `pydicom`: both are optional.
"""

import importlib.util
import io
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from ...errors import first_line


# It tells of odd files in the log, each time: here the reason is in the error.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

# An array of more bytes is not unpacked: a small file can hold far more than there is memory.
_MAX_BYTES = 4 << 30
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags of a TIFF.
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA = 254, 256, 257, 258, 262, 277, 338
_COMPRESSION, _ORIENTATION, _GDAL_NODATA = 259, 274, 42113
_REDUCED_OR_MASK = 1 | 4
WHITE_IS_0, _BLACK_IS_0, _RGB, _CMYK, _YCBCR = 0, 1, 2, 5, 6
_NONE, _JPEG = 1, 7
_ALPHA = (1, 2)


class DamagedImage(ValueError):
    """These bytes are no image that can be decoded; the message says why, in a few words."""


@dataclass(frozen=True)
class ArrayFile:
    """An image file whose values are read as they are.

    Attributes:
        format (`str`):
            `"NPY"`, `"NPZ"`, `"TIFF"` or `"DICOM"`.
        shape (`tuple[int, int, int]`):
            Channels, height and width.
        bits (`int`):
            Of a value: 8 where its range is that of a byte.
        read (`Callable[[], np.ndarray]`):
            Gives all values, of that shape.
        read_region (`Callable[[int, int, int, int], np.ndarray]`, *optional*):
            Gives the values from top, left of a height and a width, without decoding the others. Not there where the
            format does not allow it.
    """

    format: str
    shape: tuple[int, int, int]
    bits: int
    read: Callable[[], np.ndarray]
    read_region: Callable[[int, int, int, int], np.ndarray] | None = None


def open_array(data: bytes, num_channels: int | None = None, in_parts: bool = False) -> ArrayFile | None:
    """The array in an encoded image; `None` for one that Pillow is to decode.

    Args:
        data (`bytes`):
            The content of a file.
        num_channels (`int`, *optional*):
            Channels that are wanted, where that is known. With 1 or 3 a TIFF of some other number of pages is the
            picture on its first page.
        in_parts (`bool`, *optional*, defaults to `False`):
            Whether a part of it is wanted: then a picture in a TIFF is an array too, where its parts can be decoded
            alone.

    Raises:
        DamagedImage: if it cannot be read, or the package that reads it is not there.
    """
    try:
        if data[:6] == b"\x93NUMPY":
            return _numpy_file(data, num_channels)
        if data[:4] == b"PK\x03\x04":
            return _numpy_archive(data, num_channels)
        if data[128:132] == b"DICM":
            return _dicom(data)
        if data[:4] in _TIFF_STARTS:
            if not _is_picture(data, num_channels):
                return tiff_array(data)
            return _picture_in_parts(data) if in_parts else None
    except DamagedImage:
        raise
    except Exception as error:  # a damaged file shows itself in many ways
        raise DamagedImage(f"it cannot be decoded ({first_line(error)[:200]})") from error
    return None


def encoded_array(values: np.ndarray) -> bytes:
    """An array as the content of an .npy file."""
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def _bits(dtype: np.dtype) -> int:
    if dtype.kind not in "buif":
        raise DamagedImage(f"its values are {dtype}, and no numbers of one part")
    return 8 if dtype == np.uint8 or dtype.kind == "b" else 8 * max(dtype.itemsize, 2)


def _channels_first(shape: tuple[int, ...], num_channels: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """What makes `(channels, height, width)` of an array of this shape."""
    if 0 in shape:
        raise DamagedImage(f"it has no values: its shape is {shape}")
    kept = shape
    while len(kept) > 3 and 1 in kept:  # such as a batch of one
        at = kept.index(1)
        kept = kept[:at] + kept[at + 1 :]
    if not 2 <= len(kept) <= 3:
        raise DamagedImage(
            f"it has {len(shape)} ax{'e' if len(shape) != 1 else 'i'}s {shape}: an image has (height, width), "
            "(channels, height, width) or (height, width, channels)"
        )
    if len(kept) == 2:
        return lambda values: values.reshape(kept)[None]
    first, last = kept[0], kept[2]
    is_stated = first != last and num_channels in (first, last)
    is_first = first == num_channels if is_stated else first < last
    return lambda values: values.reshape(kept) if is_first else np.moveaxis(values.reshape(kept), 2, 0)


def _numpy_file(data: bytes, num_channels: int | None, format: str = "NPY") -> ArrayFile:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DamagedImage(f"it is an .npy file of version {version[0]}.{version[1]}: save it again as plain numbers")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    bits, arrange = _bits(dtype), _channels_first(shape, num_channels)
    number, start = int(np.prod(shape)), file.tell()
    if len(data) - start < number * dtype.itemsize:
        raise DamagedImage(f"it ends after {len(data) - start:,} of {number * dtype.itemsize:,} bytes of values")

    def view() -> np.ndarray:
        values = np.frombuffer(data, dtype, number, start)  # nothing is copied
        return arrange(values.reshape(shape[::-1]).T if is_fortran else values.reshape(shape))

    def region(top: int, left: int, height: int, width: int) -> np.ndarray:
        return view()[:, top : top + height, left : left + width]

    return ArrayFile(format, view().shape, bits, view, region)


def _numpy_archive(data: bytes, num_channels: int | None) -> ArrayFile:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if len(names) != 1 and "image" not in names:
            raise DamagedImage(
                f"it holds {len(names)} arrays{': ' * bool(names)}{', '.join(names[:5])}. One is needed, or one that "
                "is called image"
            )
        member = archive.getinfo(f"{names[0] if len(names) == 1 else 'image'}.npy")
        if member.file_size > _MAX_BYTES:
            raise DamagedImage(f"its array has {member.file_size:,} bytes, more than {_MAX_BYTES:,}")
        return _numpy_file(archive.read(member), num_channels, "NPZ")


def _dicom(data: bytes) -> ArrayFile:
    try:
        import pydicom
        from pydicom.pixels import apply_color_lut, apply_modality_lut
    except ImportError as error:
        raise DamagedImage("DICOM files are read with pydicom: `pip install pydicom`") from error
    dataset = pydicom.dcmread(io.BytesIO(data))
    if "PixelData" not in dataset:
        raise DamagedImage("it is a DICOM file without pixels")
    samples, frames = int(dataset.get("SamplesPerPixel", 1)), int(dataset.get("NumberOfFrames", None) or 1)
    kind, depth, is_signed = dataset.get("PhotometricInterpretation"), int(dataset.BitsStored), False
    if kind == "PALETTE COLOR":  # values are places in a table of colours
        samples, depth = 3, int(dataset.RedPaletteColorLookupTableDescriptor[2])
    else:
        is_signed = bool(dataset.get("PixelRepresentation", 0))
    # a slope and an offset, or a table: the values of the device become those of a scale, such as Hounsfield's
    is_scaled = samples == 1 and any(name in dataset for name in ("ModalityLUTSequence", "RescaleSlope"))
    bits = 16 if is_scaled or is_signed or depth > 8 else 8
    padding = dataset.get("PixelPaddingValue") if samples == 1 and bits > 8 else None

    def read() -> np.ndarray:
        values = dataset.pixel_array
        is_padding = np.False_
        if padding is not None:  # of the device, not of its scale
            # written as one with a sign or without, whatever the values are
            ends = [padding, dataset.get("PixelPaddingRangeLimit", padding)]
            low, high = np.sort(np.array([int(end) for end in ends], np.int64).astype(values.dtype))
            is_padding = (values >= low) & (values <= high)
        if kind == "PALETTE COLOR":
            values = apply_color_lut(values, dataset)[..., :3]
        if kind == "MONOCHROME1":  # the least is white
            values = np.invert(values) if is_signed else turned_round(values, depth)
        if is_scaled:
            values = apply_modality_lut(values, dataset).astype(np.float32)
        if samples > 1:
            return np.moveaxis(values[0] if frames > 1 else values, -1, 0)
        return _without(values, is_padding).reshape(frames, *values.shape[-2:])

    return ArrayFile(
        "DICOM", (samples if samples > 1 else frames, int(dataset.Rows), int(dataset.Columns)), bits, read
    )


def _pages(data: bytes) -> Iterator[ImageFileDirectory_v2]:
    """The tags of each page of a TIFF."""
    file = io.BytesIO(data)
    head = file.read(16 if b"+" in data[:4] else 8)
    tags, seen = ImageFileDirectory_v2(head), set()
    while (at := tags.next) and at not in seen:
        seen.add(at)
        file.seek(at)
        tags = ImageFileDirectory_v2(head)
        tags.load(file)
        yield tags


def _whole_pages(data: bytes) -> list[ImageFileDirectory_v2]:
    return [tags for tags in _pages(data) if not tags.get(_SUBFILE, 0) & _REDUCED_OR_MASK]


def _num_alike(pages: list[ImageFileDirectory_v2]) -> int:
    """How many pages are of the size of the first."""
    sizes = [(tags.get(_WIDTH), tags.get(_HEIGHT)) for tags in pages]
    return sizes.count(sizes[0])


def _picture_in_parts(data: bytes) -> ArrayFile | None:
    """A TIFF that Pillow can read as an array with parts, where its values are all that there is to its colours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pages = _whole_pages(data)
        first = pages[0]
        bits, compression, samples = first.get(_BITS, (1,)), first.get(_COMPRESSION, _NONE), first.get(_SAMPLES, 1)
        kinds = {1: (WHITE_IS_0, _BLACK_IS_0), 3: (_RGB, _YCBCR) if compression == _JPEG else (_RGB,)}
        is_plain = (
            first.get(_PHOTOMETRIC) in kinds.get(samples, ())
            and (samples == 3 or _num_alike(pages) == 1)
            and {*(bits if isinstance(bits, tuple) else (bits,))} <= {8, 16, 32}
            and first.get(_ORIENTATION, 1) == 1
        )
        if not is_plain or (compression != _NONE and importlib.util.find_spec("imagecodecs") is None):
            return None
        array = tiff_array(data)
        return array if array.read_region is not None else None
    except Exception:  # a damaged one, or a package that is not there, for Pillow to say
        return None


def _is_picture(data: bytes, num_channels: int | None) -> bool:
    """Whether a TIFF is one page in grey, in colour or with something transparent, and Pillow knows how."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pages = _whole_pages(data)
        first = pages[0]
    except Exception:  # a damaged one, for Pillow to say
        return True
    samples, extra = first.get(_SAMPLES, 1), first.get(_EXTRA, (0,))
    number = samples if samples > 1 else _num_alike(pages)
    with_alpha = (extra if isinstance(extra, tuple) else (extra,))[-1] in _ALPHA
    photometric = first.get(_PHOTOMETRIC)
    is_picture = (
        number in (1, 3 if samples == 3 else 1)
        or (samples == 2 and with_alpha)
        or (samples == 4 and (photometric == _CMYK or (photometric == _RGB and with_alpha)))
    )
    is_first_page = samples == 1 and num_channels in (1, 3) and number not in (1, num_channels)
    bits = first.get(_BITS, (1,))
    has_nodata = _GDAL_NODATA in first and max(bits if isinstance(bits, tuple) else (bits,)) > 8
    if has_nodata or not (is_picture or is_first_page):
        return False
    try:
        with Image.open(io.BytesIO(data), formats=("TIFF",)):
            return True
    except Exception:
        return False


def tiff_array(data: bytes) -> ArrayFile:
    """A TIFF by `tifffile`, whatever Pillow can do."""
    try:
        import tifffile
    except ImportError as error:
        raise DamagedImage(
            "TIFF files of other channels than grey, or red, green and blue in 8 or 16 bits, are read with tifffile: "
            "`pip install tifffile imagecodecs`"
        ) from error
    # it stays open as long as the array is there: to read the list of all parts takes longer than a part
    series = tifffile.TiffFile(io.BytesIO(data)).series[0]
    page, axes, shape, dtype = series.keyframe, series.axes, series.shape, series.dtype
    if dtype is None or 0 in shape:
        raise DamagedImage("it is a TIFF without pixels" if dtype is not None else "it is a TIFF of unknown numbers")
    sizes = dict(zip(axes, shape, strict=True))
    if "Y" not in sizes or "X" not in sizes:
        raise DamagedImage(f"it is a TIFF with the axes {axes} of {shape}, and no height and width")
    others = [axis for axis in axes if axis not in "YXS" and sizes[axis] > 1]
    samples = sizes.get("S", 1)
    if len(others) > 1:
        raise DamagedImage(
            f"it is a TIFF with the axes {axes} of {shape}: beside height and width there may be one, the channels. "
            "Save what belongs to an image as a file"
        )
    channel = "S" if samples > 1 or not others else others[0]

    def arrange(values: np.ndarray) -> np.ndarray:
        """Without the axes of one, with the first of the pages that are no channels, channels first."""
        values = values[tuple(slice(None) if axis in ("Y", "X", channel) else 0 for axis in axes)]
        left = [axis for axis in axes if axis in ("Y", "X", channel)]
        if channel not in left:
            values, left = values[None], [channel, *left]
        return values.transpose([left.index(axis) for axis in (channel, "Y", "X")])

    nodata = page.nodata if _GDAL_NODATA in page.tags and np.dtype(dtype) != np.uint8 else None
    # what is white is said of grey, and of no further samples; where nothing is said, tifffile has 0 as well
    is_turned = page.photometric == WHITE_IS_0 and _PHOTOMETRIC in page.tags and np.dtype(dtype).kind in "bu"
    num_grey = page.samplesperpixel - len(page.extrasamples) if samples > 1 else None

    def upright(values: np.ndarray) -> np.ndarray:
        """Values, channels first, with the greatest as white and those that stand for no data as NaN."""
        is_nothing = np.False_ if nodata is None else values == nodata  # as they are stored
        if is_turned:
            grey = turned_round(values[:num_grey], page.bitspersample)
            values = np.concatenate([grey, values[len(grey) :]])
        return _without(values, is_nothing)

    def read() -> np.ndarray:
        return upright(arrange(series.asarray()))

    def region(top: int, left: int, height: int, width: int) -> np.ndarray:
        pages = [series.keyframe] if channel == "S" else series.pages
        values = np.concatenate([_region_of_page(page, top, left, height, width) for page in pages])
        return upright(values)

    is_cut = len(page.dataoffsets) > 1 and page.imagedepth == 1
    shape = (sizes.get(channel, 1), sizes["Y"], sizes["X"])
    return ArrayFile("TIFF", shape, _bits(np.dtype(dtype)), read, region if is_cut else None)


def turned_round(values: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned integers of so many bits, or booleans: what was the least is the greatest."""
    return np.invert(values) if values.dtype.kind == "b" else values.dtype.type((1 << bits) - 1) - values


def _without(values: np.ndarray, nothing: np.ndarray) -> np.ndarray:
    """Values of which those where there is `nothing` are NaN; as they are where there is none."""
    if not nothing.any():
        return values
    wide = values.dtype.itemsize > 2 and values.dtype != np.float32
    return np.where(nothing, np.nan, values.astype(np.float64 if wide else np.float32))


def _region_of_page(page: Any, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Values `(samples, height, width)` of a page of a TIFF, of which only the tiles or strips that hold them are
    decoded."""
    page = page.aspage() if hasattr(page, "aspage") else page
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    down, across = -(-page.imagelength // rows), -(-page.imagewidth // columns)
    planes = len(page.dataoffsets) // (down * across)
    values = np.full((page.samplesperpixel, height, width), page.nodata, page.dtype)
    file = page.parent.filehandle
    for plane in range(planes):
        for i in range(top // rows, -(-(top + height) // rows)):
            for j in range(left // columns, -(-(left + width) // columns)):
                index = (plane * down + i) * across + j
                if not page.databytecounts[index]:
                    continue  # one that holds nothing
                file.seek(page.dataoffsets[index])
                encoded = file.read(page.databytecounts[index])
                part = page.decode(encoded, index, jpegtables=page.jpegtables)[0]  # (1, rows, columns, samples)
                part = np.moveaxis(part[0], -1, 0)
                y, x = i * rows - top, j * columns - left
                inside = part[:, max(-y, 0) : height - y, max(-x, 0) : width - x]
                at = (slice(max(y, 0), max(y, 0) + inside.shape[1]), slice(max(x, 0), max(x, 0) + inside.shape[2]))
                values[(slice(plane, plane + inside.shape[0]), *at)] = inside
    return values
