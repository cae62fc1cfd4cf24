r"""KnOTS: differences merged elementwise in the row space that all tasks share.

.. math:: [\delta_1 \dots \delta_T] = U \Sigma\, [V_1^\top \dots V_T^\top], \qquad
    b + \lambda\, U \operatorname{merge}(\Sigma V_1^\top, \dots, \Sigma V_T^\top), \qquad \delta_t = x_t - b

With a sum for ``merge`` it is task arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from weightspace.merging.methods._subspace import Inner, in_subspace
from weightspace.merging.methods._svd import column_space
from weightspace.merging.methods._tensor_stack import Formula, Stack


def knots(
    stack: Stack,
    weights: Sequence[float],
    *,
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    inner: str,
) -> Formula:
    """Return the formula of KnOTS; tensors that are no matrices are merged elementwise as they are.

    Args:
        stack: the models and their base.
        weights: any finite numbers.
        density: for ties, share of the coordinates that is kept, one per model.
        lambda_: factor of the merged difference.
        normalize: divide by the sum of the weights (for ties, of those that agree).
        inner: ``ties`` or ``task_arithmetic``.

    Source:
        Stoica et al. 2025, https://arxiv.org/abs/2410.19735, section 4.
    """
    elementwise = Inner(inner, weights, density, normalize)

    def merged(differences: list[Tensor]) -> Tensor:
        basis = column_space(differences)
        return basis @ elementwise.merged([basis.T @ difference for difference in differences])  # UᵀΔ_t = ΣV_tᵀ

    return in_subspace(stack, elementwise, lambda_, merged)
