"""Powers of distances: validation of exponents, and of distances whose powers must fit in float64."""

from __future__ import annotations

from math import log10, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from weightspace.errors import WeightspaceError

if TYPE_CHECKING:
    from torch import Tensor

#: Coordinates below which the squared distance of two points may underflow.
_TINY = 1e-120
#: Range of powers of distances, as powers of ten, in which sums with float32 weights neither over- nor underflow.
_LOWEST, _HIGHEST = -250, 250


def check_exponent(exponent: float) -> float:
    """Return a valid exponent of costs.

    Raises:
        WeightspaceError: it isn't a positive number.
    """
    if isinstance(exponent, bool) or not isinstance(exponent, int | float) or not 0 < exponent < float("inf"):
        raise WeightspaceError(f"An exponent must be a positive number, 2 for a Fréchet mean; found {exponent!r}.")
    return exponent


def check_range(distances: Any, exponent: float) -> None:
    """Check that powers of distances fit in float64; zeros are ignored.

    Args:
        distances: non-negative array or tensor; the smallest and the largest distance suffice.
        exponent: exponent of the costs.

    Raises:
        WeightspaceError: a power would underflow or overflow.
    """
    positive = np.asarray(distances)
    positive = positive[positive > 0]
    if positive.size == 0:
        return
    smallest, largest = float(positive.min()), float(positive.max())
    if largest < float("inf") and all(_LOWEST < exponent * log10(end) < _HIGHEST for end in (smallest, largest)):
        return
    raise WeightspaceError(
        f"Distances from {smallest:g} to {largest:g} to the power of {exponent:g} leave the range of float64; expected "
        f"powers between 1e{_LOWEST} and 1e{_HIGHEST}. Scale the distances, or use a smaller exponent."
    )


def check_points(points: Tensor) -> Tensor:
    """Return points, (n, d), after checking that their squared distances fit in float64.

    Only coordinates that are tiny themselves can have a difference whose square underflows.

    Raises:
        WeightspaceError: a square would underflow or overflow.
    """
    check_range([2 * sqrt(points.shape[1]) * float(points.abs().max())], 2)
    tiny = (points != 0) & (points.abs() < _TINY)
    if bool(tiny.any()):
        different, apart = (len(part.unique(dim=0)) for part in (points, points.masked_fill(tiny, 0)))
        if apart < different:
            check_range([float(points[tiny].abs().min())], 2)
    return points
