"""Views of recordings for contrast: spectrograms as the stock extractor makes them, each from the key of its sample."""

import io

import numpy as np
import pytest
import soundfile
import tiny_audio
from transformers import ASTConfig, ASTFeatureExtractor

from hfssl.data.audio.views import AudioViewArguments, AudioViews
from hfssl.data.sources import MemorySource
from hfssl.data.stream import Block, ExactStream
from hfssl.errors import UserError
from hfssl.functional import keyed
from hfssl.functional.keyed import Use


RATE = 16_000
ENCODER = ASTConfig(max_length=64, num_mel_bins=32, patch_size=16, frequency_stride=16, time_stride=16)
PLAIN = {
    "crop_scale": (1.0, 1.0), "gain": 0.0, "noise_probability": 0.0, "mix_probability": 0.0, "time_mask": 0.0,
    "frequency_mask": 0.0,
}  # fmt: skip


def noise(seconds, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)


def wav(sound):
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def block(sounds):
    encoded = [sound if isinstance(sound, bytes) else wav(sound) for sound in sounds]
    return Block({"audio": encoded}, keyed.key(Use.SAMPLE, 0, np.arange(len(sounds))), 5)


def test_without_changes_it_is_the_stock_spectrogram():
    stock = ASTFeatureExtractor(max_length=64, num_mel_bins=32)
    views = AudioViews(ENCODER, AudioViewArguments(**PLAIN))
    for seconds in (0.3, (63 * 160 + 400) / RATE):
        sound = noise(seconds)
        rows = views.rows(block([sound]))
        expected = stock(sound, sampling_rate=RATE, return_tensors="np")["input_values"][0]
        for view in rows.columns["input_values"][0]:
            np.testing.assert_allclose(view, expected, atol=1e-5)
    assert views.collator("cpu")(rows.columns)["input_values"].shape == (1, 2, 64, 32)


@pytest.mark.parametrize(
    "change", [
        {"crop_scale": (0.4, 0.8)}, {"gain": 20.0}, {"noise_probability": 1.0}, {"mix_probability": 1.0},
        {"time_mask": 0.9}, {"frequency_mask": 0.9},
    ],
)  # fmt: skip
def test_each_flag_changes_views(change):
    sounds = [noise(0.6, 1), noise(0.5, 2), 0.1 * noise(0.7, 3)]
    plain = AudioViews(ENCODER, AudioViewArguments(**PLAIN)).rows(block(sounds)).columns["input_values"]
    views = AudioViews(ENCODER, AudioViewArguments(**PLAIN | change)).rows(block(sounds)).columns["input_values"]
    assert np.abs(views - plain).max() > 0.05 and np.abs(views[:, 0] - views[:, 1]).max() > 0.05
    again = AudioViews(ENCODER, AudioViewArguments(**PLAIN | change)).rows(block(sounds)).columns["input_values"]
    np.testing.assert_array_equal(views, again)
    if "gain" in change:  # the same everywhere: a factor of the power
        shift = (views[:2, 0] - plain[:2, 0])[:, :40]
        assert shift.std(axis=(1, 2)).max() < 1e-4
    if "mask" in next(iter(change)):
        axis = 3 if "frequency_mask" in change else 2
        hidden = (views == 0).all(axis=5 - axis).sum(axis=-1)
        assert hidden.max() > 3 and np.array_equal(views[views != 0], plain[views != 0])


def test_what_is_left_out():
    rows = AudioViews(ENCODER).rows(block([b"torn", np.zeros(8000, np.float32), noise(0.05), noise(0.3)]))
    assert [sample for sample, _ in rows.bad] == [0] and rows.num_empty == 2 and rows.places[:, 2].tolist() == [3]
    assert np.isfinite(rows.columns["input_values"]).all() and rows.num_units.tolist() == [0.3]


def test_a_stream_of_views_is_exact():
    data = MemorySource([wav(noise(0.3, i)) for i in range(20)], name="noises", column="audio", modality="audio")
    views = AudioViews(ENCODER)
    first, again = (
        ExactStream(data, views.rows, views.collator("cpu"), 6, seed=1, block_bytes=100_000) for _ in range(2)
    )
    batches = [batch["input_values"] for _, batch in zip(range(5), first, strict=False)]
    for _, _ in zip(range(2), again, strict=False):
        pass
    rest = ExactStream(data, views.rows, views.collator("cpu"), 6, seed=1, block_bytes=100_000)
    rest.load_state_dict(again.state_dict())
    for expected, batch in zip(batches[2:], rest, strict=False):
        assert np.array_equal(batch["input_values"], expected)


def test_mistakes_are_explained():
    with pytest.raises(UserError, match="a hubert takes none. Choose .* ast"):
        AudioViews(tiny_audio.hubert())
    for name, value, said in (
        ("crop_scale", (0.9, 0.5), "0.9 0.5"), ("noise_probability", 1.5, "1.5"), ("mix_level", (0, -3), "0 -3"),
        ("gain", -1, "-1"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"--{name}.*got {said}"):
            AudioViewArguments(**{name: value})
