"""What is known of a method, declared once beside its code: plain data and pure functions.

Recipes, `show_views`, health, benchmarks and the card read it. So a new method is its file, one line of registration,
a recipe with its yamls, tests and a row of results.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from ..errors import UserError
from ..functional.views import ViewPreset
from .trial import layout


# Encoders up to this width are narrow: they want higher rates.
NARROW_WIDTH = 256
# Encoders below this width get narrow heads.
NARROW_HEAD_WIDTH = 384

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rates that a recipe takes where none was given.

    Args:
        narrow, wide (`float`):
            With Adam, for encoders from scratch up to 256 wide, and for wider ones.
        checkpoint (`float`):
            With Adam, for a checkpoint that is continued.
        lars (`float`, *optional*):
            With LARS.
        sgd (`float`, *optional*):
            With SGD and a momentum of 0.9.
        narrow_convolutional (`float`, *optional*):
            Instead of `narrow` for convolutional encoders, whose batch norm bears more than a Vision Transformer does.
        per_256_samples (`bool`, *optional*, defaults to `True`):
            Whether they are those of 256 samples a step and grow with the batch, as papers on images state them.
    """

    narrow: float
    wide: float
    checkpoint: float
    lars: float | None = None
    sgd: float | None = None
    narrow_convolutional: float | None = None
    per_256_samples: bool = True

    def choose(self, optimizer: str, width: int, from_scratch: bool, is_convolutional: bool = False) -> float:
        """The rate for an optimizer (`--optim`) and an encoder."""
        if optimizer == "lars" and self.lars is not None:
            return self.lars
        if optimizer == "sgd" and self.sgd is not None:
            return self.sgd
        if optimizer in ("lars", "sgd"):
            raise UserError(
                f"There is no default learning rate for `--optim {optimizer}` here: those of Adam are far from what "
                "it needs. Pass `--base_learning_rate` (of 256 samples a step) or `--learning_rate`."
            )
        if not from_scratch:
            return self.checkpoint
        if width > NARROW_WIDTH:
            return self.wide
        return self.narrow_convolutional if is_convolutional and self.narrow_convolutional else self.narrow


@dataclass(frozen=True)
class BenchmarkSettings:
    """How a method is measured against another library, on both sides.

    Args:
        encoder (`str`, *optional*):
            Preset for the benchmark of speed: small ones show best what data and trainer cost.
        config (`dict`, *optional*):
            Fields of the method's config that the other side has otherwise than our recipe.
        views (`dict`, *optional*):
            Flags of its views, likewise.
        short_config, short_training (`dict`, *optional*):
            For comparisons, whose runs are shorter than those that the recipe's defaults are for: fields
            of the config, and of the training arguments.
        against (`tuple[str, ...]`, *optional*):
            The libraries that have the method.
        notes (`dict[str, str]`, *optional*):
            By library, what cannot be compared.
    """

    encoder: str | None = None
    config: Fields = field(default_factory=dict)
    views: Fields = field(default_factory=dict)
    short_config: Fields = field(default_factory=dict)
    short_training: Fields = field(default_factory=dict)
    against: tuple[str, ...] = ("lightly",)
    notes: Mapping[str, str] = field(default_factory=dict)


def _nothing(config: PreTrainedConfig) -> Fields:
    return {}


def _diverged_hint(config: PreTrainedConfig) -> dict[str, str]:
    return {
        "constant": "the learning rate is too high for this model, so that it gives one answer to everything: lower "
        "`--learning_rate`, or raise `--warmup_steps`"
    }


@dataclass(frozen=True)
class LossContext:
    """What the level of chance of a loss depends on, beside the method's config.

    Args:
        num_samples (`float`):
            Samples that are compared at once: the batch of all processes; of several batches the geometric mean.
        target_entropy (`float`, *optional*):
            Entropy (nats) of the tokens, units or codes to predict: the loss of who knows how frequent each is.
        target_variance (`float`, *optional*):
            Variance of what is reconstructed: the mean squared error of who knows its mean.
    """

    num_samples: float
    target_entropy: float | None = None
    target_variance: float | None = None

    def entropy_of(self, num_targets: int) -> float:
        """That of the targets, which is at most that of as many of equal frequency; that where it is not known."""
        most = math.log(num_targets)
        return most if self.target_entropy is None else min(self.target_entropy, most)


def no_chance(config: PreTrainedConfig, context: LossContext) -> dict[str, float]:
    """Of a loss that is as low for outputs that say nothing: there is no level to compare it with."""
    return {}


def token_chance(config: PreTrainedConfig, context: LossContext) -> dict[str, float]:
    """Of the prediction of tokens: their entropy."""
    return {} if context.target_entropy is None else {"loss": context.target_entropy}


