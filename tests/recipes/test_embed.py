"""`recipes/embed.py` as a command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from labelled import digits, save, vit
from PIL import Image
from recipe_process import recipe_server
from tiny import bert_config, texts, tokenizer
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, BertModel


ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """Two encoders, a folder of images and one of texts."""
    folder = tmp_path_factory.mktemp("things")
    save(vit(), folder / "vit")
    torch.manual_seed(0)
    BertModel(bert_config(), add_pooling_layer=False).save_pretrained(folder / "bert")
    tokenizer().save_pretrained(folder / "bert")
    (folder / "images").mkdir()
    for number, image in enumerate(digits()[0].images):
        (folder / "images" / f"{number:03d}.png").write_bytes(image)
    (folder / "texts").mkdir()
    for number in range(8):
        lines = [json.dumps({"text": text}) for text in texts()[50 * number : 50 * number + 50]]
        (folder / "texts" / f"{number}.jsonl").write_text("\n".join(lines))
    (folder / "empty").mkdir()
    return folder


def run(folder, *flags, **options):
    return recipe_server().run(folder, *flags, script="recipes/embed.py", **options)


def flags(things, encoder, data, out, format="npy"):
    return ["--encoder", things / encoder, "--dataset", things / data, "--output_dir", out, "--format", format]


def test_images_as_parquet(things, tmp_path):
    words = flags(things, "vit", "images", tmp_path / "out", "parquet")
    result = run(tmp_path / "log", *words, "--report", "duplicates,outliers")
    assert result.poll() == 0, result.stderr
    assert "Least like any other is " in result.stdout and (tmp_path / "out" / "outliers.csv").is_file()
    assert f"Some of the outliers: {tmp_path / 'out' / 'outliers.png'}" in result.stdout
    with Image.open(tmp_path / "out" / "outliers.png") as picture:
        assert len(np.unique(np.asarray(picture))) > 20  # not blank
    assert "300 features of 32 numbers, of 300 samples" in result.stdout and "pd.read_parquet" in result.stdout
    table = pd.read_parquet(tmp_path / "out" / "features.parquet")
    assert table["sample"].tolist() == [f"{number:03d}.png" for number in range(300)]
    images = [Image.open(things / "images" / name).convert("RGB") for name in table["sample"]]
    pixels = AutoImageProcessor.from_pretrained(things / "vit")(images, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(things / "vit").eval()(**pixels).last_hidden_state
    np.testing.assert_allclose(np.stack(table["features"]), hidden[:, 0].numpy(), atol=1e-5)


def test_texts_as_npy(things, tmp_path):
    result = run(tmp_path / "log", *flags(things, "bert", "texts", tmp_path / "out"))
    assert result.poll() == 0, result.stderr
    features, places = np.load(tmp_path / "out" / "features.npy"), pd.read_parquet(tmp_path / "out" / "places.parquet")
    assert features.shape == (400, 32) and places["file"].tolist() == [row // 50 for row in range(400)]
    encode, model = AutoTokenizer.from_pretrained(things / "bert"), AutoModel.from_pretrained(things / "bert").eval()
    for row in (0, 7, 399):
        inputs = encode(texts()[row], return_tensors="pt")
        assert inputs["input_ids"].shape[1] <= 64
        with torch.no_grad():
            expected = model(**inputs).last_hidden_state.mean(1)[0].numpy()
        np.testing.assert_allclose(features[row], expected, atol=1e-5)


def test_mistakes_end_in_one_sentence(things, tmp_path):
    for words, message in (
        (flags(things, "vit", "texts", tmp_path / "out"), "no image"),
        (flags(things, "nothing", "texts", tmp_path / "out"), "There is no encoder folder"),
        (flags(things, "bert", "empty", tmp_path / "out"), "empty"),
        ([*flags(things, "bert", "texts", tmp_path / "out"), "--text_column", "txt"], "no column 'txt'"),
        ([*flags(things, "bert", "texts", tmp_path / "out"), "--image_column", "a"], "takes texts"),
        ([*flags(things, "vit", "images", tmp_path / "out"), "--pooling", "max"], "no pooling 'max'"),
    ):
        result = run(tmp_path / "log", *words)
        assert result.poll() in (1, 2) and "Traceback" not in result.stderr
        assert message in result.stderr and len(result.stderr.strip().splitlines()) <= 2, result.stderr


KILL = """
import os, signal
from hfssl.data.corpus import run
finish, done = run._PartWriter.finish, []
def killed(self):
    if len(done) == {after}:
        self._write({{}})
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(finish(self))
run._PartWriter.finish = killed
"""


def contents(folder):
    kept = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "embed.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


@pytest.mark.slow
@pytest.mark.parametrize("encoder, data", [("vit", "images"), ("bert", "texts")])
def test_goes_on_after_sigkill(things, tmp_path, encoder, data):
    whole = run(tmp_path / "log", *flags(things, encoder, data, tmp_path / "whole"))
    assert whole.poll() == 0, whole.stderr
    out = tmp_path / "parts"
    for after in (2, 1):
        killed = run(tmp_path / "log", *flags(things, encoder, data, out), before=KILL.format(after=after))
        assert killed.poll() == -9 and not (out / "features.npy").exists() and list((out / "parts").glob(".*.tmp"))
    assert len(list((out / "parts").glob("part-*.arrow"))) == 3
    again = run(tmp_path / "log", *flags(things, encoder, data, out))
    assert again.poll() == 0, again.stderr
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_write_what_one_writes(things, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [str(word) for word in flags(things, "vit", "images", tmp_path / "two")]
    two = subprocess.run(
        [*torchrun, "recipes/embed.py", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("300 features") == 1
    one = run(tmp_path / "log", *flags(things, "vit", "images", tmp_path / "one"))
    assert one.poll() == 0, one.stderr
    assert contents(tmp_path / "one") == contents(tmp_path / "two") and len(contents(tmp_path / "one")) > 5
