"""Crops: cut out and resized as torchvision does, drawn with the distribution of torchvision's transforms."""

import dataclasses
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from hfssl.data.image.crops import PixelRows, draw_boxes, draw_finish
from hfssl.data.image.resize import crop_and_resize, crop_and_resize_together
from hfssl.functional import keyed
from hfssl.functional.views import View


v2 = pytest.importorskip("torchvision.transforms.v2")

KEYS = keyed.key(7, np.arange(4000))


def photo(height, width, seed=0):
    """Something smooth with edges, as bytes (3, height, width) whose channels lie together."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 90)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, format, **options)
    return buffer.getvalue()


def distance(a, b):
    """Kolmogorov and Smirnov's: the largest gap between the distributions of two samples."""
    both = np.sort(np.concatenate([a, b]))
    ranks = [np.searchsorted(np.sort(x), both, side="right") / len(x) for x in (a, b)]
    return np.abs(ranks[0] - ranks[1]).max()


# the distance that two samples of n and m from one distribution exceed once in 100,000 times
def chance(n, m):
    return 2.47 * math.sqrt((n + m) / (n * m))


@pytest.mark.parametrize("size, format", [((60, 90), "JPEG"), ((900, 1200), "JPEG"), ((60, 90), "PNG")])
def test_an_image_is_decoded_once_for_all_its_crops(size, format, monkeypatch):
    from hfssl.data.image import crops

    calls = []
    monkeypatch.setattr(
        crops, "decode_image", lambda *args, decode=crops.decode_image: calls.append(1) or decode(*args)
    )
    views = {"large": [View(size=96)] * 2, "small": [View(size=32, scale=(0.05, 0.4))] * 8}
    images = [encoded(photo(*size, seed), format, **{"quality": 98} if format == "JPEG" else {}) for seed in range(3)]
    columns, kept, bad = PixelRows(views)(images, KEYS[:3])
    assert len(calls) == len(kept) == 3 and not bad
    assert columns["large"].shape[:2] == (3, 2) and columns["small"].shape[:2] == (3, 8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [8, 32, 96])
@pytest.mark.parametrize("flip", [False, True])
def test_crop_and_resize_is_that_of_torchvision(interpolation, size, flip):
    image = photo(60, 90)
    for box in ([0, 0, 60, 90], [10, 21, 33, 40], [5, 3, 8, 9], [59, 89, 1, 1]):
        for source in (image, image.contiguous()):
            out = torch.zeros(1, 3, size, size, dtype=torch.uint8)
            crop_and_resize(source, box, flip, interpolation, out)
            mode = v2.InterpolationMode(interpolation)
            expected = v2.functional.resized_crop(source, *box, [size, size], interpolation=mode, antialias=True)
            expected = expected.flip(-1) if flip else expected
            assert (out[0].int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("height, width, size", [(32, 32, 32), (8, 8, 32), (20, 45, 16), (32, 32, 12), (1, 3, 5)])
def test_small_images_are_resized_as_torchvision_does(interpolation, height, width, size):
    images = torch.stack([photo(height, width, seed) for seed in range(12)])
    images[6:] = torch.randint(0, 2, (6, 3, height, width)) * 255  # overshoots of the cubic are cut off in between
    boxes = draw_boxes(View(), KEYS[:36], np.full(36, height), np.full(36, width)).reshape(12, 3, 4)
    flips = np.random.default_rng(0).random((12, 3)) < 0.5
    out = torch.zeros(12, 3, 3, size, size, dtype=torch.uint8)
    crop_and_resize_together(images, boxes, flips, interpolation, out)
    one_by_one = torch.zeros_like(out)
    for i in range(12):
        for view in range(3):
            box, flip = boxes[i, view].tolist(), bool(flips[i, view])
            crop_and_resize(images[i], box, flip, interpolation, one_by_one[i, view : view + 1])
    away = (out.int() - one_by_one.int()).abs()
    # the kernel for bytes rounds its weights and between its two passes
    assert away.max() <= 2 and (away > 1).float().mean() < 2e-3 and (away > 0).float().mean() < 0.2
    assert away[:6].max() <= 1


@pytest.mark.parametrize("height, width, scale, ratio", [
    (96, 128, (0.08, 1.0), (3 / 4, 4 / 3)),
    (32, 32, (0.2, 1.0), (3 / 4, 4 / 3)),
    (50, 400, (0.5, 1.0), (3 / 4, 4 / 3)),  # mostly the centre: hardly a try fits
    (200, 100, (0.05, 0.4), (0.5, 0.6)),
])  # fmt: skip
def test_boxes_have_the_distribution_of_torchvision(height, width, scale, ratio):
    torch.manual_seed(0)
    view = View(scale=scale, ratio=ratio)
    boxes = draw_boxes(view, KEYS, np.full(len(KEYS), height), np.full(len(KEYS), width))
    transform = v2.RandomResizedCrop(8, scale=scale, ratio=ratio)
    image = torch.zeros(3, height, width)
    theirs = [transform.make_params([image]) for _ in range(2500)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in theirs])
    assert (boxes[:, 2:] >= 1).all() and (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= height).all() and (boxes[:, 1] + boxes[:, 3] <= width).all()
    for of in (
        lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0], lambda b: b[:, 1],
        lambda b: 2 * b[:, 0] + b[:, 2],
    ):  # fmt: skip
        assert distance(of(boxes), of(theirs)) < chance(len(boxes), len(theirs))


