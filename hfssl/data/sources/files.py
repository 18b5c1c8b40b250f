"""Files, local and remote alike: open, try again, measure, fingerprint, and say why they cannot be read."""

import errno
import glob
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import unquote

import datasets
import fsspec
import numpy as np
from huggingface_hub.utils import httpx

from ...errors import DataError, first_line
from ..modality import Input
from .base import PIECE_BYTES, Damage, new_digest, third_party


logger = logging.getLogger(__name__)

# A file with one sample that is longer is damaged: nothing may need unbounded memory.
MAX_SAMPLE_BYTES = 256 << 20
# What opening says of a path at which there can be no file.
_NO_FILE = {errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}


class FileIsGone(DataError):
    """A file that was there when the data set was opened: what is met in the middle of a run is damage."""


@dataclass
class SplitFiles:
    """The files of one split on their way to what reads them.

    Attributes:
        dataset (`str`):
            The data set's name in messages.
        paths, names (`list[str]`), sizes (`list[int]`):
            The files, their names relative to the data set, their bytes.
        fingerprint (`str`):
            Of the files, see [`files_digest`].
        inputs (`dict[str, Input]`):
            What is to be read.
        features (`dict`, *optional*):
            Column to feature, where the data set says it.
        splits (`dict[str, list[str]]`):
            The paths of all splits.
        sample_by (`str`):
            What a sample of a txt file is.
        piece_bytes (`int`):
            About how large a piece of small samples is.
    """

    dataset: str
    paths: list[str]
    names: list[str]
    sizes: list[int]
    fingerprint: str
    inputs: dict[str, Input]
    features: dict | None
    splits: dict[str, list[str]]
    sample_by: str = "line"
    piece_bytes: int = PIECE_BYTES


def is_remote(path: str) -> bool:
    """Whether a path is an address, such as `hf://…` or `https://…`."""
    return "://" in path


def path_of(name: str, folder: str) -> str:
    """The path of a local file that a table names: relative to a folder, absolute, or as `file://…`."""
    name = name.strip()
    name = unquote(name.removeprefix("file://")) if name.startswith("file://") else name
    return os.path.join(folder, name)


def open_bytes(path: str):
    """Open without a cache: of a remote file nothing is fetched but the ranges that are asked for."""
    if is_remote(path):
        filesystem, name = fsspec.core.url_to_fs(path)
        return filesystem.open(name, "rb", cache_type="none")
    return open(path, "rb", buffering=0)


def with_retries(
    read: Callable,
    again: Callable = lambda: None,
    waits: Sequence[float] = (1, 4, 16),
    final: tuple[type[Exception], ...] = (),
):
    """Call `read`, again when a remote file system fails for the moment; not after an error of the kinds `final`."""
    for wait in (*waits, None):
        try:
            return read()
        except (httpx.HTTPError, ConnectionError, TimeoutError) as error:
            status = getattr(getattr(error, "response", None), "status_code", 500)
            if wait is None or isinstance(error, final) or (status < 500 and status != 429):
                raise
            logger.warning(
                "Reading failed (%s: %s), trying again in %d s.", type(error).__name__, first_line(error), wait
            )
            time.sleep(wait)
            again()


def read_file(path: str) -> bytes | Damage:
    """The content of a file that holds one sample. What is gone, no file, or too long is a damaged sample."""

    def read() -> bytes:
        with open_bytes(path) as file:
            return file.read(MAX_SAMPLE_BYTES + 1)

    try:
        data = with_retries(read)
    except FileNotFoundError:
        return missing(path)
    except Exception as error:
        # with a character in it that no path has, Python refuses to look
        if isinstance(error, OSError) and error.errno in _NO_FILE or "\0" in path:
            return Damage(f"{path!r} is no file ({first_line(error)})")
        raise unreadable(path, error) from error
    return data if len(data) <= MAX_SAMPLE_BYTES else Damage(f"longer than {MAX_SAMPLE_BYTES >> 20} MiB")


def missing(name: str) -> Damage:
    """A sample whose file is gone."""
    return Damage(f"the file {name!r} is missing")


