"""Matrices of distances and embeddings as callers have them -> tensors, checked, not copied where possible."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.errors import WeightspaceError
from weightspace.labels.names import Names
from weightspace.labels.probabilities import as_tensor

#: Up to so many labels every triple is checked for the triangle inequality, beyond it a sample of them.
_EVERY_TRIPLE, _SAMPLED = 128, 200_000
#: Relative error that a symmetric matrix may have.
_CLOSE = 1e-6


def distance_matrix(values: Any, names: Names | None) -> Tensor:
    """Return a matrix of distances as a tensor of float32 or float64, (K, K).

    A matrix that is no metric for the triangle inequality alone is used as it is, with a warning.

    Raises:
        WeightspaceError: it isn't square, finite, non-negative, symmetric, with a zero diagonal.
    """
    matrix = _floating(values, "A matrix of distances")
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise WeightspaceError(f"A matrix of distances is square; found the shape {tuple(matrix.shape)}.")
    if names is not None and len(names) != len(matrix):
        raise WeightspaceError(f"The matrix has {len(matrix):,} rows, but there are {len(names):,} labels.")
    named = names if names is not None else range(len(matrix))

    def complain(wrong: Tensor, what: str) -> None:
        if bool(wrong.any()):
            i, j = (int(at) for at in wrong.nonzero()[0])
            raise WeightspaceError(
                f"The distance between {named[i]!r} and {named[j]!r} "
                f"{what.format(float(matrix[i, j]), float(matrix[j, i]))} "
                f"(row {i:,}, column {j:,}). Expected a symmetric matrix of finite numbers of zero or more."
            )

    complain(~torch.isfinite(matrix), "is {0:g}")
    complain(matrix < 0, "is negative, {0:g}")
    complain(matrix.diagonal().diag() != 0, "is {0:g}, from a label to itself")
    complain((matrix - matrix.T).abs() > _CLOSE * matrix.max(), "is {0:g}, and back {1:g}")
    _check_triangles(matrix, named)
    return matrix


def _check_triangles(matrix: Tensor, named: Any) -> None:
    """Warn where a detour is shorter: squares of distances are the likely cause."""
    a, b, c = _triples(len(matrix))
    direct, round_ = matrix[a, c].double(), (matrix[a, b].double(), matrix[b, c].double())
    excess = direct - (round_[0] + round_[1]) * (1 + _CLOSE)
    if len(excess) == 0 or float(excess.max()) <= 0:
        return
    roots = direct.sqrt() - (round_[0].sqrt() + round_[1].sqrt()) * (1 + _CLOSE)
    at = int(excess.argmax())
    i, j, k = (int(side[at]) for side in (a, b, c))
    where = (
        f"d({named[i]!r}, {named[k]!r}) = {float(direct[at]):g} is more than the path through {named[j]!r}, "
        f"{float(round_[0][at] + round_[1][at]):g}"
    )
    if float(roots.max()) <= 0:
        cause = "Are these squared distances? They would be squared again: give their square roots, or use exponent=1."
    else:
        cause = "This is no metric; predictions are of least expected cost all the same."
    warnings.warn(f"{where}. {cause}", UserWarning, stacklevel=4)


def _triples(count: int) -> tuple[Tensor, Tensor, Tensor]:
    if count <= _EVERY_TRIPLE:
        every = torch.arange(count)
        a, b, c = (side.reshape(-1) for side in torch.meshgrid(every, every, every, indexing="ij"))
        return a, b, c
    drawn = np.random.default_rng(0).integers(0, count, size=(3, _SAMPLED))
    a, b, c = (torch.from_numpy(side) for side in drawn)
    return a, b, c


def embeddings(values: Any, names: Names | None, metric: str) -> Tensor:
    """Return points (K, d), float32 or float64; of length one for ``cosine``.

    Raises:
        WeightspaceError: another shape, a number that is not finite, a row of zeros for ``cosine``, another metric.
    """
    if metric not in ("euclidean", "cosine"):
        raise WeightspaceError(f"Embeddings have the metric 'euclidean' or 'cosine'; found {metric!r}.")
    points = _floating(values, "Embeddings")
    if points.dim() != 2 or len(points) == 0:
        raise WeightspaceError(f"Embeddings have the shape (labels, d); found {tuple(points.shape)}.")
    if names is not None and len(names) != len(points):
        raise WeightspaceError(f"There are {len(points):,} embeddings of {len(names):,} labels; expected one for each.")
    named = names if names is not None else range(len(points))
    bad = ~torch.isfinite(points).all(1)
    if bool(bad.any()):
        raise WeightspaceError(f"The embedding of {named[int(bad.nonzero()[0])]!r} isn't finite; expected numbers.")
    if metric == "euclidean":
        return points
    norms = points.double().norm(dim=1, keepdim=True)
    if bool((norms == 0).any()):
        at = int((norms == 0).nonzero()[0, 0])
        raise WeightspaceError(f"The embedding of {named[at]!r} is zero and has no direction; use metric='euclidean'.")
    return (points.double() / norms).to(points.dtype)


def _floating(values: Any, what: str) -> Tensor:
    tensor = as_tensor(values, what).cpu()
    if tensor.is_complex():
        raise WeightspaceError(f"{what} is made of real numbers; found {tensor.dtype}.")
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.double()


def first_of_equals(matrix: Tensor) -> np.ndarray | None:
    """Return for every row of a matrix of distances the first that is equal to it, int64 (rows,); None: all differ.

    Equal are rows at distance zero whose distances from all others agree but for rounding.
    """
    first = (matrix == 0).int().argmax(1).numpy()
    nodes = np.arange(len(first))
    tolerance = 16 * torch.finfo(matrix.dtype).eps
    for row in np.flatnonzero(first < nodes):
        if torch.allclose(matrix[row], matrix[first[row]], rtol=tolerance, atol=0):
            nodes[row] = nodes[first[row]]
    return None if (nodes == np.arange(len(nodes))).all() else nodes
