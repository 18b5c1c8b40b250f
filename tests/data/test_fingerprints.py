"""The fingerprints of data sets, pinned: a checkpoint goes on only where the fingerprint of its data is still the same.

A change here ends every run that was begun before. Where that is meant, raise `LAYOUT_VERSION` as well.
"""

import io
import json
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfssl.data import sources
from hfssl.data.image.digits import digits
from hfssl.data.labelled import open_labelled
from hfssl.data.mixtures import open_mixture
from hfssl.data.sources import Input, MemorySource, open_source


TEXTS = [f"Text number {i}, naïve." for i in range(40)]
IMAGES, LABELS = (values[:12] for values in digits().values())  # the same bytes on every machine


def write_texts(folder):
    (folder / "a.txt").write_text("\n".join(TEXTS[:20]) + "\n\n" + "\n".join(TEXTS[20:]), encoding="utf-8")
    (folder / "a.jsonl").write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS))
    (folder / "a.csv").write_text("id,text\n" + "".join(f'1,"{text}"\n' for text in TEXTS), encoding="utf-8")
    pq.write_table(pa.table({"text": TEXTS}), folder / "a.parquet", row_group_size=15, compression="none")
    table = datasets.Dataset.from_dict({"text": TEXTS})
    table.save_to_disk(folder / "saved")
    with pa.OSFile(str(folder / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.data.schema) as writer:
        writer.write_table(table.data.table)


def write_images(folder):
    (folder / "classes" / "even").mkdir(parents=True)
    (folder / "classes" / "odd").mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
            (folder / "classes" / ("even", "odd")[label % 2] / f"{i}.png").write_bytes(image)
            for name, data in ((f"{i}.png", image), (f"{i}.cls", str(label).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    columns = {"image": pa.array(IMAGES, pa.binary()), "label": LABELS}
    pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=5)


PINNED = {
    ("text/a.txt",): "a69269fbdd829195",
    ("text/a.txt", "paragraph"): "d4eee5093666eee7",
    ("text/a.txt", "document"): "6670f2e6eda9735a",
    ("text/a.txt", "False"): "a94ece272d9ed354",
    ("text/a.jsonl",): "dd27495126519e78",
    ("text/a.csv",): "76d2f895276cd0f5",
    ("image/classes", "image"): "842b9aefa77c9991",
    ("image/classes", "image", "('label',)"): "842b9aefa77c9991",
    ("image/a.tar", "image"): "c1be4c7d29a74282",
    ("image/a.tar", "image", "('cls',)"): "c1be4c7d29a74282",
    ("text/a.parquet",): "05dece9e78e6d12b",
    ("text/a.parquet", "False"): "820542aa46db0457",
    ("text/a.arrow",): "4388e346a1933c9f",
    ("text/saved",): "4388e346a1933c9f",
    ("image/a.parquet", "image"): "d9105bf0c2a1c545",
    ("image/a.parquet", "image", "('label',)"): "d9105bf0c2a1c545",
    "texts": "49f00daf56e89552",
    "images": "87b174eb76f6e8bb",
    "digits": "ccb8ddc75e292577",
    "mixture": "640062357591faed",
    "images mixed": "a2c2bda2c76e589c",
    "pairs": "fca27eb50b9b4b4a",
    "labelled": "312c30d23d2e7bcd",
    "labelled digits": "ac956717cf90e2d7",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pinned")
    (folder / "text").mkdir()
    (folder / "image").mkdir()
    write_texts(folder / "text")
    write_images(folder / "image")
    return folder


@pytest.mark.parametrize(
    "name, options",
    [
        ("text/a.txt", {}),
        ("text/a.txt", {"sample_by": "paragraph"}),
        ("text/a.txt", {"sample_by": "document"}),
        ("text/a.txt", {"streaming": False}),
        ("text/a.jsonl", {}),
        ("text/a.csv", {}),
        ("image/classes", {"modality": "image"}),
        ("image/classes", {"modality": "image", "extra_columns": ("label",)}),
        ("image/a.tar", {"modality": "image"}),
        ("image/a.tar", {"modality": "image", "extra_columns": ("cls",)}),
    ],
)
def test_files_of_the_same_bytes(folder, name, options):
    assert open_source(folder / name, **options).fingerprint[:16] == PINNED[name, *map(str, options.values())]


@pytest.mark.parametrize(
    "name, options",
    [
        ("text/a.parquet", {}),
        ("text/a.parquet", {"streaming": False}),
        ("text/a.arrow", {}),
        ("text/saved", {}),
        ("image/a.parquet", {"modality": "image"}),
        ("image/a.parquet", {"modality": "image", "extra_columns": ("label",)}),
    ],
)
def test_files_whose_bytes_depend_on_the_library_that_wrote_them(folder, name, options, monkeypatch):
    monkeypatch.setattr(sources, "files_digest", lambda *args: "of the files")
    assert open_source(folder / name, **options).fingerprint[:16] == PINNED[name, *map(str, options.values())]


def test_samples_in_memory_mixtures_and_labelled_sets(folder):
    found = {
        "texts": MemorySource(TEXTS, name="memory"),
        "images": MemorySource(IMAGES, name="memory", column="image", modality="image"),
        "digits": open_source("digits", modality="image", extra_columns=("label",)),
        "mixture": open_mixture(f"{folder / 'text/a.txt'}:1,{folder / 'text/a.jsonl'}:3"),
        "images mixed": open_mixture(f"{folder / 'image/a.tar'},{folder / 'image/classes'}", modality="image"),
        "pairs": MemorySource(
            IMAGES,
            name="memory",
            column="image",
            beside={"text": TEXTS},
            inputs={"image": Input("image", "image"), "text": Input("text", "text", required=False)},
        ),
        "labelled": open_labelled(folder / "image/classes", "train"),
        "labelled digits": open_labelled("digits", "test", max_samples=9),
    }
    assert {name: source.fingerprint[:16] for name, source in found.items()} == {name: PINNED[name] for name in found}
