"""From what the user typed to files and splits: local files and folders, globs, the Hub and its cache."""

import difflib
import glob
import json
import logging
import os
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import datasets
from datasets.data_files import resolve_pattern
from datasets.info import DatasetInfosDict
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
from .copies import unpacked_zip
from .files import as_patterns, is_remote, with_retries
from .found import Found, load_files, without_masks
from .walk import each_once, files_below, splits_of


logger = logging.getLogger(__name__)

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
# Files with columns beside the images of a folder.
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# Of tables that name files, such as those with their labels.
_TABLES = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
# So many files, and bytes of each, are looked into where none is called by its format.
_LOOKED_INTO, _BEGINNING = 8, 256
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


def find_data(dataset: str, config: str | None, revision: str | None, kind: Modality) -> Found:
    """The files that one name stands for: a file, a zip, a folder, a glob, or a data set of the Hub. Masks are left
    out that lie in a folder beside that of their images.

    Raises:
        DataError: where there is nothing of the kind.
    """
    found = _find(dataset, config, revision, kind)
    return without_masks(found) if found.module == kind.folder_module else found


def _find(dataset: str, config: str | None, revision: str | None, kind: Modality) -> Found:
    if not dataset.strip():
        raise DataError(
            "`--dataset` is empty. Pass a Hub id, a file, a folder or a glob, or leave it out for the embedded data."
        )
    path = os.path.expanduser(dataset)
    if os.path.isfile(path):
        if path.lower().endswith(".zip"):
            beside = () if kind.folder_module is None else METADATA
            # as a folder, whose splits and classes show only when it is one
            folder = unpacked_zip(os.path.abspath(path), (*kind.extensions, *beside))
            return replace(_find_folder(dataset, folder, config, kind), name=dataset)
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
    # columns of such a table may name files; all lie in one folder, from which relative paths start
    is_table = len({os.path.dirname(path) for path in paths}) == 1 and not is_remote(paths[0])
    if not count and kind.folder_module is not None and is_table:
        formats = _TABLES
        count = Counter(extension for path in paths if (extension := _extension(path)) in formats)
    if not count:
        raise DataError(
            f"{dataset!r} is {_extensions(paths)}, which cannot be read. Supported are {kind.supported}."
            + _ending_that_lacks(paths, kind)
        )
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
        paths = resolve_pattern(_pattern(path), base_path=os.getcwd())
    except FileNotFoundError:
        paths = []
    except Exception as error:
        raise DataError(f"{dataset!r} cannot be resolved ({type(error).__name__}: {first_line(error)}).") from error
    if not paths:
        raise DataError(f"{dataset!r} matches no file. Check it with `ls`; to match at any depth write `**/*`.")
    return _find_files(dataset, paths if is_remote(paths[0]) else each_once(paths), config, kind)


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
    if config is not None or _has_configs(path):
        return _find_by_card(dataset, path, config, kind)
    files = files_below(path)
    if not files:
        raise DataError(f"The folder {dataset!r} is empty. Supported files are {kind.supported}.")
    names = [os.path.relpath(file, path).replace(os.sep, "/") for file in files]
    found = {split: [os.path.join(path, name) for name in of_split] for split, of_split in splits_of(names).items()}
    splits = {split: each_once(of_split) for split, of_split in found.items()}
    twice = sum(map(len, found.values())) - sum(map(len, splits.values()))
    if twice:
        logger.info("%s: %s links to files that are there under their own names are left out.", dataset, f"{twice:,}")
    module, options = _format_of(dataset, splits, kind)
    own = (*METADATA, ".zip") if module == kind.folder_module else ()
    splits = {
        split: [file for file in of_split if kind.extensions.get(_extension(file)) == module or file.endswith(own)]
        for split, of_split in splits.items()
    }
    splits = {split: of_split for split, of_split in splits.items() if of_split}
    if own and splits:
        # beside the folders of the splits it is about the files of all of them, as `datasets` has it
        for file in files:
            if os.path.basename(file) in METADATA and not any(file in of_split for of_split in splits.values()):
                for of_split in splits.values():
                    of_split.append(file)
    if not splits:  # in archives only
        raise _nothing_to_read(dataset, files, kind)
    load = {"path": module, **load_files(splits), **options}
    if module == kind.folder_module and not twice and _is_as_datasets_sees_it(path, files):
        # instead of a million patterns
        load = {"path": module, "data_dir": path}
    return Found(kind, dataset, module, splits, path, options=options, load=load)


