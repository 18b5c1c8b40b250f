"""Image encoders to start from: presets for training from scratch, configurations, or checkpoints to continue."""

import ast
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ...data.image.views import ViewArguments, Views
from ...errors import UserError
from ...evaluation.image.sizes import size_arguments
from ...machine import compute_device
from ...modeling.attention import LEAN, takes_lean_attention
from ...modeling.channels import with_channels
from ...modeling.method import width_of
from ...modeling.packing import attention_candidates, recommended_attention
from ...modeling.pooling import is_convolutional
from ...modeling.trial import num_channels_of, patch_size_of
from ...modeling.vision import (
    SSLVisionModel,
    arranged,
    encode_visible,
    image_features,
    patches_a_side,
    pixels_required,
    side,
    try_on_an_image,
    uses_attention,
)
from ...training.arguments import SSLTrainingArguments
from ...training.attention import (
    attention_so_far,
    fastest_attention,
    fastest_memory_format,
    is_measured,
    memory_format_so_far,
    take_memory_format,
)
from ...training.checkpoints import read_settings
from .. import encoders
from .choice import CONVOLUTIONAL, DISTILLED_PATCHES, TRANSFORMER, choose, embedded_encoder, say
from .data import ImageData
from .presets import IMAGE_SIZES, VISION_PRESETS
from .trained_input import check_input, trained_colors, trained_mean_std


logger = logging.getLogger(__name__)

# The encoder that is left to choose.
AUTO = "auto"
# Of encoders that do not say, and of most checkpoints.
IMAGE_SIZE = 224
# Fields of the configuration of a checkpoint that say how it was written.
_NOT_OF_THE_ARCHITECTURE = ("transformers_version", "dtype", "architectures", "_name_or_path")
# Last stage of a convolutional encoder from which on a CPU with bf16 gains by it: its narrow convolutions are slower
# so (at 32 pixels ResNet-18 by 1.6 times, the ConvNeXt V2 named atto by 1.2; ResNet-50 is 1.7 times faster).
BFLOAT16_WIDTH = 1024
# Of the embedded sets. Mirrored, letters and digits are others or none. What letters look like is their colours: views
# take them away, and are mild beyond that, since methods without negatives find nothing in common between views that
# differ more. Digits have 8 pixels, and less than half of one says nothing.
_OF_LETTERS = {
    "flip_probability": 0.0, "crop_scale": (0.5, 1.0), "jitter": (0.4, 0.4, 0.0, 0.0), "jitter_probability": 1.0,
    "grey_probability": 1.0, "blur_probability": [0.0], "solarize_probability": [0.0],
}  # fmt: skip
EMBEDDED_VIEWS = {
    "letters": {"image_size": 32, **_OF_LETTERS},
    "characters": {"image_size": 32, **_OF_LETTERS},
    "scenes": {"image_size": 64, **_OF_LETTERS},
    "digits": {"image_size": 32, "flip_probability": 0.0, "crop_scale": (0.5, 1.0)},
}  # fmt: skip


@dataclass
class VisionEncoderArguments:
    r"""
    > Encoder

    Args:
        encoder (`str`, *optional*, defaults to `"auto"`):
            auto (chosen for the size and the number of the images and for the machine); resnet-mini (half of
            resnet-18's widths and blocks), vit-mini-patch4, vit-tiny-patch4, convnextv2-atto-patch2 or
            convnextv2-tiny-patch2 for images of 32 pixels or less; resnet-18-half, vit-mini-patch8, vit-tiny-patch8,
            vit-small-patch8 or convnextv2-atto-patch4 for those of 64 to 128; vit-tiny-patch16, vit-small-patch16,
            vit-base-patch16, resnet-18, resnet-50 or convnextv2-tiny-patch4 for larger ones; a config file; or a Hub
            id or folder to continue from.
        attention (`str`, *optional*, defaults to `"auto"`):
            auto, measured (the fastest here, as auto chooses on a GPU), eager, lean (eager in less memory, for ViTs),
            sdpa, flash_attention_2 or flex_attention. Convolutional encoders have none: auto and measured are then
            about how images lie in memory.
    """

    modality: ClassVar[str] = "image"
    # what auto chooses among
    kind: ClassVar[str] = CONVOLUTIONAL

    encoder: str = AUTO
    attention: str = "auto"

    def __post_init__(self):
        self.encoder = encoders.preset_name(self.encoder, VISION_PRESETS)

    @property
    def base_model(self) -> str | None:
        """The checkpoint to continue, `None` where the encoder is trained from scratch."""
        return self.encoder if is_checkpoint(self.encoder) else None


