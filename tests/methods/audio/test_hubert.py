"""HuBERT: units of all recordings, aligned with the frames of the encoder, its loss, and a second iteration."""

import logging

import numpy as np
import pytest
import tiny_audio
import torch
import torch.nn.functional as F
from contract import Contract
from transformers import HubertModel

from hfssl import ExactStream, HubertForPreTraining, HubertPreTrainingConfig, SSLTrainer, SSLTrainingArguments
from hfssl.data.audio.collate import AudioCollator
from hfssl.data.sources import MemorySource
from hfssl.data.stream import Rows
from hfssl.errors import UserError
from hfssl.functional.spans import frame_masks
from hfssl.methods.audio import hubert as module
from hfssl.modeling.filter_banks import mfcc
from hfssl.modeling.units import describe_units, fit_units, nearest_units, sample_of_frames, unit_quality


HEAD = {
    "num_units": 10, "projection_dim": 8, "mask_length": 3, "dropout": 0.0, "kmeans_restarts": 2, "unmasked_weight": 0.5,
}  # fmt: skip


def clips(rows=6):
    targets = torch.randint(10, (rows, 23))
    return {"input_values": tiny_audio.waveforms(rows), "targets": targets, **tiny_audio.masks(rows, 12)}


def one_unit(change):
    """Every frame is in the first unit."""
    change(module.unit_makers, "nearest_units", lambda frames, centroids: np.zeros(len(frames), np.int64))
    return {}


CONTRACT = Contract(
    encoder=tiny_audio.hubert, batch=clips, settings=HEAD, noise={"dropout": 0.1},
    variants={"wavlm": (tiny_audio.wavlm, {})}, collapse=one_unit,
)  # fmt: skip


