"""A tensor of the output found in the models by its name, or in the embedding that a model's head is tied to."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from weightspace.checkpoints.buffers import is_computed, is_pruned_in_one
from weightspace.checkpoints.metadata import TensorInfo
from weightspace.errors import CheckpointError
from weightspace.merging.plan.plan import Member, Ref
from weightspace.merging.plan.prefixes import suggested_prefix
from weightspace.merging.plan.tied_heads import counterpart
from weightspace.merging.recipe.merge_roles import find_method
from weightspace.merging.recipe.parse import Recipe, Slice
from weightspace.suggestions import closest

#: What the names of a layer's tensors begin with.
_LAYER = re.compile(r".*?\.\d+\.")

#: Methods of two models of which mergekit copies a tensor that one of them alone has.
_ALONE = ("slerp", "nuslerp", "arcee_fusion")


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
        present: the places in the slice of those of its sources that have it, where some lack it; None: all have it.
    """

    name: str
    slice: int
    position: float
    inputs: tuple[Ref, ...]
    base: Ref | None
    copied: bool = False
    present: tuple[int, ...] | None = None


class TensorFinder:
    """Finds the sources of tensors by name.

    Attributes:
        recipe: the models that are merged.
        members: its checkpoints.
        index: source as written in the recipe -> its place in ``members``.
        bases: for each slice the place of its base, where the method reads one; else None.
        warn: takes a line about tensors that some models lack; None: they are an error.
        untied: a head was found in the embedding that it is tied to.
        computed: names of tables that some models lack because networks compute them.
        lacking: member -> names of tensors that it lacks and that are merged without it.
    """

    def __init__(
        self,
        recipe: Recipe,
        members: Sequence[Member],
        base: bool,
        warn: Callable[[str], None] | None,
        *,
        partial: bool = False,
    ) -> None:
        """Prepare to look for tensors.

        Args:
            recipe: the models that are merged.
            members: its checkpoints.
            base: whether the method reads the recipe's base.
            warn: takes a line about tensors that some models lack; None: they are an error.
            partial: tensors that some models lack are merged without them, as mergekit does, where the method can.
        """
        self.recipe = recipe
        self.members = members
        self.index = {member.source: number for number, member in enumerate(members)}
        self.bases = [self.index[source] if base and source is not None else None for source in recipe.bases]
        self.warn = warn
        self.untied = False
        self.computed: list[str] = []
        self.partial = partial
        self.lacking: dict[int, list[str]] = {}

    def sources(self, part: Slice) -> list[int]:
        """Return the members that are the sources of a slice."""
        return [self.index[source.model] for source in part.sources]

    def output(
        self,
        name: str,
        part: int,
        position: float,
        wanted: Sequence[Ref],
        in_base: str,
        *,
        shape: tuple[int, ...] | None = None,
    ) -> Output:
        """Return one tensor of the output.

        Args:
            name: its name there.
            part: index of its slice.
            position: how deep its layer lies in the slice.
            wanted: its sources if the models have them.
            in_base: its name in the base.
            shape: of the tensor, where all of these may lack it and use another one in its place.

        Raises:
            CheckpointError: a model lacks it.
        """
        base, number = None, self.bases[part]
        asked = [*wanted, *([] if number is None else [(number, in_base)])]
        shape = shape or next(info.shape for info in map(self._info, asked) if info is not None)
        refs = [self._find(ref, shape) for ref in wanted]
        if number is not None:
            listed = [ref for ref, (index, _) in zip(refs, wanted, strict=True) if index == number]
            base = listed[0] if listed else self._find((number, in_base), shape)
            wanted = asked
            refs = [*refs, base]
        present = [ref for ref in refs if ref is not None]
        if len(present) == len(refs):
            inputs = present if number is None else present[:-1]
            return Output(name, part, position, tuple(inputs), base)
        if is_computed(name, shape):
            self.computed.append(name)
            return Output(name, part, position, tuple(present[:1]), None, copied=True)
        if self.partial and (found := self._without(name, part, position, asked, refs)) is not None:
            return found
        self._lacking([ref for ref, own in zip(wanted, refs, strict=True) if own is None], present[0])
        return Output(name, part, position, tuple(present[:1]), None, copied=True)

    def has(self, ref: Ref, shape: tuple[int, ...]) -> bool:
        """Return whether a member has a tensor of a shape, or one that it is tied to."""
        index, name = ref
        return self._info(ref) is not None or counterpart(self.members[index], name, shape) is not None

    def _without(
        self, name: str, part: int, position: float, asked: Sequence[Ref], refs: Sequence[Ref | None]
    ) -> Output | None:
        """Return a tensor merged without the models that lack it; None where the method cannot, or a layer is missing.

        Args:
            name: of the tensor.
            part: index of its slice.
            position: how deep its layer lies in the slice.
            asked: its sources if the models had them, the base's behind them where there is one.
            refs: where they are found.
        """
        lacking = [ref for ref, own in zip(asked, refs, strict=True) if own is None]
        if any(_lacks_layer(self.members[index], other) for index, other in lacking):
            return None
        number, row = self.bases[part], find_method(self.recipe.method)
        inputs = refs if number is None else refs[:-1]
        base = None if number is None else refs[-1]
        present = tuple(place for place, ref in enumerate(inputs) if ref is not None)
        found = [ref for ref in inputs if ref is not None]
        models = [ref for ref in found if ref != base]
        alone = [ref for ref in (*models, base) if ref is not None]
        if len(alone) == 1 and (number is None or base is not None or row.name in _ALONE):
            output = Output(
                name, part, position, (alone[0],), None, copied=bool(base is not None or row.name in _ALONE)
            )
            output = output if output.copied else replace(output, present=present)
        elif (number is None or base is not None) and len(models) >= row.models[0]:
            output = Output(name, part, position, tuple(found), base, present=present)
        else:
            return None
        for index, own in lacking:
            self.lacking.setdefault(index, []).append(own)
        return output

    def _info(self, ref: Ref) -> TensorInfo | None:
        return self.members[ref[0]].contents.tensors.get(ref[1])

    def _find(self, ref: Ref, shape: tuple[int, ...]) -> Ref | None:
        """Return where a member has a tensor of a shape: under its name, or as the one that it is tied to."""
        index, name = ref
        if name in self.members[index].contents.tensors:
            return ref
        tied = counterpart(self.members[index], name, shape)
        if tied is None:
            return None
        self.untied = self.untied or name.endswith(".weight")
        return index, tied

    def _lacking(self, lacking: Sequence[Ref], present: Ref) -> None:
        """Refuse, or warn of, a tensor that some models lack."""
        index, name = lacking[0]
        own, known = self.members[index].contents.tensors, self.members[present[0]].contents.tensors
        close = closest(name, (other for other in own if other not in known))
        has, lacks = self.members[present[0]].label, self.members[index].label
        line = f"{lacks} has no tensor {name!r}, which {has} has."
        if is_pruned_in_one(name, own, known):
            raise CheckpointError(
                f"{line} One of them alone is pruned: make that permanent first, by torch.nn.utils.prune.remove."
            )
        if self.warn is None:
            hint = "" if close is None else f" Did you mean {close!r}?"
            if prefix := suggested_prefix(name, () if close is None else (close,)):
                hint += f" --strip-prefix {prefix} takes the prefix off."
            raise CheckpointError(f"{line}{hint} Expected the same tensors in all; --lenient copies it from {has}.")
        self.warn(f"{line} It is copied from {has}.")


def _lacks_layer(member: Member, name: str) -> bool:
    """Return whether a model has no tensor of the layer that a name belongs to."""
    layer = _LAYER.match(name)
    return layer is not None and not any(own.startswith(layer[0]) for own in member.contents.tensors)
