"""Layers, found from the names of tensors alone: ``model.layers.12.mlp.up_proj.weight`` belongs to layer 12.

The outermost number of a path counts the layers of a stack, except for that of a wrapper that holds nearly everything
(``0.auto_model.encoder.layer.3`` of a model next to its head in an ``nn.Sequential``); experts or projections inside a
layer may be numbered too. Stages (``layer3.2.conv1.weight`` of a ResNet) and the down and up paths of a U-Net are one
stack. Two towers are two stacks, each numbered separately.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

from weightspace.errors import WeightspaceError

#: Sort key of a layer in its stack: its numbers, outermost first.
Index: TypeAlias = tuple[int, ...]

#: The three parts of a U-Net, in order of data flow.
_SECTIONS = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2, "input_blocks": 0, "middle_block": 1, "output_blocks": 2}

#: A numbered stage: ``layer3``.
_STAGE = re.compile(r"([A-Za-z_]+?)([0-9]{1,9})")

#: A stack with less than this share of the tensors of the largest one is a head or a stem, not a stack of layers.
_SMALL = 0.2

#: A leading number that more than this share of the numbered tensors have is that of a wrapper.
_WRAPPED = 0.8


class Layers:
    """The stacks of layers in a list of names."""

    def __init__(self, names: Iterable[str]) -> None:
        """Find the layers.

        Args:
            names: the names of all tensors of a model.
        """
        names = list(names)
        self._wrapper = _wrapper(names)
        places = {name: place for name in names if (place := _place(name, self._wrapper)) is not None}
        indices: dict[str, list[Index]] = {}
        for stack, index in places.values():
            indices.setdefault(stack, []).append(index)
        self._sizes = {stack: len(found) for stack, found in indices.items()}
        largest = max(self._sizes.values(), default=0)
        ranks = {
            stack: {index: rank for rank, index in enumerate(sorted(set(found)))} for stack, found in indices.items()
        }
        self._all = {name: (stack, ranks[stack][index]) for name, (stack, index) in places.items()}
        self._counts = {stack: len(known) for stack, known in ranks.items()}
        self._counted = {
            stack for stack, size in self._sizes.items() if self._counts[stack] > 1 and size >= _SMALL * largest
        }
        self._numbers = {name: place for name, place in self._all.items() if place[0] in self._counted}

    @property
    def stacks(self) -> dict[str, int]:
        """Number of layers by stack, including small stacks (heads, adapters) and those of a single layer."""
        return dict(self._counts)

    def is_counted(self, stack: str) -> bool:
        """Return whether a stack is large enough for its tensors to have positions."""
        return stack in self._counted

    def size(self, stack: str) -> int:
        """Return how many tensors a stack has."""
        return self._sizes[stack]

    def numbers(self, stack: str) -> dict[str, int]:
        """Return the layer of every tensor of a stack, counted from 0."""
        return {name: number for name, (own, number) in self._all.items() if own == stack}

    def number(self, name: str) -> int | None:
        """Return the layer that a tensor belongs to, counted from 0 in its stack; None outside the layers."""
        place = self._numbers.get(name)
        return None if place is None else place[1]

    def position(self, name: str) -> float:
        """Return a tensor's relative depth in its stack: 0 in the first layer and outside the layers, 1 in the last."""
        place = self._numbers.get(name)
        return 0.0 if place is None else place[1] / (self._counts[place[0]] - 1)

    def depth(self, name: str) -> tuple[int, int] | None:
        """Return a tensor's layer, counted from 0, and the number of layers of its stack; None outside the layers."""
        place = self._numbers.get(name)
        return None if place is None else (place[1], self._counts[place[0]])

    def renumbered(self, name: str, number: int) -> str:
        """Return the name of a layer's tensor in another layer of its stack.

        Args:
            name: a tensor in any layer; the model need not have it there.
            number: the other layer.

        Raises:
            WeightspaceError: the layers are not numbered from 0 by a single number, as with stages.
        """
        parts = name.split(".")
        outermost = 1 if self._wrapper else 0
        index = next((index for index in range(outermost, len(parts)) if is_number(parts[index])), None)
        own = self._all.get(name)
        if index is None or (own is not None and parts[index] != str(own[1])):
            layer = "no layer" if own is None else f"layer {own[1]}"
            raise WeightspaceError(f"Slices need layers numbered from 0 by one number; found {name!r} in {layer}.")
        parts[index] = str(number)
        return ".".join(parts)


def is_number(part: str) -> bool:
    """Return whether a part of a name is the number of a layer."""
    return part.isdecimal() and part.isascii() and len(part) < 10


def _wrapper(names: list[str]) -> str:
    """Return the leading number that nearly all numbered names share, or an empty string."""
    numbered = [name.split(".") for name in names if any(is_number(part) for part in name.split("."))]
    for front, count in Counter(parts[0] for parts in numbered if is_number(parts[0])).most_common(1):
        inside = any(is_number(part) for parts in numbered if parts[0] == front for part in parts[1:])
        if inside and count > _WRAPPED * len(numbered):
            return front
    return ""


def _place(name: str, wrapper: str) -> tuple[str, Index] | None:
    """Return the stack of a name and its index there, if it has a number other than its wrapper's."""
    parts = name.split(".")
    for position, part in enumerate(parts):
        if not position and part == wrapper:
            continue
        parent = ".".join(parts[:position])
        if part in _SECTIONS:
            section = _SECTIONS[part]
            following = parts[position + 1] if position + 1 < len(parts) else ""
            # The whole middle block is one layer.
            return f"{parent}.#", (section, int(following) if is_number(following) and section != 1 else 0)
        if is_number(part):
            stage = _STAGE.fullmatch(parts[position - 1]) if position else None
            if stage is None:
                return parent, (int(part),)
            return ".".join([*parts[: position - 1], f"{stage[1]}#"]), (int(stage[2]), int(part))
    return None
