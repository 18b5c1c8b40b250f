"""BEST-RQ: its targets, its loss at hidden frames, and what it says where it cannot."""

import math

import numpy as np
import pytest
import tiny_audio
import torch
import torch.nn.functional as F
from contract import Contract
from transformers import SeamlessM4TFeatureExtractor, Trainer, TrainingArguments, Wav2Vec2BertModel

from hfssl import BestRqForPreTraining, BestRqPreTrainingConfig, MethodCallback
from hfssl.errors import UserError
from hfssl.methods.audio.best_rq import RandomProjectionQuantizer
from hfssl.modeling.audio import unused_audio_parameters
from hfssl.modeling.filter_banks import log_mel, normalised_over_time, stacked_log_mel


HEAD = {"num_codes": 12, "code_dim": 4, "mask_length": 3, "dropout": 0.0}


def filter_banks(rows=6, num_frames=20):
    return {"input_features": torch.randn(rows, num_frames, 8), **tiny_audio.masks(rows, num_frames)}


def waveforms(rows=6):
    return {"input_values": tiny_audio.waveforms(rows), **tiny_audio.masks(rows, 12)}


def one_code(change):
    """Every frame has the first code."""
    change(RandomProjectionQuantizer, "forward", lambda self, features: torch.zeros_like(features[..., 0]).long())
    return {}


CONTRACT = Contract(
    encoder=tiny_audio.wav2vec2_bert, batch=filter_banks, settings=HEAD, noise={"dropout": 0.1}, collapse=one_code
)


