"""Search engines: they propose values for all dimensions, and learn from the scores of earlier proposals.

Every engine is deterministic given its seed and the scores that it is told, so that a repeated search proposes the same
values and finds their scores in the cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from weightspace.errors import WeightspaceError
from weightspace.searching.space import Dimension, Values
from weightspace.suggestions import unknown

#: Name -> description.
ENGINES: Mapping[str, str] = {
    "grid": "values evenly along each range, in all combinations",
    "random": "uniformly distributed values",
    "cma-es": "covariance matrix adaptation",
    "tpe": "tree-structured Parzen estimators",
    "nsga2": "a genetic algorithm for several objectives",
}


class Engine(Protocol):
    """A search engine."""

    def ask(self, count: int) -> list[Values]:
        """Return up to ``count`` proposals; none if there are no more."""
        ...

    def tell(self, proposals: Sequence[Values], scores: Sequence[Sequence[float] | None]) -> None:
        """Report the scores of the latest proposals, higher is better; None for an impossible merge."""
        ...


class Listed:
    """An engine whose proposals are fixed beforehand."""

    def __init__(self, proposals: Iterator[Values]) -> None:
        self._proposals = proposals

    def ask(self, count: int) -> list[Values]:
        """Return the next proposals."""
        return list(itertools.islice(self._proposals, count))

    def tell(self, proposals: Sequence[Values], scores: Sequence[Sequence[float] | None]) -> None:
        """Do nothing."""


def make_engine(name: str, dimensions: Sequence[Dimension], *, trials: int, objectives: int, seed: int) -> Engine:
    """Return an engine.

    Args:
        name: a name in ``ENGINES``.
        dimensions: the dimensions of the space.
        trials: the number of proposals that will be asked for at most.
        objectives: the number of scores of each proposal.
        seed: seed of the random numbers.

    Raises:
        WeightspaceError: the engine is unknown, needs a package that isn't installed, or the grid has too few trials.
    """
    if name not in ENGINES:
        raise unknown("search engine", name, ENGINES)
    if name == "grid":
        return Listed(_grid(dimensions, trials))
    if name == "random":
        return Listed(_random(dimensions, seed))
    if name == "cma-es":
        from weightspace.searching.cma_es import CmaEs

        return CmaEs(dimensions, seed=seed)
    from weightspace.searching.optuna_engine import OptunaEngine

    return OptunaEngine(name, dimensions, trials=trials, objectives=objectives, seed=seed)


def _grid(dimensions: Sequence[Dimension], trials: int) -> Iterator[Values]:
    """Return the finest grid with the same number of points along all ranges that has at most ``trials`` values.

    Raises:
        WeightspaceError: not even a grid with two points along each range has so few.
    """
    points, found = 2, _product(dimensions, 2)
    if _size(found) > trials:
        raise WeightspaceError(
            f"A grid over {len(dimensions)} dimensions has at least {_size(found)} points; the budget is {trials} "
            "trials. Raise --trials, or choose another engine."
        )
    most = max(points, trials)
    while points < most:
        middle = (points + most + 1) // 2
        if _size(finer := _product(dimensions, middle)) <= trials:
            points, found = middle, finer
        else:
            most = middle - 1
    names = [dimension.name for dimension in dimensions]
    return (dict(zip(names, values, strict=True)) for values in itertools.product(*found))


def _product(dimensions: Sequence[Dimension], points: int) -> list[list[Any]]:
    return [dimension.grid(points) for dimension in dimensions]


def _size(values: Sequence[Sequence[Any]]) -> int:
    size = 1
    for one in values:
        size *= len(one)
    return size


def _random(dimensions: Sequence[Dimension], seed: int) -> Iterator[Values]:
    import numpy as np  # only here, since the command line lists the engines

    generator = np.random.default_rng(seed)
    while True:
        shares = generator.random(len(dimensions)).tolist()
        yield {dimension.name: dimension.at(share) for dimension, share in zip(dimensions, shares, strict=True)}