def download_once(paths: Sequence[str], dataset: str, sizes: Sequence[int]) -> list[str]:
    """Fetch remote files that have to be looked through before they can be read in the middle; their local copies."""
    logger.info(
        "%s: %d file(s), %.1f GB, are downloaded once, since they cannot be read in the middle over the network.",
        dataset, len(paths), sum(sizes) / 1e9,
    )  # fmt: skip
    return third_party(
        lambda: with_retries(lambda: list(datasets.DownloadManager().download(list(paths)))),
        f"{dataset!r} cannot be downloaded",
    )


def unreadable(name: str, error: Exception) -> DataError:
    """The error for the user where a file cannot be read, and what to do about it."""
    if isinstance(error, PermissionError):
        return DataError(
            f"{name!r} cannot be read: permission denied. Change its permissions (e.g. `chmod +r`) or its owner."
        )
    if isinstance(error, FileNotFoundError):
        return FileIsGone(
            f"{name!r} is gone: it was there when the data set was opened. Put it back, or start again without it."
        )
    if isinstance(error, (httpx.HTTPError, ConnectionError, TimeoutError)):
        return DataError(
            f"{name!r} could not be fetched ({type(error).__name__}: {first_line(error)}). Check the connection and "
            "start again, or download the data set first and pass the folder."
        )
    return DataError(f"{name!r} cannot be read ({type(error).__name__}: {first_line(error)}).")


def check_readable(paths: Iterable[str], may_miss: bool = False) -> None:
    """Raise where a local file cannot be read; with `may_miss` not where one is gone, which is for its reader."""
    for path in paths:
        if not is_remote(path) and not os.access(path, os.R_OK):
            exists = os.path.exists(path)
            if exists or not may_miss:
                raise unreadable(path, PermissionError() if exists else FileNotFoundError())


def as_patterns(paths: Iterable[str]) -> list[str]:
    """Paths of files or folders as patterns that match nothing else: `datasets` takes every path for a pattern, and a
    folder may be called `corpus [2024]`."""
    return [path if is_remote(path) else glob.escape(path) for path in paths]


def relative_names(paths: Sequence[str], root: str) -> list[str]:
    """Names for messages and fingerprints, which do not tell the place of the folder."""
    if not root:
        return [os.path.basename(path) for path in paths]
    return [path.removeprefix(root).lstrip("/") for path in paths]


def file_sizes(paths: Sequence[str]) -> tuple[list[int], list[str]]:
    """Size of each file, and for remote files what identifies the content."""
    if not is_remote(paths[0]):
        return [os.path.getsize(path) if os.path.exists(path) else 0 for path in paths], [""] * len(paths)

    def look_up(path: str) -> tuple[int, str]:
        filesystem, name = fsspec.core.url_to_fs(path)
        info = filesystem.info(name)
        found = [info[key] for key in ("blob_id", "lfs", "ETag", "etag", "mtime", "LastModified") if info.get(key)]
        return int(info["size"] or 0), str(found[:1])

    try:
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda path: with_retries(lambda: look_up(path)), paths))
    except Exception as error:
        raise unreadable(paths[0], error) from error
    return [size for size, _ in found], [identity for _, identity in found]


def files_digest(paths: Sequence[str], names: Sequence[str], sizes: Sequence[int], ids: Sequence[str]) -> str:
    """Changes with names, sizes and content, not with the place or the time of a copy.

    Of long local files the start, the middle and the end are looked at, of very many files some: enough to notice data
    that were made anew, without reading them. Times of modification do not count: a copy on another disk has new ones.
    """
    digest = new_digest(list(names), [int(size) for size in sizes], list(ids))
    if not is_remote(paths[0]):
        for i in np.unique(np.linspace(0, len(paths) - 1, 512).astype(int)):
            if not os.path.isfile(paths[i]):
                continue
            with open(paths[i], "rb", buffering=0) as file:
                for position in (0, sizes[i] // 2, sizes[i] - 4096) if sizes[i] > 1 << 16 else (0,):
                    file.seek(position)
                    digest.update(file.read(4096 if sizes[i] > 1 << 16 else -1))
    return digest.hexdigest()
