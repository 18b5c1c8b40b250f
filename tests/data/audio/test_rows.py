"""From recordings to batches: windows, what is left out, padding that never leaks, cuts, and streams that are exact."""

import io
from itertools import islice

import numpy as np
import pytest
import soundfile
import tiny_audio
import torch
from transformers import AutoModel, SeamlessM4TFeatureExtractor, Wav2Vec2FeatureExtractor

from hfssl.data.audio.collate import AudioCollator, CutCollator, WholeCollator
from hfssl.data.audio.decode import decode_audio
from hfssl.data.audio.rows import AudioFormat, AudioRows, filter_banks, normalized
from hfssl.data.audio.streams import audio_stream, mean_seconds
from hfssl.data.sources import DataError, MemorySource
from hfssl.data.stream import Block
from hfssl.errors import UserError
from hfssl.functional import keyed
from hfssl.functional.keyed import Use


RATE = 16_000
MASKING = {"mask_ratio": 0.5, "mask_length": 3, "num_negatives": 4}
TAKES = frozenset(("sample_keys", "starts"))


def noise(seconds, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)


def wav(sound, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def block(sounds):
    keys = keyed.key(Use.SAMPLE, 0, np.arange(len(sounds)))
    return Block({"audio": [sound if isinstance(sound, bytes) else wav(sound) for sound in sounds]}, keys, 5)


def by_place(rows, name="input_values"):
    order = np.lexsort((rows.places[:, 3], rows.places[:, 2]))
    return [tuple(rows.places[i, 2:]) for i in order], [rows.columns[name][i] for i in order]


def test_long_recordings_become_windows_of_equal_length():
    format = AudioFormat(tiny_audio.hubert(), max_seconds=0.5, min_seconds=0.1, normalize=False)
    sounds = [noise(0.5), noise(0.51), noise(1.3, 1), noise(0.1, 2)]
    rows = AudioRows(format)(block(sounds))
    places, values = by_place(rows)
    assert places == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0)]
    np.testing.assert_array_equal(np.concatenate(values), np.concatenate(sounds))
    assert [len(value) for value in values] == [8000, 4080, 4080, 6933, 6933, 6934, 1600]
    assert rows.num_units.sum() == pytest.approx(2.41) and rows.costs.tolist() == (rows.num_units * RATE).tolist()
    assert not rows.bad and not rows.num_empty


def test_what_is_left_out_and_why():
    format = AudioFormat(tiny_audio.hubert(), max_seconds=0.5)
    half_silent = np.concatenate([noise(0.5), np.zeros(8000, np.float32)])
    nan = noise(0.3)
    nan[7] = np.nan
    sounds = [
        np.zeros(4000, np.float32), noise(0.05), half_silent, wav(noise(1))[:9000], b"no sound", nan,
        np.zeros(0, np.float32), np.stack([noise(0.2), -noise(0.2, 1)], axis=1), 1e-2 * noise(0.2, 3),
    ]  # fmt: skip
    rows = AudioRows(format)(block(sounds))
    # stereo is a mean, and noise that is hardly there is kept; of the half-silent one its first window
    assert by_place(rows)[0] == [(2, 0), (7, 0), (8, 0)]
    assert rows.num_empty == 2  # silent, and too short: neither is damaged
    assert [sample for sample, _ in rows.bad] == [3, 4, 5, 6]
    assert all(np.isfinite(value).all() and abs(value.std() - 1) < 0.2 for value in rows.columns["input_values"])


def test_eight_bits_and_other_rates():
    sound = noise(0.3)
    file = io.BytesIO()
    soundfile.write(file, sound, 96_000, format="WAV", subtype="PCM_U8")
    rows = AudioRows(AudioFormat(tiny_audio.hubert(), min_seconds=0.05))(block([file.getvalue()]))
    assert [len(value) for value in rows.columns["input_values"]] == [800]


def test_a_row_depends_on_its_sample_alone():
    format = AudioFormat(tiny_audio.hubert(), MASKING, TAKES, max_seconds=0.5)
    sounds = [noise(0.4 + 0.13 * i, i) for i in range(6)]
    whole, some = block(sounds), block(sounds)
    part = Block({"audio": some.columns["audio"][2:4]}, some.keys[2:4], 9, some.places[2:4])
    rows, few = AudioRows(format)(whole), AudioRows(format)(part)
    all_of, places = {}, [tuple(place) for place in rows.places]
    for name, values in rows.columns.items():
        all_of[name] = dict(zip(places, values, strict=True))
    assert set(rows.columns) == {"input_values", "mask_time_indices", "negative_indices", "sample_keys", "starts"}
    for name, values in few.columns.items():
        for place, value in zip(few.places, values, strict=True):
            np.testing.assert_array_equal(value, all_of[name][tuple(place)])
    assert len(set(rows.columns["sample_keys"].tolist())) == len(rows) == 12  # also of the windows of one recording


