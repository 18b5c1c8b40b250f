import bz2
import gzip
import json
import logging
import lzma
import multiprocessing
import os
import pickle
import random
import re
import shutil
import subprocess
import sys

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfssl.data import sources
from hfssl.data.sources import (
    DataError,
    Input,
    available_splits,
    base,
    delimited,
    files,
    find,
    find_column,
    open_source,
    tables,
    text_files,
)


TEXTS = [f"Sentence number {i}, naïve and short. " * (1 + i % 7) for i in range(500)]
WORDS = ["a", "word", "naïve", "日本語", "🙂", "tab\there", "", "  ", "x" * 90]


def write_parquet(path, texts=TEXTS, row_group_size=None, **columns):
    pq.write_table(pa.table({"text": texts, **columns}), path, row_group_size=row_group_size)


def write_jsonl(path, texts=TEXTS):
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))


def read_all(source, order=None):
    """Everything in a source: `(file, row) -> text` and `(file, row) -> reason`."""
    values, bad = {}, {}
    for index in range(len(source)) if order is None else order:
        piece = source.read(index)
        file = int(source.pieces[index, 0])
        assert piece.rows.dtype == np.int64
        for row, value in zip(piece.rows.tolist(), piece.columns[source.columns[0]], strict=True):
            assert (file, row) not in values
            values[file, row] = value
        for row, reason in piece.bad:
            assert (file, row) not in values and (file, row) not in bad
            bad[file, row] = reason
    return values, bad


def texts_of(source):
    values, bad = read_all(source)
    assert not bad
    return [values[key] for key in sorted(values)]


def read_in_another_process(data, index, queue):
    queue.put(pickle.loads(data).read(index).columns["text"])


# Formats


def test_every_format_gives_the_same_rows(tmp_path):
    lines = [text.strip() for text in TEXTS]
    table = datasets.Dataset.from_dict({"id": list(range(len(lines))), "text": lines})
    write_parquet(tmp_path / "a.parquet", lines)
    write_jsonl(tmp_path / "a.jsonl", lines)
    (tmp_path / "lines.json").write_bytes((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "array.json").write_text(json.dumps([{"text": text} for text in lines]))
    (tmp_path / "a.txt").write_text("\n".join(lines))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress((tmp_path / "a.txt").read_bytes()))
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress((tmp_path / "a.jsonl").read_bytes()))
    table.to_csv(tmp_path / "a.csv")
    table.to_csv(tmp_path / "a.tsv", sep="\t")
    table.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "saved_dict")
    table.with_format("torch", columns=["id"]).select(range(len(lines))).save_to_disk(tmp_path / "formatted")
    with pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.data.schema) as writer:
        writer.write_table(table.data.table, max_chunksize=37)
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.data.schema) as writer:
        writer.write_table(table.data.table)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 15
    for name in names:
        source = open_source(tmp_path / name, piece_bytes=4096)
        assert source.num_rows == len(lines) and source.num_rows_exact, name
        assert texts_of(source) == lines, name
        assert len(source) > 5, name
        assert source.columns == ["text"]
        assert "500 rows, column 'text'" in source.description


def test_converting_is_announced_and_gives_the_same_rows(tmp_path, caplog):
    write_jsonl(tmp_path / "a.jsonl")
    with caplog.at_level(logging.INFO, "hfssl"):
        converted = open_source(tmp_path / "a.jsonl", streaming=False)
    assert "is converted once to a copy" in caplog.text and "streaming is off" in caplog.text
    assert texts_of(converted) == texts_of(open_source(tmp_path / "a.jsonl"))


def test_parquet_with_huge_row_groups_is_converted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sources, "MAX_ROW_GROUP_BYTES", 10_000)
    write_parquet(tmp_path / "a.parquet", other=list(range(len(TEXTS))))
    with caplog.at_level(logging.INFO, "hfssl"):
        source = open_source(tmp_path / "a.parquet")
    assert "too large to decode whole" in caplog.text
    assert isinstance(source, tables.TableSource)
    assert texts_of(source) == TEXTS


