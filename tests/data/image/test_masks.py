"""Images with masks: folders, tables, and what is wrong with them."""

import io
import logging
import shutil
import tarfile
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from PIL import Image

from hfssl.cli.image.finish import _has_masks
from hfssl.cli.labelled import load_splits
from hfssl.data.image.mask_folders import mask_folders, masked_folders
from hfssl.data.image.masks import masked_splits, open_masked, read_mask
from hfssl.data.labelled import open_labelled
from hfssl.data.sources import available_splits, open_source
from hfssl.errors import DataError


def encoded(values, mode=None, kind="PNG"):
    file = io.BytesIO()
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(file, kind)
    return file.getvalue()


def picture(seed):
    return encoded(np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8))


def mask(*classes):
    values = np.zeros((6, 8), np.uint8)
    for row, each in enumerate(classes):
        values[row] = each
    return encoded(values)


def folder(root, masks, split="", ending=""):
    for row, each in enumerate(masks):
        for name, data in ((f"images/{split}/{row}.png", picture(row)), (f"masks/{split}/{row}{ending}.png", each)):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
    return root


def test_a_folder(tmp_path):
    data = open_masked(folder(tmp_path, [mask(1), mask(2, 255)], ending="_mask"), "train")
    assert data.labels.tolist() == [[1, 1, 0], [1, 0, 1]] and data.class_names == ["0", "1", "2"]
    assert data.images[1] == picture(1) and data.masks[1] == mask(2, 255)
    (tmp_path / "classes.txt").write_text("ground\ncat\ndog\nbird\n")
    named = open_masked(tmp_path, "train")
    assert named.class_names == ["ground", "cat", "dog", "bird"] and named.labels.shape == (2, 4)
    last = named.take(np.array([1]), "last")
    assert last.masks[0] == mask(2, 255) and len(last.masks) == len(last) == 1


def test_splits_of_a_folder_and_a_fifth_of_one(tmp_path):
    for split, number in (("train", 3), ("val", 2)):
        folder(tmp_path / "a", [mask(1)] * number, split)
        folder(tmp_path / "b" / split, [mask(1)] * number)
    for root in (tmp_path / "a", tmp_path / "b"):
        assert masked_splits(root) == ["train", "val"]
        assert len(open_masked(root, "val")) == 2
        with pytest.raises(DataError, match="no split 'test'; there are 'train', 'val'"):
            open_masked(root, "test")
        train, test = load_splits(str(root), masks=True)
        assert (len(train), len(test)) == (3, 2)
    train, test = load_splits(str(folder(tmp_path / "c", [mask(1, row) for row in range(10)])), masks=True)
    assert len(test) == 2 and len(train) == 8 and len(train.masks) == 8


def test_a_column_of_masks(tmp_path):
    columns = {"photo": [picture(0), picture(1)], "mask": [mask(1), mask(0, 2)], "depth": [picture(2)] * 2}
    features = datasets.Features(dict.fromkeys(columns, datasets.Image()))
    rows = {name: [{"bytes": each, "path": None} for each in values] for name, values in columns.items()}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "train.parquet")
    data = open_masked(tmp_path / "train.parquet", "train")
    assert data.images[0] == picture(0) and data.masks[1] == mask(0, 2)
    assert data.labels.tolist() == [[1, 1, 0], [1, 0, 1]]
    with pytest.raises(DataError, match="has no column 'maks'.* Did you mean 'mask'"):
        open_masked(tmp_path / "train.parquet", "train", mask_column="maks")
    datasets.Dataset.from_dict({"photo": rows["photo"]}, datasets.Features(photo=datasets.Image())).to_parquet(
        tmp_path / "bare.parquet"
    )
    with pytest.raises(DataError, match="no column of images beside 'photo' that may be masks"):
        open_masked(tmp_path / "bare.parquet", "train")


def test_the_embedded_scenes():
    data = open_masked("scenes", "test", max_samples=20)
    assert len(data) == len(data.masks) == 20 and data.class_names[:3] == ["ground", "A", "B"]
    shown = read_mask(data.masks[3])
    assert sorted(np.unique(shown)) == np.flatnonzero(data.labels[3]).tolist() and shown.shape == (64, 64)


