"""The walk over a local folder: links once, no cache, the splits of `datasets`."""

import itertools
import os
import shutil
import zipfile

import datasets
import pytest

from hfssl.data.image.digits import digits
from hfssl.data.sources import DataError, available_splits, find, open_source
from hfssl.data.sources.walk import each_once, files_below, splits_of


def write(folder, *names, text="one\ntwo"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def below(folder):
    return [os.path.relpath(path, folder) for path in files_below(str(folder))]


def test_links_are_followed_once(tmp_path):
    write(tmp_path / "a", "1.txt", "deep/2.txt", "deep/.hidden", "__pycache__/3.txt", "README.md")
    write(tmp_path / "elsewhere", "4.txt", "more/5.txt")
    for link, target in {"all": ".", "a": "deep", "z": "../elsewhere", "b": "../elsewhere/more"}.items():
        (tmp_path / "a" / link).symlink_to(target)
    (tmp_path / "a" / "deep" / "up").symlink_to("..")
    (tmp_path / "a" / "one.txt").symlink_to("1.txt")
    (tmp_path / "a" / "outside.txt").symlink_to(tmp_path / "elsewhere" / "outside")
    (tmp_path / "elsewhere" / "outside").write_text("x")
    (tmp_path / "a" / "loop").symlink_to("loop")
    names = ["1.txt", "b/5.txt", "deep/2.txt", "loop", "one.txt", "outside.txt", "z/4.txt", "z/outside"]
    assert below(tmp_path / "a") == names
    found = files_below(str(tmp_path / "a"))
    once = [path for path in found if not path.endswith(("one.txt", "outside.txt"))]
    assert each_once([*found, *(path.replace("/a/", "/a/all/") for path in found)]) == each_once(found) == once


def test_splits_may_be_made_of_links(tmp_path, caplog):
    for name in ("1.txt", "2.txt", "3.txt"):
        write(tmp_path, f"all/{name}", text=name)
    for name, split in {"1.txt": "train", "2.txt": "train", "3.txt": "test"}.items():
        (tmp_path / split).mkdir(exist_ok=True)
        (tmp_path / split / name).symlink_to(f"../all/{name}")
    write(tmp_path, "train/own.txt", text="own")
    (tmp_path / "train" / "own again.txt").symlink_to("own.txt")
    with caplog.at_level("INFO", "hfssl"):
        open_source(tmp_path)
    for split, texts in {"train": ["1.txt", "2.txt", "own"], "test": ["3.txt"]}.items():
        source = open_source(tmp_path, split=split)
        read = [source.read(piece).columns["text"] for piece in range(len(source.pieces))]
        assert list(itertools.chain(*read)) == texts
    assert "1 links to files that are there under their own names are left out" in caplog.text


def test_a_file_that_is_linked_from_outside_counts_under_each_name(tmp_path):
    # as in the cache of the Hub, where files of equal content are links to one
    write(tmp_path, "blobs/1")
    (tmp_path / "snapshot").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "snapshot" / name).symlink_to("../blobs/1")
    assert below(tmp_path / "snapshot") == ["a.txt", "b.txt"]


def test_pictures_and_texts_come_once(tmp_path):
    images = digits("test")["image"][:5]
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images):
        (tmp_path / "images" / f"{i}.png").write_bytes(image)
    (tmp_path / "images" / "all").symlink_to(".")
    assert open_source(tmp_path / "images", modality="image").num_rows == 5
    assert open_source(str(tmp_path / "images" / "**" / "*.png"), modality="image").num_rows == 5
    write(tmp_path / "texts", "a.txt", "b/c.txt")
    (tmp_path / "texts" / "all").symlink_to(".")
    assert open_source(tmp_path / "texts").num_rows == 4
    assert open_source(str(tmp_path / "texts" / "**")).num_rows == 4


def test_a_link_that_leads_nowhere_is_a_damaged_image(tmp_path):
    images = digits("test")["image"][:3]
    for i, image in enumerate(images):
        (tmp_path / f"{i}.png").write_bytes(image)
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    source = open_source(tmp_path, modality="image")
    bad = {source.where(0, row): reason for i in range(len(source)) for row, reason in source.read(i).bad}
    assert source.num_rows == 4 and list(bad) == ["gone.png"] and bad["gone.png"].endswith("gone.png' is missing")
    write(tmp_path / "texts", "a.txt")
    (tmp_path / "texts" / "b.txt").symlink_to("nowhere.txt")
    with pytest.raises(DataError, match="b.txt' is gone"):
        open_source(tmp_path / "texts")


