"""What is seen inside encoders: maps that can be counted by hand, and features that are those of all other protocols."""

import json
from types import SimpleNamespace

import labelled
import numpy as np
import pytest
import scipy.stats
import sounds
import torch
from text_encoder import opinions, save_text_encoder
from tiny_vision import build
from transformers import AutoModel, TimmWrapperConfig

from hfssl.evaluation import EvaluationError
from hfssl.evaluation import explain as explain_module
from hfssl.evaluation.audio.encoder import AudioEncoder
from hfssl.evaluation.audio.features import AudioReader, EncoderLayers
from hfssl.evaluation.audio.inside import AudioInside
from hfssl.evaluation.explain import (
    explain,
    gradients,
    layers_of,
    margin_of,
    most_activating,
    occlusion,
    purity,
    rank_correlation,
    resized,
    roll_out,
)
from hfssl.evaluation.image.features import extract_features
from hfssl.evaluation.image.inside import ImageInside
from hfssl.evaluation.inside import Opened, attentions_of, keep_findings, read_findings
from hfssl.evaluation.linear_probe import LogisticRegression
from hfssl.evaluation.results import read_results
from hfssl.evaluation.sample_features import EmbedSettings
from hfssl.evaluation.text.inside import TextInside, pieces_of
from hfssl.evaluation.text.samples import TextSampleFeatures
from hfssl.modeling.base import evaluating
from hfssl.modeling.pooling import num_own_tokens


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return str(labelled.save(labelled.vit(), tmp_path_factory.mktemp("vit")))


def saved(name, folder):
    return str(labelled.save(build(name), folder))


class Linear:
    """An encoder of four numbers whose feature is linear in them; two of them are a part."""

    def __init__(self):
        self.weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def forward(self, inputs, sample):
        return inputs @ self.weights, None

    def cells(self, relevance, sample):
        return relevance.view(2, 2).sum(1).numpy()

    def occluded(self, sample):
        return sample.inputs.repeat(2, 1) * torch.tensor([[0.0, 0, 1, 1], [1, 1, 0, 0]]), (2,)


def test_of_a_linear_encoder_gradient_times_input_is_what_hiding_a_part_costs():
    inside, x = Linear(), torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    score = lambda features: features[:, 0] - 2 * features[:, 2]  # noqa: E731
    by_hand = x[0] * (inside.weights[:, 0] - 2 * inside.weights[:, 2])
    by_hand = torch.stack([by_hand[:2].sum(), by_hand[2:].sum()]).numpy()
    relevance, cam = gradients(inside, Opened(x, None), score)
    np.testing.assert_allclose(relevance, by_hand, rtol=1e-5)
    np.testing.assert_allclose(occlusion(inside, Opened(x, None), score), by_hand, rtol=1e-5)
    assert cam is None


def test_the_margin_is_the_difference_of_the_logits_of_the_probe():
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (60, 5)).astype(np.float32), np.repeat([0, 2, 5], 20)
    probe = LogisticRegression(0.1).fit(x, y)
    logits = probe.decision(x)
    found = margin_of(probe, 5, 0)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, logits[:, 2] - logits[:, 0], rtol=1e-4, atol=1e-4)


