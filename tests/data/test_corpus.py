"""A pass over the corpus: each sample once and in order, whatever happens on the way; results read back by place."""

import json
import logging
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hfssl.data.corpus import CorpusPass, CorpusResults, ResultRows, deal
from hfssl.data.corpus import run as corpus_run
from hfssl.data.corpus.columns import place_keys, to_arrow, to_numpy
from hfssl.data.corpus.results import part_path
from hfssl.data.mixtures import Mixture
from hfssl.data.sources import DataError, MemorySource, open_source
from hfssl.data.sources.base import Damage


TEXTS = [f"{i} " + "word " * (i % 7 + 1) for i in range(700)]


def source(texts=TEXTS, name="memory"):
    return MemorySource(list(texts), name=name, piece_bytes=300)


def number_and_units(texts):
    """A vector of fixed length, and as many labels as the text has words."""
    numbers = [int(text.split()[0]) for text in texts]
    units = [
        np.arange(number, number + len(text.split()), dtype=np.int16)
        for number, text in zip(numbers, texts, strict=True)
    ]
    return ResultRows({"vector": np.array([[n, -n, n / 2] for n in numbers], np.float32), "units": units})


def begin(folder, data=None, function=number_and_units, **options):
    options = {"identity": {"model": "a", "layer": 3}, "batch_size": 16, **options}
    return CorpusPass(data or source(), function, folder, **options)


def run(corpus, ranks=1):
    missing = corpus.missing()
    for rank in range(ranks):
        corpus.run(deal(missing, rank, ranks))
    return corpus.results()


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_sample_once_and_in_order_with_its_place(tmp_path):
    seen = []

    def function(texts):
        seen.extend(texts)
        return number_and_units(texts)

    results = run(begin(tmp_path, function=function))
    assert seen == TEXTS
    assert len(results) == results.num_read == 700 and results.num_bad == 0
    assert results.places[:, 2].tolist() == list(range(700)) and not results.places[:, [0, 1, 3]].any()
    np.testing.assert_array_equal(results.to_numpy("vector")[:, 0], np.arange(700))
    for number, (text, units) in enumerate(zip(TEXTS, results.to_numpy("units"), strict=True)):
        assert units.dtype == np.int16 and units.tolist() == list(range(number, number + len(text.split())))
    rows = [row for _, columns in results for row in columns["vector"][:, 0]]
    assert rows == list(range(700))


def test_three_ranks_write_each_part_once_and_the_same_files_as_one(tmp_path):
    run(begin(tmp_path / "one"))
    corpus = begin(tmp_path / "three")
    missing = corpus.missing()
    shares = [deal(missing, rank, 3) for rank in range(3)]
    assert sum(shares, []) == missing and min(map(len, shares)) > 1
    for rank in (2, 0, 1):
        before = set(files(tmp_path / "three"))
        begin(tmp_path / "three").run(shares[rank])
        new = {part_path(tmp_path, part).name for part in shares[rank]}
        assert set(files(tmp_path / "three")) - before == new
    assert files(tmp_path / "one") == files(tmp_path / "three")


