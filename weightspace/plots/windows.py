"""The range of an axis that shows most points well when a few outliers would squeeze all others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

#: A point is an outlier if the range is smaller by this factor without it;
_SQUEEZED = 4.0
#: at most one point in this many may be an outlier.
_SHARE = 4


@dataclass(frozen=True)
class Window:
    """A range of an axis; points beyond it are drawn at its edge."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Window:
        """Return the range of all values except outliers, at most a quarter of them, that would squeeze the others."""
        left = sorted(value for value in values if math.isfinite(value))
        for _ in range(len(left) // _SHARE):
            middle = left[len(left) // 2]
            shorter = left[1:] if middle - left[0] > left[-1] - middle else left[:-1]
            if _SQUEEZED * (shorter[-1] - shorter[0]) >= left[-1] - left[0] or shorter[-1] == shorter[0]:
                break
            left = shorter
        low, high = (left[0], left[-1]) if left else (0.0, 1.0)
        return cls(low, high)

    def holds(self, value: float) -> bool:
        """Return whether a value is in the range."""
        return self.low <= value <= self.high

    def clipped(self, value: float) -> float:
        """Return the value, or the edge if it is beyond."""
        reach = 0.06 * (self.high - self.low)
        return value if self.holds(value) else min(max(value, self.low - reach), self.high + reach)


@dataclass(frozen=True)
class Frame:
    """The ranges of both axes."""

    x: Window
    y: Window

    @classmethod
    def of(cls, points: Sequence[tuple[float, float]]) -> Frame:
        """Return the ranges that show most points well."""
        return cls(Window.of(x for x, _ in points), Window.of(y for _, y in points))

    def holds(self, point: tuple[float, float]) -> bool:
        """Return whether a point is in both ranges."""
        return self.x.holds(point[0]) and self.y.holds(point[1])

    def clipped(self, point: tuple[float, float]) -> tuple[float, float]:
        """Return the point, or its position at the edge."""
        return self.x.clipped(point[0]), self.y.clipped(point[1])
