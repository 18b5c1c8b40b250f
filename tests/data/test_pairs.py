"""Pairs: two sides by what their modalities have, in every format, and what becomes of a side that is broken."""

import io
import json
import shutil
import tarfile
import wave
import zipfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hfssl.data.audio.clips import ClipRows
from hfssl.data.audio.rows import AudioFormat
from hfssl.data.caption.captions import CaptionRows, texts_of
from hfssl.data.held_out import held_out_samples
from hfssl.data.image.digits import digits
from hfssl.data.image.views import ViewArguments, Views
from hfssl.data.mixtures import open_mixture
from hfssl.data.multimodal.rows import PairRows, pair_inputs
from hfssl.data.sources import DataError, open_source
from hfssl.data.stream import Block, ExactStream
from hfssl.data.text.tokenizer import train_tokenizer
from hfssl.errors import UserError
from hfssl.functional.views import View, ViewPreset


IMAGES, LABELS = (values[:30] for values in digits("test").values())
CAPTIONS = [f"a drawing of the digit {label}" for label in LABELS]
INPUTS = pair_inputs("image,text")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS * 3 + ["another word"], 120)


def views(size=16):
    preset = ViewPreset((View(scale=(0.9, 1.0), flip_probability=0.0),))
    return Views(preset, ViewArguments(image_size=size), is_grey=True)


def block_of(columns, seed=0):
    number = len(next(iter(columns.values())))
    return Block(columns, np.arange(number, dtype=np.uint64) + np.uint64(1000 * seed), 0)


def read_all(source):
    rows, bad, num_empty = [], [], 0
    for index in range(len(source)):
        read = source.read(index)
        rows += source.samples(read)
        bad += read.bad
        num_empty += read.num_empty
    return rows, bad, num_empty


def write_folder(path):
    path.mkdir()
    for i, (image, caption) in enumerate(zip(IMAGES, CAPTIONS, strict=True)):
        (path / f"{i:02}.png").write_bytes(image)
        (path / f"{i:02}.txt").write_text(caption + "\n")


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        for i, (image, caption) in enumerate(zip(IMAGES, CAPTIONS, strict=True)):
            archive.writestr(f"a/{i:02}.png", image)
            archive.writestr(f"a/{i:02}.txt", caption)


def write_metadata(path, ending="jsonl"):
    path.mkdir()
    for i, image in enumerate(IMAGES):
        (path / f"{i:02}.png").write_bytes(image)
    rows = [{"file_name": f"{i:02}.png", "caption": caption} for i, caption in enumerate(CAPTIONS)]
    if ending == "csv":
        lines = ["file_name,caption", *(f"{row['file_name']},{row['caption']}" for row in rows)]
    else:
        lines = list(map(json.dumps, rows))
    (path / f"metadata.{ending}").write_text("\n".join(lines))


def write_parquet(path):
    table = datasets.Dataset.from_dict(
        {"id": [str(i) for i in range(30)], "picture": IMAGES, "caption": CAPTIONS},
        datasets.Features(
            {"id": datasets.Value("string"), "picture": datasets.Image(), "caption": datasets.Value("string")}
        ),
    )
    pq.write_table(table.data.table, path, row_group_size=7)


