"""Candidates: networks that are made of ingredients, tensor by tensor, when they are to be scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from weightspace.checkpoints import check_compatible
from weightspace.lora.factor_files import check_is_model
from weightspace.merging.interpolate import line
from weightspace.soups.ingredients import Check, Ingredient
from weightspace.soups.running_mean import RunningMean
from weightspace.soups.scoring import Tensors


class Candidate(Protocol):
    """A network to be scored, and what it is made of."""

    @property
    def weights(self) -> Sequence[Ingredient]:
        """What goes in, in the order in which it goes in."""
        ...

    @property
    def recipe(self) -> Mapping[str, Any]:
        """What else decides about it; nothing for the plain mean."""
        ...

    @property
    def mixed(self) -> bool:
        """Whether it is another network than any of the ingredients."""
        ...

    def tensors(self, check: Check) -> Tensors:
        """Return its tensors, of ingredients that were checked."""
        ...


@dataclass(frozen=True)
class Alone:
    """An ingredient as it is."""

    ingredient: Ingredient
    mixed = False

    @property
    def weights(self) -> Sequence[Ingredient]:
        """The one."""
        return (self.ingredient,)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Nothing: it is the mean of one."""
        return {}

    def tensors(self, check: Check) -> Tensors:
        """Return those of the checkpoint, in memory of their own."""
        state = self.ingredient.load()
        check(state, self.ingredient.name)
        if isinstance(self.ingredient.source, dict):  # the caller's, which a function of scores may change
            return ((name, tensor.detach().clone()) for name, tensor in state.items())
        return state.items()


@dataclass(frozen=True)
class Mean:
    """The mean of several ingredients."""

    weights: Sequence[Ingredient]

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Nothing else."""
        return {}

    @property
    def mixed(self) -> bool:
        """Whether there is more than one."""
        return len(self.weights) > 1

    def tensors(self, check: Check) -> Tensors:
        """Return the mean, which reads one ingredient after the other."""
        mean = RunningMean()
        for ingredient in self.weights:
            state = ingredient.load()
            check(state, ingredient.name)
            mean.add(state, ingredient.name)
        return mean.state().items()


@dataclass(frozen=True)
class Joined:
    """A running mean with an ingredient more, which is not taken in."""

    mean: RunningMean
    taken: Sequence[Ingredient]
    ingredient: Ingredient
    mixed = True

    @property
    def weights(self) -> Sequence[Ingredient]:
        """Those of the mean, and the one."""
        return (*self.taken, self.ingredient)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Nothing else."""
        return {}

    def tensors(self, check: Check) -> Tensors:
        """Return the mean, made as it is asked for."""
        state = self.ingredient.load()
        check(state, self.ingredient.name)
        return self.mean.joined(state, self.ingredient.name)


@dataclass(frozen=True)
class OnLine:
    """The network at a position on the straight line from one ingredient (0) to another (1)."""

    start: Ingredient
    end: Ingredient
    position: float

    @property
    def weights(self) -> Sequence[Ingredient]:
        """The two ends, or the one at an end."""
        return {0.0: (self.start,), 1.0: (self.end,)}.get(self.position, (self.start, self.end))

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The position between the two."""
        return {"position": self.position} if self.mixed else {}

    @property
    def mixed(self) -> bool:
        """Whether it is between the two, or beyond."""
        return self.position not in (0, 1)

    def tensors(self, check: Check) -> Tensors:
        """Return those of the line, made as they are asked for."""
        start, end = self.start.load(), self.end.load()
        check_compatible(start, end, names=(self.start.name, self.end.name))
        check_is_model(start, self.start.name)
        check(start, self.start.name)
        check(end, self.end.name)
        return line(start, end, self.position)
