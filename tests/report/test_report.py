"""`report.html`: what it tells is what the folder holds, and it needs nothing else."""

import base64
import json
import logging
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from report_records import a_probe, a_run, history

from hfssl.errors import UserError
from hfssl.evaluation.class_figures import class_figures, confusions
from hfssl.report import page as page_module
from hfssl.report import pictures as pictures_module
from hfssl.report import sections as sections_module
from hfssl.report.comparison import names_of, write_comparison
from hfssl.report.page import report_safely, write_report
from hfssl.report.pictures import embedded_pictures, embedded_sounds
from hfssl.report.record import read_record, thinned


EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tags, attributes, headings and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(text)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data + " ")


def test_a_run_and_its_figures(tmp_path):
    page = Page(write_report(a_probe(a_run(tmp_path / "run"))).read_text())
    for section in (
        "Summary", "What was chosen, and why", "Losses", "Health", "What was measured", "Class by class",
        "What it looks like", "Do it again",
    ):  # fmt: skip
        assert section in page.text, section
    assert "missing" not in page.text
    for figure in ("0.875", "0.5625", "0.4375", "random init", "raw input", "majority", "chance 3.1", "2.25"):
        assert figure in page.text, figure
    assert "Chosen: --encoder vit-mini-patch4, for 1,234 images." in page.text and "mask_ratio 0.6" in page.text
    assert "python recipes/mae.py --max_steps 4" in page.text and "2 min on CPU" in page.text
    assert "dog (2)" in page.text and "75 %" in page.text and "38 %" in page.text  # 6 and 3 of 8
    assert page.tags.count("svg") == 4 and page.tags.count("img") == 1
    # what is seen is said too, and what scrolls can be reached with a keyboard
    assert all(value for tag, name, value in page.attributes if (tag, name) in (("img", "alt"), ("svg", "aria-label")))
    wide = [value for tag, name, value in page.attributes if (tag, name) == ("div", "tabindex")]
    assert wide and set(wide) == {"0"}
    places = {value for _, name, value in page.attributes if name == "id"}
    assert {value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")} <= places
    assert len(places) == len([value for _, name, value in page.attributes if name == "id"])


def test_nothing_comes_from_elsewhere_and_all_is_escaped(tmp_path):
    folder = a_run(
        tmp_path / "run", name=EVIL, data=EVIL, choices=[EVIL], command=EVIL, title=EVIL, device=EVIL, unit=EVIL,
        examples=[{"text": EVIL, "answer": EVIL, "predictions": [[EVIL, 0.5]]}], pictures=[["views.png", EVIL]],
        versions={EVIL: EVIL}, loss_units={EVIL: EVIL}, history=[{"step": 1, "loss": 1.0, f"loss_{EVIL}": 1.0}],
    )  # fmt: skip
    text = write_report(a_probe(folder, classes=(EVIL, '"><img src=x onerror=alert(1)>'), task=EVIL)).read_text()
    page = Page(text)
    assert "script" not in page.tags and EVIL in page.text and EVIL not in text
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:", "#")), (tag, name, value)
    assert "default-src 'none'" in text


def test_no_folder_of_this_machine_stands_in_it(tmp_path):
    folder = a_run(tmp_path / "run", data=f"{tmp_path}/pictures", command=f"python x.py --dataset {tmp_path}/pictures")
    text = write_report(folder).read_text()
    assert str(tmp_path) not in text and "pictures" in text


def test_a_run_that_has_not_ended_says_what_is_missing(tmp_path):
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = {"log_history": history(step), "global_step": step}
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    page = Page(write_report(tmp_path).read_text())
    assert "the run has not ended. The curves are those of checkpoint-10" in page.text
    assert "Losses" in page.text and "Health: learning" in page.text


@pytest.mark.parametrize("file", ["run.json", "results.json"])
def test_a_damaged_file_costs_its_part_only(tmp_path, file):
    folder = a_probe(a_run(tmp_path / "run"))
    (folder / file).write_text("{")
    page = Page(write_report(folder).read_text())
    assert f"{file}: " in page.text and "is not valid JSON" in page.text
    assert ("0.875" in page.text) == (file == "run.json") and ("Losses" in page.text) == (file == "results.json")


def test_a_section_that_cannot_be_made_costs_itself_only(tmp_path):
    folder = a_probe(a_run(tmp_path / "run", cost={"seconds": "no number"}))
    page = Page(write_report(folder).read_text())
    assert "The section on summary: TypeError." in page.text and "Class by class" in page.text


def test_what_holds_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds nothing to report on: no run.json, no results.json and no checkpoint"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="There is no folder"):
        write_report(tmp_path / "nowhere")


def test_a_report_never_costs_the_result(tmp_path, monkeypatch, caplog):
    def fail(record):
        raise RuntimeError("no ink")

    monkeypatch.setattr(page_module, "render", fail)
    with caplog.at_level(logging.WARNING):
        assert report_safely(a_run(tmp_path / "run")) is None
    assert "no ink" in caplog.text and f"recipes/report.py {tmp_path / 'run'}" in caplog.text
    assert not (tmp_path / "run" / "report.html").exists()


def test_large_pictures_make_no_large_page(tmp_path, monkeypatch):
    folder = a_run(tmp_path / "run", pictures=[])
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (300, 400, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "assets" / f"noise_{i}.png")
    pictures = [(each, each.name) for each in sorted((folder / "assets").glob("*"))]
    monkeypatch.setattr(pictures_module, "PICTURES", 300_000)
    shown, others = embedded_pictures(pictures)
    assert sum(len(each.source) for each in shown.values()) <= 300_000 and not others
    assert [each.caption for each in shown.values()] == [path.name for path, _ in pictures]
    # what is small stays as it is
    assert [each.source[:15] for each in shown.values()] == ["data:image/webp"] * 3 + ["data:image/png;"]
    monkeypatch.setattr(pictures_module, "PICTURES", 30_000)
    assert embedded_pictures(pictures)[1] == ["noise_0.png", "noise_1.png", "noise_2.png"]
    (folder / "assets" / "broken.png").write_bytes(b"no picture")
    assert "broken.png" in Page(write_report(folder).read_text()).text


def test_what_is_heard_is_in_the_page(tmp_path):
    pytest.importorskip("soundfile")
    from hfssl.data.audio.contact_sheet import write_page

    folder = a_run(tmp_path / "run")
    sound = np.sin(np.linspace(0, 2000, 16000)).astype(np.float32)
    write_page(folder / "assets" / "recordings.png", [("a <b>", 1.0, sound, ["units 1 2"])])
    page = Page(write_report(folder).read_text())
    [source] = [value for tag, name, value in page.attributes if (tag, name) == ("audio", "src")]
    assert source.startswith("data:audio/mpeg") and len(base64.b64decode(source.partition(",")[2])) < 16000
    assert "a <b>" in page.text and "1.00 s; units 1 2" in page.text
    # below the picture of which it is the sound, whose caption is not said twice
    Image.new("L", (4, 4)).save(folder / "assets" / "recordings.png")
    Image.new("L", (4, 4)).save(folder / "assets" / "zebra.png")
    page = Page(write_report(folder).read_text())
    order = [tag for tag in page.tags if tag in ("img", "audio")]
    assert order in (["img", "img", "audio", "img"], ["img", "audio", "img", "img"])
    assert page.text.count("Recordings.") == 1


def test_classes_by_hand():
    labels = np.array([0, 0, 1, 2])
    said = {"encoder": [[0, 1, 1, 2], [0, 0, 2, 2]], "random_init": [[2, 1, 1, 0]]}
    counts = {kind: {i: confusions(labels, np.array(each)) for i, each in enumerate(of)} for kind, of in said.items()}
    assert counts["encoder"][0] == [[0, 0, 1], [0, 1, 1], [1, 1, 1], [2, 2, 1]]
    assert class_figures(counts, ["a", "b"]) == [
        {"name": "a", "rows": 4, "right": 3, "taken_for": {"b": 1}, "baselines": {"random_init": 0.0}},
        {"name": "b", "rows": 2, "right": 1, "taken_for": {"2": 1}, "baselines": {"random_init": 1.0}},
        {"name": "2", "rows": 2, "right": 2, "taken_for": {}, "baselines": {"random_init": 0.0}},
    ]


def test_a_long_log_is_thinned_but_for_what_was_measured():
    entries = [{"step": i, "loss": 1.0} for i in range(5000)] + [{"step": 5000, "eval_loss": 1.0}]
    kept = thinned(entries, 100)
    assert [entry["step"] for entry in kept][0] == 0 and [entry["step"] for entry in kept][-2:] == [4999, 5000]
    assert 100 <= len(kept) <= 102 and thinned(entries[-3:], 100) == entries[-3:]


def test_two_runs_side_by_side(tmp_path):
    first = a_probe(a_run(tmp_path / "a" / "out"))
    settings = json.loads((first / "run.json").read_text())["settings"]
    settings["method"]["mask_ratio"] = 0.75
    second = a_probe(a_run(tmp_path / "b" / "out", settings=settings, history=history(8)), value=0.625)
    a_probe(second, protocol="knn", hyperparameters={"k": 20})
    assert names_of([first, second]) == ["a/out", "b/out"]
    page = Page(write_comparison([first, second], tmp_path / "page" / "both.html").read_text())
    assert "linear probe on pets: accuracy 0.875 0.625 … random init 0.5 0.5" in page.text
    assert "k-NN, k = 20 on pets: accuracy – 0.875" in page.text
    assert "method: mask_ratio 0.6 0.75" in page.text and "run: seed" not in page.text
    assert page.tags.count("svg") == 3  # k-NN, std and the loss of one method


def test_gaps_of_several_columns_have_rows_of_their_own_and_cka_none(tmp_path):
    folders = [a_run(tmp_path / name) for name in "ab"]
    for folder in folders:
        for column, value in (("sex", 0.25), ("age", 0.125)):
            gap = {"metric": "error_gap", "hyperparameters": {"group_column": column}, "greater_is_better": False}
            a_probe(folder, value=value, details={}, **gap)
        # beside other encoders
        a_probe(folder, protocol="cka", metric="linear_cka", hyperparameters={"beside": folder.name}, details={})
    page = Page(write_comparison(folders, tmp_path / "both.html").read_text())
    for column, value in (("sex", 0.25), ("age", 0.125)):
        assert f"linear probe by {column} on pets: error_gap (less is better) {value} {value}" in page.text
    assert "linear_cka" not in page.text


def test_trainings_of_another_length_are_not_put_side_by_side(tmp_path):
    for name, epochs in (("a", 6.0), ("b", 20.0)):
        a_probe(a_run(tmp_path / name), protocol="finetune", hyperparameters={"min_steps": 200, "epochs": epochs})
    page = Page(write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html").read_text())
    assert "Measured of one of them only" in page.text and "Measured in the same way" not in page.text


def test_losses_of_two_methods_are_not_compared(tmp_path):
    folders = [a_run(tmp_path / "a"), a_run(tmp_path / "b", method="simclr")]
    page = Page(write_comparison(folders, tmp_path / "both.html").read_text())
    assert "Held-out loss of" not in page.text and "K-NN accuracy while it trained of a, b" in page.text


def test_pictures_without_a_caption_are_called_by_their_file(tmp_path):
    folder = a_run(tmp_path / "run", pictures=[])
    for name in ("neighbours", "my_own"):
        Image.new("L", (4, 4)).save(folder / "assets" / f"{name}.png")
    said = {path.name: caption for path, caption in read_record(folder).pictures}
    assert said["my_own.png"] == "My own." and "nearest features" in said["neighbours.png"]


def test_the_steps_of_a_whole_are_on_one_page(tmp_path):
    a_probe(a_run(tmp_path / "encoder"))
    (tmp_path / "probes").mkdir()
    a_probe(tmp_path / "probes")  # the same once more
    a_probe(tmp_path / "probes", protocol="knn", hyperparameters={"k": 20}, value=0.6875)
    (tmp_path / "labels").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "views.png")
    step = {"name": "pre-training", "command": "python recipes/mae.py", "state": "done", "seconds": 61.4}
    plan = {
        "why": "MAE, since it is so", "outcome": {"payoff": "Up to 40 labels it pays.", "health": "-"},
        "steps": [step, step | {"name": "fine-tuning", "state": "waiting"}],
    }  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    page = Page(write_report(tmp_path).read_text())
    assert "Up to 40 labels it pays." in page.text and "MAE, since it is so" in page.text
    assert page.text.count("linear probe on pets: accuracy") == 1 and "0.6875" in page.text
    assert "pre-training 61 s done python recipes/mae.py" in page.text and "Not done yet: fine-tuning." in page.text
    assert page.tags.count("img") == 2 and "Losses" in page.text
    # which folders are those of the steps is known; one may hold pictures only, and what lies beside them is not told
    (tmp_path / "features").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "features" / "clusters.png")
    a_probe(a_run(tmp_path / "another"), value=0.3125)
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"parts": ["encoder", "features", "probes", "labels"]}))
    page = Page(write_report(tmp_path).read_text())
    assert page.tags.count("img") == 3 and "Images of each cluster" in page.text and "0.3125" not in page.text
    # one that cannot be read costs itself only
    (tmp_path / "labels" / "results.json").write_text("[]")
    text = Page(write_report(tmp_path).read_text()).text
    assert "labels holds nothing to report on" in text and "0.6875" in text


