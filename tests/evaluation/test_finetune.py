"""Fine-tuning of small stock encoders, on digits and on labels that a picture's brightness tells."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_pairs
import torch
from huggingface_hub import ModelCard
from labelled import Labelled, png, processor, resnet, save, vit
from recipe_process import printed_without_hfssl
from tiny_vision import ENCODERS
from transformers import AutoModel, AutoModelForImageClassification, ConvNextV2Config

from hfssl.evaluation import EvaluationError, finetune, finetune_settings, read_results
from hfssl.evaluation.classifier_folder import save_classifier
from hfssl.evaluation.finetune import (
    FinetuneEvaluator,
    FinetuneRun,
    FinetuneSettings,
    layer_groups,
)
from hfssl.evaluation.finetune_settings import samples_a_process
from hfssl.evaluation.image import finetuning as finetuning_module
from hfssl.evaluation.image.finetuning import Images, TrainingImages
from hfssl.evaluation.label_efficiency import LabelEfficiencyEvaluator


SHORT = {"seeds": 1, "epochs": 1, "min_steps": 6, "train_batch_size": 16}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save(vit(num_hidden_layers=2), tmp_path_factory.mktemp("vit"))


def shades(num, seed=0):
    """Bright and dark pictures: what a small encoder learns in a few steps."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 2
    images = [png(rng.integers(0, 100, (8, 8), dtype=np.uint8) + np.uint8(120 * label)) for label in labels]
    return Labelled(images, labels, ["dark", "bright"], name="shades")


def evaluator(num_train=48, **settings):
    return FinetuneEvaluator(shades(num_train), shades(40, seed=1), FinetuneSettings(**SHORT | settings), "fp32")


def test_learns_and_reports_beside_scratch_and_majority(encoder, tmp_path):
    (result,) = evaluator(seeds=2, min_steps=30, learning_rate=3e-3, scratch_learning_rate=3e-3)(
        encoder, output_dir=tmp_path
    )
    assert result.value > 0.9
    assert result.baselines["majority"] == 0.5
    assert set(result.baselines) == {"random_init", "majority"}
    assert (result.protocol, result.version, result.metric, result.seeds) == ("finetune", 1, "accuracy", [0, 1])
    assert (result.num_train, result.num_eval) == (48, 40)
    assert result.hyperparameters["layer_decay"] == 0.75
    (record,) = read_results(tmp_path / "results.json")
    assert record["per_seed"] == result.per_seed
    right, rows = (sum(each[name] for each in record["details"]["classes"]) for name in ("right", "rows"))
    assert right / rows == pytest.approx(result.value) and rows == 40 * len(result.seeds)


CLASSIFY = """
import json, sys
sys.modules["hfssl"] = None  # importing it fails, as where it is not installed
from transformers import pipeline

classify = pipeline("image-classification", sys.argv[1])
print(json.dumps([classify(each)[0] for each in sys.argv[2:]]))
"""


def test_the_classifier_of_seed_0_stays_and_loads_where_there_is_no_hfssl(encoder, tmp_path):
    (result,) = evaluator(seeds=2, min_steps=30, learning_rate=3e-3, random_init=False)(encoder, output_dir=tmp_path)
    paths, test = [], shades(40, seed=1)
    for number, image in enumerate(test.images):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(image)
    said = json.loads(printed_without_hfssl(tmp_path, CLASSIFY, tmp_path / "model", *paths))
    right = [one["label"] == ["dark", "bright"][label] for one, label in zip(said, test.labels, strict=True)]
    assert np.mean(right) == result.per_seed[0]
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"| accuracy (test) | {result.per_seed[0]:.3f} | {result.value:.3f} ± {result.std:.3f} | - |" in card
    assert "2 classes apart: dark, bright" in card and str(tmp_path) not in card
    [entry] = ModelCard(card).data.eval_results
    assert (entry.task_type, entry.metric_type, entry.dataset_split) == ("image-classification", "accuracy", "test")
    # of the weights that lie there
    assert entry.metric_value == result.per_seed[0] and entry.metric_args["seeds"] == [0]


