"""Encoded sound to samples: every format that libsndfile knows, every depth, and what is no whole sound."""

import io
import struct

import numpy as np
import pytest
import soundfile

from hfssl.data.audio.decode import DamagedAudio, audio_header, decode_audio, resampled
from hfssl.errors import UserError


RATE = 16_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE // 2) / RATE)).astype(np.float32)


def encoded(samples=TONE, rate=RATE, kind="WAV", subtype=None):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "subtype", "error"),
    [
        ("WAV", "PCM_16", 4e-5), ("WAV", "PCM_U8", 8e-3), ("WAV", "PCM_24", 1e-6), ("WAV", "FLOAT", 0),
        ("WAV", "DOUBLE", 0), ("WAV", "ULAW", 2e-2), ("FLAC", "PCM_16", 4e-5), ("AIFF", "PCM_16", 4e-5),
        ("OGG", "VORBIS", 5e-2), ("OGG", "OPUS", 0.1), ("MP3", None, 5e-2),
    ],
)  # fmt: skip
def test_formats_and_depths(kind, subtype, error):
    data = encoded(kind=kind, subtype=subtype)
    sound = decode_audio(data, RATE)
    assert sound.dtype == np.float32 and sound.shape == TONE.shape
    assert np.abs(sound - TONE)[1000:-1000].max() <= error
    header = audio_header(data)
    assert (header.seconds, header.sampling_rate, header.num_channels) == (0.5, RATE, 1)


def test_channels_are_averaged():
    both = np.stack([TONE, -0.5 * TONE, 0 * TONE], axis=1)
    np.testing.assert_allclose(decode_audio(encoded(both, subtype="FLOAT"), RATE), TONE / 6, atol=1e-7)
    assert audio_header(encoded(both)).num_channels == 3


@pytest.mark.parametrize("rate", [8_000, 22_254, 44_101, 44_100, 96_000])
def test_other_rates_are_resampled(rate):
    time = np.arange(rate // 2) / rate
    tone = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    sound = decode_audio(encoded(tone, rate, subtype="FLOAT"), RATE)
    assert sound.shape == TONE.shape and np.abs(sound - TONE)[200:-200].max() < 5e-3
    if rate == 96_000:  # what the new rate cannot hold is filtered, not folded
        high = (0.5 * np.sin(2 * np.pi * 15_000 * time)).astype(np.float32)
        assert np.abs(decode_audio(encoded(high, rate, subtype="FLOAT"), RATE)[200:-200]).max() < 0.01


def test_rates_that_divide_nothing_need_no_kernel_that_fills_the_memory(monkeypatch):
    made = []
    monkeypatch.setattr("hfssl.data.audio.decode._resampler", lambda *rates: made.append(rates))
    assert len(resampled(TONE, 11_127, RATE)) == -(-8_000 * 16_000 // 11_127) and not made


@pytest.mark.parametrize(("rate", "number"), [(1, 100_000), (2_000_000_011, 8_000)])
def test_a_rate_that_nothing_is_recorded_at_is_damage(rate, number):
    with pytest.raises(DamagedAudio, match=f"its header says {rate:,} samples a second, and it has {number:,}"):
        decode_audio(encoded(np.resize(TONE, number), rate, subtype="PCM_U8"), RATE)


def test_the_length_after_resampling_is_rounded_up():
    assert [len(resampled(np.ones(n, np.float32), 44_100, 16_000)) for n in (1, 3, 441)] == [1, 2, 160]


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "OGG", "MP3"])
@pytest.mark.parametrize("share", [0.99, 0.6])
def test_a_truncated_file_is_damaged(kind, share):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE).astype(np.float32)
    data = encoded(noise, kind=kind)
    with pytest.raises(DamagedAudio):
        decode_audio(data[: int(share * len(data))], RATE)
    assert len(decode_audio(data + b"\0\0", RATE)) == len(noise)  # padding behind it is no damage


def test_a_stream_whose_header_knows_no_length_is_whole():
    data = bytearray(encoded())
    data[4:8] = b"\xff\xff\xff\xff"
    data[40:44] = b"\xff\xff\xff\xff"
    np.testing.assert_array_equal(decode_audio(bytes(data), RATE), decode_audio(encoded(), RATE))


@pytest.mark.parametrize(("kind", "order"), [("WAV", "<"), ("AIFF", ">")])
def test_a_wrong_size_of_the_file_as_a_whole_is_no_damage(kind, order):
    data = bytearray(encoded(kind=kind))
    data[4:8] = struct.pack(f"{order}I", len(data))  # its own 8 bytes are not to be counted
    np.testing.assert_array_equal(decode_audio(bytes(data), RATE), decode_audio(encoded(kind=kind), RATE))


def test_an_mp3_that_does_not_say_its_length_is_whole():
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, 2 * RATE).astype(np.float32)
    sound[: RATE // 2] *= 1e-3  # its first frame is shorter than the others: a guess by it is wrong
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", RATE, 1, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5) as mp3:
        mp3.write(sound)
    data = file.getvalue()
    pytest.importorskip("av")
    second = data.index(data[:2], 4)  # the first frame has the length instead of sound
    assert abs(len(decode_audio(data[second:], RATE)) - len(sound)) < 3000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_damage(value):
    broken = TONE.copy()
    broken[100] = value
    with pytest.raises(DamagedAudio, match="no numbers"):
        decode_audio(encoded(broken, subtype="FLOAT"), RATE)


@pytest.mark.parametrize("data", [b"", b"a letter, no sound" * 50, b"\x89PNG\r\n" + bytes(500), bytes(5000)])
def test_what_is_no_sound_is_damaged(data):
    for read in (audio_header, lambda data: decode_audio(data, RATE)):
        with pytest.raises(DamagedAudio, match="."):
            read(data)


def test_a_file_without_a_sample_is_damaged():
    with pytest.raises(DamagedAudio, match="it holds no sound"):
        decode_audio(encoded(np.zeros(0, np.float32)), RATE)


def test_silence_is_sound():
    np.testing.assert_array_equal(decode_audio(encoded(0 * TONE), RATE), 0 * TONE)


def test_formats_of_ffmpeg_say_what_is_missing(monkeypatch):
    monkeypatch.setattr("hfssl.data.audio.decode.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .hfssl\[audio\]"):
        decode_audio(b"\0\0\0\x20ftypM4A " + bytes(100), RATE)
    with pytest.raises(DamagedAudio):
        decode_audio(b"\0\0\0\x20something" + bytes(100), RATE)


def test_m4a_by_pyav():
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44_100, layout="stereo")
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
        frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]).astype(np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    header = audio_header(file.getvalue())
    assert header.sampling_rate == 44_100 and header.num_channels == 2 and abs(header.seconds - 1) < 0.1
    sound = decode_audio(file.getvalue(), RATE)
    spectrum = np.abs(np.fft.rfft(sound[2000:14000]))
    assert abs(np.argmax(spectrum) * RATE / 12000 - 440) < 2 and abs(np.abs(sound).max() - 0.5) < 0.05
    with pytest.raises(DamagedAudio):
        decode_audio(file.getvalue()[:300], RATE)
