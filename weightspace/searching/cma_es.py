"""Covariance matrix adaptation, by the package cmaes, on positions from 0 to 1 along every dimension.

Source:
    Hansen and Ostermeier 2001, https://doi.org/10.1162/106365601750190398
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from weightspace.errors import WeightspaceError
from weightspace.searching.space import Dimension, Values

#: Initial standard deviation.
_SIGMA = 0.25


class CmaEs:
    """CMA-ES from the middle of all ranges; the values of a list share its dimension in equal parts.

    Args:
        dimensions: the dimensions of the space.
        seed: seed of the random numbers.

    Raises:
        WeightspaceError: the package cmaes is not installed.
    """

    def __init__(self, dimensions: Sequence[Dimension], *, seed: int) -> None:
        try:
            from cmaes import CMA
        except Exception as error:
            raise WeightspaceError(
                f"The search engine cma-es needs the package cmaes ({error}). Install it by "
                "pip install 'weightspace[search]', or choose the engine grid or random."
            ) from error
        self._dimensions = dimensions
        width = max(2, len(dimensions))  # the package needs two dimensions; a second one may have no effect
        bounds = np.tile([0.0, 1.0], (width, 1))
        self._cma = CMA(mean=np.full(width, 0.5), sigma=_SIGMA, bounds=bounds, seed=seed)
        self._asked: list[np.ndarray] = []
        self._told: list[tuple[np.ndarray, float]] = []

    def ask(self, count: int) -> list[Values]:
        """Return the next proposals of a generation, at most those that are left of it."""
        self._asked = [self._cma.ask() for _ in range(min(count, self._cma.population_size - len(self._told)))]
        return [
            {one.name: one.at(float(share)) for one, share in zip(self._dimensions, position, strict=False)}
            for position in self._asked
        ]

    def tell(self, proposals: Sequence[Values], scores: Sequence[Sequence[float] | None]) -> None:
        """Report the scores of the latest proposals; after a whole generation, the distribution is adapted."""
        for position, found in zip(self._asked, scores, strict=True):
            self._told.append((position, math.inf if found is None else -sum(found) / len(found)))
        if len(self._told) == self._cma.population_size:
            self._cma.tell(self._told)
            self._told = []
