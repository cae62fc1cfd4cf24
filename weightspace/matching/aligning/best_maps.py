"""The best map of a kind for given inner products of units.

For weights ``A`` and ``B`` with a row per unit, ``⟨A, M B⟩ = ⟨M, A Bᵀ⟩`` is largest for the orthogonal factor of
``A Bᵀ``, the solution of its assignment problem, or an angle for each pair of rotary dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from weightspace.matching.assignment import assign
from weightspace.symmetry.kinds import action
from weightspace.symmetry.kinds.symmetry_spec import Kind


class Best(NamedTuple):
    """Maps and their inner products ``⟨M, X⟩``.

    Attributes:
        maps: int64 indices ``(..., n)`` for permutations, float64 matrices ``(..., n, n)`` for orthogonal maps, angles
            ``(..., n/2)`` for phases.
        gains: shape ``(...)``.
    """

    maps: Tensor
    gains: Tensor


def best_maps(kind: Kind, products: Tensor, *, fixes_ones: bool = False) -> Best:
    """Return the best map for each matrix of inner products.

    Args:
        kind: of the group.
        products: ``A Bᵀ``, float64 of shape ``(..., n, n)``.
        fixes_ones: whether an orthogonal map has to keep the vector of ones.
    """
    if kind in ("permutation", "signed"):
        flat = products.flatten(0, -3) if products.ndim > 2 else products[None]
        maps = torch.stack([assign(one) for one in flat]).view(products.shape[:-1])
        return Best(maps, products.gather(-1, maps[..., None]).sum((-2, -1)))
    if kind == "phases":
        return _best_phases(products)
    if fixes_ones:
        products = _fixing_ones(products)
    u, values, v = torch.linalg.svd(products)
    return Best(u @ v, values.sum(-1))


def best_gains(kind: Kind, products: Tensor) -> Tensor:
    """Return the inner products of the best maps, of shape ``(...)``."""
    return torch.linalg.svdvals(products).sum(-1) if kind == "orthogonal" else best_maps(kind, products).gains


def as_matrices(kind: Kind, maps: Tensor) -> Tensor:
    """Return maps as matrices, float64 of shape ``(..., n, n)``."""
    if kind in ("permutation", "signed"):
        return torch.nn.functional.one_hot(maps, maps.shape[-1]).double()
    return action.as_matrices(maps, 2 * maps.shape[-1] if kind == "phases" else maps.shape[-1])


def _best_phases(products: Tensor) -> Best:
    """Return the angles by which to turn each pair ``(i, i + n/2)``."""
    half = products.shape[-1] // 2
    quarters = products.unflatten(-1, (2, half)).unflatten(-3, (2, half)).diagonal(dim1=-3, dim2=-1)
    along = quarters[..., 0, 0, :] + quarters[..., 1, 1, :]
    across = quarters[..., 1, 0, :] - quarters[..., 0, 1, :]
    return Best(torch.atan2(across, along), torch.hypot(along, across).sum(-1))


def _fixing_ones(products: Tensor) -> Tensor:
    """Return inner products whose orthogonal factor keeps the vector of ones, and is else the best one."""
    centred = products - products.mean(-1, keepdim=True)
    centred = centred - centred.mean(-2, keepdim=True)
    size = torch.linalg.matrix_norm(products, keepdim=True).clamp_min(torch.finfo(products.dtype).tiny)
    return centred + size / products.shape[-1]
