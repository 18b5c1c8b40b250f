"""A checkpoint that is continued: what is kept of it, and what the end of the run says of it beside how it came."""

import csv
import importlib.util
import json

import numpy as np
import pytest
import tiny
import torch
from image_recipes import run as run_image_recipe
from PIL import Image
from recipe_process import recipe_server
from tiny_vision import build
from transformers import AutoModel

from hfssl.evaluation.probe_features import BEFORE


HAS_PEFT = importlib.util.find_spec("peft") is not None


@pytest.mark.slow
def test_images(tmp_path):
    build("vit").save_pretrained(tmp_path / "vit")
    data = tmp_path / "data"
    for c in range(2):
        (data / f"class {c}").mkdir(parents=True)
        for i in range(40):
            pixels = np.random.default_rng((c, i)).integers(0, 128 + 60 * c, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data / f"class {c}" / f"{i}.png")
    adapted = {"lora_rank": 2} if HAS_PEFT else {"layer_decay": 0.5}
    done = run_image_recipe(
        "simclr", tmp_path, encoder=tmp_path / "vit", encoder_config=None, dataset=data, probe_dataset=data, max_steps=2,
        save_steps=1, freeze_layers=2, **adapted,
    )  # fmt: skip
    assert done.poll() == 0, done.stderr
    assert "The checkpoint that was continued " in done.stdout
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    probes = [record for record in records if record["protocol"] in ("knn", "linear")]
    assert probes and all(BEFORE in record["baselines"] for record in probes)
    before, after = (AutoModel.from_pretrained(folder).state_dict() for folder in (tmp_path / "vit", tmp_path / "out"))
    changed = {
        name.split(".")[1] for name in before if "pooler" not in name and not torch.equal(before[name], after[name])
    }
    assert changed - {"weight", "bias"} == {"2", "3"}


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["dinov2", "dinov3_vit"])
def test_heads_alone_leave_dino_as_it_came(encoder, tmp_path):
    build(encoder).save_pretrained(tmp_path / "dino")
    data = tmp_path / "data"
    for c in range(2):
        (data / f"class {c}").mkdir(parents=True)
        for i in range(40):
            pixels = np.random.default_rng((c, i)).integers(0, 128 + 60 * c, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data / f"class {c}" / f"{i}.png")
    settings = {"encoder": tmp_path / "dino", "encoder_config": None, "dataset": data, "probe_dataset": data}
    done = run_image_recipe("dinov2", tmp_path / "a", **settings, max_steps=2, save_steps=1, freeze_encoder=1.0)
    assert done.poll() == 0, done.stderr
    assert "In the first 2 of 2 steps only the heads learn." in done.stderr
    assert "The checkpoint that was continued is as good for these labels as it came" in done.stdout
    before, after = (
        AutoModel.from_pretrained(path).state_dict() for path in (tmp_path / "dino", tmp_path / "a" / "out")
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    # what is stated stays, and after the heads the encoder learns
    options = {"patch_embed_rate": 1.0, "momentum_start": 0.5, "learning_rate": 1e-2, "warmup_steps": 0}
    done = run_image_recipe(
        "dinov2", tmp_path / "b", **settings, max_steps=4, save_steps=2, freeze_encoder=0.5, **options
    )
    assert done.poll() == 0, done.stderr
    after = AutoModel.from_pretrained(tmp_path / "b" / "out").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_texts(tmp_path):
    texts = tiny.texts(300)
    model, tokenizer = tiny.mlm(), tiny.tokenizer()
    model.export_encoder(tmp_path / "bert", processor=tokenizer)
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    with (tmp_path / "labelled.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((text, "ab"[i % 2]) for i, text in enumerate(texts[:60]))])
    done = recipe_server().run(
        tmp_path / "log", "--encoder", tmp_path / "bert", "--dataset", tmp_path / "texts.txt", "--max_length", 32,
        "--max_steps", 2, "--eval_steps", 1, "--per_device_train_batch_size", 4, "--report_to", "none", "--learning_rate", 3,
        "--warmup_steps", 0, "--probe_dataset", tmp_path / "labelled.csv", "--precision", "fp32", "--output_dir",
        tmp_path / "out", script="recipes/mlm.py",
    )  # fmt: skip
    assert done.poll() == 0, done.stderr
    assert "The checkpoint that was continued got worse on held-out data: loss " in done.stdout
    assert "The checkpoint that was continued is as good for these labels as it came: " in done.stdout
    assert "What to try: keep more of it, with a lower `--learning_rate`" in done.stdout
    facts = json.loads((tmp_path / "out" / "hfssl.json").read_text())
    assert facts["labelled"] == {"dataset": str(tmp_path / "labelled.csv")}
    for recipe in ("probe", "finetune"):  # under "Next:"
        assert f"{recipe}.py --encoder {tmp_path / 'out'} --dataset {tmp_path / 'labelled.csv'}\n" in done.stdout
    assert "labels say" not in done.stdout
    [line] = [line for line in done.stdout.splitlines() if "a bag of words" in line or "bag of words" in line]
    assert "before" in line
    # what is near to what is read in the report, and not in the card, which shows pictures
    assert "training texts with the nearest features" in (tmp_path / "out" / "report.html").read_text()
    assert "neighbours.json" not in (tmp_path / "out" / "README.md").read_text()
