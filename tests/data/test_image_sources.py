"""Images from folders, tars and tables: the same bytes in every format, each once, from any place."""

import csv
import gzip
import io
import itertools
import json
import logging
import multiprocessing
import os
import pickle
import shutil
import subprocess
import tarfile
import tracemalloc
import zipfile
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from huggingface_hub import HfApi
from PIL import Image

from hfssl.data import cache
from hfssl.data.held_out import all_samples, held_out_samples
from hfssl.data.image.digits import digits
from hfssl.data.image.letters import LETTERS, _draw, letters
from hfssl.data.image.scenes import _draw_rows, scenes
from hfssl.data.modality import modality
from hfssl.data.sources import (
    DataError,
    MemorySource,
    available_splits,
    find,
    find_column,
    identity,
    open_source,
    sample_folders,
    tars,
)
from hfssl.data.stream import ExactStream, Rows


CLASSES = ("cat", "dog", "owl")


def png(number, side=6):
    """A small image that shows its number."""
    values = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


IMAGES = [png(i) for i in range(60)]
LABELS = [i % 3 for i in range(60)]


def write_folder(folder, images=IMAGES, labels=LABELS):
    """Class folders."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / CLASSES[label] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)


def write_table(path, images=IMAGES, typed=True, **options):
    columns = {"image": [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)], "label": LABELS}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    table = datasets.Dataset.from_dict(columns, features=features)
    if path.suffix == ".parquet":
        pq.write_table(table.data.table if typed else table.data.table.replace_schema_metadata(None), path, **options)
    else:
        table.save_to_disk(path)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_shards(folder, images=IMAGES, shards=3):
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.array_split(np.arange(len(images)), shards)
    for shard, members in enumerate(numbers):
        of_shard = [((f"{i:03}.png", images[i]), (f"{i:03}.cls", str(LABELS[i]).encode())) for i in members]
        write_tar(folder / f"shard-{shard:04}.tar", itertools.chain.from_iterable(of_shard))


def read_all(source, order=None):
    """Everything in a source: `(file, row) -> values of the row` and `(file, row) -> reason`."""
    values, bad = {}, {}
    for index in range(len(source)) if order is None else order:
        piece = source.read(index)
        file = int(source.pieces[index, 0])
        assert list(piece.columns) == source.columns
        for row, *of_row in zip(piece.rows.tolist(), *piece.columns.values(), strict=True):
            assert (file, row) not in values
            values[file, row] = of_row[0] if len(of_row) == 1 else tuple(of_row)
        bad |= {(file, row): reason for row, reason in piece.bad}
    return values, bad


def images_of(source):
    values, bad = read_all(source)
    assert not bad
    return [values[key] for key in sorted(values)]


# -- formats ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory):
    """The same images in every format: name to path."""
    folder = tmp_path_factory.mktemp("formats")
    write_folder(folder / "classes")
    (folder / "flat").mkdir()
    for i, image in enumerate(IMAGES):
        (folder / "flat" / f"{i}.png").write_bytes(image)
    for i, image in enumerate(IMAGES):
        path = folder / "nested" / f"{i % 4}" / ("deeper" if i % 2 else "") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    write_table(folder / "typed.parquet", row_group_size=25)
    write_table(folder / "plain.parquet", typed=False)
    binary = pa.table({"id": range(60), "jpg": pa.array(IMAGES, pa.large_binary())})
    pq.write_table(binary, folder / "binary.parquet", row_group_size=7)
    write_table(folder / "saved")
    table = datasets.load_from_disk(folder / "saved").data.table
    with pa.OSFile(str(folder / "stream.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=11)
    write_shards(folder / "tars")
    write_shards(folder, shards=1)
    shutil.make_archive(str(folder / "packed" / "images"), "zip", folder / "classes")
    return {path.name: path for path in folder.iterdir()}


FORMATS = [
    "packed",
    "classes",
    "flat",
    "nested",
    "typed.parquet",
    "plain.parquet",
    "binary.parquet",
    "saved",
    "stream.arrow",
    "tars",
    "shard-0000.tar",
]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_images(everywhere, name):
    source = open_source(everywhere[name], modality="image")
    assert source.num_rows == 60 and source.num_rows_exact and source.modality == "image"
    assert sorted(images_of(source)) == sorted(IMAGES)
    assert len(source.columns) == 1 and isinstance(source.description, str)
    # short runs: neighbours often are of one class
    assert (source.pieces[:, 2] - source.pieces[:, 1]).max() <= 10
    assert source.piece_bytes.sum() > 0
    if name not in ("classes", "flat", "nested", "packed"):
        assert images_of(source) == IMAGES


def test_without_streaming_tables_and_tars_are_converted_and_folders_are_not(everywhere, caplog):
    with caplog.at_level(logging.INFO, "hfssl"):
        for name in ("typed.parquet", "tars", "classes"):
            source = open_source(everywhere[name], modality="image", streaming=False)
            assert sorted(images_of(source)) == sorted(IMAGES)
    assert caplog.text.count("is converted once to a copy") == 2


def test_compressed_tars_are_converted(everywhere, tmp_path, caplog):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(everywhere["shard-0000.tar"].read_bytes()))
    with caplog.at_level(logging.INFO, "hfssl"):
        source = open_source(tmp_path / "a.tar.gz", modality="image", extra_columns=("cls",))
    assert "compressed files (a.tar.gz) cannot be opened in the middle" in caplog.text
    assert images_of(source) == list(zip(IMAGES, LABELS, strict=True))


def test_zip_files(everywhere, tmp_path):
    source = open_source(everywhere["packed"], modality="image", extra_columns=("label",))
    assert sorted(images_of(source)) == sorted(zip(IMAGES, LABELS, strict=True))
    assert source.files[0] == "images.zip/cat/000.png" and source.features["label"].names == list(CLASSES)
    data = bytearray((everywhere["packed"] / "images.zip").read_bytes())
    at = data.index(b"cat/003.png") + 40
    data[at : at + 20] = bytes(20)
    (tmp_path / "images.zip").write_bytes(data)
    values, bad = read_all(open_source(tmp_path, modality="image"))
    assert len(values) == 59 and "cannot be unpacked" in next(iter(bad.values()))


@pytest.mark.parametrize("name", [*FORMATS, None])
def test_any_order_any_process(everywhere, name):
    source = open_source(name and everywhere[name], modality="image")
    expected = [source.read(index).columns[source.columns[0]] for index in range(len(source))]
    copy = pickle.loads(pickle.dumps(source))
    for index in reversed(range(len(source))):
        assert copy.read(index).columns[source.columns[0]] == expected[index]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(source.read(3).columns[source.columns[0]]))
    child.start()
    source.read(1)
    assert queue.get(timeout=300) == expected[3]
    child.join()


@pytest.mark.parametrize(
    "name, label", [("classes", "label"), ("typed.parquet", "label"), ("saved", "label"), ("tars", "cls")]
)
def test_labels_are_read_beside(everywhere, name, label):
    source = open_source(everywhere[name], modality="image", extra_columns=(label,))
    assert source.columns[1:] == [label]
    values, bad = read_all(source)
    assert not bad and len(values) == 60
    assert all(LABELS[IMAGES.index(image)] == of_image for image, of_image in values.values())
    assert source.read_input(label) == [values[key][1] for key in sorted(values)]
    if name != "tars":
        assert source.features["label"].names == list(CLASSES)


def test_class_folders_are_those_of_all_splits(tmp_path):
    write_folder(tmp_path / "train", IMAGES[:9], LABELS[:9])
    write_folder(tmp_path / "test", IMAGES[9:11], [2, 2])
    assert available_splits(tmp_path, modality="image") == ["train", "test"]
    source = open_source(tmp_path, modality="image", split="test", extra_columns=("label",))
    assert source.description == "2 image files in 3 class folders"
    assert source.read_input("label") == [2, 2] and source.where(1, 1) == "test/owl/001.png"


def test_class_folders_in_tars(tmp_path):
    """As in a folder: with the classes of all splits, and only where nothing but images is there."""
    inside = [(f"{'./' * (i > 3)}{CLASSES[LABELS[i]]}/{i}.png", IMAGES[i]) for i in range(9)]
    for name, of_split in (("train-0", inside[:4]), ("train-1", inside[4:]), ("test-0", [inside[2]])):
        (tmp_path / "a").mkdir(exist_ok=True)
        write_tar(tmp_path / "a" / f"{name}.tar", of_split)
    source = open_source(tmp_path / "a", modality="image", extra_columns=("label",))
    assert images_of(source) == list(zip(IMAGES[:9], LABELS[:9], strict=True))
    assert source.read_input("label") == LABELS[:9] and source.features["label"].names == list(CLASSES)
    source = open_source(tmp_path / "a", modality="image", split="test", extra_columns=("label",))
    assert source.read_input("label") == [2] and source.features["label"].names == list(CLASSES)
    for more in (("0.png", IMAGES[0]), ("cat/more/0.png", IMAGES[0]), ("cat/0.json", b"{}")):
        write_tar(tmp_path / "b.tar", [*inside, more])
        assert "label" not in open_source(tmp_path / "b.tar", modality="image").features


def test_folders_at_different_depths_are_no_classes(everywhere):
    with pytest.raises(DataError, match=r"has no column 'label'. Its columns are: 'image' \(Image\)"):
        open_source(everywhere["nested"], modality="image", extra_columns=("label",))


def test_folders_of_splits_are_no_classes(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.png").write_bytes(IMAGES[0])
    assert set(open_source(tmp_path, modality="image").features) == {"image"}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_metadata_beside_the_images_of_a_folder(tmp_path, kind):
    write_folder(tmp_path / "a", IMAGES[:6], LABELS[:6])
    rows = [
        {"file_name": f"{CLASSES[LABELS[i]]}/{i:03}.png", "weight": i / 2, "animal": CLASSES[LABELS[i]]}
        for i in range(6)
    ]
    path = tmp_path / "a" / f"metadata.{kind}"
    if kind == "csv":
        with open(path, "w") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    source = open_source(tmp_path / "a", modality="image")
    assert sorted(images_of(source)) == sorted(IMAGES[:6]) and set(source.features) == {
        "image",
        "label",
        "weight",
        "animal",
    }
    source = open_source(tmp_path / "a", modality="image", extra_columns=("animal",))
    assert sorted(images_of(source)) == sorted((IMAGES[i], CLASSES[LABELS[i]]) for i in range(6))


def test_metadata_of_zips_of_several_splits_miss_nothing(tmp_path, caplog):
    for split, image in (("train", IMAGES[0]), ("test", IMAGES[1])):
        (tmp_path / split).mkdir()
        with zipfile.ZipFile(tmp_path / split / "a.zip", "w") as archive:
            archive.writestr("x.png", image)
    lines = ["file_name,kind", "train/a.zip::/x.png,one", "test/a.zip::/x.png,two", "test/a.zip::/gone.png,three"]
    for number, missing in ((3, False), (4, True)):
        (tmp_path / "metadata.csv").write_text("\n".join(lines[:number]))
        for split, image, kind in (("train", IMAGES[0], "one"), ("test", IMAGES[1], "two")):
            source = open_source(tmp_path, split=split, modality="image", extra_columns=("kind",))
            assert images_of(source) == [(image, kind)]
            assert ("1 of the 3 files" in caplog.text) == missing and ("are not there" in caplog.text) == missing


def test_images_among_captions(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(IMAGES[i])
        (tmp_path / f"{i}.txt").write_text(f"image {i}")
        (tmp_path / f"{i}.json").write_text("{}")
    assert images_of(open_source(tmp_path, modality="image")) == IMAGES[:6]


def test_splits_of_a_folder_are_those_of_datasets(tmp_path):
    def write(folder, *names):
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(IMAGES[0])

    write("plain", "a/1.png", "b/2.PNG", "b/.hidden.png", ".git/3.png", "__pycache__/4.png")
    write("splits", "train/a/1.png", "train/b/2.png", "val/a/3.png", "testing/4.png")
    write("names", "train_1.png", "train_2.png", "test-1.png")
    write("folders", "train/1.png", "test/2.png", "other/3.png")
    write("card", "a/1.png")
    (tmp_path / "card" / "README.md").write_text("# A card")

    def of(folder):
        found = find.find_data(str(tmp_path / folder), None, None, modality("image")).splits
        return {
            split: sorted(os.path.relpath(path, tmp_path / folder) for path in paths) for split, paths in found.items()
        }

    ours = {folder: of(folder) for folder in ("plain", "splits", "names", "folders", "card")}
    assert ours["plain"] == {"train": ["a/1.png", "b/2.PNG"]}
    assert ours["splits"] == {
        "train": ["train/a/1.png", "train/b/2.png"],
        "validation": ["val/a/3.png"],
        "test": ["testing/4.png"],
    }

    def of_datasets(folder):
        found = datasets.load_dataset_builder("imagefolder", data_dir=str(tmp_path / folder)).config.data_files
        return {
            str(split): sorted(os.path.relpath(path, tmp_path / folder) for path in paths)
            for split, paths in found.items()
        }

    assert {folder: of_datasets(folder) for folder in ours} == ours


def test_files_and_globs(everywhere, tmp_path):
    assert images_of(open_source(everywhere["flat"] / "7.png", modality="image")) == [IMAGES[7]]
    (tmp_path / "UPPER.PNG").write_bytes(IMAGES[0])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "b.jpeg").write_bytes(IMAGES[1])
    assert sorted(images_of(open_source(str(tmp_path / "*"), modality="image"))) == sorted(IMAGES[:2])
    source = open_source(str(everywhere["classes"] / "*" / "*.png"), modality="image", extra_columns=("label",))
    assert source.features["label"].names == list(CLASSES)


@pytest.mark.parametrize("start, ending", [(b"\0" * 128 + b"DICM", ".dcm"), (IMAGES[0], ".png")])
def test_files_without_an_ending_are_known_by_their_content_and_what_is_advised_helps(tmp_path, start, ending):
    folder = tmp_path / "it's a study"
    folder.mkdir()
    (folder / "1.2.840.10008").write_bytes(b"a list of files")
    (folder / "notes.txt").write_text("of the patients")
    for name in ("1.2.840.10009", "IM0001"):
        (folder / name).write_bytes(start)
    with pytest.raises(DataError, match=f"'1.2.840.10009' is a {ending} file.*give such files this one") as refused:
        open_source(folder, modality="image")
    subprocess.run(str(refused.value).split("`")[1], shell=True, check=True)
    assert open_source(folder, modality="image").num_rows == 3 and (folder / "notes.txt").is_file()
    (tmp_path / "nothing").write_bytes(b"text")
    with pytest.raises(DataError, match="Supported are [^.]*[.]$"):
        open_source(str(tmp_path / "nothing"), modality="image")


def test_very_many_files_share_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_folders, "MAX_PIECES", 10)
    write_folder(tmp_path)
    source = open_source(tmp_path, modality="image")
    assert len(source) == 10 and sorted(images_of(source)) == sorted(IMAGES)


def test_tables_that_name_files(tmp_path):
    write_folder(tmp_path / "files", IMAGES[:9], LABELS[:9])
    paths = sorted(str(path) for path in (tmp_path / "files").rglob("*.png"))
    rows = [{"bytes": None, "path": path} for path in paths]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    (tmp_path / "files" / "dog" / "004.png").unlink()
    source = open_source(tmp_path / "a.parquet", modality="image")
    values, bad = read_all(source)
    assert len(values) == 8 and len(bad) == 1
    assert next(iter(bad.values())).endswith("dog/004.png' is missing")


# -- tars -------------------------------------------------------------------------------------------------------------


def test_a_tar_is_looked_through_once(tmp_path, monkeypatch):
    write_shards(tmp_path / "a", shards=2)
    looked = []
    members = tars._members
    monkeypatch.setattr(tars, "_members", lambda path, name: looked.append(name) or members(path, name))
    first = open_source(tmp_path / "a", modality="image")
    assert looked == ["shard-0000.tar", "shard-0001.tar"]
    second = open_source(tmp_path / "a", modality="image")
    assert len(looked) == 2 and second.fingerprint == first.fingerprint and images_of(second) == IMAGES
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert open_source(tmp_path / "b", modality="image").fingerprint == first.fingerprint and len(looked) == 2
    write_shards(tmp_path / "a", IMAGES[::-1], shards=2)
    assert open_source(tmp_path / "a", modality="image").fingerprint != first.fingerprint and len(looked) == 4


def test_fields_of_a_tar(tmp_path):
    record = json.dumps({"label": 4, "tags": ["a"], "caption": "a cat"}).encode()
    members = [
        ("./x/1.jpg", IMAGES[0]), ("./x/1.json", record), ("./x/1.txt", b"one\n"), ("README", b"no sample"),
        ("./x/2.PNG", IMAGES[1]), ("./x/2.json", b"{damaged"),
        ("./x/3.seg.png", IMAGES[2]),
        ("./x/4.json", record),
        ("__MACOSX/._5.jpg", b"x"),
    ]  # fmt: skip
    write_tar(tmp_path / "a.tar", members[:6])
    source = open_source(tmp_path / "a.tar", modality="image", extra_columns=("label", "caption", "txt"))
    assert images_of(source) == [(IMAGES[0], 4, "a cat", "one"), (IMAGES[1], None, None, None)]
    assert str(source.features["label"].dtype) == "int64" and "tags" not in source.features
    write_tar(tmp_path / "b.tar", members)
    source = open_source(tmp_path / "b.tar", modality="image", column="image")
    values, bad = read_all(source)
    assert list(values.values()) == IMAGES[:3] and bad == {(0, 3): "the sample has no image"}
    write_tar(tmp_path / "c.tar", [("1.a.png", IMAGES[0]), ("1.b.png", IMAGES[1])])
    with pytest.raises(
        DataError, match=r"2 columns of type image.*'a.png' \(Image\), 'b.png' \(Image\).*--image_column"
    ):
        open_source(tmp_path / "c.tar", modality="image")
    assert images_of(open_source(tmp_path / "c.tar", modality="image", column="b.png")) == [IMAGES[1]]


def test_numbered_frames_are_samples(tmp_path, caplog):
    members = []
    for clip in range(3):
        members.append((f"clips/{clip}.json", json.dumps({"clip": clip}).encode()))
        # not frame by frame: all masks of a clip come last
        for kind in ("png", "txt", "seg.png"):
            for frame in range(4):
                data = f"{clip}-{frame}".encode() if kind == "txt" else IMAGES[8 * clip + 2 * frame + (kind != "png")]
                members.append((f"clips/{clip}.frame{frame}.{kind}", data))
    write_tar(tmp_path / "a.tar", members)
    with caplog.at_level(logging.INFO, "hfssl"):
        source = open_source(tmp_path / "a.tar", modality="image", column="png", extra_columns=("txt", "clip"))
    assert images_of(source) == [
        (IMAGES[8 * clip + 2 * frame], f"{clip}-{frame}", clip) for clip in range(3) for frame in range(4)
    ]
    assert "files count on, such as 'frame1.png'. Each number is a sample" in caplog.text
    assert {"png", "seg.png", "txt", "json", "clip"} == set(source.features)
    masks = open_source(tmp_path / "a.tar", modality="image", column="seg.png")
    assert images_of(masks) == [IMAGES[8 * clip + 2 * frame + 1] for clip in range(3) for frame in range(4)]
    # stated, they are columns as everywhere else
    columns = open_source(tmp_path / "a.tar", modality="image", column="frame2.png")
    assert images_of(columns) == [IMAGES[8 * clip + 4] for clip in range(3)]


@pytest.mark.parametrize(
    "names",
    [
        ["2024.01.05.png", "2024.01.06.png", "2024.02.05.png"],
        [f"a.{7919**i % 2**32:08x}.png" for i in range(1, 40)],
        [f"shot.{chr(97 + i)}.png" for i in range(26)],
    ],
)
def test_dotted_names_are_names(tmp_path, names):
    write_tar(tmp_path / "a.tar", [(name, IMAGES[i]) for i, name in enumerate(names)])
    assert images_of(open_source(tmp_path / "a.tar", modality="image")) == IMAGES[: len(names)]


def test_memory_does_not_grow_with_the_number_of_fields(tmp_path):
    members = [(f"{i}.x{i}", b"x") for i in range(1000)] + [(f"{i}.png", image) for i, image in enumerate(IMAGES)]
    write_tar(tmp_path / "a.tar", members)
    tracemalloc.start()
    source = open_source(tmp_path / "a.tar", modality="image")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20  # where each lies in each sample would be 16 MiB
    tracemalloc.stop()
    values, _ = read_all(source)
    assert list(values.values()) == IMAGES
    with pytest.raises(DataError, match=r"has no column 'y'. Its columns are: 'png' .* and 961 more"):
        open_source(tmp_path / "a.tar", modality="image", extra_columns=("y",))


def test_damaged_tars(tmp_path):
    write_shards(tmp_path, shards=1)
    data = (tmp_path / "shard-0000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: data.rindex(IMAGES[40]) + 10])
    values, bad = read_all(open_source(tmp_path / "cut.tar", modality="image"))
    assert list(values.values()) == IMAGES[:40] and bad == {(0, 40): "the tar ends in the middle of it"}
    (tmp_path / "no.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match=r"'no.tar' is not a whole tar \(.*\). Download or make it again"):
        open_source(tmp_path / "no.tar", modality="image")
    write_tar(tmp_path / "names.tar", [("one", b"x"), ("two", b"x")])
    with pytest.raises(DataError, match="holds no webdataset: no file in 'names.tar' has a name with an extension"):
        open_source(tmp_path / "names.tar", modality="image")
    write_tar(tmp_path / "texts.tar", [("1.txt", b"x")])
    with pytest.raises(DataError, match=r"has no column of type image. Its columns are: 'txt' \(string\)"):
        open_source(tmp_path / "texts.tar", modality="image")


# -- damage -----------------------------------------------------------------------------------------------------------


def test_what_is_no_image_at_the_source(tmp_path):
    images = [IMAGES[0], None, b"", IMAGES[3], b"  "]
    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), "label": range(5)}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet", modality="image", extra_columns=("label",))
    values, bad = read_all(source)
    assert values == {(0, 0): (IMAGES[0], 0), (0, 3): (IMAGES[3], 3)}
    assert bad == {(0, 1): "'image' is null", (0, 2): "'image' is empty", (0, 4): "'image' is empty"}
    structs = [{"bytes": image, "path": None} for image in images[:3]] + [None]
    pq.write_table(pa.table({"image": structs}), tmp_path / "b.parquet")
    values, bad = read_all(open_source(tmp_path / "b.parquet", modality="image"))
    assert list(values.values()) == [IMAGES[0]]
    assert list(bad.values()) == ["'image' is null", "'image' is empty", "'image' is null"]
    write_folder(tmp_path / "folder", [*IMAGES[:5], b""], LABELS[:6])
    source = open_source(tmp_path / "folder", modality="image")
    (tmp_path / "folder" / "cat" / "000.png").unlink()
    values, bad = read_all(source)
    assert (
        len(values) == 4 and sorted(bad.values())[0] == "'image' is empty" and "is missing" in sorted(bad.values())[1]
    )


# -- columns, fingerprints, errors ------------------------------------------------------------------------------------


BINARY, STRING = datasets.Value("binary"), datasets.Value("string")


@pytest.mark.parametrize(
    "features, column",
    [
        ({"photo": datasets.Image(), "raw": BINARY}, "photo"),
        ({"id": STRING, "raw": BINARY}, "raw"),
        ({"a": BINARY, "jpg": BINARY}, "jpg"),
        ({"a": {"bytes": BINARY, "path": STRING}, "b": {"x": STRING}}, "a"),
        ({"mask": datasets.Image(), "image": datasets.Image()}, "image"),
    ],
)
def test_the_image_column_is_found(features, column):
    assert find_column(features, "image") == column
    assert find_column(features, "image", column) == column


@pytest.mark.parametrize("name", ["classes", "typed.parquet", "tars"])
def test_the_fingerprint_follows_the_data_and_not_the_place(everywhere, tmp_path, name):
    path = everywhere[name]
    first = open_source(path, modality="image").fingerprint
    copy = tmp_path / name
    (shutil.copytree if path.is_dir() else shutil.copy)(path, copy)
    assert open_source(copy, modality="image").fingerprint == first
    assert open_source(copy, modality="image", extra_columns=()).fingerprint == first
    if name == "classes":
        (copy / "cat" / "000.png").write_bytes(IMAGES[1])
    elif name == "tars":
        write_shards(copy, IMAGES[::-1])
    else:
        write_table(copy, IMAGES[::-1], row_group_size=25)
    assert open_source(copy, modality="image").fingerprint != first


def test_what_holds_no_images(everywhere, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    with pytest.raises(DataError, match="'texts' holds text, no images. Supported are image files .jpg, png, webp"):
        open_source("texts", modality="image")
    with pytest.raises(
        DataError, match="'texts/a.txt' is a file .txt, which cannot be read. Supported are image files"
    ):
        open_source("texts/a.txt", modality="image")
    pq.write_table(pa.table({"text": ["x"]}), "a.parquet")
    with pytest.raises(
        DataError, match=r"'a.parquet' has no column of type image. Its columns are: 'text' \(string\)"
    ):
        open_source("a.parquet", modality="image")
    with pytest.raises(
        DataError, match=r"Column 'label' of .* is ClassLabel of 3, but a column of type image is.*--image_c"
    ):
        open_source(everywhere["typed.parquet"], modality="image", column="label")
    with pytest.raises(DataError, match=r"has no column 'lable'. .*Did you mean 'label'\?"):
        open_source(everywhere["typed.parquet"], modality="image", extra_columns=("lable",))
    with pytest.raises(DataError, match="'.*classes' holds images, no text"):
        open_source(everywhere["classes"])
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "a.png").touch()
    with pytest.raises(DataError, match="'nothing' is empty: 1 file of split 'train' without a single byte"):
        open_source("nothing", modality="image")


def test_a_data_set_of_the_hub(everywhere, hub_here):
    api, found = HfApi(), set()
    for name, folder, patterns in (
        ("table", everywhere["typed.parquet"].parent, "typed.parquet"),
        ("files", everywhere["classes"], None),
        ("tars", everywhere["tars"], None),
    ):
        repo = f"alice/images-in-{name}"
        api.create_repo(repo, repo_type="dataset")
        api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=folder, allow_patterns=patterns)
        assert available_splits(repo, modality="image") == ["train"]
        source = open_source(repo, modality="image")
        images = [image for i in range(len(source)) for image in source.read(i).columns[source.columns[0]]]
        assert len(images) == 60
        found.add(tuple(sorted(images)))
    assert len(found) == 1


def test_masks_on_the_hub_are_no_images(tmp_path, hub_here):
    for split, folder in itertools.product(("train", "test"), ("images", "masks")):
        write_folder(tmp_path / folder / split, IMAGES[:3], LABELS[:3])
    api = HfApi()
    api.create_repo("alice/scenes", repo_type="dataset")
    api.upload_folder(repo_id="alice/scenes", repo_type="dataset", folder_path=tmp_path)
    assert available_splits("alice/scenes", modality="image") == ["train", "test"]
    source = open_source("alice/scenes", modality="image", split="test")
    assert source.files == [f"images/test/{name}/{i:03}.png" for i, name in enumerate(CLASSES)]
    assert source.mask_folders == ["masks"] and source.class_folders == CLASSES


# -- the embedded sets ------------------------------------------------------------------------------------------------


LETTER_LABELS = {"label": 26, "font": 21, "color": 6}


def test_letters():
    train, test = letters("train"), letters("test")
    assert {name: len(values) for name, values in train.items()} == dict.fromkeys(("image", *LETTER_LABELS), 10_000)
    assert len(test["image"]) == 2000 and set(train["image"]).isdisjoint(test["image"])
    assert len(set(train["image"])) == 10_000
    for name, classes in LETTER_LABELS.items():
        counts = np.bincount(train[name], minlength=classes)
        assert len(counts) == classes and counts.min() > 0.8 * 10_000 / classes, name
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in test["image"]])
    assert pixels.shape == (2000, 32, 32, 3) and pixels.dtype == np.uint8
    # each has something on it that differs from its ground
    assert (pixels.astype(int) - pixels[:, :1, :1]).__abs__().max(axis=(1, 2, 3)).min() > 40
    assert _draw("test") == test  # what the cache gives is what is drawn
    source = open_source("letters", modality="image", split="test", extra_columns=("label", "font", "color"))
    assert source.num_rows == 2000 and source.read_input("color") == test["color"]
    assert source.features["label"].names[test["label"][0]] == LETTERS[test["label"][0]]


def test_scenes():
    found = scenes("test")
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(
        ("image", "mask", "label", "box"), 400
    )
    some = range(0, 400, 20)
    pixels, masks = (
        [np.asarray(Image.open(io.BytesIO(found[name][row]))).astype(int) for row in some]
        for name in ("image", "mask")
    )
    for row, image, mask in zip(some, pixels, masks, strict=True):
        labels, boxes = found["label"][row], found["box"][row]
        assert image.shape == (64, 64, 3) and mask.shape == (64, 64) and 2 <= len(labels) <= 4
        assert set(np.unique(mask)) - {0} == {1 + label for label in labels} and len(boxes) == len(labels)
        # the ground is of one colour, and all ink of letters lies in their masks and boxes
        [ground] = {tuple(colour) for colour in image[mask == 0]}
        ink = np.abs(image - ground).max(2) > 40
        assert ink.any() and not (ink & (mask == 0)).any()
        inside = np.zeros_like(mask)
        for left, top, width, height in boxes:
            inside[top : top + height, left : left + width] = 1
        assert inside[mask > 0].all()
    # what the cache gives is what is drawn
    drawn = _draw_rows("test", np.arange(20))
    assert drawn == {name: values[:20] for name, values in found.items()}
    source = open_source("scenes", modality="image", split="test", extra_columns=("mask", "label"))
    assert source.num_rows == 400 and source.read(0).columns["image"][0] == found["image"][0]
    assert [LETTERS[each] for each in found["label"][0]] == [
        source.features["label"].feature.names[each] for each in found["label"][0]
    ]


def test_a_folder_goes_before_the_embedded_set_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_source("digits", modality="image").num_rows == 1442
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "0.png").write_bytes(digits()["image"][0])
    assert open_source("digits", modality="image").num_rows == 1


def test_the_embedded_digits():
    images, labels = digits().values()
    assert len(images) == len(labels) == 1797 and sorted(set(labels)) == list(range(10))
    pixels = np.asarray(Image.open(io.BytesIO(images[0])))
    assert pixels.shape == (8, 8) and pixels.dtype == np.uint8 and pixels.max() > 200 and labels[0] == 0
    train, test = list(digits("train").values()), list(digits("test").values())
    assert len(train[0]) + len(test[0]) == 1797 and 350 < len(test[0]) < 360
    assert set(train[0]).isdisjoint(test[0])
    assert np.bincount(test[1]).min() >= 34
    source = open_source("digits", modality="image", extra_columns=("label",))
    assert images_of(source) == list(zip(*train, strict=True))
    assert (
        available_splits(None, modality="image") == available_splits("digits", modality="image") == ["train", "test"]
    )
    assert open_source("digits", modality="image", split="test").num_rows == len(test[0])
    for given, words in (
        ({"split": "dev"}, "no split 'dev': its splits are 'train' and 'test'"),
        ({"column": "x"}, "its only column is 'image'"),
    ):
        with pytest.raises(DataError, match=words):
            open_source("digits", modality="image", **given)


# -- held out ---------------------------------------------------------------------------------------------------------


def memory(images, **options):
    return MemorySource(images, name="memory", column="image", modality="image", **options)


def test_held_out_images_follow_their_content():
    images = digits()["image"]
    chosen = held_out_samples(memory(images), fraction=0.1)
    # a checksum of a PNG file would not depend on its pixels: all of them or none
    assert 120 < len(chosen) < 240
    assert set(held_out_samples(memory(images[::-1]), fraction=0.1)) == set(chosen)
    assert sorted(held_out_samples(memory(images + images), fraction=0.1)) == sorted(chosen)
    assert len(held_out_samples(memory(images), 0.1, max_samples=7)) == 7
    assert len(all_samples(memory(images), 50)) == 50


def test_a_large_set_is_not_read_through(monkeypatch):
    monkeypatch.setattr("hfssl.data.image.MODALITY", replace(modality("image"), read_through_bytes=1000))
    reads = []

    class Counting(MemorySource):
        def read(self, index):
            reads.append(index)
            return super().read(index)

    images = [png(i) for i in range(3000)]
    source = Counting(images, name="memory", column="image", modality="image")
    chosen = held_out_samples(source, fraction=0.04)
    assert len(chosen) == 120 and len(reads) < len(source) / 4
    assert held_out_samples(source, fraction=0.04) == chosen


def test_identities_are_small_and_differ():
    assert identity("text") == "text"
    assert len({identity(image) for image in IMAGES}) == 60 and all(len(identity(image)) == 16 for image in IMAGES)


# -- streams ----------------------------------------------------------------------------------------------------------


class Views:
    """Stands in for views: the number of each image, and a number drawn from its key. Odd ones may be damaged."""

    damaged = frozenset()

    def rows(self, block):
        images = next(iter(block.columns.values()))
        kept = [i for i, image in enumerate(images) if IMAGES.index(image) not in self.damaged]
        number = np.array([IMAGES.index(images[i]) for i in kept], dtype=np.int64)
        bad = [(i, "it is broken") for i in range(len(images)) if i not in set(kept)]
        columns = {"number": number, "draw": block.keys[kept].astype(np.int64), "image": [images[i] for i in kept]}
        return Rows(columns, np.ones(len(kept), np.int64), bad)


def stream(source, batch_size=4, views=None, **kwargs):
    return ExactStream(source, (views or Views()).rows, dict, batch_size, **{"block_bytes": 2000, **kwargs})


def take(stream, num_batches):
    batches = itertools.islice(iter(stream), num_batches)
    return [(batch["number"].tolist(), batch["draw"].tolist(), batch["image"]) for batch in batches]


def first_pass(stream):
    return [batch["number"].item() for _, batch in tiny.passes(stream)]


@pytest.mark.parametrize("name", ["classes", "typed.parquet", "saved", "tars"])
@pytest.mark.parametrize("world_size, num_workers", [(1, 0), (3, 0), (2, 2)])
def test_a_pass_has_each_image_once_over_ranks_and_workers(everywhere, name, world_size, num_workers):
    source = open_source(everywhere[name], modality="image")
    options = {"batch_size": 1, "world_size": world_size, "num_workers": num_workers}
    seen = [first_pass(stream(source, rank=rank, **options)) for rank in range(world_size)]
    assert sorted(itertools.chain.from_iterable(seen)) == list(range(60))
    assert seen[0] != sorted(seen[0])


@pytest.mark.parametrize("name", ["classes", "typed.parquet", "saved", "tars"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resume_in_the_middle_gives_the_same_bytes(everywhere, name, num_workers):
    source = open_source(everywhere[name], modality="image")
    whole = take(stream(source), 40)
    begun = stream(source, num_workers=num_workers)
    assert take(begun, 11) == whole[:11]
    again = stream(open_source(everywhere[name], modality="image"), num_workers=num_workers)
    again.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    assert take(again, 29) == whole[11:]


def test_held_out_images_never_come(everywhere):
    source = open_source(everywhere["classes"], modality="image")
    held_out = held_out_samples(source, fraction=0.2)
    exclude = frozenset(map(identity, held_out))
    assert sum(map(len, exclude)) == 16 * len(held_out)
    numbers = first_pass(stream(source, batch_size=1, exclude=exclude))
    assert sorted(numbers) == [i for i in range(60) if IMAGES[i] not in held_out]


def test_damaged_images_are_left_out_counted_and_named(everywhere, caplog):
    source = open_source(everywhere["classes"], modality="image")
    views = Views()
    views.damaged = frozenset(range(0, 60, 10))
    s = stream(source, batch_size=1, views=views, max_bad_fraction=0.2)
    assert s.unit == "images"
    assert sorted(first_pass(s)) == [i for i in range(60) if i % 10]
    assert s.counts["samples_bad"] >= 6 and s.counts["units"] == s.counts["rows"] >= 54
    assert caplog.text.count("it is broken") == 6 and "(cat/000.png): it is broken" in caplog.text
    with pytest.raises(DataError, match=r"images? files.* are damaged.*cat/\d+.png|are damaged.*it is broken"):
        take(stream(source, batch_size=1, views=views), 60)


def test_of_very_many_damaged_files_some_are_named(everywhere, caplog, monkeypatch):
    monkeypatch.setattr("hfssl.data.stream.MOST_FILES_NAMED", 3)
    views = Views()
    views.damaged = frozenset(range(30))
    first_pass(stream(open_source(everywhere["classes"], modality="image"), 1, views, max_bad_fraction=1.0))
    assert caplog.text.count("it is broken") == 3 and caplog.text.count("counted, but not named") == 1


def test_cifar_is_read_exactly(shared_data):
    source = open_source(shared_data / "cifar10" / "test.parquet", modality="image", extra_columns=("label",))
    assert source.num_rows == 10_000 and (source.pieces[:, 2] - source.pieces[:, 1]).max() <= 20
    values, bad = read_all(source, np.random.default_rng(0).permutation(len(source)))
    assert not bad and len(values) == 10_000
    assert np.bincount([label for _, label in values.values()]).tolist() == [1000] * 10


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(cache.constants, "HF_HOME", str(tmp_path / "file"))
    write_shards(tmp_path / "a")
    assert images_of(open_source(tmp_path / "a", modality="image")) == IMAGES


def test_a_zip_that_is_named_itself_is_as_its_folder(everywhere, tmp_path):
    for name, top in (("flat", "."), ("in_a_folder", "classes")):
        root = everywhere["classes"] if top == "." else everywhere["classes"].parent
        path = shutil.make_archive(str(tmp_path / name), "zip", root, top)
        source = open_source(path, modality="image", extra_columns=("label",))
        assert sorted(images_of(source)) == sorted(zip(IMAGES, LABELS, strict=True))
        assert source.features["label"].names == list(CLASSES)


def test_arrays_beside_images_are_left_out_with_a_word(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_folder(tmp_path / "a")
    for name in ("0.npy", "1.npy"):
        np.save(tmp_path / "a" / "cat" / name, np.zeros(8))
    assert open_source(tmp_path / "a", modality="image").num_rows == 60
    said = "2 .npy files beside the images are left out; put arrays that are images into a folder of their own."
    assert said in caplog.text
    np.savez(tmp_path / "a" / "cat" / "2.npz", np.zeros(8))
    open_source(tmp_path / "a", modality="image")
    assert "3 .npy and .npz files beside the images are left out" in caplog.text
    with zipfile.ZipFile(tmp_path / "a" / "more.zip", "w") as archive:
        archive.writestr("3.npy", b"")
    open_source(tmp_path / "a", modality="image")
    assert "4 .npy and .npz files beside the images are left out" in caplog.text
    # where there is nothing else they are images
    caplog.clear()
    (tmp_path / "b").mkdir()
    np.save(tmp_path / "b" / "0.npy", np.zeros((8, 8)))
    assert open_source(tmp_path / "b", modality="image").num_rows == 1 and "left out" not in caplog.text
