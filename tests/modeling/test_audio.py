"""Encoders of sound in pre-training: what is hidden, what gets a gradient, and nothing of their own on top."""

import pytest
import tiny_audio
import torch
from contract import contract
from transformers import AutoModel, ViTConfig

import hfssl
from hfssl.errors import UserError
from hfssl.modeling.audio import (
    SSLAudioModel,
    build_audio_encoder,
    frames_of_sound,
    num_frames,
    reads_waveforms,
    samples_per_frame,
    unused_audio_parameters,
)


EVERY = {**tiny_audio.ENCODERS, "bert": tiny_audio.wav2vec2_bert}


def inputs_of(config, rows=3):
    return torch.randn(rows, 4000) if reads_waveforms(config) else torch.randn(rows, 12, 8)


def encode(encoder, *args, **kwargs):
    holder = torch.nn.Module()
    holder.encoder = encoder
    return SSLAudioModel.encode(holder, *args, **kwargs)


@pytest.mark.parametrize("name", EVERY)
def test_frames_are_hidden_as_the_stock_encoder_hides_them(name):
    config = EVERY[name]()
    torch.manual_seed(0)
    encoder = build_audio_encoder(config).eval()
    stock = AutoModel.from_config(config).eval()
    stock.load_state_dict(encoder.state_dict())
    inputs, mask = inputs_of(config), tiny_audio.masks(3, 12)["mask_time_indices"]
    frames = encode(encoder, inputs, mask=mask)
    torch.testing.assert_close(frames.hidden, stock(inputs, mask_time_indices=mask).last_hidden_state)
    if name in ("wav2vec2", "bert"):
        torch.testing.assert_close(frames.features, stock(inputs).extract_features)
    if name == "hubert":
        squares = stock.feature_extractor(inputs).square().mean(1)
        torch.testing.assert_close(frames.squares, squares)


@pytest.mark.parametrize("name", EVERY)
def test_in_training_mode_an_encoder_hides_and_drops_nothing_by_itself(name):
    config = EVERY[name](layerdrop=0.9, mask_time_prob=0.9, mask_feature_prob=0.5, mask_time_length=2)
    encoder = build_audio_encoder(config, dropout=0.0)
    inputs, mask = inputs_of(config), tiny_audio.masks(3, 12)["mask_time_indices"]
    trained = encode(encoder.train(), inputs, mask=mask).hidden
    if name != "conformer":  # its batch norm sees the batch
        torch.testing.assert_close(trained, encode(encoder.eval(), inputs, mask=mask).hidden)
    trained.sum().backward()
    unused = unused_audio_parameters(encoder.config)
    assert {n for n, p in encoder.named_parameters() if p.grad is None} == unused
    assert bool(unused) == (name == "conformer")


def test_the_gradient_of_the_convolutions_is_scaled_and_no_other():
    config = tiny_audio.hubert()
    encoder = build_audio_encoder(config, dropout=0.0).train()
    inputs, gradients = inputs_of(config), []
    for factor in (1.0, 0.1):
        encoder.zero_grad()
        encode(
            encoder, inputs, mask=torch.zeros(3, 12, dtype=torch.bool), feature_grad_mult=factor
        ).hidden.sin().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters()})
    for name, gradient in gradients[1].items():
        scale = 0.1 if name.startswith("feature_extractor") else 1.0
        torch.testing.assert_close(gradient, scale * gradients[0][name], rtol=1e-4, atol=1e-6)


def test_frames_are_counted_as_the_convolutions_make_them():
    config = tiny_audio.hubert()
    encoder = build_audio_encoder(config).eval()
    assert samples_per_frame(config) == 320
    for samples in (400, 719, 720, 4000):
        made = encoder(torch.randn(1, samples)).last_hidden_state.shape[1]
        assert num_frames(config, samples) == made == (samples - 400) // 320 + 1
    assert num_frames(config, 399) <= 0
    mask = torch.zeros(2, 1500, dtype=torch.long)
    mask[0, :1500], mask[1, :719] = 1, 1
    assert frames_of_sound(config, mask, 4).sum(1).tolist() == [4, 1]
    assert torch.equal(frames_of_sound(config, mask, 4), encoder._get_feature_vector_attention_mask(4, mask))


@pytest.mark.parametrize("name", ["HubertForPreTraining", "Wav2vec2ForPreTraining", "BestRqForPreTraining"])
def test_a_batch_of_which_nothing_is_hidden_has_a_loss(name):
    """Where all clips of a batch are too short, with `min_masks=0`."""
    model_class, of = getattr(hfssl, name), contract(name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(encoder_config=of.encoder(), **of.settings)).train()
    batch = of.batch(3)
    batch["mask_time_indices"] = torch.zeros_like(batch["mask_time_indices"])
    batch["masked_positions"] = torch.zeros(0, dtype=torch.long)
    out = model(**batch)
    out.loss.backward()
    assert out.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_an_encoder_without_hidden_frames_is_refused():
    with pytest.raises(UserError, match="cannot be hidden from a ViTModel.*HuBERT, WavLM, wav2vec 2.0"):
        build_audio_encoder(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))


def test_a_checkpoint_without_a_vector_for_hidden_frames_gets_one(tmp_path):
    from hfssl import BestRqForPreTraining

    stock = AutoModel.from_config(tiny_audio.conformer(mask_time_prob=0.0))
    stock.save_pretrained(tmp_path)
    model = BestRqForPreTraining.from_encoder(str(tmp_path), num_codes=8)
    assert "encoder.masked_spec_embed" in model.state_dict()
    name = "feature_projection.projection.weight"
    assert torch.equal(model.encoder.state_dict()[name], stock.state_dict()[name])
    model.export_encoder(tmp_path / "out")
    assert AutoModel.from_pretrained(tmp_path / "out").config.mask_time_prob == 0.0
