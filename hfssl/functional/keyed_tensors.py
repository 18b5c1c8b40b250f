"""Keyed randomness of [`hfssl.functional.keyed`] where it is needed by the million: on the device of the model."""

import torch

from .keyed import Use


_GOLDEN, _FIRST, _SECOND = (
    value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def mix(values: torch.Tensor) -> torch.Tensor:
    """Scramble 64-bit integers one by one, as [`hfssl.functional.keyed.mix`] does with those of numpy.

    Args:
        values (`torch.Tensor` of dtype `int64`):
            Any shape.
    """
    z = values + _GOLDEN
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(values: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right as integers without a sign, which torch does not have on all devices."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def between_0_and_1(values: torch.Tensor) -> torch.Tensor:
    """Uniform numbers of 64-bit integers, in `float32`, never 0 nor 1: noise made by logarithms of them is finite.

    23 bits: with 24 the half that keeps them off 0 would be rounded away, and the largest would be 1.
    """
    return (_shifted(values, 41).float() + 0.5) * 2.0**-23


def gumbel(use: Use, keys: torch.Tensor, rows: torch.Tensor, num_columns: int) -> torch.Tensor:
    """Gumbel noise that depends on `use`, on a key and on a number, not on what else is drawn.

    Args:
        use ([`Use`]):
            What it is for.
        keys (`torch.Tensor` of dtype `int64` and shape `(num_rows,)`):
            Of the sample that a row belongs to.
        rows (`torch.Tensor` of dtype `int64` and shape `(num_rows,)`):
            Number of the row within its sample.
        num_columns (`int`):
            Numbers a row.

    Returns:
        `torch.Tensor` of dtype `float32` and shape `(num_rows, num_columns)`.
    """
    of_rows = mix(mix(keys * _GOLDEN + int(use)) + rows)
    columns = torch.arange(num_columns, device=keys.device)
    return -torch.log(-torch.log(between_0_and_1(mix(of_rows.unsqueeze(1) + columns))))
