"""Which methods there is a sheet of views for, and what draws it."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from ..errors import UserError
from ..methods import METHODS
from ..modeling.base import SSLPreTrainedModel
from .declared import word_after


def recipe_of(argv: list[str], folder: Path, default: str = "simclr") -> tuple[type[SSLPreTrainedModel], Path]:
    """The method that `--method` names, and its recipe, which has the other flags.

    Raises:
        UserError: for a method that has no views.
    """
    name = word_after(argv, "--method", default)
    shown = [name for name, method in METHODS.items() if has_sheet(method)]
    if name not in shown:
        raise UserError(f"`--method` is one of {', '.join(shown)}, got {name!r}.")
    return METHODS[name], folder / f"{name}.py"


def sheet_of(modality: str) -> Callable[..., tuple[int, str]]:
    """What draws the sheets of a modality: `draw_sheet` of `hfssl/cli/<modality>/first_batch.py`."""
    return import_module(f"{__package__}.{modality}.first_batch").draw_sheet


def has_sheet(method: type[SSLPreTrainedModel]) -> bool:
    """Whether there is something to see of what a method makes of its samples."""
    # images are not shown without views of them
    modality, views = method.method.modality, method.method.views
    there = find_spec(f"{__package__}.{modality}.first_batch") is not None
    return there and (views is not None or method.main_input_name != "pixel_values")
