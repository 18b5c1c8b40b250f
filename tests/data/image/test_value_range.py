"""The range of values of images with more than 8 bits: judged on a sample, stated, and said."""

import io
import logging
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hfssl.data.image.decode import decode_image, image_header, raw_values
from hfssl.data.image.value_range import RangeOfSet, check_range, judge_range
from hfssl.errors import UserError


def images(low, high, kind="u2", number=4, format="TIFF"):
    """Small images with values all over a range."""
    for seed in range(number):
        values = np.random.default_rng(seed).uniform(low, high, (32, 32))
        file = io.BytesIO()
        Image.fromarray(values.astype(kind)).save(file, format)
        yield file.getvalue()


@pytest.mark.parametrize(
    "low, high, kind, judged",
    [
        (0, 4096, "u2", (0, 4095)),
        (0, 65536, "u2", (0, 65535)),
        (100, 10000, "u2", (0, 16383)),
        (0, 10, "u2", (0, 15)),
        (0, 1, "f4", (0, 1)),
        (0, 1.005, "f4", (0, 1)),
        (0, 0.05, "f4", (0, 0.0625)),
        (0, 255, "f4", (0, 256)),
        (-1000, 3000, "i4", (-1024, 4095)),
        (-1, 1, "f4", (-1, 1)),
    ],
)
def test_the_range_is_the_powers_of_two_that_hold_the_values(low, high, kind, judged, caplog):
    with caplog.at_level(logging.INFO, "hfssl"):
        assert judge_range(images(low, high, kind)) == judged
    assert f"{judged[0]:.6g} to {judged[1]:.6g} become black to white. `--value_range LOW HIGH`" in caplog.text


@pytest.mark.parametrize("bits", [16, 15, 12])
def test_of_jpeg_2000_the_values_are_those_of_the_file(bits):
    """Pillow makes those with fewer bits fill 16; satellites say 15, and use less."""
    values = np.random.default_rng(0).integers(100, 4000, (32, 32)).astype(np.uint16)
    file = io.BytesIO()
    if bits == 16:
        Image.fromarray(values).save(file, "JPEG2000", irreversible=False)
    else:
        encode = pytest.importorskip("imagecodecs").jpeg2k_encode
        file.write(encode(values, level=0, bitspersample=bits, reversible=True))
    data = file.getvalue()
    assert image_header(data).bits == bits and np.array_equal(raw_values(data), values)
    assert judge_range([data]) == (0, 4095)
    assert np.array_equal(decode_image(data, value_range=(0, 4095))[0], np.rint(values * (255 / 4095)))
    assert np.array_equal(decode_image(data)[0], np.rint(values * (255 / (2**bits - 1))))


def test_values_in_a_corner_have_a_range_of_their_own():
    low, high = judge_range(images(7000, 9000))
    assert 7000 <= low < 7010 and 8990 < high <= 9000
    low, high = judge_range(images(-5000, -4000, "f4"))
    assert -5000 <= low < -4990 and -4010 < high <= -4000


def test_single_glaring_pixels_do_not_make_the_others_dark():
    values = np.random.default_rng(0).integers(0, 4096, (64, 64), dtype=np.uint16)
    values[5, 5] = 65535
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    assert judge_range([file.getvalue()]) == (0, 4095)


def test_there_is_none_of_images_of_eight_bits(caplog):
    with caplog.at_level(logging.INFO, "hfssl"):
        assert judge_range([*images(0, 256, "u1", format="PNG"), b"damaged", b""]) is None
    assert not caplog.text


def test_images_of_one_value_are_black():
    assert judge_range(images(0, 0)) == (0, 1)
    assert judge_range(images(300, 300)) == (0, 511)


def test_stated_before_trained_before_judged():
    sample, processor = list(images(0, 4096)), SimpleNamespace(value_range=[0, 1000])
    assert RangeOfSet(sample, (5, 6)).for_encoder(processor) == (5, 6)
    assert RangeOfSet(sample).for_encoder(processor) == (0, 1000)
    judged = pickle.loads(pickle.dumps(RangeOfSet(sample)))
    assert judged.for_encoder(SimpleNamespace()) == (0, 4095)
    assert RangeOfSet([]).for_encoder(None) is None


def test_the_range_is_judged_in_the_channels_that_an_encoder_takes():
    """A TIFF of four pages is an image of four channels, or the picture on its first page."""
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).uniform(0, 1, (4, 32, 32)) * np.array([250, 1000, 4000, 9000])[:, None, None]
    file = io.BytesIO()
    tifffile.imwrite(file, values.astype(np.uint16), photometric="minisblack")
    of_set = RangeOfSet([file.getvalue()])
    four, one = (SimpleNamespace(image_mean=[0.5] * number) for number in (4, 1))
    assert of_set.for_encoder(four) == (0, 255, 0, 1023, 0, 4095, 0, 16383) and of_set.for_encoder(one) == (0, 255)


@pytest.mark.parametrize(
    "wrong", [(1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (), (0.0, 1.0, 5.0), (0.0, 1.0, 3.0, 2.0)]
)
def test_what_is_no_range_is_refused(wrong):
    with pytest.raises(UserError, match="`--value_range` is the value that is black and the larger one that is white"):
        check_range(wrong)
    check_range((0.0, 1.0, -3.0, 2.0))
