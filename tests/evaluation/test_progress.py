"""Progress where there is no terminal."""

import io

from hfssl.evaluation.progress import Progress


def test_a_log_gets_a_line_now_and_then(monkeypatch, caplog):
    caplog.set_level("INFO", logger="hfssl")
    clock, stream = [0.0], io.StringIO()
    stream.isatty = lambda: False
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("hfssl.evaluation.progress.time.monotonic", lambda: clock[0])
    with Progress(2000, "Features of train", " images") as progress:
        for _ in range(20):
            clock[0] += 8.0
            progress.update(100)
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "Features of train takes about 02:32"
    assert said[1] == "Features of train: 500 of 2,000 images, 02:00 left" and len(said) == 5
    assert stream.getvalue() == ""  # no bar


def test_what_comes_after_it_is_said_in_the_first(monkeypatch, caplog):
    caplog.set_level("INFO", logger="hfssl")
    clock, stream = [0.0], io.StringIO()
    stream.isatty = lambda: True  # where a bar shows the time of this one only
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("hfssl.evaluation.progress.time.monotonic", lambda: clock[0])
    with Progress(200, "encoder, 60 labels, seed 0", " steps", then=1000) as progress:
        for _ in range(100):
            clock[0] += 0.5
            progress.update()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["encoder, 60 labels, seed 0 takes about 01:36, with what comes after it 09:56"]