def test_inputs_are_those_of_the_stock_feature_extractors():
    sound = noise(0.513)
    stock = Wav2Vec2FeatureExtractor(do_normalize=True)(sound, sampling_rate=RATE)["input_values"][0]
    np.testing.assert_allclose(normalized(sound), stock, atol=1e-5)
    for seconds, length in ((0.513, 24), (0.52, 25)):  # of 49 filter banks, and of 50
        sound = noise(seconds)
        stock = SeamlessM4TFeatureExtractor(padding_value=1)(sound, sampling_rate=RATE, return_tensors="np")
        expected = stock["input_features"][0][stock["attention_mask"][0].astype(bool)]
        found = filter_banks(sound, 2)
        assert found.shape == expected.shape == (length, 160)
        np.testing.assert_allclose(found, expected, atol=2e-3)
    format = AudioFormat(
        tiny_audio.wav2vec2_bert(feature_projection_input_dim=160), {"mask_ratio": 0.5, "mask_length": 3}
    )
    rows = AudioRows(format)(block([sound]))
    [features], [mask] = rows.columns["input_features"], rows.columns["mask_time_indices"]
    assert features.shape == (25, 160) and mask.shape == (25,)


@torch.no_grad()
@pytest.mark.parametrize("name", ["hubert", "wavlm", "wav2vec2", "wav2vec2_bert"])
def test_padding_never_leaks(name):
    config = getattr(tiny_audio, name)(**({"feature_projection_input_dim": 160} if name == "wav2vec2_bert" else {}))
    encoder = AutoModel.from_config(config).eval()
    format = AudioFormat(config)
    sounds = [noise(0.3, 1), noise(0.9, 2), noise(0.61, 3)]
    rows = AudioRows(format)(block(sounds))
    batch = AudioCollator()(rows.columns)
    assert batch["attention_mask"].dtype == torch.int64
    together = encoder(**batch).last_hidden_state
    main = encoder.main_input_name
    for row, value in enumerate(rows.columns[main]):
        alone = encoder(**{main: torch.from_numpy(value)[None]}).last_hidden_state[0]
        assert alone.shape[0] == format.frames(int(rows.costs[row]))
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=0)
    same = AudioRows(format)(block([noise(0.3), noise(0.3, 1)]))
    assert "attention_mask" not in AudioCollator()(same.columns)


