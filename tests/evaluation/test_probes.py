"""The table of probes, its baselines, the pictures beside it, and k-NN during training."""

from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.metrics
import torch
from labelled import Labelled, digits, processor, resnet, save, vit

from hfssl import RecipeParser
from hfssl.cli.labelled import load_splits
from hfssl.cli.probes import ProbeArguments
from hfssl.evaluation import EvaluationError, metrics, read_results
from hfssl.evaluation.facts import write_facts
from hfssl.evaluation.frozen import aligned_labels, classification_scores
from hfssl.evaluation.gallery import nearest_rows
from hfssl.evaluation.image.encoder import VisionEncoder
from hfssl.evaluation.image.features import PixelFeatures, extract, extract_features
from hfssl.evaluation.image.pictures import patch_maps, two_dimensions
from hfssl.evaluation.knn import KnnEvaluator, knn_predict
from hfssl.evaluation.linear_probe import LinearProbeEvaluator
from hfssl.evaluation.online_knn import OnlineKnn, stratified
from hfssl.evaluation.probes import parse_protocols, probe_table


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save(vit(), tmp_path_factory.mktemp("vit"))


def test_a_table_with_baselines_records_and_pictures(encoder, tmp_path, capsys):
    train, test = digits()
    results = probe_table(encoder, None, train, test, "knn,linear,few-shot", output_dir=tmp_path, precision="fp32")
    printed = capsys.readouterr().out
    assert "Probes on digits, 100 images, pooling cls" in printed
    for line in ("k-NN, k = 20 ", "k-NN, k = 200 ", "linear probe ", "few-shot, 1 a class ", "few-shot, 10 a class "):
        assert line in printed
    assert [result.protocol for result in results] == ["knn", "knn", "linear", "few_shot", "few_shot", "few_shot"]
    for result in results:
        assert set(result.baselines) == {"random_init", "raw_input", "simple_statistics", "majority"}
        assert result.version == (2 if result.protocol == "linear" else 1)
        assert result.hyperparameters["pooling"] == "cls"
    assert results[2].details["strength"] > 0
    assert results[3].std > 0 and len(results[3].seeds) == 10
    records = read_results(tmp_path / "results.json")
    assert [record["value"] for record in records] == [result.value for result in results]
    for picture in ("neighbours", "feature_map", "patches"):
        assert (tmp_path / "assets" / f"{picture}.png").stat().st_size > 5000
    # the same again: features from disk, records replaced
    again = probe_table(encoder, None, train, test, "knn", output_dir=tmp_path, precision="fp32", pictures=False)
    assert [result.value for result in again] == [result.value for result in results[:2]]
    assert len(read_results(tmp_path / "results.json")) == 6
    assert len(list((tmp_path / "features").iterdir())) == 8


def test_encoders_side_by_side_have_each_its_own_pooling(tmp_path):
    """A CLS token is nothing to an encoder that has none, and of another only half of what it learned."""
    train, test = digits()
    main, other = save(vit(), tmp_path / "main"), save(vit(seed=3), tmp_path / "other")
    write_facts(other, pooling="mean")
    folders = {"other": other, "resnet": save(resnet(), tmp_path / "resnet")}
    options = {"pictures": False, "pooling": "cls"}
    [found, _] = probe_table(main, None, train, test, "knn", beside=folders, **options)
    for name, folder in folders.items():
        alone = KnnEvaluator(train, test, precision="fp32", pooling="mean")(folder)[0]
        assert found.baselines[name] == alone.value
    assert found.value == KnnEvaluator(train, test, precision="fp32", pooling="cls")(main)[0].value
    [stated, _] = probe_table(main, None, train, test, "knn", beside={"other": other}, beside_pooling="cls", **options)
    assert stated.baselines["other"] == KnnEvaluator(train, test, precision="fp32", pooling="cls")(other)[0].value


def test_baselines_are_what_their_names_say(encoder):
    train, test = digits()
    at_20, _ = KnnEvaluator(train, test, precision="fp32")(encoder)
    pixels = [extract(data, {"x": PixelFeatures(processor(), train)})["x"] for data in (train, test)]
    predictions = knn_predict(pixels[0], train.labels, pixels[1], 20)[20]
    assert at_20.baselines["raw_input"] == np.mean(predictions == test.labels) > 0.8
    untrained = [extract_features(encoder, None, data, random_init=True, precision="fp32") for data in (train, test)]
    predictions = knn_predict(untrained[0], train.labels, untrained[1], 20)[20]
    assert at_20.baselines["random_init"] == np.mean(predictions == test.labels)
    assert at_20.baselines["majority"] == np.mean(test.labels == np.bincount(train.labels).argmax())


