"""`--views auto`: views that fit the labels at hand, found by short runs that change one kind of view at a time."""

import copy
import logging
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ...data.image.views import ViewArguments, Views
from ...data.labelled import LabelledData, hold_out
from ...data.sources import identity
from ...errors import UserError
from ...evaluation.online_knn import OnlineKnn
from ...evaluation.results import read_json, write_json
from ...modeling.image_processing import build_image_processor
from ...modeling.vision import SSLVisionModel
from ...training.arguments import SSLTrainingArguments
from ...training.trainer import SSLTrainer
from ..modality import build_method
from .data import ImageData
from .encoders import VisionEncoderArguments, make_views
from .probes import ImageProbeArguments


logger = logging.getLogger(__name__)

# In the output folder: what was chosen, so that a run that goes on has the same views.
CHOSEN = "views.json"
# Of the run, and at least and at most so many steps.
SHARE, LEAST, MOST = 0.1, 50, 300


@dataclass(frozen=True)
class Variant:
    """One other way to make views.

    Args:
        kind (`str`):
            Of the variants of a kind one is taken at most.
        words (`str`):
            What it does.
        flags (`dict[str, Any]`):
            Fields of [`~hfssl.data.image.views.ViewArguments`].
    """

    kind: str
    words: str
    flags: dict[str, Any]


def variants_of(views: Views, given: set[str]) -> list[Variant]:
    """What is worth a try beside some views: only what changes them, and nothing that the user has stated."""
    view = views.views[0]
    light = view.jitter if view.jitter_probability else (0.0, 0.0, 0.0, 0.0)
    kept = {"jitter": (*light[:2], 0.0, 0.0), "grey_probability": 0.0}
    found = []
    has_colors = bool(views.colors) and not views.is_grey
    if has_colors and (any(light[2:]) or view.grey_probability):
        found.append(Variant("colours", "colours kept", kept))
    if has_colors and view.grey_probability < 1.0:
        found.append(Variant("colours", "all grey", kept | {"grey_probability": 1.0}))
    if view.scale[0] < 0.5:
        found.append(Variant("crops", "larger crops", {"crop_scale": (0.5, 1.0)}))
    if view.flip_probability:
        found.append(Variant("flips", "nothing mirrored", {"flip_probability": 0.0}))
    return [variant for variant in found if not given & set(variant.flags)]


def choose_variants(
    variants: list[Variant], accuracy: Callable[[Variant | None], float], num_test: int
) -> tuple[list[Variant], dict[str, float]]:
    """Of each kind the best variant, if it is better than the usual views by more than a standard error.

    Args:
        variants (`list[Variant]`):
            To try.
        accuracy (`Callable`):
            What comes of one of them, or of the usual views (`None`).
        num_test (`int`):
            Samples that the accuracy is a share of.

    Returns:
        `tuple`: what to take, and all figures by the words of the variants.
    """
    usual = accuracy(None)
    figures = {"as usual": usual} | {variant.words: accuracy(variant) for variant in variants}
    certain = math.sqrt(2 * max(usual * (1 - usual), 1e-4) / num_test)
    best: dict[str, Variant] = {}
    for variant in variants:
        rival = best.get(variant.kind)
        if figures[variant.words] > max(usual + certain, figures[rival.words] if rival else 0.0):
            best[variant.kind] = variant
    return list(best.values()), figures


def fit_views(
    method: type[SSLVisionModel],
    recipe: VisionEncoderArguments,
    config: dict[str, Any],
    data: ImageData,
    arguments: ViewArguments,
    probes: ImageProbeArguments,
    args: SSLTrainingArguments,
    given: set[str],
) -> ViewArguments:
    """The views of a run: as the user and the method have them, or, with `--views auto`, as they fit the labels.

    Args:
        method, recipe, config, data, arguments, probes, args:
            As the recipe has them.
        given (`set[str]`):
            Names of the flags that the user gave; those that are chosen join them.

    Raises:
        UserError: with `--views auto` where there are no labels.
    """
    if probes.views != "auto":
        return arguments
    path, known = Path(args.output_dir) / CHOSEN, _settings(method, recipe, data, probes, args, given)
    # what the main process has: others may have another disk, and figures of theirs may differ in the last bits
    (kept,) = broadcast_object_list([read_json(path, default={})])
    if kept.get("settings") != known:
        labelled = probes.load(data.arguments.dataset)
        if labelled is None:
            raise UserError(
                "`--views auto` chooses views by labels, and there are none: name labelled images as "
                "`--probe_dataset`, or leave it out."
            )
        chosen, figures = _try_all(method, recipe, config, data, arguments, probes, args, given, *labelled)
        kept = {
            "settings": known, "chosen": [each.words for each in chosen], "figures": figures,
            "flags": {name: value for each in chosen for name, value in each.flags.items()},
        }  # fmt: skip
        (kept,) = broadcast_object_list([kept])
        if args.process_index == 0:
            write_json(path, kept)
    flags = {name: tuple(value) if isinstance(value, list) else value for name, value in kept["flags"].items()}
    words = ", ".join(f"{name} {value:.3f}" for name, value in kept["figures"].items())
    logger.info(
        "Views: %s, of k-NN accuracies after short runs: %s.%s", " and ".join(kept["chosen"]) or "as usual", words,
        f" The same by hand: {_as_typed(flags)}." if flags else "",
    )  # fmt: skip
    given |= set(flags)
    return replace(arguments, **flags)