def model_of(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    return HubertForPreTraining(
        HubertPreTrainingConfig(encoder_config=encoder or tiny_audio.hubert(), **{**HEAD, **config})
    )


def test_the_defaults_are_those_of_the_first_iteration():
    config = HubertPreTrainingConfig()
    assert (config.num_units, config.projection_dim, config.temperature) == (100, 256, 0.1)
    assert (config.mask_ratio, config.mask_length, config.masked_weight, config.unmasked_weight) == (0.8, 10, 1.0, 0.0)
    assert (config.penalty_weight, config.feature_grad_mult, config.unit_layer) == (10.0, 0.1, 6)


def test_the_loss_is_that_of_the_paper():
    """Frame by frame, with masks of the stock encoder; frame i has the label 2 i of 100 a second."""
    model, batch = model_of().eval(), clips()
    stock = HubertModel(tiny_audio.hubert()).eval()
    stock.load_state_dict(model.encoder.state_dict())
    hidden = stock(batch["input_values"], mask_time_indices=batch["mask_time_indices"]).last_hidden_state
    terms = {True: [], False: []}
    for states, mask, labels in zip(hidden, batch["mask_time_indices"], batch["targets"], strict=True):
        for frame in range(12):
            cosines = F.cosine_similarity(model.final_proj(states[frame])[None], model.unit_embeddings, dim=-1)
            terms[bool(mask[frame])].append(-(cosines / 0.1).log_softmax(-1)[labels[2 * frame]])
    penalty = stock.feature_extractor(batch["input_values"]).square().mean()
    out = model(**batch)
    masked, unmasked = (torch.stack(terms[each]).mean() for each in (True, False))
    torch.testing.assert_close(out.loss_terms["masked"], masked)
    torch.testing.assert_close(out.loss_terms["unmasked"], unmasked)
    torch.testing.assert_close(out.loss, masked + 0.5 * unmasked + 10.0 * penalty)
    assert set(model_of(unmasked_weight=0.0, penalty_weight=0.0).eval()(**batch).loss_terms) == {"masked"}
    positions = batch["mask_time_indices"].flatten().nonzero().flatten()
    assert torch.equal(out.logits.argmax(-1), model(**batch, masked_positions=positions).logits.argmax(-1))


def test_labels_and_frames_begin_at_the_same_sample():
    model = model_of()
    targets = torch.arange(60).expand(3, -1)
    assert model.units_of_frames(targets, 5)[0].tolist() == [0, 2, 4, 6, 8]
    starts = torch.tensor([0, 320 * 7, 160 * 3 + 159])
    assert model.units_of_frames(targets, 3, starts).tolist() == [[0, 2, 4], [14, 16, 18], [3, 5, 7]]
    assert model.units_of_frames(targets[:, :4], 4)[0].tolist() == [0, 2, -100, -100]
    of_layer = model_of(unit_features="layer", unit_layer=1)
    assert of_layer.units_of_frames(targets, 3, starts).tolist() == [[0, 1, 2], [7, 8, 9], [1, 2, 3]]
    # one MFCC begins with each frame of the encoder and the last one with the last
    for samples in (400, 719, 720, 4000, 16_000):
        frames = tiny_audio.frames_of(tiny_audio.hubert(), samples)
        assert 2 * frames - 1 <= len(mfcc(torch.randn(samples))) <= 2 * frames


def test_mfcc_are_39_numbers_a_hundred_times_a_second():
    features = mfcc(torch.randn(16_000))
    assert features.shape == (98, 39)
    # the difference over time of something that is the same every 10 ms is 0
    with torch.autocast("cpu", torch.bfloat16):  # which is no matter of theirs
        steady = mfcc(torch.randn(160).repeat(100))
    assert steady.dtype == torch.float32
    assert steady[5:-5, 13:].abs().max() < 1e-2 and steady[5:-5, :13].abs().max() > 1


def test_held_out_recordings_get_the_units_of_the_training():
    model, batch = model_of().eval(), clips()
    features = model.corpus_features({"input_values": batch["input_values"]})
    columns, tensors = model.make_targets({"frames": [f.numpy() for f in features["frames"]]}, seed=3)
    assert [len(units) for units in columns["targets"]] == [23] * 6
    assert not model.unit_centroids.any()
    model.take_targets({name: torch.from_numpy(values) for name, values in tensors.items()}, 1)
    targets = torch.from_numpy(np.stack(columns["targets"]))
    unlabelled = {name: tensor for name, tensor in batch.items() if name != "targets"}
    torch.testing.assert_close(model(**unlabelled).loss, model(**{**batch, "targets": targets}).loss)
    # of a shorter one in a padded batch those of the sound alone
    padded = F.pad(batch["input_values"][:1, :2000], (0, 2000))
    mask = torch.zeros(1, 12, dtype=torch.bool)
    mask[0, 1] = True
    attention_mask = (torch.arange(4000) < 2000).long()[None]
    units = model(padded, attention_mask=attention_mask, mask_time_indices=mask).units[0]
    alone = model(batch["input_values"][:1, :2000], mask_time_indices=mask[:, :6]).units[0]
    assert units[:6].tolist() == alone.tolist() and (units[6:] == -100).all()


def test_a_second_iteration_makes_units_of_a_layer_of_the_first(tmp_path, caplog):
    first = model_of()
    first.export_encoder(tmp_path)
    second = model_of(unit_features="layer", unit_layer=1, seed=1)
    with pytest.raises(UserError, match="`model.take_unit_encoder\\(folder\\)` with the result of the first"):
        second.corpus_features({"input_values": clips()["input_values"]})
    second.take_unit_encoder(tmp_path)
    assert "unit_encoder" not in " ".join(second.state_dict())
    waveforms = clips()["input_values"]
    frames = second.corpus_features({"input_values": waveforms})["frames"]
    stock = HubertModel.from_pretrained(tmp_path).eval()
    expected = stock(waveforms, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(torch.stack(frames).float(), expected, rtol=1e-2, atol=1e-2)
    with caplog.at_level(logging.INFO, logger="hfssl"):
        columns, tensors = second.make_targets({"frames": [f.numpy() for f in frames]}, seed=0)
    assert tensors["unit_centroids"].shape == (10, 32) and len(columns["targets"][0]) == 12
    assert "10 of 10 units in use" in caplog.text
    with pytest.raises(UserError, match="frames that are 32 wide.*that is 16 wide"):
        second.take_unit_encoder(HubertModel(tiny_audio.hubert(hidden_size=16)))
    with pytest.raises(UserError, match="after layer 1, one every 320 samples.*a frame every 160 samples"):
        second.take_unit_encoder(HubertModel(tiny_audio.hubert(conv_stride=(10, 4, 4))))


class Tones:
    """Makes of the sample "7" a recording of tone 7 that is a little longer than that of "6"."""

    def __call__(self, block):
        [samples] = block.columns.values()
        numbers = [int(sample) for sample in samples]
        waves = [tiny_audio.waveforms(20, 1600 + 320 * i)[i].numpy() for i in numbers]
        frames = [tiny_audio.frames_of(tiny_audio.hubert(), len(wave)) for wave in waves]
        columns = {"input_values": waves, **frame_masks(frames, block.keys, mask_ratio=0.5, mask_length=2)}
        return Rows(columns, np.ones(len(waves), np.int64), places=block.places)


def test_a_run_makes_units_first_and_every_parameter_learns(tmp_path):
    model = model_of()
    before = {name: p.clone() for name, p in model.named_parameters()}
    source = MemorySource([f"{i:03d}" for i in range(6)], name="numbers")
    stream = ExactStream(source, Tones(), AudioCollator(), 3)
    args = SSLTrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=3, learning_rate=1e-2, precision="fp32",
        report_to="none", eval_strategy="no", save_strategy="no", logging_steps=1, disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = SSLTrainer(model, args, stream)
    trainer.train()
    assert {name for name, p in model.named_parameters() if torch.equal(p, before[name])} == set()
    assert model.target_passes == 1 and model.unit_centroids.any(dim=1).all()
    log = trainer.state.log_history[0]
    assert {"loss_masked", "loss_unmasked", "loss_penalty"} <= set(log)
    assert 0.0 <= log["unit_accuracy"] <= 1.0 <= log["unit_perplexity"] <= 10.0
    # as long as the recording
    units = trainer.targets.of(np.array([[0, 0, 0, 0], [0, 0, 5, 0]]))["targets"]
    assert units.shape[1] == 18 and (units[0, 8:] == -100).all() and (units[1] >= 0).all()


# -- units ------------------------------------------------------------------------------------------------------------


def test_frames_around_a_few_points_are_their_units():
    generator = np.random.default_rng(0)
    points = 5.0 * np.eye(4, 6, dtype=np.float32)
    which = generator.integers(0, 4, 300)
    frames = points[which] + 0.1 * generator.standard_normal((300, 6)).astype(np.float32)
    centroids = fit_units(frames, 4, seed=0)
    units = nearest_units(frames, centroids)
    assert unit_quality(units, which) == pytest.approx({"purity": 1.0, "mutual_information": 1.0})
    assert np.array_equal(fit_units(frames, 4, seed=0), centroids)
    with pytest.raises(UserError, match="3 frames of sound cannot be in 4 units. Pass `--num_units 2`"):
        fit_units(frames[:3], 4, seed=0)


def test_purity_by_hand():
    found = unit_quality(np.array([0, 0, 0, 1, 1, 2]), np.array([5, 5, 7, 7, 7, 5]))
    assert found["purity"] == pytest.approx(5 / 6)
    assert unit_quality(np.zeros(4, int), np.array([0, 1, 0, 1])) == {"purity": 0.5, "mutual_information": 0.0}


def test_a_sample_of_frames_is_even_over_clips():
    clips = [np.full((length, 2), i, np.float32) for i, length in enumerate((0, 500, 1500))]
    frames = sample_of_frames(clips, 400, seed=1)
    assert frames.shape == (400, 2) and (frames[:, 0] == 1).mean() == pytest.approx(0.25, abs=0.06)
    assert np.array_equal(sample_of_frames(clips, 5000, seed=1)[:, 0], np.repeat([1, 2], [500, 1500]))


def test_units_that_are_all_the_same_are_seen(monkeypatch, caplog):
    one_unit(monkeypatch.setattr)
    model = model_of()
    with caplog.at_level(logging.INFO, logger="hfssl"):
        columns, _ = model.make_targets({"frames": [np.random.randn(50, 39).astype(np.float32)]}, seed=0)
    assert (
        "1 of 10 units in use, as many as 1 of equal frequency; shares of the frames by tenths of the" in caplog.text
    )
    assert describe_units(columns["targets"], 10).endswith("100% 0% 0% 0% 0% 0% 0% 0% 0% 0%")


# -- what it says -----------------------------------------------------------------------------------------------------


def test_what_is_missing_is_explained():
    model, batch = model_of().train(), clips()
    with pytest.raises(UserError, match="which ones its frames have. Train it with `SSLTrainer`"):
        model(batch["input_values"], mask_time_indices=batch["mask_time_indices"])
    with pytest.raises(UserError, match="does not say which: `mask_time_indices` is missing"):
        model(batch["input_values"], targets=batch["targets"])
    with pytest.raises(UserError, match="a wav2vec2-bert reads filter banks"):
        model_of(tiny_audio.wav2vec2_bert())


@pytest.mark.parametrize(
    "config, words",
    [
        ({"num_units": 1}, "num_units.*at least 2, got 1"),
        ({"temperature": 0.0}, "temperature.*above 0, got 0"),
        ({"mask_ratio": 1.0}, "mask_ratio.*got 1.0"),
        ({"masked_weight": 0.0, "unmasked_weight": 0.0}, "both 0: nothing would be learned"),
        ({"unit_features": "wave"}, "unit_features"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        model_of(**config)
