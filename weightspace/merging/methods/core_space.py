r"""Core Space: differences of low rank merged elementwise in the bases that all tasks share.

.. math:: b + \lambda\, U \operatorname{merge}(U^\top \delta_1 V, \dots, U^\top \delta_T V)\, V^\top,
    \qquad \delta_t = x_t - b

with :math:`U` the left singular vectors of :math:`[\delta_1 \dots \delta_T]` and :math:`V` the right ones of the
differences on top of each other. The paper takes both from the factors of adapters; those of the differences span the
same spaces and don't depend on how an adapter was factored.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from weightspace.merging.methods._subspace import Inner, in_subspace
from weightspace.merging.methods._svd import column_space
from weightspace.merging.methods._tensor_stack import Formula, Stack


def core_space(
    stack: Stack,
    weights: Sequence[float],
    *,
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    inner: str,
) -> Formula:
    """Return the formula of Core Space; tensors that are no matrices are merged elementwise as they are.

    Args:
        stack: the models and their base.
        weights: any finite numbers.
        density: for ties, share of the coordinates that is kept, one per model.
        lambda_: factor of the merged difference.
        normalize: divide by the sum of the weights (for ties, of those that agree).
        inner: ``ties`` or ``task_arithmetic``.

    Source:
        Panariello et al. 2025, https://arxiv.org/abs/2509.17786, section 4.
    """
    elementwise = Inner(inner, weights, density, normalize)

    def merged(differences: list[Tensor]) -> Tensor:
        left = column_space(differences)
        right = column_space([difference.T for difference in differences])
        return left @ elementwise.merged([left.T @ difference @ right for difference in differences]) @ right.T

    return in_subspace(stack, elementwise, lambda_, merged)
