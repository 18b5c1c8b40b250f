"""Features of whole data sets: what they are, how long texts are cut, what is remembered of pooling, the formats."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import load_from_disk
from labelled import digits, png, processor, save, vit
from tiny import bert_config, texts, tokenizer
from transformers import AutoModel, BertModel, GPT2Config, GPT2Model, PatchTSTConfig

from hfssl.data.sources import DataError, MemorySource
from hfssl.data.sources.base import Damage
from hfssl.evaluation import EvaluationError
from hfssl.evaluation.embed import embed, load_embedder
from hfssl.evaluation.sample_features import EmbedSettings
from hfssl.evaluation.text.samples import TextSampleFeatures
from hfssl.methods import SimclrForPreTraining, SimclrPreTrainingConfig


SAMPLES = [*texts()[:70], " ".join(texts()[:20])]  # the last one has about 430 tokens, and the encoder takes 64


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(bert_config(), add_pooling_layer=False).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def image_encoder(tmp_path_factory):
    return str(save(vit(), tmp_path_factory.mktemp("vit")))


def source(samples=SAMPLES, modality="text"):
    return MemorySource(list(samples), name="mine", modality=modality, column=modality, piece_bytes=300)


def embedded(encoder, data, folder, format="npy", **settings):
    made = embed(load_embedder(encoder, EmbedSettings(**settings)), data, folder, format)
    return made, np.load(made.path) if format == "npy" else None


def directly(model, text, pooling="mean"):
    """Hidden states of a text that fits, by transformers alone."""
    ids = tokenizer()(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = model(input_ids=ids).last_hidden_state[0]
    return {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling].numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_short_texts_are_what_transformers_gives(bert, tmp_path, pooling):
    made, features = embedded(bert, source(), tmp_path, pooling=pooling, batch_size=8)
    assert features.shape == (71, 32) and features.dtype == np.float32 and made.num_damaged == 0
    short = [i for i, text in enumerate(SAMPLES) if len(tokenizer()(text)["input_ids"]) <= 64]
    assert len(short) > 25
    model = AutoModel.from_pretrained(bert).eval()
    for row in short[:25]:
        np.testing.assert_allclose(features[row], directly(model, SAMPLES[row], pooling), atol=1e-5)


def test_a_long_text_is_the_mean_over_its_windows_weighted_by_tokens(bert, tmp_path):
    _, features = embedded(bert, source(), tmp_path / "mean")
    _, windows = embedded(bert, source(), tmp_path / "each", windows="each", batch_size=3)
    places = pd.read_parquet(tmp_path / "each" / "places.parquet")
    ids = tokenizer()(SAMPLES[-1], add_special_tokens=False)["input_ids"]
    cuts = [ids[start : start + 62] for start in range(0, len(ids), 62)]
    assert len(cuts) > 3 and places["window"][places["row"] == 70].tolist() == list(range(len(cuts)))
    model, (cls, *_, sep) = AutoModel.from_pretrained(bert).eval(), tokenizer()("a")["input_ids"]
    with torch.no_grad():
        hidden = [model(torch.tensor([[cls, *cut, sep]])).last_hidden_state[0].numpy() for cut in cuts]
    np.testing.assert_allclose(windows[-len(cuts) :], [states.mean(0) for states in hidden], atol=1e-5)
    np.testing.assert_allclose(features[-1], np.concatenate(hidden).mean(0), atol=1e-5)
    assert len(features) == 71 and len(windows) == len(places) > 71


def test_max_length_cuts_shorter_windows(bert, tmp_path):
    _, windows = embedded(bert, source(), tmp_path, windows="each", max_length=10)
    assert len(windows) == sum(
        -(-len(tokenizer()(text, add_special_tokens=False)["input_ids"]) // 8) for text in SAMPLES
    )


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_decoder_pads_on_the_right(tmp_path, pooling):
    folder = tmp_path / "gpt2"
    config = GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=len(tokenizer()), n_positions=64, bos_token_id=1, eos_token_id=1
    )
    model = GPT2Model(config)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    _, features = embedded(str(folder), source(), tmp_path / "out", pooling=pooling)
    np.testing.assert_allclose(features[3], directly(model.eval(), SAMPLES[3], pooling), atol=1e-5)


def test_every_format_holds_the_same(bert, tmp_path):
    paths = {}
    for format in ("npy", "parquet", "dataset"):
        made, _ = embedded(bert, source(), tmp_path, format)
        scope = {}
        exec(made.snippet(), scope)
        paths[format] = made.path
        assert scope["features"].shape == (8 if format == "dataset" else 71, 32)
        assert str(made.path) in made.summary()
    features = np.load(paths["npy"])
    table = pd.read_parquet(paths["parquet"])
    np.testing.assert_array_equal(np.stack(table["features"]), features)
    places = table.drop(columns="features")
    assert places["row"].tolist() == list(range(71)) and places["sample"][5] == "mine, row 5"
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "places.parquet"), places)
    dataset = load_from_disk(paths["dataset"])
    np.testing.assert_array_equal(dataset.with_format("numpy")[:]["features"], features)
    assert dataset.remove_columns("features").to_list() == places.to_dict("records")
    record = json.loads((tmp_path / "embed.json").read_text())
    assert record["pooling"] == "mean" and record["dim"] == 32 and record["encoder"] == bert


def test_another_format_does_not_ask_the_encoder_again(bert, tmp_path, monkeypatch):
    embedded(bert, source(), tmp_path, "npy")
    monkeypatch.setattr(TextSampleFeatures, "__call__", lambda *_: pytest.fail("asked again"))
    assert embedded(bert, source(), tmp_path, "parquet")[0].num_rows == 71


def test_other_settings_in_the_same_folder_are_refused(bert, tmp_path):
    embedded(bert, source(), tmp_path)
    with pytest.raises(DataError, match="`pooling` was mean then and is cls now"):
        embedded(bert, source(), tmp_path, pooling="cls")


def test_pooling_is_the_one_that_the_encoder_was_trained_with(image_encoder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    images = digits()[0].images[:20]
    assert load_embedder(image_encoder, EmbedSettings()).pooling == "cls"
    result = tmp_path / "result"
    torch.manual_seed(0)
    method = SimclrForPreTraining(
        SimclrPreTrainingConfig(
            encoder_config=vit().config, projector_hidden_dim=16, projector_output_dim=8, pooling="mean"
        )
    )
    method.export_encoder(result)
    method.save_pretrained(result / "pretraining")
    processor().save_pretrained(result)
    assert load_embedder(str(result), EmbedSettings()).pooling == "mean"
    assert "Pooling: mean, as the encoder was trained." in caplog.text
    (result / "hfssl.json").write_text('{"pooling": "cls+mean", "image_size": 16}')
    made, features = embedded(str(result), source(images, "image"), tmp_path / "out")
    assert features.shape == (20, 64) and made.dim == 64
    assert load_embedder(str(result), EmbedSettings(pooling="cls")).pooling == "cls"


def test_damaged_images_are_left_out(image_encoder, tmp_path):
    images = [*digits()[0].images[:250], b"no image"]
    made, features = embedded(image_encoder, source(images, "image"), tmp_path)
    assert len(features) == 250 and made.num_damaged == 1 and "1 are damaged" in made.summary()
    with pytest.raises(DataError, match="more than the 1.0% that `--max_bad_fraction` allows.*unknown format"):
        embedded(image_encoder, source([*images, *[b"nor this"] * 20], "image"), tmp_path / "more")


def test_what_cannot_be_embedded_is_said_in_one_sentence(bert, tmp_path):
    PatchTSTConfig(d_model=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path / "series")
    for encoder, message in (
        (str(tmp_path / "series"), "takes `past_values`"),
        (str(tmp_path / "nothing"), "no encoder folder"),
        (str(tmp_path), "no config.json"),
    ):
        with pytest.raises(EvaluationError, match=message):
            load_embedder(encoder, EmbedSettings())
    for settings, message in (
        ({"pooling": "last4"}, "no pooling 'last4' of texts. Choose one of mean, cls, last"),
        ({"max_length": 2}, "no room for text"),
        ({"max_length": 0}, "at least 1"),
        ({"layer": 1}, "`--layer 1` is for encoders of recordings, and this one takes texts"),
    ):
        with pytest.raises(EvaluationError, match=message):
            load_embedder(bert, EmbedSettings(**settings))
    blank = MemorySource(["\u200b", "a b"], name="blank")
    embedder = load_embedder(bert, EmbedSettings())
    embedder.prepare = lambda text: Damage("nothing in it")
    with pytest.raises(EvaluationError, match="has nothing to embed: all of its 2 samples"):
        embed(embedder, blank, tmp_path / "out", max_bad_fraction=1.0)


def test_features_that_are_no_numbers_are_refused(bert, tmp_path):
    embedder = load_embedder(bert, EmbedSettings())
    with torch.no_grad():
        embedder.model.embeddings.word_embeddings.weight.fill_(torch.nan)
    with pytest.raises(EvaluationError, match="no numbers"):
        embed(embedder, source(), tmp_path)


def test_images_of_twelve_bits(image_encoder, tmp_path, caplog):
    deep = [np.random.default_rng(i).integers(0, 4096, (8, 8), dtype=np.uint16) for i in range(4)]
    eight = [np.rint(values / 4095 * 255).astype(np.uint8) for values in deep]
    data = [source([png(values) for values in images], "image") for images in (deep, eight)]
    _, stated = embedded(image_encoder, data[0], tmp_path / "a", value_range=(0.0, 4095.0))
    _, expected = embedded(image_encoder, data[1], tmp_path / "b")
    np.testing.assert_allclose(stated, expected, atol=1e-5)
    assert "black to white" not in caplog.text
    _, whole = embedded(image_encoder, data[0], tmp_path / "c")
    assert np.abs(whole - expected).max() > 1e-3
    assert caplog.text.count("nothing says which of them are in use: 0 to 65535 becomes black to white") == 1