@dataclass
class ContrastEncoderArguments(VisionEncoderArguments):
    r"""
    > Encoder

    Args:
        modality (`str`, *optional*, defaults to `"image"`):
            What the encoder is for: image, or audio, which has other flags (`--modality audio --help`).
    """

    modality: str = "image"

    def __post_init__(self):
        super().__post_init__()
        encoders.check_modality(self.modality, "image")


@dataclass
class MaeEncoderArguments(VisionEncoderArguments):
    r"""
    > Encoder

    Args:
        encoder (`str`, *optional*, defaults to `"auto"`):
            auto (chosen for the size and the number of the images and for the machine); vit-mini-patch4 or
            vit-tiny-patch4 for images of 32 pixels or less; vit-mini-patch8, vit-tiny-patch8 or vit-small-patch8 for
            those of 64 to 128; vit-tiny-patch16, vit-small-patch16 or vit-base-patch16 for larger ones; a config
            file; or a Hub id or folder to continue from: a ViT (MAE's own checkpoints too), DeiT, Dinov2, MSN or
            I-JEPA.
    """

    kind: ClassVar[str] = TRANSFORMER

    encoder: str = AUTO


@dataclass
class Dinov2EncoderArguments(VisionEncoderArguments):
    r"""
    > Encoder

    Args:
        encoder (`str`, *optional*, defaults to `"auto"`):
            auto (chosen for the size and the number of the images and for the machine); vit-mini-patch4 or
            vit-tiny-patch4 for images of 32 pixels or less, of which vit-mini-patch8 is what a CPU trains in minutes;
            vit-mini-patch8, vit-tiny-patch8 or vit-small-patch8 for those of 64 to 128; vit-tiny-patch16,
            vit-small-patch16, vit-base-patch16, dinov2-small-patch14, dinov2-base-patch14, dinov2-large-patch14,
            dinov3-small-patch16, dinov3-base-patch16 or dinov3-large-patch16 for larger ones; a config file; or a Hub
            id or folder to continue from: DINOv2, with and without registers, DINOv3 (ViT), a ViT (also of timm),
            DeiT, MSN or I-JEPA.
    """

    kind: ClassVar[str] = DISTILLED_PATCHES

    encoder: str = AUTO


def is_checkpoint(encoder: str) -> bool:
    """Whether `--encoder` names a checkpoint to continue, not something to train from scratch."""
    return encoder != AUTO and encoders.is_checkpoint(encoder, VISION_PRESETS)


def vision_encoder_config(encoder: str, overrides: dict[str, Any] | None = None) -> PreTrainedConfig | None:
    """The configuration to train from scratch that `--encoder` names, see [`~hfssl.cli.encoders.fresh_config`]."""
    return encoders.fresh_config(encoder, VISION_PRESETS, overrides, such_as="vit")


def _checkpoint_config(encoder: str, overrides: dict[str, Any] | None = None) -> PreTrainedConfig:
    return encoders.checkpoint_config(encoder, VISION_PRESETS, "an image encoder", overrides)


def _no_encoder(encoder: str, error: Exception) -> UserError:
    return encoders.no_encoder(encoder, VISION_PRESETS, "an image encoder", error)


