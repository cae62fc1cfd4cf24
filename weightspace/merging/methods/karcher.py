r"""The Karcher mean: the Riemannian mean of the models' directions, with their average norm (zero tensors included).

From the normalised mean :math:`u`, it takes steps along the mean :math:`T` of the logarithms:

.. math:: u \leftarrow \cos\lVert T\rVert\,u + \sin\lVert T\rVert\,\frac{T}{\lVert T\rVert}, \qquad
    T = \frac1N\sum_i \frac{\theta_i}{\sin\theta_i} (u_i - \cos\theta_i\,u)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from weightspace.merging.methods._declaration import merge_method
from weightspace.merging.methods._directions import Directions, gram, scaled_sum
from weightspace.merging.methods._registry import Parameter
from weightspace.merging.methods._tensor_stack import Formula, TensorStack


@merge_method(
    formula="the Riemannian mean of the directions, with the average norm of the models",
    source="Karcher 1977, https://doi.org/10.1002/cpa.3160300502",
    weighted=False,
    normalised=True,
    cost=4,
)
def karcher(
    stack: TensorStack,
    weights: Sequence[float],
    *,
    max_iter: Annotated[int, Parameter(help="maximum number of steps", low=1, high=10000)] = 10,
    tol: Annotated[float, Parameter(help="stop when a step is shorter, in radians", low=0)] = 1e-05,
) -> Formula:
    """Return the formula of the Karcher mean by the iteration of Afsari et al. 2013, https://arxiv.org/abs/1201.0925.

    All steps are taken on coefficients of the models, given their inner products: the tensors are read twice, whatever
    the number of steps. Zero tensors have no direction and are skipped; if none remains, or the directions cancel, the
    result is 0.
    """
    directions = Directions(gram(stack))
    used = [index for index, norm in enumerate(directions.norms) if norm > 0]
    point = [1.0 if index in used else 0.0 for index in range(len(weights))]
    size = directions.length(point)
    if not used or size == 0:
        return scaled_sum(directions, point, 0.0, deltas=False)
    point = [coefficient / size for coefficient in point]
    for _ in range(max_iter):
        step = _mean_logarithm(directions, point, used)
        length = directions.length(step)
        if length < tol:
            break
        turn, rest = math.sin(length) / length, math.cos(length)
        point = [rest * here + turn * there for here, there in zip(point, step, strict=True)]
        size = directions.length(point)
        point = [coefficient / size for coefficient in point]
    mean = math.fsum(directions.norms) / len(weights)
    return scaled_sum(directions, point, mean, deltas=False)


def _mean_logarithm(directions: Directions, point: Sequence[float], used: Sequence[int]) -> list[float]:
    """Return the coefficients of the mean of the logarithms at ``point``."""
    step = [0.0] * len(point)
    for index in used:
        cosine = math.fsum(c * other for c, other in zip(point, directions.cosines[index], strict=True))
        theta = math.acos(max(-1.0, min(1.0, cosine)))
        factor = (theta / math.sin(theta) if theta > 0 else 1.0) / len(used)
        step = [one - factor * cosine * c for one, c in zip(step, point, strict=True)]
        step[index] += factor
    return step
