"""What every hfssl model shares: how it meets `Trainer`, how its encoder is built, and how it is exported."""

import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from ..errors import UserError, brief
from .adapters import add_adapters, is_adapter, merge_adapters
from .depth import depths
from .method import Method
from .trial import FAILURES


# What a method leaves behind, and how it is loaded.
EXPORT_KINDS = {
    "stock": "the folder is a stock checkpoint, which plain `transformers` loads",
    "stock + extras": "beside it lie weights that no stock class has, such as projections, with the lines that load "
    "them in the card",
    "plain": "no stock class fits: model.safetensors, a json with its settings and a loader of about 20 lines in the "
    "card; no config.json, which `AutoModel` would misread",
}
# Weights that no stock class has.
EXTRAS = "extras.safetensors"
# The settings of a plain encoder, beside its weights.
PLAIN_SETTINGS = "encoder.json"


class SSLPreTrainedModel(PreTrainedModel):
    """Base of all methods: a loss around a stock `transformers` module that lies under `encoder`.

    Subclasses set `config_class` and build `self.encoder` from `config.encoder_config`. A method with several encoders
    has no `encoder`, and overrides `encoders` instead; the encoder `x` is built from `config.x_config`.
    """

    supports_gradient_checkpointing = True

    # `Trainer` reads a `**kwargs` in `forward` as "normalizes by `num_items_in_batch` itself". Methods whose loss is a
    # mean over samples do not; item-normalised ones (masked tokens, masked frames) set True and take
    # `num_items_in_batch`.
    accepts_loss_kwargs = False

    # What the model card says of the method; each method sets its own.
    paper: dict[str, str] = {}

    # Of a loss with several terms: the unit of each, such as nats, by its name. Terms of one unit are drawn together.
    # Such a method makes its output of `sum_terms`; if it counts the items of one term in `loss_items`, it counts
    # those of all (the rows of the batch, for a mean over samples). Each term is logged as `loss_<name>`.
    loss_units: dict[str, str] = {}

    # Names of what `forward` says beside the loss (`figures` of its output, numbers without gradient), such as how
    # many codes are in use. They are logged by these names, as means over the steps between two entries of the log.
    figures: tuple[str, ...] = ()

    # One of `EXPORT_KINDS`. A method that is exported as "stock + extras" says in `extras` which weights these are.
    export_kind = "stock"

    # Of a method that is exported as "plain": Python that defines `load_encoder(folder)` with torch and safetensors
    # alone, for the card.
    loader = ""

    # Of losses that train different parameters in one step, as a discriminator and what it judges: by the name of its
    # term, how the names of the parameters begin that each trains in an optimizer of its own. No trainer does so yet:
    # [`SSLTrainer`] refuses a method that has any.
    loss_groups: dict[str, tuple[str, ...]] = {}

    # How the names of parameters begin whose learning rate stays at its peak, whatever becomes of that of the others.
    constant_rate: tuple[str, ...] = ()

    # Names of parameters that stay as they are, though the loss depends on them. What it does not depend on is found.
    frozen: tuple[str, ...] = ()

    # All that is known of the method beside its code. A method that compares samples also has
    # `compared_embeddings(batch)`: what its loss compares, of shape `(batch_size, 2 views, dim)`. One that compares
    # them by something else, such as prototypes, also has `target_margin(batch)`, of shape `(batch_size,)`.
    method: ClassVar[Method]

    # Of each of `trained_encoders`, the names of the parameters that stay as the continued checkpoint has them.
    _kept: tuple[frozenset[str], ...] = ()

    encoder: PreTrainedModel

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # the file of a method says it all at its top: the idea, paper and code, departures
        if "method" in vars(cls) and cls.__doc__ is None:
            cls.__doc__ = sys.modules[cls.__module__].__doc__

    @property
    def modality(self) -> str:
        """What the encoder takes: of a method for encoders of several modalities, that of this one."""
        return self.method.modality

    @classmethod
    def check_encoder_changes(cls, changes: Mapping[str, Any]) -> None:
        """Refuse fields of an encoder's configuration that the method sets itself, so that they would be dropped.

        Args:
            changes (`dict`):
                Fields that are to be others, see [`with_changes`].

        Raises:
            UserError: naming the field, and the flag in its place if there is one.
        """
        if "drop_path_rate" in changes and hasattr(cls.config_class, "drop_path_rate"):
            raise UserError(
                f"`--encoder_config`: {cls.method.title} sets `drop_path_rate` of its encoder itself. Pass "
                "`--drop_path_rate`."
            )

    @property
    def encoders(self) -> dict[str, PreTrainedModel]:
        """The stock modules that are exported, by name: one called `encoder`, unless a method overrides this."""
        return {"encoder": self.encoder}

    def config_of(self, name: str) -> PreTrainedConfig:
        """The configuration, as it was given, of an encoder by its name."""
        return getattr(self.config, f"{name}_config")

    def extras(self) -> dict[str, torch.Tensor]:
        """Weights that no stock class has, and that are exported beside the encoders."""
        return {}

    @property
    def trained_encoders(self) -> list[PreTrainedModel]:
        """The stock modules that learn by their gradient."""
        return list(self.encoders.values())

    @property
    def followers(self) -> list[PreTrainedModel]:
        """Stock modules that are made of the same parts, and follow those that learn."""
        return []

    def __getattr__(self, name: str) -> Any:
        # asked for what there is not; `encoders` as it is here asks for `encoder` itself
        if name == "encoder" and type(self).encoders is not SSLPreTrainedModel.encoders:
            names = ", ".join(self.encoders)
            raise AttributeError(
                f"{type(self).__name__} has several encoders ({names}) and so no `encoder`. Choose one of "
                "`model.encoders`."
            )
        return super().__getattr__(name)

    def post_init(self):
        super().post_init()
        for name in self.encoders:
            # transformers would save the folder of this machine it came from: it leaves out that of the whole only
            self.config_of(name)._name_or_path = ""
        self._adapt()
        self.freeze()

    def keep_of_checkpoint(self, freeze_layers: int = 0, lora_rank: int | None = None) -> None:
        """Let parts of the encoders stay as they are: for a model that continues a checkpoint.

        The configuration remembers it, so that a model that is saved and loaded goes on the same way.

        Args:
            freeze_layers (`int`, *optional*, defaults to 0):
                So many of the first blocks, and what stands before them. Stages, where there are any, are blocks.
            lora_rank (`int`, *optional*):
                Train low-rank matrices beside those of the other blocks instead of these, see
                [`~hfssl.modeling.adapters.add_adapters`]. All else of the encoder stays as it is.

        Raises:
            UserError: where there are not so many blocks, or nothing to adapt.
        """
        then = getattr(self.config, "freeze_layers", 0), getattr(self.config, "lora_rank", None)
        if then == (freeze_layers, lora_rank):
            return
        if then != (0, None):
            raise UserError(
                f"This model was made with freeze_layers={then[0]} and lora_rank={then[1]}, and is to go on with "
                f"freeze_layers={freeze_layers} and lora_rank={lora_rank}. Make it anew from the checkpoint."
            )
        if freeze_layers:
            self.config.freeze_layers = freeze_layers
        if lora_rank is not None:
            self.config.lora_rank = lora_rank
        self._adapt()
        for follower, encoder in zip(self.followers, self.trained_encoders, strict=False):
            follower.load_state_dict(encoder.state_dict())
        self.train(self.training)

    def _adapt(self) -> None:
        first, rank = getattr(self.config, "freeze_layers", 0), getattr(self.config, "lora_rank", None)
        if not first and rank is None:
            return
        for encoder in self.trained_encoders:
            number = depths(encoder)[1]
            if not 0 <= first <= number:
                raise UserError(
                    f"`--freeze_layers {first}` is more than this {encoder.config.model_type} has: {number} blocks or "
                    f"stages. Pass {number} at most."
                )
        if rank is not None:
            for encoder in self.trained_encoders + self.followers:
                add_adapters(encoder, rank, first)
        self._kept = tuple(
            frozenset(
                name
                for name, depth in depths(encoder)[0].items()
                if (not is_adapter(name) if rank is not None else first and depth <= first)
            )
            for encoder in self.trained_encoders
        )

    def train(self, mode: bool = True):
        # `from_pretrained` makes new parameters, which all require gradients; it ends in `eval()`, and so here
        super().train(mode)
        self.freeze()
        self.hold_statistics()
        return self

    def keep_statistics(self) -> None:
        """Let all batch norms keep the statistics that they have. The configuration remembers it."""
        self.config.freeze_batch_norm = True
        self.train(self.training)

    def hold_statistics(self) -> None:
        """Let batch norms that stay as they are take the statistics of the checkpoint, and keep them."""
        if getattr(self.config, "freeze_batch_norm", False):
            for part in self.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()
        encoders = self.trained_encoders + self.followers if self._kept else []
        for encoder, kept in zip(encoders, 2 * self._kept, strict=False):
            for name, part in encoder.named_modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm) and f"{name}.weight" in kept:
                    part.eval()

    def save_pretrained(self, save_directory: str | Path, *args, save_original_format: bool = False, **kwargs):
        # the older names that transformers writes for some encoders (ViT) are unknown to `load_state_dict`, with which
        # Trainer resumes: it would pass over all of them; the exported encoder has them
        return super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)

    def freeze(self) -> None:
        """Take the parameters named in `frozen` out of the training: DDP would wait for their gradients forever."""
        for name, parameter in self.named_parameters():
            if name in self.frozen:
                parameter.requires_grad_(False)
        for encoder, kept in zip(self.trained_encoders if self._kept else (), self._kept, strict=False):
            for name, parameter in encoder.named_parameters():
                if name in kept:
                    parameter.requires_grad_(False)

    def without_adapters(self) -> "SSLPreTrainedModel":
        """This model, or, where it has adapters, a copy in which they are part of the matrices beside them."""
        if getattr(self.config, "lora_rank", None) is None:
            return self
        merged = copy.deepcopy(self)
        for encoder in merged.trained_encoders + merged.followers:
            merge_adapters(encoder)
        del merged.config.lora_rank
        merged._kept = ()
        return merged

    def loss_items(self, batch: dict[str, Any]) -> torch.Tensor | dict[str, torch.Tensor] | None:
        """How many items the loss of `batch` is a mean of: a count, or one for each term of the loss.

        Asked before the forward pass, on the batch as the collator made it. [`SSLTrainer`] adds the counts up over
        accumulation steps and processes and hands the sum to `forward` as `num_items_in_batch`, so that the gradient
        does not depend on how the batch was cut. `None`: the loss is a mean over samples.
        """
        return None

    def sum_terms(self, terms: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The loss of several terms, for the output of `forward`.

        A term `x` counts `config.x_weight` times, once where the config has no such field.

        Args:
            terms (`dict[str, torch.Tensor]` of shape `()`):
                Each a sum divided by its own count of items, or a mean over samples.

        Returns:
            `dict`: the `loss`, which is back-propagated, and the `loss_terms` by name, before their weights and
            without gradient.
        """
        loss = sum(getattr(self.config, f"{name}_weight", 1.0) * term for name, term in terms.items())
        return {"loss": loss, "loss_terms": {name: term.detach() for name, term in terms.items()}}

    def export_encoder(
        self,
        folder: str | Path,
        name: str | None = None,
        state_dict: dict[str, torch.Tensor] | None = None,
        processor: Any = None,
    ) -> None:
        """Write an encoder as a stock checkpoint that plain `transformers` loads, with its own configuration.

        A method of pairs (`modeling/pairs.py`) writes the joint stock model and each of its encoders.

        Args:
            folder (`str` or `Path`):
                Where to.
            name (`str`, *optional*):
                Which of `encoders`, where there are several.
            state_dict (`dict[str, torch.Tensor]`, *optional*):
                State of this whole model where its own parameters are sharded (FSDP, DeepSpeed).
            processor (*optional*):
                Image processor or tokenizer to write beside it: so the folder has all that is needed to use it.

        Raises:
            UserError: if there are several and none is chosen, or if the method's `export_kind` cannot be written.
        """
        model, method = self.without_adapters(), type(self).__name__
        encoders = model.encoders
        if self.export_kind not in EXPORT_KINDS:
            raise UserError(
                f"{method} is to be exported as {self.export_kind!r}, which cannot be written: only "
                f"{', '.join(map(repr, EXPORT_KINDS))} can. Save the whole method with `save_pretrained`."
            )
        if name is None and len(encoders) > 1 or name is not None and name not in encoders:
            raise UserError(
                f"{method} has the encoders {', '.join(encoders)}, and "
                f"{'none is chosen' if name is None else f'no {name!r}'}. A folder takes one of them: pass its `name`."
            )
        name = name or next(iter(encoders))
        encoder = encoders[name]
        if state_dict is not None:
            if model is not self:
                raise UserError("Adapters (`lora_rank`) cannot be merged into weights that are handed in apart.")
            prefix = next(path for path, module in self.named_modules() if module is encoder) + "."
            state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        if self.export_kind == "plain":
            write_plain_encoder(encoder, folder, state_dict)
            if processor is not None:
                processor.save_pretrained(folder)
            return
        encoder.save_pretrained(folder, state_dict=state_dict)
        # Dropout and the like may differ in pre-training; who fine-tunes gets the configuration as it was given.
        config = copy.deepcopy(self.config_of(name))
        config.architectures = [type(encoder).__name__]
        config.dtype = encoder.config.dtype
        config.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        if self.extras() and len(encoders) == 1:
            self.write_extras(folder)

    def write_extras(self, folder: str | Path) -> None:
        """Write the weights that no stock class has into a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        extras = {name: tensor.detach().cpu().contiguous() for name, tensor in self.extras().items()}
        save_file(extras, Path(folder) / EXTRAS)


def write_plain_encoder(
    encoder: PreTrainedModel, folder: str | Path, state_dict: dict[str, torch.Tensor] | None = None
) -> None:
    """Write weights and settings of an encoder that transformers has no class for, see `EXPORT_KINDS`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    state = encoder.state_dict() if state_dict is None else state_dict
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, Path(folder) / "model.safetensors")
    settings = {**encoder.config.to_diff_dict(), "encoder_type": encoder.config.model_type}
    for name in ("model_type", "architectures", "transformers_version", "dtype", "_name_or_path"):
        settings.pop(name, None)
    (Path(folder) / PLAIN_SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_encoder_config(name_or_path: str | Path) -> PreTrainedConfig:
    """The configuration of an encoder: of a stock one, or of one that [`write_plain_encoder`] wrote."""
    settings_file = Path(name_or_path) / PLAIN_SETTINGS
    if not settings_file.is_file():
        return AutoConfig.from_pretrained(name_or_path)
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    return AutoConfig.for_model(settings.pop("encoder_type"), **settings)


def load_plain_encoder(folder: str | Path) -> PreTrainedModel:
    """The encoder in a folder that [`write_plain_encoder`] wrote, in evaluation mode."""
    encoder = AutoModel.from_config(read_encoder_config(folder))
    encoder.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return encoder.eval()


def with_changes(
    config: PreTrainedConfig,
    changes: Mapping[str, Any] | None,
    name: str,
    build: Callable[[PreTrainedConfig], PreTrainedModel] | None = None,
) -> PreTrainedConfig:
    """An encoder's configuration in which some fields are others; as it is where there are none.

    Args:
        config (`PreTrainedConfig`):
            Of a preset, or of a checkpoint.
        changes (`dict`, *optional*):
            The fields, as `--encoder_config` gives them.
        name (`str`):
            Of the preset or the checkpoint.
        build (`Callable[[PreTrainedConfig], PreTrainedModel]`, *optional*):
            Makes the encoder of a configuration: of a checkpoint, whose weights have to fit the other fields.

    Raises:
        UserError: if there is no such field, it is that of a type of weights, a value is impossible, or weights would
            have other shapes.
    """
    if not changes:
        return config
    if any(field in changes for field in ("dtype", "torch_dtype")):
        raise UserError(
            "`--encoder_config`: weights are float32 in training, whatever `dtype` says. Leave it out; `--precision` "
            "says what they are computed in."
        )
    known = {*config.to_dict(), *config.attribute_map}
    unknown = [field for field in changes if field not in known and not _is_settable(config, field)]
    if unknown:
        raise UserError(f"`--encoder_config`: {name} has no field {unknown[0]!r}.")
    try:
        # made anew, so that what follows from a field follows from the new one, and each is checked
        changed = AutoConfig.for_model(**{**config.to_dict(), **changes})
        before, after = (None, None) if build is None else (_shapes(build, each) for each in (config, changed))
    except UserError:
        raise
    except (*FAILURES, ZeroDivisionError) as error:
        raise UserError(f"`--encoder_config` is no configuration of a {config.model_type}: {brief(error)}.") from error
    if before != after:
        weight = next(each for each in [*before, *after] if before.get(each) != after.get(each))
        shapes = [str(list(found[weight])) if weight in found else "none" for found in (before, after)]
        raise UserError(
            f"`--encoder_config {json.dumps(dict(changes))}` asks for other weights than {name} has: {weight} is "
            f"{shapes[0]} there and would be {shapes[1]}. Leave out what changes the shape of weights, or train from "
            "scratch."
        )
    return changed


def _is_settable(config: PreTrainedConfig, field: str) -> bool:
    """Whether it is a name, such as `rope_scaling`, by which a configuration takes what it keeps under others."""
    found = getattr(type(config), field, None)
    return isinstance(found, property) and found.fset is not None and not field.startswith("_")


def _shapes(build: Callable[[PreTrainedConfig], PreTrainedModel], config: PreTrainedConfig) -> dict[str, torch.Size]:
    """Those of the weights of an encoder."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return {name: tensor.shape for name, tensor in build(copy.deepcopy(config)).state_dict().items()}


def with_dropout(config: PreTrainedConfig, dropout: float | None) -> PreTrainedConfig:
    """A copy of an encoder's configuration with every dropout probability set to `dropout`; `None` keeps them.

    Dropout of classification heads is left alone: pre-training has none.
    """
    config = copy.deepcopy(config)
    if dropout is not None:
        for name, value in config.to_dict().items():
            is_probability = name.endswith(("dropout", "dropout_prob", "_pdrop")) and isinstance(value, int | float)
            if is_probability and "classif" not in name:
                setattr(config, name, float(dropout))
    return config


def drop_pooler(encoder: PreTrainedModel) -> PreTrainedModel:
    """Remove the pooler of BERT- and ViT-like models: it is in no loss, so DDP would wait for its gradient forever.

    Poolers without weights, such as the average of a ResNet, stay.
    """
    pooler = getattr(encoder, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        encoder.pooler = None
    return encoder


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        # not `model.train()`: a module may be kept in evaluation mode on purpose
        for module in training:
            module.training = True
