"""Exact streams: every sample once a pass, the same order for any number of workers, and exact after any interruption."""

import itertools
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hfssl.data.sources import DataError, MemorySource, PieceRows, open_source
from hfssl.data.stream import Block, ExactStream, Rows


def as_rows(block: Block) -> Rows:
    """One row a text: its number and a number drawn from its key."""
    texts = next(iter(block.columns.values()))
    number = np.array([int(text.split()[1]) for text in texts], dtype=np.int64)
    return Rows({"number": number, "draw": block.keys.astype(np.int64)}, np.ones(len(texts), np.int64))


def as_tensors(columns):
    return {name: torch.from_numpy(values) for name, values in columns.items()}


def texts(n):
    return [f"text {i} {'x' * (i % 17)}" for i in range(n)]


def stream(source=None, n=500, batch_size=8, **kwargs):
    source = source or MemorySource(texts(n), name="memory", piece_bytes=400)
    kwargs = {"block_bytes": 2000, **kwargs}
    return ExactStream(source, as_rows, as_tensors, batch_size, **kwargs)


def take(stream, num_batches):
    batches = list(itertools.islice(iter(stream), num_batches))
    return [(b["number"].tolist(), b["draw"].tolist()) for b in batches]


def rows_of_first_pass(world_size, n, **kwargs):
    """All numbers that the ranks yield before their second pass begins."""
    seen = []
    for rank in range(world_size):
        s = stream(n=n, batch_size=1, rank=rank, world_size=world_size, **kwargs)
        for batch in s:
            if s.position["pass"] > 0:
                break
            seen.append(batch["number"].item())
    return seen


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_a_pass_has_each_sample_once_over_all_ranks(world_size):
    assert sorted(rows_of_first_pass(world_size, 300)) == list(range(300))


def test_more_ranks_than_pieces_share_them_and_the_log_says_so(caplog):
    source = MemorySource(texts(40), name="memory", piece_bytes=10**9)
    assert len(source.pieces) == 1
    seen = []
    for rank in range(5):
        s = stream(source, batch_size=1, rank=rank, world_size=5)
        for batch in s:
            if s.position["pass"] > 0:
                break
            seen.append(batch["number"].item())
    assert sorted(seen) == list(range(40))
    assert "1 piece(s) for 5 processes" in caplog.text


def test_passes_differ_in_order_and_draws_and_seeds_differ():
    first = take(stream(n=64, batch_size=64), 2)
    assert sorted(first[0][0]) == sorted(first[1][0]) == list(range(64))
    assert first[0][0] != first[1][0] and first[0][0] != list(range(64))
    assert set(first[0][1]).isdisjoint(first[1][1])
    assert take(stream(n=64, batch_size=64, seed=1), 1)[0][0] != first[0][0]


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_the_number_of_workers_changes_nothing(num_workers):
    assert take(stream(num_workers=num_workers), 90) == take(stream(), 90)


@pytest.mark.parametrize("stop", [0, 1, 5, 40, 62, 63, 64, 130])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_is_exact_at_any_batch(stop, num_workers):
    whole = take(stream(), stop + 30)
    s = stream(num_workers=num_workers)
    assert take(s, stop) == whole[:stop]
    state = json.loads(json.dumps(s.state_dict()))
    again = stream()
    again.load_state_dict(state)
    assert take(again, 30) == whole[stop:]


def test_resume_twice_and_counts():
    whole = stream()
    take(whole, 100)
    s = stream()
    for _ in range(10):
        take(s, 10)
        fresh = stream()
        fresh.load_state_dict(s.state_dict())
        s = fresh
    assert s.state_dict() == whole.state_dict()
    assert s.counts["rows"] == 800 and s.counts["tokens"] == 800


def test_iterating_again_goes_on_from_the_position():
    s = stream()
    assert take(s, 10) + take(s, 10) == take(stream(), 20)


def test_resume_reads_only_one_block_again():
    class Counting(MemorySource):
        reads = 0

        def read(self, index):
            Counting.reads += 1
            return super().read(index)

    source = Counting(texts(2000), name="memory", piece_bytes=400)
    s = stream(source)
    take(s, 200)
    again = stream(source)
    again.load_state_dict(s.state_dict())
    Counting.reads = 0
    take(again, 1)
    assert Counting.reads <= 2 * again.units_per_block


