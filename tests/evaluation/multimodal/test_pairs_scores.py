"""Figures of two encoders: by hand, with ties, against what transformers' pipeline says, and with files of prompts."""

import json
import logging

import numpy as np
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    pipeline,
)

from hfssl.data.image.characters import all_characters, captions
from hfssl.data.image.digits import digits
from hfssl.data.labelled import open_labelled
from hfssl.data.text.tokenizer import train_tokenizer
from hfssl.errors import UserError
from hfssl.evaluation.evaluator import EvaluationError
from hfssl.evaluation.multimodal.embedders import StockPair
from hfssl.evaluation.multimodal.pictures import draw_pairs
from hfssl.evaluation.multimodal.prompts import Prompts, read_prompts
from hfssl.evaluation.multimodal.retrieval import distinct
from hfssl.evaluation.multimodal.scores import class_embeddings, ranks_of_pairs, retrieval_scores, zero_shot_scores
from hfssl.evaluation.multimodal.zero_shot import ZeroShotEvaluator, zero_shot
from hfssl.modeling.image_processing import build_image_processor


TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer():
    of = all_characters()
    return train_tokenizer(captions(type(of)(*(values[::400] for values in of))), 300)


def stock(kind, tokenizer):
    torch.manual_seed(0)
    text = {**TINY, "vocab_size": 1000, "max_position_embeddings": 16, "projection_dim": 8}
    vision = {**TINY, "image_size": 16, "patch_size": 8, "projection_dim": 8}
    if kind == "clip":
        special = {"eos_token_id": tokenizer.sep_token_id, "bos_token_id": 2, "pad_token_id": 0}
        return CLIPModel(CLIPConfig(text_config=text | special, vision_config=vision, projection_dim=8)).eval()
    if kind == "siglip":
        return SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    from transformers import BertConfig, ViTConfig

    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ViTConfig(**TINY, image_size=16, patch_size=8), BertConfig(**TINY, vocab_size=1000), projection_dim=8
    )
    return VisionTextDualEncoderModel(config).eval()


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock")
    for kind in ("clip", "siglip", "dual"):
        stock(kind, tokenizer).save_pretrained(folder / kind)
        tokenizer.save_pretrained(folder / kind)
        build_image_processor(16).save_pretrained(folder / kind)
    return folder


def test_ranks_by_hand_and_with_ties():
    queries = torch.eye(3)
    gallery = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1]])
    pairs = np.array([[0, 0], [1, 0], [2, 2]])
    # the second query is nearest to the second of the gallery; what belongs to it is as far as the third
    assert ranks_of_pairs(queries, gallery, pairs).tolist() == [1, 2.5, 1]
    # of several that belong the nearest counts
    assert ranks_of_pairs(queries, gallery, np.array([[1, 0], [1, 1]])).tolist() == [1]
    same = torch.ones(100, 4)
    scores = retrieval_scores(same, same, np.stack([np.arange(100)] * 2, axis=1))
    assert scores["image_to_text_median_rank"] == 50.5 and scores["text_to_image_r10"] == 0.0
    torch.manual_seed(0)
    embeds = torch.randn(1200, 8)
    rows = np.stack([np.arange(1200)] * 2, axis=1)
    assert retrieval_scores(embeds, embeds, rows, ("image", "audio"))["audio_to_image_r1"] == 1.0
    noise = retrieval_scores(embeds, torch.randn(1200, 8), rows)
    assert noise["image_to_text_r10"] < 0.03 and 480 < noise["text_to_image_median_rank"] < 720


def test_classes_are_the_mean_of_what_they_are_called():
    texts = torch.tensor([[2.0, 0], [0, 1.0], [0, -3.0]])
    classes = class_embeddings(texts, np.array([0, 0, 1]), 2)
    torch.testing.assert_close(classes, torch.tensor([[0.5**0.5, 0.5**0.5], [0, -1.0]]))
    samples = torch.tensor([[1.0, 1], [1, -5], [1, 5]])
    assert zero_shot_scores(samples, classes, np.array([0, 1, 1])) == {"top1": pytest.approx(2 / 3)}
    six = zero_shot_scores(torch.eye(6), torch.eye(6).roll(1, 0), np.arange(6))
    assert six["top1"] == 0.0 and six["top5"] == 1.0  # it shares the ranks 2 to 6 with four others