# -- the feature that is explained is the one that is probed ---------------------------------------------------------


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean", "last4"])
def test_features_of_images_are_those_of_the_probes(vit, pooling):
    data = labelled.digits()[1].take(np.arange(5))
    inside = ImageInside(vit, pooling, batch_size=2)
    layers = inside.layers(data.images, np.arange(5))
    expected = extract_features(vit, None, data, pooling=pooling)
    np.testing.assert_allclose(layers[-1], expected, rtol=1e-4, atol=1e-5)
    assert len(layers) == 5  # what comes into the first block, and four blocks
    sample = inside.open(data.images, 3)
    with torch.no_grad():
        feature, places = inside.forward(sample.inputs, sample)
    np.testing.assert_allclose(feature[0], expected[3], rtol=1e-4, atol=1e-5)
    assert places is None


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_features_of_texts_are_those_of_the_probes(tmp_path, pooling):
    folder, data = str(save_text_encoder(tmp_path)), opinions(7)
    inside = TextInside(folder, pooling, batch_size=3)
    layers = inside.layers(data.samples, range(7))
    embedder = TextSampleFeatures(folder, EmbedSettings(pooling=pooling))
    with evaluating(embedder.model):
        expected = embedder([embedder.prepare(text) for text in data.samples]).columns["features"]
    np.testing.assert_allclose(layers[-1], expected, rtol=1e-4, atol=1e-5)
    assert len(layers) == 2
    sample = inside.open(data.samples, 4)
    with torch.no_grad():
        feature, _ = inside.forward(sample.inputs, sample)
    np.testing.assert_allclose(feature[0], expected[4], rtol=1e-4, atol=1e-5)
    assert "".join(sample.shown) == data.samples[4]
    assert inside.open(["good Unknown"], 0).shown == ["good", " Unknown"]
    # one token after the other becomes the mask token
    variants, grid = inside.occluded(sample)
    assert grid == (len(sample.shown),) and (variants != sample.inputs).any(-1).sum(1).tolist() == [1] * grid[0]


@pytest.mark.parametrize("make", [sounds.hubert, sounds.wav2vec2_bert, sounds.ast])
def test_features_of_recordings_are_those_of_the_probes(tmp_path, make):
    folder, data = str(sounds.save(make(), tmp_path)), sounds.tones()[1]
    inside = AudioInside(folder)
    layers = inside.layers(data.samples, range(4))
    audio = AudioEncoder(folder)
    expected = EncoderLayers(audio, audio.load()).layers(
        [AudioReader(sounds.RATE).decode(s) for s in data.samples[:4]]
    )
    assert len(layers) == expected.shape[1] == 3
    np.testing.assert_allclose(np.stack(layers, 1), expected, rtol=1e-3, atol=1e-4)
    sample = inside.open(data.samples, 2)
    with torch.no_grad():
        feature, _ = inside.forward(sample.inputs, sample)
    np.testing.assert_allclose(feature[0], expected[2, -1], rtol=1e-3, atol=1e-4)
    flow, last, own = roll_out(inside, sample)
    assert flow.ndim == 1 and flow.sum() == pytest.approx(1) == last.sum()
    assert (own > 0.01) == (make is sounds.ast)  # CLS, distillation token and padding
    relevance, _ = gradients(inside, sample, lambda features: features[:, 0])
    fall = occlusion(inside, sample, lambda features: features[:, 0])
    assert relevance.ndim == 1 and fall.shape == (24,) and np.abs(fall).max() > 0


# -- where it looks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit", "dinov2_with_registers", "dinov3_vit", "ijepa"])
def test_a_roll_out_is_over_patches_alone(tmp_path, name):
    inside = ImageInside(saved(name, tmp_path))
    data = labelled.digits()[1]
    sample = inside.open(data.images, 0)
    flow, last, own = roll_out(inside, sample)
    assert flow.shape == last.shape == (4, 4)
    assert flow.sum() == pytest.approx(1) and last.sum() == pytest.approx(1)
    num_own = num_own_tokens(inside.model.config)
    assert own > 0.1 if num_own else own == pytest.approx(0, abs=1e-5)
    # registers are of no place: what is left is in the order of the patches
    tokens = torch.arange(16 + num_own)
    assert inside.parts(tokens, sample).ravel().tolist() == list(range(num_own, 16 + num_own))
    read = inside.read_from(16 + num_own, sample)
    assert read.sum() == pytest.approx(1) and (read[0] == 1) == (inside.pooling == "cls")


def test_a_convolutional_encoder_has_grad_cam_and_says_why(tmp_path):
    train, test = labelled.digits()
    found = explain(saved("resnet", tmp_path / "encoder"), None, test, output_dir=tmp_path, max_samples=20)
    assert found[0].title == "Where it looks: gradients" and found[0].method.startswith("Grad-CAM")
    assert found[0].said == ["This resnet tells of no attention over all of a sample, so there is no roll-out."]
    assert (tmp_path / "assets" / "gradients.png").is_file()


def test_attention_in_windows_is_not_multiplied(tmp_path):
    inside = ImageInside(saved("swin", tmp_path))
    sample = inside.open(labelled.digits()[1].images, 0)
    assert roll_out(inside, sample) is None
    relevance, cam = gradients(inside, sample, lambda features: features[:, 0])
    assert cam is None and relevance.shape == (4, 4)