def make_views(
    method: type[SSLVisionModel],
    recipe: VisionEncoderArguments,
    config: dict[str, Any],
    data: ImageData,
    arguments: ViewArguments,
    given: set[str],
) -> Views:
    """The views of a method, fitted to its encoder and to the data.

    An encoder that is left to choose is chosen here, and `recipe` names it afterwards. Left out, the size of the
    images is the one that the encoder was made for, and mean and standard deviation are those of the checkpoint that
    is continued. Embedded images have views of their own.

    Args:
        method (`type`):
            Whose record states the views.
        recipe ([`VisionEncoderArguments`]):
            Names the encoder.
        config (`dict[str, Any]`):
            Fields of the method's config as given.
        data ([`~hfssl.cli.image.data.ImageData`]):
            The images.
        arguments ([`~hfssl.data.image.views.ViewArguments`]):
            What the user asked for.
        given (`set[str]`):
            Names of the flags that the user gave.
    """
    if recipe.encoder == AUTO:
        arguments = _choose_encoder(recipe, config, data, arguments)
    named = recipe.encoder, config.get("encoder_config")
    encoder = vision_encoder_config(*named) or _checkpoint_config(*named)
    sizes, patch_size = (
        getattr(encoder, "image_size", None) or _size_in_timm(encoder),
        patch_size_of(encoder),
    )
    if data.embedded is not None:
        stated = given if arguments.mixed_sizes is None else given | {"image_size"}
        embedded = EMBEDDED_VIEWS[data.embedded] | method.method.embedded_views.get(data.embedded, {})
        arguments = replace(arguments, **{name: value for name, value in embedded.items() if name not in stated})
    if arguments.image_size is None:
        arguments = replace(arguments, image_size=side(sizes or IMAGE_SIZES.get(recipe.encoder, IMAGE_SIZE)))
    mean_std = None
    if arguments.normalization == "dataset":
        mean_std = data.channel_mean_std()
    elif is_checkpoint(recipe.encoder) and "normalization" not in given:
        mean_std = trained_mean_std(recipe.encoder, data.num_channels, arguments.colour_channels)
    if mean_std is None and arguments.normalization is None and data.num_channels != 3:
        mean_std = data.channel_mean_std()
    return Views(
        method.method.views, arguments, is_grey=data.is_grey, mean_std=mean_std,
        patch_size=side(patch_size) if patch_size else None, value_range=data.value_range,
        num_channels=data.num_channels, tiles=data.tiles, embedded=data.embedded,
    )  # fmt: skip


def _size_in_timm(encoder: PreTrainedConfig) -> int | None:
    """The size of the images of an encoder of timm, where its configuration says one."""
    known = (getattr(encoder, "model_args", None) or {}).get("img_size")
    return known or (getattr(encoder, "pretrained_cfg", None) or {}).get("input_size", (None,))[-1]


def _choose_encoder(
    recipe: VisionEncoderArguments, config: dict[str, Any], data: ImageData, arguments: ViewArguments
) -> ViewArguments:
    """Name the encoder in `recipe`, and state the size of the images where it is not."""
    recipe.encoder = embedded_encoder(recipe.kind)
    if data.embedded is not None or "model_type" in (config.get("encoder_config") or {}):
        return arguments
    if data.checkpoint is not None:  # on another machine, or of data that grew, another one might be chosen
        config["encoder_config"], size = _of_run(data.checkpoint, config.get("encoder_config"))
        return replace(arguments, image_size=arguments.image_size or size)
    on_cpu = compute_device().type == "cpu"
    facts = data.short_side, data.num_images, on_cpu
    choice = choose(recipe.kind, *facts, image_size=arguments.image_size)
    recipe.encoder = choice.encoder
    say(choice, *facts)
    return replace(arguments, image_size=choice.image_size)


def _of_run(checkpoint: Path, overrides: dict[str, Any] | None) -> tuple[dict[str, Any], int]:
    """The configuration of the encoder of a run that goes on, and the size of its images."""
    fields = AutoConfig.from_pretrained(checkpoint).encoder_config.to_dict()
    fields = {name: value for name, value in fields.items() if name not in _NOT_OF_THE_ARCHITECTURE}
    views = ast.literal_eval(read_settings(checkpoint)["views"])
    return fields | (overrides or {}), views[0]["size"]


