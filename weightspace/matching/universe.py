"""Cycle-consistent matching: Frank–Wolfe over the soft permutations of all models into one universe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.matching.ascent import Sweep
from weightspace.matching.basin import Basin
from weightspace.matching.many import ManyMatching
from weightspace.matching.relaxed import Relaxation, stiff_groups
from weightspace.symmetry import Permutation, PermutationSpec

#: Frank–Wolfe ends where the best direction rises less steeply than this share of the first one. Turns do the rest in
#: less time, and end as high as after ten times as small a share.
_STEEPNESS = 1e-2


@dataclass(frozen=True)
class Step:
    """A fact for a progress display: one step of Frank–Wolfe from one of its starts (from 1) was taken."""

    start: int
    number: int
    objective: float


@checked
def cycle_consistent(
    spec: PermutationSpec,
    states: Sequence[StateDict],
    *,
    seed: int = 0,
    max_steps: int = 200,
    max_sweeps: int = 100,
    on_step: Callable[[Step], None] | None = None,
    on_sweep: Callable[[Sweep], None] | None = None,
) -> ManyMatching:
    """Match several models by one permutation each, into a universe, so that every cycle of maps is the identity.

    Frank–Wolfe maximises Σ_{i<j} ⟨P_i θ_i, P_j θ_j⟩ over doubly stochastic matrices of all groups of all models at
    once: the best direction is an assignment a matrix, and the step along it is the best there is, the objective being
    a known polynomial there. Each matrix in turn then becomes the permutation that is best beside the others, and the
    models take turns as in ``merge_many``. One run starts from the models as they came, as in the paper, another from
    all but the first spread evenly over all permutations; the best of these and of ``merge_many`` is returned.

    Groups inside another that share a block with a second one (grouped convolutions) are permuted by turns only.

    Args:
        spec: the architecture's spec.
        states: two models or more; not changed. Of each block of a model that groups stand in ``m`` times, ``2^m``
            copies are held.
        seed: order of the turns.
        max_steps: steps of Frank–Wolfe from each start, at most.
        max_sweeps: turns of every model, at most.
        on_step: told of every step.
        on_sweep: told of every sweep of turns; ``moved`` counts models.

    Returns:
        One permutation a model, their mean, and Σ_{i<j} ⟨π_i θ_i, π_j θ_j⟩ over the parameters that the spec
        permutes: as the models came, after every sweep of ``merge_many``, and the best so far after each run.

    Raises:
        CheckpointError: a model does not fit the spec or holds non-finite weights.
        WeightspaceError: there are fewer than two models, their integer tensors differ, or a limit is below one.

    Source:
        Crisostomi et al. 2024, https://arxiv.org/abs/2405.17897, with another line search, start and rounding.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> spec = ws.derive_spec(network, (torch.zeros(1, 4),))
        >>> a = network.state_dict()
        >>> b, c = (ws.permute(spec, ws.Permutation.random(spec, seed=seed), a) for seed in (1, 2))
        >>> matching = ws.cycle_consistent(spec, [a, b, c])
        >>> torch.allclose(matching.merged["0.weight"], a["0.weight"])  # all three are permuted copies of one network
        True
    """
    for name, limit in (("max_steps", max_steps), ("max_sweeps", max_sweeps)):
        if limit < 1:
            raise WeightspaceError(f"{name} must be at least 1, got {limit}.")
    generator = torch.Generator().manual_seed(seed)
    basin = Basin(spec, states)
    history = [basin.objective, *basin.settle(generator, max_sweeps, on_sweep)]
    best = turned = tuple(basin.permutations)
    for start, spread in enumerate((False, True), start=1):
        relaxation, fixed = _relaxed(basin, turned, spread=spread)
        for number, objective in enumerate(_climb(relaxation, max_steps), start=1):
            if on_step is not None:
                on_step(Step(start, number, objective))
        basin.place([Permutation(spec, a | b) for a, b in zip(fixed, relaxation.harden(), strict=True)])
        basin.settle(generator, max_sweeps, on_sweep)
        if basin.objective > history[-1]:
            best = tuple(basin.permutations)
        history.append(max(history[-1], basin.objective))
    basin.place(best)
    return basin.result(history)


def _relaxed(
    basin: Basin, permutations: Sequence[Permutation], *, spread: bool
) -> tuple[Relaxation, list[dict[str, Tensor]]]:
    """Return soft permutations of all groups but the stiff ones, and for every model where those groups stand."""
    spec = basin.spec
    identity, stiff = Permutation.identity(spec).indices, stiff_groups(spec, basin.states[0])
    fixed = [{**identity, **{group: one[group] for group in stiff}} for one in permutations]
    basin.place([Permutation(spec, indices) for indices in fixed])
    return Relaxation(spec, basin.moved, spread=spread), fixed


def _climb(relaxation: Relaxation, max_steps: int) -> Iterator[float]:
    """Take steps of Frank–Wolfe until the best direction hardly rises, and yield the objective after each."""
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
    """Return where a polynomial is highest between 0 and 1."""
    roots = line.deriv().trim().roots()
    inside = [float(root.real) for root in roots if abs(root.imag) < 1e-9 and 0 < root.real < 1]
    return max([1.0, *inside], key=line)
