"""Small tables that took time to make, kept in `HF_HOME/hfssl`."""

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants


logger = logging.getLogger(__name__)


def cached_columns(name: str, make: Callable[[], dict[str, list]]) -> dict[str, list]:
    """The columns that `make` gives, from the cache where they are there already.

    A cache that is damaged is made anew, and one that cannot be written is done without.

    Args:
        name (`str`):
            File name without its ending: has to change with what is made.
        make (`Callable[[], dict[str, list]]`):
            Makes equally long columns.
    """
    path = Path(constants.HF_HOME, "hfssl", f"{name}.parquet")
    columns = _load(path)
    if columns is None:
        columns = make()
        _save(columns, path)
    return columns


def _load(path: Path) -> dict[str, list] | None:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        return table.to_pydict() if len(table) else None
    except FileNotFoundError:
        return None
    except Exception:
        logger.debug("The cache %s cannot be read and is made anew", path, exc_info=True)
        return None


def _save(columns: dict[str, list], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
        os.close(handle)
        pq.write_table(pa.table(columns), temporary, compression="zstd")
        # Written aside and renamed, so that another process never sees a part of it.
        os.replace(temporary, path)
    except (OSError, pa.ArrowException):
        logger.debug("The cache %s cannot be written; the next run makes it again", path, exc_info=True)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
