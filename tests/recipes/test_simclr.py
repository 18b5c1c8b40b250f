"""`recipes/simclr.py` as a command."""

import json

import pytest
from huggingface_hub import ModelCard
from image_recipes import check_result, run, stopped_and_continued, the_error
from transformers import AutoModel, BertConfig, BertModel


RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}


def test_from_digits_to_a_stock_encoder_with_probes_and_pictures(tmp_path):
    done = run("simclr", tmp_path, dataset="digits", probe_dataset=None, probe_max_samples=300)
    assert done.poll() == 0, done.stderr
    assert "Data: embedded digits" in done.stderr and "knn accuracy" in done.stderr
    assert "Held-out loss" in done.stdout and "contrasted at once, in training 16)" in done.stdout
    assert "k-NN, k = 20" in done.stdout and "linear probe" in done.stdout
    records = check_result(tmp_path / "out")
    protocols = {record["protocol"]: record for record in records}
    assert {"held_out_loss", "knn"} < set(protocols)
    assert {"before", "chance"} == set(protocols["held_out_loss"]["baselines"])
    assert "For these labels: " in done.stdout
    card = (tmp_path / "out" / "README.md").read_text()
    assert "For these labels: " in card and "| simple statistics |" in card and "| chance |" in card
    assert done.stderr.count("What verdicts mean: ") == 1 and " (chance " in done.stderr
    assert {"random_init", "raw_input", "majority"} <= set(protocols["knn"]["baselines"])
    report = (tmp_path / "out" / "report.html").read_text()
    for section in (
        "What was chosen, and why",
        "Losses",
        "Health",
        "What was measured",
        "Class by class",
        "Do it again",
    ):
        assert f"{section}</h2>" in report, section
    assert "What is missing" not in report and str(tmp_path) not in report
    assert f"{protocols['knn']['value']:.4g}" in report and report.count('<img src="data:image/') == 6
    assert len(report) < 3_000_000
    metadata = ModelCard.load(tmp_path / "out" / "README.md").data
    assert len(metadata.eval_results) == len(records) and metadata.eval_results[1].task_type == "image-classification"
    assets = {path.name for path in (tmp_path / "out" / "assets").iterdir()}
    assert {"loss.png", "views.png", "neighbours.png", "mistakes.png", "feature_map.png", "patches.png"} <= assets


@pytest.mark.parametrize("settings", [
    {"encoder_config": json.dumps(RESNET), "optim": "lars", "image_size": 32},
    pytest.param(
        {"gradient_accumulation_steps": 2, "dataloader_num_workers": 1, "base_learning_rate": 1e-3},
        marks=pytest.mark.slow,
    ),
], ids=["resnet with lars", "accumulated"])  # fmt: skip
def test_stopped_and_continued_it_is_the_same_run(tmp_path, settings):
    stopped_and_continued("simclr", tmp_path, **settings)
    check_result(tmp_path / "parts" / "out", settings.get("image_size", 16))


@pytest.mark.slow
def test_killed_and_continued_it_is_the_same_run(tmp_path):
    stopped_and_continued("simclr", tmp_path, number="SIGKILL")


@pytest.mark.slow
def test_a_checkpoint_is_continued_at_its_size(tmp_path):
    first = run("simclr", tmp_path / "a", max_steps=1, normalization="half")
    assert first.poll() == 0, first.stderr
    source = tmp_path / "a" / "out"
    done = run("simclr", tmp_path / "b", encoder=source, encoder_config=None, max_steps=1, learning_rate=0)
    assert done.poll() == 0, done.stderr
    check_result(tmp_path / "b" / "out")
    assert f"further from `{source.name}`" in (tmp_path / "b" / "out" / "README.md").read_text()
    preprocessor = json.loads((tmp_path / "b" / "out" / "preprocessor_config.json").read_text())
    assert preprocessor["image_mean"] == [0.5, 0.5, 0.5]  # that of the checkpoint
    old, new = (AutoModel.from_pretrained(folder).state_dict() for folder in (source, tmp_path / "b" / "out"))
    assert all(old[name].equal(new[name]) for name in old if "pooler" not in name)


def test_mistakes_end_in_one_sentence(tmp_path):
    BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path / "bert"
    )
    for settings, words in [
        (
            {"per_device_train_batch_size": 1},
            "a batch has one here. Pass a larger `--per_device_train_batch_size`: 2 at least",
        ),
        ({"image_size": 18}, "`--image_size 18` is no multiple of the encoder's patches of 4 pixels"),
        ({"encoder": "vit-mini", "encoder_config": None}, "`--encoder vit-mini` is neither a preset (vit-mini-patch4"),
        ({"encoder": tmp_path / "bert", "encoder_config": None}, "A bert is no encoder of images alone"),
        ({"encoder_config": json.dumps(RESNET), "pooling": "cls"}, "needs a CLS token, and a resnet has none"),
        ({"optim": "larz"}, "`--optim larz` is unknown"),
        ({"learning_rate": 1, "base_learning_rate": 1}, "both say the learning rate. Leave out"),
        ({"contrastive_temperature": 0}, "`contrastive_temperature` must be above 0"),
    ]:
        error = the_error(run("simclr", tmp_path / "log", output_dir=tmp_path / "out", **settings))
        assert words in error, error
