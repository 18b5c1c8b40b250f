"""What `--encoder` may be, for every modality: a preset, a config file, or a checkpoint to continue."""

import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from ..errors import UserError, brief
from ..modeling.base import read_encoder_config, with_changes


Presets = Mapping[str, Callable[[], PreTrainedConfig]]


def check_modality(stated: str, parsed: str) -> None:
    """Refuse a modality that is stated where the flags of another one are parsed already.

    Raises:
        UserError: if they differ, or there is no such modality.
    """
    if stated not in ("image", "audio"):
        raise UserError(f"`--modality` is image or audio, got {stated!r}.")
    if stated != parsed:
        raise UserError(
            f"`modality: {stated}` decides which flags there are, so a yaml cannot choose it: pass `--modality "
            f"{stated}` beside `--config`."
        )


def is_checkpoint(encoder: str, presets: Presets) -> bool:
    """Whether `--encoder` names a checkpoint to continue, not something to train from scratch."""
    return encoder not in presets and not encoder.endswith(".json")


def preset_name(encoder: str, presets: Presets) -> str:
    """The preset that is written with the same letters and digits, such as resnet-18 for ResNet18; else as it is."""
    if encoder in presets or Path(encoder).exists():
        return encoder
    known = {_letters(name): name for name in presets}
    return known.get(_letters(encoder), encoder)


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def fresh_config(
    encoder: str, presets: Presets, overrides: Mapping[str, Any] | None = None, such_as: str = "bert"
) -> PreTrainedConfig | None:
    """The configuration to train from scratch that `--encoder` names.

    Args:
        encoder (`str`):
            A preset, or the path of a config file. Anything else is a checkpoint to continue: `None` is returned, see
            [`checkpoint_config`].
        presets (`dict[str, Callable[[], PreTrainedConfig]]`):
            What may be named.
        overrides (`dict`, *optional*):
            `--encoder_config`: a whole configuration with `model_type`, instead of `encoder`, or fields that differ
            from the preset's or the file's.
        such_as (`str`, *optional*, defaults to `"bert"`):
            A `model_type` as an example in messages.

    Raises:
        UserError: where there is no such configuration, or a whole one beside a checkpoint.
    """
    overrides = dict(overrides or {})
    if "model_type" in overrides:
        if is_checkpoint(encoder, presets):
            raise UserError(
                f"`--encoder {encoder}` names a checkpoint to continue, and an `--encoder_config` with a `model_type` "
                f"({overrides['model_type']}) is a whole encoder from scratch. Pass one of them. To change fields of "
                "the checkpoint's configuration, leave `model_type` out."
            )
        return config_of(overrides, "--encoder_config", such_as)
    if encoder in presets:
        return with_changes(presets[encoder](), overrides, encoder)
    if encoder.endswith(".json"):
        try:
            fields = {**json.loads(Path(encoder).read_text(encoding="utf-8")), **overrides}
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"`--encoder {encoder}` is no configuration as a JSON file ({brief(error)}).") from error
        return config_of(fields, f"--encoder {encoder}", such_as)
    return None


def config_of(fields: Mapping[str, Any], flag: str, such_as: str = "bert") -> PreTrainedConfig:
    """The configuration with these fields, `model_type` among them; `flag` is where they come from.

    Raises:
        UserError: where there is none.
    """
    model_type = fields.get("model_type")
    if model_type not in CONFIG_MAPPING:
        nearest = difflib.get_close_matches(str(model_type), list(CONFIG_MAPPING), n=1)
        raise UserError(
            f"`{flag}` needs a `model_type` that transformers knows, such as {such_as}, got {model_type!r}."
            + (f" Did you mean {nearest[0]}?" if nearest else "")
        )
    try:
        return AutoConfig.for_model(**fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"`{flag}` is no configuration of a {model_type}: {brief(error)}.") from error


def checkpoint_config(
    encoder: str, presets: Presets, kind: str, overrides: Mapping[str, Any] | None = None
) -> PreTrainedConfig:
    """The configuration of a checkpoint, with the fields in `overrides` (`--encoder_config`) as they are there; the
    other arguments are those of [`no_encoder`]. Whether the weights fit it, `from_encoder` of a method says.

    Raises:
        UserError: where there is none, or no such field.
    """
    try:
        config = read_encoder_config(encoder)
    except Exception as error:  # a damaged or foreign file shows itself in many ways
        raise no_encoder(encoder, presets, kind, error) from error
    return with_changes(config, overrides, encoder)


def no_encoder(encoder: str, presets: Presets, kind: str, error: Exception) -> UserError:
    """The error of an `--encoder` that nothing can be made of; `kind` is what it should be, such as "an encoder"."""
    nearest = difflib.get_close_matches(encoder, presets, n=1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    return UserError(
        f"`--encoder {encoder}` is neither a preset ({', '.join(presets)}), nor a folder with a checkpoint of {kind}, "
        f"nor one that the Hub gave: {brief(error)}.{hint} Without a network, download it first and pass the folder."
    )
