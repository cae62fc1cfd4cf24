"""Unit vectors known only by their inner products: every combination of them is a list of coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from weightspace.elementwise.coefficients import shares
from weightspace.merging.combining import LinearFormula, computed_formula
from weightspace.merging.stack import Formula

#: A combination of unit vectors whose length is below this share of its coefficients cancels.
_CANCELLED = 1e-7


class Directions:
    """The directions of the non-zero vectors of a Gram matrix.

    Attributes:
        norms: lengths of all vectors.
        cosines: of all pairs; 0 beside a zero vector.
        equal: all vectors have the same inner products, as copies have.
    """

    def __init__(self, products: Sequence[Sequence[float]]) -> None:
        self.norms = [math.sqrt(row[index]) for index, row in enumerate(products)]
        lengths = [norm or math.inf for norm in self.norms]
        self.cosines = [
            [max(-1.0, min(1.0, product / a / b)) for product, b in zip(row, lengths, strict=True)]
            for row, a in zip(products, lengths, strict=True)
        ]
        self.equal = len({product for row in products for product in row}) == 1

    def length(self, coefficients: Sequence[float]) -> float:
        """Return ``‖Σ c_i u_i‖``; 0 where they cancel up to rounding."""
        c = torch.tensor(coefficients, dtype=torch.float64)
        squared = float(c @ torch.tensor(self.cosines, dtype=torch.float64) @ c)
        length = math.sqrt(max(0.0, squared))
        return length if length > _CANCELLED * float(c.abs().sum()) else 0.0


def scaled_sum(directions: Directions, coefficients: Sequence[float], length: float, *, deltas: bool) -> Formula:
    """Return the formula of the vector of ``length`` along ``Σ c_i u_i``.

    Args:
        directions: the models', or those of their differences from the base.
        coefficients: one a model.
        length: of the result.
        deltas: add it to the base.
    """
    size = directions.length(coefficients)
    if not all(map(math.isfinite, directions.norms)):
        size = math.nan  # and so is all that comes of it
    scale = length / size if size != 0 else 0.0
    factors = [
        scale * coefficient / norm if norm != 0 else 0.0
        for coefficient, norm in zip(coefficients, directions.norms, strict=True)
    ]
    if deltas:
        return computed_formula(factors, base="origin")
    if directions.equal and abs(math.fsum(factors) - 1) < _CANCELLED:
        return LinearFormula(shares(tuple(factors)))  # copies merge to the copy, whatever the rounding of norms
    return computed_formula(factors)