def test_a_folder_follows_the_rules_of_datasets(tmp_path):
    plain = tmp_path / "plain"
    (plain / "deep").mkdir(parents=True)
    for i in range(3):
        (plain / "deep" / f"{i}.txt").write_text(f"file {i}\n")
    assert available_splits(plain) == ["train"]
    assert texts_of(open_source(plain)) == ["file 0", "file 1", "file 2"]
    assert open_source(plain).files == ["deep/0.txt", "deep/1.txt", "deep/2.txt"]

    split = tmp_path / "split"
    (split / "train").mkdir(parents=True)
    (split / "validation").mkdir()
    write_jsonl(split / "train" / "0.jsonl", ["a", "b"])
    write_jsonl(split / "validation" / "0.jsonl", ["c"])
    assert available_splits(split) == ["train", "validation"]
    assert texts_of(open_source(split)) == ["a", "b"]
    assert texts_of(open_source(split, split="validation")) == ["c"]

    (tmp_path / "named").mkdir()
    write_parquet(tmp_path / "named" / "train-00000-of-00001.parquet", ["a"])
    write_parquet(tmp_path / "named" / "test-00000-of-00001.parquet", ["b"])
    assert sorted(available_splits(tmp_path / "named")) == ["test", "train"]
    assert texts_of(open_source(tmp_path / "named", split="test")) == ["b"]


def test_globs_and_splits_of_saved_folders(tmp_path):
    for i in range(3):
        write_jsonl(tmp_path / f"{i}.jsonl", [f"text {i}"])
    (tmp_path / "notes.md").write_text("no data")
    assert texts_of(open_source(str(tmp_path / "[12].jsonl"))) == ["text 1", "text 2"]
    assert texts_of(open_source(str(tmp_path / "*"))) == ["text 0", "text 1", "text 2"]
    saved = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "validation")}
    )
    saved.save_to_disk(tmp_path / "saved")
    assert available_splits(tmp_path / "saved") == ["train", "validation"]
    assert texts_of(open_source(tmp_path / "saved", split="validation")) == ["validation"]


def test_a_selection_keeps_its_rows(tmp_path):
    table = datasets.Dataset.from_dict({"text": TEXTS}).select(range(400, 100, -1))
    assert table._indices is not None or len(table) == 300
    inputs = {"text": Input("text")}
    source = tables.TableSource(table.shuffle(seed=0), name="selection", inputs=inputs, piece_bytes=2048)
    assert sorted(texts_of(source)) == sorted(TEXTS[101:401])
    assert abs(source.piece_bytes.sum() - sum(len(text.encode()) for text in TEXTS[101:401])) < 6000


def test_configurations_of_a_folder(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["a"])
    write_jsonl(tmp_path / "b.jsonl", ["b"])
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: first\n  data_files: a.jsonl\n- config_name: second\n  data_files: b.jsonl\n---"
    )
    assert texts_of(open_source(tmp_path, config="second")) == ["b"]
    for config in (None, "third"):
        with pytest.raises(DataError, match="configurations: 'first', 'second'. Choose one with `--dataset_config`"):
            open_source(tmp_path, config=config)


# Pieces


