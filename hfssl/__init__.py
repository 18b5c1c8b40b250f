"""Self-supervised learning methods as `transformers` models."""

from importlib import import_module
from typing import TYPE_CHECKING

# imported at once: it registers the methods with the Auto classes
from .methods import (
    ByolForPreTraining,
    ByolPreTrainingConfig,
    ClmForPreTraining,
    ClmPreTrainingConfig,
    DinoForPreTraining,
    DinoPreTrainingConfig,
    MaeForPreTraining,
    MaePreTrainingConfig,
    MlmForPreTraining,
    MlmPreTrainingConfig,
    MocoForPreTraining,
    MocoPreTrainingConfig,
    SimclrForPreTraining,
    SimclrPreTrainingConfig,
)


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

if TYPE_CHECKING:
    from .cli.parser import RecipeParser
    from .data.sources import open_source
    from .data.stream import ExactStream
    from .training.arguments import SSLTrainingArguments
    from .training.callbacks import MethodCallback
    from .training.trainer import SSLTrainer

__all__ = [
    "ByolForPreTraining",
    "ByolPreTrainingConfig",
    "ClmForPreTraining",
    "ClmPreTrainingConfig",
    "DinoForPreTraining",
    "DinoPreTrainingConfig",
    "ExactStream",
    "MaeForPreTraining",
    "MaePreTrainingConfig",
    "MethodCallback",
    "MlmForPreTraining",
    "MlmPreTrainingConfig",
    "MocoForPreTraining",
    "MocoPreTrainingConfig",
    "RecipeParser",
    "SSLTrainer",
    "SSLTrainingArguments",
    "SimclrForPreTraining",
    "SimclrPreTrainingConfig",
    "open_source",
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)
