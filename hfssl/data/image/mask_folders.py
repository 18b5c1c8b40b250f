"""Which folders of a data set hold images, and which their masks: the names of its files say it.

The layouts are those of [`~hfssl.data.image.masks`]: `images/` and `masks/`, with splits above or below them.
"""

from collections.abc import Iterable
from pathlib import PurePosixPath


IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "annotations", "labels", "segmentations", "gt")


def masked_folders(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """By split the folders of images and of masks; none where there are not both.

    Args:
        names (`Iterable[str]`):
            Files, relative to the folder of the data set.
    """
    folders = _folders(names)
    found = _pair(folders, "")
    if found is None:
        pairs = {top: _pair(folders, f"{top}/") for top in _inside(folders, "")}
        return {split: pair for split, pair in pairs.items() if pair is not None}
    images, masks = (_inside(folders, f"{folder}/") for folder in found)
    splits = [split for split in images if split in masks]
    return {split: tuple(f"{folder}/{split}" for folder in found) for split in splits} or {"train": found}


def mask_folders(names: Iterable[str]) -> list[str]:
    """The folders of masks: those with nothing beside them but the folder of their images.

    Others beside them would be classes, among which one may well be called images or labels.

    Args:
        names (`Iterable[str]`):
            The image files of a data set, relative to its folder.
    """
    folders = _folders(names)
    found = []
    for above in ("", *(f"{top}/" for top in _inside(folders, ""))):
        there = set(_inside(folders, above))
        masks = there.intersection(MASK_FOLDERS)
        if masks and len(there - masks) == 1 and there - masks <= set(IMAGE_FOLDERS):
            found += [f"{above}{folder}" for folder in sorted(masks)]
    return found


def _folders(names: Iterable[str]) -> set[str]:
    """All folders of some files."""
    parents = {str(PurePosixPath(name).parent) for name in names}
    return {str(folder) for parent in parents for folder in (PurePosixPath(parent), *PurePosixPath(parent).parents)}


def _inside(folders: set[str], above: str) -> list[str]:
    """Names of the folders directly in one."""
    inside = {folder.removeprefix(above) for folder in folders if folder.startswith(above)}
    return sorted(folder for folder in inside if "/" not in folder and folder not in ("", "."))


def _pair(folders: set[str], above: str) -> tuple[str, str] | None:
    images, masks = (
        next((f"{above}{name}" for name in names if f"{above}{name}" in folders), None)
        for names in (IMAGE_FOLDERS, MASK_FOLDERS)
    )
    return (images, masks) if images and masks else None
