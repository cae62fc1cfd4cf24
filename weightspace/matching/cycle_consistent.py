"""Cycle-consistent matching: Frank–Wolfe over the soft permutations of all models into a shared universe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.matching.coordinate_ascent import match_by
from weightspace.matching.gains import Family, Indices, Pair, PairGains, Place, contract, families, pair_blocks
from weightspace.matching.multi_model import ManyMatching, ModelSet
from weightspace.matching.weight_matching import check_limits
from weightspace.progress import Progress
from weightspace.symmetry import Permutation, PermutationSpec
from weightspace.symmetry.pattern import Block
from weightspace.symmetry.permutation import permute_block
from weightspace.tasks.protocol import Task

#: Frank–Wolfe ends when the best direction rises less steeply than this fraction of the first one. Alternating matching
#: does the rest faster, and reaches the same objective as with a tenth of this fraction.
_STEEPNESS = 1e-2


@checked
def cycle_consistent(
    spec: PermutationSpec,
    states: Sequence[StateDict],
    *,
    task: Task | None = None,
    seed: int = 0,
    max_steps: int = 200,
    max_sweeps: int = 100,
    on_progress: Callable[[Progress], None] | None = None,
) -> ManyMatching:
    """Match several models by one permutation each into a shared universe, so that every cycle of maps is the identity.

    Frank–Wolfe maximises Σ_{i<j} ⟨P_i θ_i, P_j θ_j⟩ over doubly stochastic matrices of all groups of all models at
    once, with exact line search. Then each matrix in turn is replaced by the permutation that is best given the others,
    and the models take turns as in ``merge_many``. One run starts from the models as given, another from uniform
    matrices for all models but the first; the best of these and of ``merge_many`` is returned. Inner groups that share
    a block with another inner group (grouped convolutions) are permuted only while the models take turns.

    Args:
        spec: the architecture's spec.
        states: at least two models; not modified. For a block with ``m`` groups, ``2^m`` copies are held.
        task: unused, part of the signature of all matching methods; this one uses only weights.
        seed: determines the order in which the models take turns.
        max_steps: maximum Frank–Wolfe steps from each start.
        max_sweeps: maximum number of sweeps, in which every model takes one turn.
        on_progress: called after every ``"step"`` (with its ``start``, from 1) and ``"sweep"``, with the objective.

    Returns:
        Permutations, their mean, and the objective: initially, after every sweep, and the best of each run.

    Raises:
        CheckpointError: a model doesn't fit the spec or has non-finite weights.
        WeightspaceError: fewer than two models, different integer tensors, or a limit below one.

    Source:
        Crisostomi et al. 2024, https://arxiv.org/abs/2405.17897, with a different line search, start and rounding.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> spec, a = ws.derive_spec(network, (torch.zeros(1, 4),)), network.state_dict()
        >>> b = ws.permute(spec, ws.Permutation.random(spec, seed=1), a)
        >>> torch.allclose(ws.cycle_consistent(spec, [a, b]).merged["0.weight"], a["0.weight"])
        True
    """
    check_limits(max_steps=(max_steps, 1), max_sweeps=(max_sweeps, 1))
    generator = torch.Generator().manual_seed(seed)
    basin = ModelSet(spec, states)
    history = [basin.objective, *basin.settle(generator, max_sweeps, on_progress)]
    best = turned = tuple(basin.permutations)
    for start, spread in enumerate((False, True), start=1):
        basin.place(_hardened(basin, turned, start, spread, max_steps, on_progress))
        basin.settle(generator, max_sweeps, on_progress)
        if basin.objective > history[-1]:
            best = tuple(basin.permutations)
        history.append(max(history[-1], basin.objective))
    basin.place(best)
    return basin.result(history)


def _hardened(
    basin: ModelSet,
    turned: Sequence[Permutation],
    start: int,
    spread: bool,
    max_steps: int,
    on_progress: Callable[[Progress], None] | None,
) -> list[Permutation]:
    """Return the permutations that Frank–Wolfe reaches from one of its starts."""
    relaxation, fixed = _relaxed(basin, turned, spread=spread)
    for step, objective in enumerate(_climb(relaxation, max_steps), start=1):
        if on_progress is not None:
            on_progress(Progress("step", step, value=objective, details={"start": start}))
    return [Permutation(basin.spec, a | b) for a, b in zip(fixed, relaxation.harden(), strict=True)]


def _relaxed(
    basin: ModelSet, permutations: Sequence[Permutation], *, spread: bool
) -> tuple[Relaxation, list[dict[str, Tensor]]]:
    """Return soft permutations of all but the stiff groups, and the permutations of the stiff groups per model."""
    spec = basin.spec
    identity, stiff = Permutation.identity(spec).indices, stiff_groups(spec, basin.states[0])
    fixed = [{**identity, **{group: one[group] for group in stiff}} for one in permutations]
    basin.place([Permutation(spec, indices) for indices in fixed])
    return Relaxation(spec, basin.moved, spread=spread), fixed


def _climb(relaxation: Relaxation, max_steps: int) -> Iterator[float]:
    """Take Frank–Wolfe steps until the best direction hardly rises, yielding the objective after each."""
    steepest = 0.0
    for _ in range(max_steps):
        directions = relaxation.directions()
        line = relaxation.line(directions)
        slope = line.deriv()(0)
        steepest = max(steepest, slope)
        if slope <= _STEEPNESS * steepest:
            break
        share = _highest(line)
        relaxation.advance(directions, share)
        yield float(line(share))


def _highest(line: Polynomial) -> float:
    """Return the argmax of a polynomial between 0 and 1."""
    roots = line.deriv().trim().roots()
    inside = [float(root.real) for root in roots if abs(root.imag) < 1e-9 and 0 < root.real < 1]
    return max([1.0, *inside], key=line)


#: A tensor for each power of ``t``.
_Line = list[Tensor]


class Relaxation:
    """Soft permutations of several models.

    A family is soft if no block has two of its inner groups; others, as in grouped convolutions, stay fixed. An inner
    group and its outer one share one matrix.

    Args:
        spec: the architecture's spec.
        states: float tensors in main memory, one state dict per model.
        spread: whether all models but the first start from uniform matrices, instead of the identity.
    """

    def __init__(self, spec: PermutationSpec, states: Sequence[StateDict], *, spread: bool) -> None:
        self.spec = spec
        pairs = [pair_blocks(spec, states[0], state) for state in states]
        self.families = [one for one in families(spec, pairs[0]) if one.pairs and _is_soft(one)]
        self.blocks = [
            [_SoftBlock(pair.source, self._places(pair), spec.outer, spread=spread and model > 0) for pair in listed]
            for model, listed in enumerate(pairs)
        ]
        self._whole = [_sum([block.soft for block in blocks]) for blocks in zip(*self.blocks, strict=True)]

    def directions(self) -> list[dict[str, Tensor]]:
        """Return for every model the permutations along which the objective rises most steeply."""
        return [
            {group: index for family in self.families for group, index in self._best(model, family).items()}
            for model in range(len(self.blocks))
        ]

    def line(self, permutations: Sequence[Indices]) -> Polynomial:
        """Return the objective on the segment towards permutations, for ``t`` from 0 to 1."""
        total = Polynomial([0.0])
        for blocks in zip(*self.blocks, strict=True):
            lines = [block.line(indices)[-1] for block, indices in zip(blocks, permutations, strict=True)]
            whole = [_sum(power) for power in zip(*lines, strict=True)]
            total += (_square(whole) - sum((_square(line) for line in lines), Polynomial([0.0]))) / 2
        return total

    def advance(self, permutations: Sequence[Indices], share: float) -> None:
        """Move by a fraction of the distance towards permutations; groups without one stay."""
        for number, blocks in enumerate(zip(*self.blocks, strict=True)):
            moved = [block.advance(indices, share) for block, indices in zip(blocks, permutations, strict=True)]
            if any(moved):
                self._whole[number] = _sum([block.soft for block in blocks])

    def harden(self) -> list[dict[str, Tensor]]:
        """Replace soft permutations by permutations, one after the other, and return those of every model.

        Each is optimal given the current state of the others. The objective is linear in it, unless its group is twice
        in a block, and therefore doesn't decrease.
        """
        result: list[dict[str, Tensor]] = [{} for _ in self.blocks]
        for model, found in enumerate(result):
            for family in self.families:
                found |= (change := self._best(model, family))
                self.advance([change if other == model else {} for other in range(len(result))], 1.0)
        return result

    def _places(self, pair: Pair) -> list[Place]:
        return [place for family in self.families for place in family.places(pair)]

    def _best(self, model: int, family: Family) -> dict[str, Tensor]:
        return match_by(family, self._gains(model, (family.group,)), partial(self._pair_gains, model, family))

    def _pair_gains(self, model: int, family: Family, inner: str) -> PairGains:
        gains = self._gains(model, (family.group, inner))
        return lambda i, j: gains[i, :, j]

    def _gains(self, model: int, rows: tuple[str, ...]) -> Tensor:
        """Return the derivative of the objective with respect to a matrix of one model."""
        shape = tuple(self.spec.groups[group] for group in rows) * 2
        parts = [
            contract(whole - block.soft, block.without(number), place.dims)
            for block, whole in zip(self.blocks[model], self._whole, strict=True)
            for number, place in enumerate(block.places)
            if place.rows == rows
        ]
        return _sum(parts).view(shape) if parts else torch.zeros(shape)


def stiff_groups(spec: PermutationSpec, state: StateDict) -> list[str]:
    """Return the groups that can't be relaxed: those of families with two inner groups in one block."""
    listed = families(spec, pair_blocks(spec, state, state))
    return [group for family in listed if not _is_soft(family) for group in family.members()]


