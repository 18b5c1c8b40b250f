"""Which folders of a data set hold images, and which their masks: the names of its files say it.

The layouts are those of [`~hfssl.data.image.masks`]: `images/` and `masks/`, in capitals or not, with splits above or
below them, and a folder or several around it all.
"""

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath


IMAGE_FOLDERS = ("images", "image", "imgs", "img")
MASK_FOLDERS = ("masks", "mask", "annotations", "labels", "segmentations", "gt")


def masked_folders(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """By split the folders of images and of masks; none where there are not both.

    Args:
        names (`Iterable[str]`):
            Files, relative to the folder of the data set.
    """
    inside, above = _folders_by_above(names), ""
    while True:
        found = _pair(inside, above)
        if found is not None:
            break
        below = [_joined(above, top) for top in inside.get(above, ())]
        pairs = {PurePosixPath(folder).name: _pair(inside, folder) for folder in below}
        pairs = {split: pair for split, pair in pairs.items() if pair is not None}
        if pairs or len(below) != 1:
            return pairs
        above = below[0]
    images, masks = (inside.get(folder, []) for folder in found)
    splits = [split for split in images if split in masks]
    return {split: tuple(f"{folder}/{split}" for folder in found) for split in splits} or {"train": found}


def mask_folders(names: Iterable[str]) -> list[str]:
    """The folders of masks: those with nothing beside them but the folder of their images.

    Others beside them would be classes, among which one may well be called images or labels.

    Args:
        names (`Iterable[str]`):
            The image files of a data set, relative to its folder.
    """
    inside, around = _folders_by_above(names), ""
    while len(inside.get(around, ())) == 1:
        around = _joined(around, inside[around][0])
    found = []
    for above in (around, *(_joined(around, top) for top in inside.get(around, ()))):
        there = inside.get(above, [])
        masks = [name for name in there if name.lower() in MASK_FOLDERS]
        others = [name for name in there if name not in masks]
        if masks and len(others) == 1 and others[0].lower() in IMAGE_FOLDERS:
            found += [_joined(above, folder) for folder in masks]
    return found


def _folders_by_above(names: Iterable[str]) -> dict[str, list[str]]:
    """By the folder above them, which is blank for that of the data set, the sorted names of all folders of files."""
    inside: dict[str, set[str]] = {}
    for parent in {str(PurePosixPath(name).parent) for name in names} - {"."}:
        above, _, name = parent.rpartition("/")
        # one that is known has those above it known
        while name and name not in inside.setdefault(above, set()):
            inside[above].add(name)
            above, _, name = above.rpartition("/")
    return {above: sorted(there) for above, there in inside.items()}


def _joined(above: str, name: str) -> str:
    return f"{above}/{name}" if above else name


def _pair(inside: Mapping[str, list[str]], above: str) -> tuple[str, str] | None:
    by_lower_name = {name.lower(): _joined(above, name) for name in inside.get(above, ())}
    images, masks = (
        next((by_lower_name[name] for name in names if name in by_lower_name), None)
        for names in (IMAGE_FOLDERS, MASK_FOLDERS)
    )
    return (images, masks) if images and masks else None
