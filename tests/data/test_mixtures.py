"""Mixtures: stated shares, each source on its own round, and as exact as a single source."""

import itertools
import json
import logging
import pickle
from collections import Counter

import numpy as np
import pytest
import tiny
import torch

from hfssl.cli.text.data import TextData, TextDataArguments
from hfssl.data.mixtures import Mixture, MixtureStream, open_mixture, parse_mixture, parts_of, stream_class
from hfssl.data.sources import DataError, MemorySource
from hfssl.data.stream import Block, ExactStream, Rows
from hfssl.errors import UserError
from hfssl.evaluation.masked_tokens import MaskedTokenEvaluator


# -- what the user types
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed, named",
    [
        (None, [(None, None)]),
        ("org/name", [("org/name", None)]),
        ("a:0.7,b:0.3", [("a", 0.7), ("b", 0.3)]),
        (" a : 7 , org/b:3e1", [("a", 7.0), ("org/b", 30.0)]),
        ("a,b,c", [("a", None), ("b", None), ("c", None)]),
        ("hf://datasets/o/a/*.parquet:2,s3://b/x:.5", [("hf://datasets/o/a/*.parquet", 2.0), ("s3://b/x", 0.5)]),
        ("hf://datasets/org/a", [("hf://datasets/org/a", None)]),
        ("texts/[a,b]*.txt:1,texts/{c,d}.txt:1", [("texts/[a,b]*.txt", 1.0), ("texts/{c,d}.txt", 1.0)]),
        ("C:\\texts,D:\\more", [("C:\\texts", None), ("D:\\more", None)]),
    ],
)  # fmt: skip
def test_names_and_weights(typed, named):
    assert parse_mixture(typed) == named


