"""Probes by name: the table at the end of a recipe."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from ..commands import as_typed
from ..data.modality import modality as find_modality
from ..data.seen import num_seen
from ..machine import process_state
from .audio.ctc import CtcEvaluator
from .encoder_folder import trained_pooling
from .evaluator import EvaluationError, Evaluator
from .few_shot import FewShotEvaluator
from .finetune import FinetuneEvaluator, FinetuneSettings
from .frozen import FrozenEvaluator, features_of
from .groups import group_lines, group_tables
from .image.attentive import AttentiveEvaluator
from .image.patches import PatchesEvaluator
from .knn import KnnEvaluator
from .label_efficiency import LabelEfficiencyEvaluator
from .layers import LayersEvaluator
from .linear_probe import LinearProbeEvaluator
from .modality import evaluation_modality
from .payoff import payoff_line
from .probe_features import BEFORE, ENCODER, MAJORITY, RANDOM_INIT, RAW_INPUT, STATISTICS
from .results import Result, aligned, format_table, write_results
from .usefulness import change_line, usefulness_line


if TYPE_CHECKING:
    from ..data.labelled import LabelledData

logger = logging.getLogger(__name__)

PROTOCOLS: dict[str, type[Evaluator]] = {
    "knn": KnnEvaluator,
    "linear": LinearProbeEvaluator,
    "few_shot": FewShotEvaluator,
    "layers": LayersEvaluator,
    "label_efficiency": LabelEfficiencyEvaluator,
    "finetune": FinetuneEvaluator,
    "ctc": CtcEvaluator,
    "attentive": AttentiveEvaluator,
    "patches": PatchesEvaluator,
}
# Those that need no pooled features: they train whole encoders, or look at patches.
_WITHOUT_FEATURES = (FinetuneEvaluator, CtcEvaluator, AttentiveEvaluator, PatchesEvaluator)


def parse_protocols(text: str | Sequence[str]) -> list[str]:
    """Names of protocols from `"a,b,c"`, or from a sequence of them."""
    names = text.split(",") if isinstance(text, str) else text
    names = [name.strip().lower().replace("-", "_") for name in names if name.strip()]
    for name in names:
        if name not in PROTOCOLS:
            nearest = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0.5)
            hint = f' Did you mean "{nearest[0]}"?' if nearest else ""
            raise EvaluationError(f'There is no protocol "{name}"; there are {", ".join(PROTOCOLS)}.{hint}')
    if not names:
        raise EvaluationError(f"No protocol is named; there are {', '.join(PROTOCOLS)}.")
    return list(dict.fromkeys(names))


def parse_task(task: str, modality: str) -> str:
    """The protocol of a task of fine-tuning.

    Raises:
        EvaluationError: where it is none for such an encoder.
    """
    tasks = evaluation_modality(modality).tasks
    if task not in tasks:
        raise EvaluationError(
            f"`--task {task}` is nothing to train an encoder of {find_modality(modality).samples} for: there is "
            f"{' or '.join(tasks)}."
        )
    return tasks[task]


def probe_table(
    encoder: str | Path | PreTrainedModel,
    processor: Any,
    train: "LabelledData",
    test: "LabelledData",
    protocols: str | Sequence[str] = ("knn", "linear"),
    *,
    output_dir: str | Path | None = None,
    pooling: str | None = None,
    batch_size: int = 256,
    precision: str = "fp32",
    settings: FinetuneSettings | None = None,
    pictures: bool = True,
    name: str | None = None,
    command: str | None = None,
    before: str | Path | PreTrainedModel | None = None,
    beside: Mapping[str, str | Path] | None = None,
    beside_pooling: str | None = None,
    patch_image_size: int | None = None,
) -> list[Result]:
    r"""
    Measure an encoder by several protocols beside its baselines, and print a table.

    Args:
        encoder (`str`, `Path` or [`~transformers.PreTrainedModel`]):
            Folder or Hub id of a stock encoder, or a model.
        processor (*optional*):
            Image processor, feature extractor or tokenizer; that of the folder when `None`.
        train, test ([`~hfssl.data.labelled.LabelledData`]):
            Labelled samples to learn from and to measure on.
        protocols (`str` or `Sequence[str]`, *optional*, defaults to `("knn", "linear")`):
            knn, linear, few_shot, layers (of recordings), label_efficiency, finetune, attentive (of images),
            patches (of images with masks).
        output_dir (`str` or `Path`, *optional*):
            Folder for `results.json`, for pictures in `assets/` and for features in `features/`.
        pooling (`str`, *optional*):
            Of images cls, mean, cls+mean or last4, of texts mean, cls or last, of recordings mean or cls; what fits
            the encoder when left out.
        batch_size (`int`, *optional*, defaults to `256`):
            Images, recordings (fewer of long ones), or windows of text, a forward pass.
        precision (`str`, *optional*, defaults to `"fp32"`):
            Autocast to bf16 or not.
        settings ([`FinetuneSettings`], *optional*):
            Of protocols that train.
        pictures (`bool`, *optional*, defaults to `True`):
            Draw nearest neighbours, a map of the features and what the patches tell apart.
        name (`str`, *optional*):
            Name of the encoder in the records, where it is not its folder.
        command (`str`, *optional*):
            The command to write beside the figures; that of this process when left out.
        before (`str`, `Path` or [`~transformers.PreTrainedModel`], *optional*):
            What the encoder was before it was trained further: probes of its frozen features stand beside.
        beside (`Mapping[str, str | Path]`, *optional*):
            Folders or Hub ids of other encoders of such samples, by the heads of their columns ([`columns_of`]): they
            stand beside likewise, and by their patches.
        beside_pooling (`str`, *optional*):
            Pooling of all of these; that with which each was trained, or which fits it, when left out.
        patch_image_size (`int`, *optional*):
            Height and width at which the protocol patches shows images to the encoder.

    Returns:
        `list[Result]`: the same in all processes.
    """
    names = parse_protocols(protocols)
    state = process_state()
    if isinstance(encoder, (str, Path)) and state.is_main_process:
        warn_of_seen(encoder, test.samples, f"{find_modality(test.modality).samples} of {test.name}")
    output_dir = Path(output_dir) if output_dir is not None else None
    settings = settings or FinetuneSettings()
    others = ({} if before is None else {BEFORE: before}) | dict(beside or {})
    made = {}
    # all of them at once: what is wrong shows before hours of work, not after
    for protocol in names:
        kind = PROTOCOLS[protocol]
        options = {
            "pooling": pooling, "batch_size": batch_size, "precision": precision, "settings": settings,
            "image_size": patch_image_size, "beside": others,
        }  # fmt: skip
        made[protocol] = kind(
            train, test, **{each.name: options[each.name] for each in fields(kind) if each.name in options}
        )
    features = None
    if not all(PROTOCOLS[protocol] in _WITHOUT_FEATURES for protocol in names):
        options = {
            "pooling": pooling, "batch_size": batch_size, "precision": precision,
            "cache_dir": output_dir / "features" if output_dir is not None else None,
        }  # fmt: skip
        features = features_of(train)(encoder, processor, train, test, **options)
        features.model = name or features.model
        for column, other in others.items():
            is_folder = isinstance(other, (str, Path))
            if column in (beside or {}):  # `before` is compared by what it has become
                options["pooling"] = beside_pooling or (trained_pooling(str(other)) if is_folder else None)
            of_other = features_of(train)(other, None if is_folder else processor, train, test, **options)
            if of_other.settings["pooling"] != features.settings["pooling"]:
                logger.info("%s: pooling %s.", column, of_other.settings["pooling"])
            features.train[column], features.test[column] = of_other.train[ENCODER], of_other.test[ENCODER]
    results: list[Result] = []
    for evaluator in made.values():
        if isinstance(evaluator, FrozenEvaluator):
            found = evaluator.results(features, command)
            if pictures and output_dir is not None and state.is_main_process:
                evaluator.draw(found, output_dir / "assets")
        else:
            options = {"features": features} if isinstance(evaluator, LabelEfficiencyEvaluator) else {}
            found = evaluator(encoder, processor, output_dir=output_dir, command=command, name=name, **options)
        results += found
        if output_dir is not None and state.is_main_process:
            write_results(output_dir / "results.json", found)
    draw_pictures = evaluation_modality(train.modality).draw_pictures
    pictures = pictures and train.labels.ndim == 1  # they show classes
    if pictures and draw_pictures and features is not None and output_dir is not None and state.is_main_process:
        draw_pictures(encoder, processor, train, test, features, output_dir / "assets")
    pooling = features.settings["pooling"] if features else None
    state.print("\n" + as_typed(probe_lines(results, pooling, find_modality(train.modality).samples)))
    state.wait_for_everyone()
    return results


def columns_of(encoders: Sequence[str]) -> dict[str, str]:
    """Encoders by the heads of their columns: the last part of a path, or the whole where two end alike."""
    last = [Path(each).name for each in encoders]
    taken = (ENCODER, RANDOM_INIT, RAW_INPUT, MAJORITY, STATISTICS, BEFORE)
    return {
        each if last.count(name) > 1 or name in taken else name: each
        for name, each in zip(last, encoders, strict=True)
    }


def warn_of_seen(encoder: str | Path, samples: Sequence, what: str, flag: str = "--test_split") -> None:
    """Say where an encoder was trained on samples that it is measured on; `what` they are, such as images of birds."""
    number = num_seen(encoder, samples)
    if number:
        logger.warning(
            "At least %s of the %s %s are among those that this encoder was trained on: figures on them are better "
            "than on new ones. Measure on others (`%s`), or train without these.",
            f"{number:,}", f"{len(samples):,}", what, flag,
        )  # fmt: skip


def probe_lines(results: Sequence[Result], pooling: str | None = None, samples: str = "images") -> str:
    """The table of some probes: a line for each figure, with what sets it apart."""
    head = f"Probes on {results[0].task}, {results[0].num_eval:,} {samples}"
    rows = [replace(result, task=title_of(result)) for result in results]
    precision = results[0].hyperparameters.get("precision", "fp32")
    if pooling:
        head += f", pooling {pooling}" + (f", features in {precision}" if precision != "fp32" else "")
    said = filter(None, (usefulness_line(results), change_line(results), payoff_line(results)))
    by_group = [f"{title}\n{aligned([columns, *cells])}" for title, columns, cells in group_tables(results)]
    return "\n\n".join([head, format_table(rows), *said, *by_group, *group_lines(results)])


def title_of(result: Result) -> str:
    """What a figure is called in a table, by its protocol and by what sets it apart from others of it."""
    chosen = result.hyperparameters
    if result.protocol not in PROTOCOLS:
        return result.protocol.replace("_", " ")
    title = PROTOCOLS[result.protocol].title + (f" by {chosen['group_column']}" if "group_column" in chosen else "")
    if result.protocol == "label_efficiency":
        return f"{chosen['method']}, {100 * chosen['fraction']:g} % of labels"
    if result.protocol == "layers":
        layer = chosen["layer"]
        return f"{title}, {layer}" if isinstance(layer, str) else f"{title}, layer {layer}"
    if result.protocol == "patches":
        return chosen["probe"] + (f", k = {chosen['k']}" if "k" in chosen else "") + " (patches)"
    if "k" in chosen:
        return f"{title}, k = {chosen['k']}" + (" (all)" if "neighbours" in result.details else "")
    return title + (f", {chosen['shots']} a class" if "shots" in chosen else "")
