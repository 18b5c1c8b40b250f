"""Views: presets, flags, what the model gets, and that a sample's views are its own."""

import dataclasses
import hashlib
import io
import itertools
import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vision import NAMES, preset_of, two_layers
from transformers import Dinov2Config

import hfssl
from hfssl import SimclrForPreTraining
from hfssl.cli.parser import RecipeParser
from hfssl.data.image.png import encoded_image
from hfssl.data.image.tiles import Tiles
from hfssl.data.image.views import ViewArguments, Views
from hfssl.data.sources import MemorySource
from hfssl.data.stream import Block, ExactStream
from hfssl.errors import UserError
from hfssl.functional import keyed


def image(seed, height=24, width=20):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def block(samples, seed=0):
    samples = list(samples)
    return Block({"image": [image(i) for i in samples]}, keyed.key(seed, np.array(samples)), 9)


def batch(views, *blocks, take=None):
    """What the stream and the collator make of some blocks, or of the rows `take` of them."""
    made = [views.rows(each) for each in blocks]
    columns = {name: np.concatenate([rows.columns[name] for rows in made]) for name in made[0].columns}
    if take is not None:
        columns = {name: values[take] for name, values in columns.items()}
    return views.collator("cpu")(columns)


def views(method="simclr", is_grey=False, patch_size=None, mean_std=None, **arguments):
    arguments = {"image_size": 32} | ({"local_crops": 8} if method == "dino" else {}) | arguments
    return Views(
        preset_of(method), ViewArguments(**arguments), is_grey=is_grey, patch_size=patch_size, mean_std=mean_std
    )


@pytest.mark.parametrize(
    "method, shapes",
    [
        ("simclr", {"pixel_values": (5, 2, 3, 32, 32)}),
        ("moco", {"pixel_values": (5, 2, 3, 32, 32)}),
        ("byol", {"pixel_values": (5, 2, 3, 32, 32)}),
        ("dino", {"pixel_values": (5, 2, 3, 32, 32), "local_pixel_values": (5, 8, 3, 16, 16)}),
        ("mae", {"pixel_values": (5, 3, 32, 32), "noise": (5, 64)}),
    ],
)
def test_what_the_model_gets(method, shapes):
    made = views(method, patch_size=4)
    got = batch(made, block(range(5)))
    assert {name: tuple(value.shape) for name, value in got.items()} == shapes
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in got.values())
    assert got["pixel_values"].is_contiguous() and 0.3 < got["pixel_values"].std() < 2
    if "noise" in got:
        assert got["noise"].min() >= 0 and got["noise"].max() < 1 and len(got["noise"].unique()) == 5 * 64
    assert made.image_size == 32 and made.local_size == (16 if method == "dino" else None)
    assert pickle.loads(pickle.dumps(made)).settings == made.settings  # a worker may be spawned
    assert made.rows(block(range(5))).num_units.tolist() == [1] * 5


@pytest.mark.parametrize(
    ("patch_size", "image_size", "expected"), [(None, 32, 24), (None, 224, 96), (4, 32, 16), (None, 16, 16)]
)
def test_small_crops_are_of_a_size_that_the_encoder_can_take(patch_size, image_size, expected):
    """A ResNet shrinks 16 pixels to one before its last block, which it then refuses."""
    assert views("dino", patch_size=patch_size, image_size=image_size, local_crops=2).local_size == expected


def test_small_images_have_no_small_crops_unless_a_flag_speaks_of_them():
    def number(**flags):
        return views("dino", patch_size=8, **{"local_crops": None} | flags).num_local

    assert number(image_size=32) == 0 and number(image_size=64) == 8
    assert number(image_size=32, local_crops=3) == 3 and number(image_size=64, local_crops=0) == 0
    assert number(image_size=32, local_size=16) == number(image_size=32, local_crop_scale=(0.1, 0.3)) == 8


