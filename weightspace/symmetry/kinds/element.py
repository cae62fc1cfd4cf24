"""Elements of a symmetry group, and their action on tensors.

A group of units is moved by an order (``w'[i] = w[p[i]]``), by an orthogonal matrix (``w' = Q w``), or, for rotary
dimensions, by an angle for each pair ``(i, i + d/2)``. An inner group has one row for each *resulting* unit of its
outer group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec
from weightspace.symmetry.pattern import Block, Units, blocks
from weightspace.symmetry.permutation import outer_place, permute_block


@dataclass(frozen=True, eq=False)
class Element:
    """One map for each group of a spec.

    Attributes:
        spec: the spec it belongs to.
        maps: group -> its map: int64 of shape ``(units,)`` for a permutation, float64 of shape ``(units, units)`` for
            an orthogonal map, float64 angles in radians of shape ``(units / 2,)`` for phases; for an inner group with
            one more axis in front, the units of its outer group.
    """

    spec: SymmetrySpec
    maps: Mapping[str, Tensor]

    @classmethod
    def random(cls, spec: SymmetrySpec, *, seed: int) -> Element:
        """Draw a uniformly random map of every group: orders, Haar rotations and reflections, angles."""
        generator = torch.Generator().manual_seed(seed)
        return cls(spec, {group: _drawn(spec, group, generator) for group in spec.groups})

    @classmethod
    def identity(cls, spec: SymmetrySpec) -> Element:
        """Return the map of every group that leaves all units in place."""
        return cls(spec, {group: _still(spec, group) for group in spec.groups})

    def compose(self, earlier: Element) -> Element:
        """Return the element that moves as ``earlier`` does, and then as this one does."""
        return Element(self.spec, {group: self._composed(group, earlier) for group in self.maps})

    def _composed(self, group: str, earlier: Element) -> Tensor:
        later, before, kind = self.maps[group], earlier.maps[group], self.spec.kinds[group]
        if group in self.spec.outer:
            before = before[self.maps[self.spec.outer[group]]]
        if kind == "permutation":
            return before.gather(-1, later)
        return later + before if kind == "phases" else later @ before

    def apply(self, state: StateDict) -> StateDict:
        """Move the units of a folded checkpoint without changing its function."""
        return {name: self.apply_to(name, tensor) for name, tensor in state.items()}

    def apply_to(self, name: str, tensor: Tensor) -> Tensor:
        """Return one tensor with its units moved."""
        axes, groups = self.spec.axes[name], self.spec.groups
        result = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for source, target in zip(blocks(tensor, axes, groups), blocks(result, axes, groups), strict=True):
            target.view.copy_(self.move(source))
        return result

    def move(self, block: Block) -> Tensor:
        """Return a part of a tensor with its units moved; groups without a map stay in place."""
        indices = {group: index for group, index in self.maps.items() if self.spec.kinds[group] == "permutation"}
        return self._rotated(block, permute_block(block, indices, self.spec.outer))

    def _rotated(self, block: Block, moved: Tensor) -> Tensor:
        groups = [dim.group if isinstance(dim, Units) else None for dim in block.dims]
        for place, group in enumerate(groups):
            if group not in self.maps or self.spec.kinds[group] == "permutation":
                continue
            matrix = self.matrix(group).to(moved.dtype)
            last = moved.movedim(place, -1)
            if matrix.ndim == 2:
                last = last @ matrix.T
            else:
                above = outer_place(groups, place, self.spec.outer[group])
                above -= above > place
                rows = last.movedim(above, 0)
                turned = rows.reshape(len(rows), -1, rows.shape[-1]) @ matrix.mT
                last = turned.view(rows.shape).movedim(0, above)
            moved = last.movedim(-1, place)
        return moved

    def matrix(self, group: str) -> Tensor:
        """Return the map of a group as orthogonal matrices, float64."""
        value = self.maps[group]
        return value if self.spec.kinds[group] == "orthogonal" else rotations(value)


def rotations(angles: Tensor) -> Tensor:
    """Return the matrices that turn each pair ``(i, i + d/2)`` by its angle, of shape ``(..., d, d)``."""
    cos, sin = torch.diag_embed(angles.cos()), torch.diag_embed(angles.sin())
    return torch.cat([torch.cat([cos, -sin], -1), torch.cat([sin, cos], -1)], -2)


def _still(spec: SymmetrySpec, group: str) -> Tensor:
    size, kind, outer = spec.groups[group], spec.kinds[group], spec.outer.get(group)
    lead = () if outer is None else (spec.groups[outer],)
    if kind == "permutation":
        return torch.arange(size).expand(*lead, size).clone()
    if kind == "phases":
        return torch.zeros(*lead, size // 2, dtype=torch.float64)
    return torch.eye(size, dtype=torch.float64).expand(*lead, size, size).clone()


def _drawn(spec: SymmetrySpec, group: str, generator: torch.Generator) -> Tensor:
    size, kind, outer = spec.groups[group], spec.kinds[group], spec.outer.get(group)
    lead = () if outer is None else (spec.groups[outer],)
    if kind == "permutation":
        return torch.rand(*lead, size, generator=generator, dtype=torch.float64).argsort(-1)
    if kind == "phases":
        return torch.rand(*lead, size // 2, generator=generator, dtype=torch.float64) * 2 * torch.pi
    free = size - (group in spec.fixes_ones)
    q, r = torch.linalg.qr(torch.randn(*lead, free, free, generator=generator, dtype=torch.float64))
    haar = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return haar if free == size else _beside_ones(haar)


def _beside_ones(matrix: Tensor) -> Tensor:
    """Return the map that fixes the vector of ones, and acts on its complement."""
    size = matrix.shape[-1] + 1
    ones = torch.ones(size, 1, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([ones, torch.eye(size, dtype=torch.float64)[:, 1:]], 1)).Q
    whole = torch.zeros(*matrix.shape[:-2], size, size, dtype=torch.float64)
    whole[..., 0, 0] = 1
    whole[..., 1:, 1:] = matrix
    return basis @ whole @ basis.T