def test_files_whose_names_hold_commas_and_colons(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.txt", "c:2", "d,e:3.txt", "b.txt"):
        (tmp_path / name).write_text("some text\n")
    assert parse_mixture("a,b.txt") == [("a,b.txt", None)]
    assert parse_mixture("c:2") == [("c:2", None)]
    assert parse_mixture("a,b.txt:0.25,c:2:0.75") == [("a,b.txt", 0.25), ("c:2", 0.75)]
    assert parse_mixture("b.txt,d,e:3.txt,c:2") == [("b.txt", None), ("d,e:3.txt", None), ("c:2", None)]


@pytest.mark.parametrize(
    "typed, words",
    [
        ("a:0.7,b", "gives 'b' no weight.*a:0.7,b:0.3"),
        ("a:0,b:1", "weight of 'a' must be a number above 0, got 0"),
        ("a:1,b:-0.5", "weight of 'b' must be a number above 0, got -0.5"),
        ("a:nan,b:1", "weight of 'a' .* got nan"),
        ("a:1,b:", "weight of 'b' must be a number above 0, got ''"),
        ("a:1,,b:1", "names an empty data set"),
        ("a,b,", "names an empty data set"),
        (":0.5,b:0.5", "names an empty data set"),
        ("a:1,b:1,a:2", "names 'a' twice"),
    ],
)
def test_what_cannot_be_read_is_explained(typed, words):
    with pytest.raises(DataError, match=words):
        parse_mixture(typed)


def test_a_weight_that_is_no_number(tmp_path):
    (tmp_path / "a.txt").write_text("text\n")
    with pytest.raises(DataError, match="weight of .*a.txt' must be a number above 0, got 'half'"):
        parse_mixture(f"{tmp_path}/a.txt:half,b:0.5")


# -- the stream
# --------------------------------------------------------------------------------------------------------


def texts(source, n, length=40):
    return [f"{source} {i} ".ljust(length, "x") for i in range(n)]


def as_rows(block: Block) -> Rows:
    """One row a text: its source, its number, a number drawn from its key."""
    words = [text.split()[:2] for text in block.columns["text"]]
    columns = {
        "source": np.array(["abc".index(word) for word, _ in words], dtype=np.int64),
        "number": np.array([int(number) for _, number in words], dtype=np.int64),
        "draw": block.keys.astype(np.int64),
    }
    return Rows(columns, np.ones(len(words), np.int64), places=block.places)


def as_tensors(columns):
    return {name: torch.from_numpy(values) for name, values in columns.items()}


def mixture(sizes=(600, 60), weights=(0.75, 0.25), piece_bytes=400, lengths=(40, 40, 40)):
    sources = [
        MemorySource(texts("abc"[i], n, lengths[i]), name=f"{'abc'[i]}.txt", piece_bytes=piece_bytes)
        for i, n in enumerate(sizes)
    ]
    return Mixture([f"data/{'abc'[i]}" for i in range(len(sizes))], sources, weights)


def stream(source=None, batch_size=8, **kwargs):
    source = source or mixture()
    return stream_class(source)(source, as_rows, as_tensors, batch_size, **{"block_bytes": 4000, **kwargs})


def take(stream, num_batches):
    batches = itertools.islice(iter(stream), num_batches)
    return [list(zip(*(b[name].tolist() for name in ("source", "number", "draw")), strict=True)) for b in batches]


def test_each_block_holds_the_shares():
    # pieces of 10 texts of 40 bytes; a block of 4,000 bytes: 7.5 pieces of a and 2.5 of b
    s = stream()
    assert s.quotas == [int(7.5 * 2**20), int(2.5 * 2**20)]
    counts = np.array([np.bincount([s.source.pieces[p, 0] for _, p, _ in s._units(0, b)]) for b in range(100)])
    assert set(counts[:, 0]) == {7, 8} and set(counts[:, 1]) == {2, 3}
    assert counts.sum(0).tolist() == [750, 250]
    # so do batches, on average, from the first on
    seen = Counter(source for batch in take(s, 250) for source, _, _ in batch)
    assert seen[0] / seen.total() == pytest.approx(0.75, abs=0.02)


def test_shares_are_of_text_not_of_documents():
    # documents of a are five times as long: a fifth of the documents for the same text
    s = stream(mixture(sizes=(200, 1000), weights=(1, 1), lengths=(200, 40), piece_bytes=1000), block_bytes=20_000)
    seen = Counter(source for batch in take(s, 500) for source, _, _ in batch)
    assert seen[1] / seen[0] == pytest.approx(5.0, rel=0.1)


def test_files_may_hold_more_than_their_text(tmp_path):
    for name, ballast in (("a", "y" * 200), ("b", "")):
        with open(tmp_path / f"{name}.jsonl", "w") as file:
            file.writelines(json.dumps({"text": text, "id": ballast}) + "\n" for text in texts(name, 500))
    source = open_mixture(f"{tmp_path}/a.jsonl:1,{tmp_path}/b.jsonl:1", column="text")
    s = stream(source, block_bytes=100_000)
    seen = Counter(source for batch in take(s, 400) for source, _, _ in batch)
    assert seen[0] / seen.total() == pytest.approx(0.5, abs=0.05)


def rows_of_blocks(number, world_size=1, lanes=1):
    """How often each sample comes in the first blocks of all lanes."""
    seen = Counter()
    for rank in range(world_size):
        s = stream(batch_size=1, rank=rank, world_size=world_size, lanes=lanes)
        for batch in s:
            lane = s.own_lanes[(s.counts["batches"] - 1) % len(s.own_lanes)]
            if s.positions[lane]["block"] < number // lanes:
                seen[batch["source"].item(), batch["number"].item()] += 1
            if all(at["block"] >= number // lanes for at in s.positions.values()):
                break
    return seen


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_source_goes_round_on_its_own(world_size):
    seen = rows_of_blocks(24, world_size, lanes=2 * world_size)
    a = [seen[0, i] for i in range(600)]
    b = [seen[1, i] for i in range(60)]
    # 24 blocks hold 180 pieces of a, which has 60, and 60 of b, which has 6: whole passes, each sample once in each
    assert set(a) == {3} and set(b) == {10}


def test_between_passes_no_sample_is_ahead_by_more_than_one():
    seen = rows_of_blocks(5)
    a, b = ([seen[i, j] for j in range(n)] for i, n in enumerate((600, 60)))
    assert set(a) == {0, 1}  # 37 or 38 of 60 pieces
    assert set(b) == {2} or set(b) == {2, 3}  # 12 or 13 of 6 pieces


def test_each_pass_of_a_small_source_has_a_new_order_and_new_draws():
    rows = [row for batch in take(stream(mixture(sizes=(600, 10))), 200) for row in batch]
    draws = Counter(draw for _, _, draw in rows)
    assert max(draws.values()) == 1
    assert len({draw for source, number, draw in rows if (source, number) == (1, 3)}) > 10


def test_a_source_of_a_small_share_comes_in_some_blocks_only():
    # its pieces of 400 bytes are 10 times its share of 40 bytes a block; blocks grow to four times the size for it
    s = stream(mixture(weights=(0.99, 0.01)))
    assert s.quotas == [round(39.6 * 2**20), round(0.4 * 2**20)]
    per_block = [sum(p >= 60 for _, p, _ in s._units(0, b)) for b in range(50)]
    assert sum(per_block) == 20 and set(per_block) == {0, 1}


def test_large_pieces_give_at_least_one_a_block():
    s = stream(mixture(piece_bytes=10**6), block_bytes=100)
    assert sum(s.quotas) >= 2**20
    assert take(s, 5)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_number_of_workers_changes_nothing(num_workers):
    assert take(stream(num_workers=num_workers), 60) == take(stream(), 60)


@pytest.mark.parametrize("stop", [0, 1, 11, 12, 13, 40, 101])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_is_exact_at_any_batch(stop, num_workers):
    whole = take(stream(), stop + 25)
    s = stream(num_workers=num_workers)
    assert take(s, stop) == whole[:stop]
    state = json.loads(json.dumps(s.state_dict()))
    again = stream()
    again.load_state_dict(state)
    assert take(again, 25) == whole[stop:]
    whole_stream = stream()
    take(whole_stream, stop + 25)
    assert again.state_dict() == whole_stream.state_dict() and again.passes == whole_stream.passes


def test_a_run_goes_on_with_another_number_of_processes():
    def step(streams):
        return Counter(row for s in streams for batch in take(s, 1) for row in batch)

    alone = stream(batch_size=12)
    steps = [step([alone]) for _ in range(40)]
    seen, streams = [], None
    for world_size, number in ((2, 9), (1, 8), (4, 23)):
        states = [s.state_dict() for s in streams] if streams else []
        streams = [stream(batch_size=12 // world_size, rank=r, world_size=world_size) for r in range(world_size)]
        for s in streams:
            if states:
                s.load_state_dict(*states)
        seen += [step(streams) for _ in range(number)]
    assert seen == steps


def test_far_into_the_stream_a_resume_costs_one_block():
    class Counting(MemorySource):
        reads = 0

        def read(self, index):
            Counting.reads += 1
            return super().read(index)

    sources = [Counting(texts(name, n), name=name, piece_bytes=400) for name, n in (("a", 600), ("b", 60))]
    s = stream(Mixture("ab", sources, (3, 1)), lanes=1)
    state = s.state_dict() | {"positions": {"0": {"pass": 0, "block": 10**9, "row": 17}}}
    s.load_state_dict(state)
    Counting.reads = 0
    take(s, 1)
    assert Counting.reads <= 22
    assert s.passes["b"] == pytest.approx(2.5 * 10**9 / 6, rel=1e-6)


def test_a_place_names_the_source_and_its_own_file():
    s = stream(with_places=True, batch_size=1)
    seen = {tuple(b["places"][0].tolist()): (b["source"].item(), b["number"].item()) for b in itertools.islice(s, 900)}
    assert all(place == (source, 0, number, 0) for place, (source, number) in seen.items())
    assert {place[0] for place in seen} == {0, 1} and len(seen) == len(set(seen.values()))


def test_a_stream_pickles():
    s = pickle.loads(pickle.dumps(stream()))
    assert take(s, 3) == take(stream(), 3)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"source": mixture(weights=(0.5, 0.5))}, "shares of the mixture differ.*0.75, 0.25.* then, .*0.5, 0.5.* now"),
        ({"source": mixture(sizes=(600, 61))}, "data set has changed"),
        ({"seed": 1}, "seed differs"),
        ({"world_size": 3}, "began with 8 lanes, which 3 processes cannot share"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(changed, words):
    with pytest.raises(DataError, match=words):
        stream(**changed).load_state_dict(stream().state_dict())


def test_without_weights_the_sources_are_read_as_one():
    source = mixture(sizes=(300, 100), weights=None)
    assert [part.share for part in parts_of(source)] == pytest.approx([0.75, 0.25])
    s = stream(source, batch_size=1)
    assert type(s) is ExactStream and not isinstance(s, MixtureStream)
    seen = Counter((batch["source"].item(), batch["number"].item()) for _, batch in tiny.passes(s))
    assert len(seen) == 400 and set(seen.values()) == {1}


def test_the_log_names_each_pass_that_begins(caplog):
    caplog.set_level(logging.INFO)
    take(stream(lanes=1), 120)
    # 120 batches of 8 are 9.6 blocks: 72 pieces of a and 24 of b
    begun = [record.message for record in caplog.records if "begins" in record.message]
    assert sorted(begun) == ["Pass 2 over a begins.", "Pass 2 over b begins.", "Pass 4 over b begins."]


def test_nothing_left_of_any_source_is_an_error_not_an_endless_loop():
    out = frozenset(texts("a", 600) + texts("b", 60))
    with pytest.raises(DataError, match="gave no row to train on"):
        take(stream(exclude=out), 1)
    # one source without any text left does not stop the others
    assert {source for source, _, _ in take(stream(exclude=frozenset(texts("b", 60))), 1)[0]} == {0}


def test_columns_may_differ_and_damage_is_named_with_its_source(tmp_path, caplog):
    with open(tmp_path / "a.jsonl", "w") as file:
        file.writelines(json.dumps({"content": text}) + "\n" for text in texts("a", 300))
    with open(tmp_path / "b.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in [None, *texts("b", 300)])
    source = open_mixture(f"{tmp_path}/a.jsonl:0.5,{tmp_path}/b.jsonl:0.5")
    take(stream(source, block_bytes=50_000), 20)
    assert "b.jsonl: b.jsonl" in caplog.text and "null" in caplog.text
    assert source.description.startswith("mixture of 50.0% a.jsonl (12.0 kB of text; 1 ")


def test_missing_parts_and_configurations_are_explained(tmp_path):
    (tmp_path / "a.txt").write_text("text\n")
    (tmp_path / "c.txt").write_text("text\n")
    with pytest.raises(DataError, match="gives '.*c.txt' no weight, but others one"):
        open_mixture(f"{tmp_path}/a.txt:1,{tmp_path}/c.txt")
    with pytest.raises(DataError, match="no_such_folder"):
        open_mixture(f"{tmp_path}/a.txt:1,{tmp_path}/no_such_folder/b.txt:1")
    with pytest.raises(DataError, match="--dataset_config en` cannot hold for each"):
        open_mixture(f"{tmp_path}/a.txt,{tmp_path}/b.txt", config="en")
    assert open_mixture(f"{tmp_path}/a.txt:1").num_rows == 1


# -- with everything around it
# -----------------------------------------------------------------------------------------


@pytest.fixture
def two_files(tmp_path):
    for name, n, seed in (("large", 1500, 1), ("small", 300, 2)):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {text}" for text in tiny.texts(n, seed)))
    return tmp_path


def text_data(folder, **arguments):
    dataset = f"{folder}/large.txt:0.25,{folder}/small.txt:0.75"
    return TextData(TextDataArguments(**{"dataset": dataset, "max_length": 32, "vocab_size": 150, **arguments}))


def test_every_source_gives_held_out_texts(two_files):
    data = text_data(two_files, max_held_out=200)
    assert set(data.held_out_of) == {"large.txt", "small.txt"}
    assert all(text.startswith("large") for text in data.held_out_of["large.txt"])
    assert 20 < len(data.held_out_of["large.txt"]) <= 100 and 10 < len(data.held_out_of["small.txt"]) <= 150
    assert set(data.held_out) == data.exclude == set().union(*data.held_out_of.values())
    sample = data.training_sample(20_000)
    assert data.exclude.isdisjoint(sample)
    share = sum(len(text) for text in sample if text.startswith("small")) / sum(map(len, sample))
    assert share == pytest.approx(0.75, abs=0.05)


def test_the_held_out_loss_of_each_source(two_files):
    data = text_data(two_files)
    options = {"max_length": 32, "training_texts": data.training_sample()}
    together = MaskedTokenEvaluator(data.held_out_of, data.tokenizer, **options)
    model = tiny.mlm().eval()
    model.encoder.resize_token_embeddings(len(data.tokenizer))
    measured = together.measure(model)
    alone = {name: MaskedTokenEvaluator(texts, data.tokenizer, **options) for name, texts in data.held_out_of.items()}
    masked = [len(evaluator.labels) for evaluator in alone.values()]
    losses = [evaluator.measure(model)["loss"] for evaluator in alone.values()]
    assert [measured["loss_large.txt"], measured["loss_small.txt"]] == pytest.approx(losses, rel=1e-5)
    assert measured["loss"] == pytest.approx(np.average(losses, weights=masked), rel=1e-5)
    assert list(together.metrics) == list(measured)
    assert [r.metric for r in together.results(measured, "m", before=measured)] == list(together.metrics)
    assert "loss_" not in " ".join(alone["large.txt"].metrics)


def test_a_resumed_run_on_a_mixture_ends_with_the_same_weights(two_files, tmp_path):
    from transformers import TrainerCallback

    from hfssl import SSLTrainer, SSLTrainingArguments

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    data = text_data(two_files, tokenizer=None)

    def trainer(folder, seed=0, **kwargs):
        args = SSLTrainingArguments(
            str(tmp_path / folder), max_steps=8, per_device_train_batch_size=16, learning_rate=1e-2, precision="fp32",
            report_to="none", eval_strategy="no", save_steps=3, disable_tqdm=True,
        )  # fmt: skip
        model = tiny.mlm(dropout=0.1, seed=seed)
        model.encoder.resize_token_embeddings(len(data.tokenizer))
        return SSLTrainer(model, args, data.stream(args, model.config.masking), settings=data.settings, **kwargs)

    whole = trainer("whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer("cut", callbacks=[Stop()]).train()
    again = trainer("cut", seed=9)
    again.train()
    assert again.resumed_from.name == "checkpoint-3"
    assert again.stream.state_dict() == whole.stream.state_dict()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    # another mixture is another run
    data.arguments.dataset = data.arguments.dataset.replace("0.25", "0.5")
    with pytest.raises(UserError, match="dataset was .*0.25.* is .*0.5"):
        trainer("cut").train()