def test_presets_are_those_of_the_papers():
    simclr, moco, byol, dino, mae = (Views(preset_of(m), is_grey=False) for m in NAMES)
    assert [v.size for v in simclr.views] == [224, 224] and simclr.views[0] == simclr.views[1]
    first = simclr.views[0]
    assert (first.scale, first.jitter, first.jitter_probability) == ((0.08, 1.0), (0.8, 0.8, 0.8, 0.2), 0.8)
    assert (first.grey_probability, first.blur_probability, first.solarize_probability) == (0.2, 0.5, 0.0)
    assert [v.blur_probability for v in byol.views] == [1.0, 0.1]
    assert [v.solarize_probability for v in byol.views] == [0.0, 0.2]
    assert (byol.views[0].scale, byol.views[0].jitter) == ((0.08, 1.0), (0.4, 0.4, 0.2, 0.1))
    # the crops of torchvision and the blur of Pillow, otherwise BYOL's
    assert [dataclasses.replace(v, interpolation="bicubic", blur_width=0.1) for v in moco.views] == list(byol.views)
    assert [v.interpolation for v in (*simclr.views, *moco.views)] == ["bilinear"] * 4
    assert [v.interpolation for v in (*byol.views, *dino.views, dino.local, *mae.views)] == ["bicubic"] * 6
    assert [p.views[0].blur_width for p in map(preset_of, NAMES) if p.views[0].blur_probability] == [
        0.1,
        None,
        0.1,
        None,
    ]
    assert [v.scale for v in dino.views] == [(0.4, 1.0)] * 2 and [v.blur_probability for v in dino.views] == [1.0, 0.1]
    assert (dino.local.scale, dino.local.size, dino.num_local) == ((0.05, 0.4), 96, 8)
    assert (dino.local.blur_probability, dino.local.solarize_probability) == (0.5, 0.0)
    assert mae.views == (dataclasses.replace(preset_of("mae").views[0], scale=(0.2, 1.0), interpolation="bicubic"),)
    assert not any(mae.views[0].jitter)
    assert (simclr.mean, simclr.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_small_images_follow_the_practice_for_cifar():
    assert views("simclr").views[0].jitter == (0.4, 0.4, 0.4, 0.1)
    for method in NAMES:
        assert all(view.blur_probability == 0 for view in views(method, image_size=64).views)
    assert views("dino").local.scale == (0.2, 0.4)
    assert views("byol").views[1].solarize_probability == 0.2
    assert views("simclr", image_size=65).views[0].blur_probability == 0.5


def test_every_strength_is_a_flag():
    flags = (
        "--image_size 48 --crop_scale 0.3 0.9 --crop_ratio 0.5 2 --interpolation bicubic --flip_probability 0 --jitter "
        "0.1 0.2 0.3 0.4 --jitter_probability 0.5 --grey_probability 0.1 --blur_probability 0.9 0.2 0.3 --blur_sigma 0.5 "
        "1 --solarize_probability 0.7 --local_crops 3 --local_size 24 --local_crop_scale 0.1 0.2 --normalization half"
    )
    (arguments,) = RecipeParser(ViewArguments).parse(flags.split())
    made = Views(preset_of("dino"), arguments, is_grey=False, patch_size=8)
    common = {
        "ratio": (0.5, 2.0), "interpolation": "bicubic", "flip_probability": 0.0, "jitter": (0.1, 0.2, 0.3, 0.4),
        "jitter_probability": 0.5, "grey_probability": 0.1, "blur_sigma": (0.5, 1.0), "solarize_probability": 0.7,
        "blur_width": None,
    }  # fmt: skip
    settings = made.settings
    assert settings["views"] == [
        common | {"size": 48, "scale": (0.3, 0.9), "blur_probability": blur} for blur in (0.9, 0.2)
    ]
    assert settings["local_views"] == common | {"num": 3, "size": 24, "scale": (0.1, 0.2), "blur_probability": 0.3}
    assert settings["mean"] == [0.5] * 3
    assert "3 × 24 pixels of 0.1 to 0.2 of the area (bicubic), jitter 0.1 0.2 0.3 0.4 at 0.5" in made.description
    assert views("simclr", mean_std=((0.1,) * 3, (0.2,) * 3)).mean == [0.1] * 3


@pytest.mark.parametrize(
    "flags, words",
    [
        ({"image_size": 0}, "--image_size.*got 0"),
        ({"crop_scale": (0.0, 1.0)}, "--crop_scale.*got 0 1"),
        ({"crop_scale": (0.5, 1.5)}, "--crop_scale.*at most 1.*got 0.5 1.5"),
        ({"crop_scale": (0.8, 0.2)}, "--crop_scale.*smallest and the largest.*got 0.8 0.2"),
        ({"local_crop_scale": (0.1, 2.0)}, "--local_crop_scale"),
        ({"crop_ratio": (-1.0, 1.0)}, "--crop_ratio.*got -1 1"),
        ({"blur_sigma": (-0.1, 2.0)}, "--blur_sigma.*got -0.1 2"),
        ({"flip_probability": 1.1}, "--flip_probability.*between 0 and 1, got 1.1"),
        ({"blur_probability": [0.5, -0.5]}, "--blur_probability.*got -0.5"),
        ({"solarize_probability": [2.0]}, "--solarize_probability.*got 2"),
        ({"jitter": (0.1, 0.1, 0.1, 0.6)}, "--jitter.*hue at most 0.5, got 0.1 0.1 0.1 0.6"),
        ({"jitter": (0.1, -0.1, 0.1, 0.1)}, "--jitter.*none below 0"),
        ({"local_crops": -1}, "--local_crops.*got -1"),
    ],
)
def test_nonsense_is_named(flags, words):
    with pytest.raises(UserError, match=words):
        ViewArguments(**flags)


@pytest.mark.parametrize(
    "method, arguments, words",
    [
        ("simclr", {"local_crops": 4}, "--local_crops.*this one has none"),
        ("moco", {"local_crops": 2}, "--local_crops.*this one has none"),
        ("simclr", {"local_crops": 0}, "--local_crops.*this one has none"),
        ("dino", {"blur_probability": [0.1, 0.2]}, "--blur_probability.*one value or 3 for this method.*got 2"),
        ("mae", {"image_size": 30, "patch_size": 4}, "--image_size 30.*patches of 4.*--image_size 3[26]"),
        ("dino", {"local_size": 15, "patch_size": 4}, "--local_size 15.*--local_size 16"),
    ],
)
def test_what_does_not_fit_is_named(method, arguments, words):
    with pytest.raises(UserError, match=words):
        views(method, **arguments)


@pytest.mark.parametrize("method", ["byol", "dino", "mae"])
def test_the_views_of_a_sample_do_not_depend_on_its_neighbours(method):
    made = views(method, patch_size=4, blur_probability=[0.5])
    one = batch(made, block(range(100)))
    for name, values in batch(made, block([41]), block([99, 7])).items():
        torch.testing.assert_close(values, one[name][[41, 99, 7]], atol=1e-5, rtol=0)
    for name, values in batch(made, block(range(100)), take=np.array([3, 70, 4])).items():
        torch.testing.assert_close(values, one[name][[3, 70, 4]], atol=1e-5, rtol=0)
    for name, values in batch(made, block(range(100))).items():
        assert torch.equal(values, one[name])
    # another pass, other views
    assert all((values != one[name]).any() for name, values in batch(made, block(range(100), seed=1)).items())


def test_views_of_a_sample_differ():
    pixels = batch(views("dino", patch_size=4), block(range(8)))
    for name, number in (("pixel_values", 2), ("local_pixel_values", 8)):
        flat = pixels[name].flatten(2)
        away = (flat[:, :, None] - flat[:, None]).abs().mean(-1)
        assert (away[:, ~torch.eye(number, dtype=torch.bool)] > 0.01).all()


def test_greyscale_images_get_no_colour_operations(caplog):
    with caplog.at_level(logging.INFO, logger="hfssl"):
        made = views("simclr", is_grey=True)
        views("mae", is_grey=True)  # has none
    assert [record.getMessage() for record in caplog.records] == [
        "The images are greyscale: views change no saturation and no hue."
    ]
    assert made.views[0].jitter == (0.4, 0.4, 0.0, 0.0) and made.views[0].grey_probability == 0


def test_damaged_images_are_left_out():
    samples = block(range(6))
    samples.columns["image"][2] = b"damaged"
    made = views("mae", patch_size=8)
    rows, whole = made.rows(samples), made.rows(block(range(6)))
    assert len(rows) == 5 and [index for index, _ in rows.bad] == [2]
    for name, values in whole.columns.items():
        assert np.array_equal(rows.columns[name], np.delete(values, 2, axis=0))


@pytest.mark.parametrize("tile", [None, 8])
@pytest.mark.parametrize("method", ["dino", "dinov2", "mae"])
@pytest.mark.parametrize("images", [[], [b"damaged"]], ids=["held out", "damaged"])
def test_a_block_of_which_nothing_is_left(method, tile, images):
    """One image is a block where it is cut into tiles."""
    tiles = None if tile is None else Tiles(tile, 2)
    made = Views(preset_of(method), ViewArguments(image_size=16), is_grey=False, patch_size=8, tiles=tiles)
    found = made.rows(
        Block({"image": images}, keyed.key(0, np.arange(len(images))), 9, np.zeros((len(images), 4), int))
    )
    assert len(found) == 0 and [index for index, _ in found.bad] == list(range(len(images)))
    other = made.rows(Block({"image": [image(0)]}, keyed.key(0, np.arange(1)), 9, np.zeros((1, 4), int)))
    assert {name: values.shape[1:] for name, values in found.columns.items()} == {
        name: values.shape[1:] for name, values in other.columns.items()
    }


def test_dataset_statistics_have_to_be_given():
    with pytest.raises(ValueError, match="mean_std"):
        views(normalization="dataset")


def digest(columns):
    """Of all columns but pixels, whose last bit may differ between processors; structures by their fields."""
    found = hashlib.sha256()
    for name, values in columns.items():
        if values.dtype.names is not None:
            for field in values.dtype.names:
                found.update(f"{name}.{field}".encode() + values[field].astype(np.float64).round(4).tobytes())
        elif values.dtype != np.uint8:
            found.update(name.encode() + values.tobytes())
    return found.hexdigest()[:16]


# of the columns with the keys of `hfssl.functional.keyed.Use`; with the keys before, they are those of the code before
# there were makers
COLUMNS = {
    "simclr": ("643dc8f10ba66767", 137.09),
    "moco": ("8cd7dda715683b70", 137.09),
    "byol": ("8cd7dda715683b70", 137.08),
    "dino": ("09a19e499035bfc9", 134.06),
    "mae": ("fea438cd8ace8542", 133.02),
}


@pytest.mark.parametrize("method", COLUMNS)
def test_columns_stay_what_they_were(method):
    samples = block(range(7))
    samples.columns["image"][3] = b"broken"
    rows = views(method, patch_size=4).rows(samples)
    assert [index for index, _ in rows.bad] == [3] and len(rows) == 6
    expected, brightness = COLUMNS[method]
    assert digest(rows.columns) == expected
    assert rows.columns["pixel_values"].mean() == pytest.approx(brightness, abs=0.02)


def test_half_of_the_large_crops_are_masked_by_blocks():
    preset = dataclasses.replace(preset_of("dino"), mask_ratio=(0.1, 0.5))
    made = Views(preset, ViewArguments(image_size=32, local_crops=0), is_grey=False, patch_size=4)
    samples = block(range(8))
    samples.columns["image"][3] = b"broken"
    patches = made.rows(samples).columns["masked_patches"]
    assert patches.shape == (7, 32) and patches.dtype == np.int32
    numbers = (patches >= 0).sum(1)
    assert (numbers >= 6).all() and (numbers < 32).all() and len(set(numbers)) > 3
    for row, number in zip(patches, numbers, strict=True):
        assert (row[number:] == -1).all() and (np.diff(row[:number]) > 0).all()
        assert len(set(row[:number] // 64)) == 1  # of one of the two
    assert set(patches[:, 0] // 64) == {0, 1}
    # whatever stands beside a sample, and beside the masks
    alone = made.rows(dataclasses.replace(block(range(8)), keys=samples.keys)).columns["masked_patches"]
    assert np.array_equal(np.delete(alone, 3, axis=0), patches)
    without = views("dino", patch_size=4, image_size=32, local_crops=0).rows(samples).columns
    assert np.array_equal(without["pixel_values"], made.rows(samples).columns["pixel_values"])
    batch = made.collator("cpu")(made.rows(samples).columns)
    assert batch["masked_patches"].tolist() == patches.tolist()


class Masks:
    """A maker of a test: one to three hidden patches of each image."""

    def rows(self, block, kept):
        numbers = keyed.key(block.keys[kept][:, None], 99, np.arange(4))
        return {"hidden": [row[1 : 2 + row[0] % 3] % 16 for row in numbers]}

    def collate(self, columns, device):
        lengths = torch.tensor([len(row) for row in columns["hidden"]], device=device)
        hidden = torch.full((len(lengths), 3), -1, dtype=torch.int32, device=device)
        for row, values in zip(hidden, columns["hidden"], strict=True):
            row[: len(values)] = torch.from_numpy(values.astype(np.int32))
        return {"hidden": hidden, "hidden_lengths": lengths}


def test_a_maker_of_rows_of_any_length_goes_through_the_stream():
    made = views("mae", patch_size=8)
    made.makers.append(Masks())
    images = [image(i) for i in range(20)]
    images[4] = b"broken"
    source = MemorySource(images, name="images", modality="image")
    stream = ExactStream(source, made.rows, made.collator("cpu"), 6, seed=3, block_bytes=4_000, max_bad_fraction=0.5)
    alone = {}
    for i, got in zip(range(6), stream, strict=False):
        assert (
            list(got) == ["pixel_values", "noise", "hidden", "hidden_lengths"] and got["hidden"].dtype == torch.int32
        )
        assert got["hidden"].ge(0).sum(1).tolist() == got["hidden_lengths"].tolist()
        for noise, row in zip(got["noise"], got["hidden"], strict=True):
            assert alone.setdefault(noise.sum().item(), row.tolist()) == row.tolist(), i
    assert len({tuple(row) for row in alone.values()}) > 5


# -- in a data set of one's own ---------------------------------------------------------------------------------------


def test_views_of_one_image_whatever_holds_it():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    views = hfssl.Views(SimclrForPreTraining.method.views, hfssl.ViewArguments(image_size=32), is_grey=False)
    first = views(Image.fromarray(pixels), 0, 1, 2)["pixel_values"]
    assert first.shape == (2, 3, 32, 32) and first.dtype == torch.float32
    for same in (pixels, torch.from_numpy(pixels).permute(2, 0, 1), encoded_image(Image.fromarray(pixels))):
        assert torch.equal(views(same, 0, 1, 2)["pixel_values"], first)
    assert not torch.equal(views(pixels, 0, 2, 1)["pixel_values"], first)
    assert torch.equal(
        views(pixels[..., 0], 7)["pixel_values"], views(torch.from_numpy(pixels[None, ..., 0]), 7)["pixel_values"]
    )


def test_a_data_set_of_ones_own_trains():
    class Pictures(torch.utils.data.Dataset):
        def __init__(self):
            self.views = hfssl.Views(
                SimclrForPreTraining.method.views, hfssl.ViewArguments(image_size=16), is_grey=False
            )

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return self.views(np.full((20, 20, 3), 60 * index, np.uint8), 0, index)

    batch = next(iter(torch.utils.data.DataLoader(Pictures(), batch_size=4)))
    model = SimclrForPreTraining(hfssl.SimclrPreTrainingConfig(encoder_config=two_layers()))
    assert model(**batch).loss.isfinite()


@pytest.mark.parametrize(
    "image, words",
    [
        (torch.zeros(3, 8, 8), "its values are floats, which have no known range"),
        (np.zeros((8, 8, 2), np.uint8), "it is an NPY of 2 channels, not of 3"),
        (torch.zeros(8, 8, 8, 8), "got Tensor of shape .8, 8, 8, 8. and type torch.float32"),
        ("cat.png", "got str"),
        (b"no image", "cannot be decoded"),
    ],
)
def test_what_is_no_image_is_a_sentence(image, words):
    views = hfssl.Views(SimclrForPreTraining.method.views, hfssl.ViewArguments(image_size=16), is_grey=False)
    with pytest.raises(UserError, match=words):
        views(image, 0)


def of_mixed_sizes():
    return Views(
        preset_of("dinov2"), ViewArguments(mixed_sizes=[16, 24, 32], local_crops=2, local_size=16, normalization="half"),
        is_grey=False, patch_size=8,
    )  # fmt: skip


def sized_stream(batch_size, rank=0, world_size=1):
    """Batches of one of three sizes, in steps of 4 rows."""
    source = MemorySource([image(i) for i in range(24)], name="images", modality="image")
    made = of_mixed_sizes()
    return ExactStream(
        source, made.rows, made.collator(), batch_size, seed=3, rank=rank, world_size=world_size, lanes=2,
        block_bytes=4_000, rows_per_step=4,
    )  # fmt: skip


def test_the_size_of_a_step_is_that_of_all_processes_and_of_all_its_parts():
    whole = list(itertools.islice(sized_stream(4), 12))
    assert {batch["pixel_values"].shape[-1] for batch in whole} == {16, 24, 32}
    two = [itertools.islice(sized_stream(2, rank, 2), 12) for rank in range(2)]
    for batch, *parts in zip(whole, *two, strict=True):
        for name, values in batch.items():
            for rank, part in enumerate(parts):
                torch.testing.assert_close(part[name], values[rank::2])
    accumulated = list(itertools.islice(sized_stream(1), 48))
    for i, batch in enumerate(whole):
        for name, values in batch.items():
            torch.testing.assert_close(torch.cat([each[name] for each in accumulated[4 * i : 4 * i + 4]]), values)


def test_the_sizes_of_a_run_that_goes_on_are_the_same():
    first = sized_stream(2)
    whole = [batch["pixel_values"] for batch in itertools.islice(first, 5)]
    state = first.state_dict()
    whole += [batch["pixel_values"] for batch in itertools.islice(iter(first), 12)]
    again = sized_stream(2)
    again.load_state_dict(state)
    for batch, expected in zip(again, whole[5:], strict=False):
        assert torch.equal(batch["pixel_values"], expected)


def test_each_step_has_one_of_several_sizes():
    made = of_mixed_sizes()
    assert made.image_size == 32 and made.settings["mixed_sizes"] == [16, 24, 32]
    images = [encoded_image(np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)) for i in range(12)]
    keys = keyed.key(7, np.arange(12))
    columns = made.rows(Block({"image": images}, keys, 0)).columns
    assert made.collator()(columns)["pixel_values"].shape[-1] == 32  # of no step, such as held-out ones
    seen = {}
    for i in range(12):
        part = {name: values[i:] for name, values in columns.items()}
        batch = made.collator()(part | {"key_of_step": keyed.key(8, i)})
        assert set(batch) == {"pixel_values", "local_pixel_values", "masked_patches"}
        size = batch["pixel_values"].shape[-1]
        assert batch["local_pixel_values"].shape[-1] == {16: 8, 24: 16, 32: 16}[size]  # of 8 pixels, in proportion
        assert batch["masked_patches"].max() < 2 * (size // 8) ** 2
        seen[size] = batch
    assert set(seen) == {16, 24, 32}
    model = dinov2_of(seen[16])
    assert all(model(**batch).loss.isfinite() for batch in seen.values())


def dinov2_of(batch):
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8, mlp_ratio=1
    )
    heads = {"projector_hidden_dim": 8, "projector_output_dim": 8, "num_prototypes": 8}
    return hfssl.Dinov2ForPreTraining(hfssl.Dinov2PreTrainingConfig(encoder_config=config, **heads)).eval()


def test_impossible_sizes_are_refused():
    with pytest.raises(UserError, match="the largest is `--image_size`, got 16 32 and 24"):
        ViewArguments(mixed_sizes=[16, 32], image_size=24)
    with pytest.raises(UserError, match="multiples of the encoder's patches of 8 pixels, got 20"):
        Views(preset_of("dinov2"), ViewArguments(mixed_sizes=[20, 32]), is_grey=False, patch_size=8)
    with pytest.raises(UserError, match="for methods that compare views"):
        Views(preset_of("mae"), ViewArguments(mixed_sizes=[16, 32]), is_grey=False, patch_size=8)
