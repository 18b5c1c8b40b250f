"""Tiles of large images: where they lie, what is decoded of them, and that a run of them is exact."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hfssl.cli.image.data import ImageData, ImageDataArguments
from hfssl.data.image import decode
from hfssl.data.image.arrays import open_array
from hfssl.data.image.contact_sheet import views_of
from hfssl.data.image.tiles import Tiles
from hfssl.data.image.views import ViewArguments, Views
from hfssl.data.sources import identity
from hfssl.data.stream import Block, ExactStream
from hfssl.errors import UserError
from hfssl.functional.views import View, ViewPreset


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def image(height, width, channels=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)


def test_tiles_cover_the_image_and_are_whole():
    boxes = Tiles(16, 100).boxes(40, 33)
    assert len(boxes) == 3 * 3 and set(map(tuple, boxes[:, 2:])) == {(16, 16)}
    covered = np.zeros((40, 33), int)
    for top, left, height, width in boxes:
        assert top + height <= 40 and left + width <= 33
        covered[top : top + height, left : left + width] += 1
    assert covered.min() == 1
    # one that is smaller is as large as the image allows
    assert Tiles(16, 100).boxes(10, 40).tolist() == [[0, 0, 10, 16], [0, 16, 10, 16], [0, 24, 10, 16]]


@pytest.mark.parametrize("format", ["npy", "tiff"])
def test_tiles_are_parts_of_the_image(format):
    values = image(40, 33)
    data = npy(values)
    if format == "tiff":
        file = io.BytesIO()
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(
            file, np.moveaxis(values, 0, -1), tile=(16, 16), photometric="minisblack", planarconfig="contig"
        )
        data = file.getvalue()
    tiles = Tiles(16, 5, num_channels=4)
    found = tiles.of_image(data, key=7)
    assert len(found) == 5 == len({number for number, _ in found})
    for number, tile in found:
        top, left, height, width = tiles.boxes(40, 33)[number]
        assert np.array_equal(tile, values[:, top : top + height, left : left + width])
    other = {number for number, _ in tiles.of_image(data, key=8)}
    assert other != {number for number, _ in found} and {n for n, _ in tiles.of_image(data, key=7)} == {
        n for n, _ in found
    }


def test_what_can_be_read_in_parts_may_be_larger_than_what_is_decoded_at_once(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    data = npy(image(100, 100))
    assert len(Tiles(16, 3, num_channels=4).of_image(data, 0)) == 3
    with pytest.raises(decode.DamagedImage, match="more than 1,000 pixels"):
        decode.decode_image(data, num_channels=4)


def test_of_a_large_picture_in_a_tiled_tiff_only_what_a_tile_shows_is_decoded(monkeypatch):
    tifffile, values, file = pytest.importorskip("tifffile"), image(100, 100, 3), io.BytesIO()
    tifffile.imwrite(file, np.moveaxis(values, 0, -1), tile=(16, 16), photometric="rgb", planarconfig="contig")
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    header = decode.image_header(file.getvalue(), any_size=True)
    assert (header.height, header.width, header.num_channels) == (100, 100, None)
    tiles, opened, open_file = Tiles(16, 3), [], tifffile.TiffFile
    monkeypatch.setattr(tifffile, "TiffFile", lambda *args, **kwargs: opened.append(1) or open_file(*args, **kwargs))
    found = tiles.of_image(file.getvalue(), 0)
    assert len(found) == 3 and len(opened) == 1  # what lists the parts of a large file takes longer than a part
    for number, tile in found:
        top, left, height, width = tiles.boxes(100, 100)[number]
        assert np.array_equal(tile, values[:, top : top + height, left : left + width])


def made(tiles, images, keys, number=2):
    view = View(size=8, scale=(0.5, 1.0))
    preset, arguments = ViewPreset((view,) * number), ViewArguments(image_size=8, normalization="half")
    views = Views(preset, arguments, is_grey=False, num_channels=4, tiles=tiles)
    return views, views.rows(Block({"image": images}, np.asarray(keys, np.uint64), 5))


def test_rows_are_tiles_with_places_of_their_own_and_damage_is_that_of_images():
    images = [npy(image(40, 33, seed=0)), b"nothing", npy(image(16, 16, seed=1))]
    views, rows = made(Tiles(16, 4, num_channels=4), images, [11, 12, 13])
    assert len(rows) == 4 + 1 and [index for index, _ in rows.bad] == [1]
    assert len({tuple(place) for place in rows.places}) == 5
    assert sorted(rows.places[:, 2].tolist()) == [0, 0, 0, 0, 2]
    assert views.collator()(rows.columns)["pixel_values"].shape == (5, 2, 4, 8, 8)
    # the views of a tile depend on its image alone
    _, alone = made(Tiles(16, 4, num_channels=4), images[2:], [13])
    row = rows.places[:, 2].tolist().index(2)
    assert np.array_equal(alone.columns["pixel_values"][0], rows.columns["pixel_values"][row])
    sheet = views_of(images, views)
    assert len(sheet["original"]) == len(sheet["pixel_values"]) == 5


def test_a_stream_of_tiles_goes_on_where_it_was_and_holds_out_whole_images(tmp_path):
    for i in range(60):
        np.save(tmp_path / f"{i}.npy", image(40, 40, seed=i))
    options = {"dataset": str(tmp_path), "tile": 16, "tiles_per_image": 3}
    args = SimpleNamespace(
        per_device_train_batch_size=8, seed=0, lanes=None, process_index=0, world_size=1, dataloader_num_workers=0,
        device="cpu", epochs=None, global_batch_size=8,
    )  # fmt: skip

    def stream():
        data = ImageData(ImageDataArguments(**options))
        assert data.num_channels == 4 and data.short_side == 16
        view = View(size=8)
        views = Views(
            ViewPreset((view, view)), ViewArguments(image_size=8), is_grey=data.is_grey, num_channels=4,
            mean_std=data.channel_mean_std(), tiles=data.tiles,
        )  # fmt: skip
        assert views.settings["tile"] == 16 and views.settings["tiles_per_image"] == 3
        return data, data.stream(args, views)

    data, begun = stream()
    batches = iter(begun)
    for _ in range(3):
        next(batches)
    state, expected = begun.state_dict(), [next(batches)["pixel_values"] for _ in range(3)]
    _, again = stream()
    again.load_state_dict(state)
    batches = iter(again)
    for each in expected:
        assert torch.equal(next(batches)["pixel_values"], each)
    assert data.held_out and {identity(each) for each in data.held_out} == set(data.exclude)
    args.epochs = 2.0
    with pytest.raises(UserError, match="`--epochs 2` counts images, and with `--tile` each is several"):
        stream()


def test_no_tile_of_an_image_that_is_held_out_is_trained_on(tmp_path):
    for i in range(60):  # each tile shows of which image it is
        np.save(tmp_path / f"{i}.npy", np.full((4, 20, 20), 4 * i, np.uint8))
    data = ImageData(ImageDataArguments(dataset=str(tmp_path), tile=16, tiles_per_image=4))
    plain = View(size=8, scale=(1.0, 1.0), jitter_probability=0.0, blur_probability=0.0)
    # with masks, and blocks of one image each
    preset, arguments = ViewPreset((plain, plain), mask_ratio=(0.1, 0.5)), ViewArguments(image_size=8)
    views = Views(
        preset, arguments, is_grey=False, num_channels=4, mean_std=([0.0] * 4, [1.0] * 4), patch_size=2,
        tiles=data.tiles,
    )  # fmt: skip
    stream = ExactStream(
        data.source, views.rows, views.collator(), 8, exclude=data.exclude, block_cost=1,
        piece_cost=60 / len(data.source),
    )  # fmt: skip
    batches = iter(stream)
    seen = {
        round(value / 4)
        for _ in range(60)
        for value in (next(batches)["pixel_values"] * 255).flatten(1).mean(1).tolist()
    }
    held_out = {int(open_array(each).read().max()) // 4 for each in data.held_out}
    assert held_out and seen == set(range(60)) - held_out


def test_impossible_tiles_are_refused():
    for name in ("tile", "tiles_per_image"):
        with pytest.raises(UserError, match=f"`--{name}` is a number of at least 1, got 0"):
            ImageDataArguments(**{name: 0})
