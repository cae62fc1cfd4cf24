"""Which tensors the output has, and where each one comes from: names in, names out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from weightspace.adapters.tied_weights import missing_aliases
from weightspace.merging.engine.embedding import has_own_head
from weightspace.merging.engine.finder import Output, TensorFinder
from weightspace.merging.engine.plan import Member
from weightspace.merging.engine.slices import stack_slices
from weightspace.merging.engine.stacking import Stacking
from weightspace.merging.layers import Layers
from weightspace.merging.recipe import Recipe


@dataclass(frozen=True)
class Outputs:
    """All tensors of the output.

    Attributes:
        outputs: in order.
        tied: name -> the name that it shares memory with.
        stacking: how slices are put on top of one another; None where models are merged whole.
        untied: the output has a head of its own where some model used its embedding.
    """

    outputs: tuple[Output, ...]
    tied: Mapping[str, str]
    stacking: Stacking | None
    untied: bool


def outputs(recipe: Recipe, members: Sequence[Member], *, base: bool, warn: Callable[[str], None] | None) -> Outputs:
    """Return the tensors of the output.

    Args:
        recipe: models that are merged whole, or slices of their layers put on top of each other.
        members: its checkpoints.
        base: whether the method reads the recipe's base.
        warn: takes a line about tensors that some models lack; None: they are an error.

    Raises:
        CheckpointError: models lack tensors or layers that others have, or slices do not fit on top of one another.
        WeightspaceError: the layers cannot be told from the names, or a slice's sources have differing numbers of them.
    """
    finder = TensorFinder(recipe, members, base, warn)
    stacking = None
    if recipe.slices[0].sources[0].layer_range is None:
        named = list(_whole(finder))
    else:
        named, stacking = stack_slices(finder)
    tied = _tied(members, named, stacking)
    untied = finder.untied or has_own_head([output.name for output in named], tied, members)
    if untied:  # transformers 5 ties nothing then, so that every name needs a tensor
        own = {output.name: output for output in named}
        named += [replace(own[owner], name=alias) for alias, owner in missing_aliases(own).items()]
    return Outputs(tuple(output for output in named if output.name not in tied), tied, stacking, untied)


def _whole(finder: TensorFinder) -> Iterator[Output]:
    """Yield the tensors of models that are merged whole."""
    sources = finder.sources(finder.recipe.slices[0])
    names = dict.fromkeys(name for index in sources for name in finder.members[index].contents.tensors)
    layers = Layers(names)
    for name in names:
        yield finder.output(name, 0, layers.position(name), [(index, name) for index in sources], name)


def _tied(members: Sequence[Member], outputs: Sequence[Output], stacking: Stacking | None) -> dict[str, str]:
    """Return the names of the output that share memory with another one in every model."""
    shared = set.intersection(*(set(member.contents.tied.items()) for member in members))
    known = {output.name: output for output in outputs}
    return {
        name: owner
        for name, owner in sorted(shared)
        if name in known and owner in known and (stacking is None or _stay_tied(known[name], known[owner], stacking))
    }


def _stay_tied(output: Output, owner: Output, stacking: Stacking) -> bool:
    """Return whether tensors that are tied in the models stay so in slices, whose layers may come from elsewhere."""
    inside = stacking.models[stacking.donor].inside
    if output.name not in inside and owner.name not in inside:
        return True  # a head and its embedding
    moved = any(name != own.name for own in (output, owner) for _, name in own.inputs)
    return not moved and [number for number, _ in output.inputs] == [number for number, _ in owner.inputs]
