"""Colour operations: one image's result is that of torchvision's functions, whatever else is in the batch."""

import numpy as np
import pytest
import torch

from hfssl.data.image.color_ops import (
    WHITE,
    Finish,
    adjust_brightness_,
    adjust_contrast_,
    adjust_hue_,
    adjust_saturation_,
    gaussian_blur,
    greyscale,
    solarize,
)
from hfssl.data.image.crops import DRAWS


tv = pytest.importorskip("torchvision.transforms.v2.functional")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(number=6, size=17):
    """Smooth and noisy pixels, with greys, black, white and pure colours among them."""
    bytes_ = torch.randint(0, 256, (number, 3, size, size)).float()
    bytes_[:, :, :4] = bytes_[:, :1, :4]
    bytes_[:, :, 4] = torch.tensor([0.0, 255.0])[torch.randint(0, 2, (number, 3, size))]
    return bytes_


def each(function, batch, *numbers):
    """`function` of torchvision on one image after another, in [0, 1] as it wants them."""
    rows = [
        function(image / WHITE, *given) for image, *given in zip(batch, *(n.tolist() for n in numbers), strict=True)
    ]
    return torch.stack(rows) * WHITE


@pytest.mark.parametrize(
    "ours, theirs, factors",
    [
        (adjust_brightness_, "adjust_brightness", [0.0, 0.2, 0.7, 1.0, 1.3, 1.8]),
        (adjust_contrast_, "adjust_contrast", [0.0, 0.2, 0.7, 1.0, 1.3, 1.8]),
        (adjust_saturation_, "adjust_saturation", [0.0, 0.2, 0.7, 1.0, 1.3, 1.8]),
        (adjust_hue_, "adjust_hue", [-0.5, -0.2, 0.0, 0.05, 0.33, 0.5]),
    ],
)
def test_jitters_are_those_of_torchvision(ours, theirs, factors):
    batch, factors = images(), torch.tensor(factors)
    expected = each(getattr(tv, theirs), batch, factors)
    changed = ours(batch.clone(), factors)
    torch.testing.assert_close(changed, expected, atol=2e-3, rtol=0)
    assert (expected - batch).abs().mean() > 1


def test_grey_and_solarize_are_those_of_torchvision():
    batch = images()
    torch.testing.assert_close(greyscale(batch).expand_as(batch), each(tv.rgb_to_grayscale, batch).expand_as(batch))
    assert torch.equal(solarize(batch), tv.solarize(batch.byte(), 128).float())


def test_blur_is_that_of_torchvision():
    batch, sigma = images(size=40), torch.tensor([0.1, 0.3, 0.8, 1.2, 1.7, 2.0])
    reach = torch.ceil(4 * sigma)
    blurred = gaussian_blur(batch, sigma, reach, int(reach.max()))
    expected = each(lambda image, s: tv.gaussian_blur(image, [23, 23], [s, s]), batch, sigma)
    # what lies beyond four sigma is left out
    torch.testing.assert_close(blurred, expected, atol=0.02, rtol=0)
    narrow = gaussian_blur(batch, sigma, torch.full((6,), 3.0), 3)
    expected = each(lambda image, s: tv.gaussian_blur(image, [7, 7], [s, s]), batch, sigma)
    torch.testing.assert_close(narrow, expected, atol=1e-3, rtol=0)


def draws(orders, size):
    made = np.zeros(len(orders), DRAWS)
    rng = np.random.default_rng(0)
    made["order"] = orders
    made["factors"][:, :3], made["factors"][:, 3] = rng.uniform(0.2, 1.8, (len(orders), 3)), rng.uniform(-0.2, 0.2)
    made["grey"], made["solarize"] = rng.random(len(orders)) < 0.3, rng.random(len(orders)) < 0.3
    blurred = rng.random(len(orders)) < 0.5
    made["sigma"] = np.where(blurred, rng.uniform(0.1, 2.0, len(orders)), 0)
    made["reach"] = np.where(blurred, np.minimum(np.ceil(4 * made["sigma"]), size // 4), 0)
    return made


ORDERS = [0, 1 + 5 * 2 + 25 * 3 + 125 * 4, 4 + 5 * 3 + 25 * 2 + 125, 2 + 5 * 4, 0, 3 + 5 * 1 + 25 * 4 + 125 * 2] * 4


def one_by_one(crop, draw):
    image = torch.from_numpy(crop).float() / 255
    names = ("brightness", "contrast", "saturation", "hue")
    order = int(draw["order"])
    while order:
        order, jitter = divmod(order, 5)
        image = getattr(tv, f"adjust_{names[jitter - 1]}")(image, float(draw["factors"][jitter - 1]))
    if draw["grey"]:
        image = tv.rgb_to_grayscale(image, 3)
    if draw["sigma"] > 0:
        width = 2 * int(draw["reach"]) + 1
        image = tv.gaussian_blur(image, [width, width], [float(draw["sigma"])] * 2)
    if draw["solarize"]:
        image = tv.solarize(image, 128 / 255)
    return tv.normalize(image, list(MEAN), list(STD))


@pytest.mark.parametrize("size", [16, 24, 200])
def test_a_batch_is_finished_as_torchvision_finishes_its_images(size):
    crops = np.random.default_rng(1).integers(0, 256, (12, 2, 3, size, size), dtype=np.uint8)
    drawn = draws(ORDERS, size).reshape(12, 2)
    finished = Finish(MEAN, STD, torch.device("cpu"))(crops, drawn)
    assert finished.shape == (12, 2, 3, size, size) and finished.is_contiguous()
    for i in range(12):
        for view in range(2):
            expected = one_by_one(crops[i, view], drawn[i, view])
            away = (finished[i, view] - expected).abs()
            # at the threshold of solarize, where bytes have no values, up to one level of 255
            assert away.max() < (1 / 255 / 0.224 if drawn[i, view]["solarize"] else 2e-4)
            assert away.mean() < 2e-4


def test_a_view_does_not_depend_on_its_batch():
    crops = np.random.default_rng(1).integers(0, 256, (24, 1, 3, 16, 16), dtype=np.uint8)
    drawn = draws(ORDERS, 16)[:, None]
    finish = Finish(MEAN, STD, torch.device("cpu"))
    together = finish(crops, drawn)
    some = np.array([5, 17, 2])
    torch.testing.assert_close(finish(crops[some], drawn[some]), together[some], atol=1e-5, rtol=0)
    assert torch.equal(finish(crops, drawn), together)