def test_masks_are_read_as_they_are_saved():
    values = np.arange(48, dtype=np.uint8).reshape(6, 8)
    palette = Image.fromarray(values)
    palette.putpalette(list(range(256)) * 3)
    file = io.BytesIO()
    palette.save(file, "PNG")
    for data in (encoded(values), file.getvalue(), encoded(values.astype(np.uint16)), encoded(values, "RGB")):
        np.testing.assert_array_equal(read_mask(data), values)
    np.testing.assert_array_equal(read_mask(encoded(values > 9, "1")), values > 9)


def test_what_is_wrong_is_said(tmp_path):
    wrong = {
        "is a colour image": encoded(np.random.default_rng(0).integers(0, 9, (6, 8, 3), dtype=np.uint8)),
        "has 4 × 4 pixels, its image .* 8 × 6": encoded(np.ones((4, 4), np.uint8)),
        "is a JPEG file": encoded(np.ones((6, 8), np.uint8), kind="JPEG"),
        "cannot be decoded": b"no image",
    }
    for number, (message, data) in enumerate(wrong.items()):
        with pytest.raises(DataError, match=message):
            open_masked(folder(tmp_path / str(number), [mask(1), data]), "train")
    root = folder(tmp_path / "named", [mask(1), mask(7)])
    (root / "classes.txt").write_text("ground\ncat\n")
    with pytest.raises(DataError, match="pixels of class 7, and there are names for 2 classes, 0 to 1"):
        open_masked(root, "train")
    several = [encoded((np.arange(48) * 5 + i).astype(np.uint8).reshape(6, 8)) for i in range(5)]
    with pytest.raises(DataError, match="have 240 different values, up to 239, .* nearest neighbour"):
        open_masked(folder(tmp_path / "smooth", several), "train")
    (tmp_path / "smooth" / "classes.txt").write_text("\n".join(map(str, range(256))))
    assert open_masked(tmp_path / "smooth", "train").labels.shape == (5, 256)
    packed = folder(tmp_path / "packed", [mask(1), mask(1)])
    with tarfile.open(packed / "masks" / "masks.tar", "w") as archive:
        for row in range(2):
            archive.add(packed / "masks" / f"{row}.png", f"{row}.png")
            (packed / "masks" / f"{row}.png").unlink()
    with pytest.raises(DataError, match="masks holds 2 images in 1 files.*by the name of its file"):
        open_masked(packed, "train")
    (tmp_path / "missing").mkdir()
    root = folder(tmp_path / "missing", [mask(1), mask(1)])
    (root / "masks" / "1.png").rename(root / "masks" / "other.png")
    with pytest.raises(DataError, match=r"1 of the 2 images of .* have no mask in .*, such as .*1\.png"):
        open_masked(root, "train")
    (tmp_path / "bare" / "images").mkdir(parents=True)
    with pytest.raises(DataError, match="no folder of masks beside them: it is called one of masks"):
        open_masked(tmp_path / "bare", "train")


def shown(root, split="train"):
    source = open_source(root, modality="image", split=split)
    return source.files, source.description, source.mask_folders