@pytest.mark.parametrize("name", ["dinov3_vit", "dinov3_convnext", "clip"])
def test_an_encoder_that_transformers_has_no_classifier_of_gets_a_layer(tmp_path, monkeypatch, name):
    config = tiny_pairs.clip_towers()["first_config"] if name == "clip" else ENCODERS[name]()
    size = 64 if name == "dinov3_convnext" else 16
    torch.manual_seed(0)
    encoder, out = save(AutoModel.from_config(config), tmp_path / "encoder", size), tmp_path / "out"
    (result,) = evaluator(min_steps=40, learning_rate=3e-3, random_init=False)(encoder, output_dir=out)
    assert result.value > 0.9
    stock = AutoModel.from_pretrained(out / "model")
    assert type(stock).__module__.startswith("transformers.") and stock.config.id2label == {0: "dark", 1: "bright"}
    card, test = (out / "model" / "README.md").read_text(), shades(40, seed=1)
    code = card.split("```python\n")[1].split("```")[0]
    assert f"A `{type(stock).__name__}`" in card and "hfssl" not in code
    monkeypatch.chdir(out)
    lines, right = code.rstrip().split("\n"), 0
    for number in range(4):
        (out / "picture.png").write_bytes(test.images[number])
        names = {}
        exec("\n".join(lines[:-1]), names)
        right += eval(lines[-1], names) == ["dark", "bright"][test.labels[number]]
    assert right >= 3


def test_a_lost_classifier_is_trained_for_again(encoder, tmp_path, monkeypatch):
    run = evaluator(random_init=False, save_model=False)
    run(encoder, output_dir=tmp_path)
    assert not (tmp_path / "model").exists()
    run.settings.save_model = True
    run(encoder, output_dir=tmp_path)
    written = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    run(encoder, output_dir=tmp_path)
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == written


def test_the_classifier_of_another_training_is_kept_aside(tmp_path, caplog):
    class Saved:
        def __init__(self, word):
            self.word = word

        def save_pretrained(self, folder):
            (folder / "config.json").write_text(self.word)

        def parameters(self):
            return []

    for cell, word in (("first", "a"), ("second", "b"), ("second", "c"), ("third", "d")):
        save_classifier(tmp_path / "model", Saved(word), Saved(word), cell)
    kept = {path.name: (path / "config.json").read_text() for path in tmp_path.iterdir()}
    assert kept == {"model-before": "c", "model": "d"}  # they do not pile up
    assert "model-before now." in caplog.text and "model-before now in place of an older one." in caplog.text


def test_what_is_recorded_is_what_was_trained_with():
    assert [samples_a_process(64, number) for number in (1, 2, 64)] == [64, 32, 1]
    with pytest.raises(EvaluationError, match="has 64 samples .* 3 processes cannot.*`--train_batch_size 63`"):
        samples_a_process(64, 3)
    assert samples_a_process(63, 3) == 21  # which it says
    with pytest.raises(EvaluationError, match=r"Launch one of 1, 2 processes\.$"):
        samples_a_process(2, 4)


def test_what_cannot_be_shared_is_refused_before_any_training(monkeypatch):
    """Not when its turn comes, after hours on smaller shares of the labels."""
    monkeypatch.setattr(finetune_settings, "process_state", lambda: SimpleNamespace(num_processes=3))
    settings = FinetuneSettings(**SHORT | {"train_batch_size": 48})
    assert FinetuneEvaluator(shades(48), shades(4), settings)
    with pytest.raises(EvaluationError, match="has 40 samples"):
        FinetuneEvaluator(shades(40), shades(4), settings)
    assert LabelEfficiencyEvaluator(shades(48), shades(4), (0.25, 1.0), settings)  # 12 and 48
    with pytest.raises(EvaluationError, match="has 20 samples .*Launch one of 1, 2, 4, 5, 10, 20 processes"):
        LabelEfficiencyEvaluator(shades(40), shades(4), (0.15, 0.5), settings)  # 6 and 20


