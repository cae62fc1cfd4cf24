"""Powers of distances, as costs have them: exponents that can be taken, and distances whose power float64 can hold."""

from __future__ import annotations

from math import log10, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from weightspace.errors import WeightspaceError

if TYPE_CHECKING:
    from torch import Tensor

#: Coordinates below which two points may be too near to each other for the square of their distance.
_TINY = 1e-120
#: Powers of ten between which a power of a distance may lie, so that sums of it under weights of float32 stay in range.
_LOWEST, _HIGHEST = -250, 250


def check_exponent(exponent: float) -> float:
    """Return an exponent that costs can have.

    Raises:
        WeightspaceError: it isn't a positive number.
    """
    if isinstance(exponent, bool) or not isinstance(exponent, int | float) or not 0 < exponent < float("inf"):
        raise WeightspaceError(
            f"An exponent of distances is a positive number, 2 for a Fréchet mean; found {exponent!r}."
        )
    return exponent


def check_range(distances: Any, exponent: float) -> None:
    """Raise if a power of a distance leaves float64; zeros are not looked at.

    Args:
        distances: array or tensor of zero or more; those at both ends suffice.
        exponent: of the costs.

    Raises:
        WeightspaceError: a power would be lost, or infinite.
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
        f"powers between 1e{_LOWEST} and 1e{_HIGHEST}. Scale the distances, or take a smaller exponent."
    )


def check_points(points: Tensor) -> Tensor:
    """Return points, (n, d), whose distances have squares that float64 can hold.

    Floating-point numbers whose difference has no such square are tiny themselves.

    Raises:
        WeightspaceError: a square would be lost, or infinite.
    """
    check_range([2 * sqrt(points.shape[1]) * float(points.abs().max())], 2)
    tiny = (points != 0) & (points.abs() < _TINY)
    if bool(tiny.any()):
        different, apart = (len(part.unique(dim=0)) for part in (points, points.masked_fill(tiny, 0)))
        if apart < different:
            check_range([float(points[tiny].abs().min())], 2)
    return points
