"""Find the sources of an output tensor in the models, by name or through a tied embedding."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from weightspace.checkpoints.buffers import is_computed, is_pruned_in_one
from weightspace.checkpoints.metadata import TensorInfo
from weightspace.checkpoints.name_maps.suggest import fitting_map
from weightspace.errors import CheckpointError
from weightspace.merging.plan.plan import Member, Ref
from weightspace.merging.plan.prefixes import suggested_prefix
from weightspace.merging.plan.tied_heads import counterpart
from weightspace.merging.recipe.merge_roles import find_method
from weightspace.merging.recipe.parse import Recipe, Slice
from weightspace.suggestions import closest

#: Prefix of the names of a layer's tensors.
_LAYER = re.compile(r".*?\.\d+\.")

#: Two-model methods for which mergekit copies a tensor that only one model has.
_COPYING_METHODS = ("slerp", "nuslerp", "arcee_fusion")


@dataclass(frozen=True)
class Output:
    """A tensor of the output.

    Attributes:
        name: its name.
        slice: index of the recipe's slice that it belongs to.
        position: relative depth of its layer in the slice, in [0, 1]; 0 outside the layers.
        inputs: one tensor per source of the slice, including sources that are the base.
        base: the base's tensor, or None.
        copied: whether some models lack it and it is copied from the first of ``inputs``.
        present: indices of the slice's sources that have it, if some lack it; None: all have it.
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
        recipe: the recipe.
        members: the checkpoints of the merge.
        index: source as written in the recipe -> index in ``members``.
        bases: for each slice, the index of its base if the method uses one, or None.
        warn: called with a one-line message about each tensor that some models lack; None makes them errors.
        untied: whether a head was found through a tied embedding.
        computed: names of buffers that some models lack because networks compute them.
        lacking: member index -> names of tensors that it lacks and that are merged without it.
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
        """Prepare to find tensors.

        Args:
            recipe: the recipe.
            members: the checkpoints of the merge.
            base: whether the method uses the recipe's base.
            warn: called with a one-line message about each tensor that some models lack; None makes them errors.
            partial: merge tensors that some models lack without those models if the method can, as mergekit does.
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
        self._maps: dict[tuple[int, int], str | None] = {}

    def sources(self, part: Slice) -> list[int]:
        """Return the member indices of a slice's sources."""
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
        """Return an output tensor with its sources.

        Args:
            name: name in the output.
            part: index of its slice.
            position: relative depth of its layer in the slice.
            wanted: its expected sources.
            in_base: its name in the base.
            shape: its shape, needed if all sources may lack the tensor and use a tied one instead.

        Raises:
            CheckpointError: a model lacks the tensor.
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
        self._check_maps([ref for ref, own in zip(asked, refs, strict=True) if own is None], present[0])
        if self.partial and (found := self._without(name, part, position, asked, refs)) is not None:
            return found
        self._lacking([ref for ref, own in zip(wanted, refs, strict=True) if own is None], present[0])
        return Output(name, part, position, tuple(present[:1]), None, copied=True)

    def has(self, ref: Ref, shape: tuple[int, ...]) -> bool:
        """Return whether a member has a tensor of the given shape, or one that it is tied to."""
        index, name = ref
        return self._info(ref) is not None or counterpart(self.members[index], name, shape) is not None

    def _without(
        self, name: str, part: int, position: float, asked: Sequence[Ref], refs: Sequence[Ref | None]
    ) -> Output | None:
        """Return a tensor merged without the models that lack it; None if the method cannot or a layer is missing.

        Args:
            name: name of the tensor.
            part: index of its slice.
            position: relative depth of its layer in the slice.
            asked: its expected sources, followed by the base's tensor if there is a base.
            refs: the tensors that were found, in the same order.
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
        distinct = [ref for ref in (*models, base) if ref is not None]
        if len(distinct) == 1 and (number is None or base is not None or row.name in _COPYING_METHODS):
            copied = base is not None or row.name in _COPYING_METHODS
            output = Output(name, part, position, (distinct[0],), None, copied=copied)
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
        """Return a member's tensor of the given name and shape, or the one that it is tied to, or None."""
        index, name = ref
        if name in self.members[index].contents.tensors:
            return ref
        tied = counterpart(self.members[index], name, shape)
        if tied is None:
            return None
        self.untied = self.untied or name.endswith(".weight")
        return index, tied

    def _check_maps(self, lacking: Sequence[Ref], present: Ref) -> None:
        """Refuse models under names for which there is a name map: copied, their tensors would be there twice.

        Args:
            lacking: the tensors that are missing.
            present: a model's tensor of that name.
        """
        pair = (lacking[0][0], present[0])
        if pair not in self._maps:
            self._maps[pair] = fitting_map(*(self.members[index].contents for index in pair))
        if (name := self._maps[pair]) is not None:
            lacks, has = (self.members[index].label for index in pair)
            raise CheckpointError(
                f"{lacks} has no tensor {lacking[0][1]!r}, which {has} has: one is stored with the names or the layout "
                f"of another program. The name map {name} brings them together: --names {name} (names: {name})."
            )

    def _lacking(self, lacking: Sequence[Ref], present: Ref) -> None:
        """Refuse a tensor that some models lack, or warn about it."""
        index, name = lacking[0]
        own, known = self.members[index].contents.tensors, self.members[present[0]].contents.tensors
        close = closest(name, (other for other in own if other not in known))
        has, lacks = self.members[present[0]].label, self.members[index].label
        line = f"{lacks} has no tensor {name!r}, which {has} has."
        if is_pruned_in_one(name, own, known):
            raise CheckpointError(f"{line} Only one of them is pruned: call torch.nn.utils.prune.remove on it first.")
        if self.warn is None:
            hint = "" if close is None else f" Did you mean {close!r}?"
            if prefix := suggested_prefix(name, () if close is None else (close,)):
                hint += f" --strip-prefix {prefix} removes the prefix."
            raise CheckpointError(f"{line}{hint} Expected the same tensors in all; --lenient copies it from {has}.")
        self.warn(f"{line} It is copied from {has}.")


def _lacks_layer(member: Member, name: str) -> bool:
    """Return whether a model lacks the whole layer that a tensor belongs to."""
    layer = _LAYER.match(name)
    return layer is not None and not any(own.startswith(layer[0]) for own in member.contents.tensors)
