"""What loading a stock encoder has in common for all modalities."""

import atexit
import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from ..errors import first_line
from ..modeling.base import PLAIN_SETTINGS, SSLPreTrainedModel
from .evaluator import EvaluationError
from .facts import read_facts, write_facts
from .results import read_json


logger = logging.getLogger(__name__)


# Why a file of a repository may not be had.
_NOT_THERE = ("gated_repo", "missing_entries", "connection_errors")
# What a processor leaves in a folder, of whatever modality.
_OF_PROCESSORS = (
    "*processor_config.json", "tokenizer*", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "*.model", "chat_template*",
)  # fmt: skip


def stock_folder(encoder: str) -> str:
    """Folder or Hub id of a stock encoder, where a checkpoint of a run may be named as well.

    Args:
        encoder (`str`):
            Folder or Hub id of a stock encoder, taken as it is; the folder of a run that has not ended: its newest
            checkpoint is taken; a checkpoint, or the pre-training model of a result folder.

    Returns:
        `str`: of a checkpoint, a folder with its encoder and processor that is there until this process ends.
    """
    folder = Path(encoder)
    results = ("config.json", PLAIN_SETTINGS)  # a run leaves one of them when it ends
    if folder.is_dir() and not any((folder / name).is_file() for name in results):
        checkpoints = [
            path
            for path in folder.glob("checkpoint-*")
            if re.fullmatch(r"checkpoint-\d+", path.name) and (path / "config.json").is_file()
        ]
        if checkpoints:
            folder = max(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]))
            logger.info("%s holds a run that has not ended: its newest checkpoint is taken, %s.", encoder, folder.name)
    if (folder / PLAIN_SETTINGS).is_file() and (folder / "pretraining").is_dir():
        folder = folder / "pretraining"  # the result of a method that transformers has no class for
    method = _method_of(folder)
    if method is None:
        return encoder
    if folder.name == "pretraining" and (folder.parent / "config.json").is_file():
        return str(folder.parent)
    try:
        with quiet():
            model = method.from_pretrained(folder)
    except Exception as error:  # a damaged file shows itself in many ways
        raise EvaluationError(f"Cannot load the checkpoint {folder}: {first_line(error)}") from error
    kept = Path(tempfile.mkdtemp(prefix="hfssl-encoder-"))
    atexit.register(shutil.rmtree, kept, ignore_errors=True)
    target = kept / folder.name
    write_loadable(model, target)
    result = folder.parent if folder.name == "pretraining" else folder
    beside = dict.fromkeys((result, folder))
    for path in [path for place in beside for pattern in _OF_PROCESSORS for path in place.glob(pattern)]:
        shutil.copyfile(path, target / path.name)
    settings = read_json(folder / "manifest.json", default={}).get("settings", {})
    facts = {"modality": model.modality, "pooling": getattr(model.config, "pooling", None)}
    # a result remembers more of its run than a checkpoint
    facts |= {"dataset": settings.get("dataset")} | read_facts(result) | {"given": encoder}
    write_facts(target, **facts)
    return str(target)


def write_loadable(model: SSLPreTrainedModel, folder: Path) -> None:
    """Write the encoder of a pre-training model so that `AutoModel` loads it in a process that knows hfssl."""
    if model.export_kind == "plain":
        model.encoder.save_pretrained(folder)
    else:
        model.export_encoder(folder)


def _method_of(folder: Path) -> type[SSLPreTrainedModel] | None:
    """The method that a folder holds a pre-training model of; `None` for all else."""
    from ..methods import METHODS

    if not (folder / "config.json").is_file():
        return None
    model_type = read_json(folder / "config.json", default={}).get("model_type") or ""
    return METHODS.get(model_type.removeprefix("hfssl_")) if model_type.startswith("hfssl_") else None


def weights_digest(folder: str | Path) -> str | None:
    """Digest of the weights that lie in a folder; `None` where there are none, such as for a Hub id."""
    digests = digests_of_weights(folder)
    return hashlib.sha256(b"".join(digests)).hexdigest() if digests else None


def digests_of_weights(folder: str | Path) -> list[bytes]:
    """The digest of each file of weights in a folder: of safetensors where there are some, as transformers loads them,
    whatever else lies beside."""
    digests = []
    for path in sorted(Path(folder).glob("*.safetensors")) or sorted(Path(folder).glob("*.bin")):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").digest())
    return digests


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


def empty_encoder(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    """The encoder without weights and without memory for them, to learn what it is like.

    Raises:
        EvaluationError: where transformers has no encoder of that kind.
    """
    try:
        with torch.device("meta"), quiet():
            return AutoModel.from_config(config)
    except (ValueError, KeyError) as error:
        raise EvaluationError(
            f'{name} is a "{config.model_type}" model, which transformers has no encoder of.'
            + hint_of_pretraining(name)
        ) from error


def check_loaded(source: str, names: Iterable[str], missing: Iterable[str]) -> None:
    """Refuse a checkpoint that lacks most of the encoder's weights (`names`), warn of one that lacks some."""
    # pre-training leaves no pooler
    names = {name for name in names if "pooler" not in name}
    missing = sorted(names & set(missing))
    if len(missing) > len(names) / 2:
        raise EvaluationError(
            f"{source} lacks {len(missing)} of the {len(names)} weights of the encoder, e.g. {missing[0]}: it would "
            "be evaluated no better than untrained."
        )
    if missing:
        logger.warning("%s lacks weights of the encoder, which start at random: %s", source, ", ".join(missing))


def trained_pooling(source: str) -> str | None:
    """The pooling that an encoder was trained with, as far as its folder or its repository on the Hub says.

    A result folder remembers it as a fact of its run; on the Hub it stands in the configuration of the pre-training
    model beside the encoder, as in the folders of checkpoints.
    """
    facts = read_facts(source)
    if "pooling" in facts:
        return facts["pooling"]
    quietly = dict.fromkeys((f"_raise_exceptions_for_{what}" for what in _NOT_THERE), False)
    try:
        path = cached_file(source, "config.json", subfolder="pretraining", **quietly)
        return None if path is None else json.loads(Path(path).read_text(encoding="utf-8")).get("pooling")
    except (OSError, ValueError):  # not one of ours
        return None


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
