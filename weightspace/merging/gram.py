"""Inner products of all models of a stack with each other, in one pass.

Products are summed in the dtype that the stack computes in by torch's cascade, whose error does not grow with the
number of elements, in runs whose sums are added in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from weightspace.merging.stack import Piece, Stack
from weightspace.merging.sums import row_sums, total

#: Vectors at nearly 180°, and more that nearly cancel, are multiplied in float64: what is left must not be rounding.
#: Scalars of opposite signs, and differences in one element alone, are at exactly 180°.
_OPPOSED = 0.999

#: So are vectors whose squares would be lost below, or beyond, the range of float32.
_LOW = 1e-28

#: Vectors whose largest square is below this, in float64, are multiplied once more, times a power of two.
_IN_RANGE = 1e-250


def gram(stack: Stack, *, deltas: bool = False) -> list[list[float]]:
    """Return ``⟨x_i, x_j⟩`` over the whole tensor, as ``N`` rows of ``N`` numbers.

    Where their squares leave the range of float64, all vectors are taken times one power of two.

    Args:
        stack: the models.
        deltas: of the differences from the base, ``⟨x_i − b, x_j − b⟩``.
    """
    count = range(len(stack.sources))
    sums = _summed(stack, deltas, 1.0)
    if stack.dtype == torch.float64 and not _IN_RANGE < max(sums[index, index] for index in count) < math.inf:
        pieces = (vectors(piece, deltas=deltas) for piece in stack.pieces())
        largest = max(float(vector.abs().max()) for piece in pieces for vector in piece)
        if 0 < largest < math.inf:
            sums = _summed(stack, deltas, 2.0 ** -max(-1000, math.frexp(largest)[1]))
    return [[sums[min(i, j), max(i, j)] for j in count] for i in count]


def _summed(stack: Stack, deltas: bool, scale: float) -> dict[tuple[int, int], float]:
    """Return the inner products of all vectors times ``scale``, each pair once."""
    sums = {pair: 0.0 for pair in combinations_with_replacement(range(len(stack.sources)), 2)}
    for piece in stack.working_pieces():
        tensors = vectors(piece, deltas=deltas)
        found = _flat_products(tensors if scale == 1 else [tensor.double().mul_(scale) for tensor in tensors])
        sums = {pair: product + found[pair] for pair, product in sums.items()}
    return sums


def row_grams(stack: Stack, *, deltas: bool = False) -> Tensor:
    """Return the same for every slice along dim 0, of shape ``(N, N, rows)``, in float64.

    A tensor without rows is one.
    """
    parts = []
    for piece in stack.working_pieces():
        rows = [tensor.reshape(tensor.shape[0], -1) for tensor in vectors(piece, deltas=deltas)]
        parts.append(_products(rows))
    return torch.cat(parts, dim=-1)


def with_base(stack: Stack) -> Stack:
    """Return a stack of the base and the models, in this order."""
    base = [] if stack.base is None else [stack.base]
    return replace(stack, sources=[*base, *stack.sources], base=None, labels=["the base", *stack.labels])


def vectors(piece: Piece, *, deltas: bool) -> Sequence[Tensor]:
    """Return the models of a piece, or their differences from its base."""
    return piece.deltas() if deltas else piece.tensors


def _flat_products(tensors: Sequence[Tensor]) -> dict[tuple[int, int], float]:
    """Return the inner products of whole tensors, each pair once; what ``_products`` does for rows, with less ado."""
    numbered = list(enumerate(tensors))
    room = torch.empty_like(tensors[0])
    found = {(i, j): total(torch.mul(a, b, out=room)) for (i, a), (j, b) in combinations_with_replacement(numbered, 2)}
    if _is_sound(found, len(tensors)):
        return found
    wide = [(index, tensor.to(torch.float64)) for index, tensor in numbered]
    return {(i, j): total(a * b) for (i, a), (j, b) in combinations_with_replacement(wide, 2)}


def _is_sound(products: Mapping[tuple[int, int], float], count: int) -> bool:
    """Return whether float32 had the range and the digits for the products of some vectors, each pair's once."""
    squares = [products[index, index] for index in range(count)]
    if not _LOW < min(squares) <= max(squares) < math.inf:
        return False
    cosines = {(i, j): found / math.sqrt(squares[i]) / math.sqrt(squares[j]) for (i, j), found in products.items()}
    # The directions nearly cancel: two at 180°, three at 120°, and so on.
    sum_of_all = math.fsum(cosine * (1 if i == j else 2) for (i, j), cosine in cosines.items())
    return min(cosines.values()) >= -_OPPOSED and sum_of_all >= (1 - _OPPOSED) * count


def _products(rows: Sequence[Tensor]) -> Tensor:
    """Return the inner products of matrices row by row, ``(N, N, rows)`` in float64."""
    products = _row_products(rows)
    squares = products.diagonal().T
    norms = squares.sqrt()
    opposed = products < -_OPPOSED * norms[:, None] * norms[None]
    if bool(opposed.any()) or not _LOW < float(squares.min()) <= float(squares.max()) < math.inf:
        return _row_products([row.to(torch.float64) for row in rows])
    return products


def _row_products(rows: Sequence[Tensor]) -> Tensor:
    """Return the same, multiplied in the rows' dtype."""
    count = len(rows)
    products = torch.empty(count, count, len(rows[0]), dtype=torch.float64)
    for i in range(count):
        for j in range(i, count):
            products[i, j] = products[j, i] = row_sums(rows[i] * rows[j])
    return products
