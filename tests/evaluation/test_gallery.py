"""What is worth a look, of features that say it by hand, and how each modality shows it."""

import json

import numpy as np
import sounds
from text_encoder import opinions, save_text_encoder

from hfssl.evaluation.audio.pictures import draw_pictures as draw_recordings
from hfssl.evaluation.gallery import gallery_of
from hfssl.evaluation.probe_features import ProbeFeatures
from hfssl.evaluation.probes import probe_table
from hfssl.report.page import write_report
from hfssl.report.record import captions


def at(*angles):
    return np.stack([[np.cos(angle), np.sin(angle)] for angle in np.radians(angles)]).astype(np.float32)


def test_neighbours_mistakes_and_outliers_by_hand():
    train_y = np.repeat([0, 1], 15)
    train_x = np.concatenate([at(*np.linspace(0, 14, 15)), at(*np.linspace(90, 104, 15))])
    # near to the first class, near to the second, called the first but near to the second, and like neither
    features = ProbeFeatures("x", {"encoder": train_x}, {"encoder": at(0.2, 103.9, 97.2, 225)}, {})
    found = gallery_of(features, train_y, np.array([0, 1, 0, 1]))
    nearest = dict(found.neighbours)
    assert nearest[0][:2] == [0, 1] and nearest[1][0] == 29 and len(nearest[2]) == 6
    [(row, said, share)] = [each for each in found.mistakes if each[0] == 2]
    # 20 vote: the 15 of the second class, and 5 that are far from it
    assert said == 1 and 0.9 < share <= 1
    assert found.outliers[0][0] == 3 and found.outliers[0][1] < 0.5
    again = gallery_of(features, train_y, np.array([0, 1, 0, 1]))
    assert again == found


def test_texts_beside_their_neighbours_are_in_the_report(tmp_path, capsys):
    encoder = save_text_encoder(tmp_path / "encoder")
    test = opinions(40, seed=1)
    test.samples[0] = "good <b>x</b>"
    probe_table(encoder, None, opinions(60), test, "knn", output_dir=tmp_path)
    neighbours = json.loads((tmp_path / "assets" / "neighbours.json").read_text())
    assert len(neighbours) == 8 and all(len(lines) == 3 for _, lines in neighbours)
    assert neighbours[0][0].endswith(("(good)", "(bad)"))
    outliers = json.loads((tmp_path / "assets" / "outliers.json").read_text())
    assert all(lines[0].startswith("cosine ") for _, lines in outliers)
    page = write_report(tmp_path).read_text()
    assert captions()["neighbours.json"] in page and "<b>x</b>" not in page
    mistakes = tmp_path / "assets" / "mistakes.json"
    if mistakes.is_file():
        assert all("taken for" in lines[0] and "%" in lines[0] for _, lines in json.loads(mistakes.read_text()))


def test_recordings_that_are_taken_for_others_are_heard(tmp_path):
    train, test = sounds.tones()
    encoder = sounds.save(sounds.hubert(), tmp_path / "encoder")
    rng = np.random.default_rng(0)
    x = {
        name: rng.normal(size=(len(split), 4)).astype(np.float32) for name, split in (("train", train), ("test", test))
    }
    features = ProbeFeatures("x", {"encoder": x["train"]}, {"encoder": x["test"]}, {})
    paths = draw_recordings(str(encoder), None, train, test, features, tmp_path / "assets")
    assert [path.name for path in paths] == [
        "feature_map.png",
        "heard_neighbours.png",
        "heard_mistakes.png",
        "heard_outliers.png",
    ]
    page = (tmp_path / "assets" / "heard_mistakes.html").read_text()
    assert page.count("<audio") == 6 and "taken for" in page and "%)" in page
    (tmp_path / "results.json").write_text("[]")
    (tmp_path / "run.json").write_text(json.dumps({"history": [], "step": 1}))
    report = write_report(tmp_path).read_text()
    assert report.count("<audio") == 9 + 6 + 2 and captions()["heard_mistakes.png"] in report
