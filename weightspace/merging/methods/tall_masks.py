r"""TALL masks and consensus merging: elements of a sum of task vectors that one task, or several, rely on.

With the task vectors :math:`\tau_t = w_t (x_t - b)` and their sum :math:`\tau`, the TALL mask of a task is

.. math:: m_t = \mathbb{1}\bigl[\,|\tau_t| \ge \lambda_t\, |\tau - \tau_t|\,\bigr], \qquad \tau = \sum_t \tau_t

with ``tall_mask_lambda`` for :math:`\lambda_t`. The paper chooses it from 0.2 to 0.6 for every task by validation data.

``consensus`` keeps the elements that at least :math:`k` of the tasks have in their masks (``min_tasks``):

.. math:: b + \lambda\, m \odot \tau, \qquad m = \mathbb{1}\Bigl[\sum_t m_t \ge k\Bigr]

With the default 2, elements that no task relies on and those that only one does are reset to the base; with 1 only the
former; with 0 it is task arithmetic. :math:`\lambda` is chosen as for task arithmetic. A common weight of all models
has the same effect, as it changes no mask.

``tall_mask`` gives :math:`b + \lambda\, m_t \odot \tau` for the model :math:`t` of the number ``rebuild``, counted from
1. This is the network that the paper's compression gives for a task: the base, the sum, and one bit for every weight
and task replace the models. Its scores tell how much of a task the sum still contains; the mask itself is not stored.

With ``inner: ties``, :math:`\tau` is the sum of the trimmed task vectors that agree with the elected sign (consensus
TIES). The authors keep a fifth, ``density: 0.2``. The masks compare all of a task vector, trimmed or not.

This follows the paper's abstract and figure, and the authors' code (https://github.com/nik-dim/tall_masks). The code
has :math:`>` in place of :math:`\ge`, which differs only if both sides are equal, and its TIES keeps one element more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import torch
from torch import Tensor

from weightspace.arithmetic.coefficients import simple_or_none
from weightspace.errors import WeightspaceError
from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._parameters import Density, Inner, Lambda
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._sparsify import kept_count, largest_differences, visible
from weightspace.merging.methods._task_vectors import TaskVector, TaskVectors
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack

MaskLambda: TypeAlias = Annotated[
    Sequence[float],
    Parameter(help="a task's mask needs its difference to be this many times the rest of the sum or more", low=0),
]


@merge_method(
    formula="b + λ Σ τ_t where at least k tasks have |τ_t| ≥ λ_t |Σ τ_s − τ_t|",
    source="Wang et al. 2024, https://arxiv.org/abs/2405.07813",
    base="required",
    models=(2, None),
    cost=8,
)
def consensus(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    tall_mask_lambda: MaskLambda = (0.4,),
    min_tasks: Annotated[
        int, Parameter(help="number of tasks whose masks must contain an element for it to be kept", low=0)
    ] = 2,
    inner: Inner = "task_arithmetic",
    density: Density = (1.0,),
    lambda_: Lambda = 1.0,
) -> Formula:
    """Return the formula of consensus merging.

    Raises:
        WeightspaceError: ``min_tasks`` is larger than the number of models, so that nothing could be kept.
    """
    if min_tasks > len(weights):
        raise WeightspaceError(
            f"min_tasks is {min_tasks}, but there are only {len(weights)} models, so that no element could be kept. "
            f"Expected a number up to {len(weights)}."
        )
    tasks = _MaskedTasks(stack, weights, inner=inner, density=density, mask_lambda=tall_mask_lambda)
    (factor,) = visible([lambda_ * tasks.factor], stack)

    def formula(chunk: Chunk) -> Tensor:
        merged, own = tasks.merged(chunk)
        count = torch.zeros(merged.negated.shape, dtype=torch.int32)
        for task in range(len(own)):
            count += tasks.mask(merged, own, task)
        merged.negated *= count >= min_tasks
        return merged.add_to_base(factor)

    return formula


@merge_method(
    formula="b + λ Σ τ_s where |τ_t| ≥ λ_t |Σ τ_s − τ_t|, with t the model to rebuild",
    source="Wang et al. 2024, https://arxiv.org/abs/2405.07813",
    base="required",
    models=(2, None),
    cost=6,
)
def tall_mask(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    rebuild: Annotated[int, Parameter(help="number of the model to rebuild, counted from 1", low=1)] = 1,
    tall_mask_lambda: MaskLambda = (0.4,),
    inner: Inner = "task_arithmetic",
    density: Density = (1.0,),
    lambda_: Lambda = 1.0,
) -> Formula:
    """Return the formula of a model rebuilt by its TALL mask.

    Raises:
        WeightspaceError: there is no model of that number.
    """
    if rebuild > len(weights):
        raise WeightspaceError(
            f"rebuild is {rebuild}, the number of the model to rebuild, but there are only {len(weights)} models. "
            f"Expected a number from 1 to {len(weights)}."
        )
    tasks = _MaskedTasks(stack, weights, inner=inner, density=density, mask_lambda=tall_mask_lambda)
    (factor,) = visible([lambda_ * tasks.factor], stack)

    def formula(chunk: Chunk) -> Tensor:
        merged, own = tasks.merged(chunk)
        merged.negated *= tasks.mask(merged, own, rebuild - 1)
        return merged.add_to_base(factor)

    return formula


class _MaskedTasks:
    """The multi-task vector of a stack, and its TALL masks.

    Args:
        stack: the models and their base.
        weights: ``w_t``.
        inner: ``task_arithmetic`` sums the trimmed task vectors, ``ties`` those of them that agree in sign.
        density: fraction of each task vector that the sum is made of; the masks see all of it.
        mask_lambda: ``λ_t``.

    Attributes:
        factor: the number that the multi-task vectors of ``merged`` have to be multiplied by.
    """

    def __init__(
        self,
        stack: TensorStack,
        weights: Sequence[float],
        *,
        inner: str,
        density: Sequence[float],
        mask_lambda: Sequence[float],
    ) -> None:
        # A common weight changes no mask, and unit weights keep equal terms equal.
        equal = min(weights) == max(weights) > 0
        self.factor = weights[0] if equal else 1.0
        self._weights = [1.0] * len(weights) if equal else visible(weights, stack)
        self._elect, self._selected = inner == "ties", stack.dtype
        self._cuts = None
        if min(density) < 1:
            self._cuts = largest_differences(stack, [kept_count(share, stack.numel) for share in density])
        self._ratios = [_ratio(number) for number in mask_lambda]

    def merged(self, chunk: Chunk) -> tuple[TaskVector, Tensor]:
        """Return the multi-task vector of a chunk, and the negated task vectors for ``mask``, ``(N, n)``."""
        vectors = TaskVectors(chunk)
        own = vectors.negated
        if self._cuts is not None or self._elect:  # both are done in place
            own = own.clone()
        if self._cuts is not None:
            vectors.trim(self._cuts, self._selected)
        vectors.scale(self._weights)
        if own is not vectors.negated:
            for vector, weight in zip(own, self._weights, strict=True):
                vector.mul_(weight)
        return vectors.elect(self._weights, normalize=False) if self._elect else vectors.sum(), own

    def mask(self, merged: TaskVector, own: Tensor, task: int) -> Tensor:
        """Return the mask of a task, bools ``(n,)``; arguments after the results of ``merged``."""
        more, less = self._ratios[task]
        rest = torch.sub(merged.negated, own[task]).abs_().mul_(less)
        return own[task].abs().mul_(more) >= rest


def _ratio(number: float) -> tuple[float, float]:
    """Return two numbers, at most 1, of which the second is so many times the first.

    They are binary fractions if the number stands for a simple fraction such as 2/5, so that ties are seen as ties.
    """
    fraction = simple_or_none(number)
    if fraction is None:
        return (1.0, number) if number <= 1 else (1 / number, 1.0)
    scale = 2 ** max(fraction.numerator, fraction.denominator).bit_length()
    return fraction.denominator / scale, fraction.numerator / scale
