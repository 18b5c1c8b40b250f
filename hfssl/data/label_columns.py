"""Which column of a data set holds the labels of its samples."""

import logging
from functools import cache

import datasets

from ..errors import DataError
from .label_values import NoLabels
from .multi_label import item_of
from .sources import Source
from .sources.columns import check_column, list_columns


logger = logging.getLogger(__name__)

# In the order in which they are looked for, where no column or several have the type of a label.
LABEL_NAMES = ("label", "labels", "fine_label", "class", "category", "target", "cls", "y")
# Of these, what beside class folders is as likely something else, such as the place of a box.
VAGUE_NAMES = ("cls", "y")
# The column of class folders.
FOLDERS = "label"
TRANSCRIPT_NAMES = ("text", "transcript", "transcription", "sentence", "normalized_text", "raw_text", "words")


def has_labels(source: Source) -> bool:
    """Whether the samples of a source have a column of labels that is found without being named."""
    try:
        find_label_column(source.features, None, "")
    except DataError:
        return False
    return True


@cache
def say_which(label_column: str, columns: str, name: str) -> None:
    """Once, where class folders and a table both say something of the files."""
    if label_column == FOLDERS:
        said = "are the names of its class folders. Another column may be named instead"
    else:
        said = f"are column {label_column!r}. That of the class folders is {FOLDERS!r}, and may be named instead"
    logger.info("Labels of %s %s: it has %s.", name, said, columns)


def find_label_column(
    features: dict,
    asked: str | None,
    name: str,
    of_samples: str | None = None,
    of_folders: str | None = None,
    by_folder: bool = False,
) -> str:
    """The column of labels: the one that was asked for, else the only one, or one of a usual name; that of the class
    folders only where there is no other, and `by_folder`."""
    others = {column: feature for column, feature in features.items() if column not in (of_samples, of_folders)}
    if asked is not None:
        check_column(features, asked, name)
        if not _is_label(features[asked]):
            raise DataError(
                f"Column {asked!r} of {name} holds no labels: ClassLabel, strings, integers or booleans are needed. "
                f"The columns are: {list_columns(features)}. Choose one with `--label_column`."
            )
        return asked
    typed = [column for column, feature in others.items() if isinstance(feature, datasets.ClassLabel)]
    if len(typed) == 1:
        return typed[0]
    candidates = typed or [column for column, feature in others.items() if _is_label(feature)]
    by_lower_name = {column.lower(): column for column in reversed(candidates)}
    has_folders = by_folder and of_folders is not None
    for usual in LABEL_NAMES:
        if usual in by_lower_name and not (has_folders and usual in VAGUE_NAMES):
            return by_lower_name[usual]
    if has_folders:
        return of_folders
    problem = f"{len(typed)} columns of labels" if typed else "no column of labels"
    remedy = (
        "the files of a folder have labels where each class has a folder of its own, or in a table (`--labels`)."
        if of_folders is None
        else f"`--label_column {of_folders}` takes the class folders."
    )
    raise NoLabels(
        f"{name} has {problem}. Its columns are: {list_columns(features)}. Choose one with `--label_column`; {remedy}"
    )


def transcript_column(features: dict, name: str) -> str:
    """The column of what is said, by its usual names; `name` is that of the data, for the error without one."""
    usual = [column for each in TRANSCRIPT_NAMES for column in features if column.lower() == each]
    if not usual:
        known = list_columns(features)
        raise DataError(f"{name} has no transcripts. Its columns are: {known}. Choose one with `--label_column`.")
    return usual[0]


def _is_label(feature) -> bool:
    item = item_of(feature)
    if isinstance(item or feature, datasets.ClassLabel):
        return True
    # whole numbers of which some are missing are read as floats; a list of floats is something else, such as a feature
    kinds = ("string", "large_string", "int", "uint", "bool", *(("float", "double") if item is None else ()))
    return isinstance(item or feature, datasets.Value) and (item or feature).dtype.startswith(kinds)
