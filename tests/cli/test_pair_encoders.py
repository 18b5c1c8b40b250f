"""The two towers of a pair on the command line: which are chosen, how long texts are, and what is refused."""

import io
import logging

import numpy as np
import pytest
import tiny_audio
import torch
from PIL import Image
from tiny_vision import vit
from transformers import AutoModel, HubertModel, SiglipModel, Wav2Vec2FeatureExtractor

from hfssl import (
    ClipForPreTraining,
    ClipPreTrainingConfig,
    RecipeParser,
    SiglipForPreTraining,
    SiglipPreTrainingConfig,
    SSLTrainer,
    SSLTrainingArguments,
)
from hfssl.cli.image.data import ImageData, ImageDataArguments
from hfssl.cli.multimodal.data import PairData, PairDataArguments
from hfssl.cli.multimodal.encoders import PairEncoderArguments, _feature_extractor, build_pair, pair_rows
from hfssl.cli.multimodal.presets import PRESETS
from hfssl.cli.multimodal.probes import PairProbeArguments, pair_evaluators
from hfssl.data.image.views import ViewArguments
from hfssl.errors import UserError


PAIR = "image,text"
WORDS = ("red", "green", "small", "old", "boat", "house", "tree", "cloud")


def write_pairs(folder, size, number=24, bits=8):
    folder.mkdir()
    for i in range(number):
        random = np.random.default_rng(i)
        kind = np.uint8 if bits == 8 else np.uint16
        pixels = random.integers(0, 2 ** min(bits, 12), (size, size + 5, 3)[: 3 if bits == 8 else 2], kind)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        (folder / f"{i:02}.png").write_bytes(file.getvalue())
        (folder / f"{i:02}.txt").write_text(" ".join(random.choice(WORDS, 4)))
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "small", 32)


def built(folder, tmp_path, method=ClipForPreTraining, checkpoint=None, views=None, given=frozenset(), **flags):
    """Recipe, data and model as a recipe makes them."""
    of_data = {name: flags.pop(name) for name in ("max_length", "vocab_size") if name in flags}
    of_run = {name: flags.pop(name) for name in list(flags) if name.endswith(("batch_size", "freeze_layers"))}
    recipe, views = PairEncoderArguments(**flags), views or ViewArguments()
    args = SSLTrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True, precision="fp32", **of_run)
    data = PairData(
        PairDataArguments(str(folder), max_lost_fraction=1.0, **of_data),
        PAIR,
        recipe.checkpoint_of("text"),
        checkpoint,
    )
    config = {"pair": PAIR, "projection_dim": method.config_class(pair=PAIR).projection_dim}
    return recipe, data, build_pair(method, recipe, config, data, views, args, set(given))


