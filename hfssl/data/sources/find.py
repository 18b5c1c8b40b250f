"""From what the user typed to files and splits: local files and folders, globs, the Hub and its cache."""

import difflib
import glob
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import datasets
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.load import infer_module_for_data_files
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from ...errors import DataError, first_line
from ..modality import Modality, modalities, modality
from .base import third_party
from .files import as_patterns, is_remote


logger = logging.getLogger(__name__)

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
# Files with columns beside the images of a folder.
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# What `datasets` takes for the name of a split, in the name of a folder or file.
_SPLIT_OF_FOLDER = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_NAMES_SPLIT = re.compile(rf"(?:^|[-._ 0-9/])(?:{'|'.join(_SPLIT_OF_FOLDER)})(?:$|[-._ 0-9/])")
# What formats of the `datasets` library hold that hold nothing else.
_HOLDS = {
    "imagefolder": "images",
    "audiofolder": "sound",
    "videofolder": "videos",
    "meshfolder": "meshes",
    "text": "text",
    "json": "json files",
    "csv": "csv files",
}


@dataclass
class Found:
    """A data set whose files are known and not yet opened.

    `module` is the format by the `datasets` library's name, `"saved"` for a folder of `save_to_disk`. `splits` maps to
    the paths of the files; `load` holds the arguments with which `datasets.load_dataset` loads the same.
    """

    kind: Modality
    name: str
    module: str
    splits: dict[str, list[str]]
    root: str = ""
    features: dict | None = None
    options: dict = field(default_factory=dict)
    load: dict = field(default_factory=dict)


def find_data(dataset: str, config: str | None, revision: str | None, kind: Modality) -> Found:
    if not dataset.strip():
        raise DataError(
            "`--dataset` is empty. Pass a Hub id, a file, a folder or a glob, or leave it out for the embedded data."
        )
    path = os.path.expanduser(dataset)
    if os.path.isfile(path):
        return _find_files(dataset, [os.path.abspath(path)], config, kind)
    if os.path.isdir(path):
        return _find_folder(dataset, os.path.realpath(path), config, kind)
    if re.fullmatch(r"hf://datasets/[^/@*]+/[^/@*]+/?", dataset):
        return _find_on_hub(dataset.removeprefix("hf://datasets/").rstrip("/"), config, revision, kind)
    if glob.has_magic(path) or "://" in path:
        return _find_glob(dataset, path, config, kind)
    if not _may_be_hub_id(dataset):
        parent = os.path.dirname(path.rstrip("/"))
        hint = f" Neither does the folder {parent!r}." if parent and not os.path.isdir(parent) else _nearest(path)
        raise DataError(f"{dataset!r} does not exist.{hint} Pass an existing file or folder, a glob or a Hub id.")
    return _find_on_hub(dataset, config, revision, kind)


def _find_files(dataset: str, paths: list[str], config: str | None, kind: Modality) -> Found:
    """Files that were named one by one or by a glob: one split, called train."""
    if config is not None:
        raise DataError(f"{dataset!r} has no configuration {config!r}: files have none. Leave `--dataset_config` out.")
    formats = kind.extensions
    count = Counter(extension for path in paths if (extension := _extension(path)) in formats)
    if not count:
        raise DataError(f"{dataset!r} is {_extensions(paths)}, which cannot be read. Supported are {kind.supported}.")
    # As `datasets` does: the most frequent format wins; the others are left out.
    extension, _ = max(count.items(), key=lambda item: (item[1], item[0] == ".parquet", item[0]))
    module = formats[extension]
    chosen = [path for path in paths if formats.get(_extension(path)) == module]
    if len(chosen) < len(paths):
        logger.info("%s: %d of %d files are %s files and are read.", dataset, len(chosen), len(paths), module)
    load = {"path": module, "data_files": {"train": as_patterns(chosen)}}
    if extension == ".tsv":
        load["sep"] = "\t"
    root = os.path.dirname(paths[0]) if len(paths) == 1 else _common_folder(paths)
    return Found(kind, dataset, module, {"train": chosen}, root, load=load)


