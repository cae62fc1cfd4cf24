"""Layers, found from the names of tensors alone: ``model.layers.12.mlp.up_proj.weight`` belongs to layer 12.

The outermost number of a path counts the layers of a stack, but not that of a wrapper which holds nearly everything
(``0.auto_model.encoder.layer.3`` of a model beside its head in an ``nn.Sequential``); an expert or a projection inside
a layer may be numbered too. Stages (``layer3.2.conv1.weight`` of a ResNet) and the way down and up again of a U-Net are
one stack. Two towers are two stacks, each counted by itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

from weightspace.errors import WeightspaceError

#: What orders the layers of a stack: numbers, the outer one first.
Index: TypeAlias = tuple[int, ...]

#: The three parts of a U-Net, in the order in which data flows.
_SECTIONS = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2, "input_blocks": 0, "middle_block": 1, "output_blocks": 2}

#: A numbered stage: ``layer3``.
_STAGE = re.compile(r"([A-Za-z_]+?)(\d+)")

#: A stack with less than this share of the tensors of the largest one is no stack of layers, but a head or a stem.
_SMALL = 0.2

#: A number at the very front under which more than this share of the numbered tensors lie is that of a wrapper.
_WRAPPED = 0.8


class Layers:
    """The stacks of layers in a list of names."""

    def __init__(self, names: Iterable[str]) -> None:
        """Find the layers.

        Args:
            names: of all tensors of a model.
        """
        names = list(names)
        self._wrapper = _wrapper(names)
        found = {name: place for name in names if (place := _place(name, self._wrapper)) is not None}
        stacks: dict[str, list[Index]] = {}
        for stack, index in found.values():
            stacks.setdefault(stack, []).append(index)
        largest = max(map(len, stacks.values()), default=0)
        ranks = {
            stack: {index: rank for rank, index in enumerate(sorted(set(indices)))}
            for stack, indices in stacks.items()
            if len(set(indices)) > 1 and len(indices) >= _SMALL * largest
        }
        self._numbers = {name: (stack, ranks[stack][index]) for name, (stack, index) in found.items() if stack in ranks}
        self._counts = {stack: len(indices) for stack, indices in ranks.items()}

    @property
    def count(self) -> int:
        """How many layers there are.

        Raises:
            WeightspaceError: the names have no layers, or several stacks of them.
        """
        if len(self._counts) != 1:
            found = ", ".join(f"{stack or 'the top'} ({count})" for stack, count in self._counts.items()) or "none"
            raise WeightspaceError(
                f"Slices need one stack of numbered layers in the names of the tensors; found {found}."
            )
        return next(iter(self._counts.values()))

    def number(self, name: str) -> int | None:
        """Return the layer that a tensor belongs to, counted from 0 in its stack; None outside the layers."""
        place = self._numbers.get(name)
        return None if place is None else place[1]

    def position(self, name: str) -> float:
        """Return how deep in its stack a tensor lies: 0 in the first layer and outside the layers, 1 in the last."""
        place = self._numbers.get(name)
        return 0.0 if place is None else place[1] / (self._counts[place[0]] - 1)

    def renumbered(self, name: str, number: int) -> str:
        """Return the name that a tensor of a layer has in another layer of its stack.

        Raises:
            WeightspaceError: the layers are not numbered from 0 by one number, as stages are not.
        """
        parts = name.split(".")
        outermost = 1 if self._wrapper else 0
        index = next(index for index in range(outermost, len(parts)) if parts[index].isdigit())
        if parts[index] != str(self.number(name)):
            raise WeightspaceError(
                f"Slices need layers that one number counts from 0; found {name!r} in layer {self.number(name)}."
            )
        parts[index] = str(number)
        return ".".join(parts)


def _wrapper(names: list[str]) -> str:
    """Return the number at the front of nearly all names that have one anywhere, or an empty text."""
    numbered = [name.split(".") for name in names if any(part.isdigit() for part in name.split("."))]
    for front, count in Counter(parts[0] for parts in numbered if parts[0].isdigit()).most_common(1):
        inside = any(part.isdigit() for parts in numbered if parts[0] == front for part in parts[1:])
        if inside and count > _WRAPPED * len(numbered):
            return front
    return ""


def _place(name: str, wrapper: str) -> tuple[str, Index] | None:
    """Return the stack and the index in it that a name has, if it has a number beside its wrapper's."""
    parts = name.split(".")
    for position, part in enumerate(parts):
        if not position and part == wrapper:
            continue
        parent = ".".join(parts[:position])
        if part in _SECTIONS:
            section = _SECTIONS[part]
            following = parts[position + 1] if position + 1 < len(parts) else ""
            # All of the middle is one layer.
            return f"{parent}.#", (section, int(following) if following.isdigit() and section != 1 else 0)
        if part.isdigit():
            stage = _STAGE.fullmatch(parts[position - 1]) if position else None
            if stage is None:
                return parent, (int(part),)
            return f"{'.'.join(parts[: position - 1])}.{stage[1]}#", (int(stage[2]), int(part))
    return None
