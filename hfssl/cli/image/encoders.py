"""Image encoders to start from: presets for training from scratch, configurations, or checkpoints to continue."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import ConvNextV2Config, PreTrainedConfig, ResNetConfig, ViTConfig

from ...errors import UserError
from ...modeling.attention import LEAN, LEAN_MODELS
from ...modeling.packing import recommended_attention
from ...modeling.pooling import is_convolutional
from ...modeling.vision import patches_a_side, pixels_required, side, try_on_an_image, uses_attention
from ..text.encoders import brief, config_of


# Of encoders that do not say, and of most checkpoints.
IMAGE_SIZE = 224


@dataclass
class VisionEncoderArguments:
    r"""
    > Encoder

    Args:
        encoder (`str`, *optional*, defaults to `"vit-mini-patch4"`):
            vit-mini-patch4, vit-tiny-patch4, convnextv2-atto-patch2 or convnextv2-tiny-patch2 for images of 32 pixels
            or less; vit-tiny-patch16, vit-small-patch16, vit-base-patch16, resnet-18, resnet-50 or
            convnextv2-tiny-patch4 for larger ones; a config file; or a Hub id or folder to continue from.
        attention (`str`, *optional*, defaults to `"auto"`):
            auto, eager, lean (eager in less memory, for ViTs), sdpa, flash_attention_2 or flex_attention.
    """

    encoder: str = "vit-mini-patch4"
    attention: str = "auto"

    @property
    def base_model(self) -> str | None:
        """The checkpoint to continue, `None` where the encoder is trained from scratch."""
        return self.encoder if is_checkpoint(self.encoder) else None


@dataclass
class MaeEncoderArguments(VisionEncoderArguments):
    r"""
    > Encoder

    Args:
        encoder (`str`, *optional*, defaults to `"vit-mini-patch4"`):
            vit-mini-patch4 or vit-tiny-patch4 for images of 32 pixels or less; vit-tiny-patch16, vit-small-patch16 or
            vit-base-patch16 for larger ones; a config file; or a Hub id or folder to continue from: a ViT (MAE's own
            checkpoints too), DeiT, Dinov2, MSN or I-JEPA.
    """


def _vit(layers: int, width: int, heads: int, patch: int, image: int) -> ViTConfig:
    return ViTConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width,
        patch_size=patch, image_size=image,
        layer_norm_eps=1e-6,  # of every paper that trains one; transformers has 1e-12
    )  # fmt: skip


def _resnet(layer_type: str, depths: tuple[int, ...], widths: tuple[int, ...]) -> ResNetConfig:
    return ResNetConfig(layer_type=layer_type, depths=list(depths), hidden_sizes=list(widths))


def _convnext(depths: tuple[int, ...], widths: tuple[int, ...], patch: int, image: int) -> ConvNextV2Config:
    return ConvNextV2Config(depths=list(depths), hidden_sizes=list(widths), patch_size=patch, image_size=image)


# Sizes are those of the papers: tiny and small ViTs of DeiT (2012.12877), the ConvNeXt V2 named atto (2301.00808). The
# stem of a ResNet in transformers reduces images to a quarter: small ones want the others.
VISION_PRESETS = {
    "vit-mini-patch4": lambda: _vit(4, 192, 3, 4, 32),
    "vit-tiny-patch4": lambda: _vit(12, 192, 3, 4, 32),
    "vit-tiny-patch16": lambda: _vit(12, 192, 3, 16, 224),
    "vit-small-patch16": lambda: _vit(12, 384, 6, 16, 224),
    "vit-base-patch16": lambda: _vit(12, 768, 12, 16, 224),
    "resnet-18": lambda: _resnet("basic", (2, 2, 2, 2), (64, 128, 256, 512)),
    "resnet-50": lambda: _resnet("bottleneck", (3, 4, 6, 3), (256, 512, 1024, 2048)),
    "convnextv2-atto-patch2": lambda: _convnext((2, 2, 6, 2), (40, 80, 160, 320), 2, 32),
    "convnextv2-tiny-patch2": lambda: _convnext((3, 3, 9, 3), (96, 192, 384, 768), 2, 32),
    "convnextv2-tiny-patch4": lambda: _convnext((3, 3, 9, 3), (96, 192, 384, 768), 4, 224),
}


def is_checkpoint(encoder: str) -> bool:
    """Whether `--encoder` names a checkpoint to continue, not something to train from scratch."""
    return encoder not in VISION_PRESETS and not encoder.endswith(".json")


def vision_encoder_config(encoder: str, overrides: dict[str, Any] | None = None) -> PreTrainedConfig | None:
    """The configuration to train from scratch that `--encoder` names.

    Args:
        encoder (`str`):
            A preset, or the path of a config file. Anything else is a checkpoint to continue: `None` is returned.
        overrides (`dict`, *optional*):
            A whole configuration with `model_type`, instead of `encoder`, or fields that differ from the preset's.

    Raises:
        UserError: where there is no such configuration.
    """
    overrides = dict(overrides or {})
    if "model_type" in overrides:
        return config_of(overrides, "--encoder_config", "vit")
    if encoder in VISION_PRESETS:
        config = VISION_PRESETS[encoder]()
        unknown = [name for name in overrides if not hasattr(config, name)]
        if unknown:
            raise UserError(f"`--encoder_config`: {encoder} has no field {unknown[0]!r}.")
        return config_of({**config.to_dict(), **overrides}, "--encoder_config")
    if encoder.endswith(".json"):
        try:
            fields = {**json.loads(Path(encoder).read_text(encoding="utf-8")), **overrides}
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"`--encoder {encoder}` is no configuration as a JSON file ({brief(error)}).") from error
        return config_of(fields, f"--encoder {encoder}", "vit")
    return None


def _checkpoint_config(encoder: str) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(encoder)
    except Exception as error:  # a damaged or foreign file shows itself in many ways
        raise _no_encoder(encoder, error) from error


def _no_encoder(encoder: str, error: Exception) -> UserError:
    return UserError(
        f"`--encoder {encoder}` is neither a preset ({', '.join(VISION_PRESETS)}), nor a folder with a checkpoint of "
        f"an image encoder, nor one that the Hub gave: {brief(error)}. Without a network, download it first and pass "
        "the folder."
    )


def make_views(method: str, recipe: Any, config: dict[str, Any], data: Any, arguments: Any, given: set[str]) -> Any:
    """The views of a recipe, fitted to its encoder and to the embedded digits.

    Left out, the size of the images is the one that the encoder was made for, and mean and standard deviation are
    those of the checkpoint that is continued. Digits are shown in 16 pixels, are not mirrored, and are cut out less.

    Args:
        method (`str`):
            Preset of [`~hfssl.data.image.views.Views`].
        recipe:
            Has `encoder`.
        config (`dict[str, Any]`):
            Fields of the method's config as given.
        data ([`~hfssl.cli.image.data.ImageData`]):
            The images.
        arguments ([`~hfssl.data.image.views.ViewArguments`]):
            What the user asked for.
        given (`set[str]`):
            The flags that the user gave.
    """
    from ...data.image.views import Views

    encoder = vision_encoder_config(recipe.encoder, config.get("encoder_config")) or _checkpoint_config(recipe.encoder)
    sizes, patch_size = getattr(encoder, "image_size", None) or IMAGE_SIZE, getattr(encoder, "patch_size", None)
    if data.arguments.dataset is None:
        digits: dict[str, Any] = {"image_size": 16, "flip_probability": 0.0, "crop_scale": (0.5, 1.0)}
        if method in ("moco", "byol", "dino"):
            # a digit is its brightness: recoloured, views of one are no more alike than two digits
            digits |= {"jitter": (0.0, 0.0, 0.0, 0.0), "solarize_probability": [0.0]}
        if method == "dino":
            digits["local_crops"] = 0
        arguments = replace(arguments, **{name: value for name, value in digits.items() if name not in given})
    if arguments.image_size is None:
        arguments = replace(arguments, image_size=side(sizes))
    mean_std = None
    if arguments.normalization == "dataset":
        mean_std = data.channel_mean_std()
    elif is_checkpoint(recipe.encoder) and "normalization" not in given:
        mean_std = _checkpoint_mean_std(recipe.encoder)
    return Views(
        method, arguments, is_grey=data.is_grey, mean_std=mean_std, patch_size=side(patch_size) if patch_size else None
    )


def _checkpoint_mean_std(encoder: str) -> tuple[list[float], list[float]] | None:
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(encoder)
    except (OSError, ValueError):
        return None  # a checkpoint without one
    return list(processor.image_mean), list(processor.image_std)


def build_simclr(recipe: Any, config: dict[str, Any], image_size: int, args: Any) -> Any:
    """The method of `recipes/simclr.py`, see [`build_vision_method`]."""
    from ...methods.vision.simclr import SimclrForPreTraining

    # LARS: the paper's. AdamW: that of DINO for ViTs (2104.14294), and twice as much for narrow encoders.
    rates = {"lars": 0.3, "narrow": 1e-3, "wide": 5e-4, "checkpoint": 1e-4}
    return build_vision_method(SimclrForPreTraining, recipe, config, image_size, args, rates)


def build_mae(recipe: Any, config: dict[str, Any], image_size: int, args: Any, given: set[str] = frozenset()) -> Any:
    """The method of `recipes/mae.py`, see [`build_vision_method`].

    A narrow encoder gets a narrow decoder, in what is not among the flags that were `given`.
    """
    from ...methods.vision.mae import MaeForPreTraining

    # the paper's decoder has 2/3 of the width of its encoder
    narrow = {"decoder_hidden_size": 128, "decoder_num_attention_heads": 4, "decoder_num_hidden_layers": 2}
    config = _for_narrow_encoders(narrow, recipe, config, given)
    rates = {"lars": 0.3, "narrow": 1e-3, "wide": 1.5e-4, "checkpoint": 1.5e-4}
    return build_vision_method(MaeForPreTraining, recipe, config, image_size, args, rates)


def build_moco(recipe: Any, config: dict[str, Any], image_size: int, args: Any, given: set[str] = frozenset()) -> Any:
    """The method of `recipes/moco.py`, see [`build_vision_method`]. A narrow encoder gets narrow heads."""
    from ...methods.vision.moco import MocoForPreTraining

    config = _for_narrow_encoders({"projector_hidden_dim": 1024}, recipe, config, given)
    rates = {"lars": 0.3, "narrow": 3e-4, "wide": 1.5e-4, "checkpoint": 1e-4}
    return build_vision_method(MocoForPreTraining, recipe, config, image_size, args, rates)


def build_byol(recipe: Any, config: dict[str, Any], image_size: int, args: Any, given: set[str] = frozenset()) -> Any:
    """The method of `recipes/byol.py`, see [`build_vision_method`].

    A narrow encoder gets narrow heads, a fresh Vision Transformer what holds it up (see [`ByolForPreTraining`]), both
    where the flags that were `given` say nothing else.
    """
    from ...methods.vision.byol import ByolForPreTraining

    config = _for_narrow_encoders({"projector_hidden_dim": 1024}, recipe, config, given)
    encoder = vision_encoder_config(recipe.encoder, config.get("encoder_config"))
    if encoder is not None and not is_convolutional(encoder):
        steady = {"last_batch_norm": True, "freeze_patch_embed": None}  # None: where there are such parameters
        config = {**config, **{name: value for name, value in steady.items() if name not in given}}
    rates = {"lars": 0.2, "narrow": 3e-4, "wide": 1.5e-4, "checkpoint": 1e-4}
    return build_vision_method(ByolForPreTraining, recipe, config, image_size, args, rates)


def build_dino(
    recipe: Any,
    config: dict[str, Any],
    image_size: int,
    args: Any,
    given: set[str] = frozenset(),
    local_size: int | None = None,
) -> Any:
    """The method of `recipes/dino.py`, see [`build_vision_method`]. A narrow encoder gets a narrow head.

    Raises:
        UserError: also where the encoder does not take the small crops, which have `local_size` pixels.
    """
    from ...methods.vision.dino import DinoForPreTraining

    narrow = {"projector_hidden_dim": 512, "projector_output_dim": 128, "num_prototypes": 1024}
    config = _for_narrow_encoders(narrow, recipe, config, given)
    rates = {"lars": 0.3, "narrow": 2e-3, "wide": 5e-4, "checkpoint": 1e-4}
    model = build_vision_method(DinoForPreTraining, recipe, config, image_size, args, rates)
    if local_size is not None:
        try:
            with torch.no_grad(), pixels_required(model.teacher):
                model.teacher.features(torch.zeros(2, 3, local_size, local_size))
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(
                f"This {model.encoder.config.model_type} does not take small crops of {local_size} pixels "
                f"({brief(error)}). Pass another `--local_size`, `--local_crops 0`, or another `--encoder`."
            ) from error
    return model


def _for_narrow_encoders(
    fields: dict[str, Any], recipe: Any, config: dict[str, Any], given: set[str]
) -> dict[str, Any]:
    """A method's config with `fields` where its encoder is narrow, in what is not among the flags that were given."""
    encoder = vision_encoder_config(recipe.encoder, config.get("encoder_config"))
    if encoder is None:
        return config
    width = getattr(encoder, "hidden_size", None) or encoder.hidden_sizes[-1]
    if width >= 384:
        return config
    return {**config, **{name: value for name, value in fields.items() if name not in given}}