def test_no_try_fits():
    view = View(scale=(1.0, 1.0), ratio=(0.9, 1.1))
    heights, widths = np.array([10, 100, 1, 30]), np.array([100, 10, 1, 30])
    boxes = draw_boxes(view, KEYS[:4], heights, widths)
    assert boxes[0].tolist() == [0, 44, 10, 11] and boxes[1].tolist() == [44, 0, 11, 10]
    assert boxes[2].tolist() == [0, 0, 1, 1]


def test_finish_has_the_distribution_of_torchvision():
    torch.manual_seed(0)
    view = View(
        jitter=(0.4, 1.5, 0.2, 0.1), jitter_probability=0.8, grey_probability=0.2, blur_probability=0.5,
        blur_sigma=(0.1, 2.0), solarize_probability=0.1,
    )  # fmt: skip
    drawn = draw_finish(view, KEYS)
    jitter = v2.ColorJitter(0.4, 1.5, 0.2, 0.1)
    theirs = [jitter.make_params([]) for _ in range(2500)]
    names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    for i, name in enumerate(names):
        values = np.array([params[name] for params in theirs])
        assert distance(drawn["factors"][:, i], values) < chance(len(KEYS), len(values))
    sigma = np.array([v2.GaussianBlur(23, (0.1, 2.0)).make_params([])["sigma"][0] for _ in range(2500)])
    blurred = drawn["sigma"] > 0
    assert distance(drawn["sigma"][blurred], sigma) < chance(blurred.sum(), len(sigma))
    assert (drawn["reach"][blurred] == np.minimum(np.ceil(4 * drawn["sigma"][blurred].astype(np.float64)), 11)).all()
    shares = {"grey": 0.2, "solarize": 0.1}
    for share, expected in [
        *((drawn[name].mean(), expected) for name, expected in shares.items()),
        (blurred.mean(), 0.5), ((drawn["order"] > 0).mean(), 0.8),
    ]:  # fmt: skip
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / len(KEYS))
    # 24 orders, all as likely, each of the four jitters once
    orders, counts = np.unique(drawn["order"][drawn["order"] > 0], return_counts=True)
    assert {tuple(sorted(np.base_repr(order, 5))) for order in orders} == {("1", "2", "3", "4")} and len(orders) == 24
    assert abs(counts / counts.sum() - 1 / 24).max() < 5 * math.sqrt(1 / 24 / counts.sum())


def test_parts_that_are_drawn_do_not_hang_together():
    drawn = draw_finish(View(jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=1.0, blur_probability=1.0), KEYS)
    boxes = draw_boxes(View(), KEYS, np.full(len(KEYS), 200), np.full(len(KEYS), 200))
    values = np.column_stack([drawn["factors"], drawn["sigma"], boxes[:, 2] * boxes[:, 3], boxes[:, 2] / boxes[:, 3]])
    correlations = np.corrcoef(values.T) - np.eye(values.shape[1])
    assert np.abs(correlations).max() < 5 / math.sqrt(len(KEYS))


def test_without_a_jitter_the_others_keep_a_random_order():
    drawn = draw_finish(View(jitter=(0.4, 0.4, 0.0, 0.0), jitter_probability=1.0), KEYS)
    assert sorted(np.unique(drawn["order"])) == [2 + 5 * 1, 1 + 5 * 2]
    assert not draw_finish(View(jitter=(0.0, 0.0, 0.0, 0.0), jitter_probability=1.0), KEYS)["order"].any()


@pytest.mark.parametrize(
    "size, width, largest", [(224, 0.1, 11), (96, 0.1, 4), (32, 0.1, 1), (96, None, 8), (4, None, 3)]
)
def test_the_kernel_of_the_blur(size, width, largest):
    assert draw_finish(View(size=size, blur_probability=1.0, blur_width=width), KEYS)["reach"].max() == min(largest, 8)