def test_the_labels_of_test_decide_nothing(encoder):
    train, test = digits()
    wrong = Labelled(test.images, (test.labels + 1) % 10, test.class_names)
    results = [LinearProbeEvaluator(train, data, precision="fp32")(encoder)[0] for data in (test, wrong)]
    assert results[0].details["strength"] == results[1].details["strength"]
    assert results[0].value > 0.5 > results[1].value


def test_too_few_rows_for_k_are_said(encoder):
    train, test = digits()
    few = train.take(np.arange(60))
    at_20, at_200 = KnnEvaluator(few, test, precision="fp32")(encoder)
    assert "neighbours" not in at_20.details and at_200.details["neighbours"] == 60


@pytest.mark.parametrize(
    "text, message",
    [
        ("knn,lineer", 'no protocol "lineer"; there are knn, linear, .*Did you mean "linear"'),
        ("fewshot", 'Did you mean "few_shot"'),
        (" , ", "No protocol is named"),
    ],
)
def test_unknown_protocols_are_answered_with_the_nearest(text, message):
    with pytest.raises(EvaluationError, match=message):
        parse_protocols(text)
    assert parse_protocols("KNN, few-shot,knn") == ["knn", "few_shot"]


def test_labels_that_cannot_be_probed_are_explained():
    train, test = digits()
    hidden = Labelled(test.images, np.full(100, -1), test.class_names)
    with pytest.raises(EvaluationError, match=r"100 of the 100 images of digits have no label \(-1\)"):
        aligned_labels(train, hidden)
    threes = train.take(np.flatnonzero(train.labels == 3))
    with pytest.raises(EvaluationError, match='have the label "3": a probe needs two classes'):
        aligned_labels(threes, test)
    no_nines = train.take(np.flatnonzero(train.labels < 8))
    with pytest.raises(EvaluationError, match='has 2 class.es. that digits has none of, such as "8", "9"'):
        aligned_labels(no_nines, test)
    with pytest.raises(EvaluationError, match="holds no images"):
        aligned_labels(train, test.take([]))
    with pytest.raises(EvaluationError, match='Both splits are "train"'):
        load_splits(None, "train", "train")


def test_classes_are_matched_by_name():
    train, test = digits()
    names = train.class_names[::-1]
    turned = Labelled(test.images, 9 - test.labels, names)
    assert np.array_equal(aligned_labels(train, turned)[1], test.labels)


def test_macro_f1_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    references, predictions = rng.integers(0, 4, 50), rng.integers(1, 6, 50)
    found = metrics.load("macro_f1").compute(predictions=predictions, references=references)["macro_f1"]
    assert found == pytest.approx(sklearn.metrics.f1_score(references, predictions, average="macro"))


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [80, 10])
    logits = np.stack([np.zeros(90), labels + rng.normal(size=90)], 1)
    pairs = logits[labels == 1, 1][:, None] - logits[labels == 0, 1][None]
    scores = classification_scores(logits.argmax(1), labels, logits)
    assert scores["auroc"] == pytest.approx(np.mean(pairs > 0))
    assert "auroc" not in classification_scores(labels, labels)
    # of several classes, each against the rest; one that was not learned is never the answer
    three = np.append(labels, [2] * 5)
    logits = np.full((95, 4), -np.inf)
    logits[np.arange(95), three] = logits[:, 0] = 0.0
    assert classification_scores(logits.argmax(1), three, logits)["auroc"] == 1.0


def test_uneven_classes_have_all_figures_beside_all_baselines(encoder):
    train, _ = digits()
    rows = np.concatenate([np.flatnonzero(train.labels < 2), np.flatnonzero(train.labels == 3)[:1]])
    results = LinearProbeEvaluator(train, train.take(rows), precision="fp32")(encoder)
    assert [result.metric for result in results] == ["accuracy", "balanced_accuracy", "macro_f1", "auroc"]
    assert results[-1].baselines["majority"] == 0.5 and 0.5 < results[-1].value <= 1
    assert set(results[-1].baselines) == set(results[0].baselines)


def test_balanced_accuracy_is_the_mean_over_the_classes():
    rng = np.random.default_rng(0)
    references, predictions = rng.choice(4, 50, p=[0.7, 0.1, 0.1, 0.1]), rng.integers(1, 6, 50)
    (found,) = metrics.load("balanced_accuracy").compute(predictions=predictions, references=references).values()
    right = [np.mean(predictions[references == each] == each) for each in range(4)]
    assert found == pytest.approx(np.mean(right))