def build_vision_method(
    method: Any, recipe: Any, config: dict[str, Any], image_size: int, args: Any, rates: dict[str, float]
) -> Any:
    """A method around a fresh encoder or a checkpoint, fitted to the size of the images.

    Args:
        method (`type`):
            [`SimclrForPreTraining`], [`MaeForPreTraining`] …
        recipe:
            Has `encoder` and `attention`.
        config (`dict[str, Any]`):
            Fields of the method's config as given; `encoder_config` are overrides.
        image_size (`int`):
            Height and width of the images.
        args ([`SSLTrainingArguments`]):
            Gets a learning rate where none was given.
        rates (`dict[str, float]`):
            Default learning rates for 256 samples a step: with LARS, else for narrow (256 or less) and wide encoders
            from scratch and for checkpoints.

    Raises:
        UserError: where method, encoder and size of the images do not fit each other.
    """
    torch.manual_seed(args.seed)  # Trainer sets it when the weights are there already
    config = dict(config)
    fresh = vision_encoder_config(recipe.encoder, config.pop("encoder_config", None))
    if fresh is not None:
        if hasattr(fresh, "image_size"):
            fresh.image_size = image_size
        try:
            model = method(method.config_class(encoder_config=fresh, **config))
        except (UserError, StrictDataclassError):
            raise
        except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
            raise UserError(
                f"No {fresh.model_type} can be made with these settings: {brief(error)}. Change `--encoder_config`."
            ) from error
    else:
        try:
            model = method.from_encoder(recipe.encoder, image_size=image_size, **config)
        except (UserError, StrictDataclassError):
            raise
        except Exception as error:  # a damaged or foreign file shows itself in many ways
            raise _no_encoder(recipe.encoder, error) from error
    try_on_an_image(model.encoder, image_size)
    if args.learning_rate is None:
        width = getattr(model.encoder.config, "hidden_size", None) or model.encoder.config.hidden_sizes[-1]
        kind = "checkpoint" if fresh is None else "narrow" if width <= 256 else "wide"
        args.base_learning_rate = rates["lars" if args.optim == "lars" else kind]
        args.scale_learning_rate()
    set_attention(model, recipe.attention, args)
    return model


def set_attention(model: Any, attention: str, args: Any) -> None:
    """Choose the implementation of attention in each part of a method; `auto` is what was measured to be fastest."""
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    branches = [branch for name in ("student", "teacher") if (branch := getattr(model, name, None)) is not None]
    parts = [("encoder", part.encoder) for part in branches or [model]]
    for name, part in [*parts, ("decoder", getattr(model, "decoder", None))]:
        if not uses_attention(part):
            continue
        choice = attention
        if choice == "auto":
            if not hasattr(part.config, "image_size") or not hasattr(part.config, "patch_size"):
                continue
            num_tokens = getattr(model.config, "num_patches", None) or patches_a_side(part.config) ** 2
            if name == "encoder" and hasattr(model.config, "num_visible"):
                num_tokens = model.config.num_visible
            choice = recommended_attention(part.config, num_tokens, args.device, dtype)
            if choice == "eager" and part.config.model_type in LEAN_MODELS:
                choice = LEAN
        try:
            part.set_attn_implementation(choice)
        except (ValueError, ImportError) as error:
            raise UserError(f"`--attention {attention}` does not work here: {error}") from None
