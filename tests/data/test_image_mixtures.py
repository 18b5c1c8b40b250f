"""Mixtures of images: shares of images however large they are, exact as a single source."""

import io
import itertools
from collections import Counter
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from PIL import Image

from hfssl.cli.image.data import ImageData, ImageDataArguments
from hfssl.data.image.decode import decode_image
from hfssl.data.labelled import open_labelled
from hfssl.data.mixtures import MixtureStream, open_mixture
from hfssl.data.sources import DataError
from hfssl.data.stream import Rows


LARGE, SMALL = 40, 6  # pixels a side


def png(side, value, seed):
    noise = np.random.default_rng(seed).integers(-20, 20, (side, side, 3))
    file = io.BytesIO()
    Image.fromarray((value + noise).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """300 small, bright image files in a folder, and 120 large, dark images in a table."""
    root = tmp_path_factory.mktemp("two")
    (root / "files").mkdir()
    for i in range(300):
        (root / "files" / f"{i}.png").write_bytes(png(SMALL, 200, i))
    images = [{"bytes": png(LARGE, 50, 1000 + i), "path": None} for i in range(120)]
    features = datasets.Features({"picture": datasets.Image()})
    datasets.Dataset.from_dict({"picture": images}, features=features).to_parquet(str(root / "table.parquet"))
    return f"{root}/files", f"{root}/table.parquet"


@pytest.fixture(scope="module")
def mixed(two):
    return ImageData(ImageDataArguments(dataset=f"{two[0]}:0.8,{two[1]}:0.2"))


class Views:
    """Stands in for views: the side of each image, and a number drawn from its key."""

    def rows(self, block):
        images = next(iter(block.columns.values()))
        sides = np.array([decode_image(image).shape[-1] for image in images])
        return Rows({"side": sides, "draw": block.keys.astype(np.int64), "image": images}, np.ones(len(images)))

    def collator(self, device):
        return lambda columns: columns


def stream(data, **arguments):
    settings = {"per_device_train_batch_size": 16, "seed": 0, "process_index": 0, "world_size": 1, "lanes": None}
    settings |= {"dataloader_num_workers": 0, "device": "cpu", "global_batch_size": 16}
    return data.stream(SimpleNamespace(**settings | arguments), Views())


def take(stream, number):
    return [(b["draw"].tolist(), b["image"]) for b in itertools.islice(iter(stream), number)]


def test_shares_are_of_images_however_large_they_are(mixed):
    assert mixed.num_images == 420
    assert mixed.source.description.startswith(
        "mixture of 80.0% files (300 images; 300 image files), 20.0% table.parquet ("
    )
    made = stream(mixed)
    assert isinstance(made, MixtureStream) and made.unit == "images"
    sides = Counter(side for b in itertools.islice(iter(made), 120) for side in b["side"].tolist())
    assert sides[LARGE] / sides.total() == pytest.approx(0.2, abs=0.02) and set(sides) == {LARGE, SMALL}
    # a block holds a piece of 8 images of the smaller part, a fifth of it
    assert sum(q * size for q, size in zip(made.quotas, mixed.source.size_per_piece, strict=True)) / (
        1 << 20
    ) == pytest.approx(40, rel=0.1)


@pytest.mark.parametrize("world_size", [1, 2])
def test_each_source_goes_round_on_its_own(mixed, world_size):
    streams = [stream(mixed, process_index=rank, world_size=world_size) for rank in range(world_size)]
    # about two rounds of the small files
    seen = Counter(image for s in streams for _, images in take(s, 48 // world_size) for image in images)
    files = [count for image, count in seen.items() if decode_image(image).shape[-1] == SMALL]
    assert len(files) > 250 and max(files) - min(files) <= 2


def test_workers_and_a_resume_change_nothing(mixed, two):
    whole = take(stream(mixed), 20)
    begun = stream(mixed, dataloader_num_workers=2)
    assert take(begun, 7) == whole[:7]
    again = stream(ImageData(ImageDataArguments(dataset=f"{two[0]}:0.8,{two[1]}:0.2")))
    again.load_state_dict(begun.state_dict())
    assert take(again, 13) == whole[7:]
    other = stream(ImageData(ImageDataArguments(dataset=f"{two[0]}:0.7,{two[1]}:0.3")))
    with pytest.raises(DataError, match="cannot go on from the checkpoint"):
        other.load_state_dict(begun.state_dict())


def test_every_source_gives_held_out_images_that_never_come(mixed, two):
    sides = Counter(decode_image(image).shape[-1] for image in mixed.held_out)
    assert sides[SMALL] > 10 and sides[LARGE] > 3 and len(set(mixed.held_out)) == len(mixed.held_out)
    # evaluators that take the first ones get some of each
    assert len({decode_image(image).shape[-1] for image in mixed.held_out[:16]}) == 2
    seen = {image for _, images in take(stream(mixed), 60) for image in images}
    assert seen.isdisjoint(mixed.held_out)
    few = ImageData(ImageDataArguments(dataset=f"{two[0]}:0.8,{two[1]}:0.2", max_held_out=10))
    assert Counter(decode_image(image).shape[-1] for image in few.held_out) == {SMALL: 8, LARGE: 5}


def test_statistics_are_those_of_the_shares(mixed, two):
    mean, _ = mixed.channel_mean_std()
    assert mean == pytest.approx([(0.8 * 200 + 0.2 * 50) / 255] * 3, abs=0.01)
    half = ImageData(ImageDataArguments(dataset=f"{two[0]}:0.5,{two[1]}:0.5"))
    assert half.channel_mean_std()[0] == pytest.approx([125 / 255] * 3, abs=0.01)


def test_without_weights_all_images_count_the_same(two):
    data = ImageData(ImageDataArguments(dataset=",".join(two)))
    assert [round(part.share, 4) for part in data.source.parts] == [round(300 / 420, 4), round(120 / 420, 4)]
    seen = Counter(image for _, images in take(stream(data, lanes=1), 23) for image in images)
    assert max(seen.values()) == 1 and len(seen) == 23 * 16


def test_a_damaged_image_is_named_with_its_source(two, tmp_path, caplog):
    folder = tmp_path / "broken"
    folder.mkdir()
    for i in range(64):
        (folder / f"{i}.png").write_bytes(png(SMALL, 100, i) if i % 8 else b"no image %d" % i)
    source = open_mixture(f"{two[0]}:0.5,{folder}:0.5", modality="image")
    first = int(source.first_pieces[1])
    assert source.where(first + 8, 8) in {f"broken: {i}.png" for i in range(64)}
    assert source.where(3, 3).startswith("files: ")


def test_mistakes_are_explained(two, tmp_path):
    with pytest.raises(DataError, match="gives .*table.parquet' no weight"):
        ImageData(ImageDataArguments(dataset=f"{two[0]}:0.5,{two[1]}"))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    with pytest.raises(DataError, match="holds text, no images"):
        ImageData(ImageDataArguments(dataset=f"{two[0]}:0.5,{tmp_path}/texts:0.5"))
    with pytest.raises(DataError, match="--dataset_config x` cannot hold for each data set"):
        ImageData(ImageDataArguments(dataset=",".join(two), dataset_config="x"))
    with pytest.raises(DataError, match="A probe takes one data set, got the mixture"):
        open_labelled(",".join(two), "train")
