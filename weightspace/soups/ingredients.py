"""Ingredients: the fine-tunes that a soup is made of, as files that are read one at a time, or as state dicts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from weightspace.arithmetic.integers import unaveraged
from weightspace.arithmetic.nonfinite import finite
from weightspace.arithmetic.pruning import check_masks
from weightspace.checkpoints import StateDict, check_compatible, load_checkpoint
from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.buffers import Parametrizations, find_parametrizations
from weightspace.checkpoints.fetching import is_elsewhere
from weightspace.checkpoints.hf_folder import weight_files
from weightspace.checkpoints.measure import count_non_finite
from weightspace.checkpoints.reader import read_checkpoint
from weightspace.errors import CheckpointError, WeightspaceError, WeightspaceWarning
from weightspace.lora.factor_files import check_is_model
from weightspace.soups.fingerprints import fingerprint_of_state

#: A checkpoint by its path (or URL), or its tensors.
Source: TypeAlias = "StateDict | str | os.PathLike[str]"


@dataclass(frozen=True)
class Ingredient:
    """One model: its name in tables and errors, and where its tensors are."""

    name: str
    source: Source

    def load(self) -> StateDict:
        """Return the tensors: those of a file are read into memory, so that it may change afterwards.

        Raises:
            CheckpointError: the checkpoint is missing or damaged, or changes while it is read.
        """
        return self.source if isinstance(self.source, dict) else read_checkpoint(self.source)

    def mapped(self) -> StateDict:
        """Return the tensors, those of a file mapped into memory, where the format allows it: for all at a time.

        Raises:
            CheckpointError: the checkpoint is missing or damaged.
        """
        return self.source if isinstance(self.source, dict) else load_checkpoint(self.source)

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Return size and time of change, in nanoseconds, of its files; nothing for tensors and URLs.

        Raises:
            CheckpointError: a file is gone, or cannot be read.
        """
        if isinstance(self.source, dict) or is_elsewhere(self.source):
            return ()
        path = Path(self.source)
        with one_line_errors(path, "read"):
            statuses = [file.stat() for file in weight_files(path)]
        return tuple((status.st_size, status.st_mtime_ns) for status in statuses)


def ingredients_of(sources: Sequence[Source]) -> tuple[Ingredient, ...]:
    """Return the ingredients: a file is called by its path, a state dict by its number from 0.

    Raises:
        WeightspaceError: there are none.
    """
    if isinstance(sources, str | os.PathLike | dict) or not len(sources):
        raise WeightspaceError(f"A soup needs a list of one checkpoint or state dict at least; found {sources!r:.80}.")
    return tuple(
        Ingredient(str(number) if isinstance(source, dict) else os.fspath(source), source)
        for number, source in enumerate(sources)
    )


def check_distinct(ingredients: Sequence[Ingredient]) -> None:
    """Check that no file is there twice: a soup would count it as two models.

    Raises:
        WeightspaceError: one is.
    """
    known: dict[str, str] = {}
    for ingredient in ingredients:
        source = ingredient.source
        if isinstance(source, dict) or is_elsewhere(source):
            continue
        path = os.path.realpath(source)
        if path in known:
            raise WeightspaceError(
                f"{known[path]} and {ingredient.name} are one file, which the soup would take for two models. Leave "
                "one out; with replacement=True (--replacement) a greedy soup may take an ingredient several times."
            )
        known[path] = ingredient.name


def warn_of_copies(ingredients: Sequence[Ingredient], scores: Sequence[float]) -> None:
    """Tell of ingredients that are equal, tensor by tensor.

    Args:
        ingredients: in their order.
        scores: of each alone; only those of equal scores are compared.

    Warns:
        WeightspaceWarning: two are equal.
    """
    seen: dict[tuple[float, str], Ingredient] = {}
    for ingredient, score in zip(ingredients, scores, strict=True):
        if list(scores).count(score) < 2:
            continue
        first = seen.setdefault((score, fingerprint_of_state(ingredient.load())), ingredient)
        if first is not ingredient:
            warnings.warn(
                f"{first.name} and {ingredient.name} are equal, and the soup takes them for two models. Leave one out.",
                WeightspaceWarning,
                stacklevel=2,
            )


#: Checks that a model, called so, can be scored.
Check = Callable[[StateDict, str], None]


class IngredientCheck:
    """Checks that networks can be averaged: each against the first, of which little is kept.

    Names, shapes and kinds are those of the first; integers and pruning masks are equal; all values are finite. An
    infinity that every network has in the same place is a mask, whose mean is itself, and passes.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._outline: StateDict = {}  # of the first: shapes and dtypes without memory
        self._whole: StateDict = {}  # its integers, and what holds whole numbers
        self._masks: dict[str, Tensor] = {}  # its tensors with infinities
        self._parametrizations = Parametrizations()
        self._pruning: StateDict = {}  # its pruning masks

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
            check_masks([self._pruning, state], self._parametrizations, models=(self._name, name))
        for key, tensor in state.items():
            if count_non_finite(tensor) or key in self._masks:
                self._check_infinities(key, tensor, name)

    def _begin(self, state: StateDict, name: str) -> None:
        """Keep of the first network what the others are compared with."""
        self._name = name
        self._parametrizations = find_parametrizations({key: tuple(tensor.shape) for key, tensor in state.items()})
        self._pruning = {mask: state[mask].detach().clone() for mask in self._parametrizations.masks.values()}
        for key, tensor in state.items():
            self._outline[key] = torch.empty_like(tensor, device="meta")
            if key not in self._pruning and (whole := unaveraged(key, [tensor])) is not None:
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
