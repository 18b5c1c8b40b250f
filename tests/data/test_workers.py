"""Between workers and the main process: what travels, and how."""

import itertools
import pickle

import numpy as np
import pytest
import torch

from hfssl.data import workers
from hfssl.data.sources import MemorySource
from hfssl.data.stream import ExactStream, Rows
from hfssl.data.workers import BlocksOf


def as_rows(block):
    texts = [int(text) for text in block.columns["text"]]
    columns = {
        "numbers": np.outer(texts, np.arange(5)).astype(np.uint8), "floats": np.array(texts, np.float32),
        "draws": np.array([(text, text / 7) for text in texts], [("order", np.int64), ("sigma", np.float64)]),
        "lists": [np.arange(text % 4) for text in texts],
    }  # fmt: skip
    return Rows(columns, np.ones(len(texts), np.int64))


def as_lists(columns):
    assert not any(isinstance(values, torch.Tensor) for values in columns.values())
    return {name: [np.asarray(value).tolist() for value in values] for name, values in columns.items()}


def stream(**kwargs):
    source = MemorySource([str(i) for i in range(40)], name="memory", piece_bytes=4)
    return ExactStream(source, as_rows, as_lists, 6, block_bytes=12, **kwargs)


def take(stream, number=12):
    return list(itertools.islice(iter(stream), number))


@pytest.fixture
def in_worker(monkeypatch):
    monkeypatch.setattr(workers, "_LARGE", 1)
    monkeypatch.setattr(workers, "get_worker_info", lambda: type("Worker", (), {"num_workers": 2}))


def test_arrays_travel_through_shared_memory_and_arrive_as_they_were(monkeypatch):
    expected = take(stream())
    monkeypatch.setattr(workers, "_LARGE", 1)
    assert take(stream(num_workers=2)) == expected


def test_what_is_shared(in_worker):
    columns = as_rows(type("Block", (), {"columns": {"text": ["3", "5"]}})).columns
    sent = workers.shared(columns)
    assert {name for name, values in sent.items() if isinstance(values, torch.Tensor)} == {"numbers", "floats"}
    for name, values in workers.as_arrays(sent).items():
        assert values is columns[name] if name in ("draws", "lists") else np.array_equal(values, columns[name])


@pytest.mark.parametrize("change", [("_IN_FLIGHT", 1 << 50), ("_SHARED_MEMORY", "/nowhere"), ("_LARGE", 1 << 20)])
def test_with_little_shared_memory_they_go_another_way(in_worker, monkeypatch, change):
    monkeypatch.setattr(workers, *change)
    columns = {"numbers": np.zeros((2, 5), np.uint8)}
    assert workers.shared(columns) is columns or workers.shared(columns) == columns


def test_a_worker_that_is_spawned_gets_no_collator():
    """It may hold tensors on a GPU."""
    s = stream()
    s.collate = lambda columns: columns
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(s)
    copied = pickle.loads(pickle.dumps(BlocksOf(s)))
    assert copied.stream.collate is None and s.collate is not None
    index, made = copied[0, 0, 0]
    assert (
        index == (0, 0, 0) and made.rows.columns["numbers"].tolist() == s.make(0, 0).rows.columns["numbers"].tolist()
    )
