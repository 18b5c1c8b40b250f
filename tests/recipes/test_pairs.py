"""`recipes/clip.py`, `siglip.py` and `zero_shot.py` as commands, on a folder of drawn pairs."""

import json
import shlex

import pytest
import torch
from PIL import Image
from recipe_process import recipe_server
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoTokenizer,
    CLIPModel,
    SiglipModel,
    pipeline,
)

from hfssl.data.image.characters import characters


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, drawn = tmp_path_factory.mktemp("pairs"), characters("test")
    for split in ("train", "test"):
        (folder / split).mkdir()
    for i in range(0, 600, 5):
        path = folder / ("test" if i % 25 == 0 else "train") / f"{i:03}.png"
        path.write_bytes(drawn["image"][i])
        path.with_suffix(".txt").write_text(drawn["caption"][i])
    return folder


def run(method, folder, output_dir, *flags):
    small = [
        "--max_steps", 2, "--per_device_train_batch_size", 8, "--max_held_out", 40, "--use_cpu", "true",
        "--report_to", "none", "--max_lost_fraction", 1,
    ]  # fmt: skip
    return recipe_server().run(
        output_dir / "log", "--dataset", folder, "--output_dir", output_dir / "out", *small, *flags,
        script=f"recipes/{method}.py",
    )  # fmt: skip


@pytest.mark.parametrize(("method", "kind"), [("clip", CLIPModel), ("siglip", SiglipModel)])
def test_a_run_ends_in_a_stock_pair_with_pictures(folder, tmp_path, method, kind):
    done = run(method, folder, tmp_path)
    assert done.poll() == 0, done.stderr
    out = tmp_path / "out"
    assert type(AutoModel.from_pretrained(out)) is kind
    assert {path.name for path in (out / "assets").iterdir()} >= {"captions.png", "images.png", "similarity.png"}
    records = json.loads((out / "results.json").read_text())
    assert {"loss", "image_to_text_r1", "text_to_image_median_rank"} <= {record["metric"] for record in records}
    assert all("before" in record["baselines"] for record in records)
    assert "Next:" in done.stdout and "recipes/zero_shot.py" in done.stdout and f"recipes/{method}.py" in done.stdout
    assert AutoModel.from_pretrained(out / "image").main_input_name == "pixel_values"
    assert len(AutoTokenizer.from_pretrained(out / "text")) > 20
    check_the_pipeline(out, next(folder.glob("test/*.png")))
    # what the end of the run advises: retrieval on what it was not trained on
    line = shlex.split(next(line for line in done.stdout.splitlines() if "recipes/zero_shot.py" in line))
    assert line[line.index("--split") + 1] == "test"
    more = ["--output_dir", tmp_path / "zero", "--max_samples", 40]
    again = recipe_server().run(tmp_path / "log2", *line[3:], *more, script="recipes/zero_shot.py")
    assert again.poll() == 0, again.stderr
    assert "text_to_image_r1" in again.stdout and (tmp_path / "zero" / "assets" / "similarity.png").is_file()
    assert "was trained on" not in again.stderr
    if method == "clip":
        again = recipe_server().run(
            tmp_path / "log3", *line[3:], *more, "--split", "train", script="recipes/zero_shot.py"
        )
        assert again.poll() == 0 and "are among those that this encoder was trained on" in again.stderr


def check_the_pipeline(out, image):
    """The zero-shot pipeline of transformers says what the method says."""
    model = AutoModelForPreTraining.from_pretrained(out / "pretraining").eval()
    tokenizer, labels = AutoTokenizer.from_pretrained(out), ["red", "small letter a"]
    is_siglip = hasattr(model, "logit_bias")
    tokens = tokenizer(labels, padding="max_length" if is_siglip else True, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(out)(Image.open(image).convert("RGB"), return_tensors="pt")
    with torch.no_grad():
        found = model.embed(pixel_values=pixels["pixel_values"].expand(2, -1, -1, -1), **tokens)
        logits = model.logit_scale.exp() * (found["image"] * found["text"]).sum(-1)
        expected = torch.sigmoid(logits + model.logit_bias) if is_siglip else logits.softmax(0)
    ask = pipeline("zero-shot-image-classification", str(out))
    scores = {
        each["label"]: each["score"] for each in ask(str(image), candidate_labels=labels, hypothesis_template="{}")
    }
    assert [scores[label] for label in labels] == pytest.approx(expected.tolist(), rel=1e-3)


def test_mistakes_end_in_one_sentence(folder, tmp_path):
    (tmp_path / "bare").mkdir()
    for path in list(folder.glob("train/*.png"))[:4]:
        (tmp_path / "bare" / path.name).write_bytes(path.read_bytes())
    for data, flags, message in (
        (tmp_path / "bare", (), "in dog.txt beside it"),
        (folder, ("--pair", "image"), "two modalities"),
        (folder, ("--image_encoder", "clip-image-minni"), "clip-image-minni"),
    ):
        done = run("clip", data, tmp_path, *flags)
        assert done.poll() in (1, 2) and "Traceback" not in done.stderr and message in done.stderr, done.stderr


def test_the_first_pairs_are_shown(folder, tmp_path):
    sheet = tmp_path / "sheet.png"
    flags = ["--method", "clip", "--dataset", folder, "--num_images", 2, "--output", sheet, "--max_held_out", 40]
    flags += ["--per_device_train_batch_size", 8]
    done = recipe_server().run(tmp_path / "log", *flags, script="recipes/show_views.py")
    assert done.poll() == 0, done.stderr
    assert f"2 pairs: {sheet}" in done.stdout and "captions of at most" in done.stdout and sheet.is_file()
