r"""TSV-M: the leading singular vectors of every task, orthogonalised across tasks.

.. math:: b + \lambda\, \operatorname{polar}([U_1 \dots U_T])\, \tilde\Sigma\,
    \operatorname{polar}([V_1 \dots V_T])^\top

with :math:`U_t, \Sigma_t, V_t` the leading :math:`\lfloor \min(m, n) / T \rfloor` singular triples of :math:`x_t - b`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._parameters import Lambda
from weightspace.merging.methods._svd import on_matrices, polar, singular_vectors
from weightspace.merging.methods._tensor_stack import Formula, TensorStack


@merge_method(
    formula="b + λ Σ of the leading singular vectors of all tasks, orthogonalised across tasks",
    source="Gargiulo et al. 2025, https://arxiv.org/abs/2412.00081",
    base="required",
    granularity="whole",
    on_device=True,
    whole_copies=1,
    whole_fixed=9,
    squares=4,
    weighted=False,
)
def tsv_m(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    lambda_: Lambda = 1.0,
) -> Formula:
    """Return the formula of TSV-M (algorithm 1); tensors other than matrices get the mean of their differences."""
    return on_matrices(stack, _merged, lambda_)


def _merged(differences: list[Tensor], rounding: float) -> Tensor:
    """Return the merged difference of matrices."""
    share = max(1, min(differences[0].shape) // len(differences))
    found = [singular_vectors(difference, share, floor=rounding) for difference in differences]
    left, values, right = zip(*found, strict=True)
    return polar(torch.cat(left, dim=1)) * torch.cat(values) @ polar(torch.cat(right))