@pytest.mark.parametrize("at_once", [1, 3])
def test_pieces_of_a_handful_of_groups_stay_together(at_once):
    source = MemorySource(texts(500), name="memory", piece_bytes=100)
    source.pieces[:, 3] = np.arange(len(source.pieces)) // 10
    source.groups_at_once = at_once
    groups = source.pieces[stream(source)._order(0), 3]
    for group in set(groups):
        places = np.flatnonzero(groups == group)
        assert places[-1] - places[0] < 10 * at_once
    assert ((groups[1:] != groups[:-1]).sum() > len(groups) // 2) == (at_once > 1)  # and are mixed within it
    assert sorted(stream(source)._order(0)) == list(range(len(source.pieces)))


def test_excluded_texts_never_come():
    out = frozenset(texts(300)[::7])
    s = stream(n=300, batch_size=1, exclude=out)
    seen = []
    for batch in s:
        if s.position["pass"] > 1:
            break
        seen.append(batch["number"].item())
    assert sorted(seen) == sorted(2 * [i for i in range(300) if i % 7])


def test_a_stream_pickles():
    s = pickle.loads(pickle.dumps(stream()))
    assert take(s, 3) == take(stream(), 3)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"seed": 1}, "the seed differs.*0 then, 1 now"),
        ({"batch_size": 4}, "batch size differs.*8 then, 4 now"),
        ({"n": 501}, "data set has changed"),
        ({"rank": 0, "world_size": 2}, "number of processes differs.*1 then, 2 now"),
        ({"exclude": frozenset(["text 1 x"])}, "held-out part differs"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(changed, words):
    with pytest.raises(DataError, match=words):
        stream(**changed).load_state_dict(stream().state_dict())


class Damaged(MemorySource):
    """Every `step`th sample is damaged."""

    step = 10

    def read(self, index):
        read = super().read(index)
        good = [i for i, row in enumerate(read.rows) if row % self.step]
        bad = [(int(row), "it is broken") for row in read.rows if row % self.step == 0]
        return PieceRows(read.rows[good], {k: [v[i] for i in good] for k, v in read.columns.items()}, bad)


def test_damaged_samples_are_left_out_counted_and_named_once(caplog):
    source = Damaged(texts(300), name="notes.txt", piece_bytes=400)
    s = stream(source, batch_size=1, max_bad_fraction=0.2)
    seen = []
    for batch in s:
        if s.position["pass"] > 0:
            break
        seen.append(batch["number"].item())
    assert sorted(seen) == [i for i in range(300) if i % 10]
    assert caplog.text.count("it is broken") == 1 and "notes.txt" in caplog.text
    assert s.counts["samples_bad"] >= 30


def test_too_many_damaged_samples_stop_the_stream():
    source = Damaged(texts(300), name="notes.txt", piece_bytes=400)
    with pytest.raises(
        DataError, match=r"of \d+ samples of .* are damaged.*1.0%.*notes.txt.*it is broken.*--max_bad_fraction"
    ):
        take(stream(source), 100)


def test_few_damaged_samples_in_a_long_stream_do_not():
    class Rare(Damaged):
        step = 200

    assert take(stream(Rare(texts(2000), name="notes.txt", piece_bytes=400)), 400)


def test_a_source_without_any_row_left_is_an_error_not_an_endless_loop():
    with pytest.raises(DataError, match="gave no row to train on"):
        take(stream(n=20, exclude=frozenset(texts(20))), 1)


def test_a_batch_larger_than_a_pass():
    numbers = take(stream(n=10, batch_size=64), 1)[0][0]
    assert len(numbers) == 64 and sorted(numbers[:10]) == list(range(10))


def test_files_of_every_kind_stream_exactly(tmp_path):
    with open(tmp_path / "a.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts(3000))
    source = open_source(str(tmp_path / "a.jsonl"))
    s = stream(source, batch_size=50)
    assert sorted(itertools.chain(*(numbers for numbers, _ in take(s, 60)))) == list(range(3000))


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv", "a.txt"])
def test_blank_texts_are_no_damage(tmp_path, name):
    lines = [text for pair in zip(texts(60), ["", "   "] * 30, strict=True) for text in pair]
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": lines}), tmp_path / name)
    elif name.endswith("jsonl"):
        (tmp_path / name).write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    else:
        head = "id,text\n" if name.endswith("csv") else ""
        body = "".join(f"{i},{line}\n" if head else f"{line}\n" for i, line in enumerate(lines))
        (tmp_path / name).write_text(head + body)
    source = open_source(tmp_path / name)
    s = stream(source, batch_size=60)
    assert sorted(next(iter(s))["number"].tolist()) == list(range(60))
    assert s.counts["samples_bad"] == 0
    if not name.endswith("txt"):  # whose blank lines are no rows
        reads = [source.read(i) for i in range(len(source))]
        assert sum(read.num_empty for read in reads) == 60 and source.num_rows == 120