def test_files_are_few(tmp_path):
    for rows, piece_bytes in ((1_000_000, 50), (1_000_000, 100_000), (40_000_000, 200)):
        fake = source()
        fake.num_rows = rows
        fake.piece_bytes = np.full(rows // 8, 8 * piece_bytes)
        fake.pieces = np.zeros((rows // 8, 4), np.int64)
        parts = corpus_run._cut(fake, 0)
        assert parts[0][1] == 0 and parts[-1][2] == rows // 8 and 900 < len(parts) <= 4096
        assert all(
            before[2] == after[1] and after[1] < after[2] for before, after in zip(parts, parts[1:], strict=False)
        )


def test_goes_on_after_a_failure_and_after_half_written_files(tmp_path, caplog):
    whole = run(begin(tmp_path / "whole"))
    calls = []

    def fails(texts):
        calls.append(texts)
        if len(calls) == 20:
            raise RuntimeError("out of memory")
        return number_and_units(texts)

    folder = tmp_path / "parts"
    with pytest.raises(RuntimeError, match="out of memory"):
        run(begin(folder, function=fails))
    done = [name for name in files(folder) if name.startswith("part")]
    assert 0 < len(done) < len(list((tmp_path / "whole").iterdir())) - 1 and len(whole) == 700
    with pytest.raises(DataError, match=r"of the \d+ parts of .* are missing.*same command again"):
        CorpusResults(folder)
    # what a kill leaves, and what a broken disk does
    (folder / f".part-{len(done):05d}.arrow.0123abcd.tmp").write_bytes(b"ARROW1")
    first = folder / done[0]
    first.write_bytes(first.read_bytes()[:-100])
    kept = {name: os.stat(folder / name).st_mtime_ns for name in done[1:]}

    corpus = begin(folder)
    assert 0 in corpus.missing() and f"{done[0]} is damaged and is made again" in caplog.text
    run(corpus, ranks=2)
    assert {name: os.stat(folder / name).st_mtime_ns for name in done[1:]} == kept
    assert files(folder) == files(tmp_path / "whole")


def test_nothing_is_read_for_what_is_finished(tmp_path, monkeypatch):
    run(begin(tmp_path))
    monkeypatch.setattr(MemorySource, "read", lambda self, index: pytest.fail("read again"))
    assert len(run(begin(tmp_path))) == 700


def test_results_by_place_come_with_one_read_a_block(tmp_path, monkeypatch):
    results = run(begin(tmp_path))
    places, vectors, units = results.places, results.to_numpy("vector"), results.to_numpy("units")
    read = []
    original = CorpusResults._read_block
    monkeypatch.setattr(CorpusResults, "_read_block", lambda self, block: read.append(block) or original(self, block))
    wanted = np.concatenate([np.random.default_rng(0).permutation(700), [5, 5, 699, 0]])
    found = results.read(places[wanted])
    assert len(read) == len(set(read)) == len(results._blocks)
    np.testing.assert_array_equal(found["vector"], vectors[wanted])
    assert found["vector"].dtype == np.float32
    assert all(np.array_equal(row, units[i]) for row, i in zip(found["units"], wanted, strict=True))
    read.clear()
    results.read(places[:3])
    assert read == [0]
    nothing = results.read(places[:0])
    assert nothing["vector"].shape == (0, 3) and nothing["units"] == []


def test_a_place_without_result_is_named(tmp_path):
    results = run(begin(tmp_path))
    for place in ([0, 0, 700, 0], [0, 0, 3, 1], [1, 0, 0, 0], [0, 1, 0, 0]):
        with pytest.raises(DataError, match=f"source {place[0]}, file {place[1]}, row {place[2]}, window {place[3]}"):
            results.read(np.array([[0, 0, 0, 0], place]))
    with pytest.raises(ValueError, match=r"shape \(num_places, 4\)"):
        results.read(np.zeros((2, 3), int))


@pytest.mark.parametrize(
    "rows",
    [
        np.arange(5),
        np.array([True, False, True, True]),
        np.arange(24, dtype=np.float16).reshape(4, 3, 2),
        np.arange(4, dtype=">i4"),
        [np.arange(n, dtype=np.uint8) for n in (3, 0, 2)],
        [np.ones((n, 2, 3), bool) for n in (0, 0, 1)],
        [np.arange(2 * n, dtype=np.float64).reshape(n, 2) for n in (1, 1)],
    ],
)
def test_columns_survive_arrow(rows):
    for part in (slice(None), slice(1, 3)):
        back = to_numpy(to_arrow("x", rows)[part])
        assert type(back) is type(rows) and len(back) == len(rows[part])
        for one, other in zip(back, rows[part], strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype.newbyteorder("=") == other.dtype.newbyteorder("=") and one.shape == other.shape


@pytest.mark.parametrize(
    "rows", [[np.zeros(2), np.zeros(2, int)], [1, 2], np.array(["a"]), np.zeros((2, 0)), np.zeros(2, complex)]
)
def test_columns_that_cannot_be_kept_are_refused(rows):
    with pytest.raises(ValueError, match="olumn 'x'"):
        to_arrow("x", rows)


def test_keys_are_ordered_as_places_are():
    places = np.random.default_rng(0).integers(0, 3, (500, 4)) * np.array([1, 200, 2**33, 1])
    order = np.lexsort(places.T[::-1])
    np.testing.assert_array_equal(places[np.argsort(place_keys(places), kind="stable")], places[order])


def test_a_sample_may_give_several_windows(tmp_path):
    def windows(texts):
        counts = np.array([len(text.split()) for text in texts])
        return ResultRows({"word": np.concatenate([np.arange(count) for count in counts])}, counts)

    results = run(begin(tmp_path, function=windows))
    assert len(results) == sum(len(text.split()) for text in TEXTS) and results.num_read == 700
    np.testing.assert_array_equal(results.to_numpy("word"), results.places[:, 3])
    assert results.read(np.array([[0, 0, 6, 2], [0, 0, 0, 1]]))["word"].tolist() == [2, 1]


def prepared(text):
    return Damage("it is bad") if text.startswith(("13 ", "14 ", "600 ")) else text


def test_samples_may_be_prepared_several_at_once(tmp_path):
    sizes = []

    def prepared_together(texts):
        sizes.append(len(texts))
        return [prepared(text) for text in texts]

    together = run(begin(tmp_path / "together", prepare_many=prepared_together, max_bad_fraction=0.1))
    alone = run(begin(tmp_path / "alone", prepare=prepared, max_bad_fraction=0.1))
    assert sum(sizes) == 700 and max(sizes) > 1 and together.num_bad == alone.num_bad == 3
    assert together.to_table().equals(alone.to_table())


def test_damaged_samples_are_left_out_counted_and_named_once_a_file(tmp_path, caplog):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, texts in (("a.jsonl", TEXTS[:500]), ("b.jsonl", TEXTS[500:])):
        lines = [json.dumps({"text": text}) for text in texts]
        lines[50] = '{"text": null}'
        (folder / name).write_text("\n".join(lines) + "\n")
    results = run(begin(tmp_path / "out", open_source(folder, piece_bytes=300), prepare=prepared), ranks=2)
    assert results.num_read == 700 and results.num_bad == 5 and len(results) == 695
    gone = {13, 14, 600, 50, 550}
    assert results.to_numpy("vector")[:, 0].tolist() == [i for i in range(700) if i not in gone]
    named = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(named) == 2 and "a.jsonl, byte" in named[0] and "b.jsonl, byte" in named[1]
    # a place of one of them has no result
    place = results.places[13] - [0, 0, 1, 0]
    with pytest.raises(DataError, match=r"5 are"):
        results.read(place[None])


def test_too_many_damaged_samples_stop_the_pass_also_when_it_goes_on(tmp_path):
    pq.write_table(pa.table({"text": [*TEXTS, None, None, *TEXTS[:5]]}), tmp_path / "holes.parquet")
    data = open_source(tmp_path / "holes.parquet", piece_bytes=300)
    with pytest.raises(DataError, match=r"2 of 70\d samples of .*--max_bad_fraction.*row 700: 'text' is null"):
        run(begin(tmp_path, data, max_bad_fraction=0.001))
    corpus = begin(tmp_path, data, max_bad_fraction=0.003)
    assert run(corpus).num_bad == 2 and corpus.counts == {"read": 707, "bad": 2}


def test_a_part_without_a_good_sample_is_finished_all_the_same(tmp_path):
    data = source()
    corpus = begin(
        tmp_path, data, prepare=lambda text: Damage("bad") if int(text.split()[0]) < 200 else text, max_bad_fraction=1
    )
    results = run(corpus)
    assert results.num_bad == 200 and corpus.missing() == [] and corpus.parts[0][2] < 20
    assert results.to_numpy("vector")[:, 0].tolist() == list(range(200, 700))
    nothing = run(begin(tmp_path / "none", data, prepare=lambda text: Damage("bad"), max_bad_fraction=1))
    assert len(nothing) == 0 and nothing.columns == [] and nothing.places.shape == (0, 4)


def test_another_function_or_other_data_are_refused_where_there_are_results(tmp_path):
    corpus = begin(tmp_path)
    corpus.run(corpus.missing()[:1])
    with pytest.raises(DataError, match="`layer` was 3 then and is 4 now. Name another folder"):
        begin(tmp_path, identity={"model": "a", "layer": 4})
    with pytest.raises(DataError, match="other data"):
        begin(tmp_path, source(TEXTS[1:]))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"version": 0}))
    with pytest.raises(DataError, match="version 0 of the format"):
        begin(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="is no manifest"):
        begin(tmp_path)


def test_where_nothing_is_finished_another_function_starts_anew(tmp_path):
    begin(tmp_path)
    begin(tmp_path, source(TEXTS[:300]), identity={"model": "b"})
    results = run(begin(tmp_path, source(TEXTS[:300]), identity={"model": "b"}))
    assert len(results) == 300 and results.function == {"model": "b"}


def test_of_a_mixture_each_source_comes_once(tmp_path):
    mixture = Mixture(["a", "b"], [source(TEXTS[:400]), source(TEXTS[400:])], [0.9, 0.1])
    results = run(begin(tmp_path, mixture), ranks=2)
    assert results.to_numpy("vector")[:, 0].tolist() == list(range(700))
    assert results.places[:, 0].tolist() == [0] * 400 + [1] * 300


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda texts: ResultRows({"x": np.zeros(len(texts) - 1)}), "column 'x' has 15"),
        (lambda texts: ResultRows({"row": np.zeros(len(texts))}), "cannot be called 'row'"),
        (lambda texts: ResultRows({"x": np.zeros(0)}, np.zeros(len(texts), int)), "at least 1 for each"),
        (lambda texts: ResultRows({"x": np.zeros((len(texts), len(texts)))}), "one type and shape"),
    ],
)
def test_a_function_that_does_not_fit_is_refused(tmp_path, function, message):
    with pytest.raises(ValueError, match=message):
        run(begin(tmp_path, source(TEXTS[:90]), function=function, batch_size=16))


def test_batches_end_early_where_samples_are_large(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_run, "BATCH_BYTES", 60)
    sizes = []
    run(begin(tmp_path, function=lambda texts: sizes.append(sum(map(len, texts))) or number_and_units(texts)))
    assert 40 < max(sizes) <= 60
