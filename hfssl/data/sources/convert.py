"""Files that cannot be opened in the middle (csv, a JSON array, compressed) are converted to a memory-mapped copy."""

import codecs
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from .base import new_digest, third_party
from .files import is_remote, open_bytes
from .find import COMPRESSIONS, Found, quiet_cards
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
    with open_bytes(path) as file:
        head = file.read(1 << 20)
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


def convert_once(
    found: Found, split: str, sample_by: str, fingerprint: str | None, why: str, **options
) -> TableSource:
    """The memory-mapped copy that `datasets.load_dataset` makes; `options` are those of [`TableSource`]."""
    cache = datasets.config.HF_DATASETS_CACHE
    if found.module != "cache":
        logger.info(
            "%s is converted once to a memory-mapped copy in %s, since %s. Later runs use the copy.",
            found.name,
            cache,
            why,
        )
    load = _load_by_links(found, split) or found.load
    sampling = {"sample_by": sample_by} if found.module == "text" else {}
    with quiet_cards():
        table = third_party(
            lambda: datasets.load_dataset(**load, **sampling, split=split),
            f"{found.name!r} cannot be converted to a memory-mapped copy in {cache}",
        )
    return TableSource(
        table,
        name=found.name,
        fingerprint=fingerprint and new_digest(fingerprint, sample_by).hexdigest(),
        null_is_blank=found.module == "csv",
        **options,
    )


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
