"""Exact streams: every sample once a pass, the same order for any number of workers, and exact after any interruption."""

import itertools
import json
import pickle
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch

from hfssl.data.blocks import dealt, fewest_batches
from hfssl.data.sources import DataError, MemorySource, PieceRows, open_source
from hfssl.data.stream import Block, ExactStream, Rows
from hfssl.functional import keyed
from hfssl.functional.keyed import Use


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
        seen += [batch["number"].item() for _, batch in tiny.passes(s)]
    return seen


@pytest.mark.parametrize("world_size, lanes", [(1, None), (1, 8), (2, 2), (3, 9), (7, None)])
def test_a_pass_has_each_sample_once_over_all_ranks(world_size, lanes):
    assert sorted(rows_of_first_pass(world_size, 300, lanes=lanes)) == list(range(300))


def test_more_ranks_than_pieces_share_them_and_the_log_says_so(caplog):
    source = MemorySource(texts(40), name="memory", piece_bytes=10**9)
    assert len(source.pieces) == 1
    seen = []
    for rank in range(5):
        s = stream(source, batch_size=1, rank=rank, world_size=5)
        assert s.lanes == 5
        seen += [batch["number"].item() for _, batch in tiny.passes(s)]
    assert sorted(seen) == list(range(40))
    assert "1 piece(s) for 5 processes" in caplog.text
    # more lanes than pieces cost reads too, but nobody has to be told
    caplog.clear()
    assert sorted(batch["number"].item() for _, batch in tiny.passes(stream(source, batch_size=1, lanes=4))) == list(
        range(40)
    )
    assert caplog.text == ""


def test_passes_differ_in_order_and_draws_and_seeds_differ():
    first = take(stream(n=64, batch_size=64, lanes=1), 2)
    assert sorted(first[0][0]) == sorted(first[1][0]) == list(range(64))
    assert first[0][0] != first[1][0] and first[0][0] != list(range(64))
    assert set(first[0][1]).isdisjoint(first[1][1])
    assert take(stream(n=64, batch_size=64, lanes=1, seed=1), 1)[0][0] != first[0][0]


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
    assert s.counts["rows"] == 800 and s.counts["units"] == 800


def test_iterating_again_goes_on_from_the_position():
    s = stream()
    assert take(s, 10) + take(s, 10) == take(stream(), 20)


def test_resume_reads_only_one_block_of_each_lane_again():
    class Counting(MemorySource):
        reads = 0

        def read(self, index):
            Counting.reads += 1
            return super().read(index)

    source = Counting(texts(2000), name="memory", piece_bytes=400)
    s = stream(source, block_bytes=1000)
    take(s, 200)
    again = stream(source, block_bytes=1000)
    again.load_state_dict(s.state_dict())
    Counting.reads = 0
    take(again, 1)
    units_per_block = -(-len(source) // (again.lanes * again.blocks_per_lane))
    assert again.blocks_per_lane > 3 and again.lanes == 8
    assert Counting.reads <= 2 * 8 * units_per_block


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
    seen = [batch["number"].item() for _, batch in tiny.passes(stream(n=300, batch_size=1, exclude=out), 2)]
    assert sorted(seen) == sorted(2 * [i for i in range(300) if i % 7])


def test_a_stream_pickles():
    s = pickle.loads(pickle.dumps(stream()))
    assert take(s, 3) == take(stream(), 3)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"seed": 1}, "the seed differs.*0 then, 1 now"),
        ({"batch_cost": 4}, "size of the batches differs.*None then, 4 now"),
        ({"n": 501}, "data set has changed"),
        ({"world_size": 3}, "began with 4 lanes, which 3 processes cannot share evenly. Launch one of 1, 2, 4"),
        ({"lanes": 2}, "began with 4 lanes, `--lanes` says 2. Leave `--lanes` out"),
        ({"exclude": frozenset(["text 1 x"])}, "what is held out or measured on differs"),
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
    seen = [batch["number"].item() for _, batch in tiny.passes(s)]
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
    numbers = take(stream(n=10, batch_size=64, lanes=1), 1)[0][0]
    assert len(numbers) == 64 and sorted(numbers[:10]) == list(range(10))


