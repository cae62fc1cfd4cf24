"""Blocks of tensors as matrices with a row for each unit of a group."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from weightspace.symmetry.pattern import Block, Units
from weightspace.symmetry.permutation import outer_place


def units_first(block: Block, place: int, outer: Mapping[str, str]) -> list[int]:
    """Return the dimensions of a block, that of the outer group first (if there is one), then that of the group.

    Args:
        block: part of a tensor.
        place: the dimension of the group.
        outer: inner group -> outer group.
    """
    groups = [dim.group if isinstance(dim, Units) else None for dim in block.dims]
    above = [outer_place(groups, place, outer[str(groups[place])])] if groups[place] in outer else []
    return [*above, place, *(dim for dim in range(len(groups)) if dim not in (*above, place))]


def rows_of(block: Block, place: int, outer: Mapping[str, str]) -> Tensor:
    """Return a block as a matrix with a row for each unit; for inner groups one matrix per unit of the outer group."""
    moved = block.view.permute(units_first(block, place, outer))
    lead = 1 + (getattr(block.dims[place], "group", None) in outer)
    return moved.flatten(lead) if moved.ndim > lead else moved.unsqueeze(-1)
