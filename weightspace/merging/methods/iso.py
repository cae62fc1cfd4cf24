r"""Isotropic merging: the summed differences with a flat spectrum.

.. math:: b + \lambda\, \bar\sigma\, U V^\top, \qquad \sum_t (x_t - b) = U \Sigma V^\top, \quad
    \bar\sigma = \operatorname{mean}(\Sigma)

``iso_cts`` uses some of the directions for the task-specific residuals outside the common subspace.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._parameters import Lambda
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._svd import on_matrices, polar, singular_vectors, with_values
from weightspace.merging.methods._task_vectors import summed
from weightspace.merging.methods._tensor_stack import Formula, TensorStack


@merge_method(
    formula="b + λ × the summed differences with all singular values set to their mean",
    source="Marczak et al. 2025, https://arxiv.org/abs/2502.04959",
    base="required",
    granularity="whole",
    on_device=True,
    whole_copies=1,
    whole_fixed=7,
    squares=4,
    weighted=False,
)
def iso_c(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    lambda_: Lambda = 1.0,
) -> Formula:
    """Return the formula of Iso-C (section 4.1); tensors other than matrices get the mean of their differences.

    The mean of the spectrum is taken over the singular values above rounding.
    """
    return on_matrices(stack, _flattened, lambda_)


@merge_method(
    formula="iso_c on a common subspace and the residual directions of every task",
    source="Marczak et al. 2025, https://arxiv.org/abs/2502.04959",
    base="required",
    granularity="whole",
    on_device=True,
    whole_copies=1,
    whole_fixed=9,
    squares=4,
    weighted=False,
)
def iso_cts(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    lambda_: Lambda = 1.0,
    common: Annotated[float, Parameter(help="fraction of the rank for the common subspace", low=0, high=1)] = 0.8,
) -> Formula:
    """Return the formula of Iso-CTS (section 4.2); tensors other than matrices get the mean of their differences."""
    return on_matrices(stack, partial(_with_residuals, common=common), lambda_)


def _flattened(differences: list[Tensor], rounding: float) -> Tensor:
    """Return the merged difference of matrices by Iso-C."""
    return with_values(summed(differences), _means, floor=len(differences) * rounding)


def _with_residuals(differences: list[Tensor], rounding: float, *, common: float) -> Tensor:
    """Return the merged difference of matrices by Iso-CTS."""
    rank, tasks = min(differences[0].shape), len(differences)
    own = round((rank - int(common * rank)) / tasks)
    shared = singular_vectors(summed(differences), rank - own * tasks, floor=tasks * rounding)
    residuals = [
        singular_vectors(difference - shared[0] @ (shared[0].T @ difference), own, whole=difference, floor=rounding)
        for difference in differences
    ]
    left, values, right = zip(shared, *residuals, strict=True)
    flat = polar(torch.cat(left, dim=1)) @ polar(torch.cat(right))
    everything = torch.cat(values)
    return flat * (everything.mean() if len(everything) else 0.0)


def _means(values: Tensor) -> Tensor:
    """Return the mean, repeated for every value."""
    return values.mean().expand_as(values)