def test_masks_in_a_folder_are_no_images_to_train_on(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    root = folder(tmp_path / "a", [mask(1)] * 3)
    (root / "masks" / "metadata.csv").write_text("file_name,area\n0.png,3\n")
    alone = (["images/0.png", "images/1.png", "images/2.png"], "3 image files", ["masks"])
    assert shown(root) == alone
    assert "3 files in masks/ are left out, since these are masks of the images beside them" in caplog.text
    shutil.make_archive(str(tmp_path / "packed"), "zip", root)
    assert shown(tmp_path / "packed.zip") == alone
    assert shown(str(root / "*" / "*.png")) == alone
    for split in ("train", "val"):
        folder(tmp_path / "b", [mask(1)] * 2, split)
        folder(tmp_path / "c" / split, [mask(1)] * 2)
    for name, first, masks in (
        ("b", "images/val/0.png", ["masks"]),
        ("c", "val/images/0.png", ["train/masks", "val/masks"]),
    ):
        assert available_splits(tmp_path / name, modality="image") == ["train", "validation"]
        files, description, left_out = shown(tmp_path / name, "validation")
        assert files[0] == first and description == "2 image files" and left_out == masks
    # of the masks alone nothing else is known
    assert shown(root / "masks")[1] == "3 image files"


def test_classes_that_are_called_images_or_labels_are_classes(tmp_path):
    root = folder(tmp_path / "three", [mask(1)] * 2)
    (root / "words").mkdir()
    (root / "words" / "0.png").write_bytes(picture(0))
    assert shown(root)[1:] == ("5 image files in 3 class folders", ())
    assert open_labelled(root, "train").class_names == ["images", "masks", "words"]
    # and of images in classes the classes stay
    for row, of in enumerate(("cat", "dog")):
        folder(tmp_path / "classes", [mask(1)] * (row + 1), of)
    data = open_labelled(tmp_path / "classes", "train")
    assert data.class_names == ["cat", "dog"] and data.labels.tolist() == [0, 1, 1]
    # boxes in text files are no masks
    boxes = folder(tmp_path / "boxes", [mask(1)] * 2)
    for file in (boxes / "masks").iterdir():
        file.rename(file.with_suffix(".txt"))
    assert shown(boxes)[1:] == ("2 image files", ())


def test_capitals_and_a_folder_around_it_all(tmp_path):
    for split, number in (("train", 3), ("val", 2)):
        for kind, make in (("Images", picture), ("Masks", mask)):
            for row in range(number):
                file = tmp_path / "root" / "data" / "set" / split / kind / f"{row}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(make(row))
    root = tmp_path / "root"
    assert shown(root) == (
        [f"data/set/train/Images/{i}.png" for i in range(3)], "3 image files",
        ["data/set/train/Masks", "data/set/val/Masks"],
    )  # fmt: skip
    assert masked_splits(root) == ["train", "val"] and len(open_masked(root, "train").masks) == 3
    flat = root / "data" / "set" / "train"
    assert shown(flat)[2] == ["Masks"] and len(open_masked(flat, "train")) == 3
    shutil.rmtree(flat / "Masks")
    with pytest.raises(DataError, match="no folder of masks beside them"):
        open_masked(flat, "train")


def test_a_folder_of_each_sample(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for i in range(5):
        folder(tmp_path / "cells" / f"id{i}", [mask(1)])
    assert shown(tmp_path / "cells")[1] == "5 image files"
    assert "5 files in id0/masks/, id1/masks/, id2/masks/, and 2 more are left out" in caplog.text
    # a command that would not run is not printed
    with pytest.raises(DataError, match=r"has masks \(id0/masks/, id1/masks/, id2/masks/, and 2 more\)") as error:
        load_splits(str(tmp_path / "cells"))
    assert "--dataset FOLDER` with all its images in images/ and all masks in masks/, and" in str(error.value)
    data = SimpleNamespace(
        source=open_source(tmp_path / "cells", modality="image"),
        arguments=SimpleNamespace(dataset=str(tmp_path / "cells")),
    )
    assert data.source.mask_folders and not _has_masks(data)


def test_a_column_of_images_that_is_named_leaves_that_of_masks(tmp_path):
    folder(tmp_path, [mask(1), mask(2)])
    lines = ["image,mask,kind", *(f"images/{row}.png,masks/{row}.png,a" for row in range(2))]
    (tmp_path / "all.csv").write_text("\n".join(lines))
    for column in (None, "image"):
        data = open_masked(tmp_path / "all.csv", "train", column=column)
        assert data.images[1] == picture(1) and data.masks[1] == mask(2)


def test_very_many_folders_are_gone_through_once():
    # 40,000 folders, each compared with all, would take minutes
    names = [f"n{i:06}/{j}.jpg" for i in range(40_000) for j in range(2)]
    assert mask_folders(names) == [] and masked_folders(names) == {}


def test_masks_are_no_labels_of_whole_images(tmp_path):
    root = folder(tmp_path / "my scenes", [mask(1)] * 3)
    with pytest.raises(DataError, match=r"has masks \(masks/\) and no labels of whole images") as error:
        load_splits(str(root))
    assert f"`recipes/probe.py ENCODER --protocol patches --dataset '{root}'`, and" in str(error.value)
    shutil.make_archive(str(tmp_path / "packed"), "zip", root)
    with pytest.raises(DataError, match="--protocol patches --dataset FOLDER` with its files in a folder, and"):
        load_splits(str(tmp_path / "packed.zip"))
    (root / "labels.csv").write_text("file,kind\n" + "".join(f"images/{i}.png,{'ab'[i % 2]}\n" for i in range(3)))
    assert open_labelled(root, "train", label_column="kind").class_names == ["a", "b"]
