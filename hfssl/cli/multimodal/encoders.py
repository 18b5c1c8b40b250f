"""The two towers of a pair: presets for training from scratch, configurations, or checkpoints to continue."""

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    FeatureExtractionMixin,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    SiglipModel,
)

from ...data.audio.clips import ClipRows
from ...data.audio.rows import AudioFormat
from ...data.caption.captions import CaptionRows
from ...data.image.views import ViewArguments, Views
from ...data.multimodal.rows import PairRows
from ...errors import UserError
from ...functional.views import View, ViewPreset
from ...machine import compute_device
from ...modeling.feature_extractor import build_feature_extractor
from ...modeling.method import width_of
from ...modeling.packing import position_limit
from ...modeling.pair_processor import PairProcessor
from ...modeling.pairs import PairModel
from ...modeling.tokenizer import working_copy
from ...modeling.vision import side
from ...training.arguments import SSLTrainingArguments
from .. import encoders
from ..image.choice import choose, embedded_encoder, say
from ..image.encoders import AUTO, IMAGE_SIZE
from ..image.presets import IMAGE_SIZES
from ..image.trained_input import check_input, trained_mean_std
from ..modality import flag_that_keeps
from ..text.encoders import check_fit, fit_to_tokenizer
from .attention import set_attention
from .data import PairData
from .presets import PRESETS, SIGLIP_LENGTH


logger = logging.getLogger(__name__)


# Of the area, as open_clip crops; nothing is mirrored or recoloured, since captions speak of left, right and red.
IMAGE_VIEWS = ViewPreset((View(scale=(0.9, 1.0), interpolation="bicubic", flip_probability=0.0),))
# Of recordings, in seconds.
_MAX_SECONDS = 8.0
# Tokens of a caption where nobody says how many: of encoders from scratch, and the most of others, which is CLIP's.
_MAX_LENGTH, _MOST_OF_CHECKPOINT = 32, 77


@dataclass
class PairEncoderArguments:
    r"""
    > Encoders

    Args:
        encoder (`str`, *optional*):
            A stock pair of image and text to continue, instead of two encoders: Hub id or folder of a CLIP, a SigLIP
            or a VisionTextDualEncoder.
        image_encoder (`str`, *optional*, defaults to `"auto"`):
            auto (chosen for the size and the number of the images and for the machine); clip-image- or siglip-image-
            mini-patch4 for 32 pixels, mini-patch8 for 64, small-patch8 for 96 and small-patch16 for 224, and there
            also clip-image-base-patch32 and siglip-image-base-patch16; a preset of the recipes for images, such as
            resnet-mini or vit-mini-patch4; a config file; or a Hub id or folder to begin with.
        text_encoder (`str`, *optional*, defaults to `"auto"`):
            auto (the one that goes with the image encoder); clip-text- or siglip-text- mini, small or base; bert- or
            modernbert- mini or small; a config file; or a Hub id or folder to begin with.
        audio_encoder (`str`, *optional*, defaults to `"hubert-mini"`):
            A preset of the recipes for sound, a config file, or a Hub id or folder to begin with.
        attention (`str`, *optional*, defaults to `"auto"`):
            Of both encoders: auto, measured (the fastest here of images and texts, as auto chooses on a GPU), eager,
            lean (eager in less memory, for ViTs), sdpa, flash_attention_2 or flex_attention.
    """

    # the flags of which one is given: a stock pair has towers, vectors and a scale of its own
    _one_of: ClassVar[dict[str, tuple[str, ...]]] = {
        "what the encoder of images is": ("encoder", "image_encoder"),
        "what the encoder of texts is": ("encoder", "text_encoder"),
        "how large an embedding is": ("encoder", "projection_dim"),
        "how an image becomes a vector": ("encoder", "first_pooling"),
        "how a text becomes a vector": ("encoder", "second_pooling"),
        "where the factor of the similarities begins": ("encoder", "logit_scale_init"),
    }

    encoder: str | None = None
    image_encoder: str = AUTO
    text_encoder: str = AUTO
    audio_encoder: str = "hubert-mini"
    attention: str = "auto"

    def __post_init__(self):
        for name, presets in PRESETS.items():
            flag = f"{name}_encoder"
            setattr(self, flag, encoders.preset_name(getattr(self, flag), presets))

    def checkpoint_of(self, name: str) -> str | None:
        """What the encoder of a side begins with, `None` where it is trained from scratch."""
        if self.encoder is not None:
            return self.encoder
        given = getattr(self, f"{name}_encoder")
        return given if given != AUTO and encoders.is_checkpoint(given, PRESETS[name]) else None

    @property
    def base_model(self) -> str | None:
        """The pair to continue."""
        return self.encoder


