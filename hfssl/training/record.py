"""What a run leaves behind for those who tell of it: the card, the report, a comparison of several runs."""

import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig, TrainingArguments

from ..data.mixtures import parts_of
from ..evaluation.results import command_line, commit, versions
from ..machine import choices, fit_to_leave
from ..modeling.base import SSLPreTrainedModel
from ..report.record import thinned
from .arguments import SSLTrainingArguments
from .cost import device_name
from .settings import IDENTITY


if TYPE_CHECKING:
    from .trainer import SSLTrainer

# Of the arguments of a run what says where it ran, who may push its result, or what is told elsewhere.
_NOT_TOLD = re.compile(r"hub_|push_|.*(_dir|_token|_id|_name)$|report_to$|project$|resume$")


@dataclass
class RunRecord:
    r"""
    A run as its result folder tells it. [`record_of`] makes one.

    Args:
        model ([`SSLPreTrainedModel`]):
            The method, not wrapped.
        args ([`SSLTrainingArguments`]):
            Of the run.
        processor:
            Tokenizer, image processor or feature extractor that goes with the encoder.
        history (`list[dict[str, Any]]`):
            The log of the run.
        step (`int`):
            Optimizer steps that are done.
        counts (`dict[str, int]`, *optional*):
            What all processes have seen of the stream, see [`~hfssl.data.stream.ExactStream`].
        unit (`str`, *optional*):
            What `counts["units"]` counts, such as tokens or images.
        passes (`dict[str, float]`, *optional*):
            How often each source has been gone through.
        command (`str`, *optional*):
            The command of the run, without secrets.
        settings (`dict[str, Any]`, *optional*):
            What else makes this run this run: data, views, tokenizer.
        identity (`dict[str, Any]`, *optional*):
            From [`identity_of`].
        cost (`dict[str, float]`, *optional*):
            See [`~hfssl.training.cost.Cost.so_far`].
        device (`str`, *optional*):
            What it ran on.
        left_out (`int`, *optional*):
            Samples of the data that were never trained on, since something is measured on them.
        hub_data (`list[dict[str, str]]`, *optional*):
            The data sets of the Hub among the data, see [`~hfssl.data.sources.Source`].
    """

    model: SSLPreTrainedModel
    args: SSLTrainingArguments
    processor: Any
    history: list[dict[str, Any]]
    step: int
    counts: dict[str, int] = field(default_factory=dict)
    unit: str = ""
    passes: dict[str, float] = field(default_factory=dict)
    command: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    device: str = ""
    left_out: int = 0
    hub_data: list[dict[str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What the result is called: its id on the Hub, else its folder."""
        return self.args.hub_model_id or Path(self.args.output_dir).name

    def as_json(
        self,
        *,
        examples: Sequence[dict[str, Any]] = (),
        data: str | None = None,
        base_model: str | None = None,
        usage: str | None = None,
        pipeline_tag: str | None = None,
        pictures: Sequence[tuple[Path, str]] = (),
        contrasted: tuple[int, int] | None = None,
    ) -> dict[str, Any]:
        """What stays in the result folder, and may leave this machine: all that card and report tell of a run.

        Args:
            examples (`Sequence[dict]`, *optional*):
                From [`~hfssl.evaluation.masked_tokens.fill_mask_examples`] or
                [`~hfssl.evaluation.next_tokens.continuations`].
            data (`str`, *optional*):
                What the model was trained on, in words.
            base_model (`str`, *optional*):
                The checkpoint that the run continued.
            usage (`str`, *optional*):
                Python lines that load the model.
            pipeline_tag (`str`, *optional*):
                Task on the Hub, such as fill-mask.
            pictures (`Sequence[tuple[Path, str]]`, *optional*):
                What lies in `assets/` under the names of these files, with what it shows; the card has the pictures.
            contrasted (`tuple[int, int]`, *optional*):
                Samples that are contrasted at once in training and of those held out, where a loss depends on it.
        """
        model, args = self.model, self.args
        data_settings = {
            name: _as_typed(value) if _can_be_read(value) else str(value) for name, value in self.settings.items()
        }
        told = {
            "name": self.name, "method": model.config.model_type.removeprefix("hfssl_"),
            "title": model.method.title, "class": type(model).__name__, "paper": dict(model.paper),
            "modality": model.modality,
            "architecture": [type(encoder).__name__ for encoder in model.encoders.values()],
            "parameters": sum(encoder.num_parameters() for encoder in model.encoders.values()),
            "loads": model.export_kind, "usage": usage or model.loader, "pipeline_tag": pipeline_tag,
            "base_model": base_model, "base_model_is_local": base_model is not None and Path(base_model).exists(),
            "license": args.hub_license, "language": args.hub_language,
            "data": data, "hub_data": self.hub_data, "left_out": self.left_out,
            "seen": self.counts, "unit": self.unit, "passes": self.passes, "step": self.step,
            "processes": args.world_size, "device": self.device, "cost": self.cost,
            "command": self.command, "commit": commit(), "versions": versions(), "choices": choices(),
            "settings": {"run": _plain(args), "method": _plain(model.config), "data": data_settings},
            "identity": self.identity,
            "changed": _changed(args) + _changed(model.config), "batch": args.global_batch_size,
            "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
            "loss_units": dict(model.loss_units), "contrasted": contrasted, "examples": list(examples),
            "pictures": [[path.name, caption] for path, caption in pictures if path.suffix == ".png"],
        }  # fmt: skip
        return fit_to_leave(told) | {"history": thinned(self.history)}  # which names no folder, and is long


def record_of(trainer: "SSLTrainer") -> RunRecord:
    """What there is to tell of a run so far."""
    stream = trainer.stream
    parts = [] if stream is None else parts_of(stream.source)
    return RunRecord(
        model=trainer.accelerator.unwrap_model(trainer.model),
        args=trainer.args,
        processor=trainer.processing_class,
        history=trainer.state.log_history,
        step=trainer.state.global_step,
        counts={} if stream is None else stream.run_counts,
        unit="" if stream is None else stream.unit,
        passes={} if stream is None else stream.passes,
        command=command_line(),
        settings=trainer.extra_settings,
        identity=identity_of(trainer),
        cost=trainer.cost.so_far(),
        device=device_name(trainer.args.device),
        left_out=0 if stream is None else len(stream.exclude),
        hub_data=[part.source.hub for part in parts if part.source.hub],
    )


def identity_of(trainer: "SSLTrainer") -> dict[str, Any]:
    """What a record keeps to tell whether a command would make the same result: the settings that a resume compares,
    and what a stream in a checkpoint is compared by. It may leave this machine: local data are known by their digest.
    """
    layout = {} if trainer.stream is None else trainer.stream.layout()
    identity = {**trainer.settings, **layout, "world_size": trainer.args.world_size}
    # where a checkpoint was that is continued says nothing of its weights
    named = {name: value for name, value in identity.items() if not name.endswith("_name_or_path")}
    return fit_to_leave({name: _as_typed(value) for name, value in named.items() if value is not None})


def _plain(settings: Any) -> dict[str, Any]:
    """The fields of arguments, or those that a method declares, so far as they can be read in a table."""
    is_config, found = isinstance(settings, PreTrainedConfig), {}
    others = {each.name for each in fields(PreTrainedConfig if is_config else TrainingArguments)}
    # of transformers' arguments those that `--help` shows and that make a run this run: the others are of the machine
    others -= set() if is_config else {*settings._help_fields, *IDENTITY}
    for each in fields(settings):
        value = _value(getattr(settings, each.name, None))
        is_told = each.name not in others and value is not None and (is_config or not _NOT_TOLD.match(each.name))
        if is_told and not each.name.startswith("_") and _can_be_read(value):
            found[each.name] = list(value) if isinstance(value, tuple) else _as_typed(value)
    return found


def _changed(settings: Any) -> list[str]:
    """Which of these fields are not as they are by default."""
    told, found = _plain(settings), []
    for each in fields(settings):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        default = list(default) if isinstance(default, tuple) else _value(default)
        # one that was left out may have become a plain no
        is_other = each.name in told and (told[each.name] or default) and told[each.name] != default
        if is_other and default is not MISSING:
            found.append(each.name)
    return found


def _value(value: Any) -> Any:
    return getattr(value, "value", value)  # of an enumeration


def _as_typed(value: Any) -> Any:
    """A setting that may leave this machine: it may be a path, or several with commas between, with spaces in them."""
    if not isinstance(value, str):
        return value
    return ",".join(fit_to_leave(f"'{part}'")[1:-1] for part in value.split(","))


def _can_be_read(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(each, str | int | float) for each in value)
    return value is None or isinstance(value, str | int | float)
