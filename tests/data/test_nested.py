"""Texts that are fields of records, or lists of paragraphs, are read as those in columns of their own."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfssl.data.sources import DataError, find_column, open_source


TEXTS = ["one", "zwei schöne", "", None, "three"]
RECORDS = [{"record": {"content": text, "url": f"u{i}", "n": {"x": i}}, "id": i} for i, text in enumerate(TEXTS)]
LISTS = [{"text": ["one", "two"], "id": 0}, {"text": [], "id": 1}, {"text": ["drei", None, "vier"], "id": 2}]


def write(folder, kind, records):
    if kind == "jsonl":
        (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    elif kind == "json":
        (folder / "a.json").write_text(json.dumps(records))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), folder / "a.parquet")
    else:
        datasets.Dataset.from_list(records).save_to_disk(folder / "a.saved")
    return folder / f"a.{kind}"


KINDS = pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "saved"])


@KINDS
def test_texts_in_fields(tmp_path, kind):
    path = write(tmp_path, kind, RECORDS)
    for column in (None, "record.content"):  # found by its name among the fields
        source = open_source(path, column=column, extra_columns=("id", "record.n.x"))
        read = source.read(0)
        assert source.inputs["text"].column == "record.content"
        assert read.columns == {"text": ["one", "zwei schöne", "three"], "id": [0, 1, 4], "record.n.x": [0, 1, 4]}
        assert [reason for _, reason in read.bad] == ["'record.content' is null"] and read.num_empty == 1
        assert source.read_input("record.n.x") == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"has no column 'record.contents'.*Did you mean 'record.content'\?"):
        open_source(path, column="record.contents")


@KINDS
def test_lists_of_paragraphs(tmp_path, kind):
    read = open_source(write(tmp_path, kind, LISTS)).read(0)
    assert read.columns["text"] == ["one\n\ntwo", "drei\n\nvier"] and not read.bad and read.num_empty == 1


def test_records_without_the_field_are_damaged(tmp_path):
    path = write(
        tmp_path, "jsonl", [*RECORDS[:2], {"record": {"url": "x"}}, {"record": "x"}, {"id": 3}, {"record": None}]
    )
    read = open_source(path).read(0)
    assert read.columns["text"] == ["one", "zwei schöne"]
    assert [reason for _, reason in read.bad] == ["no 'record.content'"] * 3 + ["'record.content' is null"]


def test_columns_come_before_lists_and_fields():
    text, number = datasets.Value("string"), datasets.Value("int64")
    record = {"record": {"content": text}, "record.content": text}
    assert find_column({**record, "title": text, "tags": datasets.List(text)}) == "title"
    assert find_column({**record, "paragraphs": datasets.List(text)}) == "paragraphs"
    assert find_column({**record, "n": number}) == "record.content"
    with pytest.raises(DataError, match=r"'a' \(dict\), 'a.x' \(string\), 'a.y' \(string\)"):
        find_column({"a": {"x": text, "y": text}, "a.x": text, "a.y": text})
