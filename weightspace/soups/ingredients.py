"""Ingredients: the fine-tunes that make up a soup, as files read one at a time or as state dicts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from weightspace.checkpoints.detection import weight_files
from weightspace.checkpoints.fetching import is_elsewhere
from weightspace.checkpoints.measure import count_non_finite
from weightspace.checkpoints.name_maps.expert_layout import expert_layout
from weightspace.checkpoints.reader import read_checkpoint
from weightspace.errors import CheckpointError, WeightspaceError, WeightspaceWarning
from weightspace.lora.factor_files import check_is_model
from weightspace.soups.fingerprints import fingerprint_of_state
from weightspace.soups.folder_checks import check_folders

#: A checkpoint, given by its path (or URL) or its tensors.
Source: TypeAlias = "StateDict | str | os.PathLike[str]"


@dataclass(frozen=True)
class Ingredient:
    """One model.

    Attributes:
        name: its name in tables and errors.
        source: the source of its tensors.
        shapes: the tensors of the network that it is for, name -> shape; experts that the network has stacked are
            stacked when it is loaded.
    """

    name: str
    source: Source
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def load(self) -> StateDict:
        """Return the tensors; those of a file are read into memory, so that it may change afterwards.

        Raises:
            CheckpointError: the checkpoint is missing or damaged, or changes while it is being read.
        """
        given = isinstance(self.source, dict)
        state = self.source if isinstance(self.source, dict) else read_checkpoint(self.source)
        return expert_layout(self.shapes, state).stacked(state, consume=not given)

    def mapped(self) -> StateDict:
        """Return the tensors; those of a file are memory-mapped if possible, so that all models can be open at once.

        Experts that are stacked are read into memory.

        Raises:
            CheckpointError: the checkpoint is missing or damaged.
        """
        state = self.source if isinstance(self.source, dict) else load_checkpoint(self.source)
        return expert_layout(self.shapes, state).stacked(state)

    def as_stored(self, state: StateDict) -> StateDict:
        """Return a model in the network's layout with separate experts if those of the ingredient are separate."""
        if not any(".experts." in name for name in self.shapes):
            return state
        stored = self.source if isinstance(self.source, dict) else load_checkpoint(self.source)
        return expert_layout(self.shapes, stored).separate(state)

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Return size and modification time, in nanoseconds, of its files; empty for tensors and URLs.

        Raises:
            CheckpointError: a file is missing or cannot be read.
        """
        if isinstance(self.source, dict) or is_elsewhere(self.source):
            return ()
        path = Path(self.source)
        with one_line_errors(path, "read"):
            statuses = [file.stat() for file in weight_files(path)]
        return tuple((status.st_size, status.st_mtime_ns) for status in statuses)


def ingredients_of(
    sources: Sequence[Source], shapes: Mapping[str, tuple[int, ...]] | None = None, *, base: Source | None = None
) -> tuple[Ingredient, ...]:
    """Return the ingredients; a file is named by its path, a state dict by its index from 0.

    Args:
        sources: the checkpoints and state dicts.
        shapes: the tensors of the network that they are for; None if there is none.
        base: a model that they are averaged with; it is no ingredient, but its folder is compared with theirs.

    Raises:
        CheckpointError: a folder's configuration or tokenizer is damaged.
        WeightspaceError: there are none, or a token has different ids in two folders.

    Warns:
        WeightspaceWarning: the configurations of two folders differ.
    """
    if isinstance(sources, str | os.PathLike | dict) or not len(sources):
        raise WeightspaceError(f"A soup needs a list of at least one checkpoint or state dict; found {sources!r:.80}.")
    check_folders([*sources, base])
    return tuple(
        Ingredient(str(number) if isinstance(source, dict) else os.fspath(source), source, shapes or {})
        for number, source in enumerate(sources)
    )


def check_distinct(ingredients: Sequence[Ingredient]) -> None:
    """Check that no file is given twice, as a soup would count it as two models.

    Raises:
        WeightspaceError: a file is given twice.
    """
    known: dict[str, str] = {}
    for ingredient in ingredients:
        source = ingredient.source
        if isinstance(source, dict) or is_elsewhere(source):
            continue
        path = os.path.realpath(source)
        if path in known:
            raise WeightspaceError(
                f"{known[path]} and {ingredient.name} are the same file, which the soup would count as two models. "
                "Remove one; with replacement=True (--replacement), a greedy soup may use an ingredient repeatedly."
            )
        known[path] = ingredient.name


def warn_of_copies(ingredients: Sequence[Ingredient], scores: Sequence[float]) -> None:
    """Warn of ingredients whose tensors are all equal.

    Args:
        ingredients: the ingredients.
        scores: score of each ingredient; only those with equal scores are compared.

    Warns:
        WeightspaceWarning: two ingredients are equal.
    """
    seen: dict[tuple[float, str], Ingredient] = {}
    for ingredient, score in zip(ingredients, scores, strict=True):
        if list(scores).count(score) < 2:
            continue
        first = seen.setdefault((score, fingerprint_of_state(ingredient.load())), ingredient)
        if first is not ingredient:
            warnings.warn(
                f"{first.name} and {ingredient.name} are equal, but the soup counts them as two models. Remove one.",
                WeightspaceWarning,
                stacklevel=2,
            )


#: Checks that a model, with its name for errors, can be scored.
Check = Callable[[StateDict, str], None]


class IngredientCheck:
    """Check that networks can be averaged, comparing each with an outline of the first.

    Names, shapes and kinds must match the first; integers and pruning masks must be equal; all values must be finite.
    Infinities at the same positions in all networks are accepted as a mask, whose mean is itself.
    """

    def __init__(self) -> None:
        self._name: str | None = None
        self._outline: StateDict = {}  # shapes and dtypes of the first, without memory
        self._whole: StateDict = {}  # its tensors of integers or of whole numbers
        self._masks: dict[str, Tensor] = {}  # its tensors with infinities
        self._parametrizations = Parametrizations()
        self._pruning: StateDict = {}  # its pruning masks

    @torch.no_grad()
    def add(self, state: StateDict, name: str) -> None:
        """Check the next network.

        Args:
            state: its tensors.
            name: its name for errors.

        Raises:
            CheckpointError: it is a set of low-rank factors, its names or shapes differ from the first, or it holds NaN
                or infinity.
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
        """Keep the parts of the first network that others are compared with."""
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
        """Check that non-finite values are infinities shared with the first network."""
        mask = self._masks.get(key)
        places = ~finite(tensor)
        if mask is not None:
            places |= ~finite(mask)
            wide = torch.complex128 if tensor.is_complex() else torch.float64
            places &= mask.to(wide) != tensor.to(wide)  # always true for NaN
        if count := int(places.sum()):
            place = f"{count:,} of {tensor.numel():,} elements"
            problem = f"has NaN or infinity in {place}"
            if mask is not None and name != self._name:
                problem = f"is infinite at other positions than in {self._name} (differs in {place})"
            raise CheckpointError(
                f"{name}: {key!r} {problem}; expected finite weights. Did training diverge? Leave the model out of the "
                "soup."
            )


def check_ingredients(ingredients: Sequence[Ingredient], check: Check | None = None) -> None:
    """Check that ingredients can be averaged and scored, with one of them in memory at a time.

    Args:
        ingredients: the ingredients.
        check: additional check of each model, e.g. against the task's network.

    Raises:
        CheckpointError: one cannot be read, differs from the first in names or shapes, or holds NaN or infinity.
        WeightspaceError: integer tensors differ.
    """
    against = IngredientCheck()
    for ingredient in ingredients:
        state = ingredient.load()
        against.add(state, ingredient.name)
        if check is not None:
            check(state, ingredient.name)
