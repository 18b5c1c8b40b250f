"""Losses of sequences of sound against sums that are written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from hfssl.losses import code_perplexity, cpc_loss, frame_contrast, hubert_loss, perplexity_of, wav2vec2_loss


HIDDEN = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0], [2.0, 0.0, 1.0]])
EMBEDDINGS = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, -1.0]])


def test_hubert_by_hand():
    loss = hubert_loss(HIDDEN, EMBEDDINGS, torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0]), 0.1)
    assert loss.item() == pytest.approx(0.101465, abs=1e-6)
    # a frame without a unit counts as little as one that is not masked
    none = hubert_loss(HIDDEN, EMBEDDINGS, torch.tensor([0, 1, -100]), torch.tensor([1, 1, 1]), 0.1)
    assert none.item() == loss.item()
    halved = hubert_loss(HIDDEN, EMBEDDINGS, torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0]), 0.1, num_items=4)
    assert halved.item() == pytest.approx(loss.item() / 2)
    nothing = hubert_loss(HIDDEN, EMBEDDINGS, torch.full((3,), -100), torch.ones(3))
    assert nothing.item() == 0.0


def test_hubert_is_the_sum_of_the_paper_whatever_the_lengths():
    hidden, embeddings = torch.randn(7, 5), torch.randn(4, 5)
    units, mask = torch.randint(4, (7,)), torch.tensor([1, 0, 1, 1, 0, 0, 1])
    terms = []
    for frame in mask.nonzero().flatten():
        scores = torch.stack([F.cosine_similarity(hidden[frame], e, dim=0) / 0.2 for e in embeddings]).exp()
        terms.append(-(scores[units[frame]] / scores.sum()).log())
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(hubert_loss(hidden, embeddings, units, mask, 0.2), expected)
    torch.testing.assert_close(hubert_loss(9.0 * hidden, 0.1 * embeddings, units, mask, 0.2), expected)


def test_a_frame_is_told_from_its_negatives_as_the_paper_writes_it():
    predictions, targets = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    negatives = torch.randint(6, (2, 6, 3))
    positions = torch.tensor([1, 4, 6, 11])
    terms = []
    for position in positions.tolist():
        clip, frame = divmod(position, 6)
        candidates = targets[clip][[frame, *negatives[clip, frame].tolist()]]
        terms.append(-F.log_softmax(F.cosine_similarity(predictions[clip, frame], candidates, dim=-1) / 0.1, 0)[0])
    loss, _ = wav2vec2_loss(predictions, targets, negatives, positions, 0.1)
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    torch.testing.assert_close(wav2vec2_loss(predictions, targets, negatives, positions, num_items=8)[0], loss / 2)


def test_negatives_that_are_the_right_one_are_left_out():
    predictions, targets = torch.randn(1, 4, 3), torch.randn(1, 4, 3)
    targets[0, 2] = targets[0, 0]
    codes, negatives = torch.tensor([[7, 1, 7, 2]]), torch.tensor([[[2, 1, 3]] * 4])
    logits = frame_contrast(predictions, targets, negatives, torch.tensor([0, 1]), codes=codes)
    assert logits.isinf().tolist() == [[False, True, False, False], [False, False, True, False]]
    loss, is_nearest = wav2vec2_loss(targets, targets, negatives, torch.tensor([0, 1]), codes=codes)
    assert loss.isfinite() and is_nearest.tolist() == [True, True]
    # all frames alike: nothing is left to tell it from, and nothing is learned
    same = torch.zeros(1, 4, dtype=torch.long)
    assert wav2vec2_loss(predictions, targets, negatives, torch.tensor([0, 1]), codes=same)[0].item() == 0.0


def test_frames_that_say_nothing_give_chance():
    flat, negatives = torch.ones(2, 5, 3), torch.randint(5, (2, 5, 7))
    loss, is_nearest = wav2vec2_loss(flat, flat, negatives, torch.arange(10))
    assert loss.item() == pytest.approx(math.log(8)) and not is_nearest.any()
    loss, accuracy = cpc_loss(torch.zeros(2, 2, 5, 3), flat, negatives)
    assert loss.item() == pytest.approx(math.log(8)) and accuracy == 0.0


def test_cpc_step_by_step():
    predictions, targets = torch.randn(2, 3, 6, 4), torch.randn(3, 6, 4)
    negatives = (torch.arange(6)[None, :, None] + torch.randint(1, 6, (3, 6, 2))) % 6
    steps = []
    for step in (1, 2):
        terms = []
        for clip in range(3):
            for frame in range(6 - step):
                others = (negatives[clip, frame] + step) % 6
                assert frame + step not in others
                candidates = targets[clip][[frame + step, *others.tolist()]]
                terms.append(-F.log_softmax(candidates @ predictions[step - 1, clip, frame], 0)[0])
        steps.append(torch.stack(terms).mean())
    loss, _ = cpc_loss(predictions, targets, negatives)
    torch.testing.assert_close(loss, torch.stack(steps).mean())


def test_padding_of_a_sequence_predicts_nothing_and_is_nothing_to_predict():
    predictions, targets = torch.randn(2, 1, 6, 4), torch.randn(1, 6, 4)
    negatives = (torch.arange(6)[None, :, None] + torch.randint(1, 6, (1, 6, 3))) % 6
    alone = cpc_loss(predictions, targets, negatives)
    padded = [F.pad(each, (0, 0, 0, 3), value=9) for each in (predictions, targets, negatives)]
    for found, expected in zip(cpc_loss(*padded, lengths=torch.tensor([6])), alone, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_sequence_that_is_too_short_for_a_step_counts_as_little_in_the_loss():
    # of 2 frames there is one step, of 6 there are 4: at chance all of them are, whatever stands beside them
    zeros, negatives = torch.zeros(4, 2, 6, 3), torch.zeros(2, 6, 7, dtype=torch.long)
    for lengths in ([6, 2], [6, 6], [2, 2], [1, 6]):
        loss, _ = cpc_loss(zeros, zeros[0], negatives, lengths=torch.tensor(lengths))
        assert loss.item() == pytest.approx(math.log(8))


def test_the_perplexity_counts_codes():
    one_hot = F.one_hot(torch.tensor([[0, 1], [0, 1], [2, 1], [2, 1]]), 4).float()
    torch.testing.assert_close(code_perplexity(one_hot), torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(code_perplexity(torch.full((5, 2, 4), 0.25)), torch.tensor([4.0, 4.0]))
    torch.testing.assert_close(perplexity_of(torch.tensor([2, 2, 5, 5]), 9), torch.tensor(2.0))
