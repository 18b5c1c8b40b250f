"""Self-supervised learning methods as `transformers` models."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING


def _waits_with_methods() -> bool:
    """Whether this process is the command `hfssl`, which imports them when it runs a recipe (`cli/main.py`), or a
    recipe that shows its flags, which it reads from the sources (`cli/command.py`)."""
    first = (sys.argv or [""])[0]
    if Path(first).stem == "hfssl" or (first == "-m" and "hfssl" in sys.orig_argv):
        return True
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script is None or not {"-h", "--help", "--help-all", "--help_all"} & set(sys.argv[1:]):
        return False
    try:
        return "from hfssl.cli.command import command\n" in Path(script).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


if not _waits_with_methods():
    # at once: it registers the methods with the Auto classes
    from . import methods

if TYPE_CHECKING:
    from .cli.parser import RecipeParser
    from .data.image.views import ViewArguments, Views
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
    "ViewArguments": ".data.image.views",
    "Views": ".data.image.views",
    "open_source": ".data.sources",
}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    if name == "__path__" or name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    methods = import_module(".methods", __name__)
    if name == "methods":
        return methods
    if name == "__all__":
        return sorted([*methods.__all__, *_LAZY])
    if name in methods.__all__:
        return getattr(methods, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
