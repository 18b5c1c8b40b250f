"""Features of recordings: what a plain `transformers` loop gives of each alone, whatever it was padded with."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from labelled import save_bert
from sounds import RATE, ast, feature_extractor, hubert, save, tone, tones, wav, wav2vec2_bert
from transformers import AutoFeatureExtractor, AutoModel

from hfssl.data.audio.collate import batches_by_length
from hfssl.evaluation import EvaluationError
from hfssl.evaluation.audio.encoder import AudioEncoder, pads_exactly
from hfssl.evaluation.audio.features import AudioReader, EncoderLayers, MfccStatistics, probe_features
from hfssl.evaluation.audio.samples import AudioSampleFeatures
from hfssl.evaluation.extraction import extract
from hfssl.evaluation.knn import KnnEvaluator
from hfssl.evaluation.modality import modality_of_encoder
from hfssl.evaluation.online_knn import OnlineKnn
from hfssl.evaluation.sample_features import EmbedSettings


ENCODERS = {
    "layer norm": hubert,
    "group norm": lambda: hubert(feat_extract_norm="group", do_stable_layer_norm=False),
    "filter banks": wav2vec2_bert,
    "patches": ast,
}


@torch.no_grad()
def plain(folder, clip):
    """What a user would write for one recording: the mean of each layer."""
    model, extractor = AutoModel.from_pretrained(folder).eval(), AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(clip, sampling_rate=RATE, return_tensors="pt")
    outputs = model(**inputs, output_hidden_states=True)
    hidden = [*outputs.hidden_states[:-1], outputs.last_hidden_state]
    if model.config.model_type == "audio-spectrogram-transformer":
        # (frequencies, times) of patches after CLS and distillation token; those count that are over the clip
        times = max(1, (len(clip) // 160 - 16) // 10 + 1)
        hidden = [state[:, 2:].unflatten(1, (2, -1))[:, :, :times].flatten(1, 2) for state in hidden]
    if model.config.model_type == "wav2vec2-bert":  # of two filter banks a frame, the last may be half of one
        hidden = [state[:, : inputs["attention_mask"].sum()] for state in hidden]
    return np.stack([state[0].mean(0).numpy() for state in hidden])


@pytest.mark.parametrize("name", ENCODERS)
def test_equal_those_of_a_plain_loop_over_single_recordings(name, tmp_path):
    folder = save(ENCODERS[name](), tmp_path)
    clips = [tone(row, seconds) for row, seconds in enumerate((0.61, 0.3, 0.47, 0.3))]
    audio = AudioEncoder(folder)
    layers = EncoderLayers(audio, audio.load(), batch_size=3)
    assert layers.only_equal == (name == "group norm") == (not pads_exactly(layers.model, layers.processor))
    found = layers.layers(clips)
    assert found.shape == (4, 3, 16) and found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack([plain(folder, clip) for clip in clips]), atol=1e-5)
    # the hidden length of the longest decides nothing
    np.testing.assert_allclose(layers.layers(clips[1:2]), found[1:2], atol=1e-5)


def test_long_recordings_are_cut_into_windows_that_count_by_their_length(tmp_path):
    audio = AudioEncoder(save(ast(), tmp_path))  # of 64 frames, 0.64 s
    layers = EncoderLayers(audio, audio.load())
    clip = tone(0, 1.5)
    parts = layers.layers(np.array_split(clip, 3))
    np.testing.assert_allclose(layers.layers([clip])[0], parts.mean(0), atol=1e-5)


def test_short_and_silent_recordings_have_features(tmp_path):
    audio = AudioEncoder(save(hubert(), tmp_path))
    layers = EncoderLayers(audio, audio.load())
    found = layers.layers([np.zeros(1, np.float32), np.zeros(RATE, np.float32), tone(0)])
    assert np.isfinite(found).all() and not np.allclose(found[1], found[2])
    assert np.isfinite(MfccStatistics(RATE)([np.zeros(1, np.float32), np.zeros(RATE, np.float32)])).all()


def test_batches_hold_about_equally_long_recordings():
    lengths = np.array([5, 100, 5, 7, 90, 6])
    assert [batch.tolist() for batch in batches_by_length(lengths, 200, 3)] == [[0, 2, 5], [3, 4], [1]]
    assert [batch.tolist() for batch in batches_by_length(lengths, 179, 3)] == [[0, 2, 5], [3], [4], [1]]
    assert batches_by_length(lengths, 10, 9)[-1].tolist() == [1]
    equal = [batch.tolist() for batch in batches_by_length(lengths, 1000, only_equal=True)]
    assert equal == [[0, 2], [5], [3], [4], [1]]


def test_features_of_both_splits_and_their_baselines(tmp_path):
    train, test = tones()
    found = probe_features(save(hubert(1), tmp_path / "encoder"), None, train, test, cache_dir=tmp_path / "features")
    assert set(found.train) == {"encoder", "random_init", "mfcc_statistics"}
    assert found.layers["encoder"][1].shape == (21, 3, 16) and found.train["mfcc_statistics"].shape == (45, 78)
    np.testing.assert_array_equal(found.train["encoder"], found.layers["encoder"][0][:, -1])
    np.testing.assert_allclose(found.train["mfcc_statistics"].mean(0), 0, atol=1e-4)
    assert not np.allclose(found.train["encoder"], found.train["random_init"])
    again = probe_features(hubert(1), feature_extractor(hubert()), train, test, cache_dir=tmp_path / "features")
    np.testing.assert_array_equal(again.test["encoder"], found.test["encoder"])
    assert len(list((tmp_path / "features").iterdir())) == 6  # what is on disk is found again


def test_damaged_recordings_are_silent_and_named_or_too_many(caplog):
    train, _ = tones()
    statistics = {"mfcc": MfccStatistics(RATE)}
    some = train.take(np.arange(40), "some")
    some.samples[3] = some.samples[3][:50]
    found = extract(some, statistics, AudioReader(RATE))["mfcc"]
    silence = statistics["mfcc"]([np.zeros(RATE, np.float32)])
    np.testing.assert_array_equal(found[3], silence[0])
    assert "1 of the recordings of some cannot be decoded, and are silent to every encoder: recording 3 (" in (
        caplog.text
    )
    some.samples[4] = b"no sound"
    with pytest.raises(
        EvaluationError, match=r"2 of the 40 recordings of some cannot be decoded: .* recording 3 \(.*, recording 4 \("
    ):
        extract(some, statistics, AudioReader(RATE))
    some.samples[:] = [b""] * 40
    with pytest.raises(EvaluationError, match=r"recording 28 \(.*, recording 29 \([^,]*, and 10 more\.$"):
        extract(some, statistics, AudioReader(RATE))


def test_knn_while_training_is_the_protocols_figure(tmp_path):
    train, test = tones()
    model = hubert().train()
    online = OnlineKnn(train, test, feature_extractor(model), batch_size=10)
    measured = online.measure(SimpleNamespace(encoder=model))
    at_20, _ = KnnEvaluator(train, test)(save(model, tmp_path))
    assert measured == {"knn_accuracy": pytest.approx(at_20.value)}
    assert model.training and len(online.measured_on) == 21


def test_features_of_a_whole_data_set_may_be_of_a_layer(tmp_path):
    folder = str(save(hubert(), tmp_path))
    first = AudioSampleFeatures(folder, EmbedSettings(layer=1))
    clips = [first.prepare(wav(tone(row, 0.5), RATE)) for row in (0, 1)]
    found = first(clips).columns["features"]
    np.testing.assert_allclose(found, np.stack([plain(folder, clip)[1] for clip in clips]), atol=1e-5)
    last = AudioSampleFeatures(folder, EmbedSettings())
    np.testing.assert_allclose(last(clips).columns["features"][0], plain(folder, clips[0])[-1], atol=1e-5)
    assert last.identity != first.identity and last.pooling == "mean"
    assert "no sound" in first.prepare(wav(np.zeros(0, np.float32))).reason
    with pytest.raises(EvaluationError, match="`--layer 3`: this hubert has the layers 0 .* to 2"):
        AudioSampleFeatures(folder, EmbedSettings(layer=3))


def test_what_an_encoder_takes_says_its_modality(tmp_path):
    for name, make in ENCODERS.items():
        assert modality_of_encoder(str(save(make(), tmp_path / name))).name == "audio"


def test_mistakes_end_in_one_sentence(tmp_path):
    bert = save_bert(tmp_path / "bert")
    with pytest.raises(EvaluationError, match='"bert" model, which takes `input_ids` and no recordings'):
        AudioEncoder(bert)
    hubert().save_pretrained(tmp_path / "bare")
    with pytest.raises(EvaluationError, match=r"has no feature extractor .* Wav2Vec2FeatureExtractor\("):
        AudioEncoder(tmp_path / "bare")
    wav2vec2_bert().save_pretrained(tmp_path / "foreign")
    feature_extractor(hubert()).save_pretrained(tmp_path / "foreign")
    with pytest.raises(EvaluationError, match=r"does not take what its feature extractor \(Wav2Vec2FeatureExtractor"):
        AudioEncoder(tmp_path / "foreign").load()
    with pytest.raises(EvaluationError, match="needs its feature extractor beside it"):
        AudioEncoder(hubert())
