"""Squared distances between points that differ by far less than their distance from the origin, as matrix products.

|y − m|² = |y|² − 2 y·m + |m|² cancels: float64 cannot resolve two points at 1e5, 1e-3 apart. So coordinates are
split into a0 + a1 + a2, where a0 and a1 have so few bits on a common grid that float64 sums their products exactly:

    y·m = y0·m0  +  (y0·m1 + y1·m0)  +  (y0·m2 + y1·(m1 + m2) + y2·m)

The first two brackets of |y − m|² are exact, and small where y is near to m; the third was small from the start.

Source:
    Ozaki et al. 2012, https://doi.org/10.1007/s11075-011-9478-1, for error-free products of matrix slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, frexp, log2

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slicing:
    """The grids that coordinates of points are rounded to.

    Attributes:
        coarse: step of the first slice.
        fine: step of the second slice.
    """

    coarse: float
    fine: float

    @classmethod
    def of(cls, largest: float, dimensions: int) -> Slicing:
        """Return the grids for coordinates up to ``largest`` in absolute value."""
        bits = (50 - ceil(log2(max(1, dimensions)))) // 2
        coarse = 2.0 ** max(frexp(largest)[1] - bits, -1000)
        return cls(coarse, max(coarse * 2.0**-bits, 2.0**-1000))

    def squared_distances(self, means: Tensor, points: Tensor) -> Tensor:
        """Return |y − m|², float64 (B, n), of points (n, d) from means (B, d); traceable and differentiable."""
        of_means, of_points = self._cut(means), self._cut(points.double())
        brackets = []
        for m, y in zip(of_means, of_points, strict=True):
            squares = [(left * right).sum(1) for left, right in (m, y)]
            brackets.append(squares[0].unsqueeze(1) + squares[1] - 2 * (m[0] @ y[1].T))
        return (brackets[0] + brackets[1] + brackets[2]).clamp_min(0)

    def _cut(self, values: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the two factors of each bracket, (n, d), (n, 2d) and (n, 3d)."""
        first = torch.round(values / self.coarse) * self.coarse
        rest = values - first
        second = torch.round(rest / self.fine) * self.fine
        third = rest - second
        return [
            (first, first),
            (torch.cat([first, second], 1), torch.cat([second, first], 1)),
            (torch.cat([first, second, third], 1), torch.cat([third, rest, values], 1)),
        ]
