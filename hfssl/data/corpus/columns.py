"""Rows of numbers as Arrow columns and back, and the place of a sample as something that can be searched for."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


# What tells the samples of a data set apart, the same in every pass: number of the source in a mixture, of the file
# in the source, row (or byte) in the file, and window of a sample that was cut into several.
PLACE = ("source", "file", "row", "window")

# One row a sample: an array of shape `(num_rows, ...)` where all are equally long, else a list of arrays.
Column = np.ndarray | Sequence[np.ndarray]


def to_arrow(name: str, rows: Column) -> pa.Array:
    """A column of results.

    Args:
        name (`str`):
            What to call it in messages.
        rows (`np.ndarray` of shape `(num_rows, ...)`, or a list of `num_rows` arrays of shape `(length, ...)`):
            An array becomes a column of fixed shape, a list one whose rows have lengths of their own, even where
            these happen to be equal.

    Raises:
        ValueError: for rows that differ in more than their length, and for numbers that Arrow does not have.
    """
    if isinstance(rows, np.ndarray):
        if rows.ndim == 0 or 0 in rows.shape[1:]:
            raise ValueError(f"Column {name!r} needs a row for each sample, got an array of shape {rows.shape}.")
        values = _numbers(name, rows)
        for size in reversed(rows.shape[1:]):
            values = pa.FixedSizeListArray.from_arrays(values, size)
        return values
    kinds = {(row.dtype.str, row.shape[1:]) if isinstance(row, np.ndarray) and row.ndim else type(row) for row in rows}
    if len(kinds) != 1 or not isinstance(next(iter(kinds)), tuple):
        raise ValueError(
            f"Rows of different lengths (column {name!r}) are a list of arrays of one type that differ along their "
            f"first axis only, got {', '.join(map(str, sorted(kinds, key=str))) or 'no row'}."
        )
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), to_arrow(name, np.concatenate(rows)))


def _numbers(name: str, values: np.ndarray) -> pa.Array:
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("=")).reshape(-1)
    if values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
        raise ValueError(f"Column {name!r} holds {values.dtype}; give integers, floats of up to 64 bits, or booleans.")
    return pa.array(values)


def to_numpy(column: pa.Array) -> np.ndarray | list[np.ndarray]:
    """What [`to_arrow`] was given; without a copy, and so read-only, but for booleans."""
    if pa.types.is_large_list(column.type):
        offsets = column.offsets.to_numpy()
        values, offsets = to_numpy(column.flatten()), (offsets - offsets[0]).tolist()
        return [values[start:stop] for start, stop in zip(offsets, offsets[1:], strict=False)]
    shape = [len(column)]
    while pa.types.is_fixed_size_list(column.type):
        shape.append(column.type.list_size)
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False).reshape(shape)


def place_keys(places: np.ndarray) -> np.ndarray:
    """One string of bytes a place, which are ordered as the places are.

    Args:
        places (`np.ndarray` of dtype `int64` and shape `(num_places, 4)`):
            Not negative.

    Returns:
        `np.ndarray` of dtype `S32` and shape `(num_places,)`.
    """
    return np.ascontiguousarray(places, dtype=">i8").view("S32").reshape(-1)


def places_of(batch: pa.RecordBatch) -> np.ndarray:
    """The places of a block of results, of shape `(num_rows, 4)`."""
    return np.stack([batch.column(name).to_numpy() for name in PLACE], axis=1)
