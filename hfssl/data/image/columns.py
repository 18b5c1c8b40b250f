"""Columns of arrays: images as numbers in parquet and arrow files, each made the content of an .npy file.

An image there is lists of lists of numbers (`Array2D` and `Array3D` of `datasets` too), a tensor of a fixed shape, or
bytes beside their shape and type of number: a struct with `shape`, `dtype` and `bytes` or `data`.
"""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..sources.base import Damage
from .arrays import encoded_array


_BYTES = ("bytes", "data")


def is_array(feature: object) -> bool:
    """Whether a `datasets` feature is of arrays with two or three axes."""
    if isinstance(feature, dict):
        return {"shape", "dtype"} <= set(feature) and any(name in feature for name in _BYTES)
    if isinstance(feature, (datasets.Array2D, datasets.Array3D)):
        return True
    axes = 0
    while isinstance(feature, (datasets.List, datasets.LargeList)):
        feature, axes = feature.feature, axes + 1
    return (
        axes in (2, 3) and isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "float"))
    )


def holds_arrays(kind: pa.DataType) -> bool:
    """Whether a column of this type is for [`encoded_arrays`]."""
    if pa.types.is_struct(kind):
        return {"shape", "dtype"} <= {field.name for field in kind}
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    return _is_list(kind)


def encoded_arrays(column: pa.ChunkedArray) -> list[bytes | Damage | None]:
    """The arrays of a column as .npy files; [`~hfssl.data.sources.base.Damage`] where one has no shape."""
    return [_encoded(value) for value in column]


def _encoded(value: pa.Scalar) -> bytes | Damage | None:
    if not value.is_valid:
        return None
    try:
        if isinstance(value, pa.StructScalar):
            fields = value.as_py()
            encoded = next(fields[name] for name in _BYTES if fields.get(name) is not None)
            return encoded_array(np.frombuffer(encoded, fields["dtype"]).reshape(fields["shape"]))
        if isinstance(value, pa.ExtensionScalar):
            to_numpy = getattr(value, "to_numpy", None)  # of a tensor of a fixed shape
            if to_numpy is not None:
                return encoded_array(np.ascontiguousarray(to_numpy()))
            value = value.value
        return encoded_array(_nested(value.values))
    except (ValueError, TypeError, StopIteration, pa.ArrowInvalid) as error:
        return Damage(f"it is no array ({str(error)[:100] or 'it has no bytes'})")


def _nested(values: pa.Array) -> np.ndarray:
    """Lists of lists as an array."""
    if not _is_list(values.type):
        if values.null_count:
            raise ValueError("some of its numbers are null")
        return values.to_numpy(zero_copy_only=False)
    lengths = set(pc.list_value_length(values).to_pylist())
    if len(lengths) != 1 or None in lengths:
        raise ValueError(f"its rows have {', '.join(sorted(map(str, lengths))[:3]) or 'no'} numbers")
    inner = _nested(values.flatten())
    return inner.reshape(len(values), lengths.pop(), *inner.shape[1:])


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
