"""The two towers of a pair: presets for training from scratch, configurations, or checkpoints to continue."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoFeatureExtractor, AutoImageProcessor, PreTrainedConfig, PreTrainedTokenizerBase

from ...data.audio.clips import ClipRows
from ...data.audio.rows import AudioFormat
from ...data.caption.captions import CaptionRows
from ...data.image.views import ViewArguments, Views
from ...data.multimodal.rows import PairRows
from ...errors import UserError
from ...functional.views import View, ViewPreset
from ...modeling.feature_extractor import build_feature_extractor
from ...modeling.image_processing import build_image_processor
from ...modeling.method import width_of
from ...modeling.packing import position_limit
from ...modeling.pair_processor import PairProcessor
from ...modeling.pairs import PairModel
from ...modeling.tokenizer import working_copy
from ...modeling.vision import side
from ...training.arguments import SSLTrainingArguments
from .. import encoders
from ..text.encoders import check_fit, fit_to_tokenizer
from .data import PairData
from .presets import PRESETS


# Of the area, as open_clip crops; nothing is mirrored or recoloured, since captions speak of left, right and red.
IMAGE_VIEWS = ViewPreset((View(scale=(0.9, 1.0), interpolation="bicubic", flip_probability=0.0),))
_IMAGE_SIZE = 224
# Of recordings, in seconds.
_MAX_SECONDS = 8.0


@dataclass
class PairEncoderArguments:
    r"""
    > Encoders

    Args:
        encoder (`str`, *optional*):
            A stock pair of image and text to continue, instead of two encoders: Hub id or folder of a CLIP, a SigLIP
            or a VisionTextDualEncoder.
        image_encoder (`str`, *optional*, defaults to `"clip-image-mini-patch4"`):
            clip-image- or siglip-image- mini-patch4 for 32 pixels, small-patch8 for 96, or clip-image-base-patch32 and
            siglip-image-base-patch16 for 224; a preset of the recipes for images, such as resnet-mini or
            vit-mini-patch4; a config file; or a Hub id or folder to begin with.
        text_encoder (`str`, *optional*, defaults to `"clip-text-mini"`):
            clip-text- or siglip-text- mini, small or base; bert- or modernbert- mini or small; a config file; or a Hub
            id or folder to begin with.
        audio_encoder (`str`, *optional*, defaults to `"hubert-mini"`):
            A preset of the recipes for sound, a config file, or a Hub id or folder to begin with.
    """

    encoder: str | None = None
    image_encoder: str = "clip-image-mini-patch4"
    text_encoder: str = "clip-text-mini"
    audio_encoder: str = "hubert-mini"

    def __post_init__(self):
        for name, presets in PRESETS.items():
            flag = f"{name}_encoder"
            setattr(self, flag, encoders.preset_name(getattr(self, flag), presets))

    def checkpoint_of(self, name: str) -> str | None:
        """What the encoder of a side begins with, `None` where it is trained from scratch."""
        if self.encoder is not None:
            return self.encoder
        given = getattr(self, f"{name}_encoder")
        return given if encoders.is_checkpoint(given, PRESETS[name]) else None

    @property
    def base_model(self) -> str | None:
        """The pair to continue."""
        return self.encoder


def build_pair(
    method: type[PairModel],
    recipe: PairEncoderArguments,
    config: dict[str, Any],
    data: PairData,
    args: SSLTrainingArguments,
    given: set[str],
) -> PairModel:
    """A method around two encoders, fresh ones or checkpoints, fitted to the tokenizer of the data.

    Raises:
        UserError: where method, encoders and data do not fit each other.
    """
    torch.manual_seed(args.seed)  # Trainer sets it when the weights are there already
    config, overrides = dict(config), {}
    for end, name in zip(("first", "second"), data.names, strict=True):
        overrides[name] = config.pop(f"{end}_config", None)
        if overrides[name] and recipe.checkpoint_of(name):
            raise UserError(
                f"`--{end}_config` is for an encoder from scratch, and {recipe.checkpoint_of(name)} is a checkpoint. "
                "Leave one of them out."
            )
    if args.per_device_train_batch_size * args.world_size < 2:
        raise UserError(
            f"{method.method.title} tells pairs apart by comparing those of a batch, and a batch has one here. Pass a "
            "larger `--per_device_train_batch_size`: 2 at least, better 64 or more."
        )
    from_scratch = False
    try:
        if recipe.encoder is not None:
            if data.names != ("image", "text"):
                raise UserError(
                    f"`--encoder {recipe.encoder}` is a pair of image and text, and `--pair` says "
                    f"{','.join(data.names)}. Leave one of them out."
                )
            of_pair = ("pair", "projection_dim", "first_pooling", "second_pooling")
            model = method.from_pair(recipe.encoder, **{k: v for k, v in config.items() if k not in of_pair})
        else:
            towers = [_tower(recipe, name, overrides[name], data) for name in data.names]
            fresh = [tower for tower in towers if isinstance(tower, PreTrainedConfig)]
            from_scratch = len(fresh) == len(towers)
            if from_scratch and config.get("projection_dim") is not None and "projection_dim" not in given:
                config["projection_dim"] = min(config["projection_dim"], *map(width_of, fresh))
            model = method.from_encoders(*towers, **config)
    except (UserError, StrictDataclassError):
        raise
    except Exception as error:  # a damaged or foreign file shows itself in many ways
        named = recipe.encoder or _named(recipe, data)
        raise UserError(
            f"No {method.method.title} can be made of {named}: {encoders.brief(error)}. Without a network, download a "
            "checkpoint first and pass the folder."
        ) from error
    if args.learning_rate is None:
        width = min(width_of(each.config) for each in model.encoders.values())
        rates = method.method.learning_rates
        args.set_learning_rate(rates.choose(args.optim, width, from_scratch), rates.per_256_samples)
    if "text" in data.names:
        limit = position_limit(model.encoders["text"])
        if limit is not None and "max_length" not in given:
            data.arguments.max_length = min(data.arguments.max_length, limit)
        check_fit(
            model.encoders["text"], data.tokenizer, data.arguments.max_length, recipe.checkpoint_of("text") is None
        )
    return model


def _named(recipe: PairEncoderArguments, data: PairData) -> str:
    return " and ".join(getattr(recipe, f"{name}_encoder") for name in data.names)


def _tower(
    recipe: PairEncoderArguments, name: str, overrides: dict[str, Any] | None, data: PairData
) -> PreTrainedConfig | str:
    """The configuration of a tower from scratch, or the checkpoint that it begins with."""
    fresh = encoders.fresh_config(getattr(recipe, f"{name}_encoder"), PRESETS[name], overrides)
    if fresh is None:
        return recipe.checkpoint_of(name)
    if name == "text":
        fit_to_tokenizer(fresh, data.tokenizer)
        if fresh.model_type == "clip_text_model":
            fresh.eos_token_id = _end_token(data.tokenizer)
        if fresh.model_type in ("clip_text_model", "siglip_text_model"):
            # all positions that there are are trained
            fresh.max_position_embeddings = data.arguments.max_length
    return fresh


def _end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What ends each text: there CLIP's text encoder reads the vector of a text."""
    around, ending = (tokenizer(text)["input_ids"][-1:] for text in ("", "a"))
    # transformers takes 2 for that of the oldest checkpoints, and reads the highest token instead
    if not around or around != ending or around == [2]:
        why = "adds none" if not around or around != ending else "has 2 there, which transformers takes for another"
        raise UserError(
            f"CLIP's text encoder reads a text at the token that ends it, and this tokenizer {why}. Pass another text "
            "encoder, such as `--text_encoder bert-mini`, or leave `--tokenizer` out."
        )
    return around[0]


