"""Soft permutations: every unit of the target takes a share of every unit of the source, and gradients flow.

A matrix ``P`` acts by rows: ``w'[i] = Σ_j P[i, j] w[j]``, so that the matrix of a permutation ``p`` has its ones at
``(i, p[i])``. As with indices, an inner group has one matrix for each *resulting* unit of its outer group.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.symmetry import Permutation, PermutationSpec
from weightspace.symmetry.pattern import Block, Units, blocks
from weightspace.symmetry.permuting import outer_place

#: Group -> matrix ``(units, units)``, or ``(outer units, units, units)`` for an inner group.
Matrices = Mapping[str, Tensor]


def matrices_of(permutation: Permutation, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return a permutation as matrices of zeros and ones."""
    return {group: torch.nn.functional.one_hot(index).to(dtype) for group, index in permutation.indices.items()}


def permute_softly(spec: PermutationSpec, matrices: Matrices, state: StateDict) -> StateDict:
    """Move shares of the hidden units of a checkpoint; for the matrices of a permutation the same as ``permute``.

    Args:
        spec: the architecture's spec; the state fits it (``check_fits``).
        matrices: of every group, in the dtype of the state's floats; doubly stochastic ones keep every sum.
        state: every tensor of the spec by name; not changed. Integer tensors come back as they are.

    Returns:
        New tensors, differentiable in the matrices and in the state; names that share a tensor still do.
    """
    done: dict[tuple[int, str], Tensor] = {}
    result: StateDict = {}
    for name, tensor in state.items():
        key = (id(tensor), str(spec.axes[name]))
        if key not in done:
            done[key] = _moved(spec, matrices, name, tensor) if tensor.is_floating_point() else tensor
        result[name] = done[key]
    return result


def _moved(spec: PermutationSpec, matrices: Matrices, name: str, tensor: Tensor) -> Tensor:
    """Return one tensor with the units of all its blocks moved."""
    listed = list(blocks(tensor, spec.axes[name], spec.groups))
    if len(listed) == 1:
        return _moved_block(listed[0], matrices, spec.outer).reshape(tensor.shape)
    result = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    for source, target in zip(listed, blocks(result, spec.axes[name], spec.groups), strict=True):
        target.view.copy_(_moved_block(source, matrices, spec.outer))
    return result


def _moved_block(block: Block, matrices: Matrices, outer: Mapping[str, str]) -> Tensor:
    """Return a block with its outer groups moved, then the inner ones."""
    moved = block.view
    groups = [dim.group if isinstance(dim, Units) else None for dim in block.dims]
    for place, group in enumerate(groups):
        if group is not None and group not in outer:
            front = moved.movedim(place, 0)
            flat = matrices[group] @ front.reshape(len(front), -1)
            moved = flat.view(front.shape).movedim(0, place)
    for place, group in enumerate(groups):
        if group is not None and group in outer:
            above = outer_place(groups, place, outer[group])
            front = moved.movedim((above, place), (0, 1))
            flat = torch.bmm(matrices[group], front.reshape(*front.shape[:2], -1))
            moved = flat.view(front.shape).movedim((0, 1), (above, place))
    return moved
