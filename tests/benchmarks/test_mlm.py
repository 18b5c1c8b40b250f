"""Contenders in processes of their own, one at a time, and the figures that come of them."""

import multiprocessing
from functools import partial
from types import SimpleNamespace

import pytest
import tiny
import torch
from sleeper import sleeper

from hfssl.benchmarks import base
from hfssl.benchmarks.base import Contender, Pace, count_flops, matrix_product_rate, measure, ratio, table
from hfssl.benchmarks.mlm import MlmBenchmark, num_tokens
from hfssl.errors import UserError


@pytest.fixture
def small_products(monkeypatch):
    """The rate that utilisation is a share of, from a product that takes no time."""
    monkeypatch.setattr(base, "matrix_product_rate", partial(matrix_product_rate, size=64))


@pytest.fixture
def imported_once(monkeypatch):
    """Contenders are forks of a process that has imported what they need, not each a process that does."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hfssl.benchmarks.base"])
    monkeypatch.setattr(base, "multiprocessing", SimpleNamespace(get_context=lambda method: context))


def contender(name, log, **settings):
    return Contender(name, name, "fp32", sleeper, {"seconds": 0.02, "log": str(log), "mark": name} | settings)


def test_contenders_take_turns_and_never_overlap(small_products, imported_once, tmp_path):
    log = tmp_path / "log"
    figures = measure([contender("a", log), contender("b", log, seconds=0.06)], blocks=2, steps_per_block=2, threads=1)
    entries = [line.split() for line in log.read_text().splitlines()]
    marks = "".join(mark for _, _, mark in entries)
    assert marks == "aaa" + "bbb" + "aabb" * 2  # the warm-up, then the blocks
    ends = [float(end) for _, end, _ in entries]
    begins = [float(begin) for begin, _, _ in entries]
    assert all(end <= begin for end, begin in zip(ends, begins[1:], strict=False))

    a = figures["a"]
    assert a["items_per_s_range"][0] <= a["items_per_s"] <= a["items_per_s_range"][1] < 90 / 0.02
    assert a["padding"] == pytest.approx(0.1)
    assert a["flops_per_position"] == 6.0
    assert (a["loss_first"], a["loss_last"]) == (3.5, 5.5)
    assert a["first_step_s"] >= 0.02
    assert a["peak_mb"] >= a["peak_above_start_mb"] >= 0
    assert ratio(figures, "a", "b") == pytest.approx(a["items_per_s"] / figures["b"]["items_per_s"], rel=1e-4)
    assert ratio(figures, "a", "b") > 1.5
    assert ratio(figures, "a", "c") is None
    assert table(figures).splitlines()[0].split() == ["a", "b"]


@pytest.mark.parametrize(
    "settings, error, words",
    [
        ({"fails_at": 1, "error": UserError("Too little text.")}, UserError, "^Too little text.$"),
        ({"fails_at": 4, "error": RuntimeError("broken")}, RuntimeError, "'b' failed:(.|\n)*broken"),
        ({"dies_at": 4}, UserError, "process of 'b' ended with exit code 9"),
    ],
)
def test_what_goes_wrong_in_a_contender_is_told(small_products, imported_once, tmp_path, settings, error, words):
    log = tmp_path / "log"
    with pytest.raises(error, match=words):
        measure([contender("b", log, **settings)], blocks=2, steps_per_block=2, threads=1)


def test_a_contender_is_a_process_of_its_own(small_products, tmp_path):
    """As it is where nobody waits for a test: nothing of the process that measures is there."""
    log = tmp_path / "log"
    figures = measure([contender("a", log, seconds=0.0)], blocks=1, steps_per_block=1, threads=1)
    assert len(log.read_text().splitlines()) == 4 and figures["a"]["loss_last"] == 3.0


def test_flops_are_those_of_the_matrix_products():
    model = tiny.mlm().train()
    batch = next(iter(tiny.stream(batch_size=4)))
    rows, length = batch["input_ids"].shape
    width, vocabulary, masked = 32, len(tiny.tokenizer()), batch["masked_positions"].numel()
    layer = 4 * width * width + 2 * width * 64 + 2 * length * width
    head = (width * width + width * vocabulary) * masked / (rows * length)
    # forward 2 FLOPs a multiplication, backward twice that
    assert count_flops(model, batch) == pytest.approx(6 * (2 * layer + head), rel=1e-6)


def test_tokens_are_counted_without_padding():
    packed = next(iter(tiny.stream(batch_size=4)))
    assert int(num_tokens(packed)) == int((packed["sequence_ids"] > 0).sum())
    padded = next(iter(tiny.stream(batch_size=4, packing=False)))
    assert int(num_tokens(padded)) == int(padded["attention_mask"].sum())


def test_matrix_product_rate():
    assert matrix_product_rate("bf16", size=64) > 0 and matrix_product_rate("fp32", size=64) > 0


def test_steps_before_the_first_block_are_not_counted():
    class Connection:
        sent = []

        def send(self, message):
            self.sent.append(message[1])

        def recv(self):
            return "go"

    pace = Pace(Connection(), blocks=1, steps_per_block=2)
    for step in range(pace.num_steps):
        pace.fetched(0.25, torch.tensor(step), 10)
        pace.stepped(torch.tensor(1.0))
    warm_up, block = Connection.sent
    assert (block["tokens"], block["positions"], block["waited_s"]) == (3 + 4, 20, 0.5)
    assert warm_up["tokens"] == 0 + 1 + 2


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"blocks": 0}, "--blocks.*at least 1"),
        ({"encoder": "org/model"}, "org/model.*trains from scratch"),
        ({"defaults": True, "precision": "bf16"}, "--defaults.*--precision"),
    ],
)
def test_bad_settings_are_named(fields, words):
    with pytest.raises(UserError, match=words):
        MlmBenchmark(**fields)
