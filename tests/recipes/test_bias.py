"""`recipes/bias.py` as a command, and what card and report say of its figures."""

import json

import pytest
import torch
from labelled import save, vit
from recipe_process import recipe_server
from report_records import a_run
from text_encoder import make_config, make_tokenizer
from transformers import BertForMaskedLM

from hfssl.report.card import write_card
from hfssl.report.record import read_record


@pytest.fixture
def encoder(tmp_path):
    folder = a_run(tmp_path / "run", modality="text")
    write_card(folder / "README.md", read_record(folder))
    torch.manual_seed(0)
    BertForMaskedLM(make_config()).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path):
    pairs = "\n".join(f"a {c} good,b {c} good,{'age' if c < 'g' else 'gender'}" for c in "cdefghij")
    (tmp_path / "pairs.csv").write_text(f"sent_more,sent_less,bias_type\n{pairs}\n")
    sets = {"targ1_examples": "abc", "targ2_examples": "def", "attr1_examples": "ghi", "attr2_examples": "jkl"}
    row = {"name": "weat1", **{name: list(letters) for name, letters in sets.items()}}
    (tmp_path / "weat.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path / "pairs.csv", tmp_path / "weat.jsonl"


def run(folder, *flags):
    return recipe_server().run(folder, *flags, script="recipes/bias.py")


def test_what_was_found_stands_in_results_report_and_card(encoder, files, tmp_path):
    flags = ["--dataset", *files, "--random_seeds", 1, "--update_card", "true", "--output_dir", tmp_path / "out"]
    # in whatever way the folder is named
    for name, typed in (("one", encoder), ("two", f"{encoder}/")):
        done = run(tmp_path / name, typed, *flags)
        assert done.poll() == 0, done.stderr
    assert "how often the more stereotypical sentence is the likelier" in done.stdout and "weat1" in done.stdout
    for folder in (tmp_path / "out", encoder):
        records = json.loads((folder / "results.json").read_text())
        assert [each["protocol"] for each in records] == ["sentence_pairs", "associations"]
        assert "Bias</h2>" in (folder / "report.html").read_text()
    card = (encoder / "README.md").read_text()
    assert card.count("pairs: of 8 pairs of sentences") == 1 and "Biases: not evaluated" not in card
    assert card.count("<summary>weat: effect sizes of association tests</summary>") == 1
    assert "What was measured" not in card  # more of it is not better


def test_mistakes_end_in_one_sentence(encoder, files, tmp_path):
    image_encoder = save(vit(), tmp_path / "vit")
    for flags, message in (
        ([image_encoder, "--dataset", files[0]], "The tests are sentences, and "),
        ([encoder, "--dataset", tmp_path / "none.csv"], "none.csv"),
        ([encoder], "--dataset is required"),
    ):
        done = run(tmp_path / "log", *flags, "--output_dir", tmp_path / "out")
        assert done.poll() in (1, 2)
        assert "Traceback" not in done.stderr and message in done.stderr