def _has_configs(folder: str) -> bool:
    """Whether a card says what the files of a folder are."""
    card = os.path.join(folder, datasets.config.REPOCARD_FILENAME)
    if os.path.isfile(os.path.join(folder, datasets.config.REPOYAML_FILENAME)):
        return True
    if not os.path.isfile(card):
        return False
    with quiet_cards():
        data = third_party(lambda: DatasetCard.load(card).data, f"The card {card!r} cannot be read")
    return bool(MetadataConfigs.from_dataset_card_data(data) or DatasetInfosDict.from_dataset_card_data(data))


def _format_of(dataset: str, splits: Mapping[str, list[str]], kind: Modality) -> tuple[str, dict]:
    """The format of a folder and its options: as `datasets` has it, where that is one of the modality.

    Else it is the most frequent of those that are, as for images with captions in greater number.
    """
    files = [file for of_split in splits.values() for file in of_split]
    try:
        module, options = infer_module_for_data_files(splits)
    except FileNotFoundError:
        module, options = None, {}
    except ValueError as error:
        raise DataError(
            f"{dataset!r} has splits of several formats ({first_line(error)}). Name the files of one."
        ) from error
    formats = [kind.extensions.get(_extension(file)) for file in files if os.path.basename(file) not in METADATA]
    count = Counter(filter(None, formats))
    if module not in kind.extensions.values() and count:
        module = kind.folder_module if kind.folder_module in count else count.most_common(1)[0][0]
        options = {}
    if module in kind.extensions.values():
        if len(count) > 1:
            logger.info("%s: %d of %d files are %s files and are read.", dataset, count[module], len(files), module)
        return module, options
    if module is None:
        raise _nothing_to_read(dataset, files, kind)
    _check_format(dataset, module, kind, files)
    raise DataError(
        f"{dataset!r} holds files of the format {module}, which cannot be read. Supported are {kind.supported}."
    )


def _nothing_to_read(dataset: str, files: Sequence[str], kind: Modality) -> DataError:
    zipped = next((file for file in files if file.lower().endswith(".zip")), None)
    hint = f" A zip is read where it is named itself: pass {zipped}." if zipped and kind.folder_module is None else ""
    hint += _ending_that_lacks(files, kind)
    return DataError(
        f"The folder {dataset!r} holds {_extensions(files)}, none of which can be read. "
        f"Supported are {kind.supported}.{hint}"
    )


def _ending_that_lacks(files: Sequence[str], kind: Modality) -> str:
    """Advice, where some of the first files are samples by their content, and are not called so."""
    for file in files[:_LOOKED_INTO]:
        with suppress(OSError), open(file, "rb") as opened:
            ending = kind.ending_of(opened.read(_BEGINNING))
            if ending is not None:
                # a table or a text beside them keeps its name
                folder, named = map(shlex.quote, (os.path.dirname(file), "*.[a-zA-Z]*"))
                rename = f"find {folder} -type f ! -name {named} -exec mv {{}} {{}}{ending} ';'"
                return (
                    f" By its content {os.path.basename(file)!r} is a {ending} file, and files are known by their "
                    f"endings: give such files this one, all of a folder that have none by `{rename}`."
                )
    return ""


def _is_as_datasets_sees_it(folder: str, files: Sequence[str]) -> bool:
    """Whether `datasets` finds the same files in a folder: it takes names for patterns, and goes through links again
    and again."""
    return not glob.has_magic(folder) and all(
        os.path.realpath(path) == path for path in set(map(os.path.dirname, files))
    )


