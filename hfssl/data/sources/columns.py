"""Which column of a data set holds an input: a column itself, or a field in one, such as `record.content`."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import DataError
from ..modality import Input, Modality
from ..modality import modality as find_modality


# Columns that a message names.
_MOST_LISTED = 40


def find_column(
    features: dict,
    modality: str = "text",
    column: str | None = None,
    dataset: str = "The dataset",
    preferred: Sequence[str] = (),
) -> str:
    """The column that holds the modality: the one asked for, the only one of its type, or one with a usual name.

    Args:
        features (`dict`):
            Column name to `datasets` feature.
        modality (`str`, *optional*, defaults to `"text"`):
            The modality's name.
        column (`str`, *optional*):
            What the user asked for. It must exist and have the right type.
        dataset (`str`, *optional*):
            The data set's name in error messages.
        preferred (`Sequence[str]`, *optional*):
            Names that are looked for before the usual ones of the modality.

    Example:
        >>> from datasets import Value
        >>> find_column({"id": Value("int64"), "sentence": Value("string")})
        'sentence'
    """
    wanted = find_modality(modality)
    listing = list_columns(features)
    if column is not None:
        check_column(features, column, dataset)
        if not (wanted.is_feature(features[column]) or wanted.is_raw(features[column])):
            raise DataError(
                f"Column {column!r} of {dataset} is {_type_name(features[column])}, but a column of type {modality} "
                f"is needed. The columns are: {listing}. Choose one with `{wanted.column_flag}`. "
                f"{_conversion(wanted, column, features)}".rstrip()
            )
        return column
    whole = {name: feature for name, feature in features.items() if not _is_field(name, features)}
    fields = {name: feature for name, feature in features.items() if name not in whole}
    candidates: list[str] = []
    for known in (whole, fields):
        for is_one in (wanted.is_feature, wanted.is_raw):
            candidates = candidates or [name for name, feature in known.items() if is_one(feature)]
    if len(candidates) == 1:
        return candidates[0]
    by_lower_name = {name.lower(): name for name in reversed(candidates)}
    nested = {name: column for name, column in by_lower_name.items() if _is_field(column, features)}
    by_lower_name = {name.rpartition(".")[2]: column for name, column in nested.items()} | by_lower_name
    for name in (*preferred, *wanted.column_names):
        if name.lower() in by_lower_name:
            return by_lower_name[name.lower()]
    problem = f"{len(candidates)} columns of type {modality}" if candidates else f"no column of type {modality}"
    remedy = f"Choose one with `{wanted.column_flag}`."
    if not candidates:
        # a text or a list may be anything, unless its name says what it is
        names = [name for name in features if name.rpartition(".")[2].lower() in wanted.column_names]
        names += [name for name, feature in features.items() if isinstance(feature, dict)]
        conversions = filter(None, (_conversion(wanted, name, features) for name in names))
        remedy = next(conversions, wanted.where_else or "Use another data set or convert a column.")
    raise DataError(f"{dataset} has {problem}. Its columns are: {listing}. {remedy}")


def _conversion(wanted: Modality, name: str, features: Mapping[str, Any]) -> str:
    """How a column, or a field, is made one of samples; of a field it is the structure around it that may be one."""
    of_field = _is_field(name, features)
    around = _conversion(wanted, name.rpartition(".")[0], features) if of_field else ""
    return around or wanted.conversion(name, features[name], _value_of(name, features))


def _value_of(name: str, features: Mapping[str, Any]) -> str:
    """The Python that takes the value of a column, or of a field, from a `row`."""
    if not _is_field(name, features):
        return f"row[{name!r}]"
    above, _, field = name.rpartition(".")
    return f"{_value_of(above, features)}[{field!r}]"


def check_column(features: dict, column: str, dataset: str) -> None:
    """Raise where a data set has no such column."""
    if column not in features:
        near = difflib.get_close_matches(column, features, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{dataset} has no column {column!r}. Its columns are: {list_columns(features)}.{hint}")


def list_columns(features: dict) -> str:
    """The columns of a data set and their types, for messages."""
    listed = [f"{name!r} ({_type_name(feature)})" for name, feature in islice(features.items(), _MOST_LISTED)]
    more = [f"and {len(features) - len(listed)} more"] if len(features) > len(listed) else []
    return ", ".join([*listed, *more]) or "none"


def features_of(schema: pa.Schema) -> dict:
    """The `datasets` features of a schema; tensors of a fixed shape, which `datasets` does not know, are lists."""
    for index, field in enumerate(schema):
        if isinstance(field.type, pa.FixedShapeTensorType):
            kind = field.type.value_type
            for _ in field.type.shape:
                kind = pa.list_(kind)
            schema = schema.set(index, field.with_type(kind))
    return dict(datasets.Features.from_arrow_schema(schema))


def find_inputs(features: dict, inputs: Mapping[str, Input], dataset: str = "The dataset") -> dict[str, Input]:
    """The inputs, each with the column that holds it: see [`~hfssl.data.modality.Input`].

    Raises:
        DataError: where a data set has no such column, or one column would be read for two inputs.
    """
    found: dict[str, Input] = {}
    for name, wanted in inputs.items():
        if wanted.modality is not None:
            column = find_column(features, wanted.modality, wanted.column, dataset, preferred=(name,))
        else:
            column = wanted.column or name
            check_column(features, column, dataset)
        other = next((other for other, known in found.items() if known.column == column), None)
        if other is not None:
            raise DataError(
                f"{dataset} has one column for two inputs: {column!r} for {other!r} and for {name!r}. Its columns "
                f"are: {list_columns(features)}. State the column of each."
            )
        found[name] = replace(wanted, column=column)
    return found


def with_fields(features: Mapping[str, Any]) -> dict[str, Any]:
    """Columns, and after each that is a structure its fields, called `column.field`."""
    found: dict[str, Any] = {}
    for name, feature in features.items():
        found[name] = feature
        if isinstance(feature, dict):
            fields = with_fields({f"{name}.{field}": of_field for field, of_field in feature.items()})
            found |= {field: of_field for field, of_field in fields.items() if field not in features}
    return found


def _is_field(name: str, features: Mapping[str, Any]) -> bool:
    return isinstance(features.get(name.rpartition(".")[0]), dict)


def field_of_record(record: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a field in one; `None` where what should hold it is null.

    Raises:
        KeyError: where there is none.
    """
    if column in record:
        return record[column]
    name, dot, rest = column.partition(".")
    if not dot or name not in record:
        raise KeyError(column)
    if record[name] is None:
        return None
    if not isinstance(record[name], dict):
        raise KeyError(column)
    return field_of_record(record[name], rest)


def column_of_table(table: pa.Table, column: str) -> pa.ChunkedArray:
    """A column, or a field in one, of an Arrow table."""
    if column in table.column_names:
        return table.column(column)
    name, *fields = column.split(".")
    found = table.column(name)
    for each in fields:
        found = pc.struct_field(found, each)
    return found


def _type_name(feature) -> str:
    if isinstance(feature, datasets.Value):
        return feature.dtype
    if isinstance(feature, datasets.ClassLabel):
        return f"ClassLabel of {feature.num_classes}"
    if isinstance(feature, dict):
        return "dict"
    return type(feature).__name__
