"""Evaluators: one protocol each, all of one shape."""

from importlib import import_module
from typing import TYPE_CHECKING

from .evaluator import EvaluationError, Evaluator
from .results import Result, format_table, read_results, write_results


# Names that pull in a heavy import (Trainer, datasets) load on first use.
_LAZY = {"GlueEvaluator": ".glue"}

if TYPE_CHECKING:
    from .glue import GlueEvaluator

__all__ = [
    "EvaluationError",
    "Evaluator",
    "GlueEvaluator",
    "Result",
    "format_table",
    "read_results",
    "write_results",
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)