def _find_glob(dataset: str, path: str, config: str | None, kind: Modality) -> Found:
    try:
        # The text module takes any file: it only resolves the pattern here.
        builder = datasets.load_dataset_builder("text", data_files={"train": [_pattern(path)]})
        paths = list(builder.config.data_files["train"])
    except FileNotFoundError:
        paths = []
    except Exception as error:
        raise DataError(f"{dataset!r} cannot be resolved ({type(error).__name__}: {first_line(error)}).") from error
    if not paths:
        raise DataError(f"{dataset!r} matches no file. Check it with `ls`; to match at any depth write `**/*`.")
    return _find_files(dataset, paths, config, kind)


def _find_folder(dataset: str, path: str, config: str | None, kind: Modality) -> Found:
    dataset_dict = os.path.join(path, datasets.config.DATASETDICT_JSON_FILENAME)
    if os.path.isfile(dataset_dict):
        with open(dataset_dict, encoding="utf-8") as file:
            splits = third_party(
                lambda: json.load(file)["splits"], f"{dataset!r} is a damaged folder of `save_to_disk`"
            )
        return Found(kind, dataset, "saved", {split: [os.path.join(path, split)] for split in splits}, path)
    if os.path.isfile(os.path.join(path, datasets.config.DATASET_STATE_JSON_FILENAME)):
        return Found(kind, dataset, "saved", {"train": [path]}, path)
    if kind.folder_module and config is None and (splits := _splits_of_files(path, kind)):
        load = _load_files(splits) if glob.has_magic(path) else {"data_dir": path}
        load = {"path": kind.folder_module, **load}
        return Found(kind, dataset, kind.folder_module, splits, path, load=load)
    load = {"path": path, "name": config}
    try:
        with quiet_cards():
            if glob.has_magic(path):
                load = _load_by_pattern(dataset, path, config, kind)
            builder = datasets.load_dataset_builder(**load)
    except DataError:
        raise
    except Exception as error:
        files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
        if not files:
            raise DataError(f"The folder {dataset!r} is empty. Supported files are {kind.supported}.") from error
        if isinstance(error, FileNotFoundError):
            unreadable = "" if os.access(path, os.R_OK | os.X_OK) else " Its permissions do not let you list it."
            raise DataError(
                f"The folder {dataset!r} holds {_extensions(files)}, none of which can be read.{unreadable} "
                f"Supported are {kind.supported}."
            ) from error
        raise _builder_error(error, dataset, lambda: datasets.get_dataset_config_names(path), kind) from error
    if kind.folder_module and _module(builder) not in kind.extensions.values():
        # there may be images all the same, with captions in equal or greater number
        other_load = {"path": kind.folder_module, "data_dir": path}
        if glob.has_magic(path):
            other_load = {"path": kind.folder_module, "data_files": {"train": [f"{glob.escape(path)}/**"]}}
        other = datasets.load_dataset_builder(**other_load)
        paths = [file for of_split in other.config.data_files.values() for file in of_split]
        if any(file.lower().endswith(kind.file_extensions) for file in paths):
            builder, load = other, other_load
    return _from_builder(builder, dataset, path, load, kind)


def _load_by_pattern(dataset: str, path: str, config: str | None, kind: Modality) -> dict:
    """Arguments with which `datasets` loads a folder whose name it would take for a pattern, such as `corpus [2024]`.

    It finds files and splits by its own rules, but the configurations of a card only where the name is plain.
    """
    card = os.path.join(path, datasets.config.REPOCARD_FILENAME)
    has_configs = os.path.isfile(card) and bool(MetadataConfigs.from_dataset_card_data(DatasetCard.load(card).data))
    if config is not None or has_configs:
        raise DataError(
            f"Configurations of {dataset!r} cannot be read, since its path holds a character of patterns (*, ? or [). "
            "Rename the folder."
        )
    root = glob.escape(path)
    files = DataFilesDict.from_patterns(get_data_patterns(root), base_path=root)
    module, options = infer_module_for_data_files(files, path=path)
    own = (*METADATA, *((".zip",) if module == kind.folder_module else ()))
    splits = {
        split: [name for name in names if kind.extensions.get(_extension(name)) == module or name.endswith(own)]
        for split, names in files.items()
    }
    # what is of another kind is refused by the name of its format
    return {"path": module, **_load_files({split: own for split, own in splits.items() if own} or files), **options}


def _load_files(splits: Mapping[str, list[str]]) -> dict:
    return {"data_files": {str(split): as_patterns(paths) for split, paths in splits.items()}}


