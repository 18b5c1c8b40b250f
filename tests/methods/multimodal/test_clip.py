"""CLIP: its loss, towers of any kind, what is frozen, what is exported, and what it says where it cannot."""

import json
import math

import pytest
import tiny
import tiny_pairs
import torch
from contract import Contract
from PIL import Image
from recipe_process import stock_server
from tiny_pairs import images_and_texts, texts
from transformers import (
    AutoModel,
    BertModel,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    VisionTextDualEncoderModel,
    ViTModel,
)

from hfssl import ClipForPreTraining, ClipPreTrainingConfig
from hfssl.errors import UserError
from hfssl.methods.multimodal import clip as clip_module
from hfssl.modeling.pairs import PairOutput


def without_negatives(change):
    """Only what belongs together counts: one vector for everything is best."""
    change(clip_module, "clip_loss", lambda a, b, scale, /, **_: (1 - (a * b).sum(-1)).mean() + 0 * scale)
    return {}


CONTRACT = Contract(
    encoder=tiny_pairs.clip_towers,
    batch=images_and_texts,
    settings={"projection_dim": 16},
    noise={"patch_dropout": 0.5},
    accumulation=False,
    why_not="Negatives are those of an accumulation step; `--contrastive_batch_size` makes one batch of all.",
    collapse=without_negatives,
    variants={
        "vit-bert": (tiny_pairs.vit_and_bert, {}),
        "resnet-bert": (tiny_pairs.resnet_and_bert, {"frozen_tower": "image"}),
    },
)


def clip(encoders=None, seed=0, **config):
    torch.manual_seed(seed)
    fields = {"projection_dim": 16, **(encoders or tiny_pairs.clip_towers()), **config}
    return ClipForPreTraining(ClipPreTrainingConfig(**fields))


def batch(rows=6, seed=1):
    torch.manual_seed(seed)
    return images_and_texts(rows)