def test_macro_f1_is_reported_where_classes_are_uneven():
    both = {"accuracy", "balanced_accuracy", "macro_f1"}
    for counts, names in (((30, 20), {"accuracy"}), ((9, 3), {"accuracy"}), ((90, 20), both)):
        labels = np.repeat([0, 1], counts)
        assert set(classification_scores(labels, labels)) == names


def test_a_sample_has_its_share_of_each_class():
    labels = np.array([0] * 600 + [1] * 300 + [2] * 100 + [3])
    rows = stratified(labels, 100)
    counts = np.bincount(labels[rows])
    assert len(rows) == 100 and counts[3] == 1
    assert abs(counts[0] - 60) <= 2 and abs(counts[2] - 10) <= 1
    assert np.array_equal(stratified(labels, 5000), np.arange(1001))


def test_online_knn_is_the_protocols_figure_and_changes_nothing(encoder):
    train, test = digits()
    online = OnlineKnn(train, test, processor(), batch_size=64)
    model = SimpleNamespace(encoder=vit(hidden_dropout_prob=0.5).train())
    model.encoder.layernorm.eval()
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    measured = online.measure(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.encoder.training and not model.encoder.layernorm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.state_dict().items())
    assert online.measure(model) == measured
    at_20, _ = KnnEvaluator(train, test, precision="fp32")(encoder)
    assert measured == {"knn_accuracy": pytest.approx(at_20.value, abs=0.011)}


def test_online_knn_of_batch_norm_reads_no_statistics_of_the_batch():
    train, test = digits()
    model = SimpleNamespace(encoder=resnet().train())
    figures = [OnlineKnn(train, test, processor(), batch_size=size).measure(model) for size in (7, 200)]
    assert figures[0]["knn_accuracy"] == pytest.approx(figures[1]["knn_accuracy"], abs=0.011)
    assert all(int(tensor) == 0 for name, tensor in model.encoder.state_dict().items() if "num_batches" in name)


def test_online_knn_takes_a_sample():
    train, test = digits()
    online = OnlineKnn(train, test, processor(), max_train_samples=50, max_test_samples=20)
    assert [sum(map(len, each.rows)) for each in online.embedders] == [50, 20]
    assert set(online.train_y.tolist()) == set(range(10))
    assert online.get_config_dict()["num_train"] == 50


def test_arguments_choose_what_is_probed(monkeypatch):
    asked = []
    monkeypatch.setattr("hfssl.cli.probes.load_splits", lambda name, *args, **kwargs: asked.append(name))
    ProbeArguments().load(dataset=None)
    ProbeArguments().load(dataset="digits")
    ProbeArguments(probe_dataset="my_images").load(dataset=None)
    ProbeArguments(probe_dataset="letters").load(dataset="my_images")
    assert ProbeArguments().load(dataset="my_images") is None
    (typed,) = RecipeParser(ProbeArguments).parse(["--probe_dataset", "none"])  # a word, and not a missing value
    assert typed.load(dataset=None) is None
    assert ProbeArguments(probe_dataset="none").load(dataset=None) is None
    assert asked == ["letters", "digits", "my_images", "letters"]


def test_nearest_rows():
    train_x = np.array([[1.0, 0], [0, 1], [1, 1], [-1, 0]])
    assert nearest_rows(train_x, np.array([[2.0, 0.1]]), 3).tolist() == [[0, 2, 1]]
    assert nearest_rows(train_x, np.array([[2.0, 0.1]]), 9).shape == (1, 4)


def test_maps_have_two_dimensions_whatever_the_features():
    rng = np.random.default_rng(0)
    assert two_dimensions(rng.normal(size=(60, 5)).astype(np.float32)).shape == (60, 2)
    assert two_dimensions(rng.normal(size=(8, 1)).astype(np.float32)).shape == (8, 2)
    assert np.isfinite(two_dimensions(np.ones((60, 5), np.float32))).all()


@pytest.mark.parametrize("model, side", [(vit, 4), (resnet, None)])
def test_patch_maps_tell_halves_of_a_picture_apart(model, side):
    pixels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    pixels[..., 8:] = 255
    maps = patch_maps(VisionEncoder(model(), processor()), pixels)
    if side is None:  # 16 pixels become 2 × 2 or fewer: no picture
        assert maps is None
        return
    assert maps.shape == (2, side, side, 3)
    assert maps.min() >= 0 and maps.max() <= 1
    left, right = maps[:, :, : side // 2], maps[:, :, side // 2 :]
    assert np.abs(left.mean((0, 1, 2)) - right.mean((0, 1, 2))).max() > 0.3
