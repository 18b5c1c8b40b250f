"""Units beside the labels of recordings."""

import numpy as np
import pytest
import tiny_audio
import torch
from sounds import tones

from hfssl import HubertForPreTraining, HubertPreTrainingConfig
from hfssl.data.audio.decode import decode_audio
from hfssl.data.audio.rows import AudioFormat, normalized
from hfssl.data.audio.streams import audio_stream
from hfssl.data.sources import MemorySource
from hfssl.evaluation.audio.unit_quality import UnitQuality, plot_units
from hfssl.modeling.units import fit_units, unit_quality


def test_of_many_recordings_each_class_has_its_share(monkeypatch):
    train, test = tones()
    order = np.argsort(test.labels, kind="stable")  # as those of class folders lie
    data = test.take(order, "sorted")
    monkeypatch.setattr("hfssl.evaluation.audio.unit_quality.MOST_SAMPLES", 6)
    config = HubertPreTrainingConfig(encoder_config=tiny_audio.hubert(), num_units=2)
    source = MemorySource(list(train.samples), name="tones", column="audio", modality="audio")
    stream = audio_stream(source, AudioFormat(config.encoder_config, config.masking, max_seconds=1.0), 3.0)
    labels = np.concatenate([of for of, _ in UnitQuality({"pitch": data}, stream)._batches(data)])
    assert np.bincount(labels).tolist() == [2, 2, 2]


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_units_are_compared_with_the_labels_of_their_recordings(tmp_path, norm, caplog):
    train, test = tones()
    config = HubertPreTrainingConfig(encoder_config=tiny_audio.hubert(feat_extract_norm=norm), num_units=2)
    torch.manual_seed(0)
    model = HubertForPreTraining(config).eval()
    source = MemorySource(list(train.samples), name="tones", column="audio", modality="audio")
    stream = audio_stream(source, AudioFormat(model.encoder.config, config.masking, max_seconds=1.0), 3.0)
    evaluator = UnitQuality({"pitch": test}, stream)
    assert evaluator.measure(model) == {}  # there are no units yet
    sounds = [torch.from_numpy(normalized(decode_audio(sample, 16_000)))[None] for sample in test.samples]
    frames = [model.corpus_features({"input_values": sound})["frames"][0].numpy() for sound in sounds]
    model.take_targets({"unit_centroids": torch.from_numpy(fit_units(np.concatenate(frames), 2, seed=0))}, 1)
    with caplog.at_level("INFO"):
        found = evaluator.measure(model)
    units = [model.units_of(sound)[0].numpy() for sound in sounds]
    labels = np.repeat(test.labels, [len(each) for each in units])
    expected = unit_quality(np.concatenate(units), labels)
    assert found == {f"unit_{name}_pitch": pytest.approx(value) for name, value in expected.items()}
    # two units hold two of three pitches apart
    assert found["unit_purity_pitch"] > 0.6 and "Units and pitch of 21 recordings: purity 0." in caplog.text
    [purity, information] = evaluator.results(model, "tiny")
    assert purity.baselines["majority"] == pytest.approx(np.bincount(labels).max() / len(labels))
    assert (purity.value, information.value) == tuple(found.values())
    plot_units(np.bincount(np.concatenate(units), minlength=2), tmp_path / "units.png")
    assert (tmp_path / "units.png").stat().st_size > 1000