def _is_soft(family: Family) -> bool:
    return not family.inner or family.is_linear()


class _SoftBlock:
    """A block under soft permutations, with the partial products of them.

    Attributes:
        places: the dimensions that the soft permutations act on.
        tables: ``tables[mask]`` is the block with the places of the set bits permuted.
    """

    def __init__(self, block: Block, places: Sequence[Place], outer: Mapping[str, str], *, spread: bool) -> None:
        self.dims, self.places, self.outer = block.dims, places, outer
        self.tables = [block.view]
        for place in places:
            self.tables += [
                table.mean(place.dims, keepdim=True).expand_as(table) if spread else table for table in self.tables
            ]

    @property
    def soft(self) -> Tensor:
        """The block with all places permuted."""
        return self.tables[-1]

    def without(self, number: int) -> Tensor:
        """Return the block with all places but one permuted."""
        return self.tables[-1 - (1 << number)]

    def line(self, indices: Indices) -> list[_Line]:
        """Return all tables on the segment towards permutations, as polynomials."""
        lines = [[table] for table in self.tables]
        for number, place in enumerate(self.places):
            if place.rows[0] in indices:
                for mask in range(len(lines)):
                    if not mask >> number & 1:
                        moved = [self._moved(power, place, indices) for power in lines[mask]]
                        lines[mask | 1 << number] = _between(lines[mask | 1 << number], moved)
        return lines

    def advance(self, indices: Indices, share: float) -> bool:
        """Move by a fraction of the distance towards permutations, and return whether any of them acts here."""
        self.tables = [_at(line, share) for line in self.line(indices)]
        return any(place.rows[0] in indices for place in self.places)

    def _moved(self, tensor: Tensor, place: Place, indices: Indices) -> Tensor:
        dims = tuple(dim if number in place.dims else None for number, dim in enumerate(self.dims))
        return permute_block(Block(tensor, dims), indices, self.outer)  # type: ignore[arg-type]


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0)


def _between(start: _Line, goal: _Line) -> _Line:
    """Return ``(1 − t) start + t goal`` of two polynomials of equal degree."""
    steps = [b - a for a, b in zip(start, goal, strict=True)]
    return [start[0], *(a + step for a, step in zip(start[1:], steps[:-1], strict=True)), steps[-1]]


def _at(line: _Line, share: float) -> Tensor:
    result = line[-1]
    for power in reversed(line[:-1]):
        result = power + share * result
    return result


def _square(line: _Line) -> Polynomial:
    """Return ‖line‖² as a polynomial, accumulated in float64."""
    powers = [0.0] * (2 * len(line) - 1)
    for i, a in enumerate(line):
        for j, b in enumerate(line):
            powers[i + j] += float(torch.sum(a * b, dtype=torch.float64))
    return Polynomial(powers)
