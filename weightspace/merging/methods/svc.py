r"""SVC: the singular values of a merged difference, calibrated to what the tasks themselves do in each direction.

.. math:: b + U\, \operatorname{diag}(\gamma)\, \Sigma\, V^\top, \qquad x - b = U \Sigma V^\top

.. math:: \gamma_r = \frac{T}{\sum_t \max(\alpha, s_{rt})}, \qquad
    s_{rt} = \frac{\langle u_r^\top (x - b),\, u_r^\top (x_t - b) \rangle}{\lVert u_r^\top (x_t - b) \rVert^2}

Tasks that share a direction are counted several times in a sum: :math:`s_{rt} > 1`, and the singular value is reduced.
It is a step after a merge: the first model is the result ``x`` of the merge, the others are the models ``x_t`` that
were merged. Under ``then`` in a recipe, these are listed by themselves. By default, :math:`\alpha = 1/T` for :math:`T`
merged models, as in the authors' code, which takes 1 after TSV-M. A task without a component in a direction has
:math:`s_{rt} = 0` there.

Tensors other than matrices stay as they were merged. Only the abstract of the paper was available: this follows the
authors' code, https://github.com/lyymuwu/SVC, and the description of the method in FusionBench. The authors leave out
embeddings and projections by name; here, all matrices are calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._svd import decomposed, singular_vectors
from weightspace.merging.methods._task_vectors import TaskVector, TaskVectors
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorStack


@merge_method(
    formula="the first model, a merge of the others: the singular values of its difference, calibrated to theirs",
    source="Li et al. 2026, https://arxiv.org/abs/2602.05536",
    base="required",
    models=(2, None),
    granularity="whole",
    weighted=False,
    after_merge=True,
    on_device=True,
)
def svc(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    alpha: Annotated[
        float | None,
        Parameter(help="least component of a task's difference", low=1e-6, computed="1 / merged models"),
    ] = None,
) -> Formula:
    """Return the formula of SVC; tensors other than matrices stay as they were merged."""
    least = 1 / (len(stack.sources) - 1) if alpha is None else alpha

    def formula(chunk: Chunk) -> Tensor:
        if len(stack.shape) != 2:
            return chunk.tensors[0]
        negated = TaskVectors(chunk).negated
        differences = [one.to(stack.device) for one in negated]
        calibrated = decomposed(differences, lambda found: _calibrated(found, least)).cpu()
        return TaskVector(chunk.origin.double(), calibrated.double()).add_to_base(1.0)

    return formula


def _calibrated(differences: list[Tensor], least: float) -> Tensor:
    """Return the first difference with calibrated singular values."""
    merged, *tasks = differences
    left, values, right = singular_vectors(merged)
    total = torch.zeros_like(values, dtype=torch.float64)
    for task in tasks:
        total += _components(left.T @ task, torch.linalg.matrix_norm(task), values, right).clamp(min=least)
    return left * (len(tasks) * values / total).to(left) @ right


def _components(rows: Tensor, size: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """Return the component of each row ``σ_r v_rᵀ`` along the row of a task of norm ``size``; 0 if that is rounding."""
    squares = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square()
    bound = max(len(values), right.shape[1]) * torch.finfo(rows.dtype).eps * float(size)
    products = values.double() * (rows.double() * right.double()).sum(dim=1)
    return torch.where(squares > bound**2, products / squares, 0.0)
