"""wav2vec 2.0: the loss of the stock model however a batch is cut, and noise that goes with the sample."""

import math

import numpy as np
import pytest
import tiny_audio
import torch
import torch.nn.functional as F
from contract import Contract, split
from transformers import Trainer, TrainingArguments, Wav2Vec2ForPreTraining

from hfssl import MethodCallback, Wav2vec2ForPreTraining, Wav2vec2PreTrainingConfig
from hfssl.errors import UserError
from hfssl.functional import keyed
from hfssl.functional.keyed import Use
from hfssl.functional.keyed_tensors import gumbel
from hfssl.methods.audio.wav2vec2 import GumbelQuantizer


HEAD = {
    "num_codes": 6, "code_dim": 8, "projection_dim": 8, "num_negatives": 5, "mask_length": 3, "dropout": 0.0,
}  # fmt: skip


def clips(rows=6, seed=7, **masking):
    keys = torch.from_numpy(keyed.key(Use.SAMPLE, seed, np.arange(rows)).view("int64"))
    masks = tiny_audio.masks(rows, 12, seed, num_negatives=5, **masking)
    return {"input_values": tiny_audio.waveforms(rows), "sample_keys": keys, **masks}


def one_code(change):
    """Every frame has the first code of each codebook, which no gradient changes."""

    def first(self, features, noise=None, temperature=1.0):
        numbers = torch.zeros(len(features), self.num_codebooks, dtype=torch.long, device=features.device)
        shares = F.one_hot(numbers, self.num_codes).to(features.dtype)
        books = self.codevectors.unflatten(1, (self.num_codebooks, self.num_codes))[0]
        return torch.einsum("ngv,gvd->ngd", shares, books).flatten(1), shares, numbers

    change(GumbelQuantizer, "forward", first)
    return {}


CONTRACT = Contract(
    encoder=tiny_audio.wav2vec2,
    batch=clips,
    settings={**HEAD, "diversity_weight": 2.0},
    noise={"dropout": 0.1},
    accumulation=False,
    why_not="The diversity term counts the codes of the frames of one accumulation step.",
    collapse=one_code,
)