def test_pieces_of_one_big_row_group_share_it(tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", TEXTS * 4)
    source = open_source(tmp_path / "a.parquet", piece_bytes=2048)
    assert len(source) > 10
    assert set(source.pieces[:, 3].tolist()) == {0}
    assert source.pieces[0, 1] == 0 and source.pieces[-1, 2] == 2000
    assert np.array_equal(source.pieces[1:, 1], source.pieces[:-1, 2])
    assert 0.5 < source.piece_bytes.mean() / 2048 < 2
    decoded = []
    read_group = tables.ParquetSource._read_group
    monkeypatch.setattr(
        tables.ParquetSource,
        "_read_group",
        lambda self, file, group: decoded.append((file, group)) or read_group(self, file, group),
    )
    order = list(range(len(source)))
    random.Random(0).shuffle(order)
    values, _ = read_all(source, order)
    assert [values[0, i] for i in range(2000)] == TEXTS * 4
    assert decoded == [(0, 0)]


def test_small_row_groups_are_pieces_of_several_files(tmp_path):
    write_parquet(tmp_path / "a.parquet", TEXTS, row_group_size=100)
    write_parquet(tmp_path / "b.parquet", TEXTS[:150], row_group_size=100)
    source = open_source(tmp_path)
    assert source.pieces.tolist() == [
        [0, 0, 100, 0],
        [0, 100, 200, 1],
        [0, 200, 300, 2],
        [0, 300, 400, 3],
        [0, 400, 500, 4],
        [1, 0, 100, 5],
        [1, 100, 150, 6],
    ]
    assert source.description == "2 parquet files, 650 rows, column 'text'"
    assert texts_of(source) == TEXTS + TEXTS[:150]


def test_a_handful_of_decoded_groups_is_kept(tmp_path, monkeypatch):
    write_parquet(tmp_path / "a.parquet", TEXTS, row_group_size=50)
    source = open_source(tmp_path / "a.parquet")
    assert source.groups_at_once == tables.MOST_GROUPS_AT_ONCE
    monkeypatch.setattr(tables, "GROUP_CACHE_BYTES", 3 * source.largest_group_bytes)
    assert source.groups_at_once == 3
    for index in range(len(source)):
        source.read(index)
        assert list(source._cache.data) == source.pieces[max(index - 2, 0) : index + 1, 3].tolist()


def test_there_are_never_too_many_pieces(tmp_path, monkeypatch):
    for module in (base, text_files):
        monkeypatch.setattr(module, "MAX_PIECES", 10)
    write_jsonl(tmp_path / "a.jsonl")
    write_parquet(tmp_path / "a.parquet", TEXTS)
    for i in range(25):
        (tmp_path / f"{i:02}.txt").write_text(f"document {i}")
    for name in ("a.jsonl", "a.parquet"):
        source = open_source(tmp_path / name, piece_bytes=64)
        assert 5 <= len(source) <= 11
        assert texts_of(source) == TEXTS
    source = open_source(str(tmp_path / "*.txt"), sample_by="document")
    assert len(source) == 9
    assert texts_of(source) == [f"document {i}" for i in range(25)]
    assert source.where(8, 24) == "24.txt"


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.txt", "saved", None])
def test_any_order_any_process(tmp_path, name):
    write_parquet(tmp_path / "a.parquet")
    write_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved")
    source = open_source(name and tmp_path / name, piece_bytes=4096)
    expected = [source.read(index).columns["text"] for index in range(len(source))]
    copy = pickle.loads(pickle.dumps(source))
    for index in reversed(range(len(source))):
        assert copy.read(index).columns["text"] == expected[index]
    assert copy.fingerprint == source.fingerprint and copy.description == source.description
    # the parent has its files open: a child that shared their positions would read elsewhere
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=read_in_another_process, args=(pickle.dumps(source), 3, queue))
    forked = context.Process(target=lambda: queue.put(source.read(5).columns["text"]))
    for process, index in ((child, 3), (forked, 5)):
        process.start()
        source.read(1)
        assert queue.get(timeout=300) == expected[index]
        process.join()


@pytest.mark.slow
def test_a_spawned_process_can_read(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    source = open_source(tmp_path / "a.jsonl", piece_bytes=4096)
    source.read(0)
    # a process of its own gets nothing but the pickle
    code = "import pickle, sys; print(len(pickle.load(sys.stdin.buffer).read(2).rows))"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(source), capture_output=True, check=True)
    assert int(done.stdout) == len(source.read(2).rows)


# Ranges of bytes


def documents(rng, number):
    """Random text files: with and without a final newline, with \r\n, blank lines, long lines and a BOM."""
    for _ in range(number):
        lines = [
            " ".join(rng.choices(WORDS, k=rng.choice([0, 0, 1, 3, 40]))) for _ in range(rng.choice([0, 1, 2, 12, 60]))
        ]
        end = rng.choice(["\n", "\r\n"])
        data = end.join(lines) + rng.choice(["", end, end * 3])
        yield (b"\xef\xbb\xbf" if rng.random() < 0.2 else b"") + data.encode()


def expected_lines(data):
    text = data.decode("utf-8-sig").replace("\r\n", "\n")
    return [line for line in text.split("\n") if line.strip()]


def expected_paragraphs(data):
    text = data.decode("utf-8-sig").replace("\r\n", "\n")
    return [part.rstrip() for part in re.split(r"\n(?:[ \t]*\n)+", re.sub(r"\A([ \t]*\n)+", "", text)) if part.strip()]


@pytest.mark.parametrize("sample_by, expected", [("line", expected_lines), ("paragraph", expected_paragraphs)])
def test_byte_ranges_are_exact_at_every_boundary(tmp_path, sample_by, expected):
    rng = random.Random(1)
    for number, data in enumerate(documents(rng, 120)):
        wanted = expected(data)
        path = tmp_path / f"{number}.txt"
        path.write_bytes(data)
        if not wanted:
            with pytest.raises(DataError, match="is empty"):
                open_source(path, sample_by=sample_by)
            continue
        first = None
        for piece_bytes in [1, 2, 3, 7, 64, len(data) - 1, len(data), 1 << 16, *rng.choices(range(1, 300), k=4)]:
            if piece_bytes < 1 or len(data) > 300 * piece_bytes:
                continue
            source = open_source(path, sample_by=sample_by, piece_bytes=piece_bytes)
            values, bad = read_all(source)
            assert [values[key] for key in sorted(values)] == wanted, (number, piece_bytes)
            assert not bad and source.num_rows == len(wanted)
            # the same samples have the same ids however the file is cut
            first = first or values
            assert values == first


