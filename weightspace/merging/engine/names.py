"""Which tensors the output has, and where each one comes from: names in, names out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from weightspace.adapters.tied_weights import missing_aliases
from weightspace.checkpoints.contents import TensorInfo
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.engine.embedding import counterpart, has_own_head, is_embedding
from weightspace.merging.engine.plan import Member, Ref
from weightspace.merging.layers import Layers
from weightspace.merging.recipe import Recipe, Slice, Source


@dataclass(frozen=True)
class Output:
    """A tensor of the output.

    Attributes:
        name: its name.
        slice: index of the recipe's slice that it belongs to.
        position: in [0, 1], how deep its layer lies in the slice; 0 outside the layers.
        inputs: its sources, one a source of the slice, those that are the base included.
        base: the base's tensor, or None.
        copied: some models lack it, and it is copied from the first of ``inputs``.
    """

    name: str
    slice: int
    position: float
    inputs: tuple[Ref, ...]
    base: Ref | None
    copied: bool = False


@dataclass(frozen=True)
class Outputs:
    """All tensors of the output in order, tied names -> owners, the number of layers of slices, a head set free."""

    outputs: tuple[Output, ...]
    tied: Mapping[str, str]
    layers: int | None
    untied: bool


def outputs(recipe: Recipe, members: Sequence[Member], *, base: bool, warn: Callable[[str], None] | None) -> Outputs:
    """Return the tensors of the output.

    Args:
        recipe: models that are merged whole, or slices of their layers put on top of each other.
        members: its checkpoints.
        base: whether the method reads the recipe's base.
        warn: takes a line about tensors that some models lack; None: they are an error.

    Raises:
        CheckpointError: models lack tensors or layers that others have.
        WeightspaceError: the layers cannot be told from the names, or a slice's sources have differing numbers of them.
    """
    finder = _Finder(recipe, members, base, warn)
    if recipe.slices[0].sources[0].layer_range is None:
        found, layers = list(finder.whole()), None
    else:
        found, layers = list(finder.slices()), sum(_count(part) for part in recipe.slices)
    tied = finder.tied({output.name for output in found})
    untied = finder.untied or has_own_head([output.name for output in found], tied, members)
    if untied:  # transformers 5 ties nothing then, so that every name needs a tensor
        own = {output.name: output for output in found}
        found += [replace(own[owner], name=alias) for alias, owner in missing_aliases(own).items()]
    return Outputs(tuple(output for output in found if output.name not in tied), tied, layers, untied)


class _Finder:
    """Finds the sources of tensors by name."""

    def __init__(
        self, recipe: Recipe, members: Sequence[Member], base: bool, warn: Callable[[str], None] | None
    ) -> None:
        self.recipe = recipe
        self.members = members
        self.index = {member.source: number for number, member in enumerate(members)}
        self.base = self.index[recipe.base] if base and recipe.base is not None else None
        self.warn = warn
        self.untied = False
        self.layers: dict[int, Layers] = {}

    def whole(self) -> Iterator[Output]:
        """Yield the tensors of models that are merged whole."""
        sources = [self.index[source.model] for source in self.recipe.slices[0].sources]
        names = dict.fromkeys(name for index in sources for name in self.members[index].contents.tensors)
        layers = Layers(names)
        for name in names:
            yield self._output(name, 0, layers.position(name), [(index, name) for index in sources], name)

    def slices(self) -> Iterator[Output]:
        """Yield the tensors of slices: embeddings of the first one, the layers, then what follows the last one."""
        self.layers = {index: Layers(member.contents.tensors) for index, member in enumerate(self.members)}
        first, last = self.recipe.slices[0], self.recipe.slices[-1]
        for name in self._outside(first):
            if is_embedding(name):
                yield self._outside_output(name, 0, first)
        number = 0
        for index, part in enumerate(self.recipe.slices):
            count = _count(part)
            for step in range(count):
                position = step / (count - 1) if count > 1 else 0.0
                yield from self._layer(part, index, step, number, position)
                number += 1
        for name in self._outside(last):
            if not is_embedding(name):
                yield self._outside_output(name, len(self.recipe.slices) - 1, last)

    def tied(self, names: set[str]) -> dict[str, str]:
        """Return the names of the output that share memory with another one in every model."""
        shared = set.intersection(*(set(member.contents.tied.items()) for member in self.members))
        return {name: owner for name, owner in sorted(shared) if name in names and owner in names}

    def _layer(self, part: Slice, index: int, step: int, number: int, position: float) -> Iterator[Output]:
        """Yield the tensors of one layer of a slice, as layer ``number`` of the output."""
        sources = [(self.index[source.model], first + step) for source, (first, _) in _ranges(part)]
        member, layer = sources[0]
        layers = self.layers[member]
        names = [name for name in self.members[member].contents.tensors if layers.number(name) == layer]
        if not names:
            raise CheckpointError(
                f"{self.members[member].label} has no layer {layer}; expected a layer_range within 0 to {layers.count}."
            )
        for name in names:
            refs = [(source, layers.renumbered(name, other)) for source, other in sources]
            yield self._output(layers.renumbered(name, number), index, position, refs, name)

    def _outside(self, part: Slice) -> list[str]:
        """Return the names of a slice's models that belong to no layer."""
        members = [self.index[source.model] for source in part.sources]
        names = {name: self.layers[index] for index in members for name in self.members[index].contents.tensors}
        return [name for name, layers in names.items() if layers.number(name) is None]

    def _outside_output(self, name: str, index: int, part: Slice) -> Output:
        return self._output(name, index, 0.0, [(self.index[source.model], name) for source in part.sources], name)

    def _output(self, name: str, part: int, position: float, wanted: Sequence[Ref], in_base: str) -> Output:
        """Return one tensor of the output; ``wanted`` are its sources if the models have them."""
        asked = [*wanted, *([] if self.base is None else [(self.base, in_base)])]
        shape = next(tensors[name].shape for index, name in asked if name in (tensors := self._tensors(index)))
        refs = [self._find(ref, shape) for ref in wanted]
        base = None
        if self.base is not None:
            listed = [ref for ref, (index, _) in zip(refs, wanted, strict=True) if index == self.base]
            base = listed[0] if listed else self._find((self.base, in_base), shape)
            wanted = [*wanted, (self.base, in_base)]
            refs = [*refs, base]
        found = [ref for ref in refs if ref is not None]
        if len(found) == len(refs):
            inputs = found if self.base is None else found[:-1]
            return Output(name, part, position, tuple(inputs), base)
        self._lacking([ref for ref, one in zip(wanted, refs, strict=True) if one is None], found[0])
        return Output(name, part, position, tuple(found[:1]), None, copied=True)

    def _tensors(self, index: int) -> Mapping[str, TensorInfo]:
        return self.members[index].contents.tensors

    def _find(self, ref: Ref, shape: tuple[int, ...]) -> Ref | None:
        """Return where a member has a tensor of a shape: under its name, or as the one that it is tied to."""
        index, name = ref
        if name in self._tensors(index):
            return ref
        found = counterpart(self.members[index], name, shape)
        if found is None:
            return None
        self.untied = self.untied or name.endswith(".weight")
        return index, found

    def _lacking(self, lacking: Sequence[Ref], found: Ref) -> None:
        """Refuse, or warn of, a tensor that some models lack."""
        index, name = lacking[0]
        own, known = self.members[index].contents.tensors, self.members[found[0]].contents.tensors
        close = get_close_matches(name, [other for other in own if other not in known], n=1)
        has, lacks = self.members[found[0]].label, self.members[index].label
        line = f"{lacks} has no tensor {name!r}, which {has} has."
        if self.warn is None:
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise CheckpointError(f"{line}{hint} Expected the same tensors in all; --lenient copies it from {has}.")
        self.warn(f"{line} It is copied from {has}.")


def _ranges(part: Slice) -> list[tuple[Source, tuple[int, int]]]:
    """Return the sources of a slice with their layers."""
    return [(source, source.layer_range) for source in part.sources if source.layer_range is not None]


def _count(part: Slice) -> int:
    """Return how many layers a slice has."""
    counts = [stop - start for _, (start, stop) in _ranges(part)]
    if len(set(counts)) != 1:
        raise WeightspaceError(
            f"The sources of a slice have {', '.join(map(str, counts))} layers. Expected as many of each."
        )
    return counts[0]