def test_towers_are_chosen_by_the_size_of_the_images(small, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    recipe, data, model = built(small, tmp_path)
    assert (recipe.image_encoder, recipe.text_encoder) == ("clip-image-mini-patch4", "clip-text-mini")
    assert "--image_encoder clip-image-mini-patch4 --image_size 32, for 24 images of about 32 pixels" in caplog.text
    large = write_pairs(tmp_path / "large", 96)
    recipe, data, model = built(large, tmp_path, SiglipForPreTraining)
    assert recipe.image_encoder == "siglip-image-mini-patch8" and model.config_of("image").image_size == 64
    assert "better: --image_encoder siglip-image-small-patch8 --image_size 96" in caplog.text
    rows, _ = pair_rows(model, recipe, data, ViewArguments(), set())
    assert rows.sides["image"].image_size == 64
    # stated, the size counts and not that of the images
    views = ViewArguments(image_size=48)
    recipe, data, model = built(large, tmp_path, views=views)
    assert recipe.image_encoder == "clip-image-mini-patch4" and model.config_of("image").image_size == 48
    assert pair_rows(model, recipe, data, views, set())[0].sides["image"].image_size == 48


def test_texts_go_with_images_and_presets_without_a_size_have_theirs(small, tmp_path):
    recipe, data, model = built(small, tmp_path, image_encoder="resnet-18-half", text_encoder="bert-mini")
    rows, _ = pair_rows(model, recipe, data, ViewArguments(), set())
    assert rows.sides["image"].image_size == 64
    recipe, _, _ = built(small, tmp_path, image_encoder="clip-image-small-patch8")
    assert recipe.text_encoder == "clip-text-small"
    recipe, _, _ = built(small, tmp_path, image_encoder="vit-mini-patch4")
    assert recipe.text_encoder == "clip-text-mini"


def test_a_run_that_goes_on_keeps_its_towers(small, tmp_path, monkeypatch):
    recipe, data, model = built(small, tmp_path, image_encoder="clip-image-mini-patch8", max_length=12)
    model.save_pretrained(tmp_path / "checkpoint")
    data.tokenizer.save_pretrained(tmp_path / "checkpoint")
    monkeypatch.setattr("hfssl.cli.multimodal.data.read_settings", lambda checkpoint: {})
    _, data, again = built(small, tmp_path, checkpoint=tmp_path / "checkpoint", max_length=12)
    assert again.config_of("image").patch_size == 8
    as_built = {"dtype": None, "architectures": None}  # said of what is saved alone
    assert again.config.to_dict() | as_built == model.config.to_dict() | as_built


def test_what_was_not_stated_is_no_setting_of_a_run(small, tmp_path):
    """A run from before these were settings goes on."""
    own = {"dataset_config", "vocab_size", "value_range"}
    assert not own & set(built(small, tmp_path)[1].settings)
    assert built(small, tmp_path, vocab_size=300)[1].settings["vocab_size"] == 300


def test_how_long_texts_are(small, tmp_path, caplog):
    _, data, model = built(small, tmp_path)
    assert data.arguments.max_length == model.config_of("text").max_position_embeddings == 32
    _, data, model = built(small, tmp_path, SiglipForPreTraining)
    assert data.arguments.max_length == model.config_of("text").max_position_embeddings == 64
    assert model.stock_class is SiglipModel and "pipeline" not in caplog.text
    built(small, tmp_path, SiglipForPreTraining, max_length=16)
    assert "to 64 tokens, and this text encoder reads 16" in caplog.text and "Leave `--max_length` out" in caplog.text
    # of a checkpoint as many as it takes
    for positions, expected in ((20, 20), (512, 77)):
        fields = {"max_position_embeddings": positions, "hidden_size": 32, "num_attention_heads": 2}
        text = replace_fields(PRESETS["text"]["bert-mini"](), **fields, vocab_size=data.tokenizer.vocab_size)
        folder = tmp_path / f"bert-{positions}"
        AutoModel.from_config(text).save_pretrained(folder)
        data.tokenizer.save_pretrained(folder)
        _, of_checkpoint, _ = built(small, tmp_path, text_encoder=str(folder))
        assert of_checkpoint.arguments.max_length == expected
    # and of one from scratch that has few positions
    few = tmp_path / "few.json"
    replace_fields(PRESETS["text"]["bert-mini"](), max_position_embeddings=20).to_json_file(few)
    _, of_few, _ = built(small, tmp_path, text_encoder=str(few))
    assert of_few.arguments.max_length == 20
    with pytest.raises(UserError, match="--max_length 30` is more than the 20 positions"):
        built(small, tmp_path, text_encoder=str(tmp_path / "bert-20"), max_length=30, given={"max_length"})


def replace_fields(config, **fields):
    return type(config)(**config.to_dict() | fields)


def test_one_pair_a_step_is_enough_where_several_are_compared(small, tmp_path):
    built(small, tmp_path, per_device_train_batch_size=1, contrastive_batch_size=4)
    with pytest.raises(UserError, match="a batch has one here"):
        built(small, tmp_path, per_device_train_batch_size=1)


@pytest.mark.parametrize("kind", [ClipPreTrainingConfig, SiglipPreTrainingConfig])
def test_a_stock_pair_has_towers_and_vectors_of_its_own(kind, capsys):
    parser = RecipeParser(PairEncoderArguments, kind, SSLTrainingArguments, defaults={"output_dir": "out"})
    for flags in (
        ["--image_encoder", "resnet-mini"], ["--text_encoder", "bert-mini"], ["--projection_dim", "64"],
        ["--first_pooling", "mean"], ["--second_pooling", "mean"], ["--logit_scale_init", "20"],
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            parser.parse(["--encoder", "org/clip", *flags])
        said = " ".join(capsys.readouterr().err.split())
        assert f"--encoder org/clip and {flags[0]}" in said and "both say" in said
    recipe, _, _ = parser.parse(["--encoder", "org/clip"])
    assert recipe.encoder == "org/clip"


def test_images_of_more_than_8_bits_have_their_range(tmp_path):
    folder = write_pairs(tmp_path / "deep", 32, bits=16)
    recipe, data, model = built(folder, tmp_path)
    rows, processor = pair_rows(model, recipe, data, ViewArguments(), set())
    assert rows.sides["image"].value_range == (0.0, 4095.0) == tuple(processor.image_processor.value_range)
    assert data.settings["value_range"] == [0.0, 4095.0]


def test_a_checkpoint_of_sound_without_a_feature_extractor(tmp_path):
    config = tiny_audio.hubert()
    HubertModel(config).save_pretrained(tmp_path)
    assert _feature_extractor(config, str(tmp_path)).sampling_rate == 16_000
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    assert not _feature_extractor(config, str(tmp_path)).do_normalize


@pytest.mark.parametrize("flags, name", [({}, "image"), ({"image_encoder": "vit"}, "text")])
def test_nothing_is_kept_of_encoders_from_scratch(small, tmp_path, flags, name):
    if flags:
        AutoModel.from_config(vit()).save_pretrained(tmp_path / "vit")
        flags = {"image_encoder": str(tmp_path / "vit")}
    with pytest.raises(
        UserError, match=f"`--freeze_layers 1` keeps .* encoder of {name} is trained .*{name}_encoder`"
    ):
        built(small, tmp_path, freeze_layers=1, **flags)


def test_captions_that_repeat_are_refused_or_said(small, tmp_path, caplog):
    data = PairData(PairDataArguments(str(small), max_lost_fraction=1.0), PAIR)
    data.held_out = [{"image": b"", "text": text} for text in ["red"] * 3 + ["green"] * 3 + ["blue", "old"]]
    # two of 8 captions are the same 12 times in 56
    data.say_what_repeats(5)
    assert not caplog.text
    data.say_what_repeats(8)
    assert "4 of 8 captions looked at are different: of the 8 pairs that are compared some 2 others" in caplog.text
    caplog.clear()
    data.say_what_repeats(30)
    there = 24 - len(data.exclude)
    assert f"30 pairs are compared at once, and the data have {there} to train on" in caplog.text
    caplog.clear()
    data.arguments.mask_duplicates = True
    data.say_what_repeats(30)
    assert not caplog.text
    # of several each pass takes one: two pairs that have one in common of two show it together every fourth time
    data.arguments.mask_duplicates = False
    data.held_out = [{"image": b"", "text": ["a thing", f"number {i}"]} for i in range(6)]
    data.say_what_repeats(4)
    assert not caplog.text
    data.say_what_repeats(9)
    assert "7 of 12 captions looked at are different: of the 9 pairs that are compared some 2 others" in caplog.text
    data.held_out = [{"image": b"", "text": "a thing"}] * 5
    with pytest.raises(UserError, match="All 5 captions looked at are the same, 'a thing'.*--caption_column"):
        data.say_what_repeats(8)


def test_images_to_measure_on_are_not_trained_on(small, tmp_path, caplog):
    images = sorted(small.glob("*.png"))[:6]
    for i, path in enumerate(images):
        folder = tmp_path / "labelled" / ("cat" if i % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"copy{i}.png").write_bytes(path.read_bytes())
    recipe, data, model = built(small, tmp_path)
    rows, processor = pair_rows(model, recipe, data, ViewArguments(), set())
    args = SSLTrainingArguments(
        str(tmp_path / "run"), report_to="none", use_cpu=True, precision="fp32", learning_rate=1e-3, max_steps=1,
        per_device_train_batch_size=4,
    )  # fmt: skip
    of_probes = PairProbeArguments(zero_shot_dataset=str(tmp_path / "labelled"))
    evaluators = pair_evaluators(data, rows, processor, of_probes, args)
    trainer = SSLTrainer(model, args, data.stream(args, rows), evaluators=evaluators)
    contents = {data.source.held_out_by({"image": [path.read_bytes()]}, 0) for path in images}
    assert len(contents) == 6 and contents <= trainer.stream.exclude
    # no caption has the names of these classes: with the words of the captions nothing is said
    assert "of 2 of 2 classes no word of the name stands in any of 24 captions" in caplog.text
    caplog.clear()
    (tmp_path / "names.json").write_text('{"cat": ["old house", "feline"], "dog": "red"}')
    of_probes.classes = str(tmp_path / "names.json")
    evaluators = pair_evaluators(data, rows, processor, of_probes, args)
    assert evaluators[-1].prompts.names == (("old house", "feline"), ("red",)) and not caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "image, text, kind",
    [
        ("clip-image-mini-patch4", "clip-text-mini", "CLIPModel"),
        ("clip-image-mini-patch4", "siglip-text-mini", None),
        ("vit-mini-patch4", "bert-mini", "VisionTextDualEncoderModel"),
        ("convnextv2-atto-patch2", "clip-text-mini", None),
        ("resnet-mini", "modernbert-mini", None),
    ],
)
@pytest.mark.parametrize("method", [ClipForPreTraining, SiglipForPreTraining])
def test_each_kind_of_pair_is_exported(small, tmp_path, method, image, text, kind):
    _, _, model = built(small, tmp_path, method, image_encoder=image, text_encoder=text)
    if method is SiglipForPreTraining and kind == "CLIPModel":
        kind = None  # without projections
    assert getattr(model.stock_class, "__name__", None) == kind
    model.export_encoder(tmp_path / "export")
    made = AutoModel.from_pretrained(tmp_path / "export" / "image")
    assert made.config.model_type == model.config_of("image").model_type
    if kind is not None:
        assert type(AutoModel.from_pretrained(tmp_path / "export")).__name__ == kind


def test_each_tower_has_the_attention_that_is_fastest_for_it(small, tmp_path):
    recipe, data, model = built(small, tmp_path)
    found = {name: encoder.config._attn_implementation for name, encoder in model.encoders.items()}
    assert found == {"image": "lean", "text": "eager"}
    model.eval().export_encoder(tmp_path / "stock")
    stock = AutoModel.from_pretrained(tmp_path / "stock").eval()
    assert stock.config.vision_config._attn_implementation == "sdpa"
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = model.first(pixels)
        torch.testing.assert_close(ours, stock.visual_projection(stock.vision_model(pixels).pooler_output))
    recipe, data, model = built(small, tmp_path, attention="sdpa")
    assert {encoder.config._attn_implementation for encoder in model.encoders.values()} == {"sdpa"}
    with pytest.raises(UserError, match="--attention nothing` does not work here, in the encoder of image"):
        built(small, tmp_path, attention="nothing")


def test_images_that_are_no_pictures_are_refused_in_a_sentence(tmp_path):
    for i in range(6):
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).integers(0, 256, (4, 16, 16), np.uint8))
        (tmp_path / f"{i}.txt").write_text(f"field number {i}")
    with pytest.raises(UserError, match="have 4 channels, and those of pairs are pictures.*recipes/simclr.py"):
        PairData(PairDataArguments(str(tmp_path), max_lost_fraction=1.0), PAIR)
    assert ImageData(ImageDataArguments(str(tmp_path))).num_channels == 4  # what is advised


def test_a_tower_of_other_images_is_refused(small, tmp_path):
    config = vit()
    config.num_channels = 4
    AutoModel.from_config(config).save_pretrained(tmp_path / "four")
    with pytest.raises(UserError, match="--image_encoder .*four` takes images of 4 channels, and these have 3"):
        recipe, data, model = built(small, tmp_path, image_encoder=str(tmp_path / "four"))
        pair_rows(model, recipe, data, ViewArguments(), set())
