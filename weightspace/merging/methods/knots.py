r"""KnOTS: differences merged elementwise in a row space shared by all tasks.

.. math:: [\delta_1 \dots \delta_T] = U \Sigma\, [V_1^\top \dots V_T^\top], \qquad
    b + \lambda\, U \operatorname{merge}(\Sigma V_1^\top, \dots, \Sigma V_T^\top), \qquad \delta_t = x_t - b

If ``merge`` is a sum, this is task arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._parameters import Density, Inner, Lambda, Normalize
from weightspace.merging.methods._subspace import ElementwiseMerge, in_subspace
from weightspace.merging.methods._svd import column_space
from weightspace.merging.methods._tensor_stack import Formula, TensorStack


@merge_method(
    formula="b + an elementwise merge of the differences in a row space shared by all tasks",
    source="Stoica et al. 2025, https://arxiv.org/abs/2410.19735",
    base="required",
    granularity="whole",
    on_device=True,
    whole_copies=3,
    whole_fixed=5,
    squares=5,
    squares_of="rows",
    divides_if="normalize",
)
def knots(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    density: Density = (1.0,),
    lambda_: Lambda = 1.0,
    normalize: Normalize = True,
    inner: Inner = "ties",
) -> Formula:
    """Return the formula of KnOTS (section 4); tensors other than matrices are merged elementwise."""
    elementwise = ElementwiseMerge(inner, weights, density, normalize)

    def merged(differences: list[Tensor]) -> Tensor:
        basis = column_space(differences)
        return basis @ elementwise.merged([basis.T @ difference for difference in differences])  # UᵀΔ_t = ΣV_tᵀ

    return in_subspace(stack, elementwise, lambda_, merged)
