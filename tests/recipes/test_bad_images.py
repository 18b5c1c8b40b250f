"""Bad images through the real commands: each is handled, or explained in one sentence without a stack trace."""

import io
import json
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
from image_recipes import run, the_error
from labelled import png, resnet, save, vit
from PIL import Image
from recipe_process import recipe_server


def pixels(height=12, width=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def animated(seed=0):
    first, *others = (Image.fromarray(pixels(seed=3 * seed + i)) for i in range(3))
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=others)
    return file.getvalue()


def bomb():
    """A PNG file of a few bytes that says it has 3.6 billion pixels."""
    chunks = [(b"IHDR", struct.pack(">2I5B", 60_000, 60_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(1000)))]
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in [*chunks, (b"IEND", b"")]:
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return file


DAMAGED = {
    "undecodable.png": (b"no image at all", "it is no image"),
    "empty.png": (b"", "empty"),
    "truncated.png": (png(pixels(64, 64))[:2000], "it cannot be decoded"),
    "bomb.png": (bomb(), "it has more than 89,478,485 pixels"),
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def good(folder: Path, number=64, classes=("a", "b"), seed=0) -> Path:
    files = {f"{classes[i % len(classes)]}/{i}.png": png(pixels(seed=1000 * seed + i)) for i in range(number)}
    return write(folder, files)


def splits(folder: Path, train=40, test=20, classes=("a", "b")) -> Path:
    good(folder / "train", train, classes, seed=1)
    good(folder / "test", test, classes, seed=2)
    return folder


def pretrain(folder, dataset, method="simclr", **settings):
    return run(method, folder, dataset=dataset, image_size=16, max_steps=2, eval_strategy="no", **settings)


def measure(folder, dataset, encoder, *flags, recipe="probe"):
    words = ["--encoder", encoder, "--dataset", dataset, "--output_dir", folder / "out", *flags]
    return recipe_server().run(folder, *words, script=f"recipes/{recipe}.py")


def went_well(done):
    assert done.poll() == 0 and "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save(vit(num_hidden_layers=1), tmp_path_factory.mktemp("vit"))


# -- pre-training -----------------------------------------------------------------------------------------------------


def test_damaged_files_are_left_out_and_named(tmp_path):
    images = good(tmp_path / "images", 100)
    # so many that some of each kind are neither held out nor behind the last step
    write(
        images / "a",
        {f"{i}-{name}": data + b"%d" % i if data else data for i in range(8) for name, (data, _) in DAMAGED.items()},
    )
    settings = {"max_bad_fraction": 0.5, "per_device_train_batch_size": 64}
    done = went_well(pretrain(tmp_path / "allowed", images, **settings))
    left_out = [line for line in done.stderr.splitlines() if line.startswith("Left out a damaged sample")]
    for name, (_, reason) in DAMAGED.items():
        assert any(name in line and reason in line for line in left_out), (name, left_out)
    error = the_error(pretrain(tmp_path / "refused", images))
    assert "are damaged, more than the 1.0% that `--max_bad_fraction` allows. One of them: a/" in error


@pytest.mark.parametrize("name", DAMAGED)
def test_nothing_but_damaged_files(tmp_path, name):
    data, _ = DAMAGED[name]
    images = write(tmp_path / "images", {f"{i}.png": data + b"%d" % i if data else data for i in range(150)})
    error = the_error(pretrain(tmp_path, images))
    assert "can be decoded" in error or "without a single byte" in error, error


@pytest.mark.parametrize("method", ["simclr", "mae"])
@pytest.mark.parametrize("kind", ["animated", "one pixel"])
def test_odd_images_are_taken(tmp_path, kind, method):
    images = [animated(i) if kind == "animated" else png(pixels(1, 1, i)) for i in range(64)]
    extension = "gif" if kind == "animated" else "png"
    write(tmp_path / "images", {f"{i}.{extension}": image for i, image in enumerate(images)})
    done = went_well(pretrain(tmp_path, tmp_path / "images", method))
    assert "damaged" not in done.stderr


def test_a_run_on_twelve_bits_keeps_the_range_of_their_values(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(64):
        values = np.random.default_rng(i).integers(0, 4096, (12, 12), dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / "images" / f"{i}.png")
    done = went_well(pretrain(tmp_path, tmp_path / "images", "mae"))
    assert "0 to 4095 become black to white. `--value_range LOW HIGH` states another range" in done.stderr
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["value_range"] == [0, 4095]


def test_class_folders_of_one_image_and_a_single_image(tmp_path):
    went_well(pretrain(tmp_path / "a", good(tmp_path / "classes", 40, [f"class{i}" for i in range(40)])))
    error = the_error(pretrain(tmp_path / "b", good(tmp_path / "single", 1)))
    assert "1 image file" in error and "Pass more data" in error


def test_sizes_that_position_embeddings_do_not_fit(tmp_path, encoder):
    for method in ("simclr", "mae"):
        settings = {"encoder": encoder, "encoder_config": None, "image_size": 24, "max_steps": 1}
        went_well(run(method, tmp_path / method, **settings))
        config = json.loads((tmp_path / method / "out" / "config.json").read_text())
        assert config["image_size"] == 24
    error = the_error(run("simclr", tmp_path / "odd", image_size=18))
    assert "`--image_size 18` is no multiple of the encoder's patches of 4 pixels. Pass `--image_size 16`" in error


@pytest.mark.parametrize("method", ["simclr", "moco", "byol"])
def test_a_batch_of_one_with_batch_norm(tmp_path, method):
    assert "Pass a larger `--per_device_train_batch_size`" in the_error(
        run(method, tmp_path, per_device_train_batch_size=1)
    )


def test_a_batch_of_one_without_batch_norm(tmp_path):
    went_well(run("mae", tmp_path, per_device_train_batch_size=1, max_steps=1))


# -- probes -----------------------------------------------------------------------------------------------------------


def test_probes_of_classes_with_one_image(tmp_path, encoder):
    images = splits(tmp_path / "images", 3, 6, "abc")
    done = went_well(measure(tmp_path / "probe", images, encoder))
    assert "One label a class leaves nothing to choose a strength on" in done.stderr
    records = json.loads((tmp_path / "probe" / "out" / "results.json").read_text())
    assert {record["protocol"] for record in records} == {"knn", "linear", "few_shot"}
    assert {record["num_train"] for record in records} == {3}
    short = ["--seeds", 1, "--min_steps", 1, "--epochs", 0.1]
    went_well(measure(tmp_path / "shares", images, encoder, "--protocol", "label_efficiency", *short))
    went_well(measure(tmp_path / "finetune", images, encoder, *short, recipe="finetune"))


def test_missing_labels_are_explained(tmp_path, encoder):
    def table(name, labels, feature):
        images = [{"bytes": png(pixels(seed=i)), "path": None} for i in range(len(labels))]
        features = datasets.Features({"image": datasets.Image(), "label": feature})
        (tmp_path / name).parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(tmp_path / name)

    for split in ("train", "test"):
        write(tmp_path / "flat" / split, {f"{i}.png": png(pixels(seed=i)) for i in range(4)})
    table("hidden/train.parquet", [0, 1, 0, 1], datasets.ClassLabel(names=["x", "y"]))
    table("hidden/test.parquet", [-1, -1], datasets.ClassLabel(names=["x", "y"]))
    good(tmp_path / "one_split", 8)
    good(tmp_path / "one_each", 4, "abcd")
    splits(tmp_path / "one_class", 8, 4, "a")
    for name, (words, *flags) in {
        "flat": ["have labels where each class has a folder of its own"],
        "hidden": ["says no class for any of 2 images: a split without labels?", "--test_split", "test"],
        "one_split": ["Its splits are: 'train'. Choose one with `--test_split`", "--test_split", "test"],
        "one_each": ["no class with two different images", "--test_split", "auto"],
        "one_class": ["no column of labels"],
    }.items():
        error = the_error(measure(tmp_path / f"log_{name}", tmp_path / name, encoder, *flags))
        assert words in error, error
    # a recipe that trains has the flags under other names
    error = the_error(run("simclr", tmp_path / "online", probe_dataset=tmp_path / "one_split", probe_test_split="x"))
    assert "Choose one with `--probe_test_split`" in error
    error = the_error(run("simclr", tmp_path / "column", probe_dataset=tmp_path / "flat"))
    assert "Choose one with `--probe_label_column`" in error


def test_damaged_files_among_labelled_ones(tmp_path, encoder):
    images = splits(tmp_path / "images", 100, 20)
    (images / "train" / "a" / "broken.png").write_bytes(bomb())
    done = went_well(measure(tmp_path / "one", images, encoder, "--protocol", "knn"))
    assert "1 of the images of images (train) cannot be decoded" in done.stderr
    assert "a/broken.png (it has more than 89,478,485 pixels)" in done.stderr
    for i in range(3):
        (images / "test" / "b" / f"broken{i}.png").write_bytes(b"" if i else b"no image")
    error = the_error(measure(tmp_path / "many", images, encoder, "--protocol", "knn"))
    assert (
        "3 of the 23 images of images (test) cannot be decoded: remove or replace test/b/broken0.png (it is no image"
        in error
    )


def test_images_of_another_size_than_the_encoders(tmp_path, encoder):
    images = splits(tmp_path / "images")
    larger = save(vit(num_hidden_layers=1), tmp_path / "larger", size=24)
    went_well(measure(tmp_path / "a", images, larger))
    smaller = save(vit(num_hidden_layers=1), tmp_path / "smaller", size=2)
    for recipe in ("probe", "finetune"):
        error = the_error(measure(tmp_path / recipe, images, smaller, recipe=recipe))
        assert "does not take images of 2 × 2 pixels, which its image processor makes (" in error


def test_fine_tuning_batch_norm_on_one_image(tmp_path):
    images = splits(tmp_path / "images")
    encoder = save(resnet(), tmp_path / "resnet")
    error = the_error(measure(tmp_path / "one", images, encoder, "--train_batch_size", 1, recipe="finetune"))
    assert "needs more than one sample in each process" in error and "`--train_batch_size`" in error