def build(
    method: type[SSLVisionModel],
    recipe: VisionEncoderArguments,
    config: dict[str, Any],
    views: Views,
    args: SSLTrainingArguments,
    given: set[str],
) -> SSLVisionModel:
    """A method for images, see [`~hfssl.cli.modality.build_method`].

    Raises:
        UserError: where method, encoder and size of the images do not fit each other.
    """
    torch.manual_seed(args.seed)  # Trainer sets it when the weights are there already
    record, image_size = method.method, views.image_size
    overrides = config.pop("encoder_config", None)
    fresh = vision_encoder_config(recipe.encoder, overrides)
    continued = None if fresh is not None else _checkpoint_config(recipe.encoder, overrides)
    config |= record.fields_for(fresh, given, views.embedded, continued)
    if config.get("gram_teacher") is not None:
        check_input(config["gram_teacher"], views, "--gram_teacher")
    if fresh is not None:
        fresh = with_channels(fresh, views.num_channels)
        if hasattr(fresh, "image_size"):
            fresh.image_size = image_size
        try:
            model = method(method.config_class(encoder_config=fresh, **config))
        except (UserError, StrictDataclassError):
            raise
        except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
            raise UserError(
                f"No {fresh.model_type} can be made with these settings: {encoders.brief(error)}. Change "
                "`--encoder_config`."
            ) from error
    else:
        try:
            model = method.from_encoder(
                recipe.encoder, image_size=image_size, num_channels=views.num_channels, colors=views.colors,
                trained_colors=trained_colors(recipe.encoder), encoder_changes=overrides, **config,
            )  # fmt: skip
        except (UserError, StrictDataclassError):
            raise
        except Exception as error:  # a damaged or foreign file shows itself in many ways
            raise _no_encoder(recipe.encoder, error) from error
        _train_continued(model, recipe, views, args, given)
    if config.get("gram_teacher") is not None and args.continued_from is None:
        model.read_gram_teacher()  # a run that goes on has it in its checkpoint
    try_on_an_image(model.encoder, image_size, views.num_channels)
    if args.per_device_train_batch_size * args.world_size < 2:
        _refuse_one_image(model)
    if views.local_size is not None:
        _try_small_crops(model, views.local_size, views.num_channels)
    for size in views.sizes.sizes[:-1] if views.sizes is not None else ():
        _try_small_crops(model, size, views.num_channels, "mixed_sizes")
    width, convolutional = width_of(model.encoder.config), is_convolutional(model.encoder.config)
    if args.device.type == "cpu" and convolutional and width < BFLOAT16_WIDTH:
        args.take_full_precision()
    if args.learning_rate is None:
        rate = record.learning_rates.choose(args.optim, width, fresh is not None, convolutional)
        args.set_learning_rate(rate, record.learning_rates.per_256_samples)
    set_attention(model, recipe.attention, args)
    set_memory_format(model, recipe.attention, image_size, args)
    return model


def _train_continued(
    model: SSLVisionModel, recipe: VisionEncoderArguments, views: Views, args: SSLTrainingArguments, given: set[str]
) -> None:
    """The training arguments for a checkpoint that is continued, in what the user did not give."""
    chosen = {name: value for name, value in model.method.continued_training.items() if name not in given}
    # what projects other channels than before has to learn them
    if num_channels_of(_checkpoint_config(recipe.encoder)) != views.num_channels:
        chosen.pop("patch_embed_rate", None)
    for name, value in chosen.items():
        setattr(args, name, value)
    frozen = getattr(model.config, "freeze_encoder", 0.0)
    if frozen:
        alone = f"{100 * frozen:g} % of the run"
        if args.max_steps > 0 and args.budget_minutes is None:
            alone = f"{math.ceil(round(frozen * args.max_steps, 6))} of {args.max_steps} steps"
        logger.info("In the first %s only the heads learn.", alone)


def _refuse_one_image(model: SSLVisionModel) -> None:
    """Refuse one image a step where the batch norm of a head compares images; that of an encoder compares places."""
    of_encoders = {part for encoder in model.trained_encoders + model.followers for part in encoder.modules()}
    norms = torch.nn.modules.batchnorm._BatchNorm
    if any(isinstance(part, norms) and part not in of_encoders for part in model.modules()):
        raise UserError(
            f"{model.method.title} needs more than one image in a batch, as its batch norm does, and a batch has one "
            "here. Pass a larger `--per_device_train_batch_size`: 2 at least, better 64 or more."
        )


def _try_small_crops(model: SSLVisionModel, local_size: int, num_channels: int, flag: str = "local_size") -> None:
    try:
        with torch.no_grad(), pixels_required(model.encoder):
            image_features(
                model.encoder, torch.zeros(2, num_channels, local_size, local_size),
                getattr(model.config, "pooling", None), **size_arguments(model.encoder, local_size, local_size),
            )  # fmt: skip
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"This {model.encoder.config.model_type} does not take small crops of {local_size} pixels "
            f"({encoders.brief(error)}). Pass another `--{flag}`{', `--local_crops 0`' * (flag == 'local_size')}, or "
            "another `--encoder`."
        ) from error


