"""The change of any adapter as a product of two matrices, exact apart from rounding.

A Hadamard product of products has the rank ``r₁ r₂`` at most: its factors are products of all pairs of columns, and of
rows. A Kronecker product is that of the factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from weightspace.errors import CheckpointError
from weightspace.lora.adapter import Factors
from weightspace.lora.low_rank import matrices
from weightspace.lora.products import contracted, hadamard_pairs, kronecker_halves

#: Most elements of the factors of a Hadamard or Kronecker product; small files may stand for enormous ones.
_LARGEST = 2**28


class Pair(NamedTuple):
    """Factors of ``scale · b a``, ``(out, r)`` and ``(r, in)``; ``r`` is 0 where an adapter lacks the tensor."""

    b: Tensor
    a: Tensor
    scale: float


def factored(factors: Factors, tensors: Mapping[str, Tensor], source: str) -> Pair:
    """Return the change of a tensor as float64 factors.

    Args:
        factors: the change, without DoRA, and no full difference.
        tensors: role -> tensor, as in ``factors.names``.
        source: name of the module and its file, for errors.

    Raises:
        CheckpointError: the factors are too large for memory.
    """
    if factors.product == "low-rank":
        b, a = (matrix.to(torch.float64) for matrix in matrices(tensors["A"], tensors["B"]))
        a = contracted(tensors["mid"], a) if "mid" in tensors else a
        return Pair(b, a, factors.scale)
    rows, columns = factors.shape[0], math.prod(factors.shape[1:])
    if factors.product == "rows":
        ((first, whole),) = factors.stack.items()
        pair = factored(whole, tensors, source)
        return pair._replace(b=pair.b[first : first + rows])
    if factors.product == "stacked":
        return _stacked(factors, tensors, source)
    if factors.product == "hadamard":
        _check_size(factors.rank**2, rows, columns, source)
        (b, a), (d, c) = hadamard_pairs(tensors)
        return Pair(
            (b.unsqueeze(2) * d.unsqueeze(1)).flatten(1), (a.unsqueeze(1) * c.unsqueeze(0)).flatten(0, 1), factors.scale
        )
    halves = [_halved(*half) for half in kronecker_halves(tensors)]
    (b, a), (d, c) = halves
    _check_size(len(a) * len(c), rows, columns, source)
    return Pair(_kronecker(b, d), _kronecker(a, c), factors.scale)


def _stacked(factors: Factors, tensors: Mapping[str, Tensor], source: str) -> Pair:
    """Return the change of parts of the rows; parts with equal ``A``, as of a split matrix, share it."""
    pairs: list[tuple[int, Pair]] = []
    for start, own in factors.stack.items():
        pair = factored(own, {role: tensors[f"{start}:{role}"] for role in own.names}, source)
        pairs.append((start, Pair(pair.b * pair.scale, pair.a, 1.0)))
    distinct: list[Tensor] = []
    for _, pair in pairs:
        if not any(torch.equal(pair.a, a) for a in distinct):
            distinct.append(pair.a)
    columns = torch.tensor([0, *(len(a) for a in distinct)]).cumsum(0).tolist()
    b = torch.zeros(factors.shape[0], columns[-1], dtype=torch.float64)
    for start, pair in pairs:
        index = next(number for number, a in enumerate(distinct) if torch.equal(a, pair.a))
        b[start : start + len(pair.b), columns[index] : columns[index + 1]] = pair.b
    return Pair(b, torch.cat(distinct), 1.0)


def _kronecker(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left ⊗ right``; ``torch.kron`` refuses some matrices with a side of 1."""
    product = left[:, None, :, None] * right[None, :, None, :]
    return product.reshape(len(left) * len(right), left.shape[1] * right.shape[1])


def _halved(left: Tensor, right: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the factors of one matrix of a Kronecker product: itself and an identity if it isn't factored."""
    if right is not None:
        return left, right
    if left.shape[0] < left.shape[1]:
        return torch.eye(len(left), dtype=left.dtype), left
    return left, torch.eye(left.shape[1], dtype=left.dtype)


def _check_size(rank: int, rows: int, columns: int, source: str) -> None:
    """Refuse factors that memory can't be expected to hold."""
    if rank * (rows + columns) > _LARGEST:
        raise CheckpointError(
            f"{source} is a product of rank {rank:,} and shape ({rows:,}, {columns:,}), too large to be factored. "
            "Apply it to its model instead: `weightspace merge MODEL+ADAPTER -m passthrough`."
        )


def truncated(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return balanced factors of the best approximation of a product, without forming it.

    Args:
        b: ``(out, r)``.
        a: ``(r, in)``.
        rank: the largest rank of the result.

    Returns:
        ``B`` of ``(out, k)``, ``A`` of ``(k, in)``, and the relative error in the Frobenius norm; a rank that
        suffices has an error of 0.

    Example:
        >>> b, a, error = truncated(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.eye(2), 1)
        >>> (b @ a).tolist(), round(error, 4)
        ([[3.0, 0.0], [0.0, 0.0]], 0.3162)
    """
    if a.shape[0] <= rank:
        return b, a, 0.0
    left, inner = torch.linalg.qr(b)
    right, outer = torch.linalg.qr(a.T)
    u, values, v = torch.linalg.svd(inner @ outer.T, full_matrices=False)
    roots = values[:rank].sqrt()
    whole, rest = float(torch.linalg.vector_norm(values)), float(torch.linalg.vector_norm(values[rank:]))
    return left @ (u[:, :rank] * roots), (roots[:, None] * v[:rank]) @ right.T, rest / whole if whole else 0.0
