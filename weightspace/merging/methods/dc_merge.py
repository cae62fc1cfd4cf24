r"""DC-Merge: the leading singular directions of every task, merged in an orthogonal basis that all tasks share.

.. math:: b + \lambda\, \bar U\, \bigl(B \odot \operatorname{merge}(M_1 \dots M_T)\bigr)\, \bar V^\top, \qquad
    M_t = \bar U^\top U_t\, s(\Sigma_t)\, V_t^\top \bar V

.. math:: \bar U = \operatorname{polar}([U_1 \dots U_T]), \qquad \bar V = \operatorname{polar}([V_1 \dots V_T])

with :math:`U_t, \Sigma_t, V_t` the leading ``rank`` singular triples of :math:`x_t - b`. ``smoothing`` replaces their
singular values by others of the same sum: by their mean, or by numbers that fall linearly from the first to the last
one, which is the first divided by :math:`\min(\rho, \sigma_1 / \sigma_k)`. The merge keeps the ``density`` largest
elements of each :math:`M_t`, and takes the mean of those that agree with the sign of their sum; :math:`B` is 1 in one
square block on the diagonal per task and 0 elsewhere.

The defaults are those of the authors' code for networks that were fine-tuned as a whole. For LoRA, it sets ``rank`` to
the adapters' rank, with the smoothing ``mean`` or ``linear``. A density of 0.001 is meant for matrices of several
hundred rows and columns; smaller ones need more, to keep as many elements as there are directions. Tensors other than
matrices get the mean of their differences. Of the paper, only the abstract was at hand: this follows the authors' code,
https://github.com/Tobeginwith/DC-Merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._parameters import Lambda
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._svd import on_matrices, polar, singular_vectors
from weightspace.merging.methods._tensor_stack import Formula, TensorStack


@merge_method(
    formula="b + λ × the leading singular directions of all tasks, merged by sign in a shared orthogonal basis",
    source="Zhang et al. 2026, https://arxiv.org/abs/2603.06242",
    base="required",
    granularity="whole",
    weighted=False,
    whole_copies=8,
    on_device=True,
)
def dc_merge(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    lambda_: Lambda = 1.0,
    rank: Annotated[
        int, Parameter(help="singular directions of each task; 0 for the most, min(rows, columns) / models", low=0)
    ] = 0,
    smoothing: Annotated[
        str, Parameter(help="singular values of each task", choices=("none", "mean", "linear"))
    ] = "none",
    rho: Annotated[float, Parameter(help="largest ratio of the values of linear smoothing", low=1)] = 5.0,
    density: Annotated[float, Parameter(help="fraction of the elements to keep of each task", low=0, high=1)] = 0.001,
) -> Formula:
    """Return the formula of DC-Merge; tensors other than matrices get the mean of their differences."""

    def merged(differences: list[Tensor]) -> Tensor:
        share = max(1, min(differences[0].shape) // len(differences))
        kept = min(share, rank or share)
        parts = [singular_vectors(difference, kept) for difference in differences]
        left, right = (polar(torch.cat([part[side] for part in parts], dim=1 - side // 2)) for side in (0, 2))
        smoothed = [(one, _smoothed(values, smoothing, rho), other) for one, values, other in parts]
        inner = [(left.T @ one * values) @ (other @ right.T) for one, values, other in smoothed]
        return left @ _within_blocks(_agreeing_mean(inner, density), parts) @ right

    return on_matrices(stack, merged, lambda_)


def _smoothed(values: Tensor, smoothing: str, rho: float) -> Tensor:
    """Return other singular values of the same sum."""
    if smoothing == "none" or not len(values):
        return values
    ratio = min(rho, float(values[0] / values[-1])) if smoothing == "linear" else 1.0
    line = torch.linspace(ratio, 1.0, len(values), dtype=values.dtype, device=values.device)
    return values.sum() / line.sum() * line


def _agreeing_mean(matrices: list[Tensor], density: float) -> Tensor:
    """Return the mean of the largest elements of each matrix, of those that agree with the sign of their sum."""
    kept = torch.stack([_largest(matrix, density) for matrix in matrices])
    agreeing = kept * (kept.sign() == kept.sum(dim=0).sign())
    return agreeing.sum(dim=0) / (agreeing != 0).sum(dim=0).clamp(min=1)


def _largest(matrix: Tensor, density: float) -> Tensor:
    """Return a matrix with its largest elements, at least one and all at the threshold, but none that is rounding."""
    if not matrix.numel():
        return matrix
    magnitudes = matrix.abs()
    kept = max(1, int(density * matrix.numel()))
    threshold = magnitudes.view(-1).topk(kept).values[-1]
    rounding = len(matrix) * torch.finfo(matrix.dtype).eps * magnitudes.max()
    return matrix * ((magnitudes >= threshold) & (magnitudes > rounding))


def _within_blocks(matrix: Tensor, parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return a matrix with zeros outside the blocks of the tasks on its diagonal."""
    mask = torch.block_diag(*(values.new_ones(len(values), len(values)) for _, values, _ in parts))
    return matrix * mask
