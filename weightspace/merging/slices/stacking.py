"""Stacking of slices: the source models and layers of each layer of the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.plan.plan import Member
from weightspace.merging.recipe.parse import Recipe, Slice
from weightspace.merging.slices.sliced_model import SlicedModel, open_sliced


@dataclass(frozen=True)
class Stacking:
    """Slices stacked into one network.

    Attributes:
        models: member -> the model that is cut, or that the configuration comes from.
        donor: the member that the configuration comes from: the recipe's base, else the first model.
        layers: sources of each layer of the output, each a member and a layer there.
        slices: for each layer of the output, the index of its slice and its relative depth there, in [0, 1].
    """

    models: Mapping[int, SlicedModel]
    donor: int
    layers: tuple[tuple[tuple[int, int], ...], ...]
    slices: tuple[tuple[int, float], ...]

    @property
    def stack(self) -> str:
        """Path of the stack that is cut."""
        return self.models[self.donor].stack

    @property
    def moves(self) -> bool:
        """Whether any layer is renumbered, or the number of layers changes."""
        stay = all(layer == number for number, sources in enumerate(self.layers) for _, layer in sources)
        return not stay or len(self.layers) != self.models[self.donor].count


def plan_stacking(recipe: Recipe, members: Sequence[Member], donor: str) -> Stacking:
    """Plan the stacking of a recipe's slices.

    Args:
        recipe: a recipe with slices of layers.
        members: its checkpoints.
        donor: the model that the configuration comes from.

    Raises:
        CheckpointError: a model lacks a layer, or a configuration is damaged.
        WeightspaceError: the choice of the stack is ambiguous, or a slice's sources have different numbers of layers.
    """
    index = {member.source: number for number, member in enumerate(members)}
    sources = [source for part in recipe.slices for source in part.sources]
    place = index[donor]
    named = _named_stack(recipe)
    example = sources[0].layer_range or (0, 2)
    used = dict.fromkeys([place, *(index[source.model] for source in sources)])
    models = {number: open_sliced(members[number], stack=named, layer_range=example) for number in used}
    for model in models.values():
        if model.stack != models[place].stack:
            raise WeightspaceError(
                f"layer_range refers to {models[place].stack!r} in {models[place].member.label} and {model.stack!r} in "
                f"{model.member.label}; expected the same name in all models. `stack:` chooses another stack."
            )
    layers: list[tuple[tuple[int, int], ...]] = []
    slices: list[tuple[int, float]] = []
    for number, part in enumerate(recipe.slices):
        count = _count(part)
        ranges = [(index[source.model], source.layer_range[0]) for source in part.sources if source.layer_range]
        for step in range(count):
            layers.append(tuple((member, first + step) for member, first in ranges))
            # A gradient takes its last value in a slice of one layer, as in mergekit.
            slices.append((number, step / (count - 1) if count > 1 else 1.0))
            _check_layers_exist(models, layers[-1])
    return Stacking(models, place, tuple(layers), tuple(slices))


def _named_stack(recipe: Recipe) -> str | None:
    """Return the stack that a recipe names, the same for all of its sources."""
    stacks = [source.stack for part in recipe.slices for source in part.sources if source.stack is not None]
    named = dict.fromkeys(stacks)
    if len(named) > 1:
        listed = ", ".join(map(repr, list(named)[:3]))
        raise WeightspaceError(f"The sources of the slices name the stacks {listed}. Expected one per recipe.")
    return next(iter(named), None)


def _count(part: Slice) -> int:
    """Return the number of layers of a slice."""
    counts = [source.layer_range[1] - source.layer_range[0] for source in part.sources if source.layer_range]
    if len(set(counts)) != 1:
        raise WeightspaceError(
            f"The sources of a slice have {', '.join(map(str, counts))} layers. Expected the same number."
        )
    return counts[0]


def _check_layers_exist(models: Mapping[int, SlicedModel], sources: Sequence[tuple[int, int]]) -> None:
    """Check that models have layers with these numbers."""
    for number, layer in sources:
        model = models[number]
        if layer >= model.count:
            where = f" in {model.stack!r}" if len(model.layers.stacks) > 1 else ""
            raise CheckpointError(
                f"{model.member.label} has no layer {layer}{where}; expected a layer_range within 0 to {model.count}."
            )
