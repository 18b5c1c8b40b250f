"""What loading a stock encoder has in common for all modalities."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from ..errors import first_line
from .evaluator import EvaluationError


def load_config(source: str) -> PreTrainedConfig:
    """The configuration of the encoder in a folder or on the Hub.

    Raises:
        EvaluationError: where there is none.
    """
    folder = Path(source)
    if not folder.is_dir() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise EvaluationError(f"There is no encoder folder {source}.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise EvaluationError(f"{source} is no encoder: it has no config.json.")
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"Cannot load the encoder {source}: {first_line(error)}") from error


def hint_of_pretraining(source: str) -> str:
    """Where the encoder of a result folder lies, if `source` is its `pretraining/`."""
    folder = Path(source)
    if folder.name == "pretraining" and (folder.parent / "config.json").is_file():
        return f" The encoder itself lies in {folder.parent}."
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """Without the report on weights that are new, which they always are in a head, and without its progress bar."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
