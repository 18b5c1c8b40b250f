"""Self-supervised learning methods as `transformers` models."""

from importlib import import_module
from typing import TYPE_CHECKING

# imported at once: it registers the methods with the Auto classes
from . import methods


if TYPE_CHECKING:
    from .cli.parser import RecipeParser
    from .data.sources import open_source
    from .data.stream import ExactStream
    from .methods import *  # noqa: F403
    from .training.arguments import SSLTrainingArguments
    from .training.callbacks import MethodCallback
    from .training.trainer import SSLTrainer

__version__ = "0.1.0.dev0"

# Names that pull in a heavy import (Trainer, datasets, scikit-learn) load on first use.
_LAZY = {
    "ExactStream": ".data.stream",
    "MethodCallback": ".training.callbacks",
    "RecipeParser": ".cli.parser",
    "SSLTrainer": ".training.trainer",
    "SSLTrainingArguments": ".training.arguments",
    "open_source": ".data.sources",
}

__all__ = sorted([*methods.__all__, *_LAZY])


def __getattr__(name: str):
    if name in methods.__all__:
        return getattr(methods, name)
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)