def test_what_was_seen_inside_has_sections_of_its_own(tmp_path):
    folder = a_run(tmp_path / "run")
    Image.new("L", (4, 4)).save(folder / "assets" / "attention.png")
    words = [[EVIL, {"occlusion": [[EVIL, 1.0], [" b", -0.5]]}]]
    finding = {
        "title": "Where it looks", "method": "Attention roll-out.", "papers": {"A, 2020": "https://huggingface.co/papers/1"},
        "limits": "Attention is no explanation.", "said": [f"12 % {EVIL}"],
        "shows": [
            {"picture": "attention.png", "caption": "Samples and maps."}, {"words": words, "caption": "Words."},
            {"listing": [["dimension 3", ["a text"]]], "caption": "Texts."},
            {"table": {"head": ["dimension", "class"], "rows": [["3", EVIL]]}, "caption": "Classes"},
        ],
    }  # fmt: skip
    other = {**finding, "title": "What a decision rests on", "shows": []}
    (folder / "explain.json").write_text(json.dumps({"encoder": "x", "findings": [finding, other]}))
    text = write_report(folder).read_text()
    page = Page(text)
    assert EVIL not in text and "script" not in page.tags and EVIL in page.text
    for said in (
        "Where it looks Attention roll-out.", "What it does not show Attention is no explanation.",
        "Source A, 2020 (https://huggingface.co/papers/1)", "dimension 3 a text", "occlusion:",
    ):  # fmt: skip
        assert said in page.text, said
    assert page.text.count("Samples and maps.") == 1 and page.tags.count("img") == 2
    # how strong a word is stands in its style, and what speaks against is not told by its colour alone
    assert ("span", "style", "--share:50%") in page.attributes and ("span", "class", "against") in page.attributes
    (folder / "assets" / "attention.png").unlink()
    text = Page(write_report(folder).read_text()).text
    assert "Samples and maps. Not there any more: attention.png in assets/." in text and "dimension 3 a text" in text
    (folder / "explain.json").write_text("{")
    assert "explain.json: " in Page(write_report(folder).read_text()).text
    # that of another encoder is left out, and that of this one is kept beside it
    run = json.loads((folder / "run.json").read_text()) | {"encoder": "a"}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "explain.json").write_text(json.dumps({"weights": "b", "findings": [finding]}))
    (folder / "explain").mkdir()
    (folder / "explain" / "explain.json").write_text(json.dumps({"weights": "a", "findings": [other]}))
    page = Page(write_report(folder).read_text())
    assert "about an encoder that lay here before this one" in page.text
    assert "What a decision rests on Attention roll-out." in page.text and "Where it looks" not in page.text
    # an evaluation of nothing else has a page too
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "explain.json").write_text(json.dumps({"findings": [other]}))
    assert "Attention is no explanation." in write_report(tmp_path / "alone").read_text()


