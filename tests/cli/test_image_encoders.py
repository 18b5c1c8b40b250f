"""What `--encoder` of the image recipes can be, and what is said of what it cannot."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny_vision import ENCODERS, build
from transformers import AutoImageProcessor, BertConfig, BertModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hfssl import methods
from hfssl.cli.image.choice import Choice, choose
from hfssl.cli.image.data import ImageData, ImageDataArguments
from hfssl.cli.image.encoders import (
    Dinov2EncoderArguments,
    MaeEncoderArguments,
    VisionEncoderArguments,
    is_checkpoint,
    make_views,
    vision_encoder_config,
)
from hfssl.cli.image.presets import VISION_PRESETS
from hfssl.cli.image.trained_input import trained_mean_std
from hfssl.cli.modality import build_method
from hfssl.data.image.views import ViewArguments, Views
from hfssl.errors import UserError
from hfssl.methods import METHODS
from hfssl.methods.vision.mae import MaeForPreTraining
from hfssl.methods.vision.simclr import SimclrForPreTraining
from hfssl.modeling.base import drop_pooler
from hfssl.modeling.image_processing import build_image_processor
from hfssl.modeling.vision import build_vision_encoder, load_vision_encoder, try_on_an_image, with_image_size
from hfssl.training.arguments import SSLTrainingArguments


TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture
def args(tmp_path):
    return SSLTrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=1, report_to="none", precision="fp32", use_cpu=True
    )


def recipe(encoder, attention="auto"):
    return VisionEncoderArguments(str(encoder), attention)


def make(name, recipe, config, image_size, args, given=frozenset()):
    """A method by its name, for views of a size."""
    method = methods.METHODS[name]
    arguments = ViewArguments(image_size=image_size, **{"local_crops": 0} if method.method.views.local else {})
    return build_method(method, recipe, config, Views(method.method.views, arguments, is_grey=False), args, set(given))


@pytest.mark.parametrize("name", VISION_PRESETS)
def test_presets_have_a_classifier_and_take_their_images(name):
    config = vision_encoder_config(name)
    # transformers has no classifier for DINOv3's ViT
    assert config.model_type in (*MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, "dinov3_vit")
    with torch.device("meta"):
        build_vision_encoder(config)


@pytest.mark.parametrize(
    "name, millions", [("vit-tiny-patch4", 5.4), ("vit-base-patch16", 85.8), ("dinov3-base-patch16", 85.7), ("resnet-18", 11.2), ("resnet-50", 23.5),
                       ("convnextv2-atto-patch2", 3.4), ("convnextv2-tiny-patch4", 27.9)]
)  # fmt: skip
def test_presets_have_the_size_of_their_name(name, millions):
    with torch.device("meta"):
        encoder = build_vision_encoder(vision_encoder_config(name))
    assert encoder.num_parameters() / 1e6 == pytest.approx(millions, rel=0.02)


def test_overrides_and_files(tmp_path):
    assert vision_encoder_config("vit-tiny-patch4", {"hidden_size": 96}).hidden_size == 96
    assert vision_encoder_config("vit-tiny-patch4", {"model_type": "dinov2", "hidden_size": 48}).model_type == "dinov2"
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"model_type": "vit", **TINY, "image_size": 40}))
    assert vision_encoder_config(str(file)).hidden_size == 32 and vision_encoder_config(str(file)).image_size == 40
    assert vision_encoder_config("org/model") is None
    assert [is_checkpoint(name) for name in ("vit-tiny-patch4", "mine.json", "org/model")] == [False, False, True]


@pytest.mark.parametrize(
    "encoder, overrides, words",
    [
        ("vit-tiny-patch4", {"hiden_size": 3}, "vit-tiny-patch4 has no field 'hiden_size'"),
        (
            "vit-tiny-patch4",
            {"model_type": "vitt"},
            "needs a `model_type` that transformers knows, such as vit, got 'vitt'",
        ),
        ("nowhere.json", None, "`--encoder nowhere.json` is no configuration as a JSON file"),
        ("vit-tiny-patch4", {"hidden_size": "wide"}, "`--encoder_config` is no configuration of a vit"),
    ],
)
def test_configurations_that_are_none(encoder, overrides, words):
    with pytest.raises(UserError, match=words):
        vision_encoder_config(encoder, overrides)


# -- fields of a checkpoint's configuration ----------------------------------------------------------------------------


HEAD = {"projector_hidden_dim": 16, "projector_output_dim": 8}


@pytest.mark.parametrize(
    "name, method, changes",
    [
        ("dinov3_vit", "dinov2", {"pos_embed_rescale": None, "pos_embed_jitter": 1.5}),
        ("vit", "simclr", {"hidden_dropout_prob": 0.25}),
        ("resnet", "simclr", {"downsample_in_bottleneck": True}),
    ],
)
def test_fields_of_a_checkpoint_are_changed(tmp_path, args, name, method, changes):
    stock = build(name)
    stock.save_pretrained(tmp_path)
    heads = HEAD | ({"num_prototypes": 8} if method == "dinov2" else {})
    model = make(method, recipe(tmp_path), {"encoder_config": changes, **heads}, 16, args, heads)
    for field, value in changes.items():
        assert getattr(stock.config, field) != value
        assert getattr(model.encoder.config, field) == getattr(model.config.encoder_config, field) == value
    wanted = stock.state_dict()
    for weight, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, wanted[weight]), weight


@pytest.mark.parametrize("name", ["vit", "dinov3_vit"])
def test_a_checkpoint_gets_another_size_by_its_configuration(tmp_path, args, name):
    (tmp_path / "images").mkdir()
    build(name).save_pretrained(tmp_path / "stock")
    source, config = recipe(tmp_path / "stock"), {"encoder_config": {"image_size": 32}, **HEAD}
    data, simclr = ImageData(folder_of(tmp_path / "images", 40)), METHODS["simclr"]
    views = make_views(simclr, source, config, data, ViewArguments(), set())
    assert views.image_size == 32
    model = build_method(simclr, source, config, views, args, set(HEAD))
    resized = with_image_size(drop_pooler(build(name)), 32)
    for weight, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, resized.state_dict()[weight]), weight
    assert model.config.encoder_config.image_size == 32
    # the flag goes before it
    views = make_views(simclr, source, config, data, ViewArguments(image_size=24), {"image_size"})
    model = build_method(simclr, source, config, views, args, set(HEAD))
    assert model.config.encoder_config.image_size == 24


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"nonsense": 1, "num_hidden_layers": 7}, "stock has no field 'nonsense'"),
        ({"num_hidden_layers": 7}, r"other weights than .*layers.4.*is none there and would be \[32, 32\]"),
        ({"hidden_size": 48}, r"other weights than .*cls_token is \[1, 1, 32\] there and would be \[1, 1, 48\]"),
        ({"hidden_act": "no such"}, "is no configuration of a vit"),
        ({"to_dict": 1}, "stock has no field 'to_dict'"),
        ({"use_return_dict": False}, "stock has no field 'use_return_dict'"),
        ({"dtype": "bfloat16"}, "weights are float32 in training.*`--precision`"),
        ({"model_type": "vit", **TINY}, "names a checkpoint to continue, and .*Pass one of them"),
    ],
)
def test_what_a_checkpoint_cannot_become(tmp_path, args, changes, words):
    build("vit").save_pretrained(tmp_path / "stock")
    with pytest.raises(UserError, match=words):
        make("simclr", recipe(tmp_path / "stock"), {"encoder_config": changes}, 16, args)


@pytest.mark.parametrize("method", ["dino", "dinov2"])
def test_a_rate_that_the_method_sets_is_passed_to_the_method(tmp_path, args, method):
    build("dinov2").save_pretrained(tmp_path / "stock")
    for encoder in (tmp_path / "stock", "dinov2-small-patch14"):
        with pytest.raises(UserError, match="sets `drop_path_rate` of its encoder itself. Pass `--drop_path_rate`"):
            make(method, recipe(encoder), {"encoder_config": {"drop_path_rate": 0.35}}, 16, args)
    changes = {"drop_path_rate": 0.35}
    model = make("simclr", recipe(tmp_path / "stock"), {"encoder_config": changes, **HEAD}, 16, args, set(HEAD))
    assert model.encoder.config.drop_path_rate == 0.35


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit", "vit_msn", "deit", "ijepa", "dinov2", "dinov2_with_registers"])
def test_learned_positions_are_interpolated(name):
    encoder = drop_pooler(build(name)).eval()
    with torch.no_grad():
        encoder.embeddings.position_embeddings.normal_()
    larger = with_image_size(encoder, 24).eval()
    assert larger.config.image_size == 24 and encoder.config.image_size == 16
    with torch.no_grad():
        images = torch.randn(1, 3, 24, 24)
        options = {} if "dino" in name else {"interpolate_pos_encoding": True}
        expected = encoder(images, **options).last_hidden_state
        found = larger(images).last_hidden_state
    torch.testing.assert_close(found, expected)
    assert with_image_size(encoder, 16) is encoder and with_image_size(encoder, None) is encoder


@pytest.mark.parametrize("name", ["resnet", "convnextv2", "dinov3_vit", "swin"])
def test_other_encoders_take_another_size_as_they_are(name):
    encoder = build(name)
    assert with_image_size(encoder, 32) is encoder
    try_on_an_image(encoder, 32)
    assert encoder.training


def test_positions_that_cannot_be_interpolated_are_explained():
    from transformers import AutoModel, BeitConfig, CLIPVisionConfig, SwinConfig

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    size = {"image_size": 16, "patch_size": 4}
    # one names them differently, the other has a second table of them
    beit = BeitConfig(**small, **size, use_absolute_position_embeddings=True, use_relative_position_bias=True)
    for config in (CLIPVisionConfig(**small, **size), beit):
        with pytest.raises(
            UserError, match="are those of 16 pixels and cannot be interpolated to 32. Pass `--image_size 16`"
        ):
            with_image_size(AutoModel.from_config(config), 32)
    swin = AutoModel.from_config(SwinConfig(
        embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2, use_absolute_embeddings=True, **size
    ))  # fmt: skip
    torch.nn.init.normal_(swin.embeddings.position_embeddings)
    larger = with_image_size(swin, 32)
    assert larger.embeddings.position_embeddings.shape == (1, 64, 16)
    before, after = swin.embeddings.position_embeddings, larger.embeddings.position_embeddings
    torch.testing.assert_close(after.mean(1), before.mean(1), rtol=0, atol=0.2)
    assert larger(torch.randn(1, 3, 32, 32)).last_hidden_state.shape == (1, 16, 32)


@pytest.mark.parametrize(
    "name, size, words",
    [
        ("vit", 18, "`--image_size 18` is no multiple of the patches of this vit, which have 4 pixels. Pass 16"),
        ("vit", 24, "This vit does not take images of 24 pixels"),
        ("dinov3_convnext", 16, "This dinov3_convnext does not take images of 16 pixels"),
        ("resnet", 1, "This resnet does not take images of 1 pixels .*only one pixel is left"),
    ],
)
def test_sizes_that_do_not_fit_are_explained(name, size, words):
    with pytest.raises(UserError, match=words):
        try_on_an_image(build(name), size)


# -- methods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, method", [("simclr", SimclrForPreTraining), ("mae", MaeForPreTraining)])
def test_a_method_from_scratch(name, method, args):
    model = make(name, recipe("vit-tiny-patch4"), {"encoder_config": TINY}, 16, args)
    assert type(model) is method and model.config.encoder_config.image_size == 16
    assert model.encoder.config._attn_implementation == "lean"  # the fastest for few tokens on a CPU
    # narrow encoders: 1e-3 for 256 samples, 32 of them here
    assert args.learning_rate == pytest.approx(1e-3 / 8)
    again = make(name, recipe("vit-tiny-patch4"), {"encoder_config": TINY}, 16, args)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_mae_predicts_pixels_as_they_are_where_most_patches_are_flat(args):
    config = {"encoder_config": TINY, "norm_pix_loss": True}

    def normalises(embedded, *given):
        data = SimpleNamespace(embedded=embedded, is_grey=False, value_range=None, num_channels=3, tiles=None)
        of_recipe = recipe("vit-tiny-patch4"), config
        views = make_views(MaeForPreTraining, *of_recipe, data, ViewArguments(image_size=16), set(given))
        return build_method(MaeForPreTraining, *of_recipe, views, args, set(given)).config.norm_pix_loss

    assert not normalises("letters")
    assert normalises("letters", "norm_pix_loss") and normalises("digits") and normalises(None)


def test_a_narrow_mae_has_a_narrow_decoder(args):
    config = {"encoder_config": TINY, "decoder_hidden_size": 512, "decoder_num_attention_heads": 16}
    assert make("mae", recipe("vit-tiny-patch4"), config, 16, args).config.decoder_hidden_size == 128
    given = {"decoder_hidden_size", "decoder_num_attention_heads"}
    chosen = make("mae", recipe("vit-tiny-patch4"), config, 16, args, given)
    assert chosen.config.decoder_hidden_size == 512


@pytest.mark.parametrize("encoder, given, steady, frozen", [
    (build("vit"), {}, True, True), (build("vit"), {"last_batch_norm": False}, False, True),
    (build("resnet"), {}, True, False),
])  # fmt: skip
def test_byol_holds_up_fresh_vision_transformers(args, encoder, given, steady, frozen):
    config = {"encoder_config": encoder.config.to_dict(), **given}
    model = make("byol", recipe("vit-mini-patch4"), config, 16, args, given=set(given))
    assert (model.config.last_batch_norm, len(model.frozen) == 2) == (steady, frozen)
    assert model.config.projector_hidden_dim == 1024  # narrow, as the encoder is
    assert config == {"encoder_config": encoder.config.to_dict(), **given}


@pytest.mark.parametrize("method, optim, rate", [
    ("simclr", "lars", 0.3), ("simsiam", "sgd", 0.05), ("simsiam", "adamw_torch", 3e-4),
])  # fmt: skip
def test_some_optimizers_have_a_learning_rate_of_their_own(tmp_path, method, optim, rate):
    args = SSLTrainingArguments(
        output_dir=str(tmp_path), max_steps=1, report_to="none", precision="fp32", use_cpu=True, optim=optim,
        per_device_train_batch_size=256,
    )  # fmt: skip
    make(method, recipe("vit-tiny-patch4"), {"encoder_config": TINY}, 16, args)
    assert args.learning_rate == pytest.approx(rate)
    with pytest.raises(UserError, match="no default learning rate for `--optim sgd`.*`--base_learning_rate`"):
        METHODS["simclr"].method.learning_rates.choose("sgd", 64, from_scratch=True)


def test_a_checkpoint_is_continued_with_its_weights_and_attention(tmp_path, args):
    build("vit", seed=5).save_pretrained(tmp_path)
    model = make("simclr", recipe(tmp_path, attention="sdpa"), {}, 24, args)
    assert model.encoder.config.image_size == 24 and model.encoder.config._attn_implementation == "sdpa"
    weight = build("vit", seed=5).layers[0].mlp.fc1.weight
    assert torch.equal(model.encoder.layers[0].mlp.fc1.weight, weight)
    assert args.learning_rate == pytest.approx(1e-4 / 8)


def test_a_checkpoint_is_continued_in_part(tmp_path, args):
    build("vit").save_pretrained(tmp_path / "vit")
    args.freeze_layers = 2
    model = make("simclr", VisionEncoderArguments(str(tmp_path / "vit")), {}, 16, args)
    trained = {name for name, p in model.encoder.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in trained if name.startswith("layers.")} == {"2", "3"}
    assert not [name for name in trained if name.startswith("embeddings.")]
    with pytest.raises(
        UserError, match="`--freeze_layers 2` keeps what a checkpoint has learned, and this encoder is"
    ):
        make("simclr", VisionEncoderArguments("vit-mini-patch4"), {}, 16, args)


def test_wrong_pairings_are_refused_by_name(tmp_path, args):
    BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path / "bert"
    )
    with pytest.raises(UserError, match="A bert is no encoder of images alone"):
        make("simclr", recipe(tmp_path / "bert"), {}, 16, args)
    with pytest.raises(Exception, match="MAE runs its encoder on the visible patches alone, which a resnet cannot"):
        make("mae", recipe("resnet-18"), {}, 32, args)
    with pytest.raises(UserError, match="neither a preset .* nor a folder with a checkpoint of an image encoder"):
        make("simclr", recipe(tmp_path / "nothing"), {}, 16, args)
    with pytest.raises(UserError, match="`--attention nope` does not work here"):
        make("simclr", recipe("vit-tiny-patch4", attention="nope"), {"encoder_config": TINY}, 16, args)


def test_a_vit_mae_is_loaded_as_the_vit_that_it_is(tmp_path):
    from transformers import ViTMAEConfig, ViTMAEModel

    torch.manual_seed(0)
    stock = ViTMAEModel(ViTMAEConfig(**TINY, image_size=16, patch_size=4)).eval()
    stock.save_pretrained(tmp_path)
    encoder = load_vision_encoder(str(tmp_path)).eval()
    assert type(encoder).__name__ == "ViTModel"
    stock.config.mask_ratio = 0.0
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = stock(images, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
        torch.testing.assert_close(encoder(images).last_hidden_state, expected)


# -- the image processor ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, short_side", [(16, 16), (32, 32), (96, 96), (224, 256)])
def test_the_image_processor_is_stock(tmp_path, size, short_side):
    from PIL import Image

    build_image_processor(size, mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert processor.size["shortest_edge"] == short_side and list(processor.image_mean) == [0.1, 0.2, 0.3]
    for mode, shape in (("L", (8, 8)), ("RGB", (300, 200))):
        pixels = processor(Image.new(mode, shape, 0), return_tensors="pt").pixel_values
        assert pixels.shape == (1, 3, size, size)
    assert pixels[0, 0, 0, 0].item() == pytest.approx(-0.1 / 0.229, abs=1e-5)


def test_every_kind_of_encoder_can_be_named_by_its_config():
    for name, config in ENCODERS.items():
        assert vision_encoder_config("vit-mini-patch4", config().to_dict()).model_type == name


# -- what is left to choose -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["convolutional", "transformer"])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_every_choice_is_a_preset_that_takes_its_images(kind, on_cpu):
    seen = set()
    for side in (8, 28, 32, 64, 96, 130, 224, 4000):
        for number in (100, 1_000_000):
            choice = choose(kind, side, number, on_cpu)
            assert choice.image_size <= max(32, 1.25 * side) and (choice.image_size <= 64 or not on_cpu)
            seen |= {(choice.encoder, choice.image_size), *([choice.better] if choice.better else [])}
            assert choice.better is None or choice.better[1] > choice.image_size
    for name, size in sorted(seen):
        fresh = vision_encoder_config(name)
        assert ("patch" in name) == (kind == "transformer")
        fresh.image_size = size
        with torch.device("meta"):
            encoder = build_vision_encoder(fresh)
            assert encoder.eval()(torch.zeros(1, 3, size, size)).last_hidden_state.numel() > 0


def test_more_images_and_a_stated_size_count():
    assert choose("convolutional", 224, 1000, on_cpu=False) == Choice("resnet-18", 224)
    assert choose("convolutional", 224, 10**6, on_cpu=False) == Choice("resnet-50", 224)
    assert choose("transformer", 160, 1000, on_cpu=True) == Choice("vit-mini-patch8", 64, ("vit-tiny-patch16", 128))
    assert choose("transformer", 160, 1000, on_cpu=True, image_size=96) == Choice("vit-mini-patch8", 96)
    assert choose("convolutional", 20, 1000, on_cpu=False, image_size=20) == Choice("resnet-mini", 20)


def folder_of(tmp_path, size):
    for number in range(4):
        pixels = torch.randint(0, 255, (size, size + 9, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return ImageDataArguments(dataset=str(tmp_path), held_out_fraction=0.5)


@pytest.mark.parametrize(
    "arguments, name",
    [(VisionEncoderArguments, "simclr"), (MaeEncoderArguments, "mae"), (Dinov2EncoderArguments, "dinov2")],
    ids=["simclr", "mae", "dinov2"],
)
def test_an_encoder_is_chosen_for_the_data_and_said(tmp_path, caplog, monkeypatch, arguments, name):
    caplog.set_level("INFO", logger="hfssl")
    monkeypatch.setattr("hfssl.cli.image.encoders.compute_device", lambda: torch.device("cpu"))
    method, recipe, data = methods.METHODS[name], arguments(), ImageData(folder_of(tmp_path, 90))
    views = make_views(method, recipe, {}, data, ViewArguments(), set())
    assert views.image_size == 64 and recipe.base_model is None
    assert recipe.encoder == {"simclr": "resnet-mini"}.get(name, "vit-mini-patch8")
    assert f"Chosen: --encoder {recipe.encoder} --image_size 64, for 4 images of about 90 pixels" in caplog.text
    caplog.clear()
    # of what comes with hfssl it is what was measured, and what is stated is taken
    recipe = arguments()
    assert make_views(method, recipe, {}, ImageData(ImageDataArguments()), ViewArguments(), set()).image_size == 32
    embedded = {"simclr": "resnet-mini", "mae": "vit-mini-patch4", "dinov2": "vit-mini-patch8"}
    assert recipe.encoder == embedded[name]
    recipe = arguments(encoder="vit-tiny-patch4")
    assert make_views(method, recipe, {}, data, ViewArguments(), set()).image_size == 32
    assert "Chosen" not in caplog.text


def test_presets_are_known_by_their_letters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for typed, meant in (("ResNet18", "resnet-18"), ("vit_tiny_patch8", "vit-tiny-patch8"), ("vit", "vit")):
        assert VisionEncoderArguments(encoder=typed).encoder == meant
    (tmp_path / "resnet18").mkdir()
    assert VisionEncoderArguments(encoder="resnet18").encoder == "resnet18"


def test_a_single_image_a_step_has_nothing_to_compare_with(args):
    args.per_device_train_batch_size = 1
    for name in ("simclr", "moco"):
        with pytest.raises(UserError, match="a batch has one here. Pass a larger `--per_device_train_batch_size`: 2"):
            make(name, recipe("vit-mini-patch4"), {"encoder_config": TINY}, 32, args)
    make("mae", recipe("vit-mini-patch4"), {"encoder_config": TINY}, 32, args)


@pytest.mark.parametrize("name", ["simsiam", "byol", "swav"])
def test_a_single_image_a_step_is_nothing_for_a_batch_norm(args, name):
    args.per_device_train_batch_size = 1
    with pytest.raises(
        UserError, match="needs more than one image in a batch, as its batch norm does, and a batch has one"
    ):
        make(name, recipe("vit-mini-patch4"), {"encoder_config": TINY}, 32, args)


def test_a_run_that_goes_on_has_its_encoder_on_another_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("hfssl.cli.image.encoders.compute_device", lambda: torch.device("cpu"))
    simclr, checkpoint = methods.METHODS["simclr"], tmp_path / "checkpoint-1"
    first, began = VisionEncoderArguments(), {}
    arguments = folder_of(tmp_path, 90)
    views = make_views(simclr, first, began, ImageData(arguments), ViewArguments(), set())
    encoder = vision_encoder_config(first.encoder)
    simclr(simclr.config_class(encoder_config=encoder)).save_pretrained(checkpoint)
    settings = {
        name: value if isinstance(value, int | float) else str(value) for name, value in views.settings.items()
    }
    (checkpoint / "manifest.json").write_text(json.dumps({"settings": settings}))
    # where resnet-18-half would be chosen
    monkeypatch.setattr("hfssl.cli.image.encoders.compute_device", lambda: torch.device("cuda"))
    other, config = VisionEncoderArguments(), {}
    make_views(simclr, other, config, ImageData(arguments), ViewArguments(), set())
    assert other.encoder != first.encoder and not config
    again = VisionEncoderArguments()
    assert make_views(simclr, again, config, ImageData(arguments, checkpoint), ViewArguments(), set()).image_size == 64
    made = vision_encoder_config(again.encoder, config["encoder_config"])
    assert made.to_dict() == encoder.to_dict()


def test_what_is_fitted_to_short_runs_is_named(args, caplog, monkeypatch, tmp_path):
    (tmp_path / "configs").mkdir()
    for name in ("simclr_tiny", "simclr_imagenet"):
        (tmp_path / "configs" / f"{name}.yaml").touch()
    monkeypatch.setattr("sys.argv", [str(tmp_path / "simclr.py")])
    recipe, views = VisionEncoderArguments("vit-mini-patch4"), ViewArguments(image_size=8)

    def said(given=frozenset(), **config):
        caplog.clear()
        args.learning_rate = args.base_learning_rate = None
        views_of = Views(SimclrForPreTraining.method.views, views, is_grey=False)
        with caplog.at_level("INFO", "hfssl.cli.modality"):
            fields = {"encoder_config": TINY, **config}
            build_method(SimclrForPreTraining, recipe, fields, views_of, args, set(given))
        return " ".join(record.getMessage() for record in caplog.records if record.name == "hfssl.cli.modality")

    line = said(contrastive_temperature=0.2)
    assert "contrastive_temperature 0.2 (0.1), " in line and "projector_output_dim" not in line.split("0.2 (0.1)")[0]
    assert f"learning_rate {args.learning_rate:g} at {args.global_batch_size} samples a step" in line
    assert f"take the paper's: `--config {tmp_path}/configs/simclr_imagenet.yaml`." in line
    assert "contrastive_temperature" not in said({"contrastive_temperature"}, contrastive_temperature=0.2)
    stated = {"contrastive_temperature", *SimclrForPreTraining.method.narrow_heads, "learning_rate"}
    args.learning_rate = 1e-3
    assert said(stated, contrastive_temperature=0.2) == ""


def test_of_a_checkpoint_nothing_is_said_that_is_of_encoders_from_scratch(args, caplog, tmp_path):
    build("dinov2").save_pretrained(tmp_path)
    # as the recipe has them
    config = {"momentum_start": 0.97, "projector_batch_norm": True, "centering": "sinkhorn"}
    with caplog.at_level("INFO", "hfssl.cli.modality"):
        make("dinov2", recipe(tmp_path), config, 16, args)
    [line] = [record.getMessage() for record in caplog.records if record.name == "hfssl.cli.modality"]
    assert "centering sinkhorn (mean)" in line and "num_prototypes" in line
    for of_checkpoints in ("momentum_start", "freeze_encoder", "projector_batch_norm", "learning_rate"):
        assert of_checkpoints not in line
    assert "take the paper's" not in line and "small encoders" not in line
    # a rate that is also one of encoders from scratch
    caplog.clear()
    args.learning_rate = args.base_learning_rate = None
    args.learning_rate = METHODS["dinov2"].method.learning_rates.narrow * args.global_batch_size / 256
    with caplog.at_level("INFO", "hfssl.cli.modality"):
        make("dinov2", recipe(tmp_path), {**config, "centering": "mean"}, 16, args)
    assert "learning_rate" not in caplog.text


def test_means_of_a_checkpoint_go_with_their_colours(tmp_path):
    build_image_processor(16, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    as_they_are = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    assert trained_mean_std(str(tmp_path), 3, None) == as_they_are
    assert trained_mean_std(str(tmp_path), 3, [0, 1, 2]) == as_they_are
    # red, the first of the checkpoint's, is now in channel 2
    assert trained_mean_std(str(tmp_path), 3, [2, 0, 1]) == ([0.2, 0.3, 0.1], [0.5, 0.6, 0.4])
    means = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    build_image_processor(16, *means, colour_channels=[2, 0, 1]).save_pretrained(tmp_path)
    assert trained_mean_std(str(tmp_path), 3, [2, 0, 1]) == as_they_are
    # where nothing is stated they are red, green and blue, as the weights are made to find them
    for stated in ([0, 1, 2], None):
        assert trained_mean_std(str(tmp_path), 3, stated) == ([0.3, 0.1, 0.2], [0.6, 0.4, 0.5])
    assert trained_mean_std(str(tmp_path), 4, [2, 0, 1]) is None


def test_a_gram_teacher_with_colours_in_other_places_is_refused_before_training(tmp_path, args):
    build("vit").save_pretrained(tmp_path)
    build_image_processor(16, colour_channels=[2, 1, 0]).save_pretrained(tmp_path)
    fields = {"gram_weight": 1.0, "gram_teacher": str(tmp_path)}
    with pytest.raises(
        UserError, match="--gram_teacher .*red, green and blue in the channels 2 1 0, and these images"
    ):
        make("dinov2", recipe(tmp_path), fields, 16, args)


def test_a_gram_teacher_is_read_when_a_run_begins(tmp_path, args):
    build("vit", seed=3).save_pretrained(tmp_path / "vit")
    build("dinov2").save_pretrained(tmp_path / "other")
    damaged = tmp_path / "damaged"
    build("vit").save_pretrained(damaged)
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:-1000])

    def made(teacher):
        fields = {**HEAD, "num_prototypes": 8, "gram_weight": 1.0, "gram_teacher": str(tmp_path / teacher)}
        return make("dinov2", recipe(tmp_path / "vit"), fields, 16, args, fields)

    model, wanted = made("vit"), build("vit", seed=3).state_dict()
    for name, tensor in model.gram_teacher.encoder.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    for teacher in ("nothing", "damaged"):
        with pytest.raises(UserError, match=f"gram_teacher=.*{teacher}. is no folder with an encoder of images"):
            made(teacher)
    with pytest.raises(UserError, match="gram_teacher=.*other. has other weights than this vit"):
        made("other")
    # a run that goes on has it in its checkpoint
    args.continued_from = tmp_path
    for teacher in ("nothing", "damaged", "other"):
        made(teacher)