def _pattern(path: str) -> str:
    """A glob in which the folders that are really called so are no patterns."""
    parts = path.split("/")
    number = 0
    while "://" not in path and number < len(parts) and os.path.isdir("/".join(parts[: number + 1]) or "/"):
        number += 1
    return "/".join([*map(glob.escape, parts[:number]), *parts[number:]])


def _splits_of_files(folder: str, kind: Modality) -> dict[str, list[str]] | None:
    """The files of a folder that each hold a sample, and what lies beside them, by split; None where it takes more to
    tell.

    `datasets` finds the same, but looks through the folder dozens of times: of a million files for a quarter of an
    hour.
    """
    paths = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        paths += [os.path.join(parent, name) for name in sorted(names) if not name.startswith((".", "__"))]
    extensions = {os.path.splitext(path)[1].lower() for path in paths}
    others = set(kind.extensions) - set(kind.file_extensions)
    special = os.path.join(folder, "README.md") in paths or not extensions.isdisjoint(others)
    if special or extensions.isdisjoint(kind.file_extensions):
        return None
    paths = [path for path in paths if path.lower().endswith((*kind.file_extensions, ".zip", *METADATA))]
    names = [os.path.relpath(path, folder).replace(os.sep, "/") for path in paths]
    tops = {name.partition("/")[0] for name in names}
    if all(top in _SPLIT_OF_FOLDER for top in tops):
        splits: dict[str, list[str]] = {split: [] for split in ("train", "validation", "test")}
        for path, name in zip(paths, names, strict=True):
            splits[_SPLIT_OF_FOLDER[name.partition("/")[0]]].append(path)
        return {split: of_split for split, of_split in splits.items() if of_split}
    return None if any(map(_NAMES_SPLIT.search, names)) else {"train": paths}


def _find_on_hub(dataset: str, config: str | None, revision: str | None, kind: Modality) -> Found:
    if constants.HF_HUB_OFFLINE:
        return _find_in_cache(dataset, config, revision, kind)
    here = f"There is no file or folder {dataset!r} here.{_nearest(dataset)} "
    try:
        # Asked first because it answers in seconds whether the data set can be had, and fixes the revision.
        commit = HfApi().dataset_info(dataset, revision=revision, timeout=10).sha
        with quiet_cards():
            builder = datasets.load_dataset_builder(dataset, name=config, revision=commit)
    except Exception as error:
        raise _hub_error(error, dataset, revision, here, kind) from error
    load = {"path": dataset, "name": config, "revision": commit}
    return _from_builder(builder, dataset, f"hf://datasets/{dataset}@{commit}", load, kind)


def _find_in_cache(dataset: str, config: str | None, revision: str | None, kind: Modality) -> Found:
    """Offline: what `load_dataset` prepared before, else what was downloaded."""
    try:
        builder = datasets.load_dataset_builder(dataset, name=config)
        return _from_builder(builder, dataset, "", {"path": dataset, "name": config}, kind)
    except DataError:
        raise
    except Exception as error:
        logger.debug("No prepared data set %s: %s", dataset, error)
    try:
        folder = snapshot_download(dataset, repo_type="dataset", revision=revision, local_files_only=True)
    except Exception as error:
        raise DataError(
            f"There is no file or folder {dataset!r} here.{_nearest(dataset)} The Hub is not asked because "
            f"HF_HUB_OFFLINE is set, and {dataset!r} is not in the cache ({constants.HF_HOME}). Unset HF_HUB_OFFLINE, "
            f"or download it elsewhere (`hf download --repo-type dataset {dataset} --local-dir FOLDER`) and pass the "
            "folder."
        ) from error
    logger.info("Offline: reading %s from the cache, %s.", dataset, folder)
    return replace(_find_folder(folder, folder, config, kind), name=dataset)


@contextmanager
def quiet_cards():
    """Without the warning that a README.md has no metadata: a folder of text needs none."""
    card_logger = logging.getLogger("huggingface_hub.repocard")
    level = card_logger.level
    card_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        card_logger.setLevel(level)


def _module(builder) -> str:
    # "datasets.packaged_modules.json.json"
    return type(builder).__module__.rpartition(".")[2]


