"""Alignment of several networks: each in turn to the mean of the others, in the basin of the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import torch

from weightspace.arguments import checked
from weightspace.arithmetic.mean import mean
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.matching.aligning.alignment import align
from weightspace.matching.aligning.closed_form import ascend
from weightspace.matching.aligning.inner_products import all_pairs, families, inner_product
from weightspace.matching.aligning.on_data import ByOutputs, align_on_data
from weightspace.progress import Progress
from weightspace.reprs import brief
from weightspace.symmetry.kinds.canonicalise import canonicalise
from weightspace.symmetry.kinds.element import Element
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec
from weightspace.tasks.protocol import Task

#: Maximum passes over all groups when a network is aligned to the mean of the others.
_SWEEPS = 100


@brief
@dataclass(frozen=True)
class ManySymmetryMatching:
    """Elements that bring several networks into one basin, and the mean of the moved networks.

    Attributes:
        elements: one per network, for its canonical weights; that of the first is the identity.
        merged: the mean of the moved canonical weights.
        objective: with a task, minus the divergence of the mean's outputs from the mean logits of all networks, in
            nats; otherwise Σ_{i<j} ⟨g_i θ_i, g_j θ_j⟩; initially and after every sweep. It never decreases.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> from weightspace.matching import match_many
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> spec = ws.derive_spec(network, (torch.randn(3, 4),), symmetry="full")  # orders and signs of the units
        >>> a = network.state_dict()
        >>> others = [{name: torch.randn_like(tensor) for name, tensor in a.items()} for _ in range(2)]
        >>> matching = match_many(spec, [a, *others], "full-many")
        >>> len(matching.elements), sorted(matching.merged)
        (3, ['0.bias', '0.weight', '2.bias', '2.weight'])
    """

    elements: tuple[Element, ...]
    merged: StateDict
    objective: tuple[float, ...]


@checked
def align_many(
    spec: SymmetrySpec,
    states: Sequence[StateDict],
    *,
    task: Task | None = None,
    seed: int = 0,
    max_sweeps: int = 10,
    on_progress: Callable[[Progress], None] | None = None,
) -> ManySymmetryMatching:
    """Bring two or more networks into one basin by all symmetries of their architecture.

    All are aligned to the first one, in closed form. Then each in turn is aligned to the mean of the others, which is
    kept if it raises the objective, until no network moves.

    Args:
        spec: of the architecture, from ``derive_spec(…, symmetry="full")``.
        states: at least two networks; not modified.
        task: builds the network and provides training batches; without one, alignment is by weights.
        seed: determines the order of the batches, and of the networks in each sweep.
        max_sweeps: maximum number of sweeps, in which every network takes one turn.
        on_progress: called after every ``"sweep"``, with the objective.

    Raises:
        CheckpointError: a network doesn't fit the spec or the task, or has non-finite weights.
        SpecError: the spec has only permutations, or a norm of a network cannot be folded.
        WeightspaceError: there are fewer than two networks.

    Source:
        Ainsworth et al. 2023, https://arxiv.org/abs/2209.04836, algorithm 3, with the symmetries of ``align``.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> from weightspace.matching import align_many
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
        >>> spec = ws.derive_spec(network, (torch.randn(3, 4),), symmetry="full")
        >>> a = ws.canonicalise(spec, network.state_dict())
        >>> b, c = (ws.Element.random(spec, seed=seed).apply(a) for seed in range(2))  # the same function
        >>> torch.allclose(align_many(spec, [a, b, c]).merged["0.weight"], a["0.weight"])
        True
    """
    if len(states) < 2:
        raise WeightspaceError(f"Expected at least two networks to bring into one basin; found {len(states)}.")
    aligned = [align(spec, states[0], state, task=task, seed=seed).element for state in states[1:]]
    elements = [Element.identity(spec), *aligned]
    canonical = [canonicalise(spec, state) for state in states]
    moved = [element.apply(state) for element, state in zip(elements, canonical, strict=True)]
    judge = _ByWeights(spec) if task is None else ByOutputs(task, canonical, seed=seed)
    turn, generator = partial(_turn, spec, task, seed), torch.Generator().manual_seed(seed)
    values = [judge.objective(moved)]
    for sweep in range(1, max_sweeps + 1):
        order = torch.randperm(len(states), generator=generator).tolist()
        elements, moved, value = _sweep(elements, moved, values[-1], order, judge, turn)
        values.append(value)
        if on_progress is not None:
            on_progress(Progress("sweep", sweep, max_sweeps, value))
        if value == values[-2]:
            break
    elements = [elements[0].inverse().compose(element) for element in elements]
    return ManySymmetryMatching(tuple(elements), _merged(elements, canonical, states[0]), tuple(values))


def _sweep(
    elements: Sequence[Element],
    moved: Sequence[StateDict],
    best: float,
    order: Iterable[int],
    judge: ByOutputs | _ByWeights,
    turn: Callable[[Sequence[StateDict], int], Element],
) -> tuple[list[Element], list[StateDict], float]:
    """Return elements, moved networks and objective after each network in turn was moved, if that is better."""
    elements, moved = list(elements), list(moved)
    for index in order:
        change = turn(moved, index)
        candidate = [change.apply(state) if other == index else state for other, state in enumerate(moved)]
        value = judge.objective(candidate)
        if value > best:
            elements[index], moved, best = change.compose(elements[index]), candidate, value
    return elements, moved, best


def _merged(elements: Sequence[Element], canonical: Sequence[StateDict], first: StateDict) -> StateDict:
    """Return the mean of the moved networks, in the dtypes of the first one."""
    moved = [element.apply(state) for element, state in zip(elements, canonical, strict=True)]
    return {name: tensor.to(first[name].dtype) for name, tensor in mean(moved).items()}


def _turn(spec: SymmetrySpec, task: Task | None, seed: int, moved: Sequence[StateDict], index: int) -> Element:
    """Return the element that brings a network to the mean of the others."""
    target = mean([state for other, state in enumerate(moved) if other != index])
    if task is None:
        return Element.of(spec, ascend(families(spec, target, moved[index]), {}, max_sweeps=_SWEEPS).maps)
    return align_on_data(spec, target, moved[index], task, seed=seed)[0]


@dataclass(frozen=True)
class _ByWeights:
    """The objective of an alignment by weights: the inner products of all pairs of networks."""

    spec: SymmetrySpec

    def objective(self, moved: Sequence[StateDict]) -> float:
        """Return Σ_{i<j} ⟨θ_i, θ_j⟩."""
        listed = (all_pairs(families(self.spec, a, b)) for a, b in combinations(moved, 2))
        return sum(inner_product(self.spec, pairs, {}) for pairs in listed)