def set_attention(model: SSLVisionModel, attention: str, args: SSLTrainingArguments) -> None:
    """Choose the implementation of attention in each part of a method; `auto` is what was measured to be fastest.

    A run that goes on has what it had. A measurement is made of the encoder, once for student and teacher.
    """
    is_chosen = is_measured(attention, args.device) or attention == "auto"
    so_far = attention_so_far(args) if is_chosen else {}
    measured: str | None = None
    parts = [("encoder", encoder) for encoder in _encoders(model)]
    for kind, part in [*parts, ("decoder", getattr(model, "decoder", None))]:
        if not uses_attention(part):
            continue
        choice = attention
        if is_chosen:
            if not hasattr(part.config, "image_size") or not hasattr(part.config, "patch_size"):
                continue
            path = next(name for name, module in model.named_modules() if module is part)
            choice = so_far.get(path) or measured or _recommended(model, kind, part, args)
            if kind == "encoder" and path not in so_far and measured is None and is_measured(attention, args.device):
                choice = measured = _fastest(model, part, choice, args)
        try:
            part.set_attn_implementation(choice)
        except (ValueError, ImportError) as error:
            raise UserError(f"`--attention {attention}` does not work here: {error}") from None


def set_memory_format(model: SSLVisionModel, attention: str, image_size: int, args: SSLTrainingArguments) -> None:
    """Choose how images lie in memory for convolutional encoders, which have no attention to choose.

    It is measured where that would be, once for student and teacher. On a CPU it is channels last: 1.2 times as fast
    for a small ResNet, as fast for ConvNeXt V2. A run that goes on has what it had.
    """
    encoders = [encoder for encoder in _encoders(model) if is_convolutional(encoder.config)]
    choice = memory_format_so_far(args)
    if choice is None and encoders and is_measured(attention, args.device):
        rows, channels = args.per_device_train_batch_size, num_channels_of(encoders[0].config)

        def run(tried: PreTrainedModel) -> torch.Tensor:
            images = torch.zeros(rows, channels, image_size, image_size, device=args.device)
            return tried(arranged(tried, images)).last_hidden_state

        choice = fastest_memory_format(encoders[0], run, f"{rows} images of {image_size} pixels", args)
    for encoder in encoders if choice is not None else ():
        take_memory_format(encoder, choice)


def _encoders(model: SSLVisionModel) -> list[PreTrainedModel]:
    """That of the student and of the teacher, or the one that there is."""
    branches = [branch for name in ("student", "teacher") if (branch := getattr(model, name, None)) is not None]
    return [part.encoder for part in branches or [model]]


def _dtype(args: SSLTrainingArguments) -> torch.dtype:
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def _recommended(model: SSLVisionModel, kind: str, part: PreTrainedModel, args: SSLTrainingArguments) -> str:
    num_tokens = getattr(model.config, "num_patches", None) or patches_a_side(part.config) ** 2
    if kind == "encoder":
        num_tokens = getattr(model.config, "num_visible", num_tokens)
    return recommended_for_patches(part.config, num_tokens, args)


def recommended_for_patches(config: PreTrainedConfig, num_tokens: int, args: SSLTrainingArguments) -> str:
    """The implementation of attention for so many patches an image, by what was measured elsewhere."""
    choice = recommended_attention(config, num_tokens, args.device, _dtype(args))
    return LEAN if choice == "eager" and takes_lean_attention(config) else choice


def _fastest(model: SSLVisionModel, encoder: PreTrainedModel, recommended: str, args: SSLTrainingArguments) -> str:
    return fastest_for_patches(encoder, recommended, args, getattr(model.config, "num_visible", None))


def fastest_for_patches(
    encoder: PreTrainedModel, recommended: str, args: SSLTrainingArguments, num_visible: int | None = None
) -> str:
    """What is fastest for a batch of images, of all their patches or of those that a method lets the encoder see."""
    config, rows = encoder.config, args.per_device_train_batch_size
    size = side(config.image_size)

    def run(tried: PreTrainedModel) -> torch.Tensor:
        images = torch.zeros(rows, config.num_channels, size, size, device=args.device)
        if num_visible is None:
            return tried(images).last_hidden_state
        return encode_visible(tried, images, torch.arange(num_visible, device=args.device).expand(rows, -1))

    others = attention_candidates(config, patches_a_side(config) ** 2, args.device, _dtype(args))
    # beside `lean` there is no need of what does the same in more memory
    lean = [LEAN] if takes_lean_attention(config) else []
    others = [name for name in [*lean, *others] if not (lean and name == "eager")]
    shape = f"{rows} images of {size} pixels" + (f", {num_visible} patches each" if num_visible else "")
    return fastest_attention(encoder, list(dict.fromkeys([recommended, *others])), run, shape, args)
