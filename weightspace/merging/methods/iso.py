r"""Isotropic merging: the summed differences with a flat spectrum.

.. math:: b + \lambda\, \bar\sigma\, U V^\top, \qquad \sum_t (x_t - b) = U \Sigma V^\top, \quad
    \bar\sigma = \operatorname{mean}(\Sigma)

``iso_cts`` gives a part of the directions to what the tasks don't share.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightspace.merging.methods._sparsify import summed
from weightspace.merging.methods._svd import on_matrices, polar, singular_vectors
from weightspace.merging.methods._tensor_stack import Formula, Stack


def iso_c(stack: Stack, weights: Sequence[float], *, lambda_: float) -> Formula:
    """Return the formula of Iso-C; tensors that are no matrices get the mean of their differences.

    Args:
        stack: the models and their base.
        weights: not used.
        lambda_: factor of the merged difference.

    Source:
        Marczak et al. 2025, https://arxiv.org/abs/2502.04959, section 4.1; the mean is over the singular values that
        are more than rounding.
    """
    return on_matrices(stack, lambda differences: _flat(*singular_vectors(summed(differences))), lambda_)


def iso_cts(stack: Stack, weights: Sequence[float], *, lambda_: float, common: float) -> Formula:
    """Return the formula of Iso-CTS; tensors that are no matrices get the mean of their differences.

    Args:
        stack: the models and their base.
        weights: not used.
        lambda_: factor of the merged difference.
        common: share of the directions that the summed differences have; the rest goes in equal parts to the
            leading directions of what every task has outside them.

    Source:
        Marczak et al. 2025, https://arxiv.org/abs/2502.04959, section 4.2.
    """
    return on_matrices(stack, lambda differences: _with_residuals(differences, common), lambda_)


def _with_residuals(differences: list[Tensor], common: float) -> Tensor:
    """Return the merged difference of matrices by Iso-CTS."""
    rank, tasks = min(differences[0].shape), len(differences)
    own = round((rank - int(common * rank)) / tasks)
    shared = singular_vectors(summed(differences), rank - own * tasks)
    residuals = [
        singular_vectors(difference - shared[0] @ (shared[0].T @ difference), own, whole=difference)
        for difference in differences
    ]
    left, values, right = zip(shared, *residuals, strict=True)
    return _flat(polar(torch.cat(left, dim=1)), torch.cat(values), polar(torch.cat(right)))


def _flat(left: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """Return the product with all singular values set to their mean."""
    return left @ right * (values.mean() if len(values) else 0.0)
