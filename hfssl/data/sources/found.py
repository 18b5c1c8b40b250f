"""What is known of a data set before it is opened: its files, without the masks of its images."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import PurePosixPath

from ..modality import Modality
from .files import as_patterns, relative_names


logger = logging.getLogger(__name__)

# Folders that a message names.
_MOST_LISTED = 3


@dataclass
class Found:
    """A data set whose files are known and not yet opened.

    `module` is the format by the `datasets` library's name, `"saved"` for a folder of `save_to_disk`. `splits` maps to
    the paths of the files; `load` holds the arguments with which `datasets.load_dataset` loads the same. `hub` names
    id, configuration and revision of a data set of the Hub, as far as they are known. Of the folders in `mask_folders`
    there are no files among them.
    """

    kind: Modality
    name: str
    module: str
    splits: dict[str, list[str]]
    root: str = ""
    features: dict | None = None
    options: dict = field(default_factory=dict)
    load: dict = field(default_factory=dict)
    hub: dict[str, str] = field(default_factory=dict)
    mask_folders: Sequence[str] = ()


def load_files(splits: Mapping[str, list[str]]) -> dict:
    """The argument of `datasets.load_dataset` that names the files of each split."""
    return {"data_files": {str(split): as_patterns(paths) for split, paths in splits.items()}}


def list_folders(folders: Sequence[str]) -> str:
    """Some of the folders, for messages: of each sample there may be one."""
    more = [f"and {len(folders) - _MOST_LISTED:,} more"] if len(folders) > _MOST_LISTED else []
    return ", ".join([*(f"{folder}/" for folder in folders[:_MOST_LISTED]), *more])


def without_masks(found: Found) -> Found:
    """Without the files in folders of masks, where each file is a sample."""
    names = {split: relative_names(paths, found.root) for split, paths in found.splits.items()}
    samples = [name for of in names.values() for name in of if name.lower().endswith(found.kind.file_extensions)]
    folders = found.kind.mask_folders(samples)
    if not folders:
        return found
    of_masks = set(folders)

    def is_mask(name: str) -> bool:
        return any(parent.as_posix() in of_masks for parent in PurePosixPath(name).parents)

    splits = {
        split: [path for path, name in zip(paths, names[split], strict=True) if not is_mask(name)]
        for split, paths in found.splits.items()
    }
    splits = {split: paths for split, paths in splits.items() if paths}
    number = sum(map(is_mask, samples))
    _say_left_out(found.name, found.kind.samples, number, list_folders(folders))
    load = {name: value for name, value in found.load.items() if name != "data_dir"}
    return replace(found, splits=splits, load={**load, **load_files(splits)}, mask_folders=folders)


@cache
def _say_left_out(dataset: str, samples: str, number: int, folders: str) -> None:
    """Once, and not for each split that is opened."""
    logger.info(
        "%s: %s files in %s are left out, since these are masks of the %s beside them.", dataset, f"{number:,}",
        folders, samples,
    )  # fmt: skip
