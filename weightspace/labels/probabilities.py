"""Rows of probabilities as they come in: checked, never changed, and not asked to sum to one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.errors import WeightspaceError


def checked_rows(probabilities: Any, columns: int) -> Tensor:
    """Return probabilities as a floating tensor of shape (B, columns); memory is shared where that is possible.

    Args:
        probabilities: array or tensor of shape (..., columns), float; not negative, and no row without any weight.
        columns: how many classes were observed.

    Raises:
        WeightspaceError: another shape, or a row that is NaN, infinite, negative or zero; it names the first.
    """
    rows = as_tensor(probabilities, "Probabilities")
    if rows.dim() < 1 or rows.shape[-1] != columns:
        raise WeightspaceError(
            f"Probabilities have shape {tuple(rows.shape)}, but {columns:,} classes were observed; expected "
            f"(..., {columns}), one column for every name in `observed`, in that order."
        )
    rows = rows.reshape(-1, columns)
    if not rows.dtype.is_floating_point:
        rows = rows.double()
    step = max(1, _CHECKED // columns)
    for start in range(0, len(rows), step):
        _check(rows[start : start + step], start)
    return rows


def scaled_rows(rows: Tensor) -> tuple[Tensor, np.ndarray | None]:
    """Return rows whose largest weight is near one where float64 ones are not of a size that costs can be summed from.

    Factors are powers of two, which change no digit; their exponents, int32 (B, 1), or None if no row was scaled.
    """
    if rows.dtype != torch.float64 or rows.numel() == 0:
        return rows, None
    sums = rows @ rows.new_ones(rows.shape[1])  # which takes less time than the largest of every row
    if bool((sums.amin() > 2.0**-_USUAL) & (sums.amax() < 2.0**_USUAL)):
        return rows, None
    exponents = torch.frexp(rows.amax(1, keepdim=True)).exponent
    half = exponents // 2  # in two steps, as 2^exponent itself may leave the range
    return torch.ldexp(torch.ldexp(rows, -half), half - exponents), exponents.cpu().numpy()


#: Powers of two between which the sum of a row needs no scaling: those of float32.
_USUAL = 140
#: Probabilities that are checked at once, while they are in the cache.
_CHECKED = 1 << 18
#: Dtype -> that of its bits, and the bits of infinity.
_BITS = {
    torch.float16: (np.uint16, 0x7C00),
    torch.float32: (np.uint32, 0x7F800000),
    torch.float64: (np.uint64, 0x7FF0000000000000),
}


def as_tensor(values: Any, what: str) -> Tensor:
    """Return an array, a list or a tensor as a tensor on its device, without its gradient.

    Raises:
        WeightspaceError: it is none of them.
    """
    if isinstance(values, Tensor):
        return values.detach()
    try:
        array = np.asarray(values)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise WeightspaceError(f"{what} are an array or a tensor of numbers; found {type(values).__name__}.") from error


def _seen_at_once(rows: Tensor) -> bool:
    """Return whether two passes show that all rows are weights.

    Bits of floats that are not negative are in their order; those of negative ones, -0.0 among them, and of NaN lie
    above infinity's.
    """
    if rows.device.type != "cpu" or rows.dtype not in _BITS:
        return False
    unsigned, infinite = _BITS[rows.dtype]
    values = rows.numpy()
    if not values.view(unsigned).max() < infinite:
        return False
    return (
        bool((rows @ rows.new_ones(rows.shape[1])).amin() > 0)
        if rows.dtype != torch.float16
        else bool((values.max(-1) > 0).all())
    )


def _check(rows: Tensor, start: int) -> None:
    """Raise if a row is no weight."""
    if rows.numel() == 0 or _seen_at_once(rows):
        return
    least, largest = rows.amin(-1), rows.amax(-1)  # NaN is both
    bad = ~((least >= 0) & (largest > 0) & (largest < torch.inf))
    if not bool(bad.any()):
        return
    row = int(bad.nonzero()[0])
    values = rows[row]
    for label, wrong in (("is NaN", values.isnan()), ("is infinite", values.isinf()), ("is negative", values < 0)):
        if bool(wrong.any()):
            column = int(wrong.nonzero()[0])
            raise WeightspaceError(
                f"Row {start + row:,}, column {column:,} of the probabilities {label} ({float(values[column]):g}); "
                "expected numbers of zero or more. Are these logits? Take their softmax, or use metric.head."
            )
    raise WeightspaceError(f"Row {start + row:,} of the probabilities has a sum of 0; expected a class with weight.")
