"""What the command line knows of a modality: `hfssl/cli/<modality>/__init__.py` declares it as `MODALITY`."""

import logging
import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, Protocol

from ..commands import configs_of
from ..data.modality import modality as find_modality
from ..errors import UserError
from ..machine import say_choice
from ..modeling.base import SSLPreTrainedModel
from ..training.arguments import BASE_BATCH_SIZE, SSLTrainingArguments


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CliModality:
    """What recipes need of a modality.

    Args:
        name (`str`):
            Of its folders.
        data_arguments, encoder_arguments (`type`):
            Dataclasses of the flags about data and encoder.
        presets (`dict[str, Callable]`):
            Encoders from scratch by name.
        build (`Callable`):
            See [`build_method`].
        prepare_labelled (`Callable`, *optional*):
            What is done to the labelled splits of a probe, from both and `--value_range`.
    """

    name: str
    data_arguments: type
    encoder_arguments: type
    presets: dict[str, Callable]
    build: Callable[..., SSLPreTrainedModel]
    prepare_labelled: Callable[..., None] | None = None


def cli_modality(name: str) -> CliModality:
    """The declaration of a modality, found by its name.

    Raises:
        UserError: where there is none.
    """
    try:
        return import_module(f"{__package__}.{name}").MODALITY
    except (ModuleNotFoundError, AttributeError) as error:
        raise UserError(f"Nothing is known of the modality {name!r}: hfssl/cli/{name}/ declares none.") from error


class EncoderArguments(Protocol):
    """What all flags about the encoder have."""

    modality: ClassVar[str]

    encoder: str
    attention: str

    @property
    def base_model(self) -> str | None:
        """The checkpoint to continue, `None` where the encoder is trained from scratch."""


def build_method(
    method: type[SSLPreTrainedModel],
    recipe: EncoderArguments,
    config: dict[str, Any],
    fit: Any,
    args: SSLTrainingArguments,
    given: set[str],
) -> SSLPreTrainedModel:
    """A method around a fresh encoder or a checkpoint, as its record and the user's flags say.

    Args:
        method (`type`):
            [`SimclrForPreTraining`] and the like.
        recipe ([`EncoderArguments`]):
            The flags about the encoder.
        config (`dict[str, Any]`):
            Fields of the method's config as given; `encoder_config` are overrides of the encoder's.
        fit:
            What the encoder has to fit: [`~hfssl.data.image.views.Views`], [`~hfssl.cli.text.data.TextData`] or
            [`~hfssl.cli.audio.data.AudioData`].
        args ([`~hfssl.training.arguments.SSLTrainingArguments`]):
            The run. Gets a learning rate where none was given.
        given (`set[str]`):
            Names of the flags that the user gave: these are left as they are.

    Returns:
        [`~hfssl.modeling.base.SSLPreTrainedModel`]

    Raises:
        UserError: where method, encoder and data do not fit each other.
    """
    record, kind = method.method, find_modality(recipe.modality)
    if record.contrasts_batch and args.compared_at_once < 2:
        raise UserError(
            f"{record.title} tells {kind.samples} apart by comparing those of a batch, and a batch has one here. Pass "
            "a larger `--per_device_train_batch_size`: 2 at least, better 64 or more."
        )
    changes = config.get("encoder_config") or {}
    if "model_type" not in changes:  # a whole configuration has all fields, also those that a method sets
        method.check_encoder_changes(changes)
    model = cli_modality(kind.name).build(method, recipe, dict(config), fit, args, given)
    flag = flag_that_keeps(args)
    if flag is not None and recipe.base_model is None:
        raise UserError(
            f"{flag} keeps what a checkpoint has learned, and this encoder is trained from scratch. Leave it out, or "
            "pass a Hub id or a folder as `--encoder`."
        )
    if flag is not None and getattr(fit, "new_tokens", ()):
        raise UserError(
            f"{flag} leaves the embeddings as they are, and the new words of `--extend_vocab` are to be learned "
            "there. Leave one of them out."
        )
    model.keep_of_checkpoint(args.freeze_layers, args.lora_rank)
    is_continued = recipe.base_model is not None
    fitted = fitted_to_short_runs(model, args, given, is_continued)
    if fitted and is_continued:
        # no advice: the paper's settings, its learning rate above all, are those of encoders from scratch
        _say_once(f"Fitted to short runs (in brackets the paper's, from scratch): {', '.join(fitted)}.")
    elif fitted:
        _say_once(
            f"Fitted to short runs of small encoders (in brackets the paper's): {', '.join(fitted)}. For tens of "
            f"thousands of steps take the paper's{_where_the_paper_s_are(method, kind.name)}."
        )
    return model


def flag_that_keeps(args: SSLTrainingArguments) -> str | None:
    """The flag that keeps parts of what a checkpoint has learned, as the user gave it."""
    kept = {"freeze_layers": args.freeze_layers, "lora_rank": args.lora_rank}
    return next((f"`--{name} {value}`" for name, value in kept.items() if value), None)


@cache
def _say_once(text: str) -> None:
    """What holds for all models that a run makes."""
    say_choice(logger, text)


def fitted_to_short_runs(
    model: SSLPreTrainedModel, args: SSLTrainingArguments, given: set[str], is_continued: bool = False
) -> list[str]:
    """The settings of a run that nobody stated and that are not those of the paper, in words.

    Args:
        model ([`~hfssl.modeling.base.SSLPreTrainedModel`]):
            Of which the defaults of the config are those of the paper.
        args ([`~hfssl.training.arguments.SSLTrainingArguments`]):
            The run.
        given (`set[str]`):
            Names of the flags that the user gave.
        is_continued (`bool`, *optional*, defaults to `False`):
            Whether it continues a checkpoint: what the method's record states for these is not for short runs.
    """
    continued = model.method.continued if is_continued else {}
    papers = {
        field.name: field.default
        for field in fields(model.config_class)
        if field.init and field.name not in given and field.default not in (MISSING, None)
    }
    own = {name for cls in model.config_class.__mro__ if cls.__module__.startswith("hfssl.") for name in vars(cls)}
    said = [
        f"{name} {_short(getattr(model.config, name))} ({_short(value)})"
        for name, value in papers.items()
        if name in own
        and getattr(model.config, name) != value
        and not (name in continued and getattr(model.config, name) == continued[name])
    ]
    rates = model.method.learning_rates
    share = args.global_batch_size / BASE_BATCH_SIZE if rates.per_256_samples else 1.0
    narrow = [rate * share for rate in (rates.narrow, rates.narrow_convolutional) if rate not in (None, rates.wide)]
    is_chosen = not is_continued and not given & {"learning_rate", "base_learning_rate"}
    if is_chosen and any(math.isclose(args.learning_rate, r) for r in narrow):
        # a rate that does not grow with the batch is not for a number of samples, nor are batches of seconds
        batch = f" at {args.global_batch_size} samples a step" if rates.per_256_samples else ""
        said.append(
            f"learning_rate {_short(args.learning_rate)}{batch} (of wide encoders {_short(rates.wide * share)})"
        )
    return said


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _where_the_paper_s_are(method: type[SSLPreTrainedModel], modality: str) -> str:
    """The yaml beside the recipe that runs which has the paper's settings, where there is one for this modality."""
    if modality != method.method.modality:
        return ", by their flags"
    name = method.config_class.model_type.removeprefix("hfssl_")
    large = [path for path in configs_of(name) if not path.endswith("_tiny.yaml")]
    return f": `--config {large[0]}`" if large else ", by their flags"