def _from_builder(builder, dataset: str, root: str, load: dict, kind: Modality) -> Found:
    module = _module(builder)
    if module in _HOLDS and module not in kind.extensions.values():
        raise DataError(f"{dataset!r} holds {_HOLDS[module]}, no {kind.samples}. Supported are {kind.supported}.")
    if module == "harbor":
        raise DataError(
            f"{dataset!r} holds markdown or toml files, which are not read. Supported are {kind.supported}"
            + (": rename them to `.txt`." if ".txt" in kind.extensions else ".")
        )
    files = getattr(builder.config, "data_files", None)
    splits = {str(split): list(paths) for split, paths in (files or {}).items()}
    if not splits:
        splits = {str(split): [] for split in (builder.info.splits or {})}
    features = dict(builder.info.features) if builder.info.features else None
    return Found(kind, dataset, module, splits, root, features, dict(vars(builder.config)), load)


def _builder_error(error: Exception, dataset: str, config_names: Callable, kind: Modality) -> DataError:
    message = str(error)
    if isinstance(error, ValueError) and ("BuilderConfig" in message or "Config name is missing" in message):
        try:
            names = ", ".join(repr(name) for name in config_names())
        except Exception:
            names = first_line(error)
        return DataError(f"{dataset!r} needs one of its configurations: {names}. Choose one with `--dataset_config`.")
    if isinstance(error, FileNotFoundError):
        return DataError(f"{dataset!r} holds no file that can be read. Supported are {kind.supported}.")
    return DataError(f"{dataset!r} cannot be opened ({type(error).__name__}: {first_line(error)}).")


def _hub_error(error: Exception, dataset: str, revision: str | None, here: str, kind: Modality) -> DataError:
    page = f"{constants.ENDPOINT}/datasets/{dataset}"
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if any(isinstance(cause, GatedRepoError) for cause in chain) or "is a gated dataset" in str(error):
        return DataError(
            f"{dataset!r} is gated on the Hub: accept its conditions at {page} and log in with `hf auth login`."
        )
    if isinstance(error, RevisionNotFoundError):
        return DataError(
            f"{dataset!r} has no revision {revision!r} on the Hub. Its branches and tags are listed at {page}."
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in chain):
        return DataError(
            f"{here}The Hub has no data set {dataset!r} either, or it is private: check the name, or log in with "
            "`hf auth login`."
        )
    if isinstance(error, HFValidationError):
        return DataError(f"{here}It is no valid Hub id either.")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return DataError(
            f"The Hub refuses access to {dataset!r} (status {status}). Log in with `hf auth login` and a token that "
            "may read it."
        )
    if isinstance(error, HfHubHTTPError):
        return DataError(f"The Hub answered status {status} for {dataset!r} ({first_line(error)}). Try again later.")
    if isinstance(error, (OfflineModeIsEnabled, httpx.HTTPError, ConnectionError)):
        return DataError(
            f"{here}As a Hub id it cannot be looked up: {constants.ENDPOINT} cannot be reached "
            f"({type(error).__name__}). Without a connection, download it elsewhere (`hf download --repo-type dataset "
            f"{dataset} --local-dir FOLDER`) and pass the folder, or set HF_HUB_OFFLINE=1 where it is in the cache."
        )
    return _builder_error(error, dataset, lambda: datasets.get_dataset_config_names(dataset), kind)


def _may_be_hub_id(dataset: str) -> bool:
    known = any(_extension(dataset) in modality(name).extensions for name in modalities())
    return not known and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", dataset, re.ASCII) is not None


def _extension(path: str) -> str:
    """The extension that says the format, below a compression's."""
    name = os.path.basename(path).lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return os.path.splitext(name)[1]


def _extensions(paths: Sequence[str]) -> str:
    count = Counter(os.path.splitext(path)[1] or "without an extension" for path in paths)
    listing = ", ".join(extension for extension, _ in count.most_common(4))
    return f"a file {listing}" if len(paths) == 1 else f"files {listing}"


def _nearest(path: str) -> str:
    """A question, when the folder has something with a similar name."""
    parent, name = os.path.split(path.rstrip("/"))
    try:
        near = difflib.get_close_matches(name, os.listdir(parent or "."), n=1, cutoff=0.6)
    except OSError:
        return ""
    return f" Did you mean {os.path.join(parent, near[0])!r}?" if near else ""


def _common_folder(paths: Sequence[str]) -> str:
    if is_remote(paths[0]):
        return os.path.commonprefix(paths).rpartition("/")[0]
    return os.path.commonpath([os.path.dirname(path) for path in paths])