def _find_by_card(dataset: str, path: str, config: str | None, kind: Modality) -> Found:
    """A folder with a card that names configurations, which `datasets` reads."""
    if glob.has_magic(path):
        raise DataError(
            f"Configurations of {dataset!r} cannot be read, since its path holds a character of patterns (*, ? or [). "
            "Rename the folder."
        )
    load = {"path": path, "name": config}
    try:
        # what it keeps of a data set is of no use here, and its own cache may not be writable
        with quiet_cards(), tempfile.TemporaryDirectory(prefix="hfssl-") as cache:
            builder = datasets.load_dataset_builder(**load, cache_dir=cache)
    except Exception as error:
        raise _builder_error(error, dataset, lambda: datasets.get_dataset_config_names(path), kind) from error
    found = _from_builder(builder, dataset, path, load, kind)
    return replace(found, splits={split: each_once(paths) for split, paths in found.splits.items()})


def _pattern(path: str) -> str:
    """A glob in which the folders that are really called so are no patterns."""
    parts = path.split("/")
    number = 0
    while "://" not in path and number < len(parts) and os.path.isdir("/".join(parts[: number + 1]) or "/"):
        number += 1
    return "/".join([*map(glob.escape, parts[:number]), *parts[number:]])


def _find_on_hub(dataset: str, config: str | None, revision: str | None, kind: Modality) -> Found:
    if constants.HF_HUB_OFFLINE:
        return _find_in_cache(dataset, config, revision, kind)
    here = f"There is no file or folder {dataset!r} here.{_nearest(dataset)} "
    # without a connection that is said at once
    final = (httpx.ConnectError, httpx.TimeoutException)
    try:
        # Asked first because it answers in seconds whether the data set can be had, and fixes the revision.
        info = with_retries(lambda: HfApi().dataset_info(dataset, revision=revision, timeout=10), final=final)
        commit = info.sha
        with quiet_cards():
            builder = with_retries(
                lambda: datasets.load_dataset_builder(dataset, name=config, revision=commit), final=final
            )
    except Exception as error:
        raise _hub_error(error, dataset, revision, here, kind) from error
    load = {"path": dataset, "name": config, "revision": commit}
    found = _from_builder(builder, dataset, f"hf://datasets/{dataset}@{commit}", load, kind)
    return replace(found, hub=_known(id=dataset, config=config, revision=commit))


def _find_in_cache(dataset: str, config: str | None, revision: str | None, kind: Modality) -> Found:
    """Offline: what `load_dataset` prepared before, else what was downloaded."""
    try:
        builder = datasets.load_dataset_builder(dataset, name=config)
        found = _from_builder(builder, dataset, "", {"path": dataset, "name": config}, kind)
        return replace(found, hub=_known(id=dataset, config=config))
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
    known = _known(id=dataset, config=config, revision=os.path.basename(folder))
    return replace(_find_folder(folder, folder, config, kind), name=dataset, hub=known)


def _known(**said: str | None) -> dict[str, str]:
    return {name: value for name, value in said.items() if value is not None}


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


def _check_format(dataset: str, module: str, kind: Modality, files: Sequence[str] = ()) -> None:
    """Raise where a format of `datasets` holds nothing of this modality."""
    if module in _HOLDS and module not in kind.extensions.values():
        raise DataError(
            f"{dataset!r} holds {_HOLDS[module]}, no {kind.samples}. Supported are {kind.supported}."
            + _ending_that_lacks(files, kind)
        )
    if module == "harbor":
        raise DataError(
            f"{dataset!r} holds markdown or toml files, which are not read. Supported are {kind.supported}"
            + (": rename them to `.txt`." if ".txt" in kind.extensions else ".")
        )


def _from_builder(builder, dataset: str, root: str, load: dict, kind: Modality) -> Found:
    module = _module(builder)
    _check_format(dataset, module, kind)
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
