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
    assert said[0] == "Features of train: 400 of 2,000 images, 02:08 left" and len(said) == 4
    assert stream.getvalue() == ""  # no bar
