"""Soft permutations: doubly stochastic matrices in the place of permutations, differentiable.

A matrix ``P`` acts by rows: ``w'[i] = Σ_j P[i, j] w[j]``, so the matrix of a permutation ``p`` has its ones at
``(i, p[i])``. As with indices, an inner group has one matrix for each *resulting* unit of its outer group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Generator, Tensor

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.matching.assignment import assign
from weightspace.matching.gains import Indices
from weightspace.matching.loss_driven import EndpointPair
from weightspace.suggestions import unknown
from weightspace.symmetry import Permutation, PermutationSpec
from weightspace.symmetry.pattern import Block, Units, blocks
from weightspace.symmetry.permutation import outer_place

#: Group -> matrix ``(units, units)``, or ``(outer units, units, units)`` for an inner group.
Matrices = Mapping[str, Tensor]


def matrices_of(permutation: Permutation, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return a permutation as matrices of zeros and ones."""
    return {group: torch.nn.functional.one_hot(index).to(dtype) for group, index in permutation.indices.items()}


def permute_softly(spec: PermutationSpec, matrices: Matrices, state: StateDict) -> StateDict:
    """Permute the hidden units of a checkpoint softly; for the matrices of a permutation, equivalent to ``permute``.

    Args:
        spec: the architecture's spec; the state fits it (``check_fits``).
        matrices: of every group, in the dtype of the state's floats; doubly stochastic ones preserve every sum.
        state: every tensor of the spec by name; not modified. Integer tensors are returned unchanged.

    Returns:
        New tensors, differentiable in the matrices and in the state; names that share a tensor keep sharing it.
    """
    done: dict[tuple[int, str], Tensor] = {}
    result: StateDict = {}
    for name, tensor in state.items():
        key = (id(tensor), str(spec.axes[name]))
        if key not in done:
            done[key] = _moved(spec, matrices, name, tensor) if tensor.is_floating_point() else tensor
        result[name] = done[key]
    return result


def _moved(spec: PermutationSpec, matrices: Matrices, name: str, tensor: Tensor) -> Tensor:
    """Return one tensor with the units of all its blocks permuted."""
    listed = list(blocks(tensor, spec.axes[name], spec.groups))
    if len(listed) == 1:
        return _moved_block(listed[0], matrices, spec.outer).reshape(tensor.shape)
    result = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    for source, target in zip(listed, blocks(result, spec.axes[name], spec.groups), strict=True):
        target.view.copy_(_moved_block(source, matrices, spec.outer))
    return result


def _moved_block(block: Block, matrices: Matrices, outer: Mapping[str, str]) -> Tensor:
    """Return a block with its outer groups permuted, then the inner ones."""
    moved = block.view
    groups = [dim.group if isinstance(dim, Units) else None for dim in block.dims]
    for place, group in enumerate(groups):
        if group is not None and group not in outer:
            front = moved.movedim(place, 0)
            flat = matrices[group] @ front.reshape(len(front), -1)
            moved = flat.view(front.shape).movedim(0, place)
    for place, group in enumerate(groups):
        if group is not None and group in outer:
            above = outer_place(groups, place, outer[group])
            front = moved.movedim((above, place), (0, 1))
            flat = torch.bmm(matrices[group], front.reshape(*front.shape[:2], -1))
            moved = flat.view(front.shape).movedim((0, 1), (above, place))
    return moved


#: Keeps the linear system of the gradient solvable when the matrix has become a permutation.
_RIDGE = 1e-6


def sinkhorn(scores: Tensor, *, iterations: int = 100, tolerance: float = 1e-3) -> Tensor:
    """Return the doubly stochastic matrix of scores, computed in log space.

    Args:
        scores: ``(…, n, n)``, finite, any floating dtype; already divided by the temperature.
        iterations: maximum scalings of the rows and of the columns.
        tolerance: scaling ends when every row sum is within this distance of one.

    Returns:
        Of the shape and dtype of the scores; columns sum to one, rows up to the tolerance. The gradient is that of the
        limit, by the implicit function theorem: one linear system, whatever the number of iterations.

    Source:
        Sinkhorn 1964, https://doi.org/10.1214/aoms/1177703591; as an operator Mena et al. 2018,
        https://arxiv.org/abs/1802.08665; the gradient Eisenberger et al. 2022, https://arxiv.org/abs/2205.06688.
    """
    result = _Sinkhorn.apply(scores, iterations, tolerance)
    assert isinstance(result, Tensor)
    return result


