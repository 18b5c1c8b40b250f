"""Spans that are hidden, and frames that are compared."""

import numpy as np
import pytest
import torch

from hfssl.functional import keyed, keyed_tensors
from hfssl.functional.keyed import Use
from hfssl.functional.spans import frame_masks, negative_frames, span_mask


def generators(number=200):
    return [np.random.default_rng(seed) for seed in range(number)]


@pytest.mark.parametrize("ratio, hidden", [(0.65, 0.49), (0.8, 0.56)])
def test_as_many_frames_are_hidden_as_the_papers_say(ratio, hidden):
    shares = [span_mask(780, generator, ratio, 10).mean() for generator in generators()]
    assert np.mean(shares) == pytest.approx(hidden, abs=0.015)


def test_hidden_frames_lie_in_spans():
    for generator in generators(20):
        mask = span_mask(300, generator, 0.1, 10)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
        assert (edges[1::2] - edges[::2]).min() >= 10


def test_the_number_of_spans_is_right_on_average():
    masks = np.stack([span_mask(40, generator, 0.1125, 1, min_masks=0) for generator in generators(2000)])
    assert set(masks.sum(1)) <= {4, 5} and masks.mean() == pytest.approx(4.5 / 40, abs=0.01)
    assert span_mask(40, generators(1)[0], 0.01, 1, min_masks=2).sum() == 2


@pytest.mark.parametrize("num_frames", range(1, 14))
def test_short_sequences_keep_a_frame(num_frames):
    for generator in generators(30):
        mask = span_mask(num_frames, generator, 0.65, 10)
        assert not mask.all() and mask.any() == (num_frames > 1)


@pytest.mark.parametrize("ratio, length", [(0.4, 20), (0.65, 10), (0.8, 10)])
def test_spans_of_short_sequences_leave_as_much_as_those_of_long_ones(ratio, length):
    for num_frames in (8, 20, int(2 * length / ratio) - 1):
        for generator in generators(30):
            assert span_mask(num_frames, generator, ratio, length).sum() <= ratio * num_frames + 1


def test_negatives_are_the_other_hidden_frames_evenly():
    mask = np.array([0, 1, 1, 0, 1, 1, 0], bool)
    negatives = negative_frames(mask, np.random.default_rng(0), 3000)
    for frame in np.flatnonzero(mask):
        values, counts = np.unique(negatives[frame], return_counts=True)
        assert set(values) == {1, 2, 4, 5} - {frame} and counts.min() > 900
    assert (negatives[3] == 3).all()
    assert (negative_frames(np.array([0, 1, 0], bool), np.random.default_rng(0), 4)[1] == 1).all()


def test_a_sequence_has_the_same_mask_whatever_stands_beside_it():
    keys = keyed.key(Use.SAMPLE, np.arange(3))
    settings = {"mask_ratio": 0.5, "mask_length": 4, "num_negatives": 5}
    together = frame_masks(np.array([30, 50, 40]), keys, **settings)
    alone = frame_masks(np.array([50]), keys[1:2], **settings)
    for name in ("mask_time_indices", "negative_indices"):
        assert np.array_equal(together[name][1], alone[name][0])
    other = frame_masks(np.array([30]), keys[1:2], **settings)["mask_time_indices"][0]
    assert not np.array_equal(together["mask_time_indices"][0], other)
    nothing_hidden = frame_masks(np.array([6]), keys[:1], mask_ratio=0.0, mask_length=1, num_negatives=50)
    assert set(nothing_hidden) == {"negative_indices"}
    assert set(nothing_hidden["negative_indices"][0][2]) == {0, 1, 3, 4, 5}


def test_tensors_are_scrambled_as_arrays_are():
    values = keyed.key(Use.SAMPLE, np.arange(100))
    mixed = keyed_tensors.mix(torch.from_numpy(values.view(np.int64)))
    assert np.array_equal(mixed.numpy().view(np.uint64), keyed.mix(values))


def test_the_smallest_and_the_largest_number_give_finite_noise():
    ends = torch.tensor([0, -1])  # no bit, and all 64
    uniform = keyed_tensors.between_0_and_1(ends)
    assert 0.0 < uniform[0] < 1e-6 and 1.0 - 1e-6 < uniform[1] < 1.0
    assert torch.isfinite(-torch.log(-torch.log(uniform))).all()


def test_gumbel_noise_is_that_and_goes_with_the_sample():
    keys = torch.from_numpy(keyed.key(Use.SAMPLE, np.arange(50)).view(np.int64)).repeat_interleave(40)
    rows = torch.arange(40).repeat(50)
    noise = keyed_tensors.gumbel(Use.GUMBEL, keys, rows, 100)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(np.pi**2 / 6, abs=0.02)
    assert noise.unique().numel() > 0.9 * noise.numel()
    order = torch.randperm(2000)[:70]
    again = keyed_tensors.gumbel(Use.GUMBEL, keys[order], rows[order], 100)
    assert torch.equal(again, noise[order])
