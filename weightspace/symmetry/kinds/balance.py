"""Balancing: of all equivalent weights between two linear maps, those of least norm are chosen.

If ``P`` holds the weights that a group moves by ``M``, and ``D`` those that it moves by ``M⁻ᵀ``, each with a row per
unit, ``‖MP‖² + ‖M⁻ᵀD‖²`` is least where ``MPPᵀMᵀ = M⁻ᵀDDᵀM⁻¹``. Of the group, only its orthogonal maps remain.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.symmetry.kinds.rows import rows_of, units_first
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec
from weightspace.symmetry.pattern import Block, Units, blocks, units_in

#: Eigenvalues below this part of the largest one are taken as zero.
_RANK = 1e-12


def balanced_groups(spec: SymmetrySpec) -> list[str]:
    """Return the groups with inverse tensors."""
    dual = {units.group for axes in spec.axes.values() for axis in axes for units in units_in(axis) if units.dual}
    return [group for group in spec.groups if group in dual]


def balance_group(spec: SymmetrySpec, group: str, state: StateDict) -> None:
    """Replace weights by equivalent ones in which a group is balanced, in place.

    Args:
        spec: of the architecture.
        group: with inverse tensors.
        state: the tensors that have the group by name; floating-point ones are float64, and no two share memory.
    """
    sides: dict[bool, Tensor] = {}
    held = list(_held(spec, group, state))
    for block, place, units in held:
        rows = rows_of(block, place, spec.outer)
        gram = rows @ rows.mT if spec.kinds[group] == "orthogonal" else (rows * rows).sum(-1)
        sides[units.dual] = sides[units.dual] + gram if units.dual in sides else gram
    forward, inverse = _maps(sides[False], sides[True], spec.kinds[group])
    for block, place, units in held:
        _move(spec, block, place, inverse if units.dual else forward)


def _held(spec: SymmetrySpec, group: str, state: StateDict) -> Iterator[tuple[Block, int, Units]]:
    """Yield the blocks that a group scales, with the dimension of its units; tied tensors count once."""
    seen: set[int] = set()
    for name, axes in spec.axes.items():
        if name in spec.statistics or name not in state or state[name].data_ptr() in seen:
            continue
        seen.add(state[name].data_ptr())
        for block in blocks(state[name], axes, spec.groups):
            for place, units in enumerate(block.dims):
                scaled = isinstance(units, Units) and (units.signed or spec.kinds[group] in ("orthogonal", "phases"))
                if isinstance(units, Units) and units.group == group and scaled:
                    yield block, place, units


def _move(spec: SymmetrySpec, block: Block, place: int, maps: Tensor) -> None:
    """Apply matrices, or a scale for each unit, to the units of a block in place."""
    moved = block.view.permute(units_first(block, place, spec.outer))
    if spec.kinds[getattr(block.dims[place], "group")] == "orthogonal":  # noqa: B009
        moved.copy_((maps @ rows_of(block, place, spec.outer)).reshape(moved.shape))
    else:
        moved.mul_(maps.view(*maps.shape, *[1] * (moved.ndim - maps.ndim)))


def _maps(plain: Tensor, dual: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return the map that balances two sides, and its inverse transpose: matrices, or a scale for each unit.

    Args:
        plain: ``PPᵀ``, of shape ``(..., n, n)``; its diagonal unless the kind is orthogonal.
        dual: ``DDᵀ``.
        kind: of the group.
    """
    if kind != "orthogonal":
        return _scales(plain, dual, kind)
    root, inverse_root = _powers(plain, 0.5, -0.5)
    middle, _ = _powers(root @ dual @ root, 0.5, -0.5)
    squared = inverse_root @ middle @ inverse_root
    return _powers(squared, 0.5, -0.5)


def _powers(matrix: Tensor, first: float, second: float) -> tuple[Tensor, Tensor]:
    """Return two powers of positive matrices; eigenvalues that are zero within rounding are raised to the least."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    values = torch.maximum(values, values[..., -1:].clamp_min(torch.finfo(values.dtype).tiny) * _RANK)
    return tuple((vectors * values[..., None, :] ** power) @ vectors.mT for power in (first, second))  # type: ignore[return-value]


def _scales(plain: Tensor, dual: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return the scales that balance each unit, or each pair of rotary dimensions; 1 where a side is zero."""
    norms = [plain, dual]
    if kind == "phases":
        half = norms[0].shape[-1] // 2
        norms = [(one[..., :half] + one[..., half:]).repeat(*[1] * (one.ndim - 1), 2) for one in norms]
    is_dead = (norms[0] == 0) | (norms[1] == 0)
    scale = torch.where(is_dead, 1, (norms[1] / norms[0].where(~is_dead, torch.ones_like(norms[0]))) ** 0.25)
    return scale, 1 / scale