def test_an_encoder_of_timm_tells_of_no_attention():
    pytest.importorskip("timm")
    config = TimmWrapperConfig(architecture="test_vit", model_args={"img_size": 32, "patch_size": 8})
    assert attentions_of(AutoModel.from_config(config).eval(), pixel_values=torch.zeros(1, 3, 32, 32)) is None


def test_grad_cam_of_a_mean_over_places_is_the_map_itself(tmp_path):
    inside = ImageInside(saved("convnextv2", tmp_path))
    sample = inside.open(labelled.digits()[1].images, 0)
    with torch.no_grad():
        places = inside.model(pixel_values=sample.inputs).last_hidden_state
    _, cam = gradients(inside, sample, lambda features: features.sum(1))
    assert cam.shape == tuple(places.shape[2:]) and (cam >= 0).all()


# -- all of it --------------------------------------------------------------------------------------------------------


def test_each_finding_names_its_method_and_its_limits(vit, tmp_path):
    train, test = labelled.digits()
    other = saved("vit", tmp_path / "other")
    found = explain(vit, train, test, output_dir=tmp_path, beside={"other": other}, max_samples=40, name="mine")
    assert [each.title for each in found] == [
        "Where it looks: attention", "What dimensions stand for", "How alike layers are", "What a decision rests on",
    ]  # fmt: skip
    for each in found:
        assert each.method and each.limits and each.shows and each.said
        assert all(address.startswith("https://huggingface.co/papers/") for address in each.papers.values())
        for shown in each.shows:
            assert shown["caption"] and ("picture" not in shown or (tmp_path / "assets" / shown["picture"]).is_file())
    kept = read_findings(tmp_path)
    assert kept["encoder"] == "mine" and kept["samples"] == 40 and len(kept["findings"]) == 4
    records = read_results(tmp_path / "results.json")
    assert [each["hyperparameters"]["beside"] for each in records] == ["random weights", "other"]
    for each in records:
        assert each["protocol"] == "cka" and each["value"] == pytest.approx(
            each["details"]["layers"][-1][-1], abs=1e-4
        )
        assert np.shape(each["details"]["layers"]) == (5, 5) and -0.1 < each["value"] <= 1.0001


def test_another_encoder_of_the_same_name_stands_beside_it_and_not_in_its_place(vit, tmp_path):
    test, other = labelled.digits()[1], saved("vit", tmp_path / "other")
    for folder, beside in (("alone", {}), ("both", {"mine": other})):
        explain(vit, None, test, output_dir=tmp_path / folder, beside=beside, max_samples=12, name="mine")
    alone, both = (read_results(tmp_path / folder / "results.json") for folder in ("alone", "both"))
    assert len(alone) == 1 and len(both) == 2 and alone[0]["details"] == both[0]["details"]


def test_texts_are_shown_word_by_word(tmp_path):
    folder = str(save_text_encoder(tmp_path / "encoder"))
    found = explain(folder, opinions(60), opinions(40, seed=1), output_dir=tmp_path, max_samples=60)
    decisions = found[-1]
    title, maps = decisions.shows[0]["words"][0]
    assert set(maps) == {"gradient × input", "occlusion"} and "%" in title
    for pieces in maps.values():
        assert max(abs(strength) for _, strength in pieces) == 1
    # the probe finds the one word that says it
    strongest = [
        max(m["occlusion"], key=lambda piece: abs(piece[1]))[0].strip() for _, m in decisions.shows[0]["words"]
    ]
    assert sum(word in ("good", "bad") for word in strongest) > len(strongest) / 2
    assert "listing" in found[1].shows[0] and len(found[1].shows[0]["listing"]) == 8
    json.dumps(read_findings(tmp_path))


def test_without_labels_all_but_decisions_is_there(vit, tmp_path):
    test = labelled.digits()[1]
    found = explain(vit, None, test, output_dir=tmp_path, max_samples=20, dimensions=[3, 1])
    assert [each.title for each in found][-1] == "How alike layers are"
    assert "The 2 that were asked for, of 32" in found[1].said[0]
    with pytest.raises(EvaluationError, match="`--dimensions 3 32`: features have the dimensions 0 to 31"):
        explain(vit, None, test, output_dir=tmp_path, max_samples=8, dimensions=[3, 32])