def write_tar(path):
    with tarfile.open(path, "w") as tar:
        for i, (image, caption) in enumerate(zip(IMAGES, CAPTIONS, strict=True)):
            for ending, data in (("png", image), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{i:02}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


FORMATS = {
    "folder": write_folder, "zipped": lambda path: (path.mkdir(), write_zip(path / "a.zip")),
    "jsonl": write_metadata, "csv": lambda path: write_metadata(path, "csv"),
    "a.parquet": write_parquet, "a.tar": write_tar,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_pairs_of_every_format(tmp_path, name):
    FORMATS[name](tmp_path / name)
    rows, bad, num_empty = read_all(open_source(tmp_path / name, inputs=INPUTS))
    assert rows == [{"image": image, "text": text} for image, text in zip(IMAGES, CAPTIONS, strict=True)]
    assert not bad and not num_empty


def test_a_mixture_of_two_formats(tmp_path):
    write_tar(tmp_path / "a.tar")
    write_folder(tmp_path / "b")
    source = open_mixture(f"{tmp_path / 'a.tar'}:1,{tmp_path / 'b'}:1", inputs=INPUTS)
    rows, bad, _ = read_all(source)
    assert len(rows) == 60 and {row["text"] for row in rows} == set(CAPTIONS) and not bad


def test_a_broken_side_is_one_damaged_sample_and_an_empty_caption_none(tmp_path):
    write_folder(tmp_path / "a")
    (tmp_path / "a" / "03.txt").unlink()
    (tmp_path / "a" / "04.txt").write_text(" \n")
    (tmp_path / "a" / "05.txt").write_bytes("ein Gerät".encode("latin-1"))
    (tmp_path / "a" / "06.png").write_bytes(b"")
    (tmp_path / "a" / "07.txt").write_bytes(b"\xef\xbb\xbfmarked")
    rows, bad, num_empty = read_all(open_source(tmp_path / "a", inputs=INPUTS))
    assert num_empty == 1 and len(rows) == 26 and rows[3]["text"] == "marked"
    reasons = dict(bad)
    assert "no caption beside it" in reasons[3] and ".txt" in reasons[3]
    assert "not valid UTF-8" in reasons[5] and "empty" in reasons[6] and set(reasons) == {3, 5, 6}


def test_captions_that_change_are_other_data(tmp_path):
    write_folder(tmp_path / "a")
    before = open_source(tmp_path / "a", inputs=INPUTS).fingerprint
    assert open_source(tmp_path / "a", inputs=INPUTS).fingerprint == before
    (tmp_path / "a" / "03.txt").write_text("something longer that was not there before")
    assert open_source(tmp_path / "a", inputs=INPUTS).fingerprint != before


def test_images_without_captions_are_told_where_captions_may_stand(tmp_path):
    write_folder(tmp_path / "a")
    for path in (tmp_path / "a").glob("*.txt"):
        path.unlink()
    with pytest.raises(DataError, match=r"no column of type caption.*dog.txt beside it, or in a metadata.jsonl"):
        open_source(tmp_path / "a", inputs=INPUTS)
    # what was advised helps
    for path in (tmp_path / "a").glob("*.png"):
        path.with_suffix(".txt").write_text("a digit")
    assert len(read_all(open_source(tmp_path / "a", inputs=INPUTS))[0]) == 30


def test_metadata_that_name_files_that_are_gone_say_so(tmp_path, caplog):
    write_metadata(tmp_path / "a")
    (tmp_path / "a" / "03.png").unlink()
    with caplog.at_level("WARNING"):
        rows, bad, _ = read_all(open_source(tmp_path / "a", inputs=INPUTS))
    assert len(rows) == 29 and not bad
    assert "1 of the 30 files that" in caplog.text and "'03.png'" in caplog.text


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_metadata_in_another_encoding_are_read_or_refused_in_a_sentence(tmp_path, caplog, ending):
    write_metadata(tmp_path / "a", ending)
    table = tmp_path / "a" / f"metadata.{ending}"
    text = table.read_text().replace("a drawing of", "ein schönes Gerät, größer als Öl und weiß, für")
    separator = ";" if ending == "csv" else ","
    table.write_bytes(
        (text.replace("png,", "png;").replace("name,", "name;") if ending == "csv" else text).encode("cp1252")
    )
    with caplog.at_level("INFO"):
        rows, bad, _ = read_all(open_source(tmp_path / "a", inputs=INPUTS))
    assert not bad and len(rows) == 30 and "is no UTF-8 and is read as" in caplog.text
    assert rows[0]["text"] == f"ein schönes Gerät, größer als Öl und weiß, für the digit {LABELS[0]}"
    # one broken byte among much that is UTF-8
    broken = table.read_bytes().decode("cp1252").encode() + (b"\nx.png" + separator.encode() + b"\xff")
    table.write_bytes(broken)
    with pytest.raises(DataError, match=r"not in UTF-8 \(byte \d+\).*iconv"):
        open_source(tmp_path / "a", inputs=INPUTS)


def test_a_comma_in_a_table_is_explained(tmp_path):
    write_metadata(tmp_path / "a", "csv")
    table = tmp_path / "a" / "metadata.csv"
    written = table.read_text()
    # in all rows, and in some: pandas takes the one for an index and refuses the other
    for number in (30, 3):
        table.write_text(written.replace("a drawing of", "a drawing, small, of", number))
        words = "rows of more values.*A value with a ',' in it stands in quotation marks"
        with pytest.raises(DataError, match=words):
            open_source(tmp_path / "a", inputs=INPUTS)
    # what was advised helps
    lines = [line.replace(",a drawing", ',"a drawing, small,') for line in written.splitlines()]
    table.write_text("\n".join([lines[0], *(f'{line}"' for line in lines[1:])]))
    assert read_all(open_source(tmp_path / "a", inputs=INPUTS))[0][0]["text"].startswith("a drawing, small, of")


def test_captions_that_are_all_empty_are_named(tmp_path):
    write_folder(tmp_path / "a")
    for path in (tmp_path / "a").glob("*.txt"):
        path.write_text(" ")
    words = "no sample with one image and one caption.*`--image_column` or `--caption_column`"
    with pytest.raises(DataError, match=words):
        held_out_samples(open_source(tmp_path / "a", inputs=INPUTS))


def test_several_captions_of_an_image_take_turns(tmp_path, tokenizer):
    captions = [["a drawing", None, "  ", "the digit"] for i in range(30)]
    captions[5] = ["", None]
    table = {"url": [f"u{i}" for i in range(30)], "image": IMAGES, "captions": captions}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    rows, bad, num_empty = read_all(open_source(tmp_path / "a.parquet", inputs=INPUTS))
    assert num_empty == 1 and not bad and rows[0]["text"] == captions[0]
    assert texts_of(captions[0]) == ["a drawing", "the digit"]
    of_captions = CaptionRows(tokenizer)
    taken = []
    for seed in range(8):
        made = of_captions.rows(block_of({"text": [row["text"] for row in rows]}, seed))
        taken.append(
            [tokenizer.decode(row, skip_special_tokens=True).replace(" ", "") for row in made.columns["input_ids"]]
        )
        again = of_captions.rows(block_of({"text": [row["text"] for row in rows]}, seed))
        assert all(
            np.array_equal(a, b) for a, b in zip(made.columns["input_ids"], again.columns["input_ids"], strict=True)
        )
    assert {pass_[0] for pass_ in taken} == {"adrawing", "thedigit"}
    assert len({pass_[0] == pass_[1] for pass_ in taken}) == 2


def columns_of_languages():
    """Captions in two languages, of which some rows lack one or both, and what a list of both would be."""
    german = [f"eine Zeichnung der Ziffer {label}" for label in LABELS]
    english, german = [*CAPTIONS[:3], None, " ", *CAPTIONS[5:]], [*german[:2], None, german[3], None, *german[5:]]
    both = [[text for text in row if text and text.strip()] for row in zip(english, german, strict=True)]
    return {"caption": english, "caption_de": german}, both


@pytest.mark.parametrize("kind", ["parquet", "folder", "csv", "mixture"])
def test_captions_in_several_columns_are_several_captions(tmp_path, kind):
    columns, both = columns_of_languages()
    if kind in ("parquet", "mixture"):
        pq.write_table(pa.table({"image": IMAGES, **columns}), tmp_path / "a.parquet")
        dataset = tmp_path / "a.parquet"
        if kind == "mixture":
            dataset = f"{dataset}:0.5,{shutil.copy(dataset, tmp_path / 'b.parquet')}:0.5"
    else:
        dataset = tmp_path / "a"
        dataset.mkdir()
        rows = [{"file_name": f"{i:02}.png", **{name: columns[name][i] for name in columns}} for i in range(30)]
        for row, image in zip(rows, IMAGES, strict=True):
            (dataset / row["file_name"]).write_bytes(image)
        if kind == "folder":
            (dataset / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        else:
            lines = [",".join(row[name] or "" for name in rows[0]) for row in rows]
            (dataset / "metadata.csv").write_text("\n".join([",".join(rows[0]), *lines]))
    source = open_mixture(dataset, inputs=pair_inputs("image,text", {"text": "caption, caption_de"}))
    rows, bad, num_empty = read_all(source)
    rows, num_empty = (rows[:29], num_empty / 2) if kind == "mixture" else (rows, num_empty)
    assert [row["text"] for row in rows] == [each for each in both if each] and len(rows) == 29
    assert not bad and num_empty == 1 and list(rows[0]) == list(INPUTS)
    if kind == "parquet":
        assert source.inputs["text"].column == "caption,caption_de"
        assert source.read_input("text")[3] == both[3] and source.where(0, 7).endswith("row 7")
        other = open_source(dataset, inputs=pair_inputs("image,text", {"text": "caption"}))
        assert source.fingerprint != other.fingerprint


def write_table_of_files(path, relative=True, images=IMAGES):
    """A table beside `images/`, whose column names files there."""
    folder = path.parent / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        (folder / f"{i:02}.png").write_bytes(image)
    names = [f"images/{i:02}.png" if relative else str(folder / f"{i:02}.png") for i in range(len(images))]
    rows = [{"image_path": name, "caption": caption} for name, caption in zip(names, CAPTIONS, strict=False)]
    if path.suffix == ".csv":
        lines = ["image_path,caption", *(f'"{row["image_path"]}","{row["caption"]}"' for row in rows)]
    else:
        lines = map(json.dumps, rows)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl"])
@pytest.mark.parametrize("relative", [True, False])
def test_a_table_that_names_files(tmp_path, name, relative):
    table = write_table_of_files(tmp_path / "my pairs" / name, relative)
    source = open_source(table, inputs=INPUTS)
    rows, bad, num_empty = read_all(source)
    assert [row["image"] for row in rows] == IMAGES and [row["text"] for row in rows] == CAPTIONS
    assert (bad, num_empty, source.num_rows) == ([], 0, 30)
    # read from whichever folder, and its columns stated
    inputs = pair_inputs("image,text", {"image": "image_path", "text": "caption"})
    assert read_all(open_source(table, inputs=inputs))[0] == rows
    assert open_source(table, inputs=inputs, streaming=False).fingerprint == source.fingerprint
    # images alone
    alone = open_source(table, modality="image")
    assert [sample for i in range(len(alone)) for sample in alone.read(i).columns["image"]] == IMAGES
    # one that is gone is damaged, and other files are other data
    (table.parent / "images" / "03.png").unlink()
    rows, bad, _ = read_all(open_source(table, inputs=INPUTS))
    assert len(rows) == 29 and [reason for _, reason in bad] == [
        f"the file '{table.parent / 'images' / '03.png'}' is missing"
    ]
    assert open_source(table, inputs=INPUTS).fingerprint != source.fingerprint


def test_paths_that_are_no_files_are_damage_of_their_samples(tmp_path):
    table = write_table_of_files(tmp_path / "pairs.jsonl")
    odd = ["images", "images/", ".", "a\0.png", "x" * 300 + ".png", "images/00.png/a.png", "images/none.png"]
    lines = [json.dumps({"image_path": name, "caption": "odd"}) for name in odd]
    table.write_text("\n".join([*lines, table.read_text()]))
    rows, bad, _ = read_all(open_source(table, inputs=INPUTS))
    assert [row["image"] for row in rows] == IMAGES and len(bad) == len(odd)
    assert all("is no file" in reason or "is missing" in reason for _, reason in bad)
    table.write_text("\n".join(lines))
    with pytest.raises(DataError, match="None of the files .* is there, such as 'images'"):
        open_source(table, inputs=pair_inputs("image,text", {"image": "image_path"}))


def test_paths_with_blanks_around_them_and_as_addresses_of_files(tmp_path):
    folder = write_table_of_files(tmp_path / "my pairs" / "pairs.csv").parent
    lines = [f" images/{i:02}.png ,{caption}" for i, caption in enumerate(CAPTIONS[:2])]
    lines.append(f"{(folder / 'images' / '02.png').as_uri()},three")
    # the first rows name none, and the addresses from which files came are another column
    rows = ["image_path,caption,url", *[" ,none,"] * 300, *(f"{line},https://a.b/c.png" for line in lines)]
    (folder / "odd.csv").write_text("\n".join(rows))
    rows, bad, _ = read_all(open_source(folder / "odd.csv", inputs=INPUTS))
    assert [row["image"] for row in rows] == IMAGES[:3] and not bad
    for stated in (None, "url"):
        kept = ["caption,url", *(f"{caption},https://a.b/c.png" for caption in "abc")]
        (folder / "far.csv").write_text("\n".join(kept))
        with pytest.raises(DataError, match="Column 'url' .*addresses, such as 'https://a.b/c.png'.*download them"):
            open_source(folder / "far.csv", inputs=pair_inputs("image,text", {"image": stated} if stated else {}))


def test_a_table_of_files_is_the_same_data_elsewhere(tmp_path):
    here, there = (write_table_of_files(tmp_path / name / "pairs.csv") for name in "ab")
    assert open_source(here, inputs=INPUTS).fingerprint == open_source(there, inputs=INPUTS).fingerprint
    changed = [*IMAGES[:-1], IMAGES[0] + b" "]
    other = write_table_of_files(tmp_path / "c" / "pairs.csv", images=changed)
    assert open_source(here, inputs=INPUTS).fingerprint != open_source(other, inputs=INPUTS).fingerprint


def test_a_table_that_names_no_files_that_are_there(tmp_path):
    (tmp_path / "a.csv").write_text("image_path,caption\nimages/1.png,one\nimages/2.png,two\n")
    with pytest.raises(DataError, match="None of the files .*'image_path' is there, such as 'images/1.png'.*folder"):
        open_source(tmp_path / "a.csv", inputs=INPUTS)
    (tmp_path / "b.csv").write_text("name,caption\none,two\n")
    with pytest.raises(
        DataError, match="No column of .*b.csv' holds paths of image files.*'name' .string.*`--image_c"
    ):
        open_source(tmp_path / "b.csv", inputs=INPUTS)
    # names without an ending, where the user says that they are files
    (tmp_path / "one").write_bytes(IMAGES[0])
    rows, _, _ = read_all(open_source(tmp_path / "b.csv", inputs=pair_inputs("image,text", {"image": "name"})))
    assert rows == [{"image": IMAGES[0], "text": "two"}]


@pytest.mark.parametrize("caption", ["caption", "caption,caption_de"])
def test_a_row_without_an_image_is_empty_in_however_many_columns_its_captions_are(tmp_path, caption):
    columns = {"image": [None, b"", *IMAGES[2:]], "caption": CAPTIONS, "caption_de": CAPTIONS}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rows, bad, num_empty = read_all(open_source(tmp_path, inputs=pair_inputs("image,text", {"text": caption})))
    # an image without a byte is a damaged one
    assert (len(rows), len(bad), num_empty) == (28, 1, 1)


def test_columns_of_captions_that_are_not_there_or_twice(tmp_path):
    columns, _ = columns_of_languages()
    pq.write_table(pa.table({"image": IMAGES, **columns}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'caption_fr'.*Did you mean 'caption'"):
        open_source(tmp_path, inputs=pair_inputs("image,text", {"text": "caption,caption_fr"}))
    with pytest.raises(DataError, match="`--caption_column caption,caption` names several columns, each once"):
        open_source(tmp_path, inputs=pair_inputs("image,text", {"text": "caption,caption"}))


def test_a_batch_and_what_is_cut_and_padded(tokenizer):
    rows = PairRows({"image": views(), "text": CaptionRows(tokenizer, 6)}, with_duplicates=True)
    made = rows(block_of({"image": IMAGES[:4], "text": ["a drawing of the digit one", "a", "a", "of the"]}))
    collator = rows.collator()
    batch = collator(made.columns | {"key_of_step": 0})
    assert batch["pixel_values"].shape == (4, 3, 16, 16) and batch["input_ids"].shape == (4, 6)
    assert batch["attention_mask"].sum(1).tolist() == [6, 3, 3, 4]
    assert batch["input_ids"][0, -1] == tokenizer.sep_token_id  # what is cut keeps its end
    assert (batch["input_ids"][1, 3:] == tokenizer.pad_token_id).all()
    assert CaptionRows(tokenizer, 6).num_cut(["a drawing of the digit one", "a"]) == 1
    # the second and the third have the same caption
    same = {name: values[:, None] == values for name, values in batch.items() if name.endswith("_content")}
    assert same["text_content"].int().tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert same["image_content"].equal(torch.eye(4, dtype=torch.bool))
    assert (collator.num_rows, collator.num_duplicates) == (4, 2)
    wide = CaptionRows(tokenizer, 20, pad_to_max=True).batch(["a"])
    assert wide["input_ids"].shape == (1, 20) and wide["attention_mask"].sum() == 3
    # as wide as the longest, in steps of 8 up to the limit
    made = CaptionRows(tokenizer, 20)
    widths = [made.batch([" ".join(["a"] * number), "a"])["input_ids"].shape[1] for number in (1, 6, 7, 14, 15, 30)]
    assert widths == [8, 8, 16, 16, 20, 20]
    with pytest.raises(UserError, match="`--max_length 2` leaves no room .* 2 special .* at least 3"):
        CaptionRows(tokenizer, 2)


def test_of_several_captions_the_one_that_is_taken_is_compared(tokenizer):
    rows = PairRows({"image": views(), "text": CaptionRows(tokenizer)})
    several = [["a", "the digit"], ["a drawing", "the digit"], ["of the", "a"]] * 4
    equal = set()
    for seed in range(3):
        made = rows(block_of({"image": IMAGES[:12], "text": several}, seed))
        content, tokens = made.columns["text_content"], [row.tolist() for row in made.columns["input_ids"]]
        for i in range(12):
            for k in range(i):
                assert (content[i] == content[k]) == (tokens[i] == tokens[k])
                equal.add((several[i] == several[k], bool(content[i] == content[k])))
    assert equal == {(True, True), (True, False), (False, True), (False, False)}


def test_duplicates_are_counted_among_all_that_are_compared(tokenizer):
    rows = PairRows({"image": views(), "text": CaptionRows(tokenizer)})
    made = rows(block_of({"image": IMAGES[:4], "text": ["a", "of", "the", "a"]}))
    halves = [{name: values[part] for name, values in made.columns.items()} for part in (slice(2), slice(2, 4))]
    alone, together = rows.collator(), rows.collator(parts=2)
    for half in halves:
        of_step = half | {"key_of_step": 0}
        alone(of_step), together(of_step)
        together(halves[0])  # as the verdict looks at pairs, between two batches
    assert (alone.num_rows, alone.num_duplicates) == (4, 0)
    assert (together.num_rows, together.num_duplicates) == (4, 2)
    for half in halves:  # for the gradient each is made again
        together(half | {"key_of_step": 0})
    assert (together.num_rows, together.num_duplicates) == (4, 2)
    for half in halves:
        together(half | {"key_of_step": 1})
    assert (together.num_rows, together.num_duplicates) == (8, 4)


def test_what_one_side_loses_the_other_loses(tokenizer):
    rows = PairRows({"image": views(), "text": CaptionRows(tokenizer)})
    images = [IMAGES[0], b"no image", IMAGES[2], IMAGES[3]]
    captions = ["a", "of", "\u200b", "the digit"]
    made = rows(block_of({"image": images, "text": captions}))
    assert [i for i, _ in made.bad][0] == 1 and len(made) in (2, 3)
    kept = made.places[:, 2].tolist()
    assert 1 not in kept and {0, 3} <= set(kept)
    alone = rows(block_of({"image": [IMAGES[i] for i in kept], "text": [captions[i] for i in kept]}))
    for name, values in made.columns.items():
        assert len(values) == len(kept)
        if name == "input_ids":
            assert all(np.array_equal(a, b) for a, b in zip(values, alone.columns[name], strict=True))


def test_a_stream_of_pairs_goes_on_where_it_stopped(tmp_path, tokenizer):
    write_parquet(tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet", inputs=INPUTS)
    rows = PairRows({"image": views(), "text": CaptionRows(tokenizer)})

    def stream():
        return ExactStream(source, rows, rows.collator(), 5, block_cost=8, piece_cost=7)

    whole = stream()
    batches = iter(whole)
    for _ in range(3):
        next(batches)
    state = whole.state_dict()
    rest = stream()
    rest.load_state_dict(state)
    for expected, got in zip([next(batches) for _ in range(4)], rest, strict=False):
        assert expected.keys() == got.keys() == {"pixel_values", "input_ids", "attention_mask"}
        assert all(expected[name].equal(got[name]) for name in expected)


def test_images_and_sounds_by_the_same_code(tmp_path):
    from transformers import Wav2Vec2Config

    generator = np.random.default_rng(0)
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(IMAGES[i])
        sound = np.zeros(8000, np.int16) if i == 2 else generator.integers(-999, 999, 8000 * (i + 1)).astype(np.int16)
        with wave.open(str(tmp_path / f"{i}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(sound.tobytes())
    (tmp_path / "4.wav").write_bytes(b"RIFF")
    source = open_source(tmp_path, inputs=pair_inputs("image,audio"))
    pairs, bad, _ = read_all(source)
    assert len(pairs) == 6 and not bad
    encoder = Wav2Vec2Config(feat_extract_norm="layer")
    rows = PairRows({"image": views(), "audio": ClipRows(AudioFormat(encoder, max_seconds=2.0))})
    made = rows(block_of({name: [pair[name] for pair in pairs] for name in ("image", "audio")}))
    assert made.places[:, 2].tolist() == [0, 1, 3, 5] and [i for i, _ in made.bad] == [4] and made.num_empty == 1
    batch = rows.collator()(made.columns)
    assert batch["pixel_values"].shape[0] == 4 and batch["input_values"].shape == (4, 32000)
    assert batch["attention_mask"].sum(1).tolist() == [8000, 16000, 32000, 32000]


def test_two_masks_have_names_of_their_own(tokenizer):
    from transformers import Wav2Vec2Config

    sound = np.sin(np.arange(4000))
    files = []
    for length in (2000, 4000):
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(16000)
            writer.writeframes((999 * sound[:length]).astype(np.int16).tobytes())
        files.append(file.getvalue())
    clips = ClipRows(AudioFormat(Wav2Vec2Config(feat_extract_norm="layer")))
    rows = PairRows({"text": CaptionRows(tokenizer), "audio": clips})
    batch = rows.collator()(rows(block_of({"audio": files, "text": ["a drawing", "a"]})).columns)
    assert batch.keys() == {"input_ids", "a_attention_mask", "input_values", "b_attention_mask"}
    assert batch["a_attention_mask"].sum(1).tolist() == [4, 3] and batch["b_attention_mask"].shape == (2, 4000)


def test_a_pair_has_two_sides():
    assert list(pair_inputs("text,audio")) == ["audio", "text"]
    assert pair_inputs("image,text", {"text": "alt"})["text"].column == "alt"
    assert pair_inputs("image,text")["text"].modality == "caption"
    for wrong in ("image", "image,image", "image,text,audio", ","):
        with pytest.raises(UserError, match="two modalities with a comma"):
            pair_inputs(wrong)