def pair_rows(
    model: PairModel,
    recipe: PairEncoderArguments,
    data: PairData,
    arguments: ViewArguments,
    given: set[str],
) -> tuple[PairRows, PairProcessor]:
    """What makes rows of the pairs, fitted to both encoders, and the processors that go with them."""
    sides, processors = {}, {}
    for name in data.names:
        config, checkpoint = model.config_of(name), recipe.checkpoint_of(name)
        if name == "image":
            views = _views(config, checkpoint, arguments, given)
            sides[name] = views
            processors["image_processor"] = build_image_processor(views.image_size, views.mean, views.std)
        elif name == "text":
            reads_last = model.towers[name].reads_last_token
            length = config.max_position_embeddings if reads_last else data.arguments.max_length
            sides[name] = CaptionRows(data.tokenizer, length, pad_to_max=reads_last)
            processors["tokenizer"] = _read_whole(data.tokenizer, length) if reads_last else data.tokenizer
        else:
            extractor = build_feature_extractor(config)
            if checkpoint is not None:
                extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
            normalize = bool(getattr(extractor, "do_normalize", True))
            sides[name] = ClipRows(AudioFormat(config, max_seconds=_MAX_SECONDS, normalize=normalize))
            processors["feature_extractor"] = extractor
    rows = PairRows(sides, with_duplicates=data.arguments.mask_duplicates)
    return rows, PairProcessor(**processors)


def _read_whole(tokenizer: PreTrainedTokenizerBase, length: int) -> PreTrainedTokenizerBase:
    """A tokenizer whose padding is read as words are: it gives no mask, which would hide it, and pads to `length`."""
    tokenizer = working_copy(tokenizer)
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids"]
    tokenizer.model_max_length = length
    return tokenizer


def _views(config: PreTrainedConfig, checkpoint: str | None, arguments: ViewArguments, given: set[str]) -> Views:
    size, patch, mean_std = getattr(config, "image_size", None), getattr(config, "patch_size", None), None
    if arguments.image_size is None:
        arguments = replace(arguments, image_size=side(size) if size else _IMAGE_SIZE if checkpoint else 32)
    if checkpoint is not None and "normalization" not in given:
        try:
            processor = AutoImageProcessor.from_pretrained(checkpoint)
            mean_std = list(processor.image_mean), list(processor.image_std)
        except (OSError, ValueError):  # a checkpoint without one
            mean_std = None
    if arguments.normalization == "dataset":
        raise UserError("`--normalization dataset` is for images alone. Pass imagenet or half.")
    return Views(IMAGE_VIEWS, arguments, is_grey=False, mean_std=mean_std, patch_size=side(patch) if patch else None)


def text_checkpoint(recipe: PairEncoderArguments, pair: str) -> str | None:
    """The checkpoint of which the tokenizer is the default one."""
    return recipe.checkpoint_of("text") if "text" in pair else None
