"""A modality is added by files only: `tests/toy_modality/data/numbers` is all that makes numbers readable."""

import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hfssl.data
from hfssl.data.held_out import all_samples, content_keys, held_out_samples
from hfssl.data.mixtures import open_mixture, stream_class
from hfssl.data.modality import Input, leading_input, modalities, modality
from hfssl.data.sources import DataError, MemorySource, available_splits, identity, open_source
from hfssl.data.stream import ExactStream, Rows


ADDED = Path(__file__).parents[1] / "toy_modality" / "data"
NUMBERS = np.arange(600) * 0.5


@pytest.fixture
def numbers():
    """Makes the folder visible, and undoes it."""
    hfssl.data.__path__.append(str(ADDED))
    yield
    hfssl.data.__path__.remove(str(ADDED))
    for name in [name for name in sys.modules if name.startswith("hfssl.data.numbers")]:
        del sys.modules[name]
    if hasattr(hfssl.data, "numbers"):
        del hfssl.data.numbers


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("name,value\n" + "".join(f"row {i},{number}\n" for i, number in enumerate(NUMBERS)))
    return path


def transform(block):
    return Rows({"numbers": np.array(block.columns["numbers"])}, np.ones(len(block.keys), np.int64))


def first_pass(stream, batch_size):
    batches = [batch["numbers"] for batch in islice(iter(stream), len(NUMBERS) // batch_size)]
    return np.concatenate(batches)


def test_of_few_samples_some_are_held_out_and_some_are_not():
    for count in range(2, 30):
        texts = [f"text {i} of {count}" for i in range(count)]
        held_out = held_out_samples(MemorySource(texts, name="few"), 0.01)
        assert 1 <= len(held_out) < count
        assert 1 <= len(held_out_samples(MemorySource(texts * 2, name="twice"), 0.99)) < count
    with pytest.raises(DataError, match="All 2 texts of .* are one and the same, .* `--eval_split`"):
        held_out_samples(MemorySource(["the same", "the same"], name="one"))
    with pytest.raises(DataError, match="There is one sample in .* `--eval_split`"):
        held_out_samples(MemorySource(["alone"], name="one"))


def test_modalities_are_found_by_their_names():
    assert modalities() == ["audio", "caption", "image", "text"]
    assert [modality(name).name for name in modalities()] == modalities()
    # a package that is there and declares nothing is none
    for name in ("numbers", "sources", "stream", ""):
        with pytest.raises(
            DataError, match=f"Data of modality '{name}' cannot be read yet. Supported: audio, caption, image, text."
        ):
            modality(name)


def test_a_source_of_a_modality_that_was_added(numbers, csv, tmp_path):
    assert modalities() == ["audio", "caption", "image", "numbers", "text"]
    source = open_source(csv, modality="numbers", piece_bytes=400)
    assert (
        source.modality == "numbers" and source.columns == ["numbers"] and source.inputs["numbers"].column == "value"
    )
    assert source.num_rows == 600 and len(source) > 5
    assert [number for i in range(len(source)) for number in source.read(i).columns["numbers"]] == NUMBERS.tolist()
    with pytest.raises(DataError, match=r"Column 'name' of .* is string, but .* numbers.*`--numbers_column`"):
        open_source(csv, modality="numbers", column="name")
    with pytest.raises(DataError, match="no embedded rows of numbers"):
        open_source(None, modality="numbers")
    assert available_splits(None, modality="numbers") == []
    rows = [[1.0, 2.0], [], None, [3.0]]
    pq.write_table(pa.table({"row": pa.array(rows, pa.list_(pa.float64()))}), tmp_path / "rows.parquet")
    read = open_source(tmp_path / "rows.parquet", modality="numbers").read(0)
    assert read.columns["numbers"] == [[1.0, 2.0], [3.0]]
    assert read.bad == [(2, "'row' is null")] and read.num_empty == 1


def test_held_out_samples_never_come_in_the_stream(numbers, csv):
    source = open_source(csv, modality="numbers", piece_bytes=400)
    held_out = held_out_samples(source, fraction=0.1)
    assert 20 < len(held_out) < 120 and len(all_samples(source, 50)) == 50
    exclude = frozenset(map(identity, held_out))
    stream = ExactStream(source, transform, dict, 10, exclude=exclude)
    assert stream.unit == "numbers"
    seen = first_pass(stream, 10)[: 600 - len(held_out)]
    assert sorted(seen.tolist()) == sorted(set(NUMBERS.tolist()) - set(held_out))
    assert seen.tolist() != sorted(seen.tolist())
    assert len(set(content_keys(held_out).tolist())) == len(held_out)


def test_a_mixture_of_two(numbers, csv, tmp_path):
    (tmp_path / "b.csv").write_text("value\n" + "".join(f"{-number}\n" for number in NUMBERS[1:]))
    source = open_mixture(f"{csv}:3,{tmp_path / 'b.csv'}:1", modality="numbers")
    assert "rows of numbers; " in source.description
    drawn = first_pass(stream_class(source)(source, transform, dict, 10), 10)
    assert 0.6 < (drawn >= 0).mean() < 0.9


def test_the_leading_input():
    assert leading_input({"label": Input(None), "b": Input("text", required=False), "a": Input("image")}) == "a"
    assert leading_input({"b": Input("text", required=False), "a": Input("image", required=False)}) == "b"
    with pytest.raises(DataError, match="None of the inputs .'label'. has a modality.*audio, caption, image, text"):
        leading_input({"label": Input(None)})
