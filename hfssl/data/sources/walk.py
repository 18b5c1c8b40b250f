"""The files below a folder, whatever they are called and wherever links lead, and the splits that their names say.

The rules are those of the `datasets` library, but a folder is gone through once, nothing is written to a cache, no
name is taken for a pattern, and what a link shows a second time is left out.
"""

import os
import re
from collections.abc import Sequence
from pathlib import PurePath

from datasets.data_files import FILES_TO_IGNORE, _get_data_files_patterns
from fsspec.utils import glob_translate

from .files import unreadable


# What `datasets` takes for the name of a split, in the name of a folder or file.
_SPLIT_OF_FOLDER = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# Names that may say a split, or a format with splits of its own: then it takes all patterns of `datasets` to tell.
_SAYS_MORE = re.compile(
    rf"(?:^|[-._ 0-9/])(?:{'|'.join(_SPLIT_OF_FOLDER)})(?:$|[-._ 0-9/])"
    r"|^data/.*-of-|\.eval$|(?:^|/)(?:task\.toml|instruction\.md)$"
)


def files_below(folder: str) -> list[str]:
    """The files below a folder, sorted by their paths; hidden ones and those in folders such as `__pycache__` are not
    looked for.

    Links to folders are followed, but no folder is gone through twice: the path without a link counts, of several
    links the first. Links to files are listed, also where they lead nowhere: whether one is there twice is for
    [`each_once`] to say of each split, which may be made of links alone.
    """
    files: dict[str, str] = {}  # real path -> path
    file_links: list[str] = []
    folders, folder_links, seen = [folder], [], set()
    while folders or folder_links:
        # links wait until all that is there without one has been seen
        path = folders.pop() if folders else folder_links.pop(folder_links.index(min(folder_links)))
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = list(os.scandir(path))
        except OSError as error:
            raise unreadable(path, error) from error
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # not `entry.is_dir()`, which a link to itself stops
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                if not entry.name.startswith("__"):
                    (folder_links if entry.is_symlink() else folders).append(entry.path)
            elif entry.is_symlink():
                file_links.append(entry.path)
            elif entry.is_file() and entry.name not in FILES_TO_IGNORE:
                files[os.path.join(real, entry.name)] = entry.path
    return sorted([*files.values(), *(link for link in file_links if os.path.basename(link) not in FILES_TO_IGNORE)])


def names_below(folder: str, extensions: tuple[str, ...]) -> list[str]:
    """The files with some endings in a folder and in those below it, relative to it."""
    files = [file for file in files_below(folder) if file.lower().endswith(extensions)]
    return [PurePath(file).relative_to(folder).as_posix() for file in files]


def each_once(paths: Sequence[str]) -> list[str]:
    """Local files without those that are among them under another path, by links; in their order."""
    names: dict[str, str] = {}
    real_folders = {folder: os.path.realpath(folder) for folder in set(map(os.path.dirname, paths))}
    places = {path: os.path.join(real_folders[os.path.dirname(path)], os.path.basename(path)) for path in paths}
    for path, place in sorted(places.items(), key=lambda item: (item[0] != item[1], item[0].count("/"), item[0])):
        names.setdefault(place, path)
    kept = set(names.values())

    def shown_elsewhere(path: str) -> bool:
        real = os.path.realpath(path) if os.path.islink(path) else places[path]
        return real != places[path] and real in names

    return [path for path in dict.fromkeys(paths) if path in kept and not shown_elsewhere(path)]


def splits_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Files by split, from their names relative to the folder: in the order of the splits, then of the names."""
    tops = {name.partition("/")[0] for name in names}
    if all(top in _SPLIT_OF_FOLDER for top in tops):
        splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for name in names:
            splits[_SPLIT_OF_FOLDER[name.partition("/")[0]]].append(name)
        return {split: of_split for split, of_split in splits.items() if of_split}
    if not any(map(_SAYS_MORE.search, names)):
        return {"train": list(names)}

    def matching(pattern: str) -> list[str]:
        matches = re.compile(glob_translate(pattern)).match
        return [name for name in names if matches(name)]

    patterns = _get_data_files_patterns(matching)
    return {
        str(split): list(dict.fromkeys(name for pattern in of_split for name in matching(pattern)))
        for split, of_split in patterns.items()
    }


def class_of(path: str) -> str:
    """The folder in which a file lies."""
    return os.path.basename(os.path.dirname(path))


def class_names(splits: Sequence[Sequence[str]]) -> list[str]:
    """The class folders of the files of each split, sorted; none where the files do not lie in such.

    The rule is nearly that of the `datasets` library: several folders that hold files, all at the same depth. Folders
    with a split in each are none.
    """
    classes = [{class_of(path) for path in paths} for paths in splits]
    depths = {path.count("/") for paths in splits for path in paths}
    return sorted(set().union(*classes)) if max(map(len, classes)) > 1 and len(depths) == 1 else []
