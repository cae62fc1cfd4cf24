"""Unit vectors known only by their inner products: their combinations are lists of coefficients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from weightspace.arithmetic.coefficients import shares
from weightspace.merging.methods._linear_combination import LinearFormula, computed_formula
from weightspace.merging.methods._sums import row_sums, total
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack

#: A combination of unit vectors whose length is below this fraction of its coefficients cancels.
_CANCELLED = 1e-7


class Directions:
    """The directions of the non-zero vectors of a Gram matrix.

    Attributes:
        norms: lengths of all vectors.
        cosines: cosines of all pairs; 0 for a zero vector.
        equal: whether all vectors have equal inner products, as copies do.
    """

    def __init__(self, products: Sequence[Sequence[float]]) -> None:
        self.norms = [math.sqrt(row[index]) for index, row in enumerate(products)]
        lengths = [norm or math.inf for norm in self.norms]
        self.cosines = [
            [max(-1.0, min(1.0, product / a / b)) for product, b in zip(row, lengths, strict=True)]
            for row, a in zip(products, lengths, strict=True)
        ]
        self.equal = len({product for row in products for product in row}) == 1

    def length(self, coefficients: Sequence[float]) -> float:
        """Return ``‖Σ c_i u_i‖``; 0 if they cancel up to rounding."""
        c = torch.tensor(coefficients, dtype=torch.float64)
        squared = float(c @ torch.tensor(self.cosines, dtype=torch.float64) @ c)
        length = math.sqrt(max(0.0, squared))
        return length if length > _CANCELLED * float(c.abs().sum()) else 0.0


def scaled_sum(directions: Directions, coefficients: Sequence[float], length: float, *, deltas: bool) -> Formula:
    """Return the formula of the vector of ``length`` along ``Σ c_i u_i``.

    Args:
        directions: those of the models, or of their differences from the base.
        coefficients: one per model.
        length: length of the result.
        deltas: whether to add it to the base.
    """
    size = directions.length(coefficients)
    if not all(map(math.isfinite, directions.norms)):
        size = math.nan  # which propagates to the result
    scale = length / size if size != 0 else 0.0
    factors = [
        scale * coefficient / norm if norm != 0 else 0.0
        for coefficient, norm in zip(coefficients, directions.norms, strict=True)
    ]
    if deltas:
        return computed_formula(factors, base="origin")
    if directions.equal and abs(math.fsum(factors) - 1) < _CANCELLED:
        return LinearFormula(shares(tuple(factors)))  # copies merge to the copy, despite rounding of norms
    return computed_formula(factors)


#: Vectors at nearly 180°, and more that nearly cancel, are multiplied in float64: the remainder must not be rounding.
#: Scalars of opposite signs, and differences in one element alone, are at exactly 180°.
_OPPOSED = 0.999

#: So are vectors whose squares would be lost below, or beyond, the range of float32.
_LOW = 1e-28

#: Vectors whose largest square is below this, in float64, are multiplied once more, times a power of two.
_IN_RANGE = 1e-250


def gram(stack: TensorStack, *, deltas: bool = False) -> list[list[float]]:
    """Return ``⟨x_i, x_j⟩`` over the whole tensor, as ``N`` rows of ``N`` numbers.

    Where their squares leave the range of float64, all vectors are taken times one power of two.

    Args:
        stack: the models.
        deltas: of the differences from the base, ``⟨x_i − b, x_j − b⟩``.
    """
    count = range(len(stack.sources))
    sums = _summed(stack, deltas, 1.0)
    if stack.dtype == torch.float64 and not _IN_RANGE < max(sums[index, index] for index in count) < math.inf:
        chunks = (vectors(chunk, deltas=deltas) for chunk in stack.chunks())
        largest = max(float(vector.abs().max()) for chunk in chunks for vector in chunk)
        if 0 < largest < math.inf:
            sums = _summed(stack, deltas, 2.0 ** -max(-1000, math.frexp(largest)[1]))
    return [[sums[min(i, j), max(i, j)] for j in count] for i in count]


def _summed(stack: TensorStack, deltas: bool, scale: float) -> dict[tuple[int, int], float]:
    """Return the inner products of all vectors times ``scale``, each pair once."""
    sums = {pair: 0.0 for pair in combinations_with_replacement(range(len(stack.sources)), 2)}
    for chunk in stack.working_chunks():
        tensors = vectors(chunk, deltas=deltas)
        found = _flat_products(tensors if scale == 1 else [tensor.double().mul_(scale) for tensor in tensors])
        sums = {pair: product + found[pair] for pair, product in sums.items()}
    return sums


def row_grams(stack: TensorStack) -> Tensor:
    """Return the inner products of the task vectors for every slice along dim 0, ``(N, N, rows)``, in float64."""
    parts = []
    for chunk in stack.working_chunks():
        rows = [tensor.reshape(tensor.shape[0], -1) for tensor in chunk.deltas()]
        parts.append(_products(rows))
    return torch.cat(parts, dim=-1)


def with_base(stack: TensorStack) -> TensorStack:
    """Return a stack of the base and the models, in this order."""
    base = [] if stack.base is None else [stack.base]
    return replace(stack, sources=[*base, *stack.sources], base=None, labels=["the base", *stack.labels])


def vectors(chunk: Chunk, *, deltas: bool) -> Sequence[Tensor]:
    """Return the models of a chunk, or their differences from its base."""
    return chunk.deltas() if deltas else chunk.tensors


def _flat_products(tensors: Sequence[Tensor]) -> dict[tuple[int, int], float]:
    """Return the inner products of whole tensors, each pair once; cheaper than ``_products``, which is for rows."""
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
