"""Numbers on the command line: a modality made for tests."""

from dataclasses import dataclass
from typing import ClassVar

from transformers import PatchTSTConfig

from hfssl.cli import encoders
from hfssl.cli.modality import CliModality
from hfssl.modeling.method import width_of


@dataclass
class NumbersDataArguments:
    """Flags about numbers."""

    dataset: str | None = None


@dataclass
class NumbersEncoderArguments:
    """Flags about an encoder of numbers."""

    modality: ClassVar[str] = "numbers"
    encoder: str = "numbers-tiny"
    attention: str = "auto"
    base_model: ClassVar[str | None] = None


def _tiny():
    return PatchTSTConfig(
        num_input_channels=1, context_length=8, patch_length=4, patch_stride=4, d_model=16, num_hidden_layers=2,
        num_attention_heads=2, ffn_dim=16,
    )  # fmt: skip


PRESETS = {"numbers-tiny": _tiny}


def build(method, recipe, config, fit, args, given):
    """A method around a fresh encoder of numbers."""
    fresh = encoders.fresh_config(recipe.encoder, PRESETS, config.pop("encoder_config", None))
    config |= method.method.fields_for(fresh, given)
    rate = method.method.learning_rates.choose(args.optim, width_of(fresh), from_scratch=True)
    args.set_learning_rate(rate)
    return method(method.config_class(encoder_config=fresh, **config))


MODALITY = CliModality("numbers", NumbersDataArguments, NumbersEncoderArguments, PRESETS, build)
