"""Evaluators: one protocol each, all of one shape."""

from importlib import import_module
from typing import TYPE_CHECKING

from .evaluator import EvaluationError, Evaluator
from .results import Result, format_table, read_results, write_results


# Names that pull in a heavy import (Trainer, datasets) load on first use.
_LAZY = {
    "FewShotEvaluator": ".few_shot",
    "FinetuneEvaluator": ".finetune",
    "GlueEvaluator": ".glue",
    "KnnEvaluator": ".knn",
    "LabelEfficiencyEvaluator": ".label_efficiency",
    "LinearProbeEvaluator": ".linear_probe",
    "OnlineKnn": ".online_knn",
    "probe_table": ".probes",
}

if TYPE_CHECKING:
    from .few_shot import FewShotEvaluator
    from .finetune import FinetuneEvaluator
    from .glue import GlueEvaluator
    from .knn import KnnEvaluator
    from .label_efficiency import LabelEfficiencyEvaluator
    from .linear_probe import LinearProbeEvaluator
    from .online_knn import OnlineKnn
    from .probes import probe_table

__all__ = [
    "EvaluationError",
    "Evaluator",
    "FewShotEvaluator",
    "FinetuneEvaluator",
    "GlueEvaluator",
    "KnnEvaluator",
    "LabelEfficiencyEvaluator",
    "LinearProbeEvaluator",
    "OnlineKnn",
    "Result",
    "format_table",
    "probe_table",
    "read_results",
    "write_results",
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)