def model_of(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    return BestRqForPreTraining(
        BestRqPreTrainingConfig(encoder_config=encoder or tiny_audio.wav2vec2_bert(), **{**HEAD, **config})
    )


def test_the_defaults_are_the_papers():
    config = BestRqPreTrainingConfig()
    assert (config.num_codes, config.code_dim) == (8192, 16)
    # 0.01 for each 10 ms to be the first of 400 ms; frames are of 20 ms
    assert config.mask_length == 20 and config.mask_ratio / config.mask_length == pytest.approx(2 * 0.01)


def test_the_loss_is_that_of_the_nearest_codes_of_the_hidden_frames():
    """Clip by clip and frame by frame, with masks of the stock encoder."""
    model = model_of().eval()
    batch = filter_banks()
    stock = Wav2Vec2BertModel(tiny_audio.wav2vec2_bert()).eval()
    stock.load_state_dict(model.encoder.state_dict())
    hidden = stock(batch["input_features"], mask_time_indices=batch["mask_time_indices"]).last_hidden_state
    terms = []
    for clip, mask, states in zip(batch["input_features"], batch["mask_time_indices"], hidden, strict=True):
        clip = (clip - clip.mean(0)) / clip.std(0, correction=0)
        for frame in mask.nonzero().flatten():
            projected = F.normalize(clip[frame] @ model.quantizer.projection, dim=0)
            code = (model.quantizer.codes - projected).norm(dim=1).argmin()
            terms.append(-model.classifier(states[frame]).log_softmax(-1)[code])
    out = model(**batch)
    torch.testing.assert_close(out.loss, torch.stack(terms).mean(), rtol=1e-5, atol=1e-5)
    positions = batch["mask_time_indices"].flatten().nonzero().flatten()
    torch.testing.assert_close(model(**batch, masked_positions=positions).loss, out.loss)
    torch.testing.assert_close(model(**batch, num_items_in_batch=2 * len(terms)).loss * 2, out.loss)
    accuracy = (out.logits.argmax(-1) == out.targets).float().mean()
    torch.testing.assert_close(out.figures["code_accuracy"], accuracy)


def test_without_the_normalisation_few_codes_are_in_use():
    model = model_of(num_codes=256)
    loud = 40.0 + torch.arange(8) + 0.5 * torch.randn(4, 200, 8)  # as filter banks are: one shape, small differences
    raw = model.quantizer(loud.flatten(0, 1)).unique().numel()
    normalised = model.quantizer(normalised_over_time(loud).flatten(0, 1)).unique().numel()
    assert raw <= 8 and normalised > 60


def test_padding_is_no_part_of_a_clip():
    model = model_of().eval()
    batch = filter_banks(2)
    padded = {
        "input_features": F.pad(batch["input_features"], (0, 0, 0, 6), value=3.0),
        "mask_time_indices": F.pad(batch["mask_time_indices"], (0, 6)),
        "attention_mask": F.pad(torch.ones(2, 20, dtype=torch.long), (0, 6)),
    }
    out, alone = model(**padded), model(**batch)
    assert torch.equal(out.targets, alone.targets)
    torch.testing.assert_close(out.loss, alone.loss, rtol=1e-5, atol=1e-5)


def test_filter_banks_are_those_of_the_stock_extractor():
    waveform = tiny_audio.waveforms(1, 5400)
    extractor = SeamlessM4TFeatureExtractor()
    stock = extractor(waveform[0].numpy(), sampling_rate=16_000, do_normalize_per_mel_bins=False, return_tensors="np")
    ours = stacked_log_mel(waveform, 80, 320, stock["input_features"].shape[1])[0].numpy()
    np.testing.assert_allclose(ours, stock["input_features"][0], rtol=1e-3, atol=2e-3)


def test_filter_banks_of_a_frame_begin_where_it_does():
    waveform = torch.zeros(1, 16_000)
    waveform[0, 320 * 20 : 320 * 20 + 400] = torch.randn(400)
    rows = stacked_log_mel(waveform, 80, 320, tiny_audio.frames_of(tiny_audio.hubert(), 16_000))[0]
    assert rows.shape == (49, 160) and rows[:, :80].mean(1).argmax() == 20
    assert log_mel(waveform).shape[1] == 98
    with pytest.raises(ValueError, match="a frame every 100 samples.*a multiple of 160, such as 320"):
        stacked_log_mel(waveform, 80, 100, 5)


def test_an_encoder_of_waveforms_learns_from_its_filter_banks(tmp_path):
    model = model_of(tiny_audio.conformer())
    assert model.quantizer.projection.shape == (160, 4)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    whole = waveforms(8)
    data = [{name: tensor[i] for name, tensor in whole.items()} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=tmp_path, max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=data, callbacks=[MethodCallback()]).train()
    stayed = {name for name, p in model.state_dict().items() if torch.equal(p, before[name])}
    # a Conformer with relative positions has convolutions for others, and does not use them
    unused = {f"encoder.{name}" for name in unused_audio_parameters(model.encoder.config)}
    assert stayed == {"quantizer.projection", "quantizer.codes"} | unused and len(unused) == 3


def test_it_learns_which_codes_go_with_what_is_around():
    """Clips of one tone each: what is hidden is what is around it."""
    model = model_of().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        tones = torch.randint(0, 2, (16, 1, 1), generator=generator)
        steps = torch.linspace(-1, 1, 20)[None, :, None] * torch.ones(8)
        batch = {"input_features": torch.where(tones == 1, steps, -steps), **tiny_audio.masks(16, 20, seed=step)}
        out = model(**batch)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            first = out.loss.item()
    assert first == pytest.approx(math.log(12), rel=0.2) and out.loss.item() < 0.7 * first


def test_codes_that_are_all_the_same_are_seen(monkeypatch):
    model, batch = model_of().eval(), filter_banks()
    assert model(**batch).figures["code_perplexity"] > 3
    one_code(monkeypatch.setattr)
    assert model(**batch).figures["code_perplexity"] == 1


def test_what_is_missing_is_explained():
    model = model_of().train()
    with pytest.raises(UserError, match="the batch does not say which: `mask_time_indices` is missing"):
        model(input_features=torch.randn(2, 20, 8))
    with pytest.raises(ValueError, match="reads `input_features`, and the batch has none"):
        model(input_values=torch.randn(2, 4000), mask_time_indices=torch.ones(2, 12, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"has shape \(2, 19\), but the encoder makes 20 frames"):
        model(input_features=torch.randn(2, 20, 8), mask_time_indices=torch.ones(2, 19, dtype=torch.bool))
    with pytest.raises(UserError, match="has an adapter.*`add_adapter=False`"):
        model_of(tiny_audio.wav2vec2_bert(add_adapter=True))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"num_codes": 1}, "num_codes.*at least 2, got 1"),
        ({"mask_length": 0}, "mask_length.*at least 1, got 0"),
        ({"mask_ratio": 1.0}, "mask_ratio.*between 0 and 1, got 1.0"),
        ({"dropout": 1.0}, "dropout.*got 1.0"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        model_of(**config)