def test_goes_on_where_it_stopped(encoder, tmp_path, monkeypatch):
    trained = []
    train = FinetuneRun._train
    monkeypatch.setattr(FinetuneRun, "_train", lambda run, *args: trained.append(args[:2]) or train(run, *args))
    (first,) = evaluator()(encoder, output_dir=tmp_path)
    assert trained == [("encoder", 0), ("random_init", 0)]
    (again,) = evaluator(seeds=2)(encoder, output_dir=tmp_path)
    assert trained[2:] == [("encoder", 1), ("random_init", 1)]
    assert again.per_seed[0] == first.value
    # another setting, another encoder: the old scores are not theirs
    evaluator(weight_decay=0.1)(encoder, output_dir=tmp_path)
    assert len(trained) == 6
    evaluator()(vit(seed=5, num_hidden_layers=2), processor(), output_dir=tmp_path)
    assert trained[6:] == [("encoder", 0)]
    # other rates of its blocks: from scratch all have the same
    monkeypatch.setattr(finetune, "digest_of_depths", lambda config: "other")
    evaluator()(encoder, output_dir=tmp_path)
    assert trained[7:] == [("encoder", 0)]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_score_whatever_ran_before(encoder):
    torch.manual_seed(3)
    (first,) = evaluator(random_init=False)(encoder)
    torch.manual_seed(4)
    (again,) = evaluator(random_init=False)(encoder)
    assert first.per_seed == again.per_seed
    assert set(first.baselines) == {"majority"}


@pytest.mark.slow
def test_convolutional_encoders_and_other_image_sizes(tmp_path):
    evaluator(random_init=False)(save(resnet(), tmp_path / "resnet"))
    evaluator(random_init=False)(save(vit(num_hidden_layers=2), tmp_path / "vit", size=24))


def test_of_damaged_images_nothing_is_learned(encoder, caplog):
    train = shades(48)
    train.images[5] = b"no image"
    run = FinetuneRun(FinetuneEvaluator(train, shades(40, seed=1), FinetuneSettings(**SHORT)), encoder)
    rows = run.finetuning.training_rows(train.labels, np.arange(10), 90, seed=0)
    assert {rows.order[position][1] for position in range(90)} == set(range(10)) - {5}
    assert "1 of the images of shades cannot be decoded, and are not learned from: image 5 (" in caplog.text
    train.images[6] = b"nor this"
    with pytest.raises(
        EvaluationError, match="2 of the 48 images of shades cannot be decoded: remove or replace image 5"
    ):
        Images(processor(8), train.images, "shades")


def test_images_that_do_not_fit_into_memory_lie_in_a_file(encoder, monkeypatch):
    (kept,) = evaluator(random_init=False)(encoder)
    monkeypatch.setattr(finetuning_module, "_MAX_KEPT_BYTES", 100)
    (mapped,) = evaluator(random_init=False)(encoder)
    assert kept.per_seed == mapped.per_seed


def test_blocks_learn_slower_the_nearer_they_are_to_the_pixels(tmp_path):
    folder = save(vit(num_hidden_layers=3), tmp_path / "vit")
    model = AutoModelForImageClassification.from_pretrained(folder)
    rates, decays = by_name(model, layer_groups(model, 1.0, 0.5, 0.1))
    assert rates["classifier.weight"] == rates["vit.layernorm.weight"] == 1.0
    assert {rate for name, rate in rates.items() if ".2." in name} == {0.5}
    assert {rate for name, rate in rates.items() if ".0." in name} == {0.125}
    assert {rate for name, rate in rates.items() if "embeddings" in name} == {0.0625}
    assert decays["classifier.weight"] == 0.1
    assert decays["classifier.bias"] == decays["vit.layernorm.weight"] == decays["vit.embeddings.cls_token"] == 0.0
    assert len(rates) == len(list(model.parameters()))
    assert set(by_name(model, layer_groups(model, 1.0, 1.0, 0.1))[0].values()) == {1.0}