def build_pair(
    method: type[PairModel],
    recipe: PairEncoderArguments,
    config: dict[str, Any],
    data: PairData,
    views: ViewArguments,
    args: SSLTrainingArguments,
    given: set[str],
) -> PairModel:
    """A method around two encoders, fresh ones or checkpoints, fitted to the tokenizer and the images of the data.

    Encoders that are left to choose are chosen here, and `recipe` names them afterwards.

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
    if args.compared_at_once < 2:
        raise UserError(
            f"{method.method.title} tells pairs apart by comparing those of a batch, and a batch has one here. Pass a "
            "larger `--per_device_train_batch_size`: 2 at least, better 64 or more."
        )
    flag, frozen = flag_that_keeps(args), config.get("frozen_tower")
    new = [name for name in data.names if recipe.checkpoint_of(name) is None and name != frozen]
    if flag is not None and new:
        raise UserError(
            f"{flag} keeps what checkpoints have learned, and the encoder of {new[0]} is trained from scratch. Leave "
            f"it out, or pass a Hub id or a folder as `--{new[0]}_encoder`."
        )
    from_scratch = False
    if recipe.encoder is None and data.checkpoint is None:
        kind = method.config_class.model_type.removeprefix("hfssl_")
        _choose_towers(kind, recipe, data, views, is_stated="model_type" in (overrides.get("image") or {}))
    try:
        if recipe.encoder is not None:
            if data.names != ("image", "text"):
                raise UserError(
                    f"`--encoder {recipe.encoder}` is a pair of image and text, and `--pair` says "
                    f"{','.join(data.names)}. Leave one of them out."
                )
            of_pair = ("pair", "projection_dim", "first_pooling", "second_pooling", "logit_scale_init")
            model = method.from_pair(recipe.encoder, **{k: v for k, v in config.items() if k not in of_pair})
        else:
            towers = [
                _tower(recipe, name, end, overrides[name], data, views)
                for end, name in zip(("first", "second"), data.names, strict=True)
            ]
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
        _fit_texts(model, data, recipe.checkpoint_of("text") is None)
    set_attention(model, recipe.attention, data.arguments.max_length, args)
    return model


def _named(recipe: PairEncoderArguments, data: PairData) -> str:
    return " and ".join(getattr(recipe, f"{name}_encoder") for name in data.names)


def _choose_towers(
    kind: str, recipe: PairEncoderArguments, data: PairData, views: ViewArguments, is_stated: bool
) -> None:
    """Name the encoders in `recipe` that are left to choose; `kind` is clip or siglip. Where a whole configuration
    `is_stated`, that of images stays as it is."""
    if "image" in data.names and recipe.image_encoder == AUTO:
        recipe.image_encoder = embedded_encoder(kind)
        if data.embedded is None and not is_stated:
            facts = data.short_side, data.source.num_rows, compute_device().type == "cpu"
            choice = choose(kind, *facts, image_size=views.image_size)
            recipe.image_encoder = choice.encoder
            say(choice, *facts, flag="image_encoder")
    if recipe.text_encoder == AUTO:
        beside = recipe.image_encoder.rpartition("-patch")[0].replace("image", "text")
        recipe.text_encoder = beside if beside in PRESETS["text"] else f"{kind}-text-mini"


def _tower(
    recipe: PairEncoderArguments,
    name: str,
    end: str,
    overrides: dict[str, Any] | None,
    data: PairData,
    views: ViewArguments,
) -> PreTrainedConfig | str:
    """The configuration of a tower from scratch, or the checkpoint that it begins with."""
    if getattr(recipe, f"{name}_encoder") == AUTO:
        # of a run that goes on: on another machine, or of data that grew, another one might be chosen
        fresh = getattr(AutoConfig.from_pretrained(data.checkpoint), f"{end}_config")
    else:
        fresh = encoders.fresh_config(getattr(recipe, f"{name}_encoder"), PRESETS[name], overrides)
    if fresh is None:
        return recipe.checkpoint_of(name)
    if name == "image" and views.image_size is not None and hasattr(fresh, "image_size"):
        fresh.image_size = views.image_size
    if name == "text":
        fit_to_tokenizer(fresh, data.tokenizer)
        if fresh.model_type == "clip_text_model":
            fresh.eos_token_id = _end_token(data.tokenizer)
        if fresh.model_type in ("clip_text_model", "siglip_text_model"):
            if data.arguments.max_length is None:
                is_siglip = fresh.model_type == "siglip_text_model"
                data.arguments.max_length = SIGLIP_LENGTH if is_siglip else _MAX_LENGTH
            # all positions that there are are trained
            fresh.max_position_embeddings = data.arguments.max_length
    return fresh


def _fit_texts(model: PairModel, data: PairData, from_scratch: bool) -> None:
    """Settle how long texts are, and refuse what does not fit the text encoder."""
    encoder = model.encoders["text"]
    if data.arguments.max_length is None:
        most = _MAX_LENGTH if from_scratch else _MOST_OF_CHECKPOINT
        data.arguments.max_length = min(position_limit(encoder) or most, most)
    check_fit(encoder, data.tokenizer, data.arguments.max_length, from_scratch)
    length = getattr(encoder.config, "max_position_embeddings", None)
    if model.stock_class is SiglipModel and length != SIGLIP_LENGTH:
        logger.warning(
            "The zero-shot pipeline of transformers pads the texts of every SigLIP to %d tokens, and this text "
            "encoder reads %d: the pipeline will not take the result.%s", SIGLIP_LENGTH, length,
            " Leave `--max_length` out if it is to." if from_scratch else "",
        )  # fmt: skip


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
            views = _views(config, checkpoint, recipe, data, arguments, given)
            sides[name] = views
            processors["image_processor"] = views.image_processor()
        elif name == "text":
            reads_last = model.towers[name].reads_last_token
            length = config.max_position_embeddings if reads_last else data.arguments.max_length
            sides[name] = CaptionRows(data.tokenizer, length, pad_to_max=reads_last)
            processors["tokenizer"] = _read_whole(data.tokenizer, length) if reads_last else data.tokenizer
        else:
            extractor = _feature_extractor(config, checkpoint)
            normalize = bool(getattr(extractor, "do_normalize", True))
            sides[name] = ClipRows(AudioFormat(config, max_seconds=_MAX_SECONDS, normalize=normalize))
            processors["feature_extractor"] = extractor
    rows = PairRows(sides, with_duplicates=data.arguments.mask_duplicates)
    return rows, PairProcessor(**processors)


def _feature_extractor(config: PreTrainedConfig, checkpoint: str | None) -> FeatureExtractionMixin:
    if checkpoint is not None:
        with suppress(OSError, ValueError):  # a checkpoint without one
            return AutoFeatureExtractor.from_pretrained(checkpoint)
    return build_feature_extractor(config)


def _read_whole(tokenizer: PreTrainedTokenizerBase, length: int) -> PreTrainedTokenizerBase:
    """A tokenizer whose padding is read as words are: it gives no mask, which would hide it, and pads to `length`."""
    tokenizer = working_copy(tokenizer)
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids"]
    tokenizer.model_max_length = length
    return tokenizer


def _views(
    config: PreTrainedConfig,
    checkpoint: str | None,
    recipe: PairEncoderArguments,
    data: PairData,
    arguments: ViewArguments,
    given: set[str],
) -> Views:
    size, patch, mean_std = getattr(config, "image_size", None), getattr(config, "patch_size", None), None
    if arguments.image_size is None:
        arguments = replace(arguments, image_size=side(size or IMAGE_SIZES.get(recipe.image_encoder, IMAGE_SIZE)))
    if checkpoint is not None and "normalization" not in given:
        mean_std = trained_mean_std(checkpoint, 3, arguments.colour_channels)
    if arguments.normalization == "dataset":
        raise UserError("`--normalization dataset` is for images alone. Pass imagenet or half.")
    views = Views(
        IMAGE_VIEWS, arguments, is_grey=False, mean_std=mean_std, patch_size=side(patch) if patch else None,
        value_range=data.value_range,
    )  # fmt: skip
    if checkpoint is not None:
        check_input(checkpoint, views, "--encoder" if recipe.encoder is not None else "--image_encoder", config)
    return views


def text_checkpoint(recipe: PairEncoderArguments, pair: str) -> str | None:
    """The checkpoint of which the tokenizer is the default one."""
    return recipe.checkpoint_of("text") if "text" in pair else None