NAMES = {
    "plain": ("a/1.txt", "b/2.txt"),
    "folders": ("train/1.txt", "val/2.txt"),
    "names": ("train_1.txt", "corpus-test.txt", "other.txt"),
    "deep": ("en/train/1.txt", "en/validation-2/1.txt", "de/dev/1.txt"),
    "sharded": ("data/train-00000-of-00002.txt", "data/train-00001-of-00002.txt", "data/extra-00000-of-00001.txt"),
    "words": ("training data/1.txt", "evaluation/1.txt"),
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_splits_are_those_of_datasets(tmp_path, names):
    write(tmp_path, *names)
    found = datasets.load_dataset_builder(str(tmp_path)).config.data_files
    expected = {str(split): [os.path.relpath(path, tmp_path) for path in paths] for split, paths in found.items()}
    assert {split: sorted(names) for split, names in splits_of(below(tmp_path)).items()} == {
        split: sorted(names) for split, names in expected.items()
    }
    assert list(splits_of(below(tmp_path))) == list(expected)


@pytest.mark.parametrize("what", ["folder", "glob", "file", "card", "images"])
def test_local_data_need_no_cache(tmp_path, monkeypatch, what):
    write(tmp_path / "a", "a.txt", "b.txt")
    if what == "card":
        write(tmp_path / "a", "README.md", text="---\nconfigs:\n- config_name: x\n  data_files: '*.txt'\n---\n")
    if what == "images":
        (tmp_path / "a" / "1.png").write_bytes(digits("test")["image"][0])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/nope/datasets")
    path = {"glob": str(tmp_path / "a" / "*.txt"), "file": str(tmp_path / "a" / "a.txt")}.get(what, tmp_path / "a")
    source = open_source(path, modality="image" if what == "images" else "text")
    assert source.num_rows == {"file": 2, "images": 1}.get(what, 4)


def write_zip(path, *names):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, f"{name}, line one\nline two\n")
    return path


def test_a_zip_of_texts_is_unpacked_once(tmp_path, caplog):
    path = write_zip(tmp_path / "corpus.zip", "corpus/train/1.txt", "corpus/train/2.txt", "corpus/test/3.txt", "x.pdf")
    with caplog.at_level("INFO", "hfssl"):
        source = open_source(path)
    assert source.num_rows == 4 and sorted(available_splits(path)) == ["test", "train"]
    assert source.files == ["corpus/train/1.txt", "corpus/train/2.txt"]
    assert open_source(path, split="test").read(0).columns["text"][0] == "corpus/test/3.txt, line one"
    other = shutil.copy(path, tmp_path / "renamed.zip")
    assert open_source(other).fingerprint == source.fingerprint
    assert caplog.text.count("corpus.zip is unpacked once") <= 1 and "renamed.zip is unpacked" not in caplog.text


def test_zips_that_cannot_be_read_are_explained(tmp_path):
    with pytest.raises(DataError, match="'a.zip' holds no file that can be read. Those end in .txt, .jsonl"):
        open_source(write_zip(tmp_path / "a.zip", "__MACOSX/1.txt", ".2.txt", "3.pdf"))
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(DataError, match="'b.zip' is no whole zip"):
        open_source(tmp_path / "b.zip")
    (tmp_path / "folder").mkdir()
    inner = write_zip(tmp_path / "folder" / "texts.zip", "1.txt")
    with pytest.raises(DataError, match="holds a file .zip, none .* A zip is read where it is named itself") as error:
        open_source(tmp_path / "folder")
    assert str(error.value).endswith(f"pass {inner}.") and open_source(inner).num_rows == 2


def test_texts_among_more_pictures(tmp_path, caplog):
    write(tmp_path, "1.txt", "a.png", "b.png")
    with caplog.at_level("INFO", "hfssl"):
        assert open_source(tmp_path).num_rows == 2
    write(tmp_path, "2.jsonl", text='{"text": "x"}')
    with caplog.at_level("INFO", "hfssl"):
        find.find_data(str(tmp_path), None, None, find.modality("text"))
    assert "1 of 4 files are" in caplog.text
