"""What the image recipes share: held-out images, statistics and the stream that a recipe trains on."""

import io
import itertools
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from PIL import Image

from hfssl.cli.image import data as image_data
from hfssl.cli.image.data import ImageData, ImageDataArguments
from hfssl.data.image.decode import decode_image
from hfssl.data.image.digits import digits
from hfssl.data.sources import DataError
from hfssl.data.stream import Rows
from hfssl.errors import UserError


def encoded(values, format="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(values).save(file, format, **options)
    return file.getvalue()


def write_folder(folder, number=120, grey=False, format="PNG", side=8, **options):
    """Images whose red, green and blue are spread differently."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(number):
        values = rng.normal([200, 100, 60], [10, 40, 20], (side, side + i % 3, 3)).clip(0, 255)
        values = np.repeat(values[:, :, :1], 3, 2) if grey else values
        (folder / f"{i:03}.{format.lower()}").write_bytes(encoded(values.astype(np.uint8), format, **options))
    return str(folder)


class Views:
    """Stands in for views: the mean of each image, and a number drawn from its key."""

    def rows(self, block):
        images = block.columns["image"]
        means = np.array([decode_image(image).float().mean() for image in images], dtype=np.float32)
        return Rows(
            {"mean": means, "draw": block.keys.astype(np.int64), "image": images}, np.ones(len(images), np.int64)
        )

    def collator(self, device):
        return lambda columns: {**columns, "device": device}


def arguments(rank=0, world_size=1, num_workers=0, batch_size=16):
    return SimpleNamespace(
        per_device_train_batch_size=batch_size, seed=0, lanes=None, process_index=rank, world_size=world_size,
        dataloader_num_workers=num_workers, device="cpu", global_batch_size=batch_size * world_size,
    )  # fmt: skip


def take(stream, number):
    return [(b["draw"].tolist(), b["image"]) for b in itertools.islice(iter(stream), number)]


# -- the stream -------------------------------------------------------------------------------------------------------


def test_the_embedded_set_without_any_flag(caplog):
    letters = ImageData(ImageDataArguments())
    assert letters.num_images == 10_000 and not letters.is_grey and letters.settings["dataset"] == "letters"
    assert letters.settings == ImageData(ImageDataArguments(dataset="letters")).settings
    with caplog.at_level(logging.INFO, "hfssl"):
        data = ImageData(ImageDataArguments(dataset="digits"))
    train = digits("train")["image"]
    assert data.num_images == len(train) == 1442 and data.is_grey
    assert 60 < len(data.held_out) < 160 and set(data.held_out) < set(train)
    assert data.settings == {"dataset": "digits", "split": "train", "image_column": "image"}
    assert "embedded digits of scikit-learn (train), 1,442 rows" in caplog.text
    stream = data.stream(arguments(batch_size=1), Views())
    batches = [batch for _, batch in tiny.passes(stream)]
    seen = [batch["image"][0] for batch in batches]
    assert sorted(seen) == sorted(set(train) - set(data.held_out)) and batches[0]["device"] == "cpu"


def test_workers_and_a_resume_change_nothing(tmp_path):
    data = ImageData(ImageDataArguments(dataset=write_folder(tmp_path / "a")))
    whole = take(data.stream(arguments(), Views()), 20)
    begun = data.stream(arguments(num_workers=2), Views())
    assert take(begun, 7) == whole[:7]
    again = ImageData(ImageDataArguments(dataset=str(tmp_path / "a"))).stream(arguments(), Views())
    again.load_state_dict(begun.state_dict())
    assert take(again, 13) == whole[7:]


def test_a_block_is_about_a_batch(tmp_path):
    data = ImageData(ImageDataArguments(dataset=write_folder(tmp_path / "a", number=700, side=3)))
    # in the blocks of all 8 lanes; a single lane has room for a large one
    for batch_size, lanes, images in ((1, 8, 16), (200, 8, 25), (2400, 2, 350), (4096, 1, 512)):
        stream = data.stream(arguments(batch_size=batch_size), Views())
        assert stream.lanes == lanes
        assert len(stream._units(0, 0)) == pytest.approx(images, rel=0.4)  # a piece is an image here
        assert stream.unit == "images"


# -- held out ---------------------------------------------------------------------------------------------------------


def test_a_validation_split_is_taken_where_there_is_one(tmp_path):
    write_folder(tmp_path / "a" / "train", number=40)
    write_folder(tmp_path / "a" / "validation", number=9, side=5)
    data = ImageData(ImageDataArguments(dataset=str(tmp_path / "a")))
    assert len(data.held_out) == 9 and data.num_images == 40
    data = ImageData(ImageDataArguments(dataset=str(tmp_path / "a"), max_held_out=4))
    assert len(data.held_out) == 4
    with pytest.raises(
        DataError, match="no split 'test'. Its splits are: 'train', 'validation'. Choose one with `--eval_split`"
    ):
        ImageData(ImageDataArguments(dataset=str(tmp_path / "a"), eval_split="test"))


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"held_out_fraction": 1.0}, "between 0 and 1"),
        ({"max_bad_fraction": 2}, "between 0 and 1"),
        ({"max_held_out": 0}, "at least 1"),
    ],
)
def test_impossible_flags(changed, words):
    with pytest.raises(UserError, match=f"`--{next(iter(changed))}` .*{words}"):
        ImageDataArguments(**changed)


# -- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_mean_and_standard_deviation_of_each_channel(tmp_path, format):
    data = ImageData(
        ImageDataArguments(
            dataset=write_folder(
                tmp_path / "a", format=format, **({"quality": 100, "subsampling": 0} if format == "JPEG" else {})
            )
        )
    )
    mean, std = data.channel_mean_std()
    assert mean == pytest.approx([200 / 255, 100 / 255, 60 / 255], abs=0.005)
    assert std == pytest.approx([10 / 255, 40 / 255, 20 / 255], abs=0.006)
    assert not data.is_grey


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_shades_of_grey_in_three_channels_are_grey(tmp_path, format):
    assert ImageData(
        ImageDataArguments(dataset=write_folder(tmp_path / "a", number=20, grey=True, format=format))
    ).is_grey


def test_large_images_are_reduced_for_statistics(tmp_path, monkeypatch):
    shrinks = []
    monkeypatch.setattr(
        image_data,
        "decode_image",
        lambda data, shrink, *args: shrinks.append(shrink) or decode_image(data, shrink, *args),
    )
    data = ImageData(ImageDataArguments(dataset=write_folder(tmp_path / "a", number=12, format="JPEG", side=500)))
    assert data.channel_mean_std()[0] == pytest.approx([200 / 255, 100 / 255, 60 / 255], abs=0.01)
    assert set(shrinks) == {2}


def test_damaged_images_do_not_count(tmp_path):
    folder = write_folder(tmp_path / "a", number=60)
    (tmp_path / "a" / "005.png").write_bytes(b"no image")
    assert ImageData(ImageDataArguments(dataset=folder)).channel_mean_std()[0][0] == pytest.approx(200 / 255, abs=0.01)
    for path in (tmp_path / "a").iterdir():
        path.write_bytes(b"no image " + path.name.encode())
    with pytest.raises(
        DataError, match=r"No image of 60 image files can be decoded. One of them: \d+.png: it is no image"
    ):
        ImageData(ImageDataArguments(dataset=folder)).channel_mean_std()


def write_twelve_bits(folder, number=40):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(number):
        (folder / f"{i}.png").write_bytes(encoded(rng.integers(0, 4096, (16, 16), np.uint16)))
    return str(folder)


def test_the_range_of_values_is_judged_and_part_of_the_run(tmp_path, monkeypatch):
    folder = write_twelve_bits(tmp_path / "a")
    data = ImageData(ImageDataArguments(dataset=folder))
    assert data.value_range == (0, 4095) and data.settings["value_range"] == [0, 4095] and data.is_grey
    assert data.channel_mean_std()[0] == pytest.approx([0.5] * 3, abs=0.02)
    stated = ImageData(ImageDataArguments(dataset=folder, value_range=(0.0, 8190.0)))
    assert stated.settings["value_range"] == [0, 8190]
    assert stated.channel_mean_std()[0] == pytest.approx([0.25] * 3, abs=0.02)
    # of a run that goes on it is not judged anew
    monkeypatch.setattr(image_data, "read_settings", lambda checkpoint: {"value_range": "[0.0, 1023.0]"})
    assert ImageData(ImageDataArguments(dataset=folder), tmp_path / "checkpoint").value_range == (0, 1023)
    monkeypatch.setattr(image_data, "read_settings", lambda checkpoint: {})
    assert ImageData(ImageDataArguments(dataset=folder), tmp_path / "checkpoint").value_range is None
    eight = ImageData(ImageDataArguments(dataset=write_folder(tmp_path / "b", number=30)))
    assert eight.value_range is None and "value_range" not in eight.settings
    with pytest.raises(UserError, match="`--value_range` is the value that is black"):
        ImageDataArguments(value_range=(3.0, 1.0))
