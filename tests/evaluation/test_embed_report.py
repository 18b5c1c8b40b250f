"""Duplicates, outliers and clusters among features."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
from labelled import png, processor

from hfssl.data.mixtures import open_mixture
from hfssl.evaluation import EvaluationError, embed_report
from hfssl.evaluation.embed_report import Report, draw_report, parse_report, report, write_report
from hfssl.evaluation.image import pictures


def features():
    """Two clouds of samples; 40 is a copy of 3 times two, 41 nearly one of 9, and 42 lies by itself."""
    rng = np.random.default_rng(0)
    clouds = rng.normal(size=(40, 16)) * 0.3 + np.where(np.arange(40) % 2, 1, -1)[:, None] * np.eye(16)[0] * 3
    nearly = clouds[9] + 1e-3 * rng.normal(size=16)
    x = np.stack([*clouds, clouds[3], nearly, -9 * np.eye(16)[5]])
    return (x + 5.0).astype(np.float32)  # what all have in common says nothing


@pytest.mark.parametrize("chunk", [1 << 26, 100])
def test_what_stands_out(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(embed_report, "_CHUNK", chunk)
    found = report(features(), same=0.999)
    assert [pair[:2] for pair in found.pairs] == [(3, 40), (9, 41)]
    assert found.pairs[0][2] == pytest.approx(1.0, abs=1e-5)
    assert found.outliers[0][0] == 42 and len(found.outliers) == 4
    names = [f"{number}.png" for number in range(43)]
    said = write_report(found, ["duplicates", "outliers"], names, tmp_path)
    assert said[0].startswith("2 pairs are nearly the same to this encoder, such as 3.png and 40.png")
    assert said[1].startswith("Least like any other is 42.png; the 4 oddest: ")
    rows = list(csv.reader((tmp_path / "duplicates.csv").open()))
    assert rows[0] == ["sample", "other", "cosine"] and rows[2][:2] == ["9.png", "41.png"] and len(rows) == 3
    assert len(list(csv.reader((tmp_path / "outliers.csv").open()))) == 5


def test_clusters_are_those_that_there_are(tmp_path):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), [14, 10, 5, 3])  # of 32 samples there are to be 4
    x = np.eye(16)[groups] * 5 + rng.normal(size=(32, 16)) * 0.1
    found = report(x.astype(np.float32)).clusters
    assert [{int(groups[row]) for row, _ in members} for members in found] == [{0}, {1}, {2}, {3}]
    assert [len(members) for members in found] == [14, 10, 5, 3]
    assert all(cosines == sorted(cosines, reverse=True) for cosines in ([c for _, c in each] for each in found))
    names = [f"{number}.png" for number in range(32)]
    [said] = write_report(Report([], [], found), ["clusters"], names, tmp_path)
    assert said.startswith(f"4 clusters, of 3 to 14 samples; the first of the largest is {found[0][0][0]}.png: ")
    rows = list(csv.reader((tmp_path / "clusters.csv").open()))
    assert rows[0] == ["sample", "cluster", "cosine_to_middle"] and len(rows) == 33
    assert {row[1] for row in rows[1:15]} == {"0"} and rows[-1][1] == "3"


def test_a_single_sample_has_no_neighbours():
    assert report(features()[:1]).pairs == []


def test_pictures_show_the_samples_that_were_found(tmp_path, monkeypatch):
    for i in range(12):
        folder = tmp_path / "xy"[i // 6]
        folder.mkdir(exist_ok=True)
        (folder / f"{i:02}.png").write_bytes(png(np.full((8, 8), 20 * i, np.uint8)))
    source = open_mixture(f"{tmp_path / 'x'}:0.5,{tmp_path / 'y'}:0.5", modality="image")
    places = np.array([[part, file, file] for part in range(2) for file in range(6)])
    found = Report([(3, 9, 1.0), (0, 6, 0.99)], [(11, 0.1)])
    shown = []
    monkeypatch.setattr(pictures, "_show", lambda axis, image: shown.append(int(image.max())))
    embedder = SimpleNamespace(modality="image", processor=processor())
    said = draw_report(found, ["duplicates", "outliers"], embedder, source, places, tmp_path)
    assert shown == [60, 180, 0, 120, 220]
    assert said == [f"Some of the {kind}: {tmp_path / kind}.png" for kind in ("duplicates", "outliers")]
    assert all((tmp_path / f"{kind}.png").is_file() for kind in ("duplicates", "outliers"))
    embedder.modality = "text"
    assert draw_report(found, ["outliers"], embedder, source, places, tmp_path) == []


def test_what_is_asked_for():
    assert parse_report(None) == [] and parse_report("Outliers, duplicates") == ["outliers", "duplicates"]
    with pytest.raises(EvaluationError, match="takes duplicates, outliers, clusters, got 'outlier'"):
        parse_report("outlier")
