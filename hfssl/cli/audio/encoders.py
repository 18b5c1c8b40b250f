"""Encoders of sound to start from: presets for training from scratch, configurations, or checkpoints to continue."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoFeatureExtractor

from ...data.audio.views import check_takes_spectrograms
from ...errors import UserError, first_line
from ...modeling.base import SSLPreTrainedModel
from ...modeling.feature_extractor import build_feature_extractor
from ...modeling.filter_banks import SAMPLING_RATE
from ...modeling.method import width_of
from ...training.arguments import SSLTrainingArguments
from .. import encoders
from .data import AudioData
from .presets import AUDIO_PRESETS


_KIND = "an encoder of sound"


@dataclass
class AudioEncoderArguments:
    r"""
    > Encoder

    Args:
        encoder (`str`, *optional*, defaults to `"hubert-mini"`):
            hubert-, wavlm-, wav2vec2- or wav2vec2-bert- mini, small or base, cpc-mini or cpc-base from scratch, as far
            as the method takes them; a config file; or a Hub id or folder to continue from.
        attention (`str`, *optional*, defaults to `"auto"`):
            auto, eager, sdpa or flash_attention_2.
    """

    modality: ClassVar[str] = "audio"

    encoder: str = "hubert-mini"
    attention: str = "auto"

    def __post_init__(self):
        self.encoder = encoders.preset_name(self.encoder, AUDIO_PRESETS)

    @property
    def base_model(self) -> str | None:
        """The checkpoint to continue, `None` where the encoder is trained from scratch."""
        return self.encoder if is_checkpoint(self.encoder) else None


@dataclass
class SpectrogramEncoderArguments(AudioEncoderArguments):
    r"""
    > Encoder

    Args:
        modality (`str`, *optional*, defaults to `"audio"`):
            What the encoder is for: audio, or image, which has other flags.
        encoder (`str`, *optional*, defaults to `"ast-mini"`):
            ast-mini (spectrograms of 1.28 s), ast-small (5.12 s) or ast-base (10.24 s) from scratch; a config file; or
            a Hub id or folder to continue from: an AST. For other lengths `--encoder_config '{"max_length": 256}'`,
            in hundredths of a second.
    """

    modality: str = "audio"
    encoder: str = "ast-mini"

    def __post_init__(self):
        super().__post_init__()
        encoders.check_modality(self.modality, "audio")


def is_checkpoint(encoder: str) -> bool:
    """Whether `--encoder` names a checkpoint to continue, not something to train from scratch."""
    return encoders.is_checkpoint(encoder, AUDIO_PRESETS)


def build(
    method: type[SSLPreTrainedModel],
    recipe: AudioEncoderArguments,
    config: dict[str, Any],
    data: AudioData,
    args: SSLTrainingArguments,
    given: set[str],
) -> SSLPreTrainedModel:
    """A method for recordings, see [`~hfssl.cli.modality.build_method`].

    Raises:
        UserError: where method and encoder do not fit each other.
    """
    torch.manual_seed(args.seed)  # Trainer sets it when the weights are there already
    record = method.method
    overrides = config.pop("encoder_config", None)
    fresh = encoders.fresh_config(recipe.encoder, AUDIO_PRESETS, overrides, such_as="hubert")
    continued = (
        None if fresh is not None else encoders.checkpoint_config(recipe.encoder, AUDIO_PRESETS, _KIND, overrides)
    )
    config |= record.fields_for(fresh, given, data.embedded, continued)
    gets_views = record.modality != "audio"  # a method for images, of spectrograms here
    if fresh is not None:
        if gets_views:
            check_takes_spectrograms(fresh)
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
            if gets_views:
                check_takes_spectrograms(continued)
            model = method.from_encoder(recipe.encoder, encoder_changes=overrides, **config)
        except (UserError, StrictDataclassError):
            raise
        except Exception as error:  # a damaged or foreign file shows itself in many ways
            raise encoders.no_encoder(recipe.encoder, AUDIO_PRESETS, _KIND, error) from error
    if args.learning_rate is None:
        rate = record.learning_rates.choose(args.optim, width_of(model.encoder.config), fresh is not None)
        args.set_learning_rate(rate, record.learning_rates.per_256_samples)
    if recipe.attention != "auto":
        try:
            model.encoder.set_attn_implementation(recipe.attention)
        except (ValueError, ImportError) as error:
            raise UserError(f"`--attention {recipe.attention}` does not work here: {error}") from None
    return model


def make_processor(recipe: AudioEncoderArguments, model: SSLPreTrainedModel) -> Any:
    """The feature extractor that goes with the encoder: that of the checkpoint that is continued, else the stock one.

    Raises:
        UserError: where that of a checkpoint is for another rate.
    """
    if recipe.base_model is None:
        return build_feature_extractor(model.encoder.config)
    try:
        processor = AutoFeatureExtractor.from_pretrained(recipe.base_model)
    except (OSError, ValueError) as error:
        raise UserError(
            f"`--encoder {recipe.base_model}` has no feature extractor beside it ({first_line(error)}). Save the one "
            "it was trained with there: `extractor.save_pretrained(folder)`."
        ) from error
    if processor.sampling_rate != SAMPLING_RATE:
        raise UserError(
            f"`--encoder {recipe.base_model}` takes {processor.sampling_rate:,} samples a second, and recordings are "
            f"resampled to {SAMPLING_RATE:,} here. Choose another encoder."
        )
    return processor
