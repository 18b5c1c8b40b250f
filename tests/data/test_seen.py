"""Digests of what an encoder was trained on."""

import numpy as np
import pytest
from text_encoder import opinions, save_text_encoder

from hfssl.data import seen
from hfssl.data.seen import num_seen, write_seen
from hfssl.data.sources import MemorySource, identity
from hfssl.evaluation.probes import warn_of_seen


TEXTS = [f"text {number}" for number in range(300)]
IMAGES = [bytes([number, 1, 2]) for number in range(200)]


@pytest.mark.parametrize("samples, modality", [(TEXTS, "text"), (IMAGES, "image")])
def test_what_was_trained_on_is_known_again(tmp_path, samples, modality):
    source = MemorySource(samples, name="mine", column=modality, modality=modality)
    write_seen(tmp_path, source, frozenset(map(identity, samples[:20])))
    assert num_seen(tmp_path, samples[20:30]) == 10
    other = "new" if modality == "text" else b"new"
    assert num_seen(tmp_path, [*samples[15:22], other]) == 2  # what was left out is new
    assert num_seen(tmp_path / "nowhere", samples) == 0
    (tmp_path / "image").mkdir()
    assert num_seen(tmp_path / "image", samples[20:30]) == 10  # one side of pairs
    (tmp_path / "seen.npy").write_bytes(b"damaged")
    assert num_seen(tmp_path, samples) == 0


def test_of_large_data_a_sample_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(seen, "MOST_SAMPLES", 40)
    write_seen(tmp_path, MemorySource(IMAGES, name="mine", column="image", modality="image"))
    assert 40 <= len(np.load(tmp_path / "seen.npy")) < 60
    assert 40 <= num_seen(tmp_path, IMAGES) < 60


def test_probes_say_it(tmp_path, caplog):
    folder, test = save_text_encoder(tmp_path), opinions(20)
    warn_of_seen(folder, test.samples, "texts of opinions")
    assert caplog.text == ""
    write_seen(folder, MemorySource(list(test.samples[:7]), name="mine"))
    warn_of_seen(folder, test.samples, "texts of opinions")
    assert "At least 7 of the 20 texts of opinions are among those that this encoder was trained on" in caplog.text