def test_images_have_the_moments_of_torchvision():
    torch.manual_seed(0)
    source = [photo(48, 64, seed) for seed in range(40)]
    rows = PixelRows({"crops": [View(size=16, scale=(0.08, 1.0))]})
    ours = torch.cat(
        [
            torch.from_numpy(rows([encoded(i) for i in source], KEYS[k : k + 40])[0]["crops"])
            for k in range(0, 1200, 40)
        ]
    )
    transform = v2.Compose([v2.RandomResizedCrop(16, scale=(0.08, 1.0), antialias=True), v2.RandomHorizontalFlip()])
    theirs = torch.stack([transform(image) for _ in range(30) for image in source])
    ours, theirs = ours[:, 0].float(), theirs.float()
    for moment in (lambda x: x.mean((2, 3)), lambda x: x.std((2, 3)), lambda x: x.diff(dim=-1).abs().mean((2, 3))):
        a, b = moment(ours), moment(theirs)
        error = torch.sqrt((a.var(0) + b.var(0)) / len(a))
        assert ((a.mean(0) - b.mean(0)).abs() < 4.5 * error).all()


def test_rows_leave_out_what_cannot_be_decoded():
    rows = PixelRows({"large": [View(size=16)] * 2, "small": [View(size=8)]})
    good = [encoded(photo(20, 30, seed)) for seed in range(130)]
    columns, kept, bad = rows(good, KEYS[:130])
    assert columns["large"].shape == (130, 2, 3, 16, 16) and columns["small"].shape == (130, 1, 3, 8, 8)
    assert columns["large"].dtype == np.uint8 and columns["large_draws"].shape == (130, 2) and not bad
    assert not np.array_equal(columns["large"][:, 0], columns["large"][:, 1])

    mixed = list(good)
    mixed[3], mixed[100], mixed[129] = b"", good[100][:60], b"no image"
    some, kept, bad = rows(mixed, KEYS[:130])
    assert [index for index, _ in bad] == [3, 100, 129] and all(reason for _, reason in bad)
    assert kept.tolist() == [i for i in range(130) if i not in (3, 100, 129)]
    for name, values in columns.items():
        assert np.array_equal(some[name], values[kept])

    none, kept, bad = rows([b"x"], KEYS[:1])
    assert none["large"].shape == (0, 2, 3, 16, 16) and none["large_draws"].shape == (0, 2) and len(kept) == 0


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_views_of_a_block_are_those_of_its_images_alone(interpolation):
    view = View(size=32, interpolation=interpolation, jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=0.8)
    rows = PixelRows({"crops": [view, view], "small": [dataclasses.replace(view, size=16)]})
    images = [photo(32, 32, seed) for seed in range(70)]
    mixed = [photo(20 + seed % 3, 32 - seed % 2, seed) for seed in range(0, 70, 2)] + images[1::2]
    for block in (images, mixed):
        together, kept, _ = rows(block, KEYS[:70])
        alone = [rows(block[i : i + 1], KEYS[i : i + 1])[0] for i in range(70)]
        assert len(kept) == 70
        for name, values in together.items():
            expected = np.concatenate([columns[name] for columns in alone])
            if name.endswith("_draws"):
                assert np.array_equal(values, expected)
            else:  # a product may add up in another order, which can turn a half the other way
                away = np.abs(values.astype(int) - expected)
                assert away.max() <= 1 and (away > 0).mean() < 1e-3


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_sizes_from_one_pixel_on(format):
    rows = PixelRows({"crops": [View(size=16, interpolation="bicubic"), View(size=16)]})
    images = [photo(height, width) for height, width in ((1, 1), (1, 50), (50, 1), (3, 2), (300, 5))]
    columns, kept, bad = rows([encoded(image, format) for image in images], KEYS[:5])
    assert len(kept) == 5 and not bad
    assert np.ptp(columns["crops"][0], axis=(2, 3)).max() == 0


def test_a_large_jpeg_is_decoded_reduced():
    image = photo(1400, 1800)
    data = encoded(image, "JPEG", quality=92)
    data += b"\0" * max(0, 40_000 - len(data))
    view = [View(size=64, scale=(0.3, 1.0))] * 2
    reduced = PixelRows({"crops": view})([data], KEYS[:1])[0]["crops"][0]
    whole = PixelRows({"crops": view})([encoded(image)], KEYS[:1])[0]["crops"][0]
    away = np.abs(reduced.astype(int) - whole)
    assert 0 < away.mean() < 1.5 and np.quantile(away, 0.99) < 25