def test_what_of_an_explanation_is_not_on_the_page_is_said(tmp_path, monkeypatch):
    pytest.importorskip("soundfile")
    from hfssl.data.audio.contact_sheet import write_page

    folder = a_run(tmp_path / "run")
    write_page(folder / "assets" / "attention.png", [("a", 1.0, np.zeros(16000, np.float32), [])])
    finding = {
        "title": "Where it looks", "method": "", "papers": {}, "limits": "-", "said": [],
        "shows": [{"sounds": "attention.html", "caption": "Recordings."}],
    }  # fmt: skip
    (folder / "explain.json").write_text(json.dumps({"findings": [finding]}))
    monkeypatch.setattr(sections_module, "EXPLAINING", 100)
    page = Page(write_report(folder).read_text())
    assert "Too large for this page, and in assets/ of the folder: attention.html." in page.text
    assert "audio" not in page.tags
    monkeypatch.undo()
    assert Page(write_report(folder).read_text()).tags.count("audio") == 1


def test_sounds_share_the_room_that_there_is(tmp_path, monkeypatch):
    pytest.importorskip("soundfile")
    from hfssl.data.audio.contact_sheet import write_page

    sound = np.sin(np.linspace(0, 2000, 16000)).astype(np.float32)
    for name in ("a", "b"):
        write_page(tmp_path / f"{name}.png", [(f"{name} {i}", 1.0, sound, []) for i in range(4)])
    pages = [(tmp_path / f"{name}.html", f"page {name}") for name in ("a", "b")]
    whole, others = embedded_sounds(pages)
    assert [len(each.rows) for each in whole.values()] == [4, 4] and not others
    assert [each.caption for each in whole.values()] == ["page a", "page b"]
    size = len(whole[pages[0][0]].rows[0][1])
    some, others = embedded_sounds(pages, 5 * size)
    assert [len(each.rows) for each in some.values()] == [2, 3] and others == ["a.html", "b.html"]
