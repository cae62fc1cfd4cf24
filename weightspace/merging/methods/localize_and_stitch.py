r"""Localize-and-Stitch: only the largest elements of each task vector, averaged where several tasks have them.

.. math:: b + \lambda\, \frac{\sum_i w_i\, m_i \odot (x_i - b)}{\sum_i w_i\, m_i}

with masks :math:`m_i` of the :math:`\lfloor\text{density}\cdot n\rfloor` largest differences of the whole model
(``scope: tensor``: of each tensor). Differences of zero belong to no mask, and elements in no mask are the base's. With
equal weights, the quotient is the plain average over the tasks that have an element in their mask. Unlike TIES, no sign
is elected.

This is the paper's variant without data, in which the magnitude of the differences localises a task. The authors keep
5 % for language models, the default, and 10 % for CLIP. With data, they learn the masks and keep about 1 %.

This follows the paper's abstract and the authors' code (https://github.com/uiuctml/Localize-and-Stitch). The code drops
all differences that equal the smallest of the largest ones, and excludes some tensors of CLIP by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from torch import Tensor

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._masked_sum import MaskedSum
from weightspace.merging.methods._parameters import Lambda
from weightspace.merging.methods._registry import JUDGED_CHUNKS, Parameter
from weightspace.merging.methods._rounding import RefinedFormula
from weightspace.merging.methods._sparsify import kept_by, kept_count, largest_differences, relative
from weightspace.merging.methods._task_vectors import TaskVectors
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack
from weightspace.merging.methods._topk import Cut
from weightspace.merging.methods.ties import model_cuts


@merge_method(
    formula="b + λ × the mean of the largest differences, over the tasks that have them",
    source="He et al. 2025, https://arxiv.org/abs/2408.13656",
    base="required",
    cost=8,
    stored_chunks=JUDGED_CHUNKS,
    global_pass=model_cuts,
    global_pass_if=("scope", "model"),
)
def localize_and_stitch(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    density: Annotated[Sequence[float], Parameter(help="fraction of the differences to keep", low=0, high=1)] = (0.05,),
    scope: Annotated[
        str, Parameter(help="trim per tensor, or over the whole model", choices=("tensor", "model"))
    ] = "model",
    lambda_: Lambda = 1.0,
    cuts: Sequence[Cut] | None = None,
) -> Formula:
    """Return the formula of Localize-and-Stitch without data.

    At least one element is kept. ``cuts`` come from the global pass, one per model.
    """
    found = cuts or largest_differences(stack, [kept_count(share, stack.numel) for share in density])
    weights = relative(weights)

    def fast(chunk: Chunk, close: list[np.ndarray] | None) -> Tensor:
        vectors = TaskVectors(chunk).trim(found, stack.dtype).scale(weights)
        return vectors.mean(weights).add_to_base(lambda_)

    return RefinedFormula(
        fast, MaskedSum(kept_by(found, stack), weights, weights, lambda_, normalize=True, elect=False)
    )
