"""Files that cannot be opened in the middle (csv, a JSON array, compressed) are converted to a memory-mapped copy."""

import codecs
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO

import datasets
import fsspec
import numpy as np
import pyarrow as pa
from datasets.packaged_modules.csv.csv import CsvConfig
from filelock import FileLock

from ...errors import DataError
from .base import Source, new_digest, third_party
from .copies import writable
from .delimited import DAMAGE, convert_delimited
from .files import SplitFiles, as_patterns, file_sizes, is_remote, open_bytes, relative_names, with_retries
from .find import COMPRESSIONS, quiet_cards
from .found import Found
from .tables import TableSource


logger = logging.getLogger(__name__)


def why_convert(found: Found, paths: list[str], sizes: Sequence[int]) -> str | None:
    """Why the files have to go through `datasets.load_dataset`, None if they can be read as they are."""
    if found.module not in ("parquet", "arrow", *found.kind.readers):
        return f"{found.module} files cannot be opened in the middle"
    packed = [path for path in paths if path.endswith((*COMPRESSIONS, ".tgz")) or "::" in path]
    if packed:
        return f"compressed files ({os.path.basename(packed[0])}) cannot be opened in the middle"
    if found.module == "arrow":
        if is_remote(paths[0]):
            return "remote arrow files cannot be memory-mapped"
        for path in paths:
            try:
                pa.ipc.open_stream(pa.memory_map(path)).close()
            except pa.ArrowInvalid:
                return f"{os.path.basename(path)} is an Arrow IPC file, not a stream"
    if found.module == "json":
        full = [path for path, size in zip(paths, sizes, strict=True) if size]
        for i in np.unique(np.linspace(0, len(full) - 1, 2 if is_remote(full[0]) else 32).astype(int)):
            if not _is_json_lines(full[i]):
                return f"{os.path.basename(full[i])} is one JSON document, not one object a line"
    options = [name for name in ("field", "filters", "columns") if found.options.get(name) is not None]
    if found.options.get("encoding", "utf-8").lower().replace("_", "-") not in ("utf-8", "utf8"):
        options.append("encoding")
    return f"its configuration sets {options[0]!r}" if options else None


def _is_json_lines(path: str) -> bool:
    def read() -> bytes:
        with open_bytes(path) as file:
            return file.read(1 << 20)

    head = third_party(lambda: with_retries(read), f"{path!r} cannot be read")
    whole = len(head) < 1 << 20
    head = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if not head.startswith(b"{"):
        return not head.startswith(b"[")
    line, newline, _ = head.partition(b"\n")
    if not path.endswith(".json"):
        return True
    try:
        return isinstance(json.loads(line), dict) and (bool(newline) or whole)
    except (ValueError, RecursionError):
        return False


def convert_once(found: Found, split: str, sample_by: str, fingerprint: str | None, why: str, **options) -> Source:
    """What is read of a copy that is made once: plain text of compressed files, else a memory-mapped table.

    `options` are those of [`TableSource`].
    """
    folder_of_copies = writable(datasets.config.HF_DATASETS_CACHE)
    paths = found.splits[split]
    packed = [path for path in paths if path.endswith(COMPRESSIONS)]
    if fingerprint and packed and found.module in found.kind.readers and why.startswith("compressed"):
        folder = folder_of_copies / new_digest("plain", fingerprint).hexdigest()[:32]
        plain = [folder / f"{i}{Path(_without_compression(path)).suffix}" for i, path in enumerate(paths)]
        if not all(target.is_file() for target in plain):
            _say_once(found.name, folder_of_copies, why)
        for path, target in zip(paths, plain, strict=True):
            _make_once(target, os.path.basename(path), partial(_unpack, path))
        plain = [str(path) for path in plain]
        sizes = file_sizes(plain)[0]
        load = {"path": found.module, "data_files": {split: as_patterns(plain)}}
        copy = replace(found, splits={split: plain}, load=load)
        if not sum(sizes):
            raise DataError(f"{found.name!r} is empty: its files of split {split!r} hold nothing but compression.")
        if why_convert(copy, plain, sizes) is None:
            names = relative_names(paths, found.root)
            return found.kind.readers[found.module](
                SplitFiles(
                    found.name, plain, names, sizes, fingerprint, features=found.features, splits=copy.splits,
                    sample_by=sample_by, **options,
                )
            )  # fmt: skip
        found = copy
    table, damage = converted_table(found, split, sample_by, fingerprint, why)
    fingerprint = fingerprint and new_digest(fingerprint, sample_by).hexdigest()
    return TableSource(table, name=found.name, fingerprint=fingerprint, damage=damage, **options)


