"""Views of images with any number of channels: cropped and blurred all, coloured where colours are stated."""

import io

import numpy as np
import pytest
import torch

from hfssl.data.image.color_ops import Finish
from hfssl.data.image.crops import DRAWS
from hfssl.data.image.views import ViewArguments, Views
from hfssl.errors import UserError
from hfssl.functional.views import View, ViewPreset


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


STILL = View(size=8, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_probability=0.0)
WILD = View(
    size=8, scale=(0.5, 1.0), jitter=(0.4, 0.4, 0.4, 0.2), jitter_probability=1.0, grey_probability=0.5,
    blur_probability=0.5, solarize_probability=0.5,
)  # fmt: skip


def views(channels, view=STILL, **arguments):
    statistics = None if channels == 3 else ([0.5] * channels, [0.5] * channels)
    return Views(
        ViewPreset((view, view)), ViewArguments(image_size=8, normalization="half", **arguments), is_grey=False,
        mean_std=statistics, num_channels=channels,
    )  # fmt: skip


@pytest.mark.parametrize("channels", [1, 2, 4, 10])
@pytest.mark.parametrize("size", [8, 64])
def test_geometry_is_the_same_in_all_channels(channels, size):
    one = np.random.default_rng(0).integers(0, 256, (1, size, size), dtype=np.uint8)
    view = View(size=8, scale=(0.2, 1.0))
    batch = views(channels, view)(npy(one.repeat(channels, 0)), 3)["pixel_values"]
    assert batch.shape == (2, channels, 8, 8)
    assert torch.equal(batch, batch[:, :1].expand(-1, channels, -1, -1))
    # and that of pictures: the numbers that are drawn do not depend on the channels
    picture = views(3, view)(npy(one.repeat(3, 0)), 3)["pixel_values"]
    torch.testing.assert_close(picture[:, :1], batch[:, :1], rtol=0, atol=1e-5)


def finished(images, order=(), factors=(1, 1, 1, 0), colors=None, **drawn):
    draws = np.zeros((1, 1), DRAWS)
    draws["order"], draws["factors"] = sum(jitter * 5**place for place, jitter in enumerate(order)), factors
    for name, value in drawn.items():
        draws[name] = value
    number = images.shape[2]
    finish = Finish([0.0] * number, [1.0] * number, torch.device("cpu"), colors)
    return 255 * finish(images, draws)[0, 0]


def test_colours_change_where_they_are_stated_and_the_others_one_by_one():
    image = np.random.default_rng(0).integers(40, 200, (1, 1, 5, 6, 6), dtype=np.uint8)
    before = torch.from_numpy(image[0, 0]).float()
    colors, others = [4, 0, 2], [1, 3]
    options = {"order": (2, 1, 3, 4), "factors": (1.1, 0.7, 1.3, 0.2), "grey": False, "solarize": True}
    after = finished(image, colors=tuple(colors), **options)
    # red, green and blue are what they are in a picture of these three
    picture = finished(image[:, :, colors], **options)
    torch.testing.assert_close(after[colors], picture, rtol=0, atol=1e-3)
    # the others: contrast about the mean of each, then brightness; nothing inverted
    mean = before[others].mean((1, 2), keepdim=True)
    expected = ((before[others] * 0.7 + mean * 0.3) * 1.1).clamp(0, 255)
    torch.testing.assert_close(after[others], expected, rtol=0, atol=1e-3)


def test_grey_is_of_the_stated_colours_and_blur_of_all():
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 4, 6, 6), dtype=np.uint8)
    grey = finished(image, colors=(0, 1, 2), grey=True)
    assert torch.equal(grey[0], grey[1])
    torch.testing.assert_close(grey[3], torch.from_numpy(image[0, 0, 3]).float(), rtol=0, atol=1e-3)
    blurred = finished(image, colors=(), sigma=1.0, reach=2)
    alone = [finished(image[:, :, [i, i, i]], sigma=1.0, reach=2)[0] for i in range(4)]
    torch.testing.assert_close(blurred, torch.stack(alone), rtol=0, atol=1e-3)


def test_without_colours_nothing_of_colours_is_drawn():
    other = views(4, WILD)
    for view in other.views:
        assert view.jitter == (0.4, 0.4, 0.0, 0.0) and not view.grey_probability and not view.solarize_probability
    assert views(4, WILD, colour_channels=[2, 1, 0]).views == views(3, WILD).views
    assert views(3, WILD).colors == (0, 1, 2)


def test_settings_of_pictures_are_what_they_were():
    assert "colour_channels" not in views(3).settings and "num_channels" not in views(3).settings
    assert views(4).settings["colour_channels"] == []


@pytest.mark.parametrize(
    "channels, arguments, words",
    [
        (4, {"colour_channels": [0, 1]}, "three numbers counted from 0, got 0 1"),
        (4, {"colour_channels": [1, 1, 2]}, "three numbers counted from 0, got 1 1 2"),
        (4, {"colour_channels": [2, 3, 4]}, "names channel 4, and the images have 4 channels"),
    ],
)
def test_impossible_colours_are_refused(channels, arguments, words):
    with pytest.raises(UserError, match=words):
        views(channels, **arguments)


def test_imagenet_is_of_three_channels():
    with pytest.raises(UserError, match="`--normalization imagenet` is of red, green and blue, and the images have 4"):
        Views(ViewPreset((STILL,)), ViewArguments(normalization="imagenet"), is_grey=False, num_channels=4)
