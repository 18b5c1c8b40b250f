"""Where copies of data go that cannot be read as they are, and how zip files become one."""

import atexit
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import datasets
from filelock import FileLock

from ...errors import DataError
from .base import new_digest, third_party


logger = logging.getLogger(__name__)


@cache
def writable(folder: str | Path) -> Path:
    """A folder that is to hold copies; where it cannot be written, one for this process."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        temporary = tempfile.mkdtemp(prefix="hfssl-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        logger.info("%s cannot be written (%s): copies are made in %s, for this run.", folder, error, temporary)
        return Path(temporary)
    return folder


def unpacked_zip(path: str, endings: Sequence[str]) -> str:
    """A folder with the files of a zip that have one of some endings, unpacked once.

    Raises:
        DataError: where there are none, or where they cannot be unpacked.
    """
    name = os.path.basename(path)
    with third_party(lambda: zipfile.ZipFile(path), f"{name!r} is no whole zip") as archive:
        members = [
            member
            for member in archive.infolist()
            if member.filename.lower().endswith(tuple(endings))
            and not os.path.basename(member.filename).startswith((".", "__"))
            and "__MACOSX" not in member.filename
        ]
        if not members:
            raise DataError(f"The zip {name!r} holds no file that can be read. Those end in {', '.join(endings)}.")
        content = sorted((member.filename, member.file_size, member.CRC) for member in members)
        copies = writable(datasets.config.HF_DATASETS_CACHE)
        target = copies / new_digest("zip", content).hexdigest()[:32]
        if not target.is_dir():
            logger.info("%s is unpacked once to a copy in %s.", name, copies)
            # of several processes one makes it, and the others wait
            with FileLock(f"{target}.lock"), tempfile.TemporaryDirectory(dir=copies) as temporary:
                if not target.is_dir():
                    whole = Path(temporary, "whole")
                    third_party(lambda: archive.extractall(whole, members), f"{name!r} cannot be unpacked to {copies}")
                    os.replace(whole, target)
    return str(target)