def test_files_of_prompts(tmp_path):
    assert read_prompts(["sea_gull", "ox"]).texts == ["a photo of a sea gull.", "a photo of a ox."]
    assert read_prompts(["dark_red"], dataset="characters").texts == ["dark red"]
    (tmp_path / "names.txt").write_text("gull\n\nox\n")
    (tmp_path / "say.txt").write_text("\ufeff{}\nmany {}s\n", encoding="utf-8")
    prompts = read_prompts(["a", "b"], tmp_path / "names.txt", tmp_path / "say.txt")
    assert prompts.texts == ["gull", "many gulls", "ox", "many oxs"] and prompts.class_of.tolist() == [0, 0, 1, 1]
    (tmp_path / "names.json").write_text(json.dumps({"b": ["ox", "cow"], "a": "gull"}))
    prompts = read_prompts(["a", "b"], tmp_path / "names.json")
    assert prompts.names == (("gull",), ("ox", "cow")) and prompts.class_of.tolist() == [0, 1, 1]
    for content, message in {
        b"gull\n": "names 1 classes, a line each, and the data have 2: a, b",
        "Möwe\nKuh".encode("latin-1"): r"not in UTF-8 \(byte 1\).*iconv",
    }.items():
        (tmp_path / "bad.txt").write_bytes(content)
        with pytest.raises(EvaluationError, match=message):
            read_prompts(["a", "b"], tmp_path / "bad.txt")
    (tmp_path / "bad.json").write_text('{"a": "gull"}')
    with pytest.raises(EvaluationError, match="no name for 1 of the classes, such as 'b'"):
        read_prompts(["a", "b"], tmp_path / "bad.json")
    (tmp_path / "bad.txt").write_text("a photo")
    with pytest.raises(EvaluationError, match=r"\{\} where the name .* 'a photo' has none"):
        read_prompts(["a"], templates=tmp_path / "bad.txt")
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_prompts(["a"], tmp_path / "none.txt")


def test_names_that_no_caption_has_are_found():
    names = (("Smileys & Emotion", "grinning face"), ("Food and drink",), ("Flags",), ("ox",), ("猫",), ("犬",))
    captions = ["a Grinning cat", "bread and of", "flag: Chile", "an OX", "黒い猫がいる"]
    # of a class one name is enough; "and" says nothing, and another form of a word is another word
    assert Prompts(names).never_said(captions) == ["Food and drink", "Flags", "犬"]
    assert Prompts((("ox",), ("a",))).never_said(["an ox"]) == ["a"]


@pytest.mark.parametrize("kind", ["clip", "siglip", "dual"])
def test_a_stock_folder_says_what_transformers_says(folders, kind):
    pair = StockPair(folders / kind)
    images, labels = (values[:6] for values in digits("test").values())
    texts = ["digit one", "latin small letter a", "x"]
    similar = pair.images(images) @ pair.texts(texts).T
    from PIL import Image

    from hfssl.data.image.decode import decode_image

    pictures = [Image.fromarray(decode_image(image).permute(1, 2, 0).numpy()) for image in images]
    pixels = pair.image_processor(pictures, return_tensors="pt")["pixel_values"]
    padding = {"padding": "max_length", "max_length": 16} if kind == "siglip" else {"padding": True}
    words = pair.tokenizer(texts, return_tensors="pt", **padding)
    words = {"input_ids": words["input_ids"]} | (
        {} if kind == "siglip" else {"attention_mask": words["attention_mask"]}
    )
    with torch.no_grad():
        out = pair.model(pixel_values=pixels, **words)
    expected = out.image_embeds @ out.text_embeds.T
    torch.testing.assert_close(similar, expected, atol=1e-5, rtol=1e-4)