def model_of(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    return Wav2vec2ForPreTraining(
        Wav2vec2PreTrainingConfig(encoder_config=encoder or tiny_audio.wav2vec2(), **{**HEAD, **config})
    )


def stock_of(model):
    """transformers' own model with the same weights."""
    config = tiny_audio.wav2vec2(
        attention_dropout=0.0, hidden_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0,
        feat_quantizer_dropout=0.0, mask_feature_prob=0.0,
    )  # fmt: skip
    stock = Wav2Vec2ForPreTraining(config)
    state = {name.replace("encoder.", "wav2vec2.", 1): tensor for name, tensor in model.state_dict().items()}
    state.pop("schedule_position")
    stock.load_state_dict(state)
    return stock


def stock_inputs(batch):
    rows, length = batch["mask_time_indices"].shape
    negatives = batch["negative_indices"].long() + length * torch.arange(rows)[:, None, None]
    return {
        "input_values": batch["input_values"], "mask_time_indices": batch["mask_time_indices"],
        "sampled_negative_indices": negatives,
    }  # fmt: skip


def test_the_defaults_are_those_of_the_base_model():
    config = Wav2vec2PreTrainingConfig()
    assert (config.num_codebooks, config.num_codes, config.code_dim, config.num_negatives) == (2, 320, 256, 100)
    assert (config.temperature, config.mask_ratio, config.mask_length) == (0.1, 0.65, 10)
    assert (config.diversity_weight, config.penalty_weight, config.feature_grad_mult) == (0.1, 10.0, 0.1)
    # from 2 to 0.5 with a factor of 0.999995 in each of 400,000 steps
    assert math.log(0.25) / math.log(0.999995) / 400_000 == pytest.approx(config.gumbel_share, abs=0.01)


@pytest.mark.parametrize("training", [False, True])
def test_loss_and_gradient_are_those_of_the_stock_model_for_each_hidden_frame(training, monkeypatch):
    model = model_of(penalty_weight=0.0, feature_grad_mult=1.0).train(training)
    stock, batch = stock_of(model).train(training), clips()
    length, columns = batch["mask_time_indices"].shape[1], 2 * 6

    def with_our_noise(logits, tau, hard):
        assert tau == 2 and hard
        rows = torch.arange(len(logits) // 2)
        noise = gumbel(Use.GUMBEL, batch["sample_keys"][rows // length], rows % length, columns).view_as(logits)
        soft = ((logits + noise) / tau).softmax(-1)
        # 1 to the bit, as torch makes it, so that equal codes are equal vectors
        return F.one_hot(soft.argmax(-1), 6) + (soft - soft.detach())

    monkeypatch.setattr(F, "gumbel_softmax", with_our_noise)
    out, expected = model(**batch), stock(**stock_inputs(batch))
    number = batch["mask_time_indices"].sum()
    torch.testing.assert_close(out.loss, expected.loss / number, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.loss_terms["contrastive"], expected.contrastive_loss / number, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.figures["code_perplexity"], expected.codevector_perplexity, rtol=1e-5, atol=1e-5)
    out.loss.backward()
    (expected.loss / number).backward()
    stock_gradients = {name: p.grad for name, p in stock.named_parameters()}
    for name, parameter in model.named_parameters():
        gradient = stock_gradients[name.replace("encoder.", "wav2vec2.", 1)]
        if gradient is None or parameter.grad is None:
            assert not training and (parameter.grad is None or not parameter.grad.any())
            continue
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def gradient_of(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_accumulated_gradients_are_those_of_the_whole_batch_and_not_what_the_well_known_script_makes():
    """Which scales what has been accumulated again after each part: earlier parts hardly count."""
    model = model_of(diversity_weight=0.0, penalty_weight=0.0).train()
    whole = clips(8, mask_ratio=0.5)
    # parts with many and with few hidden frames
    whole["mask_time_indices"][:4, 6:] = False
    parts, items = split(whole, 8), model.loss_items(whole)
    model(**whole).loss.backward()
    right = gradient_of(model)

    model.zero_grad()
    for part in parts:
        model(**part, num_items_in_batch=items).loss.backward()
    torch.testing.assert_close(gradient_of(model), right, rtol=1e-4, atol=1e-6)

    model.zero_grad()
    for part in parts:
        number = part["mask_time_indices"].sum()
        (model(**part).loss * number / len(parts)).backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= number
    assert F.cosine_similarity(gradient_of(model), right, dim=0) < 0.8


def test_noise_goes_with_the_recording():
    model, batch = model_of().train(), clips()
    codes = model(**batch).codes
    lengths = batch["mask_time_indices"].sum(1).tolist()
    alone = {name: tensor[2:3] for name, tensor in batch.items()}
    assert torch.equal(model(**alone).codes, codes.split(lengths)[2])
    assert not torch.equal(model(**{**batch, "sample_keys": batch["sample_keys"] + 1}).codes, codes)


def test_the_temperature_follows_the_run():
    model = model_of(gumbel_start=2.0, gumbel_end=0.5, gumbel_share=0.5)
    found = [model.schedules(progress)["gumbel_temperature"] for progress in (0.0, 0.25, 0.5, 1.0)]
    assert found == pytest.approx([2.0, 1.0, 0.5, 0.5])
    model.after_optimizer_step(0.25)
    assert model.train()(**clips()).figures["gumbel_temperature"].item() == pytest.approx(1.0)


def test_all_parameters_learn_with_the_plain_trainer(tmp_path):
    model = model_of()
    before = {name: p.clone() for name, p in model.named_parameters()}
    whole = clips(8)
    data = [{name: tensor[i] for name, tensor in whole.items()} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=tmp_path, max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=data, callbacks=[MethodCallback()]).train()
    assert {name for name, p in model.named_parameters() if torch.equal(p, before[name])} == set()


def test_the_penalty_is_the_mean_square_of_the_convolutions():
    model, batch = model_of().eval(), clips()
    squares = model.encoder.feature_extractor(batch["input_values"]).square()
    torch.testing.assert_close(model(**batch).loss_terms["penalty"], squares.mean().detach())
    # padding is no part of it
    padded = {
        **batch, "input_values": F.pad(batch["input_values"], (0, 960)),
        "attention_mask": F.pad(torch.ones(6, 4000, dtype=torch.long), (0, 960)),
        "mask_time_indices": F.pad(batch["mask_time_indices"], (0, 3)),
        "negative_indices": F.pad(batch["negative_indices"], (0, 0, 0, 3)),
    }  # fmt: skip
    out, alone = model(**padded), model(**batch)
    for name, term in alone.loss_terms.items():
        torch.testing.assert_close(out.loss_terms[name], term, rtol=1e-4, atol=1e-5)


def test_codes_that_are_all_the_same_are_seen(monkeypatch):
    model, batch = model_of().train(), clips()
    assert model(**batch).figures["code_perplexity"] > 4
    one_code(monkeypatch.setattr)
    out = model(**batch)
    assert out.figures["code_perplexity"] == 2 and out.loss_terms["diversity"].item() == pytest.approx(10 / 12)
    # nothing is left to tell the right one from: no gradient, and no accuracy to be proud of
    assert out.loss_terms["contrastive"] == 0.0


def test_what_is_missing_is_explained():
    model, batch = model_of().train(), clips()
    for name, words in {
        "mask_time_indices": "does not say which: `mask_time_indices` is missing",
        "negative_indices": "does not say from which: `negative_indices` is missing",
        "sample_keys": "has no `sample_keys` of shape",
    }.items():
        with pytest.raises(UserError, match=words):
            model(**{key: value for key, value in batch.items() if key != name})
    with pytest.raises(UserError, match="a wav2vec2-bert has none: it reads filter banks"):
        model_of(tiny_audio.wav2vec2_bert())


@pytest.mark.parametrize(
    "config, words",
    [
        ({"num_codes": 1}, "num_codes.*at least 2, got 1"),
        ({"code_dim": 7}, "2 codebooks.*got 7"),
        ({"gumbel_end": 0.0}, "gumbel_end.*above 0, got 0"),
        ({"gumbel_share": 0.0}, "gumbel_share.*got 0"),
        ({"mask_ratio": 0.0}, "mask_ratio.*got 0"),
        ({"penalty_weight": -1.0}, "penalty_weight.*at least 0, got -1"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        model_of(**config)
