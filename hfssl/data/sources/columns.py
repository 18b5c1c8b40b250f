"""Which column of a data set holds the texts, images or recordings."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import datasets

from .base import DataError


@dataclass(frozen=True)
class Modality:
    is_feature: Callable[[object], bool]
    names: tuple[str, ...]
    flag: str
    # features that are taken where no column has the right one
    is_raw: Callable[[object], bool] = lambda feature: False


def _is_text(feature) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "string_view")


def _is_binary(feature) -> bool:
    """Bytes, or the struct in which `datasets` keeps media, without the type that says so."""
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary", "binary_view")


MODALITIES = {
    "text": Modality(
        _is_text,
        ("text", "sentence", "content", "document", "article", "passage", "paragraph", "body", "abstract", "review"),
        "--text_column",
    ),
    "image": Modality(
        lambda feature: isinstance(feature, datasets.Image),
        ("image", "img", "picture", "photo", "jpg", "png", "webp"),
        "--image_column",
        _is_binary,
    ),
    "audio": Modality(
        lambda feature: isinstance(feature, datasets.Audio),
        ("audio", "sound", "speech", "wav", "flac", "mp3"),
        "--audio_column",
    ),
}
# Modalities that can be read.
READABLE = ("text", "image")


def find_column(
    features: dict, modality: str = "text", column: str | None = None, dataset: str = "The dataset"
) -> str:
    """The column that holds the modality: the one asked for, the only one of its type, or one with a usual name.

    Args:
        features (`dict`):
            Column name to `datasets` feature.
        modality (`str`, *optional*, defaults to `"text"`):
            `"text"`, `"image"` or `"audio"`.
        column (`str`, *optional*):
            What the user asked for. It must exist and have the right type.
        dataset (`str`, *optional*):
            The data set's name in error messages.

    Example:
        >>> from datasets import Value
        >>> find_column({"id": Value("int64"), "sentence": Value("string")})
        'sentence'
    """
    wanted = MODALITIES[modality]
    listing = list_columns(features)
    if column is not None:
        check_column(features, column, dataset)
        if not (wanted.is_feature(features[column]) or wanted.is_raw(features[column])):
            raise DataError(
                f"Column {column!r} of {dataset} is {_type_name(features[column])}, but a column of type {modality} "
                f"is needed. The columns are: {listing}. Choose one with `{wanted.flag}`."
            )
        return column
    candidates = [name for name, feature in features.items() if wanted.is_feature(feature)]
    candidates = candidates or [name for name, feature in features.items() if wanted.is_raw(feature)]
    if len(candidates) == 1:
        return candidates[0]
    by_lower_name = {name.lower(): name for name in reversed(candidates)}
    for name in wanted.names:
        if name in by_lower_name:
            return by_lower_name[name]
    problem = f"{len(candidates)} columns of type {modality}" if candidates else f"no column of type {modality}"
    remedy = f"Choose one with `{wanted.flag}`." if candidates else "Use another data set or convert a column."
    raise DataError(f"{dataset} has {problem}. Its columns are: {listing}. {remedy}")


def check_column(features: dict, column: str, dataset: str) -> None:
    """Raise where a data set has no such column."""
    if column not in features:
        near = difflib.get_close_matches(column, features, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{dataset} has no column {column!r}. Its columns are: {list_columns(features)}.{hint}")


def list_columns(features: dict) -> str:
    """The columns of a data set and their types, for messages."""
    return ", ".join(f"{name!r} ({_type_name(feature)})" for name, feature in features.items()) or "none"


def find_columns(
    features: dict, modality: str, column: str | None, beside: Sequence[str] = (), dataset: str = "The dataset"
) -> list[str]:
    """The column that holds the modality (see [`find_column`]), then those that are wanted beside it."""
    columns = [find_column(features, modality, column, dataset)]
    for name in beside:
        check_column(features, name, dataset)
    return columns + [name for name in beside if name not in columns]


def _type_name(feature) -> str:
    if isinstance(feature, datasets.Value):
        return feature.dtype
    if isinstance(feature, datasets.ClassLabel):
        return f"ClassLabel of {feature.num_classes}"
    if isinstance(feature, dict):
        return "dict"
    return type(feature).__name__
