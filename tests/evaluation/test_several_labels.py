"""Probes and fine-tuning where a sample has several labels, or none."""

import numpy as np
import pytest
import sklearn.metrics
from labelled import Labelled, png, processor, vit
from sklearn.linear_model import LogisticRegression
from transformers import pipeline

from hfssl.evaluation import EvaluationError, several_labels
from hfssl.evaluation.few_shot import FewShotEvaluator, draw_rows
from hfssl.evaluation.finetune_settings import FinetuneSettings
from hfssl.evaluation.frozen import classification_scores
from hfssl.evaluation.knn import KnnEvaluator, knn_shares
from hfssl.evaluation.linear_probe import LogisticRegression as Ours
from hfssl.evaluation.probe_features import ProbeFeatures
from hfssl.evaluation.probes import probe_table


def pictures(num, seed=0, names=("bright", "red", "never")):
    """Of which some are bright, some red, some both and some neither."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (num, 2))
    images = []
    for bright, red in labels:
        pixels = rng.integers(0, 60, (8, 8, 3)) + 80 * bright
        pixels[..., 0] += 100 * red
        images.append(png(pixels.astype(np.uint8)))
    return Labelled(images, np.pad(labels, ((0, 0), (0, 1))), list(names), name="pictures")


def test_figures_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, (50, 4)), rng.normal(size=(50, 4))
    labels[:, 3] = 0  # of what nobody has nothing can be said
    found = classification_scores(logits.argmax(1), labels, logits)
    known = labels[:, :3], logits[:, :3]
    assert found["auroc"] == pytest.approx(
        np.mean([sklearn.metrics.roc_auc_score(labels[:, i], logits[:, i]) for i in range(3)])
    )
    assert found["mean_average_precision"] == pytest.approx(sklearn.metrics.average_precision_score(*known))
    assert found["micro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, logits > 0, average="micro"))
    assert found["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(known[0], known[1] > 0, average="macro"))


def test_a_regression_for_each_class():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)), rng.integers(0, 2, (60, 3))
    y[:, 0] = x[:, 1] > 0.3
    ours = Ours(0.02, standardize=False, tolerance=1e-6).fit(x, y)
    for i in range(3):
        theirs = LogisticRegression(C=1 / (60 * 0.02), tol=1e-8).fit(x, y[:, i])
        np.testing.assert_allclose(ours.decision(x)[:, i], theirs.decision_function(x), atol=2e-2)


def test_each_neighbour_votes_for_all_that_it_has():
    train_x, train_y = np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]]), np.array([[1, 1], [1, 0], [0, 0]])
    shares = knn_shares(train_x, train_y, np.array([[1.0, 0.005]]), k=2)[2]
    np.testing.assert_allclose(shares, [[1.0, 0.5]], atol=1e-3)


def test_few_shots_are_rows_with_each_label_and_with_none():
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 0], [0, 1]] * 4)
    rows = draw_rows(labels, 2, seed=0)
    assert (labels[rows].sum(0) >= 2).all() and (labels[rows].sum(1) == 0).sum() == 2
    assert len(set(rows.tolist())) == len(rows) <= 6


def test_all_protocols_and_a_classifier_that_any_pipeline_loads(tmp_path):
    train, test = pictures(60), pictures(40, seed=1)
    settings = FinetuneSettings(seeds=1, epochs=1, min_steps=6, train_batch_size=20)
    results = probe_table(
        vit(num_hidden_layers=2), processor(), train, test, ("knn", "linear", "finetune"), output_dir=tmp_path,
        settings=settings, command="python test",
    )  # fmt: skip
    metrics = {"auroc", "mean_average_precision", "micro_f1", "macro_f1"}
    for protocol in ("knn", "linear", "finetune"):
        assert {result.metric for result in results if result.protocol == protocol} == metrics
    linear = {result.metric: result for result in results if result.protocol == "linear"}
    assert linear["auroc"].value > 0.9 and linear["auroc"].baselines["majority"] == 0.5
    assert linear["micro_f1"].value > 0.8 and linear["auroc"].hyperparameters["classes"] == 3
    classify = pipeline("image-classification", str(tmp_path / "model"), device="cpu")
    from PIL import Image

    found = {each["label"]: each["score"] for each in classify(Image.new("RGB", (8, 8), "red"), top_k=3)}
    assert set(found) == {"bright", "red", "never"} and sum(found.values()) != pytest.approx(1.0, abs=1e-3)


def test_what_does_not_go_together_is_told():
    train, test = pictures(20), pictures(20, seed=1)
    one = Labelled(test.images, test.labels[:, 0], ["dark", "bright"], name="one each")
    with pytest.raises(EvaluationError, match="Samples of pictures have several labels, those of one each one each"):
        several_labels.aligned(train, one)
    with pytest.raises(EvaluationError, match="has 1 class.es. that pictures has none of, such as 'blue'"):
        several_labels.aligned(train, pictures(20, names=("bright", "red", "blue")))
    with pytest.raises(EvaluationError, match="applies to all of its samples, or to none"):
        several_labels.aligned(Labelled(train.images, train.labels * 0, train.class_names), test)


def test_the_area_beside_one_label_a_sample_for_knn_and_few_shot():
    """Also of classes that few draws can tell apart: the figures go by how much speaks for each."""
    rng = np.random.default_rng(0)
    labels = (rng.random(80) < 0.15).astype(int)
    x = rng.normal(size=(80, 4)) + labels[:, None]
    data = Labelled([str(i).encode() for i in range(80)], labels, ["dark", "bright"], name="uneven")
    features = ProbeFeatures("model", {"encoder": x}, {"encoder": x}, {})
    for evaluator in (KnnEvaluator(data, data, k=(5,)), FewShotEvaluator(data, data, shots=(2,), draws=2)):
        found = {result.metric: result.value for result in evaluator.results(features, "command")}
        assert set(found) == {"accuracy", "balanced_accuracy", "macro_f1", "auroc"} and found["auroc"] > 0.7


def test_few_shot_with_several_labels():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (40, 2))
    x = rng.normal(size=(40, 4)) * 0.1 + np.pad(labels, ((0, 0), (0, 2)))
    data = Labelled([str(i).encode() for i in range(40)], labels, ["a", "b"], name="pairs")
    features = ProbeFeatures("model", {"encoder": x}, {"encoder": x}, {})
    results = FewShotEvaluator(data, data, shots=(5,), draws=2).results(features, "command")
    assert {result.metric: result.value for result in results}["auroc"] > 0.9