def converted_table(
    found: Found, split: str, sample_by: str, fingerprint: str | None, why: str
) -> tuple[datasets.Dataset, str | None]:
    """The memory-mapped copy of what is found, made once; and the column that says which rows are damaged, if any."""
    folder_of_copies = writable(datasets.config.HF_DATASETS_CACHE)
    if fingerprint and found.module == "csv" and _is_plain_csv(found):
        paths, separator = found.splits[split], found.load.get("sep", found.options.get("sep"))
        given = {"sep": separator} if separator and separator != "," else {}
        target = folder_of_copies / new_digest("csv", fingerprint, given).hexdigest()[:32] / "rows.arrow"
        openers = [
            (name, partial(_open_plain, path))
            for path, name in zip(paths, relative_names(paths, found.root), strict=True)
        ]
        if not target.is_file():
            _say_once(found.name, folder_of_copies, why)
        _make_once(target, found.name, lambda path: convert_delimited(openers, path, given))
        table = third_party(lambda: datasets.Dataset.from_file(str(target)), f"The copy {target} cannot be opened")
        return table, DAMAGE
    if found.module != "cache":
        _say_once(found.name, folder_of_copies, why)  # whether there is a copy, `datasets` knows
    load = _load_by_links(found, split) or found.load
    sampling = {"sample_by": sample_by} if found.module == "text" else {}
    with quiet_cards():
        table = third_party(
            lambda: datasets.load_dataset(**load, **sampling, split=split, **_cache_dir(folder_of_copies)),
            f"{found.name!r} cannot be converted to a memory-mapped copy in {folder_of_copies}",
        )
    return table, None


@cache
def _say_once(name: str, folder: Path, why: str) -> None:
    logger.info("%s is converted once to a copy in %s, since %s.", name, folder, why)


def _cache_dir(folder: Path) -> dict[str, str]:
    return {} if folder == Path(datasets.config.HF_DATASETS_CACHE) else {"cache_dir": str(folder)}


def _make_once(path: Path, name: str, make: Callable[[Path], None]) -> None:
    """Make a file where it is not there yet: aside and renamed, so that another process never sees a part of it."""
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # of several processes one makes it, and the others wait
    with FileLock(f"{path}.lock"), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        if path.is_file():
            return
        temporary = Path(folder, path.name)
        third_party(
            lambda: with_retries(lambda: make(temporary)), f"{name!r} cannot be converted to a copy in {path.parent}"
        )
        os.replace(temporary, path)


def _unpack(path: str, target: Path) -> None:
    with _open_plain(path) as file, open(target, "wb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)


def _open_plain(path: str) -> BinaryIO:
    """A file from its beginning, unpacked."""
    if path.endswith(".zst"):  # fsspec wants another package for it
        packed = open_bytes(path)
        return pa.CompressedInputStream(pa.PythonFile(packed, "r"), "zstd")
    return fsspec.open(path, "rb", compression="infer").open()


def _without_compression(name: str) -> str:
    return name.removesuffix(next((ending for ending in COMPRESSIONS if name.endswith(ending)), ""))


def _is_plain_csv(found: Found) -> bool:
    """Whether a card says no more of a csv than its separator and encoding."""
    defaults = vars(CsvConfig())
    others = {"name", "version", "data_dir", "data_files", "description", "features", "sep", "delimiter"}
    return all(value == defaults.get(name) for name, value in found.options.items() if name not in others)


def _load_by_links(found: Found, split: str) -> dict | None:
    """Arguments that load compressed files through links with plain names, where theirs are no valid URL: `datasets`
    makes one of the path of a compressed file, and a bracket in it is taken for an address. Else None."""
    paths = found.splits[split]
    if not any("[" in path and path.endswith(COMPRESSIONS) and not is_remote(path) for path in paths):
        return None
    # in a place that stays, since the copy is found again by the paths of its files
    folder = Path(datasets.config.HF_DATASETS_CACHE, "links", new_digest(paths).hexdigest()[:32])
    folder.mkdir(parents=True, exist_ok=True)
    links = []
    for i, path in enumerate(paths):
        link = folder / f"{i}{Path(path).suffix}"
        if not link.is_symlink():
            link.symlink_to(path)
        links.append(str(link))
    separator = found.load.get("sep", found.options.get("sep"))
    options = {} if separator is None else {"sep": separator}
    return {"path": found.module, "data_files": {split: links}, **options}
