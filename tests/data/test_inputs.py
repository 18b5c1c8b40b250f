"""Named inputs: a source of two modalities with holes, in every format that can hold two columns."""

import io
import json
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfssl.data.held_out import all_samples, held_out_samples
from hfssl.data.image.digits import digits
from hfssl.data.mixtures import Mixture, open_mixture
from hfssl.data.sources import DataError, Input, identity, open_source
from hfssl.data.stream import ExactStream, Rows


IMAGES, LABELS = (values[:12] for values in digits("test").values())
# one image is damaged (missing, or a file without a byte), captions are missing or blank
HAS_IMAGE = [i != 4 for i in range(12)]
CAPTIONS = [None if i % 3 == 0 else f"This is a {label}." for i, label in enumerate(LABELS)]
PAIRS = {"image": Input("image"), "caption": Input("text", required=False)}


def write_table(path):
    images = [image if there else None for image, there in zip(IMAGES, HAS_IMAGE, strict=True)]
    captions = ["  " if i == 6 else caption for i, caption in enumerate(CAPTIONS)]
    columns = {"photo": images, "caption": captions, "title": ["x"] * 12, "label": LABELS}
    features = {"photo": datasets.Image(), "caption": datasets.Value("string"), "title": datasets.Value("string")}
    table = datasets.Dataset.from_dict(columns, datasets.Features({**features, "label": datasets.Value("int64")}))
    if path.suffix == ".parquet":
        pq.write_table(table.data.table, path, row_group_size=5)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.data.schema) as writer:
            writer.write_table(table.data.table)
    else:
        table.save_to_disk(path)


