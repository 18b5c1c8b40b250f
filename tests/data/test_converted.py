"""What is converted once, csv and compressed files, means the same by a damaged and an empty sample as all else."""

import bz2
import gzip
import json
import logging
import lzma

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfssl.data.sources import DataError, convert, copies, delimited, open_source
from hfssl.data.stream import ExactStream, Rows


def all_of(source):
    """Texts, reasons of damage, and the number of empty ones."""
    read = [source.read(i) for i in range(len(source))]
    texts = [text for piece in read for text in piece.columns["text"]]
    return texts, [reason for piece in read for _, reason in piece.bad], sum(piece.num_empty for piece in read)


TEXTS = ["one", "", "two", " ", "three"]


def zst(data):
    """In two frames, as those who add to a file write it."""
    frames = []
    for part in (data[:5], data[5:]):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(part)
        frames.append(sink.getvalue().to_pybytes())
    return b"".join(frames)


def write(path):
    name = path.name
    if name.startswith("a.csv"):
        data = "n,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(TEXTS))
    elif name.startswith("a.tsv"):
        data = "n\ttext\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(TEXTS))
    elif name == "a.json.gz":
        data = json.dumps([{"text": text} for text in TEXTS])
    elif name.startswith("a.json"):
        data = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    else:
        data = "\n".join(TEXTS)
    if name == "a.parquet":
        pq.write_table(pa.table({"text": TEXTS}), path)
    elif name == "saved":
        datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(path)
    elif name == "a.arrow":
        table = pa.table({"text": TEXTS})
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zst}
        pack = pack.get(name.split(".")[-1], bytes)
        path.write_bytes(pack(data.encode()))
    return path


FORMATS = ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow", "saved"]
PACKED = [
    "a.txt.gz",
    "a.jsonl.bz2",
    "a.json.gz",
    "a.json.xz",
    "a.csv.gz",
    "a.tsv.xz",
    "a.txt.xz",
    "a.txt.zst",
    "a.csv.zst",
]


@pytest.mark.parametrize("name", [*FORMATS, *PACKED])
def test_blank_texts_are_empty_in_every_format(tmp_path, name):
    texts, bad, num_empty = all_of(open_source(write(tmp_path / name)))
    assert texts == ["one", "two", "three"] and not bad
    # lines without a character are no samples of a txt file
    assert num_empty == (0 if name.startswith("a.txt") else 2)


def test_ragged_records_are_damaged_and_named(tmp_path):
    rows = ["id,text", *(f"{i},one two {i}" for i in range(300))]
    rows[100], rows[200] = "100,one,two", "200"
    (tmp_path / "a.csv").write_text("\n".join(rows))
    source = open_source(tmp_path / "a.csv", extra_columns=("id",))
    texts, bad, _ = all_of(source)
    assert len(texts) == 298 and source.num_rows == 300
    assert bad == ["a.csv, record 101: 3 values for 2 columns", "a.csv, record 201: 1 values for 2 columns"]
    assert source.features["id"].dtype == "int64" and source.read_input("id")[:2] == [0, 1]

    def rows_of(block):
        return Rows({"text": block.columns["text"]}, np.ones(len(block.keys), np.int64))

    stream = ExactStream(source, rows_of, dict, 8, max_bad_fraction=0.02)
    for _, _batch in zip(range(40), stream, strict=False):
        pass
    assert stream.counts["samples_bad"] >= 2
    with pytest.raises(DataError, match="One of them: .*a.csv, record .*Mend the data, or allow more with `--max_bad"):
        for _, _batch in zip(range(40), ExactStream(source, rows_of, dict, 8, max_bad_fraction=0.001), strict=False):
            pass


