"""Singular vectors of differences from a base, and the orthogonal factor nearest to several sets of them.

Singular values that are rounding errors have no meaningful directions: they are dropped, so results don't depend on
them. These are errors of the decomposition, relative to the largest singular value, and those with which models were
stored, relative to their norm; in a difference of low rank, such as that of a merged adapter, the latter are often
larger. Float32 matrices are decomposed by their Gram matrices in float64, unless that is too inaccurate (``_gram``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weightspace.merging.methods._gram import gram, spectrum, times
from weightspace.merging.methods._sketch import column_basis
from weightspace.merging.methods._task_vectors import TaskVector, TaskVectors, summed
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack

#: Maps the differences of all models, 2-D and of one shape, to the merged difference.
Matrices = Callable[[list[Tensor]], Tensor]

#: The same, with the largest singular value of a difference that may be the rounding of its model.
RoundedMatrices = Callable[[list[Tensor], float], Tensor]


def on_matrices(stack: TensorStack, merge: RoundedMatrices, lambda_: float) -> Formula:
    """Return the formula ``b + λ·merge(δ_1 … δ_T)`` for matrices, ``b + λ·mean(δ)`` for tensors of other shapes.

    Args:
        stack: the models and their base, with granularity ``whole``.
        merge: maps differences to a difference; it is odd, so ``b − x`` can be used instead of ``x − b``.
        lambda_: scaling factor of the merged difference.
    """

    def formula(chunk: Chunk) -> Tensor:
        negated = TaskVectors(chunk).negated
        if len(stack.shape) == 2:
            rounding = rounding_of(chunk.origin, negated)
            own = [one.to(stack.device) for one in negated]
            merged = decomposed(own, lambda differences: merge(differences, rounding)).cpu()
        else:
            merged = summed(negated) / len(negated)
        return TaskVector(chunk.origin.double(), merged.double()).add_to_base(lambda_)

    return formula


def rounding_of(origin: Tensor, differences: Tensor) -> float:
    """Return the largest singular value that the rounding of models may give their differences from a base.

    Each element of a stored model is off by half a unit in the last place; the Frobenius norm of these errors bounds
    their singular values. Twice that allows for a base that was rounded by itself.
    """
    largest = torch.linalg.vector_norm(differences.flatten(1), dim=1).max() if differences.numel() else 0.0
    return torch.finfo(differences.dtype).eps * float(torch.linalg.vector_norm(origin) + largest)


def decomposed(differences: list[Tensor], merge: Matrices) -> Tensor:
    """Return the merge of matrices, or NaN everywhere if one isn't finite and has no singular vectors."""
    if all(bool(difference.isfinite().all()) for difference in differences):
        return merge(differences)
    return torch.full_like(differences[0], torch.nan)


def singular_vectors(
    matrix: Tensor, rank: int | None = None, whole: Tensor | None = None, *, floor: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``U``, ``σ``, ``Vᵀ`` of a matrix: the leading ``rank`` triples, without those that are rounding errors.

    Args:
        matrix: ``(m, n)``.
        rank: maximum number of triples; by default all.
        whole: the minuend if the matrix is the result of a subtraction, whose rounding errors are dropped.
        floor: singular values up to this are dropped, too.

    Returns:
        ``(m, k)``, ``(k,)`` in descending order and ``(k, n)``, with ``k`` at most ``rank`` and the numerical rank.
    """
    if matrix.shape[0] > matrix.shape[1]:
        left, values, right = singular_vectors(matrix.T, rank, None if whole is None else whole.T, floor=floor)
        return right.T, values, left.T
    size = None if whole is None else torch.linalg.vector_norm(whole)
    bound = _bound(matrix)
    if rank is not None and (basis := column_basis(matrix, rank, bound, size)) is not None:
        inner, values, right = singular_vectors(basis.T @ matrix, rank, whole, floor=floor)  # whose norm alone counts
        return basis @ inner, values, right
    if matrix.dtype == torch.float32 and matrix.numel():
        found = spectrum(gram([matrix]), bound, size=size, rank=rank, floor=floor)
        if found is not None:
            vectors, values = found
            right = times((vectors / values).T, matrix)
            return vectors.to(matrix.dtype), values.to(matrix.dtype), right
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    least = (bound * (values[:1] if size is None else size)).clamp(min=floor)
    kept = min(int((values > least).sum()), len(values) if rank is None else rank)
    return left[:, :kept], values[:kept], right[:kept]


def with_values(matrix: Tensor, function: Callable[[Tensor], Tensor], *, floor: float = 0.0) -> Tensor:
    """Return ``U f(σ) Vᵀ`` of a matrix, without the triples that are rounding errors.

    Args:
        matrix: ``(m, n)``.
        function: maps the singular values, of which there is at least one, to others.
        floor: singular values up to this are rounding errors, too.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return with_values(matrix.T, function, floor=floor).T
    if matrix.dtype == torch.float32 and matrix.numel():
        found = spectrum(gram([matrix]), _bound(matrix), floor=floor)
        if found is not None:
            vectors, values = found
            if not len(values):
                return torch.zeros_like(matrix)
            return times(vectors * (function(values) / values) @ vectors.T, matrix)
    left, values, right = singular_vectors(matrix, floor=floor)
    return left * function(values) @ right if len(values) else torch.zeros_like(matrix)


def column_space(matrices: Sequence[Tensor]) -> Tensor:
    """Return the left singular vectors of horizontally stacked matrices, ``[M_1 … M_T] = UΣVᵀ``, as ``(m, k)``."""
    rows, columns = matrices[0].shape[0], sum(matrix.shape[1] for matrix in matrices)
    if columns <= rows:
        return singular_vectors(torch.cat(list(matrices), dim=1))[0]
    if matrices[0].dtype == torch.float32 and rows:
        found = spectrum(gram(matrices), rows * torch.finfo(torch.float32).eps)
        if found is not None:
            return found.vectors.to(torch.float32)
    joined = torch.cat(list(matrices), dim=1)
    return singular_vectors(torch.linalg.qr(joined.T, mode="r").R.T)[0]  # the same vectors, in a smaller matrix


def polar(matrix: Tensor) -> Tensor:
    """Return the orthogonal factor: the matrix with all its singular values set to 1."""
    return with_values(matrix, torch.ones_like)


def _bound(matrix: Tensor) -> float:
    """Return the fraction of the largest singular value below which singular values are rounding errors."""
    return max(matrix.shape) * torch.finfo(matrix.dtype).eps
