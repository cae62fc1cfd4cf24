"""Singular vectors of differences from a base, and the orthogonal factor nearest to several sets of them.

Singular values that are rounding errors have no meaningful directions: they are dropped, so results don't depend on
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weightspace.merging.methods._task_vectors import TaskVector, TaskVectors, summed
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack

#: Maps the differences of all models, 2-D and of one shape, to the merged difference.
Matrices = Callable[[list[Tensor]], Tensor]


def on_matrices(stack: TensorStack, merge: Matrices, lambda_: float) -> Formula:
    """Return the formula ``b + λ·merge(δ_1 … δ_T)`` for matrices, ``b + λ·mean(δ)`` for tensors of other shapes.

    Args:
        stack: the models and their base, with granularity ``whole``.
        merge: maps differences to a difference; it is odd, so ``b − x`` can be used instead of ``x − b``.
        lambda_: scaling factor of the merged difference.
    """

    def formula(chunk: Chunk) -> Tensor:
        negated = TaskVectors(chunk).negated
        merged = decomposed(list(negated), merge) if len(stack.shape) == 2 else summed(negated) / len(negated)
        return TaskVector(chunk.origin.double(), merged.double()).add_to_base(lambda_)

    return formula


def decomposed(differences: list[Tensor], merge: Matrices) -> Tensor:
    """Return the merge of matrices, or NaN everywhere if one isn't finite and has no singular vectors."""
    if all(bool(difference.isfinite().all()) for difference in differences):
        return merge(differences)
    return torch.full_like(differences[0], torch.nan)


def singular_vectors(
    matrix: Tensor, rank: int | None = None, whole: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``U``, ``σ``, ``Vᵀ`` of a matrix: the leading ``rank`` triples, without those that are rounding errors.

    Args:
        matrix: ``(m, n)``.
        rank: maximum number of triples; by default all.
        whole: the minuend if the matrix is the result of a subtraction, whose rounding errors are dropped.

    Returns:
        ``(m, k)``, ``(k,)`` in descending order and ``(k, n)``, with ``k`` at most ``rank`` and the numerical rank.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    size = values[:1] if whole is None else torch.linalg.vector_norm(whole)
    bound = max(matrix.shape) * torch.finfo(values.dtype).eps * size
    kept = min(int((values > bound).sum()), len(values) if rank is None else rank)
    return left[:, :kept], values[:kept], right[:kept]


def column_space(matrices: Sequence[Tensor]) -> Tensor:
    """Return the left singular vectors of horizontally stacked matrices, ``[M_1 … M_T] = UΣVᵀ``, as ``(m, k)``."""
    joined = torch.cat(list(matrices), dim=1)
    if joined.shape[1] > joined.shape[0]:
        joined = torch.linalg.qr(joined.T, mode="r").R.T  # the same left singular vectors, in a smaller matrix
    return singular_vectors(joined)[0]


def polar(matrix: Tensor) -> Tensor:
    """Return the orthogonal factor: the matrix with all its singular values set to 1."""
    left, _, right = singular_vectors(matrix)
    return left @ right