@dataclass(frozen=True)
class Method:
    r"""
    The record of a method, its class attribute `method`.

    Args:
        title (`str`):
            What people call it.
        modality (`str`):
            Which of `hfssl/{data,evaluation,cli}/<modality>` it goes with.
        learning_rates ([`LearningRates`]):
            Where the user gives none.
        inputs (`tuple[str, ...]`, *optional*):
            Names of what a sample is made of, as `open_source(inputs=…)` takes them; the modality's own when left out.
            The recipes of today open one; a method of several says here which.
        views ([`~hfssl.functional.views.ViewPreset`], *optional*):
            Of a method for images.
        causal (`bool`, *optional*, defaults to `False`):
            Whether its encoder is a decoder: no token sees those after it.
        narrow_heads (`dict`, *optional*):
            Fields of the config where the encoder is narrower than 384, from scratch or continued.
        fresh_encoder (`Callable[[PreTrainedConfig], dict]`, *optional*):
            Fields of the config for an encoder from scratch, by its configuration.
        continued (`dict`, *optional*), continued_training (`dict`, *optional*):
            Fields of the config, and of the training arguments, where a checkpoint is continued.
        embedded_views (`dict[str, dict]`, *optional*):
            By the name of an embedded set of images, flags of the views that differ from those of other methods.
        embedded_config (`dict[str, dict]`, *optional*):
            By the name of an embedded set, fields of the config that fit it better than the paper's.
        contrasts_batch (`bool`, *optional*, defaults to `False`):
            Whether a sample is compared with the others of its batch: the loss of fewer is lower, and not comparable.
        collapse_hints (`Callable[[PreTrainedConfig], dict[str, str]]`, *optional*):
            Likely causes of a collapse and what to change, for each way in which embeddings collapse ("constant", "few
            directions"; see `hfssl.evaluation.verdict`).
        chance (`Callable[[PreTrainedConfig, LossContext], dict[str, float]]`, *optional*, defaults to `no_chance`):
            What the loss (`loss`) and each of its terms (`loss_<name>`) are when outputs say nothing of the inputs.
            What has no such level is left out.
        benchmark ([`BenchmarkSettings`], *optional*):
            `None` where nobody else has it.
    """

    title: str
    modality: str
    learning_rates: LearningRates
    inputs: tuple[str, ...] = ()
    views: ViewPreset | None = None
    causal: bool = False
    narrow_heads: Fields = field(default_factory=dict)
    fresh_encoder: Callable[[PreTrainedConfig], Fields] = _nothing
    continued: Fields = field(default_factory=dict)
    continued_training: Fields = field(default_factory=dict)
    embedded_views: Mapping[str, Fields] = field(default_factory=dict)
    embedded_config: Mapping[str, Fields] = field(default_factory=dict)
    contrasts_batch: bool = False
    collapse_hints: Callable[[PreTrainedConfig], Mapping[str, str]] = _diverged_hint
    chance: Callable[[PreTrainedConfig, LossContext], Mapping[str, float]] = no_chance
    benchmark: BenchmarkSettings | None = None

    def __post_init__(self):
        if not self.inputs:
            object.__setattr__(self, "inputs", (self.modality,))

    def fields_for(
        self,
        encoder: PreTrainedConfig | None,
        given: set[str],
        embedded: str | None = None,
        checkpoint: PreTrainedConfig | None = None,
    ) -> dict[str, Any]:
        """Fields of the method's config that fit the encoder and the data, in what the user did not give.

        Args:
            encoder (`PreTrainedConfig`, *optional*):
                `None` for a checkpoint that is continued.
            given (`set[str]`):
                Names of the fields that the user gave.
            embedded (`str`, *optional*):
                The embedded set that is trained on.
            checkpoint (`PreTrainedConfig`, *optional*):
                Of the encoder that is continued: its heads are as new as those of one from scratch.
        """
        fields: dict[str, Any] = {}
        if encoder is not None:
            fields |= self.narrow_heads if width_of(encoder) < NARROW_HEAD_WIDTH else {}
            fields |= self.fresh_encoder(encoder)
        else:
            # of a checkpoint with several encoders, and of one that does not say it, the heads are wide
            width = checkpoint and _stated_width(checkpoint)
            fields |= self.narrow_heads if width and width < NARROW_HEAD_WIDTH else {}
            fields |= self.continued
        fields |= self.embedded_config.get(embedded, {})
        return {name: value for name, value in fields.items() if name not in given}


def width_of(encoder: PreTrainedConfig) -> int:
    """Width of an encoder: of its last stage, where it has several."""
    return _stated_width(encoder) or layout(encoder).dim


def _stated_width(encoder: PreTrainedConfig) -> int | None:
    return getattr(encoder, "hidden_size", None) or getattr(encoder, "hidden_sizes", [None])[-1]