def test_byte_ranges_of_jsonl(tmp_path):
    rng = random.Random(2)
    for number in range(40):
        texts = [" ".join(rng.choices(WORDS[:5], k=rng.choice([1, 2, 9, 60]))) for _ in range(rng.choice([1, 3, 40]))]
        end = rng.choice([b"\n", b"\r\n", b"\n\n"])
        escape = rng.random() < 0.5
        records = [json.dumps({"id": 7, "text": text}, ensure_ascii=escape).encode() for text in texts]
        data = (b"\xef\xbb\xbf" if number % 4 == 0 else b"") + end.join(records) + rng.choice([b"", end])
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(data)
        for piece_bytes in [1, 5, 63, len(data) - 1, 1 << 16, *rng.choices(range(1, 300), k=4)]:
            if len(data) <= 300 * piece_bytes:
                assert texts_of(open_source(path, piece_bytes=piece_bytes)) == texts, (number, piece_bytes)


def test_pieces_of_bytes_cover_the_files(tmp_path):
    for i, size in enumerate([0, 1, 100, 101, 1000]):
        (tmp_path / f"{i}.txt").write_bytes(b"x" * size)
    source = open_source(tmp_path, piece_bytes=100)
    assert source.pieces[:, :3].tolist() == [
        [1, 0, 1],
        [2, 0, 100],
        [3, 0, 100],
        [3, 100, 101],
        *([4, i * 100, i * 100 + 100] for i in range(10)),
    ]
    assert source.pieces[:, 3].tolist() == list(range(14))
    assert [len(value) for value in read_all(source)[0].values()] == [1, 100, 101, 1000]


def test_rows_of_a_large_file_are_estimated(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "COUNT_BYTES", 1000)
    (tmp_path / "a.txt").write_text("\n".join(TEXTS * 20))
    source = open_source(tmp_path / "a.txt", piece_bytes=2048)
    assert not source.num_rows_exact and "about" in source.description
    assert abs(source.num_rows / 10_000 - 1) < 0.2


def test_documents_are_whole_files(tmp_path):
    contents = ["one\n\ntwo\n", "three\r\nfour", "five"]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.txt").write_bytes(content.encode())
    (tmp_path / "3.txt").write_text(" \n")
    (tmp_path / "4.txt").write_bytes(b"\xff\xfe\xfa")
    source = open_source(tmp_path, sample_by="document")
    values, bad = read_all(source)
    assert [values[key] for key in sorted(values)] == ["one\n\ntwo\n", "three\nfour", "five"]
    assert [(source.files[file], reason.split(" (")[0]) for (file, _), reason in bad.items()] == [
        ("4.txt", "not valid UTF-8")
    ]
    assert sum(source.read(i).num_empty for i in range(len(source))) == 1


def test_a_record_without_end_needs_no_unbounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_RECORD_BYTES", 200_000)
    (tmp_path / "a.txt").write_bytes(b"first\n\n" + b"x" * 700_000 + b"\n\nlast\n")
    for sample_by in ("line", "paragraph"):
        source = open_source(tmp_path / "a.txt", sample_by=sample_by, piece_bytes=1000)
        values, bad = read_all(source)
        assert list(values.values()) == ["first", "last"]
        assert [key for key, reason in bad.items() if "longer than" in reason] == [(0, 7)]


def test_remote_files_are_read_by_ranges():
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode())
    memory.pipe("/bucket/b.txt", "\n".join(TEXTS[:50]).encode())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS}), sink, row_group_size=100)
    memory.pipe("/bucket/c.parquet", sink.getvalue().to_pybytes())
    try:
        source = open_source("memory://bucket/*.jsonl", piece_bytes=1000)
        assert len(set(source.pieces[:, 3].tolist())) == 1 and len(source) > 20
        assert texts_of(source) == TEXTS
        assert [text.rstrip() for text in texts_of(open_source("memory://bucket/b.txt"))] == [
            text.rstrip() for text in TEXTS[:50]
        ]
        assert texts_of(open_source("memory://bucket/c.parquet", piece_bytes=1000)) == TEXTS
    finally:
        memory.rm("/bucket", recursive=True)


