"""`--views auto`: views that fit the labels at hand, found by short runs that change one kind of view at a time.

What this can tell: that views throw away what the labels are about. Where classes are colours (satellite tiles),
orientations (digits) or small objects, an encoder whose views hide them is worse after a tenth of a run already, by
more than chance, if some hundred labelled images are held out to choose by.

What it cannot: what pays in long runs only. Easy cues are learned first, so that views that leave them in look better
in a short run than they are in a long one: hidden colours make an encoder look at shapes, which takes time. Nor small
differences: of 600 images a standard error is 3 points of accuracy, of 60 it is 9. Nor, where no short run is better
than the encoder before it, much at all; that is said. Who has the time compares whole runs (`recipes/compare.py`).
"""

import copy
import json
import logging
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
from ...evaluation.usefulness import standard_error
from ...machine import say_choice
from ...modeling.vision import SSLVisionModel
from ...training.arguments import SSLTrainingArguments
from ...training.settings import steps_of_passes
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
# Flags that change nothing about the short runs.
_NO_MATTER = {"output_dir", "resume"}


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

    Those of several kinds are tried together, and stay together unless the best of them alone is better: two changes
    that help may make views too much alike to learn from.

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
    certain = standard_error(usual, num_test)
    best: dict[str, Variant] = {}
    for variant in variants:
        rival = best.get(variant.kind)
        if figures[variant.words] > max(usual + certain, figures[rival.words] if rival else 0.0):
            best[variant.kind] = variant
    if len(best) > 1:
        together = Variant(
            "all", " and ".join(each.words for each in best.values()),
            {name: value for each in best.values() for name, value in each.flags.items()},
        )  # fmt: skip
        figures[together.words] = accuracy(together)
        alone = max(best.values(), key=lambda each: figures[each.words])
        if figures[alone.words] > figures[together.words]:
            best = {alone.kind: alone}
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
        UserError: with `--views auto` where there are no labels, or where a run goes on that began without it.
    """
    if probes.views != "auto":
        return arguments
    path, before = Path(args.output_dir) / CHOSEN, args.continued_from
    known = _settings(method, data, given, vars(recipe), config, *map(vars, (data.arguments, arguments, probes, args)))
    # what the main process has: others may have another disk, and figures of theirs may differ in the last bits
    (kept,) = broadcast_object_list([read_json(path if before is None else before.parent / CHOSEN, default={})])
    if before is not None and not kept:
        raise UserError(
            f"`--views auto` chooses views when a run begins, and the one in {before.parent} began without it. Leave "
            "it out, or begin another run with another `--output_dir`."
        )
    # a run that goes on keeps its views: what else has changed is for the checkpoint to refuse
    if before is None and kept.get("settings") != known:
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
    if args.process_index == 0 and read_json(path, default={}) != kept:
        write_json(path, kept)
    flags = {name: tuple(value) if isinstance(value, list) else value for name, value in kept["flags"].items()}
    words = ", ".join(f"{name} {value:.3f}" for name, value in kept["figures"].items())
    say_choice(
        logger,
        f"Views: {' and '.join(kept['chosen']) or 'as usual'}, of k-NN accuracies after short runs: {words}."
        + (f" The same by hand: {_as_typed(flags)}." if flags else ""),
    )
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
    to_choose_by = frozenset(map(identity, choose.images))
    usual = make_views(method, recipe, config, data, arguments, given)
    variants = variants_of(usual, given)
    processor = usual.image_processor()
    # the encoder that was chosen, for all of them
    arguments, given = replace(arguments, image_size=usual.image_size), given | {"image_size"}
    measured_on = frozenset(map(identity, test.images))
    short = _short(args, data.source.num_rows, len(data.exclude | measured_on))
    logger.info(
        "`--views auto`: %d runs of %s each, to choose views.", len(variants) + 1,
        f"{short.budget_minutes:.2g} minutes" if short.budget_minutes else f"{short.max_steps} steps",
    )  # fmt: skip
    knn: list[OnlineKnn] = []
    untrained: list[float] = []

    def accuracy(variant: Variant | None) -> float:
        flags = variant.flags if variant is not None else {}
        views = make_views(method, recipe, config, data, replace(arguments, **flags), given | set(flags))
        with tempfile.TemporaryDirectory() as folder:
            here = copy.deepcopy(short)
            here.output_dir = folder
            model = build_method(method, recipe, config, views, here, given)
            pooling = probes.probe_pooling or getattr(model.config, "pooling", None)
            # all that is held out to choose by: differences are small
            knn[:] = knn or [OnlineKnn(learn, choose, processor, pooling=pooling, max_test_samples=len(choose))]
            stream = data.stream(here, views)
            stream.leave_out(measured_on | to_choose_by)
            trainer = SSLTrainer(model, here, stream, processing_class=processor)
            untrained[:] = untrained or knn[0].measure(trainer.accelerator.unwrap_model(trainer.model)).values()
            trainer.train()
            [found] = knn[0].measure(trainer.accelerator.unwrap_model(trainer.model)).values()
            # what is tried next depends on it: by figures of their own, one process might train and another not
            (found,) = broadcast_object_list([found])
        logger.info("%s: k-NN accuracy %.3f", variant.words if variant else "as usual", found)
        return found

    chosen, figures = choose_variants(variants, accuracy, len(choose))
    if max(figures.values()) <= untrained[0]:
        logger.warning(
            "None of these short runs is better than the encoder before it (%.3f), so that they say little about "
            "views. A longer run tries them for longer.", untrained[0],
        )  # fmt: skip
    return chosen, figures


def _short(args: SSLTrainingArguments, num_samples: int, num_held_out: int) -> SSLTrainingArguments:
    """A run of a tenth of the length that leaves nothing behind."""
    short = copy.deepcopy(args)
    if short.budget_minutes is not None:
        short.budget_minutes *= SHARE
    else:
        steps = args.max_steps
        if args.epochs is not None:
            (_, steps), short.epochs = steps_of_passes(args, num_samples, num_held_out), None
        short.max_steps = min(max(int(SHARE * steps), LEAST), MOST, steps)
    short.eval_strategy, short.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    short.do_eval, short.report_to, short.push_to_hub = False, [], False
    short.resume, short.keep, short.early_stopping, short.stop_on_collapse = "never", "last", None, False
    return short


def _settings(
    method: type[SSLVisionModel], data: ImageData, given: set[str], *values: dict[str, Any]
) -> dict[str, Any]:
    """What the choice depends on: the data, and each flag that was given with its value."""
    stated = {
        name: value for each in values for name, value in each.items() if name in given and name not in _NO_MATTER
    }
    known = {"method": method.__name__, "data": data.source.fingerprint, "given": stated}
    return json.loads(json.dumps(known, sort_keys=True, default=str))


def _as_typed(flags: dict[str, Any]) -> str:
    values = {name: value if isinstance(value, tuple) else (value,) for name, value in flags.items()}
    return "`" + " ".join(f"--{name} {' '.join(f'{v:g}' for v in value)}" for name, value in values.items()) + "`"