def test_damaged_samples_are_told_of(vit, tmp_path, caplog):
    test = labelled.digits()[1].take(np.arange(20))
    test.images[4] = b"no image"
    explain(vit, None, test, output_dir=tmp_path)
    assert "1 of the images of digits cannot be decoded, and are black to every encoder: image 4 (" in (caplog.text)
    test.images[7] = b"nor this"
    with pytest.raises(
        EvaluationError, match="2 of the 20 images of digits cannot be decoded: remove or replace image 4"
    ):
        explain(vit, None, test, output_dir=tmp_path)


def test_recordings_are_heard(tmp_path):
    train, test = sounds.tones()
    found = explain(
        str(sounds.save(sounds.hubert(), tmp_path / "encoder")), train, test, output_dir=tmp_path, max_samples=15
    )
    shown = [show for each in found for show in each.shows]
    assert {show["sounds"] for show in shown if "sounds" in show} == {
        "attention.html", "dimensions.html", "decisions.html",
    }  # fmt: skip
    for show in shown:
        for kind in ("picture", "sounds"):
            assert kind not in show or (tmp_path / "assets" / show[kind]).is_file()


@pytest.mark.parametrize("place", ["", "explain", "elsewhere"])
def test_what_was_found_is_kept_wherever_it_was_written(tmp_path, place):
    (tmp_path / place / "assets").mkdir(parents=True)
    for name in ("explain.json", "assets/attention.png"):
        (tmp_path / place / name).write_text("{}")
    keep_findings(tmp_path / place, tmp_path)
    kept = tmp_path / ("explain" if place else "")
    for folder in (tmp_path / place, kept):
        assert (folder / "explain.json").is_file() and (folder / "assets" / "attention.png").is_file()


# -- what they share --------------------------------------------------------------------------------------------------


def test_samples_are_read_in_the_order_of_the_data():
    class Numbers:
        def layers(self, samples, rows):
            self.rows = rows.tolist()
            return [np.array([[samples[row]] for row in rows])]

    inside = Numbers()
    [features] = layers_of(inside, SimpleNamespace(samples=[10, 11, 12, 13]), np.array([3, 0, 2]))
    assert inside.rows == [0, 2, 3] and features[:, 0].tolist() == [13, 10, 12]


def test_samples_of_a_dimension_by_hand():
    features = np.zeros((10, 2), np.float32)
    features[:, 0] = np.arange(10)
    labels = ["a"] * 4 + ["b"] * 6
    assert most_activating(features, 0).tolist() == [9, 8, 7, 6, 5, 4, 3, 2]
    assert purity(features, 0, labels) == 6 / 8 and purity(-features, 0, labels) == 4 / 8


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 9, (2, 5, 4))  # with ties
    expected = scipy.stats.spearmanr(one.ravel(), other.ravel()).statistic
    assert rank_correlation(one, other) == pytest.approx(expected)
    assert rank_correlation(one, 7 * one + 1) == pytest.approx(1) and np.isnan(rank_correlation(one, np.ones((5, 4))))


def test_maps_on_a_coarser_grid_are_means():
    np.testing.assert_allclose(resized(np.arange(16.0).reshape(4, 4), (2, 2)), [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_allclose(resized(np.arange(6.0), (3,)), [0.5, 2.5, 4.5])


def test_pieces_of_a_text_join_to_it():
    text = " Ab  c"
    assert pieces_of(text, [(0, 0), (1, 2), (2, 3), (5, 6), (0, 0)], [1, 0, 0, 0, 1]) == [" A", "b", "  c"]


def test_a_modality_that_cannot_be_looked_into_says_so(monkeypatch, tmp_path):
    class None_:
        inside = None

    monkeypatch.setattr(explain_module, "evaluation_modality", lambda name: None_)
    with pytest.raises(EvaluationError, match="modality 'image' cannot be looked into"):
        explain("x", None, labelled.digits()[1], output_dir=tmp_path)
