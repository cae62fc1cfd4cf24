"""Validation of rows of probabilities, which are never modified and need not sum to one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.errors import WeightspaceError, warn_caller


def checked_rows(probabilities: Any, columns: int) -> Tensor:
    """Return probabilities as a floating-point tensor of shape (B, columns), sharing memory if possible.

    Args:
        probabilities: array or tensor of shape (..., columns); non-negative, with a positive entry in each row.
        columns: number of observed classes.

    Raises:
        WeightspaceError: a wrong shape, or a row that is NaN, infinite, negative or zero; the message names the first.

    Warns:
        WeightspaceWarning: one of the first rows is far from summing to one, as positive logits are.
    """
    rows = as_tensor(probabilities, "Probabilities")
    if rows.dim() < 1 or rows.shape[-1] != columns:
        raise WeightspaceError(
            f"Probabilities have shape {tuple(rows.shape)}, but {columns:,} classes were observed; expected "
            f"(..., {columns}), one column per name in `observed`, in that order."
        )
    rows = rows.reshape(-1, columns)
    if not rows.dtype.is_floating_point:
        rows = rows.double()
    step = max(1, _CHECKED // columns)
    for start in range(0, len(rows), step):
        _check(rows[start : start + step], start)
    _warn_of_sums(rows[:_SUMMED])
    return rows


def _warn_of_sums(rows: Tensor) -> None:
    """Warn of rows ``(n, columns)`` that may not be probabilities."""
    sums = rows.sum(-1, dtype=torch.float64).cpu().tolist()
    row = next((number for number, total in enumerate(sums) if abs(total - 1) > _FAR), None)
    if row is not None:
        warn_caller(
            f"{UNNORMALISED} row {row} sums to {sums[row]:.4g}. They are taken as weights, in proportion. If these are "
            "logits, take their softmax, or give them to the metric's head."
        )


def scaled_rows(rows: Tensor) -> tuple[Tensor, np.ndarray | None]:
    """Scale float64 rows to a largest weight near one if they are too small or too large for sums of costs.

    Returns:
        The rows, and the exponents of the factors, int32 (B, 1), or None if no row was scaled. Factors are powers of
        two, so that scaling is exact.
    """
    if rows.dtype != torch.float64 or rows.numel() == 0:
        return rows, None
    sums = rows @ rows.new_ones(rows.shape[1])  # faster than the largest entry of each row
    if bool((sums.amin() > 2.0**-_USUAL) & (sums.amax() < 2.0**_USUAL)):
        return rows, None
    exponents = torch.frexp(rows.amax(1, keepdim=True)).exponent
    half = exponents // 2  # in two steps, as 2^exponent itself may overflow
    return torch.ldexp(torch.ldexp(rows, -half), half - exponents), exponents.cpu().numpy()


#: Rows whose sum lies within 2^±this need no scaling: the range of float32.
_USUAL = 140
#: Number of probabilities checked at once, to fit in the cache.
_CHECKED = 1 << 18
#: Number of rows whose sums are compared with one, and the difference from which there is a warning: rows of logits are
#: all far from it, and sums of many probabilities in 16 bits are not exact.
_SUMMED, _FAR = 4, 0.1
#: Start of that warning.
UNNORMALISED = "The probabilities do not sum to one:"
#: Dtype -> unsigned dtype of its bits, and the bits of infinity.
_BITS = {
    torch.float16: (np.uint16, 0x7C00),
    torch.float32: (np.uint32, 0x7F800000),
    torch.float64: (np.uint64, 0x7FF0000000000000),
}


def as_tensor(values: Any, what: str) -> Tensor:
    """Return an array, a list or a tensor as a detached tensor on its device.

    Raises:
        WeightspaceError: the values cannot be converted.
    """
    if isinstance(values, Tensor):
        return values.detach()
    try:
        array = np.asarray(values)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise WeightspaceError(
            f"{what} must be an array or a tensor of numbers; found {type(values).__name__}."
        ) from error


def _seen_at_once(rows: Tensor) -> bool:
    """Return whether two fast passes prove that all rows are valid weights.

    The bits of non-negative floats are ordered like their values; those of NaN and of negative floats, including -0.0,
    lie above the bits of infinity.
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
    """Raise if a row isn't a valid vector of weights."""
    if rows.numel() == 0 or _seen_at_once(rows):
        return
    least, largest = rows.amin(-1), rows.amax(-1)  # both are NaN if the row holds NaN
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
                "expected finite, non-negative numbers. Are these logits? Take their softmax, or use metric.head."
            )
    raise WeightspaceError(f"Row {start + row:,} of the probabilities sums to 0; expected a positive entry.")
