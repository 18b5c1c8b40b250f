"""Recordings that are decoded again instead of being kept, and damaged ones that are counted."""

import inspect

import numpy as np
import pytest
import tiny_audio
import torch
from contract import contract
from sounds import RATE, feature_extractor, hubert, tone, tones, wav

import hfssl
from hfssl import BestRqForPreTraining, BestRqPreTrainingConfig
from hfssl.data.audio.collate import AudioCollator
from hfssl.data.audio.decode import decode_audio
from hfssl.data.audio.rows import AudioFormat, AudioRows
from hfssl.data.audio.streams import audio_stream
from hfssl.data.labelled import HeldSamples, LabelledData
from hfssl.data.sources import MemorySource
from hfssl.evaluation import EvaluationError
from hfssl.evaluation.audio import clips as clips_of
from hfssl.evaluation.audio.clips import Clips
from hfssl.evaluation.audio.embedder import AudioEmbedder
from hfssl.evaluation.audio.finetuning import AudioFinetuning
from hfssl.evaluation.audio.held_out_loss import AudioLossEvaluator, _too_little
from hfssl.evaluation.chance import chance_levels
from hfssl.evaluation.finetune_rows import readable
from hfssl.evaluation.finetune_settings import FinetuneSettings
from hfssl.modeling.feature_extractor import build_feature_extractor
from hfssl.modeling.filter_banks import mfcc
from hfssl.modeling.units import fit_units
from hfssl.training.health import HealthMonitor


def test_only_as_many_are_kept_as_there_is_room_for():
    sounds = [tone(row, 0.2 + 0.1 * row) for row in range(6)]
    samples = [wav(sound, subtype="FLOAT") for sound in sounds]
    clips = Clips(samples, RATE, least=4_800, most=8_000, most_bytes=4 * (4_800 + 4_800 + 6_400))
    assert clips.lengths.tolist() == [4_800, 4_800, 6_400, 8_000, 8_000, 8_000] and len(clips) == 6
    assert sorted(clips._kept.kept) == [0, 1, 2]
    for sound, clip in zip(sounds, clips, strict=True):
        expected = np.pad(sound[:8_000], (0, max(4_800 - len(sound), 0)))
        np.testing.assert_allclose(clip, expected, atol=1e-4)
    assert clips[5] is not clips[5] and clips[0] is clips[0] and np.array_equal(clips[-1], clips[5])


def test_damaged_ones_are_counted_and_too_many_refused(caplog):
    sounds = [wav(tone(row, 0.2)) for row in range(30)]
    sounds[7] = sounds[7][:-600]
    clips = Clips(sounds, RATE, name="some")
    assert "1 of the recordings of some cannot be decoded, and are silent to every encoder: recording 7 (" in (
        caplog.text
    )
    assert not clips[7].any() and clips[8].any() and clips.bad == [7]
    assert readable(np.array([9, 7, 8]), clips.bad).tolist() == [9, 8]
    sounds[9] = b"no sound"
    train, test = tones()
    torn = LabelledData(HeldSamples(sounds), np.arange(30) % 3, train.class_names, "torn", "torn", "audio")
    said = "2 of the 30 recordings of .* cannot be decoded: remove or replace recording 7"
    encoder = hubert()
    finetuning = AudioFinetuning(encoder, feature_extractor(encoder), torn, test, FinetuneSettings())
    for make in (
        lambda: finetuning.clips("train"),
        lambda: AudioEmbedder(sounds, feature_extractor(encoder)),
    ):
        with pytest.raises(EvaluationError, match=said):
            make()
    # of the run's own data, whose share of damaged recordings `--max_bad_fraction` bounds
    assert AudioEmbedder(sounds, feature_extractor(encoder), transform=AudioRows).num_batches


