"""Tree-structured Parzen estimators and NSGA-II, by the package Optuna.

Source:
    Bergstra et al. 2011, https://papers.nips.cc/paper/4443-algorithms-for-hyper-parameter-optimization (TPE);
    Deb et al. 2002, https://doi.org/10.1109/4235.996017 (NSGA-II).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from weightspace.errors import WeightspaceError
from weightspace.searching.space import Dimension, Values

#: Largest population of NSGA-II: with fewer trials, several generations fit into the budget.
_POPULATION, _GENERATIONS = 50, 4


class OptunaEngine:
    """A sampler of Optuna behind its ask-and-tell interface.

    Args:
        name: ``tpe`` or ``nsga2``.
        dimensions: the dimensions of the space.
        trials: the budget, which determines the population of NSGA-II.
        objectives: the number of scores of each proposal.
        seed: seed of the random numbers.

    Raises:
        WeightspaceError: Optuna is not installed.
    """

    def __init__(self, name: str, dimensions: Sequence[Dimension], *, trials: int, objectives: int, seed: int) -> None:
        optuna = _optuna(name)
        self._optuna, self._dimensions = optuna, dimensions
        self._distributions = {dimension.name: _distribution(optuna, dimension) for dimension in dimensions}
        samplers: Mapping[str, Callable[[], Any]] = {
            "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
            "nsga2": lambda: optuna.samplers.NSGAIISampler(
                seed=seed, population_size=max(4, min(_POPULATION, trials // _GENERATIONS))
            ),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # options that Optuna calls experimental
            sampler = samplers[name]()
            with _quiet(optuna):
                self._study = optuna.create_study(directions=["maximize"] * objectives, sampler=sampler)
        self._asked: list[Any] = []

    def ask(self, count: int) -> list[Values]:
        """Return new proposals."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._asked = [self._study.ask(self._distributions) for _ in range(count)]
        return [self._values(trial.params) for trial in self._asked]

    def tell(self, proposals: Sequence[Values], scores: Sequence[Sequence[float] | None]) -> None:
        """Report the scores of the latest proposals."""
        for trial, found in zip(self._asked, scores, strict=True):
            if found is None:
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            else:
                self._study.tell(trial, list(found))

    def _values(self, params: Mapping[str, Any]) -> Values:
        return {
            dimension.name: dimension.choices[params[dimension.name]] if dimension.choices else params[dimension.name]
            for dimension in self._dimensions
        }


def _optuna(name: str) -> Any:
    """Return the package.

    Raises:
        WeightspaceError: it isn't installed.
    """
    try:
        import optuna
    except Exception as error:
        raise WeightspaceError(
            f"The search engine {name} needs the package optuna ({error}). Install it by "
            "pip install 'weightspace[search]', or choose the engine grid or random."
        ) from error
    return optuna


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Let the package report no new study; the user's other studies are logged as before."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _distribution(optuna: Any, dimension: Dimension) -> Any:
    """Return the distribution of a dimension; choices are numbered, since they may be of any type."""
    if dimension.choices:
        return optuna.distributions.CategoricalDistribution(list(range(len(dimension.choices))))
    if dimension.integer:
        return optuna.distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)