def write_tar(path):
    with tarfile.open(path, "w") as tar:
        for i, caption in enumerate(CAPTIONS):
            files = {"png": IMAGES[i] if HAS_IMAGE[i] else b"", "txt": None if caption is None else caption.encode()}
            for ending, data in files.items():
                if data is not None:
                    info = tarfile.TarInfo(f"{i:02}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def write_folder(path):
    path.mkdir()
    lines = []
    for i, caption in enumerate(CAPTIONS):
        (path / f"{i:02}.png").write_bytes(IMAGES[i] if HAS_IMAGE[i] else b"")
        lines.append(json.dumps({"file_name": f"{i:02}.png", "caption": caption}) + "\n")
    (path / "metadata.jsonl").write_text("".join(lines))


FORMATS = {
    "a.parquet": write_table,
    "saved": write_table,
    "a.arrow": write_table,
    "a.tar": write_tar,
    "f": write_folder,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for name, write in FORMATS.items():
        write(folder / name)
    return folder


def read_all(source):
    columns, bad, num_empty = {name: [] for name in source.columns}, [], 0
    for index in range(len(source)):
        read = source.read(index)
        for name, values in read.columns.items():
            columns[name] += values
        bad += read.bad
        num_empty += read.num_empty
    return columns, bad, num_empty


def expected(kept):
    return {"image": [IMAGES[i] for i in kept], "caption": [CAPTIONS[i] for i in kept]}


@pytest.mark.parametrize("name", FORMATS)
def test_two_modalities_with_holes(written, name):
    source = open_source(written / name, inputs=PAIRS)
    assert source.columns == ["image", "caption"] and source.modality == "image" and source.num_rows == 12
    columns, bad, num_empty = read_all(source)
    assert columns == expected([i for i in range(12) if HAS_IMAGE[i]])
    assert len(bad) == 1 and ("is null" in bad[0][1] or "is empty" in bad[0][1]) and num_empty == 0

    # both required: rows without a caption are left out as well
    columns, bad, num_empty = read_all(open_source(written / name, inputs={**PAIRS, "caption": Input("text")}))
    assert columns == expected([i for i in range(12) if HAS_IMAGE[i] and CAPTIONS[i]])
    # a table says that there is none, which is no damage; a file without a byte, or none in a tar, is
    assert (len(bad), num_empty) == {"a.tar": (5, 0), "f": (1, 4)}.get(name, (0, 5))

    # neither: what is left of a row comes, and a row of which nothing is left does not
    inputs = {"image": Input("image", required=False), "caption": Input("text", required=False)}
    columns, bad, num_empty = read_all(open_source(written / name, inputs=inputs))
    wanted = expected(range(12))
    assert columns == {**wanted, "image": [image if HAS_IMAGE[i] else None for i, image in enumerate(IMAGES)]}
    assert not bad and not num_empty


def test_a_row_of_which_nothing_is_left_is_empty(tmp_path):
    table = {"image": pa.array([IMAGES[0], None, None], pa.binary()), "text": ["a", "b", None]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    inputs = {"image": Input("image", required=False), "text": Input("text", required=False)}
    columns, bad, num_empty = read_all(open_source(tmp_path / "a.parquet", inputs=inputs))
    assert columns == {"image": [IMAGES[0], None], "text": ["a", "b"]} and not bad and num_empty == 1


def test_json_lines_of_two_texts_and_a_label(tmp_path):
    records = [
        {"premise": "a", "hypothesis": "b", "label": 1},
        {"premise": "c", "label": 0},
        {"premise": "d", "hypothesis": "\ud800", "label": 2},
        {"premise": " ", "hypothesis": "e", "label": 1},
        {"premise": "f", "hypothesis": "g"},
        {"premise": "h", "hypothesis": "i", "label": None},
    ]
    lines = [*map(json.dumps, records), "{broken"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    inputs = {"hypothesis": Input("text", required=False), "premise": Input("text"), "label": Input(None)}
    source = open_source(tmp_path / "a.jsonl", inputs=inputs)
    columns, bad, num_empty = read_all(source)
    assert columns == {"premise": ["a", "c", "d"], "hypothesis": ["b", None, None], "label": [1, 0, 2]}
    assert num_empty == 1
    assert [reason.split(" (")[0] for _, reason in bad] == ["no 'label'", "'label' is null", "invalid JSON"]
    assert source.read_input("label") == [1, 0, 2, 1, None, None, None]
    assert source.num_rows == 7 and source.leading == "premise"


def test_columns_are_those_that_are_stated_or_called_like_the_input(written):
    def columns(**inputs):
        source = open_source(written / "a.parquet", inputs={"image": Input("image"), **inputs})
        return [wanted.column for wanted in source.inputs.values()]

    assert columns(title=Input("text")) == ["photo", "title"]
    assert columns(words=Input("text", "caption"), label=Input(None)) == ["photo", "caption", "label"]
    with pytest.raises(DataError, match="2 columns of type text"):
        columns(words=Input("text"))
    with pytest.raises(DataError, match="one column for two inputs: 'title' for 'a' and for 'b'.*State the column"):
        columns(a=Input("text", "title"), b=Input("text", "title"))
    with pytest.raises(DataError, match="has no column 'lable'.*Did you mean 'label'"):
        columns(lable=Input(None))
    with pytest.raises(ValueError, match="stated in `inputs`"):
        open_source(written / "a.parquet", inputs=PAIRS, column="photo")


def test_formats_that_hold_one_column_say_so(tmp_path):
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"'.*a.txt' has no column 'label'. Its columns are: 'text' \(string\)"):
        open_source(tmp_path / "a.txt", inputs={"text": Input("text"), "label": Input(None)})
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "1.png").write_bytes(IMAGES[0])
    with pytest.raises(DataError, match=r"no column of type text. Its columns are: 'image' \(Image\)"):
        open_source(tmp_path / "f", inputs=PAIRS)


def test_the_short_form_is_one_input_called_like_its_modality(written):
    short = open_source(written / "a.parquet", modality="image", column="photo", extra_columns=("label",))
    inputs = {"image": Input("image", "photo"), "label": Input(None, "label", required=False)}
    assert short.inputs == inputs
    long = open_source(written / "a.parquet", inputs=inputs)
    assert long.fingerprint == short.fingerprint and read_all(long) == read_all(short)
    # other columns that have a modality are other data
    prints = [
        open_source(written / "a.parquet", inputs={"image": Input("image"), **other}).fingerprint
        for other in ({}, {"text": Input("text", "caption")}, {"text": Input("text", "title")})
    ]
    assert len(set(prints)) == 3 and prints[0] == short.fingerprint


def test_content_is_that_of_the_required_inputs(written):
    columns = {"image": [IMAGES[0], IMAGES[0], IMAGES[1]], "caption": ["a", "b", "a"], "label": [1, 2, 3]}

    def contents(**inputs):
        source = open_source(written / "a.parquet", inputs=inputs)
        return [source.content(columns, i) for i in range(3)]

    image, optional = Input("image"), Input("text", "caption", required=False)
    assert contents(image=image) == [identity(image) for image in columns["image"]]
    assert contents(image=image, caption=optional, label=Input(None)) == contents(image=image)
    assert contents(caption=Input("text")) == ["a", "b", "a"]
    assert len(set(contents(image=image, caption=Input("text")))) == 3
    assert len(set(contents(image=Input("image", required=False), caption=optional))) == 3


class Pairs:
    """Stands in for a transform."""

    def __call__(self, block):
        number = np.array([IMAGES.index(image) for image in block.columns["image"]])
        return Rows({"number": number, "caption": block.columns["caption"]}, np.ones(len(number), np.int64))


def test_held_out_pairs_never_come_in_the_stream(written):
    source = open_source(written / "a.parquet", inputs=PAIRS)
    samples = all_samples(source, 100)
    assert {IMAGES.index(sample["image"]): sample["caption"] for sample in samples} == {
        i: caption for i, caption in enumerate(CAPTIONS) if HAS_IMAGE[i]
    }
    held_out = [IMAGES.index(sample["image"]) for sample in held_out_samples(source, 0.5, 4)]
    assert 0 < len(held_out) <= 4
    # the caption is not required, so the image says what is held out
    exclude = frozenset(source.content({"image": IMAGES}, i) for i in held_out)
    stream = ExactStream(source, Pairs(), dict, 11 - len(held_out), exclude=exclude, max_bad_fraction=0.2)
    rows = next(iter(stream))
    assert sorted(rows["number"]) == [i for i in range(12) if HAS_IMAGE[i] and i not in held_out]
    assert rows["caption"] == [CAPTIONS[i] for i in rows["number"]]


def test_a_mixture_of_pairs(written):
    source = open_mixture(f"{written / 'a.parquet'},{written / 'a.tar'}", inputs=PAIRS)
    columns, bad, _ = read_all(source)
    assert len(columns["caption"]) == 22 and len(bad) == 2
    rows = next(iter(ExactStream(source, Pairs(), dict, 22, max_bad_fraction=0.2)))
    pairs = zip(rows["number"], rows["caption"], strict=True)
    assert all(caption == CAPTIONS[number] for number, caption in pairs)
    other = open_source(written / "a.parquet", inputs={"caption": Input("text")})
    with pytest.raises(DataError, match="have the same inputs, but 'a' has"):
        Mixture(["a", "b"], [open_source(written / "a.parquet", inputs=PAIRS), other])
