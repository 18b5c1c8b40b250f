"""Probes and fine-tuning of an encoder of texts, beside bags of words, random weights and training from scratch."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import sklearn.linear_model
from text_encoder import make_tokenizer, opinions, save_text_encoder

from hfssl.evaluation import EvaluationError, FinetuneEvaluator
from hfssl.evaluation.few_shot import few_shot_logits
from hfssl.evaluation.finetune_settings import FinetuneSettings
from hfssl.evaluation.knn import knn_predict
from hfssl.evaluation.linear_probe import LogisticRegression, linear_probe_predict
from hfssl.evaluation.modality import evaluation_modality
from hfssl.evaluation.probes import probe_table
from hfssl.evaluation.sample_features import EmbedSettings
from hfssl.evaluation.text.features import _WORD, bags_of_words, extract
from hfssl.evaluation.text.samples import TextSampleFeatures
from hfssl.modeling.base import evaluating


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_text_encoder(tmp_path_factory.mktemp("encoder"))


def test_a_table_beside_a_bag_of_words(encoder, tmp_path, capsys):
    train, test = opinions(120), opinions(60, seed=1)
    results = probe_table(encoder, None, train, test, "knn,linear,few_shot", output_dir=tmp_path)
    printed = capsys.readouterr().out
    assert "Probes on opinions, 60 texts, pooling mean" in printed and "bag of words" in printed
    for result in results:
        assert set(result.baselines) == {"random_init", "bag_of_words", "majority"}
    linear = next(result for result in results if result.protocol == "linear")
    assert linear.baselines["bag_of_words"] > 0.95  # one word says it
    assert linear.hyperparameters["max_length"] == 64 and linear.hyperparameters["dim"] == 32
    # the weights are as random as those that it is compared with
    assert linear.value == pytest.approx(linear.baselines["random_init"], abs=0.3)
    assert "For these labels: " in printed
    # features are found again, and are those of embed.py
    assert len(list((tmp_path / "features").iterdir())) == 4
    embedder = TextSampleFeatures(str(encoder), EmbedSettings())
    with evaluating(embedder.model):
        plain = embedder([embedder.prepare(text) for text in test.samples]).columns["features"]
    cached = extract(embedder, test, tmp_path / "features")
    np.testing.assert_allclose(cached, plain, rtol=1e-5, atol=1e-6)


def test_a_text_of_no_token_has_features_of_zeros(encoder):
    data = opinions(3)
    data.samples[1] = ""
    found = extract(TextSampleFeatures(str(encoder), EmbedSettings()), data)
    assert (found[1] == 0).all() and (found[[0, 2]] != 0).any(1).all()


def test_finetuning_learns_and_leaves_a_classifier(encoder, tmp_path):
    settings = FinetuneSettings(
        seeds=1, epochs=8, min_steps=1, train_batch_size=16, learning_rate=5e-3, scratch_learning_rate=5e-3
    )
    (result,) = FinetuneEvaluator(opinions(120), opinions(60, seed=1), settings, "fp32")(encoder, output_dir=tmp_path)
    assert result.value > 0.9 and result.baselines["random_init"] > 0.8
    assert "shift" not in result.hyperparameters and result.hyperparameters["max_length"] == 128
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert (tmp_path / "model" / "tokenizer.json").is_file()
    assert 'pipeline("text-classification"' in (tmp_path / "model" / "README.md").read_text()


def test_what_is_left_out_is_as_the_modality_has_it():
    for name, learning_rate, other in (("image", 5e-4, "max_length"), ("text", 2e-4, "flip")):
        defaults = evaluation_modality(name).finetune_defaults
        chosen = FinetuneSettings().hyperparameters(defaults)
        assert chosen["learning_rate"] == learning_rate and other not in chosen
        assert (chosen["min_steps"], chosen["layer_decay"]) == (200, 0.75)
        assert FinetuneSettings(learning_rate=1.0).hyperparameters(defaults)["learning_rate"] == 1.0


def test_label_efficiency_of_texts(encoder, tmp_path):
    settings = FinetuneSettings(seeds=1, epochs=1, min_steps=1, train_batch_size=16)
    results = probe_table(
        encoder, None, opinions(40), opinions(20, seed=1), "label_efficiency", output_dir=tmp_path, settings=settings
    )
    methods = {(result.hyperparameters["method"], result.num_train) for result in results}
    assert methods == {("linear probe", 2), ("linear probe", 4), ("linear probe", 40)} | {
        ("fine-tuning", 2), ("fine-tuning", 4), ("fine-tuning", 40),
    }  # fmt: skip
    assert "bag_of_words" in results[0].baselines and "random_init" in results[1].baselines


# -- bags of words ----------------------------------------------------------------------------------------------------


def test_words_of_scripts_without_spaces_are_signs():
    assert _WORD.findall("A good-one, 中文字 ไทย") == ["A", "good", "one", "中", "文", "字", "ไ", "ท", "ย"]


def test_words_are_weighed_by_what_is_known_of_train():
    train, test = bags_of_words(["a b", "a c"], ["c z", "b"])
    assert train.shape == (2, 5) and test.shape == (2, 5)  # a b c, and the pairs "a b" and "a c"
    assert test[0].nnz == 1 and test[1].nnz == 1  # what train has not is not known
    np.testing.assert_allclose(np.asarray(train.multiply(train).sum(1)), 1, rtol=1e-5)
    with pytest.raises(EvaluationError, match="None of the texts to learn from has a word"):
        bags_of_words(["!", "?"], ["a"])


def test_probes_of_sparse_features_are_those_of_dense_ones():
    rng = np.random.default_rng(0)
    x = rng.random((60, 12)).astype(np.float32) * (rng.random((60, 12)) < 0.3)
    x[:, 0] = 0.1  # no row is empty
    y, sparse = rng.integers(0, 3, 60), scipy.sparse.csr_matrix(x)
    for k, rows in knn_predict(x[:40], y[:40], x[40:], (3, 20)).items():
        assert np.array_equal(knn_predict(sparse[:40], y[:40], sparse[40:], k)[k], rows)
    plain = LogisticRegression(0.01, standardize=False).fit(x[:40], y[:40])
    of_sparse = LogisticRegression(0.01).fit(sparse[:40], y[:40])
    np.testing.assert_allclose(of_sparse.decision(sparse[40:]), plain.decision(x[40:]), atol=2e-3)
    theirs = sklearn.linear_model.LogisticRegression(C=1 / (40 * 0.01), tol=1e-8, max_iter=1000).fit(x[:40], y[:40])
    assert np.mean(theirs.predict(x[40:]) == of_sparse.predict(sparse[40:])) > 0.9
    assert linear_probe_predict(sparse[:40], y[:40], sparse[40:])[0].shape == (20,)
    assert few_shot_logits(sparse[:40], y[:40], sparse[40:], 2).argmax(1).shape == (20,)


def test_a_model_in_memory_needs_its_tokenizer(encoder):
    from transformers import AutoModel

    model, train, test = AutoModel.from_pretrained(encoder), opinions(40), opinions(20, seed=1)
    of_folder = probe_table(encoder, None, train, test, "knn")
    of_model = probe_table(model, make_tokenizer(), train, test, "knn")
    assert [each.value for each in of_folder] == [each.value for each in of_model]
    with pytest.raises(EvaluationError, match="needs its tokenizer"):
        probe_table(model, None, train, test, "knn")
    assert SimpleNamespace(**of_model[0].baselines).bag_of_words > 0.5