def after_a_step(model):
    """Weights that are none of the initial ones."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return model.eval()


def test_the_defaults_are_the_papers():
    config = ClipPreTrainingConfig()
    assert (config.first_config.model_type, config.second_config.model_type) == (
        "clip_vision_model",
        "clip_text_model",
    )
    assert (config.first_config.patch_size, config.projection_dim, config.pair) == (32, 512, "image,text")
    assert config.logit_scale_init == pytest.approx(1 / 0.07)


def test_loss_and_embeddings_are_those_of_transformers_before_and_after_the_export(tmp_path):
    model = after_a_step(clip())
    out = model(**batch())
    model.export_encoder(tmp_path)
    stock = AutoModel.from_pretrained(tmp_path)
    assert type(stock) is CLIPModel
    expected = stock(**batch(), return_loss=True)
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(out.first_embeds, expected.image_embeds)
    torch.testing.assert_close(out.second_embeds, expected.text_embeds)
    again = ClipForPreTraining.from_pair(str(tmp_path)).eval()
    torch.testing.assert_close(again(**batch()).loss, out.loss)
    assert again.config.projection_dim == 16


def test_a_tower_of_an_export_loads_alone_and_begins_another_pair(tmp_path):
    model = after_a_step(clip())
    model.export_encoder(tmp_path)
    for name in ("image", "text"):
        alone = AutoModel.from_pretrained(tmp_path / name)
        for key, tensor in model.encoders[name].state_dict().items():
            torch.testing.assert_close(alone.state_dict()[key], tensor, rtol=0, atol=0)
    torch.manual_seed(2)
    bert = tiny_pairs.vit_and_bert()["second_config"]
    for source in (tmp_path, tmp_path / "image"):
        other = ClipForPreTraining.from_encoders(str(source), bert, projection_dim=8, frozen_tower="image")
        for key, tensor in model.encoders["image"].state_dict().items():
            torch.testing.assert_close(other.encoders["image"].state_dict()[key], tensor, rtol=0, atol=0)


def test_vit_and_bert_become_a_dual_encoder_of_transformers(tmp_path):
    model = after_a_step(clip(tiny_pairs.vit_and_bert()))
    model.export_encoder(tmp_path)
    stock = AutoModel.from_pretrained(tmp_path)
    assert type(stock) is VisionTextDualEncoderModel
    expected = stock(**batch(), return_loss=True)
    torch.testing.assert_close(model(**batch()).loss, expected.loss)
    assert type(AutoModel.from_pretrained(tmp_path / "image")) is ViTModel
    assert type(AutoModel.from_pretrained(tmp_path / "text")) is BertModel
    again = ClipForPreTraining.from_pair(str(tmp_path)).eval()
    torch.testing.assert_close(again(**batch()).loss, expected.loss)


def test_what_no_stock_class_holds_lies_beside_the_encoders(tmp_path):
    from safetensors.torch import load_file

    model = after_a_step(clip(tiny_pairs.resnet_and_bert()))
    assert model.export_kind == "stock + extras"
    model.export_encoder(tmp_path)
    extras = load_file(tmp_path / "extras.safetensors")
    image, text = (AutoModel.from_pretrained(tmp_path / name).eval() for name in ("image", "text"))
    inputs = batch()
    a = image(inputs["pixel_values"]).pooler_output.flatten(1) @ extras["image.projection"].T
    b = text(inputs["input_ids"], inputs["attention_mask"]).pooler_output @ extras["text.projection"].T
    out = model(**inputs)
    torch.testing.assert_close(torch.nn.functional.normalize(a, dim=-1), out.first_embeds)
    torch.testing.assert_close(torch.nn.functional.normalize(b, dim=-1), out.second_embeds)
    torch.testing.assert_close(extras["logit_scale"], model.logit_scale.detach())
    # and the lines of the card say so
    names = {}
    exec(model.loader.format(name=tmp_path), names)
    torch.testing.assert_close(names["embed"]("image", pixel_values=inputs["pixel_values"]), out.first_embeds)
    mask = {"attention_mask": inputs["attention_mask"]}
    torch.testing.assert_close(names["embed"]("text", input_ids=inputs["input_ids"], **mask), out.second_embeds)
    assert clip().loader == ""


def test_a_pair_of_sounds_and_texts_goes_the_same_way():
    model = clip(tiny_pairs.hubert_and_bert(), pair="audio,text").train()
    assert list(model.encoders) == ["audio", "text"] and model.main_input_name == "input_values"
    inputs = texts(4)
    inputs |= {"b_attention_mask": inputs.pop("attention_mask"), "input_values": torch.randn(4, 4000)}
    inputs["a_attention_mask"] = torch.ones(4, 4000, dtype=torch.long)
    loss = model(**inputs).loss
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    # what stands after the end of a sound or of a text is not heard
    model.eval()
    found = model(**inputs)
    changed = {name: tensor.clone() for name, tensor in inputs.items()}
    changed["a_attention_mask"][:, 3000:] = 0
    changed["input_ids"][changed["b_attention_mask"] == 0] = 5
    silent = {**changed, "input_values": changed["input_values"].clone()}
    silent["input_values"][:, 3000:] = 0
    torch.testing.assert_close(model(**changed).second_embeds, found.second_embeds)
    assert not torch.equal(model(**silent).first_embeds, found.first_embeds)


def test_a_frozen_tower_stays_and_its_projection_learns():
    model = clip(frozen_tower="image").train()
    assert not model.encoders["image"].training and model.encoders["text"].training
    model(**batch()).loss.backward()
    learn = {name for name, p in model.named_parameters() if p.grad is not None}
    assert not any(name.startswith("first.encoder") for name in learn) and "first.projection.weight" in learn
    assert model.trained_encoders == [model.encoders["text"]]


def test_patch_dropout_shows_some_patches_in_training_only():
    model = clip(patch_dropout=0.75)
    lengths = []
    model.encoders["image"].encoder.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    inputs = batch()
    first, second = model.train()(**inputs).loss, model(**inputs).loss
    assert first != second
    model.eval()(**inputs)
    assert lengths == [1 + 4, 1 + 4, 1 + 16]
    with pytest.raises(UserError, match="`patch_dropout` is for Vision Transformers.*a resnet is none"):
        clip(tiny_pairs.resnet_and_bert(), patch_dropout=0.5)


def test_the_scale_stays_within_its_bounds_and_gets_no_weight_decay():
    model = clip()
    for value, expected in ((9.0, math.log(100)), (-1.0, 0.0)):
        with torch.no_grad():
            model.logit_scale.fill_(value)
        model.after_optimizer_step(0.5)
        assert model.logit_scale.item() == pytest.approx(expected)
    assert model.logit_scale.ndim == 0  # the trainer decays matrices only


def test_texts_of_another_tokenizer_are_explained():
    inputs = batch()
    inputs["input_ids"][inputs["input_ids"] == tiny_pairs.END] = 3
    with pytest.raises(UserError, match="6 of 6 texts lack the token 29 at which the text encoder reads them"):
        clip()(**inputs)
    towers = tiny_pairs.clip_towers()
    towers["second_config"].eos_token_id = 49407
    with pytest.raises(UserError, match="end token 49407, which its vocabulary of 30 tokens has not"):
        clip(towers)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"pair": "image"}, "`pair` names two modalities, such as image,text, got 'image'"),
        ({"pair": "image,smell"}, "no encoders of 'smell' here"),
        ({"frozen_tower": "audio"}, "`frozen_tower` is one of image, text, got 'audio'"),
        ({"patch_dropout": 1.0}, "`patch_dropout` is a share"),
        ({"projection_dim": 0}, "`projection_dim` must be at least 1, got 0"),
        ({"logit_scale_init": 0.0}, "`logit_scale_init` must be at least 1, got 0.0"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        clip(**config)


def test_bad_batches_are_named():
    model = clip().train()
    with pytest.raises(UserError, match="CLIP contrasts a pair with the others of its batch"):
        model(**batch(1))
    with pytest.raises(ValueError, match="CLIP compares image with text: the batch has no `pixel_values`"):
        model(**texts(4))
    with pytest.raises(ValueError, match="as many of one as of the other, got {'image': 3, 'text': 6}"):
        model(**batch() | {"pixel_values": torch.randn(3, 3, 16, 16)})
    with pytest.raises(UserError, match="'image' is frozen and has random weights"):
        ClipForPreTraining.from_encoders(*tiny_pairs.vit_and_bert().values(), frozen_tower="image")
    assert isinstance(model.eval()(**batch(1)), PairOutput)


def test_the_export_answers_in_a_pipeline_of_plain_transformers(tmp_path):
    """Tokenizer and image processor lie beside it: classes are found by their names in words."""
    tokenizer = tiny.tokenizer()
    towers = tiny_pairs.clip_towers()
    text = towers["second_config"]
    text.vocab_size, text.max_position_embeddings, text.eos_token_id = len(tokenizer), 16, tokenizer.sep_token_id
    model = after_a_step(clip(towers))
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    model.export_encoder(tmp_path, processor=CLIPProcessor(images, tokenizer))
    for name in ("image", "text"):
        assert any((tmp_path / name).glob({"image": "preprocessor_config.json", "text": "tokenizer.json"}[name]))
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import json, sys
from PIL import Image
from transformers import AutoModel, pipeline
classify = pipeline("zero-shot-image-classification", {str(tmp_path)!r})
said = classify(Image.new("RGB", (20, 20), "red"), candidate_labels=["fox", "dog"], hypothesis_template="{{}}")
assert {{each["label"] for each in said}} == {{"fox", "dog"}}
towers = [type(AutoModel.from_pretrained({str(tmp_path)!r} + "/" + name)).__name__ for name in ("image", "text")]
print(json.dumps([{{each["label"]: each["score"] for each in said}}, towers, "hfssl" in sys.modules]))
"""
    )
    run = stock_server().run(tmp_path / "log", script=str(script))
    assert run.poll() == 0, run.stderr
    scores, kinds, knows_hfssl = json.loads(run.stdout.splitlines()[-1])
    assert kinds == ["CLIPVisionModel", "CLIPTextModel"] and not knows_hfssl
    picture = images(Image.new("RGB", (20, 20), "red"), return_tensors="pt")["pixel_values"]
    words = tokenizer(["fox", "dog"], padding=True, return_tensors="pt")
    out = model.embed(pixel_values=picture.expand(2, -1, -1, -1), **words)
    expected = (model.logit_scale.exp() * out["image"][0] @ out["text"].T).softmax(0)
    assert [scores["fox"], scores["dog"]] == pytest.approx(expected.tolist(), abs=1e-4)
