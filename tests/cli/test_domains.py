"""What a folder holds is found by opening it."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled import png

from hfssl.cli.domains import batch_for, domains, find_domain
from hfssl.errors import UserError
from hfssl.methods import METHODS


def images(folder: Path, number: int = 12) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    names = [f"{i}.png" for i in range(number)]
    for name in names:
        (folder / name).write_bytes(png(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)))
    return names


def recordings(folder: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(4):
        soundfile.write(folder / f"{i}.wav", np.random.default_rng(i).normal(size=8000) * 0.1, 16000)


def found(folder: Path, **options) -> str:
    return find_domain(str(folder), **options)[0].name


def test_files_of_one_kind(tmp_path):
    images(tmp_path / "images" / "cats")
    recordings(tmp_path / "sounds")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("one line\nand another\n")
    assert [found(tmp_path / name) for name in ("images", "sounds", "texts")] == ["image", "audio", "text"]
    (tmp_path / "reviews.csv").write_text("text,stars\ngood,5\nbad,1\n")
    assert found(tmp_path / "reviews.csv") == "text"


def test_a_text_beside_images_is_less_than_they_are(tmp_path):
    images(tmp_path / "images")
    (tmp_path / "images" / "about.txt").write_text("All of them are noise.\n")
    domain, source, how = find_domain(str(tmp_path / "images"))
    assert domain.name == "image" and source.num_rows == 12
    assert how == "12 images, which are more bytes than the texts among them (`--modality` states another)"
    assert found(tmp_path / "images", name="text") == "text"


def test_a_text_for_each_image_is_its_caption(tmp_path):
    folder = tmp_path / "pairs"
    for name in images(folder):
        (folder / name).with_suffix(".txt").write_text(f"a picture of number {name}")
    assert found(folder) == "multimodal" and found(folder, name="image") == "image"


@pytest.mark.parametrize(
    "captions, domain",
    [
        (["cat", "dog"], "image"),
        (["a cat on a red mat", "a dog"], "multimodal"),
    ],
)
def test_labels_beside_images_are_no_captions(tmp_path, captions, domain):
    names = images(tmp_path / "images")
    rows = [{"file_name": name, "text": captions[i % 2]} for i, name in enumerate(names)]
    (tmp_path / "images" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert found(tmp_path / "images") == domain


def test_labels_in_a_table_are_no_texts_to_train_on(tmp_path):
    images(tmp_path)
    values = {"image": [{"bytes": (tmp_path / f"{i}.png").read_bytes(), "path": None} for i in range(12)]}
    pq.write_table(pa.table(values | {"label": ["cat", "dog"] * 6}), tmp_path / "table.parquet")
    assert found(tmp_path / "table.parquet") == "image"


def test_recordings_in_a_table_are_none_for_the_eye(tmp_path):
    """Bytes without a type may be either: what can be read says which."""
    recordings(tmp_path)
    values = {"data": [{"bytes": (tmp_path / f"{i}.wav").read_bytes(), "path": None} for i in range(4)]}
    pq.write_table(pa.table(values), tmp_path / "table.parquet")
    assert found(tmp_path / "table.parquet") == "audio"


def test_a_table_of_labels_beside_recordings(tmp_path):
    recordings(tmp_path / "sounds")
    with (tmp_path / "sounds" / "metadata.csv").open("w") as file:
        csv.writer(file).writerows([("file_name", "label"), *((f"{i}.wav", "ab"[i % 2]) for i in range(4))])
    assert found(tmp_path / "sounds") == "audio"


def test_nothing_named_is_what_comes_with_hfssl():
    domain, source, how = find_domain(None)
    assert domain.name == "image" and "letters" in source.description and how == "which come with hfssl"
    assert find_domain("digits")[0].name == "image"


def test_what_cannot_be_trained_on_says_why(tmp_path):
    with pytest.raises(UserError, match=r"There is nothing to pre-train on: .*nope' does not exist"):
        find_domain(str(tmp_path / "nope"))
    (tmp_path / "x.xyz").write_text("?")
    with pytest.raises(UserError, match="as images: .*as texts: "):
        find_domain(str(tmp_path))
    with pytest.raises(UserError, match="`--modality` is one of audio, image, multimodal, text, got 'video'."):
        find_domain(str(tmp_path), "video")
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("name", ["audio", "image", "multimodal", "text"])
@pytest.mark.parametrize("number, on_cpu", [(50, True), (10_000, True), (1_000_000, False)])
def test_each_has_a_method_and_says_why(name, number, on_cpu):
    domain = domains()[name]
    choice = domain.choose(number, on_cpu)
    assert choice.method in METHODS and len(choice.why.split()) > 10
    batch = choice.flags.get("per_device_train_batch_size")
    assert batch is None or 8 <= batch <= max(number / 4, 8)


def test_few_samples_make_small_batches():
    assert [batch_for(number, 256) for number in (10, 120, 600, 2000)] == [8, 16, 128, None]
