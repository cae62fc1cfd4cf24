"""Candidates: networks made from ingredients, tensor by tensor, when they are scored."""

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
    """A network to be scored, and how it is made."""

    @property
    def weights(self) -> Sequence[Ingredient]:
        """The ingredients, in the order in which they are added."""
        ...

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Other parameters that determine it; empty for a plain mean."""
        ...

    @property
    def mixed(self) -> bool:
        """Whether it differs from each single ingredient."""
        ...

    def tensors(self, check: Check) -> Tensors:
        """Return its tensors, calling ``check`` on each ingredient."""
        ...


@dataclass(frozen=True)
class Alone:
    """A single ingredient."""

    ingredient: Ingredient
    mixed = False

    @property
    def weights(self) -> Sequence[Ingredient]:
        """The ingredient."""
        return (self.ingredient,)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Empty: it is the mean of one ingredient."""
        return {}

    def tensors(self, check: Check) -> Tensors:
        """Return the tensors of the checkpoint; those of a state dict are copied."""
        state = self.ingredient.load()
        check(state, self.ingredient.name)
        if isinstance(self.ingredient.source, dict):  # the caller's, which a score function may modify
            return ((name, tensor.detach().clone()) for name, tensor in state.items())
        return state.items()


@dataclass(frozen=True)
class Mean:
    """The mean of several ingredients."""

    weights: Sequence[Ingredient]

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Empty."""
        return {}

    @property
    def mixed(self) -> bool:
        """Whether there is more than one ingredient."""
        return len(self.weights) > 1

    def tensors(self, check: Check) -> Tensors:
        """Return the mean, reading one ingredient at a time."""
        mean = RunningMean()
        for ingredient in self.weights:
            state = ingredient.load()
            check(state, ingredient.name)
            mean.add(state, ingredient.name)
        return mean.state().items()


@dataclass(frozen=True)
class Joined:
    """A running mean with one more ingredient, which isn't added to it."""

    mean: RunningMean
    taken: Sequence[Ingredient]
    ingredient: Ingredient
    mixed = True

    @property
    def weights(self) -> Sequence[Ingredient]:
        """The ingredients of the mean and the additional one."""
        return (*self.taken, self.ingredient)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Empty."""
        return {}

    def tensors(self, check: Check) -> Tensors:
        """Return the mean, computed lazily."""
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
        """Both endpoints, or only one if the position is at it."""
        return {0.0: (self.start,), 1.0: (self.end,)}.get(self.position, (self.start, self.end))

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The position, unless it is at an endpoint."""
        return {"position": self.position} if self.mixed else {}

    @property
    def mixed(self) -> bool:
        """Whether the position isn't at an endpoint."""
        return self.position not in (0, 1)

    def tensors(self, check: Check) -> Tensors:
        """Return the tensors at the position, computed lazily."""
        start, end = self.start.load(), self.end.load()
        check_compatible(start, end, names=(self.start.name, self.end.name))
        check_is_model(start, self.start.name)
        check(start, self.start.name)
        check(end, self.end.name)
        return line(start, end, self.position)