def test_stages_count_as_blocks(tmp_path):
    for config in (resnet().config, ConvNextV2Config(depths=[1, 2], hidden_sizes=[8, 16], num_stages=2)):
        model = AutoModelForImageClassification.from_config(config)
        rates, _ = by_name(model, layer_groups(model, 1.0, 0.5, 0.1))
        assert {rate for name, rate in rates.items() if "stages.1." in name} == {0.5}
        assert {rate for name, rate in rates.items() if "stages.0." in name} == {0.25}
        assert {rate for name, rate in rates.items() if "embed" in name} == {0.125}
        assert {rate for name, rate in rates.items() if name.startswith("classifier")} == {1.0}


def by_name(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    return (
        {names[id(p)]: group["lr"] for group in groups for p in group["params"]},
        {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]},
    )


def test_the_order_is_a_new_permutation_each_epoch_and_keyed():
    data = shades(10)
    rows = np.array([1, 3, 4, 8])

    def seen(seed, **settings):
        images = Images(processor(8), data.images)
        training = TrainingImages(images, data.labels, rows, 10, seed, FinetuneSettings(**settings))
        return [training[position] for position in range(10)]

    plain = [item["pixel_values"] for item in seen(0, shift=0.0)]
    known = {tuple(Images(processor(8), data.images)[row].ravel().tolist()): row for row in rows}
    order = [known[tuple(pixels.ravel().tolist())] for pixels in plain]
    assert sorted(order[:4]) == sorted(order[4:8]) == rows.tolist()
    assert order[:4] != order[4:8]
    shifted, again, other = (seen(seed, flip=True) for seed in (0, 0, 1))
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(shifted, again, strict=True))
    assert not all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(shifted, other, strict=True))
    assert not all(torch.equal(a["pixel_values"], b) for a, b in zip(shifted, plain, strict=True))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"epochs": 0}, "`epochs` must be above 0, got 0"),
        ({"layer_decay": 1.5}, "at most 1, got 1.5"),
        ({"shift": 1}, "below 1"),
    ],
)
def test_settings_that_make_no_sense_are_explained(settings, message):
    with pytest.raises(EvaluationError, match=message):
        FinetuneSettings(**settings)


def test_rare_classes_add_macro_f1(encoder):
    test = shades(80, seed=1)
    uneven = test.take(np.concatenate([np.arange(0, 80, 2), np.arange(1, 10, 2)]))
    run = FinetuneEvaluator(shades(48), uneven, FinetuneSettings(**SHORT, random_init=False), "fp32")
    assert [result.metric for result in run(encoder)] == ["accuracy", "balanced_accuracy", "macro_f1", "auroc"]


def test_cells_name_what_was_trained(encoder, tmp_path):
    evaluator(random_init=False)(encoder, output_dir=tmp_path)
    (key,) = json.loads((tmp_path / "cells.json").read_text())
    assert key.startswith("finetune/encoder/48-labels/seed-0/")


def test_the_steps_of_all_trainings_are_known_before_the_first(monkeypatch, tmp_path):
    said = []

    def progress(total, title, unit, then):
        said.append((total, then))
        return Quiet()

    monkeypatch.setattr("hfssl.evaluation.cells.Progress", progress)
    settings = {"seeds": 2, "epochs": 1, "min_steps": 3, "train_batch_size": 20, "save_model": False}
    evaluator(40, **settings)(vit(num_hidden_layers=2), processor(), output_dir=tmp_path)
    assert said == [(3, 9), (3, 0), (3, 0), (3, 0)]


class Quiet:
    done = 0

    def update(self, number):
        self.done += number

    def close(self):
        pass
