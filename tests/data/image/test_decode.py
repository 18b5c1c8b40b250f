"""Every kind of image comes out as Pillow shows it: 8 bits, RGB, upright, on white. What is no image says why."""

import importlib.util
import io
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hfssl.data.image import decode
from hfssl.data.image.decode import DamagedImage, ImageHeader, decode_image, image_header, raw_values


def picture(height=37, width=53, seed=0):
    """A smooth picture in colours, with some noise."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [128 + 100 * np.sin((x * a + y * b) / 9) for a, b in ((1, 0.3), (0.2, 1), (0.7, -0.7))]
    noise = np.random.default_rng(seed).normal(0, 4, (height, width, 3))
    return Image.fromarray((np.stack(channels, 2) + noise).clip(0, 255).astype(np.uint8))


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels_of(image):
    """`(3, height, width)` of a Pillow image in RGB."""
    return np.asarray(image).transpose(2, 0, 1).astype(int)


def assert_shows(data, expected, tolerance=0):
    """The bytes decode to the Pillow image, and their header says the same size."""
    pixels = decode_image(data)
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, expected.height, expected.width)
    assert np.abs(pixels.numpy().astype(int) - pixels_of(expected)).max() <= tolerance
    header = image_header(data)
    assert (header.height, header.width) == (expected.height, expected.width)


@pytest.fixture(params=["as installed", "without torchvision"])
def decoders(request, monkeypatch):
    if request.param == "without torchvision":
        monkeypatch.setattr(decode, "decode_jpeg", None)


# -- formats and modes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000", "GIF"])
def test_lossless_files_come_out_as_they_went_in(decoders, format):
    image = picture()
    if format == "GIF":
        image = image.quantize(64).convert("RGB")
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(format, {})
    data = encoded(image, format, **options)
    assert_shows(data, image)
    assert image_header(data) == ImageHeader(37, 53, False, format)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
@pytest.mark.parametrize("grey", [False, True])
def test_jpeg_comes_out_as_in_pillow(decoders, grey, options):
    data = encoded(picture().convert("L") if grey else picture(), "JPEG", **options)
    # both use libjpeg-turbo, in builds of their own
    assert_shows(data, Image.open(io.BytesIO(data)).convert("RGB"), tolerance=2)
    assert image_header(data) == ImageHeader(37, 53, grey, "JPEG")


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "JPEG2000"])
def test_greyscale_is_three_equal_channels(decoders, format):
    image = picture().convert("L")
    data = encoded(image, format, **({"irreversible": False} if format == "JPEG2000" else {}))
    assert_shows(data, Image.merge("RGB", [image] * 3))
    assert image_header(data).is_grey


def test_black_and_white(decoders):
    image = picture().convert("1")
    data = encoded(image, "PNG")
    assert_shows(data, image.convert("RGB"))
    assert set(decode_image(data).unique().tolist()) == {0, 255} and image_header(data).is_grey


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_and_not_clipped(decoders, format):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    data = encoded(Image.fromarray(values), format)
    pixels = decode_image(data)
    assert np.array_equal(pixels.numpy(), np.stack([np.rint(values / 257)] * 3))
    assert image_header(data).is_grey


def test_sixteen_bits_in_colours(decoders):
    values = np.random.default_rng(0).integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    data = png_of(values)
    pixels = decode_image(data).numpy().astype(int)
    assert np.abs(pixels - values.transpose(2, 0, 1) / 257).max() <= 1
    assert not image_header(data).is_grey


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_known_range_are_refused(mode):
    data = encoded(Image.fromarray(np.linspace(0, 9000, 64).reshape(8, 8)).convert(mode), "TIFF")
    with pytest.raises(
        DamagedImage, match=r"no known range: state it \(`--value_range LOW HIGH`\), or convert it to 8 or 16 bits"
    ):
        decode_image(data)


def png_of(values):
    """A PNG of 16 bits a value, of `(height, width, channels)`."""
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in values)
    color = {2: 4, 3: 2, 4: 6}[values.shape[2]]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in (
        (b"IHDR", struct.pack(">2I5B", *values.shape[1::-1], 16, color, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ):
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data


@pytest.mark.parametrize("format, kind", [("PNG", "u2"), ("TIFF", "u2"), ("TIFF", "i4"), ("TIFF", "f4")])
def test_a_stated_range_becomes_black_to_white(format, kind):
    values = np.linspace(-500 if kind != "u2" else 0, 5000, 64).reshape(8, 8).astype(kind)
    data = encoded(Image.fromarray(values), format)
    expected = np.rint((values.astype(float).clip(100, 4095) - 100) * 255 / 3995)
    assert np.array_equal(decode_image(data, value_range=(100, 4095)).numpy(), np.stack([expected] * 3))
    header = image_header(data)
    assert header.bits == (16 if kind == "u2" else 32) and header.is_grey
    assert np.array_equal(raw_values(data), values)


def test_values_that_are_no_numbers_are_black():
    values = np.array([[np.nan, -np.inf, np.inf, 0.5]], dtype="f4")
    assert decode_image(encoded(Image.fromarray(values), "TIFF"), value_range=(0, 1))[0].tolist() == [[0, 0, 255, 128]]


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_sixteen_bits_in_a_range(channels):
    values = np.random.default_rng(0).integers(0, 4096, (9, 7, channels), dtype=np.uint16)
    if channels != 3:
        values[..., -1] = 65535  # nothing is transparent
    data = png_of(values)
    assert image_header(data).bits == 16 and raw_values(data).max() > 3800
    pixels = decode_image(data, value_range=(0, 4095)).numpy()
    colours = values[..., :1].repeat(3, axis=2) if channels == 2 else values[..., :3]
    assert np.abs(pixels - colours.transpose(2, 0, 1) / 4095 * 255).max() <= 0.51


def tiff_of(values):
    """An uncompressed TIFF of any number of channels."""
    height, width, channels = values.shape
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = {256: width, 257: height, 259: 1, 262: 2 if channels in (3, 4) else 1, 277: channels, 278: height}
    lists = {258: [8 * values.itemsize] * channels, 339: [kind] * channels}
    start = 8 + 2 + 12 * (len(tags) + len(lists) + 2) + 4
    tags |= {273: start + 2 * 16 * channels, 279: values.nbytes}
    body, outside = struct.pack("<2sHIH", b"II", 42, 8, len(tags) + len(lists)), b""
    for tag, value in sorted((tags | lists).items()):
        if isinstance(value, list):
            packed = struct.pack(f"<{channels}H", *value)
            inside = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", start + len(outside))
            outside += packed.ljust(16 * channels, b"\0")
            body += struct.pack("<HHI", tag, 3, channels) + inside
        else:
            body += struct.pack("<HHII", tag, 4, 1, value)
    return body + bytes(4) + outside + values.tobytes()


def test_colours_of_sixteen_bits_in_a_tiff_have_the_whole_range_only_without_tifffile(monkeypatch):
    values = np.random.default_rng(0).integers(0, 4096, (9, 7, 3), dtype=np.uint16)
    data = tiff_of(values)
    assert np.abs(decode_image(data, value_range=(0, 65535)).numpy() - values.transpose(2, 0, 1) / 257).max() <= 1
    if importlib.util.find_spec("tifffile"):
        assert (raw_values(data) == values.transpose(2, 0, 1)).all()
        pixels = decode_image(data, value_range=(0, 4095))
        assert np.abs(pixels.numpy() - values.transpose(2, 0, 1) * (255 / 4095)).max() <= 0.5
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert raw_values(data).max() < 8192  # enough to judge by
    with pytest.raises(
        DamagedImage,
        match="no other range than 0 to 65535, but it is 0 4095; pass `--value_range 0 65535`, .*`pip inst",
    ):
        decode_image(data, value_range=(0, 4095))


@pytest.mark.parametrize("channels, kind", [(13, "u2"), (3, "f4"), (2, "u1"), (1, "f8")])
def test_tiffs_that_pillow_cannot_read_are_read_as_arrays(channels, kind):
    pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 200, (8, 8, channels)).astype(kind)
    pixels = decode_image(tiff_of(values), value_range=(0, 255), num_channels=channels if channels > 1 else 3)
    assert (pixels.permute(1, 2, 0).numpy() == values).all()


@pytest.mark.parametrize("format, mode", [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA"), ("TIFF", "RGBA")])
def test_transparent_parts_are_on_white(decoders, format, mode):
    image = picture().convert(mode)
    alpha = np.linspace(0, 255, 37 * 53).reshape(37, 53).astype(np.uint8)
    image.putalpha(Image.fromarray(alpha))
    data = encoded(image, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    color = pixels_of(image.convert("RGB"))
    white = (color * alpha + 255 * (255 - alpha.astype(int))) / 255
    assert np.abs(decode_image(data).numpy() - white).max() <= 1
    assert image_header(data).is_grey == (mode == "LA")


def test_one_transparent_colour(decoders):
    image = Image.new("RGB", (4, 4), (10, 20, 30))
    image.putpixel((1, 2), (1, 2, 3))
    pixels = decode_image(encoded(image, "PNG", transparency=(10, 20, 30)))
    assert pixels[:, 2, 1].tolist() == [1, 2, 3] and pixels[:, 0, 0].tolist() == [255, 255, 255]


def test_palettes_with_and_without_transparency(decoders):
    image = picture().quantize(16)
    assert_shows(encoded(image, "PNG"), image.convert("RGB"))
    pixels = decode_image(encoded(image, "PNG", transparency=3)).numpy()
    transparent = np.asarray(image) == 3
    assert transparent.any() and (pixels[:, transparent] == 255).all()
    assert np.array_equal(pixels[:, ~transparent], pixels_of(image.convert("RGB"))[:, ~transparent])


def test_cmyk(decoders):
    image = picture().convert("CMYK")
    assert_shows(encoded(image, "TIFF"), image.convert("RGB"))
    data = encoded(image, "JPEG", quality=95)
    assert_shows(data, Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(decode_image(data).numpy() - pixels_of(picture())).mean() < 4


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(decoders, format):
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "green", "blue")]
    data = encoded(
        frames[0], format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
    )
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert_shows(data, frames[0])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_data_say(decoders, format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(format, {})
    data = encoded(picture(), format, exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright.size == ((53, 37) if orientation < 5 else (37, 53))
    assert_shows(data, upright.convert("RGB"), tolerance=2)


def test_damaged_exif_data_are_as_none(decoders):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(), "JPEG", exif=exif)
    at = data.index(b"Exif") + 6
    assert_shows(
        data[:at] + b"\xff" * 8 + data[at + 8 :], Image.open(io.BytesIO(encoded(picture(), "JPEG"))), tolerance=2
    )


def test_a_header_is_read_without_the_pixels():
    for format in ("JPEG", "PNG", "WEBP", "TIFF"):
        data = encoded(picture(200, 300), format)
        if format != "TIFF":  # has its header behind the pixels
            data = data[: len(data) * 2 // 3] if format != "WEBP" else data
        assert image_header(data) == ImageHeader(200, 300, False, format)


def test_other_application_data_of_a_jpeg_is_passed_over(decoders):
    plain = encoded(picture(), "JPEG")
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x/>"
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(xmp)) + xmp + plain[2:]
    assert torch.equal(decode_image(data), decode_image(plain))
    assert torch.equal(decode_image(encoded(picture(), "JPEG", icc_profile=b"x" * 70000)), decode_image(plain))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_images_of_one_pixel(decoders, format, size):
    image = Image.new("RGB", size, (200, 200, 200))
    for shrink in (1, 8):
        pixels = decode_image(encoded(image, format), shrink=shrink)
        assert pixels.min() >= 199 and pixels.max() <= 201 and pixels.numel() > 0
    assert_shows(encoded(image, format), image, tolerance=1)


# -- reduced scale ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_comes_out_reduced(shrink, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    size = (203, 301)
    data = encoded(picture(*size), "JPEG", quality=95, exif=exif)
    whole = decode_image(data)
    small = decode_image(data, shrink=shrink)
    assert small.shape[1:] == tuple(-(-side // shrink) for side in whole.shape[1:])
    # what is left is the mean of the pixels that it stands for
    rows, columns = small.shape[1] - 1, small.shape[2] - 1
    if orientation == 6:  # the incomplete blocks are then on the other side
        whole = whole.flip(2)
        small = small.flip(2)
    means = whole[:, : rows * shrink, : columns * shrink].float()
    means = torch.nn.functional.avg_pool2d(means, shrink)
    assert (small[:, :rows, :columns].float() - means).abs().mean() < 4


def test_other_formats_keep_their_size():
    assert decode_image(encoded(picture(), "PNG"), shrink=4).shape == (3, 37, 53)
    with pytest.raises(ValueError, match="`shrink` must be 1, 2, 4 or 8, got 3"):
        decode_image(encoded(picture(), "PNG"), shrink=3)


# -- what is no image -------------------------------------------------------------------------------------------------


def refused(data):
    """Why the bytes cannot be decoded."""
    with pytest.raises(DamagedImage) as error:
        decode_image(data)
    return str(error.value)


@pytest.mark.parametrize(
    "data", [b"no image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 500]
)
def test_what_is_no_image(decoders, data):
    assert "it is no image, or of an unknown format" in refused(data) or "cannot be decoded" in refused(data)
    with pytest.raises(DamagedImage):
        image_header(data)


def test_nothing_at_all():
    assert refused(b"") == "it is empty"
    with pytest.raises(DamagedImage, match="it is empty"):
        image_header(b"")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_truncated_files(decoders, format, kept):
    data = encoded(picture(200, 200), format)
    assert "it cannot be decoded" in (words := refused(data[: int(kept * len(data))])) or "no image" in words


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_noise_in_a_file_gives_pixels_or_a_reason(decoders, format):
    data = encoded(picture(), format)
    rng = np.random.default_rng(0)
    for _ in range(60):
        noisy = bytearray(data)
        for at in rng.integers(0, len(data), 5):
            noisy[at] = rng.integers(256)
        try:
            pixels = decode_image(bytes(noisy))
        except DamagedImage as error:
            assert len(str(error)) < 300 and "\n" not in str(error)
        else:
            assert pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[0] == 3


@pytest.mark.filterwarnings("error")
def test_decompression_bombs_are_refused_before_they_are_decoded(decoders):
    def png(side):
        header = struct.pack(">2I5B", side, side, 8, 0, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n"
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")):
            data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        return data

    for side in (10_000, 60_000):
        assert "more than 89,478,485 pixels" in refused(png(side))
        with pytest.raises(DamagedImage, match="more than"):
            image_header(png(side))
    bomb = bytearray(encoded(picture(), "JPEG", exif=Image.Exif()))
    at = bomb.index(b"\xff\xc0")
    struct.pack_into(">2H", bomb, at + 5, 10_000, 10_000)
    assert "10000 × 10000, more" in refused(bytes(bomb))
    assert "10000 × 10000, more" in refused(encoded(Image.new("1", (10_000, 10_000)), "TIFF", compression="group4"))


def test_the_limit_is_on_pixels(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 37 * 53)
    assert decode_image(encoded(picture(), "JPEG")).shape == (3, 37, 53)
    monkeypatch.setattr(decode, "MAX_PIXELS", 37 * 53 - 1)
    assert "53 × 37, more than 1,960 pixels" in refused(encoded(picture(), "JPEG"))


def test_sides_of_no_length():
    data = bytearray(encoded(picture(), "JPEG"))
    struct.pack_into(">H", data, data.index(b"\xff\xc0") + 5, 0)
    # Pillow alone does not take it for a JPEG
    assert refused(bytes(data)) in ("it has 53 × 0 pixels", "it is no image, or of an unknown format")