class _Sinkhorn(torch.autograd.Function):
    """The scaling, and the gradient of its limit."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, iterations: int, tolerance: float) -> Tensor:
        rows = torch.zeros_like(scores[..., :1])
        columns = torch.zeros_like(scores[..., :1, :])
        for _ in range(iterations):
            before, rows = rows, -torch.logsumexp(scores + columns, -1, keepdim=True)
            columns = -torch.logsumexp(scores + rows, -2, keepdim=True)
            if bool((rows - before).abs().max() < tolerance):
                break
        result = (scores + rows + columns).exp()
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (result,), (gradient,) = ctx.saved_tensors, grad_outputs
        return _pulled_back(result.double(), gradient.double()).to(result.dtype), None, None


def _pulled_back(matrix: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient with respect to the scores, given that with respect to the matrix.

    With ``P`` the matrix and ``G`` its gradient, it is ``P ∘ (G − α 1ᵀ − 1 βᵀ)``, where ``α`` and ``β`` make the rows
    and columns of the result sum to zero, since the sums of ``P`` are constant. ``α`` is eliminated; the remaining
    system for ``β`` is singular along 1, an irrelevant direction that is filled in.
    """
    weighted = matrix * gradient
    rows, columns = matrix.sum(-1, keepdim=True), matrix.sum(-2)
    scaled = matrix / rows
    system = torch.diag_embed(columns) - matrix.mT @ scaled + 1 / matrix.shape[-1]
    system += _RIDGE * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    wanted = weighted.sum(-2, keepdim=True).mT - scaled.mT @ weighted.sum(-1, keepdim=True)
    beta = torch.cholesky_solve(wanted, torch.linalg.cholesky(system))
    alpha = (weighted.sum(-1, keepdim=True) - matrix @ beta) / rows
    return weighted - matrix * (alpha + beta.mT)


#: Initial scores: random with a standard deviation of one, or with a lead of one on the diagonal.
Start: TypeAlias = Literal["noise", "identity"]
#: Standard deviation of the noise added to the lead, to break ties.
_TIES = 0.01


class Scoring:
    """Scores for assigning every source unit of a group to every target unit.

    Args:
        ends: the two networks.
        aim: the training objective, a function of the moved parameters of the source and a batch.
        start: the initial scores.
        temperature: divides the scores.
        hard: whether the objective uses the permutation of the best assignment, with a straight-through gradient to the
            soft one.
        generator: draws the noise.
    """

    def __init__(
        self,
        ends: EndpointPair,
        aim: Callable[[StateDict, Any], Tensor],
        *,
        start: Start,
        temperature: float,
        hard: bool,
        generator: Generator,
    ) -> None:
        if start not in get_args(Start):
            raise unknown("start of the scores", start, get_args(Start))
        if not temperature > 0:
            raise WeightspaceError(f"The temperature must be positive; found {temperature}.")
        self.ends, self.aim, self.temperature, self.hard = ends, aim, temperature, hard
        self.scores: dict[str, Tensor] = {}
        for group, lead in matrices_of(Permutation.identity(ends.spec)).items():
            noise = torch.randn(lead.shape, generator=generator)
            self.scores[group] = (noise if start == "noise" else lead + _TIES * noise).requires_grad_()

    @property
    def leaves(self) -> list[Tensor]:
        """The scores."""
        return list(self.scores.values())

    def loss(self, batch: Any) -> Tensor:
        """Return the training objective, differentiable in the scores."""
        return self.aim(permute_softly(self.ends.spec, self._matrices(), self.ends.movable), batch)

    def _matrices(self) -> dict[str, Tensor]:
        soft = {group: sinkhorn(scores / self.temperature) for group, scores in self.scores.items()}
        if not self.hard:
            return soft
        hard = matrices_of(Permutation(self.ends.spec, self.indices()))
        return {group: hard[group] + (matrix - matrix.detach()) for group, matrix in soft.items()}

    @torch.no_grad()
    def indices(self) -> Indices:
        """Return the best assignment of every group for its scores, the limit of zero temperature."""
        return {
            group: assign(scores) if scores.ndim == 2 else torch.stack([assign(one) for one in scores])
            for group, scores in self.scores.items()
        }
