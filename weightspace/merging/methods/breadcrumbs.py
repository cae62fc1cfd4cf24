r"""Model Breadcrumbs: differences from the base without the largest outliers and the smallest elements.

Of :math:`n` elements, the :math:`\lfloor\gamma n\rfloor` largest are dropped, and as many of the smallest that
:math:`\lfloor\text{density}\cdot n\rfloor` remain; then task arithmetic, or sign consensus, is applied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, TypeAlias

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._parameters import Density, Lambda, Normalize, NormalizeElected, RescaleL1
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._sparsify import largest_differences, restoring_factors, visible
from weightspace.merging.methods._task_vectors import TaskVectors
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack
from weightspace.merging.methods.linear import normalised

Gamma: TypeAlias = Annotated[
    Sequence[float], Parameter(help="fraction of the largest differences to drop", low=0, high=1)
]


@merge_method(
    formula="task arithmetic without the largest and the smallest differences",
    source="Davari and Belilovsky 2024, https://arxiv.org/abs/2312.06795",
    base="required",
    divides_if="normalize",
    cost=11,
)
def breadcrumbs(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    density: Density = (1.0,),
    gamma: Gamma = (0.01,),
    lambda_: Lambda = 1.0,
    normalize: Normalize = False,
    rescale: RescaleL1 = False,
) -> Formula:
    """Return the formula of Model Breadcrumbs (section 3): task arithmetic on the kept elements.

    Raises:
        WeightspaceError: with ``normalize``, the weights sum to zero.
    """
    shown, (factor,) = visible(weights, stack), visible([lambda_], stack)
    factors = normalised(shown) if normalize else shown
    crumbs = _Breadcrumbs(stack, density, gamma, rescale)
    return lambda chunk: crumbs.vectors(chunk, factors).sum().add_to_base(factor)


@merge_method(
    formula="sign consensus without the largest and the smallest differences",
    source="Davari and Belilovsky 2024, https://arxiv.org/abs/2312.06795",
    base="required",
    cost=14,
)
def breadcrumbs_ties(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    density: Density = (1.0,),
    gamma: Gamma = (0.01,),
    lambda_: Lambda = 1.0,
    normalize: NormalizeElected = False,
    rescale: RescaleL1 = False,
) -> Formula:
    """Return the formula of the sign consensus on the elements kept by Model Breadcrumbs."""
    shown, (factor,) = visible(weights, stack), visible([lambda_], stack)
    crumbs = _Breadcrumbs(stack, density, gamma, rescale)

    return lambda chunk: crumbs.vectors(chunk, shown).elect(shown, normalize=normalize).add_to_base(factor)


class _Breadcrumbs:
    """The elements of task vectors between two cuts, rescaled if requested."""

    def __init__(self, stack: TensorStack, density: Sequence[float], gamma: Sequence[float], rescale: bool) -> None:
        count = stack.numel
        self.selected = stack.dtype
        kept = [count if share >= 1 else math.floor(share * count) for share in density]
        dropped = [min(math.floor(share * count), count - keep) for share, keep in zip(gamma, kept, strict=True)]
        self.upper = largest_differences(stack, dropped)
        self.lower = largest_differences(stack, [keep + drop for keep, drop in zip(kept, dropped, strict=True)])
        self.scales = restoring_factors(stack, self._between) if rescale else [1.0] * len(kept)

    def vectors(self, chunk: Chunk, factors: Sequence[float]) -> TaskVectors:
        """Return the kept elements of a chunk, times the factors."""
        scales = [factor * scale for factor, scale in zip(factors, self.scales, strict=True)]
        return self._between(TaskVectors(chunk)).scale(scales)

    def _between(self, vectors: TaskVectors) -> TaskVectors:
        return vectors.trim_outside(self.lower, self.upper, self.selected)
