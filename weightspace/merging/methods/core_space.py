r"""Core Space: low-rank differences merged elementwise in bases shared by all tasks.

.. math:: b + \lambda\, U \operatorname{merge}(U^\top \delta_1 V, \dots, U^\top \delta_T V)\, V^\top,
    \qquad \delta_t = x_t - b

with :math:`U` the left singular vectors of :math:`[\delta_1 \dots \delta_T]` and :math:`V` the right ones of the
vertically stacked differences. The paper takes both from the factors of adapters; those of the differences span the
same spaces and don't depend on how an adapter was factorised.
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
    formula="b + an elementwise merge of the low-rank differences in bases shared by all tasks",
    source="Panariello et al. 2025, https://arxiv.org/abs/2509.17786",
    base="required",
    granularity="whole",
    on_device=True,
    whole_copies=3,
    whole_fixed=5,
    squares=5,
    squares_of="both",
    divides_if="normalize",
)
def core_space(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    density: Density = (1.0,),
    lambda_: Lambda = 1.0,
    normalize: Normalize = True,
    inner: Inner = "ties",
) -> Formula:
    """Return the formula of Core Space (section 4); tensors other than matrices are merged elementwise."""
    elementwise = ElementwiseMerge(inner, weights, density, normalize)

    def merged(differences: list[Tensor]) -> Tensor:
        left = column_space(differences)
        right = column_space([difference.T for difference in differences])
        return left @ elementwise.merged([left.T @ difference @ right for difference in differences]) @ right.T

    return in_subspace(stack, elementwise, lambda_, merged)