def test_groups_of_remote_files_cost_one_request(monkeypatch):
    monkeypatch.setattr(text_files, "REMOTE_GROUP_BYTES", 10_000)
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.txt", "\n".join(TEXTS).encode())
    try:
        source = open_source("memory://bucket/a.txt", piece_bytes=1000)
        requests = []
        fetch = text_files.TextFiles._fetch
        monkeypatch.setattr(
            text_files.TextFiles, "_fetch", lambda self, *span: requests.append(span) or fetch(self, *span)
        )
        groups = source.pieces[:, 3]
        assert np.bincount(groups)[:-1].tolist() == [10] * (groups.max())
        for index in range(20):
            source.read(index)
        assert len(requests) == 2
    finally:
        memory.rm("/bucket", recursive=True)


# Damage


def test_damaged_json_lines_are_left_out_and_named(tmp_path):
    lines = [
        b'{"text": "good"}',
        b'{"text": "cut',
        b'{"text": null}',
        b'{"text": 3}',
        b'{"text": "  "}',
        b'{"text": ""}',
        b'{"other": "x"}',
        b'["text"]',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": "a"} {"text": "b"}',
        b"NaN",
        b'{"text": "\\ud83d\\ude42 fine"}',
        b"",
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    source = open_source(tmp_path / "a.jsonl")
    values, bad = read_all(source)
    assert list(values.values()) == ["good", "🙂 fine"]
    offsets = [0]
    for line in lines:
        offsets.append(offsets[-1] + len(line) + 1)
    reasons = {offsets.index(row): reason for (_, row), reason in bad.items()}
    assert sorted(reasons) == [1, 2, 3, *range(6, 12)]
    assert source.read(0).num_empty == 2
    for line, words in {
        1: "invalid JSON",
        2: "is null",
        3: "is int, not text",
        6: "no 'text'",
        7: "a JSON list instead of an object",
        8: "not valid UTF-8",
        9: "unpaired surrogate",
        10: "extra data",
        11: "a JSON float instead of an object",
    }.items():
        assert words in reasons[line]
    assert source.num_rows == 13
    assert source.where(0, offsets[3]) == f"a.jsonl, byte {offsets[3]}"


def test_damaged_text_is_left_out(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\nbad \xff\xfe\n\ngood \xc3\xa9\nbad \xc3\n")
    values, bad = read_all(open_source(tmp_path / "a.txt"))
    assert values == {(0, 0): "good", (0, 13): "good é"}
    assert sorted(bad) == [(0, 5), (0, 21)]


def test_damaged_parquet_values_are_left_out(tmp_path):
    broken = pa.StringArray.from_buffers(
        3, pa.py_buffer(np.array([0, 2, 4, 6], "int32")), pa.py_buffer(b"ab\xff\xfecd")
    )
    write_parquet(tmp_path / "a.parquet", pa.chunked_array([["good", None, " ", ""], broken]))
    values, bad = read_all(open_source(tmp_path / "a.parquet"))
    assert values == {(0, 0): "good", (0, 4): "ab", (0, 6): "cd"}
    assert {row: reason for (_, row), reason in bad.items()} == {
        1: "'text' is null",
        5: "not valid UTF-8 (byte 0 of the sample)",
    }


def test_a_broken_row_group_is_bad_and_the_others_are_read(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=100, compression="snappy", use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(2).column(0)
    data = bytearray(path.read_bytes())
    for i in range(column.data_page_offset, column.data_page_offset + column.total_compressed_size):
        data[i] = 0xFF
    path.write_bytes(data)
    source = open_source(path)
    values, bad = read_all(source)
    assert [values[key] for key in sorted(values)] == TEXTS[:200] + TEXTS[300:]
    assert sorted(row for _, row in bad) == list(range(200, 300))
    assert all("row group 2 cannot be decoded" in reason for reason in bad.values())


def test_damage_of_the_way_is_not_damage_of_the_data(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    shorter = open_source(tmp_path / "a.jsonl", piece_bytes=4096)
    with open(tmp_path / "a.jsonl", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(DataError, match=r"'a.jsonl' is shorter than it was when it was opened: it ends before byte"):
        shorter.read(len(shorter) - 1)


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, "line", "paragraph", "document"])
def test_a_file_that_vanishes_is_damage_of_about_as_many_samples(tmp_path, write):
    """What a run meets while it reads: the other files go on, and the limit on damage judges how much is gone."""
    sample_by, ending = (write, ".txt") if isinstance(write, str) else ("line", "." + write.__name__.split("_")[1])
    for i in range(4):
        path = tmp_path / f"{i}{ending}"
        if isinstance(write, str):
            path.write_text("\n\n".join(TEXTS))
        else:
            write(path)
    source = open_source(tmp_path, sample_by=sample_by, piece_bytes=4096)
    values, _ = read_all(source)
    fresh = pickle.loads(pickle.dumps(source))  # as in another process, which has opened nothing yet
    os.remove(tmp_path / f"2{ending}")
    left, bad = read_all(fresh)
    assert len(left) == 3 * len(values) / 4 and len(bad) == pytest.approx(len(values) / 4, rel=0.2)
    assert set(bad.values()) == {f"the file '2{ending}' is missing"}


def test_a_flaky_connection_is_tried_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    write_jsonl(tmp_path / "a.jsonl", TEXTS[:100])
    source = open_source(tmp_path / "a.jsonl")
    source = pickle.loads(pickle.dumps(source))
    failures = [ConnectionError("reset"), TimeoutError("late")]
    open_bytes = text_files.open_bytes

    def flaky(path):
        if failures:
            raise failures.pop()
        return open_bytes(path)

    monkeypatch.setattr(text_files, "open_bytes", flaky)
    assert source.read(0).columns["text"] == TEXTS[:100]
    assert "trying again in 1 s" in caplog.text and "trying again in 4 s" in caplog.text
    source = pickle.loads(pickle.dumps(source))
    failures += [ConnectionError("reset")] * 9
    with pytest.raises(DataError, match=r"'a.jsonl' could not be fetched \(ConnectionError: reset\). Check the conn"):
        source.read(0)


# Columns


STRING, INTEGER = datasets.Value("string"), datasets.Value("int64")


@pytest.mark.parametrize(
    "features, column",
    [
        ({"id": INTEGER, "poem": STRING}, "poem"),
        ({"title": STRING, "text": STRING}, "text"),
        ({"document": STRING, "sentence": STRING}, "sentence"),
        ({"Title": STRING, "Content": datasets.Value("large_string")}, "Content"),
    ],
)
def test_the_text_column_is_found(features, column):
    assert find_column(features) == column


def test_the_column_of_each_modality_is_found():
    features = {"a": datasets.Image(decode=False), "b": datasets.Audio(decode=False), "c": STRING}
    assert [find_column(features, modality) for modality in ("image", "text")] == ["a", "c"]


@pytest.mark.parametrize(
    "features, column, message",
    [
        (
            {"a": STRING, "b": STRING},
            None,
            r"X has 2 columns of type text.*'a' \(string\), 'b' \(string\).*--text_column",
        ),
        ({"a": INTEGER}, None, r"X has no column of type text. Its columns are: 'a' \(int64\). Use another"),
        ({"body": STRING}, "boddy", r"X has no column 'boddy'. .*'body' \(string\). Did you mean 'body'\?"),
        (
            {"a": INTEGER, "b": STRING},
            "a",
            r"Column 'a' of X is int64, but.*'b' \(string\)",
        ),
        ({"a": datasets.ClassLabel(names=["x", "y"])}, "a", r"Column 'a' of X is ClassLabel of 2"),
    ],
)
def test_column_errors_name_the_columns(features, column, message):
    with pytest.raises(DataError, match=message):
        find_column(features, column=column, dataset="X")


def test_columns_of_files(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["x"], title=["y"], n=[1])
    assert texts_of(open_source(tmp_path / "a.parquet", column="title")) == ["y"]
    with pytest.raises(DataError, match=r"Column 'n' of '.*a.parquet' is int64"):
        open_source(tmp_path / "a.parquet", column="n")
    (tmp_path / "a.jsonl").write_text('{"q": "x", "a": "y", "tags": ["t"], "n": 1.5, "mixed": 1}\n{"mixed": [2]}\n')
    with pytest.raises(DataError, match=r"2 columns of type text.*'tags' \(List\), 'n' \(float64\), 'mixed' \(null\)"):
        open_source(tmp_path / "a.jsonl")
    assert open_source(tmp_path / "a.jsonl", column="q").features["q"] == STRING
    (tmp_path / "a.txt").write_text("x\n")
    with pytest.raises(DataError, match=r"'.*a.txt' has no column 'body'. Its columns are: 'text' \(string\)"):
        open_source(tmp_path / "a.txt", column="body")
    pq.write_table(pa.table({"text": pa.array(["x", "y", "x"]).dictionary_encode()}), tmp_path / "dictionary.parquet")
    assert texts_of(open_source(tmp_path / "dictionary.parquet")) == ["x", "y", "x"]
    folder = tmp_path / "folder"
    folder.mkdir()
    write_parquet(folder / "1.parquet", ["x"])
    pq.write_table(pa.table({"other": ["x"]}), folder / "2.parquet")
    with pytest.raises(DataError, match="'2.parquet' of '.*folder' has no column 'text', which other files.*'other'"):
        open_source(folder)


# Fingerprints


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "csv", "saved"])
def test_the_fingerprint_follows_the_data_and_not_the_place(tmp_path, kind):
    def write(folder, texts):
        if kind == "saved":
            datasets.Dataset.from_dict({"text": texts, "other": texts}).save_to_disk(folder)
            return
        folder.mkdir()
        if kind == "csv":
            datasets.Dataset.from_dict({"text": texts, "other": texts}).to_csv(folder / "a.csv")
        elif kind == "parquet":
            write_parquet(folder / "a.parquet", texts, other=texts)
        elif kind == "jsonl":
            (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": t, "other": t}) for t in texts))
        else:
            (folder / "a.txt").write_text("\n".join(texts))

    write(tmp_path / "first", TEXTS)
    first = open_source(tmp_path / "first").fingerprint
    assert first == open_source(tmp_path / "first").fingerprint
    assert open_source(tmp_path / "first", piece_bytes=999).fingerprint != first
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    assert open_source(tmp_path / "copy").fingerprint == first
    (tmp_path / "link").symlink_to(tmp_path / "copy")
    assert open_source(tmp_path / "link").fingerprint == first
    write(tmp_path / "changed", [*TEXTS[:-1], TEXTS[-1].replace("short", "trohs")])
    assert open_source(tmp_path / "changed").fingerprint != first
    if kind != "txt":
        assert open_source(tmp_path / "first", column="other").fingerprint != first
    else:
        assert open_source(tmp_path / "first", sample_by="paragraph").fingerprint != first
        (tmp_path / "first" / "b.txt").write_text("more")
        assert open_source(tmp_path / "first").fingerprint != first


# Errors


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_does_not_exist(folder):
    (folder / "novels").mkdir()
    (folder / "novels.txt").write_text("x")
    with pytest.raises(DataError, match=r"'./novles' does not exist. Did you mean './novels'\? Pass an existing file"):
        open_source("./novles")
    with pytest.raises(DataError, match=r"'novles.txt' does not exist. Did you mean 'novels.txt'\?"):
        open_source("novles.txt")
    with pytest.raises(DataError, match=r"'/nowhere/at/all' does not exist. Neither does the folder '/nowhere/at'"):
        open_source("/nowhere/at/all")
    with pytest.raises(DataError, match=r"'no\*.csv' matches no file. Check it with `ls`"):
        open_source("no*.csv")
    with pytest.raises(DataError, match="`--dataset` is empty"):
        open_source(" ")


def test_what_the_hub_does_not_have_either(folder):
    (folder / "data").mkdir()
    (folder / "data" / "novels").mkdir()
    message = (
        r"There is no file or folder 'data/novles' here. Did you mean 'data/novels'\? The Hub has no data set "
        "'data/novles' either, or it is private: check the name, or log in with `hf auth login`"
    )
    with pytest.raises(DataError, match=message):
        open_source("data/novles")


def test_a_hub_that_cannot_be_reached(folder, monkeypatch):
    monkeypatch.setattr(find.constants, "ENDPOINT", "http://127.0.0.1:9")
    message = (
        "There is no file or folder 'some/data' here. As a Hub id it cannot be looked up: http://127.0.0.1:9 cannot "
        r"be reached \(ConnectError\).*`hf download --repo-type dataset some/data .*HF_HUB_OFFLINE=1"
    )
    with pytest.raises(DataError, match=message):
        open_source("some/data")


def test_offline_without_a_copy(folder, monkeypatch):
    monkeypatch.setattr(find.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match="HF_HUB_OFFLINE is set, and 'some/data' is not in the cache.*Unset HF_HUB_OFF"
    ):
        open_source("some/data")


def test_unsupported_files(folder):
    (folder / "a.docx").write_text("x")
    with pytest.raises(DataError, match="'a.docx' is a file .docx, which cannot be read. Supported are txt, jsonl"):
        open_source("a.docx")
    with pytest.raises(DataError, match="The folder '.' holds files .docx|The folder '.' holds a file .docx, none of"):
        open_source(".")
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="'images' holds images, no text"):
        open_source("images")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.md").write_text("x")
    with pytest.raises(DataError, match="'notes' holds markdown or toml files, .* rename them to `.txt`"):
        open_source("notes")


def test_empty_data(folder):
    (folder / "nothing").mkdir()
    with pytest.raises(DataError, match="The folder 'nothing' is empty"):
        open_source("nothing")
    (folder / "a.jsonl").touch()
    with pytest.raises(DataError, match="'a.jsonl' is empty: 1 file of split 'train' without a single byte"):
        open_source("a.jsonl")
    write_parquet(folder / "a.parquet", pa.array([], pa.string()))
    with pytest.raises(DataError, match="'a.parquet' is empty: its split 'train' .* has no rows"):
        open_source("a.parquet")
    (folder / "blank.txt").write_text("\n \n")
    with pytest.raises(DataError, match="'blank.txt' is empty"):
        open_source("blank.txt")


def test_missing_splits_and_configurations(folder):
    write_jsonl(folder / "train.jsonl", ["x"])
    write_jsonl(folder / "test.jsonl", ["x"])
    with pytest.raises(
        DataError, match=r"'.' has no split 'dev'. Its splits are: 'train', 'test'. Choose one with `--sp"
    ):
        open_source(".", split="dev")
    with pytest.raises(DataError, match="'test.jsonl' has no split 'test'. Its splits are: 'train'"):
        open_source("test.jsonl", split="test")
    with pytest.raises(DataError, match="'test.jsonl' has no configuration 'en'"):
        open_source("test.jsonl", config="en")
    datasets.Dataset.from_dict({"text": ["x"]}).save_to_disk("saved")
    with pytest.raises(DataError, match="'saved' has no split 'test'. Its splits are: 'train'"):
        open_source("saved", split="test")


def test_files_that_cannot_be_read(folder, monkeypatch):
    (folder / "a.txt").write_text("x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(DataError, match=r"a.txt' cannot be read: permission denied. .*chmod \+r"):
            open_source("a.txt")
    write_parquet(folder / "a.parquet")
    (folder / "cut.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match="cut.parquet' is not a whole Parquet file .*Download or write it again"):
        open_source("cut.parquet")
    (folder / "a.json").write_text('[{"text": "x"}, {"text')
    with pytest.raises(DataError, match="'a.json' cannot be converted to a memory-mapped copy in"):
        open_source("a.json")
    (folder / "words.jsonl").write_text("just\nwords\n")
    with pytest.raises(DataError, match="'words.jsonl' of 'words.jsonl' does not begin with JSON objects"):
        open_source("words.jsonl")
    (folder / "wide.txt").write_bytes("wide\n".encode("utf-16"))
    with pytest.raises(DataError, match="'wide.txt' is UTF-16, but UTF-8 is needed. Convert it: `iconv"):
        open_source("wide.txt")
    (folder / "saved").mkdir()
    (folder / "saved" / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match="'saved' is a damaged folder of `save_to_disk`"):
        open_source("saved")


def test_no_space_for_the_copy(folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    (folder / "a.csv").write_text("text\nx\n")
    (folder / "a.json").write_text('[{"text": "x"}]')
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"x"))
    monkeypatch.setattr(datasets, "load_dataset", full)
    monkeypatch.setattr(shutil, "copyfileobj", full)
    monkeypatch.setattr(delimited.pa, "OSFile", full)
    for name in ("a.csv", "a.json", "a.txt.gz"):
        with pytest.raises(DataError, match="No space left on device.*Free some space, or point HF_HOME to another"):
            open_source(name)


def test_wrong_arguments():
    with pytest.raises(
        DataError, match="Data of modality 'smell' cannot be read yet. Supported: audio, caption, image, text"
    ):
        open_source(None, modality="smell")
    with pytest.raises(DataError, match="line, paragraph, document. Got 'word'"):
        open_source(None, sample_by="word")
    with pytest.raises(
        DataError, match="The embedded data 'python-docs' have no split 'test': its only split is 'train'"
    ):
        open_source(None, split="test")
    with pytest.raises(
        DataError, match="The embedded data 'python-docs' have no column 'body': its only column is 'text'"
    ):
        open_source(None, column="body")
    with pytest.raises(DataError, match="The embedded data 'python-docs' have no configuration 'en': it has none"):
        open_source(None, config="en")
