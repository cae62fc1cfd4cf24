r"""Mixtures of networks whose coefficients are learned: the weights, and the gradient of the coefficients.

For :math:`\theta = \sum_i c_i \theta_i` with coefficients per tensor, per layer or for the whole model, of sum 1, and
:math:`g = \partial L / \partial \theta`, the slope of a coefficient is :math:`\langle g, \theta_i - \theta \rangle`.
It is accumulated tensor by tensor, without a graph through the networks. Weight-norm pairs are mixed as the weights
that they represent, with the coefficients of their direction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from weightspace.arithmetic.affine import affine
from weightspace.arithmetic.coefficients import shares
from weightspace.arithmetic.dtypes import output_dtype, widened
from weightspace.arithmetic.integers import unaveraged
from weightspace.arithmetic.linear_combination import combine
from weightspace.arithmetic.parametrizations import Coordinates, combined
from weightspace.arithmetic.weight_norm import weight_and_gradient
from weightspace.checkpoints import StateDict
from weightspace.checkpoints.measure import is_inexact
from weightspace.checkpoints.state_dict import tied_names
from weightspace.soups.ingredients import IngredientCheck, Source, ingredients_of
from weightspace.soups.scoring import Scorer

#: Granularity of the coefficients.
Per: TypeAlias = Literal["tensor", "layer", "model"]


class Mixture(ABC):
    """A network with the weights ``Σ c_i θ_i``.

    Args:
        states: ``θ_i``, with the names and shapes of the network.
        network: the network; its weights are overwritten.
        per: granularity of the coefficients.

    Attributes:
        own: names of the groups with coefficients: a tensor's, a layer's, or ``""``.
        groups: tensor -> the group whose coefficients it uses.
    """

    def __init__(self, states: Sequence[StateDict], network: nn.Module, per: Per) -> None:
        self.states, self.network, self.aliases = states, network, tied_names(network.state_dict())
        self.coordinates = Coordinates(states)
        self.parameters = {name: one for name, one in network.named_parameters() if is_inexact(one)}
        self.groups = {name: _group(self.aliases.get(name, name), per) for name in self.coordinates.names}
        self.own = tuple(dict.fromkeys(self.groups[name] for name in self.parameters if name in self.groups))
        for parameter in network.parameters():
            parameter.requires_grad_(is_inexact(parameter))

    @abstractmethod
    def coefficients(self) -> dict[str, Tensor]:
        """Return ``c`` of each group, float64 of shape ``(states,)``, sum 1."""

    @torch.no_grad()
    def mix(self) -> None:
        """Set the weights of the network."""
        coefficients, own = self.coefficients(), self.network.state_dict()
        for name in self.coordinates.names:
            tensors = [self.coordinates.of(state, name) for state in self.states]
            kept = unaveraged(name, tensors)
            mixed = affine(widened(tensors), self._of(name, coefficients).tolist()) if kept is None else kept
            for part, tensor in self.coordinates.tensors(name, mixed):
                own[part].copy_(tensor)
        for parameter in self.network.parameters():
            parameter.grad = None

    @torch.no_grad()
    def slopes(self) -> dict[str, Tensor]:
        """Return ``⟨g, θ_i − θ⟩`` of each group, from the gradient ``g`` of the network's weights ``θ``."""
        slopes = {group: torch.zeros(len(self.states), dtype=torch.float64) for group in self.own}
        for name in self.parameters:
            slope = self._slope(name) if name in self.groups else None
            if slope is None:
                continue
            weight, gradient = slope
            for number, state in enumerate(self.states):
                away = self.coordinates.of(state, name).to(weight) - weight
                slopes[self.groups[name]][number] += (gradient * away).sum(dtype=torch.float64).cpu()
        return slopes

    def state(self) -> StateDict:
        """Return the mixture, in the dtype of the states, rounded once."""
        coefficients = self.coefficients()

        def mixed(name: str, tensors: list[Tensor]) -> Tensor:
            kept = unaveraged(name, tensors)
            if kept is not None:
                return kept
            own = shares(tuple(self._of(name, coefficients).tolist()))
            return combine(tensors, own, output_dtype(tensor.dtype for tensor in tensors))

        return combined(self.states, mixed)

    def _slope(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return a coordinate of the network and its gradient, or None if it has no gradient."""
        parameter, norm = self.parameters[name], self.coordinates.parametrizations.weight_norms.get(name)
        if parameter.grad is None or norm is None:
            return None if parameter.grad is None else (parameter, parameter.grad)
        magnitude = self.parameters[norm.magnitude]
        return None if magnitude.grad is None else weight_and_gradient(magnitude, parameter)

    def _of(self, name: str, coefficients: Mapping[str, Tensor]) -> Tensor:
        """Return the coefficients of a tensor."""
        found = coefficients.get(self.groups[name])
        if found is not None:
            return found
        # A buffer has no gradient: it uses the mean coefficients of its layer, else of all groups.
        layer = self.aliases.get(name, name).rpartition(".")[0]
        near = [one for group, one in coefficients.items() if group.rpartition(".")[0] == layer]
        return torch.stack(near or list(coefficients.values())).mean(0)


def checked_states(models: Sequence[Source], base: Source, scorers: Sequence[Scorer]) -> list[StateDict]:
    """Return the tensors of the base, followed by the models', checked against each other and the tasks' networks.

    Raises:
        CheckpointError: a model cannot be read, holds NaN, or differs from the base in names or shapes.
    """
    shapes = scorers[0].shapes
    ingredients = [*ingredients_of([base], shapes), *ingredients_of(models, shapes, base=base)]
    states, against = [ingredient.mapped() for ingredient in ingredients], IngredientCheck()
    for number, (ingredient, state) in enumerate(zip(ingredients, states, strict=True)):
        name = ingredient.name if not isinstance(ingredient.source, dict) else f"model {number}" if number else "base"
        against.add(state, name)
        for scorer in scorers:
            scorer.check(state, name)
    return states


def _group(name: str, per: Per) -> str:
    """Return the name of the group whose coefficients a tensor uses."""
    return {"tensor": name, "layer": name.rpartition(".")[0], "model": ""}[per]