@torch.no_grad()
def test_with_group_norm_rows_are_cut_and_never_padded():
    config = tiny_audio.hubert(feat_extract_norm="group", do_stable_layer_norm=False)
    encoder, format = AutoModel.from_config(config).eval(), AudioFormat(config, MASKING, TAKES)
    assert format.is_cut and not AudioFormat(tiny_audio.hubert()).is_cut
    sounds = [noise(0.3, 1), noise(0.9, 2), noise(0.61, 3)]
    rows = AudioRows(format)(block(sounds))
    batch = CutCollator(format)(rows.columns)
    assert set(batch) == {
        "input_values", "mask_time_indices", "negative_indices", "masked_positions", "sample_keys", "starts",
    }  # fmt: skip
    assert batch["input_values"].shape == (3, 4800)
    starts = batch["starts"].tolist()
    assert len(set(starts)) == 3 and all(0 <= start <= 9600 for start in starts)
    hidden = encoder(batch["input_values"]).last_hidden_state
    assert hidden.shape[1] == batch["mask_time_indices"].shape[1] == format.frames(4800)
    for row, sample in enumerate(rows.places[:, 2]):
        piece = normalized(sounds[sample][starts[row] : starts[row] + 4800])
        np.testing.assert_array_equal(batch["input_values"][row], piece)
        alone = encoder(torch.from_numpy(piece)[None]).last_hidden_state[0]
        torch.testing.assert_close(hidden[row], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_pass_over_the_corpus_gets_whole_windows(norm):
    format = AudioFormat(tiny_audio.hubert(feat_extract_norm=norm), MASKING, TAKES, max_seconds=1.0)
    sounds = [noise(seconds, i) for i, seconds in enumerate([0.3, 0.9, 0.3, 0.8, 0.31, 0.3])]
    rows = AudioRows(format)(block(sounds))
    batches = list(WholeCollator(format, 16_000)(rows.columns))
    assert sorted(np.concatenate([numbers for numbers, _ in batches]).tolist()) == list(range(6))
    for numbers, batch in batches:
        values = batch["input_values"]
        assert set(batch) <= {"input_values", "attention_mask"} and values.numel() <= 16_000
        assert norm == "layer" or "attention_mask" not in batch
        for number, value in zip(numbers, values, strict=True):
            expected = normalized(sounds[rows.places[number, 2]])
            np.testing.assert_array_equal(value[: len(expected)], expected)
            assert not value[len(expected) :].any()
    assert any(len(numbers) > 1 for numbers, _ in batches)


def source(number=60):
    lengths = 0.2 + 0.8 * keyed.uniform(keyed.key(Use.SAMPLE, 1, np.arange(number)))
    return MemorySource(
        [wav(noise(s, i)) for i, s in enumerate(lengths)], name="noises", column="audio", modality="audio"
    )


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_stream_is_exact_and_pads_little(norm):
    data, format = source(), AudioFormat(tiny_audio.hubert(feat_extract_norm=norm), MASKING, TAKES, max_seconds=1.5)

    def stream(**options):
        return audio_stream(data, format, 3.0, seed=3, lanes=2, **options)

    whole = stream()
    batches = list(islice(whole, 40))
    assert whole.unit == "seconds" and whole.passes[""] >= 1.0
    assert all(batch["input_values"].numel() <= 3 * RATE for batch in batches)
    slots = sum(batch["input_values"].numel() for batch in batches) / RATE
    # what is padding, or cut away
    assert abs(1 - whole.counts["units"] / slots) < 0.05
    first = stream(num_workers=1)
    for _ in islice(first, 15):
        pass
    again = stream()
    again.load_state_dict(first.state_dict())
    for batch, expected in zip(again, batches[15:], strict=False):
        assert set(batch) == set(expected)
        for name, tensor in batch.items():
            assert torch.equal(tensor, expected[name]), name
    parts = [iter(stream(rank=rank, world_size=2)) for rank in (0, 1)]
    for number, expected in enumerate(batches[:10]):
        assert torch.equal(next(parts[number % 2])["input_values"], expected["input_values"])


def test_silence_is_counted_apart_and_too_much_damage_stops():
    good = [wav(noise(0.3, i)) for i in range(40)]
    silent = [wav(np.zeros(4800 + i, np.float32)) for i in range(10)]
    format = AudioFormat(tiny_audio.hubert(), max_seconds=1.0)
    quiet = audio_stream(
        MemorySource(good + silent, name="quiet", column="audio", modality="audio"), format, 2.0, lanes=1
    )
    for _ in islice(quiet, 20):
        pass
    assert quiet.counts["samples_empty"] >= 10 and not quiet.counts["samples_bad"]
    torn = audio_stream(
        MemorySource([*good, b"torn"], name="torn", column="audio", modality="audio"), format, 2.0, lanes=1
    )
    with pytest.raises(DataError, match="1 of 41 samples .* Format not recognised"):
        for _ in islice(torn, 50):
            pass


def test_settings_that_do_not_fit_are_explained():
    with pytest.raises(
        UserError, match=r"`--min_seconds`\) a hubert makes 0 frames, .* `--min_seconds (0\.\d+)`"
    ) as found:
        AudioFormat(tiny_audio.hubert(), min_seconds=0.02)
    said = float(str(found.value).split("`--min_seconds ")[1].split("`")[0])
    assert AudioFormat(tiny_audio.hubert(), min_seconds=said).frames(round(said * RATE)) >= 2
    with pytest.raises(UserError, match="got 2 and 1"):
        AudioFormat(tiny_audio.hubert(), min_seconds=2, max_seconds=1)
    with pytest.raises(UserError, match="reads neither waveforms nor"):
        AudioFormat(tiny_audio.wav2vec2_bert())
    with pytest.raises(DataError, match=r"batch of 1 s \(`--batch_seconds`\) .* 2 s"):
        audio_stream(source(8), AudioFormat(tiny_audio.hubert(), max_seconds=2), 1.0)
    with pytest.raises(DataError, match="No recording of .* can be read"):
        mean_seconds(MemorySource([b"a", b"b"], name="none", column="audio", modality="audio"))
    assert mean_seconds(source()) == pytest.approx(
        np.mean([len(decode_audio(s, RATE)) / RATE for s in source()._columns["audio"]])
    )