def test_files_of_every_kind_stream_exactly(tmp_path):
    with open(tmp_path / "a.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts(3000))
    source = open_source(str(tmp_path / "a.jsonl"))
    s = stream(source, batch_size=50, lanes=1)
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
    s = stream(source, batch_size=60, lanes=1)
    assert sorted(next(iter(s))["number"].tolist()) == list(range(60))
    assert s.counts["samples_bad"] == 0
    if not name.endswith("txt"):  # whose blank lines are no rows
        reads = [source.read(i) for i in range(len(source))]
        assert sum(read.num_empty for read in reads) == 60 and source.num_rows == 120


# -- lanes ------------------------------------------------------------------------------------------------------------


def run(plan, *, lanes=8, rows_a_step=12, n=500, batch_size=None, **kwargs):
    """The rows of each step of a run that goes through `plan`, `(world_size, steps)` after one another.

    Each part of the plan begins from the states that the processes of the part before left.
    """
    steps, states = [], []
    for world_size, number in plan:
        size = batch_size or rows_a_step // world_size
        streams = [
            stream(n=n, batch_size=size, rank=rank, world_size=world_size, lanes=lanes, **kwargs)
            for rank in range(world_size)
        ]
        if states:
            for s in streams:
                s.load_state_dict(*states)
        parts = [take(s, number * rows_a_step // (world_size * size)) for s in streams]
        for step in range(number):
            per_step = rows_a_step // (world_size * size)
            batches = [batch for part in parts for batch in part[step * per_step : (step + 1) * per_step]]
            steps.append(Counter(row for numbers, draws in batches for row in zip(numbers, draws, strict=True)))
        states = json.loads(json.dumps([s.state_dict() for s in streams]))
    return steps, states


@pytest.mark.parametrize(
    "lanes, rows_a_step, batch_size",
    [(8, 16, None), (8, 4, None), (8, 12, None), (8, 20, 1), (4, 4, 1), (12, 4, None)],
)
def test_a_run_goes_on_with_another_number_of_processes(lanes, rows_a_step, batch_size):
    settings = {"lanes": lanes, "rows_a_step": rows_a_step, "batch_size": batch_size}
    alone, _ = run([(1, 60)], **settings)
    assert [step.total() for step in alone] == [rows_a_step] * 60
    for plan in ([(2, 60)], [(4, 60)], [(2, 13), (1, 20), (2, 27)], [(1, 7), (4, 21), (2, 32)]):
        assert run(plan, **settings)[0] == alone


def test_a_pass_over_a_changing_number_of_processes_has_each_sample_once():
    steps, states = run([(2, 11), (1, 9), (4, 50)], n=400)
    first_pass = {int(key) for key in keyed.key(Use.SAMPLE, 0, 0, 0, np.arange(400)).astype(np.int64)}
    assert all(at["pass"] > 0 for state in states for at in state["positions"].values())
    seen = Counter()
    for step in steps:
        seen.update({number: count for (number, draw), count in step.items() if draw in first_pass})
    assert seen == Counter(range(400))


def test_counts_survive_another_number_of_processes():
    _, states = run([(4, 10)])
    for plan in ([2], [1], [4]):
        streams = [stream(n=500, batch_size=12 // plan[0], rank=rank, world_size=plan[0]) for rank in range(plan[0])]
        for s in streams:
            s.load_state_dict(*states)
        assert streams[0].run_counts["rows"] == streams[0].run_counts["units"] == 120
        total = sum(state["counts"]["samples_read"] for state in states)
        before = streams[0].counts_before["samples_read"]
        assert before + sum(s.counts["samples_read"] for s in streams) == total
        take(streams[0], 5)
        assert streams[0].run_counts["rows"] == 180


def test_rows_come_from_the_lanes_in_turn():
    s = stream(batch_size=3, lanes=4)
    blocks = [[str(n) for n in s.make(0, lane).rows.columns["number"]] for lane in range(4)]
    numbers = [str(number) for batch in take(s, 8) for number in batch[0]]
    assert numbers == [blocks[i % 4][i // 4] for i in range(24)]


def test_all_lanes_have_equally_many_blocks_and_a_pass_is_all_of_them():
    for n, lanes in ((500, 8), (333, 3), (90, 4), (40, 8)):
        s = stream(n=n, lanes=lanes)
        units = [unit for block in range(s.lanes * s.blocks_per_lane) for unit in s._units(0, block)]
        assert len(units) == len(set(units)) == len(s.source) * s.plan["shares"]


@pytest.mark.parametrize("world_size, lanes", [(1, 8), (2, 8), (3, 9), (5, 10), (8, 8), (16, 16)])
def test_the_default_number_of_lanes(world_size, lanes):
    source = MemorySource(texts(4000), name="memory", piece_bytes=400)
    assert stream(source, world_size=world_size).lanes == lanes
    # a small source has fewer, one for each process at least
    assert stream(MemorySource(texts(20), name="memory"), world_size=world_size).lanes == world_size


def test_lanes_have_to_fit_the_processes_and_the_state_decides():
    with pytest.raises(DataError, match="`--lanes` must be a multiple of the number of processes, 2, got 3"):
        stream(lanes=3, world_size=2)
    s = stream(lanes=4, block_bytes=1000)
    take(s, 5)
    again = stream(lanes=None, block_bytes=3000)
    again.load_state_dict(s.state_dict())
    assert again.plan == s.plan and take(again, 5) == take(s, 5)


def test_states_that_are_missing_or_old_are_refused():
    _, states = run([(4, 2)])
    with pytest.raises(DataError, match="of 4 processes, 1 left one.*states of all are needed"):
        stream(batch_size=6, rank=1, world_size=2).load_state_dict(states[0])
    own = stream(batch_size=3, rank=1, world_size=4)
    own.load_state_dict(states[1])  # the number is the same
    assert own.turn == 24
    old = {"position": {"pass": 0, "block": 0, "row": 0}, "counts": {}, "layout": {}}
    with pytest.raises(DataError, match=r"another version of hfssl \(1, this one reads 2\)"):
        stream().load_state_dict(old)


def test_blocks_are_made_only_when_they_are_needed():
    made = []

    class Watching(ExactStream):
        def make(self, pass_index, block):
            made.append(block)
            return super().make(pass_index, block)

    source = MemorySource(texts(800), name="memory", piece_bytes=400)
    s = Watching(source, as_rows, as_tensors, 3, lanes=8, block_bytes=2000)
    batches = iter(s)
    next(batches)
    assert made == [0, 1, 2]
    next(batches)
    assert made == [0, 1, 2, 3, 4, 5]
    for _ in range(6):
        next(batches)
    assert made == list(range(8))


def test_blocks_may_be_sized_by_what_their_samples_cost():
    source = MemorySource(texts(800), name="memory", piece_bytes=400)
    s = stream(source, block_cost=10.0, piece_cost=2.5, lanes=1)
    assert len(s._units(0, 0)) == 4


# -- batches by cost --------------------------------------------------------------------------------------------------


def of_many_lengths(block: Block) -> Rows:
    texts = next(iter(block.columns.values()))
    number = np.array([int(text.split()[1]) for text in texts], dtype=np.int64)
    lengths = 1 + number % 97
    rows = [np.full(length, n) for length, n in zip(lengths, number, strict=True)]
    return Rows({"number": number, "tokens": rows}, lengths, places=block.places)


def cost_stream(n=1500, batch_cost=200, **kwargs):
    source = MemorySource(texts(n), name="memory", piece_bytes=400)
    return ExactStream(source, of_many_lengths, dict, 1, batch_cost=batch_cost, **{"block_bytes": 4000, **kwargs})


def take_costs(s, number):
    return [batch["number"].tolist() for batch in itertools.islice(iter(s), number)]


def test_batches_of_equal_cost():
    s = cost_stream(with_places=True)
    lengths, first_pass = [], []
    for batch in itertools.islice(iter(s), 300):
        own = [len(tokens) for tokens in batch["tokens"]]
        assert max(own) * len(own) <= 200 and batch["places"][:, 2].tolist() == batch["number"].tolist()
        assert own == [1 + n % 97 for n in batch["number"]]
        lengths.append(own)
        first_pass += batch["number"].tolist()
    assert s.counts["units"] == sum(map(sum, lengths)) and s.counts["rows"] == sum(map(len, lengths))
    assert s.counts["batches"] == s.turn == 300
    # long and short batches are mixed
    longest = [max(own) for own in lengths[:60]]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_batches_of_equal_cost_have_each_sample_once_a_pass():
    s, seen, lanes = cost_stream(lanes=2), Counter(), [0, 1]
    for batch in s:
        lane = (s.turn - 1) % 2
        if s.positions[lane]["pass"] == 0:
            seen.update(batch["number"].tolist())
        if all(s.positions[lane]["pass"] > 0 for lane in lanes):
            break
    assert seen == Counter(range(1500))


def test_batches_of_equal_cost_resume_with_another_number_of_processes():
    alone = take_costs(cost_stream(lanes=4), 60)
    s = cost_stream(lanes=4, num_workers=2)
    assert take_costs(s, 21) == alone[:21]
    both = [cost_stream(rank=rank, world_size=2) for rank in range(2)]
    for half in both:
        half.load_state_dict(json.loads(json.dumps(s.state_dict())))
    # turn 21 is an odd lane's, and so that of process 1
    expected = [alone[22::2], alone[21::2]]
    assert [take_costs(half, 19) for half in both] == [part[:19] for part in expected]


def test_the_fewest_batches_that_waste_little():
    """Against all ways to cut a few rows, padded and cut: no fewer batches would do, and none of as many wastes less."""
    generator = np.random.default_rng(0)
    for _ in range(40):
        costs = np.sort(generator.integers(1, 30, generator.integers(1, 9)))[::-1]
        most, is_cut = float(generator.choice([1.0, 0.2, 0.05, 0.0])), bool(generator.integers(2))

        def wasted(edges, costs=costs, is_cut=is_cut):
            batches = [costs[begin:end] for begin, end in itertools.pairwise(edges)]
            if any(batch[0] * len(batch) > 60 for batch in batches):
                return np.inf
            return sum(abs((batch.min() if is_cut else batch.max()) * len(batch) - batch.sum()) for batch in batches)

        ways = [
            [0, *inner, len(costs)]
            for number in range(len(costs))
            for inner in itertools.combinations(range(1, len(costs)), number)
        ]
        allowed = [edges for edges in ways if wasted(edges) <= most * costs.sum()]
        fewest = min(map(len, allowed))
        found = fewest_batches(costs, 60, most, is_cut)
        assert len(found) == fewest
        assert wasted(found) == min(wasted(edges) for edges in allowed if len(edges) == fewest)
    assert fewest_batches(np.zeros(0, np.int64), 60) == [0]


def test_of_many_short_rows_few_ways_are_compared(monkeypatch):
    """A block of texts has ten thousands of rows, of which a batch holds hundreds."""
    costs = np.sort(np.random.default_rng(0).integers(5, 128, 5000))[::-1]
    begins, find = [], np.flatnonzero
    monkeypatch.setattr(np, "flatnonzero", lambda values: begins.append(find(values)) or begins[-1])
    edges, greedy = fewest_batches(costs, 8192), [0]
    while greedy[-1] < len(costs):
        greedy.append(min(greedy[-1] + 8192 // int(costs[greedy[-1]]), len(costs)))
    wasted = [sum(costs[a] * (b - a) for a, b in itertools.pairwise(each)) - costs.sum() for each in (edges, greedy)]
    assert len(edges) == len(greedy) and wasted[0] <= wasted[1]
    assert sum(map(len, begins)) <= len(costs)


@pytest.mark.parametrize("is_cut", [False, True])
def test_batches_of_very_different_lengths_are_full_and_pad_little(is_cut):
    """Lengths as of recorded sentences, of which the longest are twenty times the shortest."""
    lengths = np.clip(100 * np.exp(0.6 * np.random.default_rng(0).standard_normal(4000)), 40, 1100).astype(np.int64)

    def to_rows(block):
        own = lengths[[int(text.split()[1]) for text in block.columns["text"]]]
        return Rows({"lengths": own}, own, most_waste=0.05, is_cut=is_cut)

    source = MemorySource(texts(4000), name="memory", piece_bytes=400)
    s = ExactStream(
        source, to_rows, dict, 1, batch_cost=3200, block_cost=16 * 3200, piece_cost=lengths.sum() / len(source)
    )
    batches = [batch["lengths"] for batch in itertools.islice(iter(s), 150)]
    sound = np.array([batch.sum() for batch in batches])
    slots = np.array([(batch.min() if is_cut else batch.max()) * len(batch) for batch in batches])
    assert sound.mean() >= 0.8 * 3200
    assert abs(slots.sum() - sound.sum()) < 0.05 * max(sound.sum(), slots.sum())


def test_a_state_of_batches_that_were_made_otherwise_is_refused():
    state = cost_stream().state_dict()
    del state["layout"]["batching"]
    with pytest.raises(DataError, match="puts other rows together in a batch.*None then, 2 now"):
        cost_stream().load_state_dict(state)


def test_a_row_that_costs_more_than_a_batch_is_refused():
    with pytest.raises(DataError, match="A row costs 97, more than the 50 of a whole batch"):
        take_costs(cost_stream(batch_cost=50), 200)


@pytest.mark.parametrize("num_units, lanes, turns", [(10, 4, 1), (12, 4, 2), (30, 8, 3), (100, 8, 7), (8, 8, 1)])
def test_no_lane_gets_ahead_of_another(num_units, lanes, turns):
    """Each unit comes once in a pass, and after any turn of any pass all lanes have had as many, but for one."""
    had = np.zeros(lanes, int)
    for pass_index in range(2 * lanes):
        seen = np.zeros(num_units, int)
        for turn in range(turns):
            for lane in range(lanes):
                units = dealt(num_units, turn, lane, lanes, turns, pass_index)
                seen[units] += 1
                had[lane] += units.stop - units.start
            assert had.max() - had.min() <= 1
        assert (seen == 1).all()


def test_a_checkpoint_without_a_state_is_refused():
    with pytest.raises(DataError, match="holds no state of a stream"):
        tiny.stream().load_state_dict()
