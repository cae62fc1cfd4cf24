"""Ingredients checked against each other, one after the other, before anything is scored or averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weightspace.adapters.factor_files import check_is_model
from weightspace.checkpoints import StateDict, check_compatible
from weightspace.checkpoints.measure import count_non_finite
from weightspace.elementwise.counting import unaveraged
from weightspace.elementwise.nonfinite import finite
from weightspace.errors import CheckpointError
from weightspace.soups.ingredients import Ingredient

#: Checks that a model, called so, can be scored.
Check = Callable[[StateDict, str], None]


class IngredientCheck:
    """Checks that networks can be averaged: each against the first, of which little is kept.

    Names, shapes and kinds are those of the first; integers are equal; all values are finite. An infinity that every
    network has in the same place is a mask, whose mean is itself, and passes.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._outline: StateDict = {}  # of the first: shapes and dtypes without memory
        self._whole: StateDict = {}  # its integers, and what holds whole numbers
        self._masks: dict[str, Tensor] = {}  # its tensors with infinities

    @torch.no_grad()
    def add(self, state: StateDict, name: str) -> None:
        """Check one more network.

        Args:
            state: its tensors.
            name: what errors call it.

        Raises:
            CheckpointError: it is a set of factors, has other names or shapes than the first, or holds NaN or
                infinity.
            WeightspaceError: integer tensors differ from those of the first.
        """
        check_is_model(state, name)
        if self._name is None:
            self._begin(state, name)
        else:
            check_compatible(self._outline, state, names=(self._name, name))
            for key, whole in self._whole.items():
                unaveraged(key, [whole, state[key]], models=[self._name, name])
        for key, tensor in state.items():
            if count_non_finite(tensor) or key in self._masks:
                self._check_infinities(key, tensor, name)

    def _begin(self, state: StateDict, name: str) -> None:
        """Keep of the first network what the others are compared with."""
        self._name = name
        for key, tensor in state.items():
            self._outline[key] = torch.empty_like(tensor, device="meta")
            if (whole := unaveraged(key, [tensor])) is not None:
                self._whole[key] = whole
            if count_non_finite(tensor):
                self._masks[key] = tensor.detach().clone()

    def _check_infinities(self, key: str, tensor: Tensor, name: str) -> None:
        """Check that what is not finite is an infinity of the first network, and the other way round."""
        mask = self._masks.get(key)
        places = ~finite(tensor)
        if mask is not None:
            places |= ~finite(mask)
            wide = torch.complex128 if tensor.is_complex() else torch.float64
            places &= mask.to(wide) != tensor.to(wide)  # of NaN all
        if count := int(places.sum()):
            place = f"{count:,} of {tensor.numel():,} elements"
            problem = f"has NaN or infinity in {place}"
            if mask is not None and name != self._name:
                problem = f"is infinite in other places than in {self._name} (differs in {place})"
            raise CheckpointError(
                f"{name}: {key!r} {problem}; expected finite weights, whose mean is one. Leave it out of the soup. Did "
                "the training diverge?"
            )


def check_ingredients(ingredients: Sequence[Ingredient], check: Check | None = None) -> None:
    """Check that ingredients can be averaged and scored; one at a time is in memory.

    Args:
        ingredients: in their order.
        check: of each against what scores it.

    Raises:
        CheckpointError: one cannot be read, has other names or shapes than the first, or holds NaN or infinity.
        WeightspaceError: integer tensors differ.
    """
    against = IngredientCheck()
    for ingredient in ingredients:
        state = ingredient.load()
        against.add(state, ingredient.name)
        if check is not None:
            check(state, ingredient.name)