def _try_all(
    method: type[SSLVisionModel],
    recipe: VisionEncoderArguments,
    config: dict[str, Any],
    data: ImageData,
    arguments: ViewArguments,
    probes: ImageProbeArguments,
    args: SSLTrainingArguments,
    given: set[str],
    train: LabelledData,
    test: LabelledData,
) -> tuple[list[Variant], dict[str, float]]:
    recipe = copy.copy(recipe)  # an encoder that is left to choose is chosen once more for the run itself
    # not by what the run is measured on in the end
    learn, choose = hold_out(train)
    usual = make_views(method, recipe, config, data, arguments, given)
    variants = variants_of(usual, given)
    processor = build_image_processor(usual.image_size, usual.mean, usual.std, usual.value_range)
    # the encoder that was chosen, for all of them
    arguments, given = replace(arguments, image_size=usual.image_size), given | {"image_size"}
    short = _short(args)
    logger.info(
        "`--views auto`: %d runs of %s each, to choose views.", len(variants) + 1,
        f"{short.budget_minutes:.2g} minutes"
        if short.budget_minutes
        else f"{short.epochs:.2g} passes"
        if short.epochs
        else f"{short.max_steps} steps",
    )  # fmt: skip
    knn: list[OnlineKnn] = []

    def accuracy(variant: Variant | None) -> float:
        flags = variant.flags if variant is not None else {}
        views = make_views(method, recipe, config, data, replace(arguments, **flags), given | set(flags))
        with tempfile.TemporaryDirectory() as folder:
            here = copy.deepcopy(short)
            here.output_dir = folder
            model = build_method(method, recipe, config, views, here, given)
            pooling = probes.probe_pooling or getattr(model.config, "pooling", None)
            knn[:] = knn or [OnlineKnn(learn, choose, processor, pooling=pooling)]
            stream = data.stream(here, views)
            stream.leave_out(frozenset(map(identity, [*choose.images, *test.images])))
            trainer = SSLTrainer(model, here, stream, processing_class=processor)
            trainer.train()
            [found] = knn[0].measure(trainer.accelerator.unwrap_model(trainer.model)).values()
        logger.info("%s: k-NN accuracy %.3f", variant.words if variant else "as usual", found)
        return found

    return choose_variants(variants, accuracy, len(choose))


def _short(args: SSLTrainingArguments) -> SSLTrainingArguments:
    """A run of a tenth of the length that leaves nothing behind."""
    short = copy.deepcopy(args)
    if short.budget_minutes is not None:
        short.budget_minutes *= SHARE
    elif short.epochs is not None:
        short.epochs *= SHARE
    else:
        short.max_steps = min(max(int(SHARE * args.max_steps), LEAST), MOST, args.max_steps)
    short.eval_strategy, short.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    short.do_eval, short.report_to, short.push_to_hub = False, [], False
    short.resume, short.keep, short.early_stopping, short.stop_on_collapse = "never", "last", None, False
    return short


def _settings(
    method: type[SSLVisionModel],
    recipe: VisionEncoderArguments,
    data: ImageData,
    probes: ImageProbeArguments,
    args: SSLTrainingArguments,
    given: set[str],
) -> dict[str, Any]:
    """What the choice depends on, as far as it is kept: a run that goes on may be longer."""
    return {
        "method": method.__name__, "dataset": data.arguments.dataset, "probe_dataset": probes.probe_dataset,
        "probe_label_column": probes.probe_label_column, "seed": args.seed,
        "given": sorted(given - {"max_steps", "budget_minutes", "resume"}),
    }  # fmt: skip


def _as_typed(flags: dict[str, Any]) -> str:
    values = {name: value if isinstance(value, tuple) else (value,) for name, value in flags.items()}
    return "`" + " ".join(f"--{name} {' '.join(f'{v:g}' for v in value)}" for name, value in values.items()) + "`"
