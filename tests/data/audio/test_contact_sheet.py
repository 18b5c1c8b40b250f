"""A sheet to look at and to listen to."""

import base64
import io
import re

import numpy as np
import soundfile
import tiny_audio
from PIL import Image

from hfssl.data.audio.contact_sheet import contact_sheet, spans, spectrogram
from hfssl.data.audio.rows import AudioFormat


RATE = 16_000


def wav(sound):
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def tone(hertz, seconds=0.4):
    return (0.1 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def test_a_page_with_players_and_a_picture(tmp_path):
    format = AudioFormat(tiny_audio.hubert(), {"mask_ratio": 0.4, "mask_length": 3}, max_seconds=0.5)
    recordings = [wav(tone(500)), b"torn", wav(0 * tone(500)), wav(tone(2000, 0.8)), wav(tone(900))]
    names = ["<a>", "b", "c", "d", "e"]
    shown = contact_sheet(
        recordings, format, tmp_path / "new" / "sheet.png", 2, names=names, units=lambda values: np.arange(7) % 3
    )
    assert shown == 2
    assert np.asarray(Image.open(tmp_path / "new" / "sheet.png").convert("L")).std() > 20
    page = (tmp_path / "new" / "sheet.html").read_text()
    assert "&lt;a&gt;" in page and '<img src="sheet.png"' in page and "units 0 1 2 0 1 2 0" in page
    assert len(re.findall("of 19 frames hidden", page)) == 2
    sounds = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", page)]
    played = [soundfile.read(io.BytesIO(data), dtype="float32") for data in sounds]
    # the first window of the long one; and each is loud enough to be heard
    assert [(len(sound), rate) for sound, rate in played] == [(6400, RATE), (6400, RATE)]
    np.testing.assert_allclose(played[0][0], 7 * tone(500), atol=1e-3)
    assert contact_sheet([b"torn"], format, tmp_path / "none.png") == 0


def test_filter_banks_can_be_shown_too(tmp_path):
    format = AudioFormat(
        tiny_audio.wav2vec2_bert(feature_projection_input_dim=160), {"mask_ratio": 0.4, "mask_length": 3}
    )
    assert contact_sheet([wav(tone(500))], format, tmp_path / "sheet.png") == 1
    assert "of 19 frames hidden" in (tmp_path / "sheet.html").read_text()


def test_a_spectrogram_has_its_tone_where_it_is():
    loudness = spectrogram(tone(2000))
    assert loudness.max() <= 0.1 and loudness.min() >= -80 and (loudness.argmax(0) == 64).all()


def test_spans():
    assert spans(np.array([False, True, True, False, True])) == [(1, 3), (4, 5)] and spans(np.zeros(3, bool)) == []
