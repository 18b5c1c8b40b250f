"""The first batch of a run on images, made as the run makes it, without training."""

import logging
from pathlib import Path
from typing import Any

import torch

from ...data.image.contact_sheet import Originals
from ...data.image.views import ViewArguments, Views
from ...data.sources import identity
from ...errors import UserError
from ...methods import METHODS
from ...modeling.vision import SSLVisionModel
from ...training.arguments import SSLTrainingArguments
from ..modality import build_method
from .data import ImageData, ImageDataArguments
from .encoders import VisionEncoderArguments, make_views
from .probes import ImageProbeArguments


logger = logging.getLogger(__name__)


def recipe_of(argv: list[str], folder: Path, default: str = "simclr") -> tuple[type[SSLVisionModel], Path]:
    """The method that `--method` names, and its recipe, which has the other flags.

    Raises:
        UserError: for a method that has no views.
    """
    words = [word for argument in argv for word in argument.split("=", 1)]
    name = words[words.index("--method") + 1] if "--method" in words[:-1] else default
    with_views = [name for name, method in METHODS.items() if method.method.views is not None]
    if name not in with_views:
        raise UserError(f"`--method` is one of {', '.join(with_views)}, got {name!r}.")
    return METHODS[name], folder / f"{name}.py"


def first_batch(
    method: type[SSLVisionModel],
    recipe: VisionEncoderArguments,
    data_args: ImageDataArguments,
    view_args: ViewArguments,
    config: dict[str, Any],
    probe_args: ImageProbeArguments,
    args: SSLTrainingArguments,
    given: set[str],
) -> tuple[dict[str, Any], Views, torch.Tensor | None]:
    """What the model of a recipe gets in the first step.

    Args:
        method (`type`):
            [`SimclrForPreTraining`] and the like.
        recipe, data_args, view_args, config, probe_args, args:
            What the parser of the recipe gives.
        given (`set[str]`):
            Names of the flags that the user gave.

    Returns:
        `tuple`: the batch, with the encoded images as `original`, the views, and for a method that hides some of the
        pixels which these are, `(batch_size, num_views, height, width)`.
    """
    data = ImageData(data_args)
    views = make_views(method, recipe, config, data, view_args, given)
    model = build_method(method, recipe, config, views, args, given)
    views.makers.append(Originals())
    stream, probes = data.stream(args, views), probe_args.load(data.arguments.dataset)
    if probes is not None:  # what the run measures on is left out of it
        stream.leave_out(frozenset(map(identity, probes[1].images)))
    batch = next(iter(stream))
    hidden = model.hidden_pixels(batch).cpu() if hasattr(model, "hidden_pixels") else None
    return batch, views, hidden