def test_quotes_and_lines_within_values(tmp_path):
    (tmp_path / "a.csv").write_text('text,n\n"one, ""two""\nthree",1\nfour,2\n')
    assert all_of(open_source(tmp_path / "a.csv"))[0] == ['one, "two"\nthree', "four"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(tmp_path, separator):
    lines = [separator.join(("number", "text", "class")), *(separator.join((str(i), f"t{i}", "a")) for i in range(5))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    source = open_source(tmp_path / "a.csv", column="text")
    assert all_of(source)[0] == [f"t{i}" for i in range(5)] and set(source.features) == {"number", "text", "class"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_the_encoding_is_found(tmp_path, encoding, caplog):
    texts = [
        "Der Bär läuft über die Straße.",
        "Größere Häuser, schönere Gärten.",
        "Ein Stück Käse für fünf Mäuse.",
    ] * 9
    (tmp_path / "a.csv").write_text("n;text\n" + "\n".join(f"{i};{text}" for i, text in enumerate(texts)), encoding)
    with caplog.at_level(logging.INFO, "hfssl"):
        assert all_of(open_source(tmp_path / "a.csv"))[0] == texts
    assert ("is no UTF-8 and is read as" in caplog.text) == (encoding == "cp1252")


def test_a_broken_byte_is_a_damaged_text(tmp_path):
    lines = ["text", *(f"schön {i}" for i in range(50))]
    data = "\n".join(lines).encode().replace("schön 7\n".encode(), b"sch\xffn 7\n")
    (tmp_path / "a.csv").write_bytes(data)
    texts, bad, _ = all_of(open_source(tmp_path / "a.csv"))
    assert len(texts) == 49 and bad == ["not valid UTF-8 (byte 3 of the sample)"]


def test_types_of_columns(tmp_path):
    (tmp_path / "a.csv").write_text(",text,n,x,n,mixed,blank\n0,a,1,1.5,,1,\n1,b,,2,3,x,\n")
    source = open_source(tmp_path / "a.csv", column="text", extra_columns=("n", "x", "mixed"))
    kinds = {name: feature.dtype for name, feature in source.features.items()}
    assert kinds == {
        "Unnamed: 0": "int64", "text": "string", "n": "int64", "x": "float64", "n.1": "int64", "mixed": "string",
        "blank": "string",
    }  # fmt: skip
    assert source.read(0).columns == {"text": ["a", "b"], "n": [1, None], "x": [1.5, 2.0], "mixed": ["1", "x"]}


def test_files_with_other_columns_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("text\nx\n")
    (tmp_path / "b.csv").write_text("body\nx\n")
    with pytest.raises(DataError, match="'b.csv' has the columns body, 'a.csv' has text. Leave one of them out"):
        open_source(tmp_path)


def test_files_without_columns(tmp_path):
    (tmp_path / "a.csv").write_text("\ntext\nx\n")
    with pytest.raises(DataError, match="The first line of 'a.csv' is blank, but names of columns are needed there"):
        open_source(tmp_path / "a.csv")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="'b.csv.gz' holds nothing"):
        open_source(tmp_path / "b.csv.gz")
    (tmp_path / "a.csv").write_text("text\nx\n")
    (tmp_path / "c.csv").write_text("")
    assert all_of(open_source(str(tmp_path / "[ac].csv")))[0] == ["x"]


def test_a_damaged_line_in_a_compressed_file(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n{"text": broken\n{"text": "two"}\n'))
    source = open_source(tmp_path / "a.jsonl.gz")
    texts, [bad], _ = all_of(source)
    assert texts == ["one", "two"] and "invalid JSON" in bad and source.where(0, 16) == "a.jsonl.gz, byte 16"
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(bytes(range(32, 127)) * 99)[:-20])
    with pytest.raises(DataError, match=r"'b.txt.gz' cannot be converted to a copy in .* \(EOFError"):
        open_source(tmp_path / "b.txt.gz")


def test_a_copy_is_made_once(tmp_path, monkeypatch):
    made = []
    for module, name in ((convert, "_unpack"), (convert, "convert_delimited")):
        call = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, call=call: made.append(1) or call(*args))
    for name in ("a.txt.gz", "a.csv"):
        first = open_source(write(tmp_path / name))
        assert open_source(tmp_path / name).fingerprint == first.fingerprint
    assert len(made) <= 2  # none, where another test has left the copy


@pytest.mark.parametrize("name", ["a.csv", "a.txt.gz", "a.json.gz"])
def test_without_a_cache_copies_are_made_for_the_run(tmp_path, monkeypatch, name, caplog):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/proc/nope/datasets")
    copies.writable.cache_clear()
    with caplog.at_level(logging.INFO, "hfssl"):
        assert all_of(open_source(write(tmp_path / name)))[0] == ["one", "two", "three"]
    assert "/proc/nope/datasets cannot be written" in caplog.text


def test_long_files_come_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "_BLOCK_BYTES", 1000)
    texts = [f"text number {i}" for i in range(500)]
    (tmp_path / "a.csv").write_text("n,text\n" + "\n".join(f"{i},{text}" for i, text in enumerate(texts)))
    source = open_source(tmp_path / "a.csv")
    assert all_of(source)[0] == texts and source.features["n"].dtype == "int64"


def test_a_copy_is_told_of_when_it_is_made(tmp_path, caplog):
    caplog.set_level("INFO", logger="hfssl")
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"text,label\none of {split} {tmp_path.name},a\n")
        # opened again and again, for features, labels and texts
        assert all(open_source(tmp_path, split=split).num_rows == 1 for _ in range(2))
    assert caplog.text.count("is converted once to a copy") == 1
