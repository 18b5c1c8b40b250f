"""Features on disk, under names that tell all that they depend on."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np


logger = logging.getLogger(__name__)


def digest(*parts: Any) -> str:
    """64 characters that change with each of some parts, such as names and numbers."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def read_features(path: Path | None, num_rows: int) -> np.ndarray | None:
    """Features of so many rows, `None` where there are none."""
    if path is None or not path.is_file():
        return None
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        logger.warning("%s is damaged (%s): its features are made again.", path, error)
        return None
    return features if features.ndim == 2 and len(features) == num_rows else None


def write_features(path: Path, features: np.ndarray) -> None:
    """Write features in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, features, allow_pickle=False)
    temporary.replace(path)