def test_zero_shot_agrees_with_the_pipeline(folders):
    from PIL import Image

    pair = StockPair(folders / "clip")
    data = open_labelled("digits", "test", max_samples=12)
    prompts = read_prompts(data.class_names)
    ask = pipeline(
        "zero-shot-image-classification", model=pair.model, tokenizer=pair.tokenizer,
        image_processor=pair.image_processor,
    )  # fmt: skip
    from io import BytesIO

    right = []
    for image, label in zip(data.samples, data.labels, strict=True):
        found = ask(
            Image.open(BytesIO(image)).convert("RGB"), candidate_labels=data.class_names,
            hypothesis_template="a photo of a {}.",
        )  # fmt: skip
        right.append(found[0]["label"] == data.class_names[label])
    scores = zero_shot(pair, data, prompts)
    assert scores["zero_shot_top1"] == pytest.approx(np.mean(right))
    results = ZeroShotEvaluator(data, prompts)(pair)
    assert [result.metric for result in results] == ["zero_shot_top1", "zero_shot_top5"]
    assert results[0].baselines["majority"] >= 0.1


def test_retrieval_and_its_pictures(folders, tmp_path):
    pair = StockPair(folders / "clip")
    images, labels = (values[:5] for values in digits("test").values())
    pairs = [
        {"image": image, "text": [f"digit {label}", "", "a digit"]}
        for image, label in zip(images, labels, strict=True)
    ]
    samples, texts, rows = distinct(pairs)
    assert len(samples) == 5 and len(texts) == len(set(labels)) + 1 and len(rows) == 10
    scores = retrieval_scores(pair.images(samples), pair.texts(texts), rows)
    assert scores["image_to_text_r10"] >= scores["image_to_text_r1"] and scores["text_to_image_r5"] == 1.0
    from hfssl.evaluation.image.features import resized_images

    drawn = draw_pairs(
        resized_images(pair.image_processor, samples), texts, pair.images(samples), pair.texts(texts), rows, tmp_path
    )
    assert [path.name for path, _ in drawn] == ["captions.png", "images.png", "similarity.png"]
    assert all(path.stat().st_size > 1000 for path, _ in drawn)


def test_letters_without_a_font_are_said_in_one_line(tmp_path, caplog, monkeypatch, recwarn):
    caplog.set_level(logging.INFO)
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    embeds, rows = torch.eye(3), np.stack([np.arange(3)] * 2, axis=1)
    draw_pairs(images, ["a cat", "$ 5", "dog"], embeds, embeds, rows, tmp_path)
    assert "boxes" not in caplog.text
    monkeypatch.setattr("hfssl.evaluation.image.pictures._FONTS", ("No Such Font",))
    draw_pairs(images, ["猫", "犬", "鳥"], embeds, embeds, rows, tmp_path)
    said = [line for line in caplog.messages if line.startswith("captions.png: no font here has 3 of its letters")]
    assert len(said) == 1 and "Install one of No Such Font" in said[0]
    assert not [each for each in recwarn if "Glyph" in str(each.message)]


def test_folders_that_are_no_pair_are_refused(folders, tokenizer, tmp_path):
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(**TINY, vocab_size=1000)).save_pretrained(tmp_path / "bert")
    with pytest.raises(EvaluationError, match='"bert" model, and two encoders that were trained together'):
        StockPair(tmp_path / "bert")
    model = stock("clip", tokenizer)
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="tokenizer"):
        StockPair(tmp_path / "bare")
    small = CLIPModel(CLIPConfig(
        text_config={**TINY, "vocab_size": 20, "max_position_embeddings": 16},
        vision_config={**TINY, "image_size": 16, "patch_size": 8}, projection_dim=8,
    ))  # fmt: skip
    with pytest.raises(EvaluationError, match=r"tokenizer of .* entries, and its text encoder has embeddings for 20"):
        StockPair(small, tokenizer, build_image_processor(16))
    assert Prompts((("a",),)).texts == ["a photo of a a."]