def test_the_held_out_loss_is_the_same_without_room(monkeypatch):
    torch.manual_seed(0)
    model = BestRqForPreTraining(BestRqPreTrainingConfig(encoder_config=tiny_audio.wav2vec2_bert(
        feature_projection_input_dim=160), num_codes=16)).eval()  # fmt: skip
    sounds = [wav(tone(row, 0.5 + 0.3 * (row % 4))) for row in range(20)] + [b"no sound"]
    source = MemorySource(sounds, name="tones", column="audio", modality="audio")
    stream = audio_stream(source, AudioFormat(model.encoder.config, model.config.masking, max_seconds=0.8), 3.0)
    losses = []
    for room in (1 << 30, 0):
        monkeypatch.setattr(clips_of.Kept.__init__, "__defaults__", (room,))
        evaluator = AudioLossEvaluator(sounds, stream.transform, stream.collate, model, batch_seconds=3.0)
        losses += [evaluator.measure(model)["loss"], evaluator.measure(model)["loss"]]
        assert len(evaluator._columns.kept) == (len(evaluator.batches) if room else 0)
    assert len(set(losses)) == 1 and np.isfinite(losses[0])
    # all windows of all recordings, in the batches of their lengths
    assert sum(map(len, evaluator.batches)) == len(stream.transform.decoded(_block(sounds))[0])


@pytest.mark.parametrize("name", ["HubertForPreTraining", "Wav2vec2ForPreTraining", "BestRqForPreTraining"])
def test_targets_that_are_all_the_same_are_called_a_collapse(name, monkeypatch):
    model_class, of = getattr(hfssl, name), contract(name)
    torch.manual_seed(0)
    kind = {"BestRqForPreTraining": {"feature_projection_input_dim": 160}}.get(name, {})
    model = model_class(model_class.config_class(encoder_config=of.encoder(**kind), **of.settings)).eval()
    sounds = [wav(tone(row, 0.5 + 0.3 * (row % 4))) for row in range(24)]
    if name == "HubertForPreTraining":
        frames = [mfcc(torch.from_numpy(decode_audio(sound, RATE))).numpy() for sound in sounds]
        model.unit_centroids.copy_(torch.from_numpy(fit_units(np.concatenate(frames), 10, 0, 1)))
    takes = frozenset(("sample_keys", "starts")) & set(inspect.signature(model.forward).parameters)
    format = AudioFormat(model.encoder.config, model.config.masking, takes)
    evaluator = AudioLossEvaluator(sounds, AudioRows(format), AudioCollator(), model)
    spread_out = chance_levels(model, [evaluator], 1)["eval_chance_loss"]
    in_use = evaluator.measure(model)["target_perplexity"]
    assert in_use > 2.5
    known = chance_levels(model, [evaluator], 1)["eval_chance_loss"]
    of.collapse(monkeypatch.setattr)
    collapsed = evaluator.measure(model)
    assert collapsed["target_perplexity"] == pytest.approx(1.0)
    if name != "Wav2vec2ForPreTraining":  # which tells codes from those of other frames
        # who knows how frequent units are and hears nothing
        assert np.log(in_use) - 1e-6 <= known < spread_out
        assert chance_levels(model, [evaluator], 1)["eval_chance_loss"] == pytest.approx(0.0, abs=1e-6)
    monitor = HealthMonitor(sounds, build_feature_extractor(model.encoder.config), "audio")
    spread = {"health_std": 0.5, "health_effective_rank": 9.0}
    monkeypatch.setattr(monitor, "measure", lambda model: dict(spread))
    past = [{"step": 0, "health_verdict": "untrained", "health_target_perplexity": 5.0, **spread}]
    found = monitor.check(model, 500, past, 1.0, {f"eval_{name}": value for name, value in collapsed.items()})
    assert found["health_verdict"] == "collapsed since step 500" and found["health_target_perplexity"] == 1.0
    assert found["health_cause"] == model.method.collapse_hints(model.config)["one target"]


def test_the_entropy_of_few_frames_is_mended():
    codes = torch.randint(0, 64, (200, 128), generator=torch.Generator().manual_seed(0))  # 128 of 64 codes, 200 times
    counts = torch.nn.functional.one_hot(codes, 64).sum(1).double()
    shares = counts / 128
    plain = torch.special.entr(shares).sum(1)
    assert plain.mean() < np.log(64) - 0.2
    assert (plain + _too_little(counts)).mean() == pytest.approx(np.log(64), abs=0.08)


def _block(sounds):
    from hfssl.data.stream import Block

    return Block({"audio": sounds}, np.zeros(len(sounds), np.uint64), 0)
