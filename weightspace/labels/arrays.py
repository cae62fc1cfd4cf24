"""Validation and conversion of distance matrices and embeddings to tensors, without a copy where possible."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.errors import WeightspaceError
from weightspace.labels.names import Names
from weightspace.labels.probabilities import as_tensor

#: Largest number of labels for which the triangle inequality is checked on every triple, and sample size beyond it.
_EVERY_TRIPLE, _SAMPLED = 128, 200_000
#: Relative asymmetry that is tolerated.
_CLOSE = 1e-6


def distance_matrix(values: Any, names: Names | None) -> Tensor:
    """Return a distance matrix as a float32 or float64 tensor, (K, K).

    A matrix that violates only the triangle inequality is used as it is, with a warning.

    Raises:
        WeightspaceError: it isn't square, finite, non-negative and symmetric with a zero diagonal.
    """
    matrix = _floating(values, "A distance matrix")
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise WeightspaceError(f"A distance matrix must be square; found shape {tuple(matrix.shape)}.")
    if names is not None and len(names) != len(matrix):
        raise WeightspaceError(f"The matrix has {len(matrix):,} rows, but there are {len(names):,} labels.")
    named = names if names is not None else range(len(matrix))

    def complain(wrong: Tensor, what: str) -> None:
        if bool(wrong.any()):
            i, j = (int(at) for at in wrong.nonzero()[0])
            raise WeightspaceError(
                f"The distance between {named[i]!r} and {named[j]!r} "
                f"{what.format(float(matrix[i, j]), float(matrix[j, i]))} "
                f"(row {i:,}, column {j:,}). Expected a symmetric matrix of finite, non-negative numbers."
            )

    complain(~torch.isfinite(matrix), "is {0:g}")
    complain(matrix < 0, "is negative, {0:g}")
    complain(matrix.diagonal().diag() != 0, "is {0:g}, from a label to itself")
    complain((matrix - matrix.T).abs() > _CLOSE * matrix.max(), "is {0:g}, but {1:g} in reverse")
    _check_triangles(matrix, named)
    return matrix


def _check_triangles(matrix: Tensor, named: Any) -> None:
    """Warn if a detour is shorter than the direct distance; squared distances are the likely cause."""
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
        cause = "Are these squared distances? They would be squared again; pass their square roots, or use exponent=1."
    else:
        cause = "This isn't a metric; predictions still minimise the expected cost."
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
    """Return points (K, d), float32 or float64; normalised to unit length for ``cosine``.

    Raises:
        WeightspaceError: a wrong shape, a non-finite number, a zero row for ``cosine``, or an unknown metric.
    """
    if metric not in ("euclidean", "cosine"):
        raise WeightspaceError(f"The metric of embeddings must be 'euclidean' or 'cosine'; found {metric!r}.")
    points = _floating(values, "Embeddings")
    if points.dim() != 2 or len(points) == 0:
        raise WeightspaceError(f"Embeddings must have shape (labels, d); found {tuple(points.shape)}.")
    if names is not None and len(names) != len(points):
        raise WeightspaceError(f"Found {len(points):,} embeddings for {len(names):,} labels; expected one per label.")
    named = names if names is not None else range(len(points))
    bad = ~torch.isfinite(points).all(1)
    if bool(bad.any()):
        raise WeightspaceError(f"The embedding of {named[int(bad.nonzero()[0])]!r} isn't finite.")
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
        raise WeightspaceError(f"{what} must be real; found {tensor.dtype}.")
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.double()


def first_of_equals(matrix: Tensor) -> np.ndarray | None:
    """Return the first row equal to each row of a distance matrix, int64 (rows,); None if all differ.

    Rows are equal if they are at distance zero and their distances to all others agree up to rounding.
    """
    first = (matrix == 0).int().argmax(1).numpy()
    nodes = np.arange(len(first))
    tolerance = 16 * torch.finfo(matrix.dtype).eps
    for row in np.flatnonzero(first < nodes):
        if torch.allclose(matrix[row], matrix[first[row]], rtol=tolerance, atol=0):
            nodes[row] = nodes[first[row]]
    return None if (nodes == np.arange(len(nodes))).all() else nodes
