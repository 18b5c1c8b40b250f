"""Folders and files may have any name, also one that `datasets` would take for a pattern."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfssl.data.image.digits import digits
from hfssl.data.mixtures import open_mixture
from hfssl.data.sources import DataError, available_splits, open_source


LINES = ["one", "two", "three"]
NAMES = ("corpus [2024]", "what?", "a*b", "[a-z]", "plain")


def texts(source):
    return sorted(text for i in range(len(source)) for text in source.read(i).columns["text"])


def write(path):
    if path.name.endswith(".txt"):
        path.write_text("\n".join(LINES))
    elif path.name.endswith(".jsonl"):
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    elif path.name.endswith(".csv"):
        path.write_text("text\n" + "\n".join(LINES))
    elif path.name.endswith(".txt.gz"):
        path.write_bytes(gzip.compress("\n".join(LINES).encode()))
    else:
        pq.write_table(pa.table({"text": LINES}), path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv", ".parquet", ".txt.gz"])
def test_any_name_of_a_folder_and_of_a_file(tmp_path, name, ending):
    folder = tmp_path / name
    folder.mkdir()
    write(folder / f"{name}{ending}")
    assert texts(open_source(folder)) == sorted(LINES)
    assert texts(open_source(folder / f"{name}{ending}")) == sorted(LINES)
    assert texts(open_source(f"{folder}/*{ending}")) == sorted(LINES)


def test_splits_mixtures_and_saved_folders(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / "corpus [2024]" / split).mkdir(parents=True)
        write(tmp_path / "corpus [2024]" / split / "a.txt")
    (tmp_path / "corpus [2024]" / "train" / "notes.csv").write_text("a,b\n1,2\n")
    (tmp_path / "corpus [2024]" / "train" / "b.txt").write_text("four")
    assert available_splits(tmp_path / "corpus [2024]") == ["train", "validation"]
    assert texts(open_source(tmp_path / "corpus [2024]")) == sorted([*LINES, "four"])
    write(tmp_path / "b.txt")
    mixture = open_mixture(f"{tmp_path}/corpus [2024]:1,{tmp_path}/b.txt:2")
    assert [part.share for part in mixture.parts] == [1 / 3, 2 / 3]
    datasets.Dataset.from_dict({"text": LINES}).save_to_disk(tmp_path / "saved [1]")
    assert texts(open_source(tmp_path / "saved [1]")) == sorted(LINES)


def test_images_in_folders_of_any_name(tmp_path):
    images = digits("test")["image"][:4]
    folder = tmp_path / "frames [1]"
    folder.mkdir()
    for i, image in enumerate(images):
        (folder / f"{i} [x].png").write_bytes(image)
    source = open_source(folder, modality="image")
    assert {image for i in range(len(source)) for image in source.read(i).columns["image"]} == set(images)
    lines = [json.dumps({"file_name": f"{i} [x].png", "caption": f"digit {i}"}) for i in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    source = open_source(folder, modality="image", extra_columns=("caption",))
    read = [source.read(i).columns for i in range(len(source))]
    assert read == [{"image": [images[i]], "caption": [f"digit {i}"]} for i in range(4)]


def test_configurations_need_a_plain_name(tmp_path):
    folder = tmp_path / "corpus [2024]"
    folder.mkdir()
    write(folder / "a.txt")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: en\n  data_files: a.txt\n---\n")
    with pytest.raises(DataError, match="Configurations of '.*2024]' cannot be read.* Rename the folder"):
        open_source(folder)
