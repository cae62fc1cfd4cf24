"""Weight matching: permute the units of one network until its weights lie close to another's.

The convention: the *source* is permuted, towards the *target*, which stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.matching.attention import warn_of_attention
from weightspace.matching.coordinate_ascent import AscentResult, CoordinateAscent, Workers, match
from weightspace.matching.gains import Family, pair_blocks
from weightspace.matching.result import Matching, check_matchable, matched
from weightspace.progress import Progress
from weightspace.symmetry import Permutation, PermutationSpec
from weightspace.tasks.protocol import Task


@checked
def weight_matching(
    spec: PermutationSpec,
    target: StateDict,
    source: StateDict,
    *,
    task: Task | None = None,
    seed: int = 0,
    start: Permutation | None = None,
    restarts: int = 0,
    max_sweeps: int = 100,
    threads: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Matching:
    """Permute a source towards a target by coordinate ascent on the inner product of their weights.

    One group at a time, the others held, gets the best permutation there is (an assignment problem), unless that does
    not improve the objective. The start is the better of the identity and a matching outward from inputs and outputs.

    Networks with attention may end further apart in loss: the loss midway between two small ViTs was 1.44 unmatched,
    1.48 so, and .47 by ``activation_matching``.

    Args:
        spec: the architecture's spec.
        target: the checkpoint to match; not changed.
        source: the checkpoint to permute; not changed.
        task: as in all matching methods; this one looks at weights alone.
        seed: order of the groups in each sweep, and the starts of restarts.
        start: where to begin instead, as another matching left it.
        restarts: further ascents from random permutations; the highest objective wins.
        max_sweeps: passes over all groups of one ascent, at most.
        threads: groups solved side by side, by default as many as torch has threads; the result is the same.
        on_progress: told of every ``"sweep"``, with the objective.

    Returns:
        The permutation, with the objective Σ⟨target, π(source)⟩ at the identity (or ``start``) and after every sweep.

    Raises:
        CheckpointError: a checkpoint does not fit the spec or holds non-finite weights.
        WeightspaceError: a number is out of range, or ``start`` belongs to another spec (SpecError).

    Warns:
        WeightspaceWarning: the spec has weights of attention.

    Source:
        Ainsworth et al. 2023, https://arxiv.org/abs/2209.04836, algorithm 1.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> spec, a = ws.derive_spec(task.network(), task.example_args), task.network().state_dict()
        >>> planted = ws.Permutation.random(spec, seed=0)
        >>> ws.weight_matching(spec, a, ws.permute(spec, planted, a)).permutation == planted.inverse()
        True
    """
    warn_of_attention("weight-matching", spec.axes)
    options: dict[str, Any] = {"restarts": restarts, "max_sweeps": max_sweeps, "threads": threads}
    return match_weights(spec, target, source, seed=seed, start=start, on_progress=on_progress, **options)


def match_weights(
    spec: PermutationSpec,
    target: StateDict,
    source: StateDict,
    *,
    seed: int = 0,
    start: Permutation | None = None,
    restarts: int = 0,
    max_sweeps: int = 100,
    threads: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Matching:
    """Return the result of ``weight_matching`` as a step of other methods, without its warning."""
    check_limits(max_sweeps=(max_sweeps, 1), restarts=(restarts, 0), threads=(threads, 1))
    check_matchable(spec, target, source, start)
    generator, first = torch.Generator().manual_seed(seed), dict((start or Permutation.identity(spec)).indices)
    with Workers(threads or torch.get_num_threads()) as workers:
        pairs = pair_blocks(spec, target, source)
        climb = CoordinateAscent(spec, pairs, workers, max_sweeps=max_sweeps, on_progress=on_progress)
        best = _best_ascent(climb, first, start is None, restarts, generator)
        history = (climb.objective(first), *best.history)
    return matched(spec, target, source, Permutation(spec, best.indices), history, converged=best.converged)


def _best_ascent(
    climb: CoordinateAscent, first: dict[str, Tensor], is_free: bool, restarts: int, generator: Generator
) -> AscentResult:
    """Return the highest of an ascent from the first permutations, or a better start if it is free, and of restarts."""
    start = max(first, first | outward_start(climb.families), key=climb.objective) if is_free else first
    best = climb.ascend(start, generator)
    for _ in range(restarts):
        drawn = Permutation.random(climb.spec, seed=int(torch.randint(2**62, (), generator=generator)))
        best = max(best, climb.ascend(dict(drawn.indices), generator), key=lambda one: one.history[-1])
    return best


def check_limits(**limits: tuple[int | None, int]) -> None:
    """Raise a WeightspaceError if a number is below its least value."""
    for name, (number, least) in limits.items():
        if number is not None and number < least:
            raise WeightspaceError(f"{name} must be at least {least}, got {number}.")


def outward_start(listed: list[Family], known: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return permutations of the groups that can be reached by working outward from what is known.

    Args:
        listed: the families.
        known: permutations that stay as they are, to work outward from as well.
    """
    result = dict(known or {})
    waiting = [family for family in listed if family.pairs and family.group not in result]
    while waiting:
        family = max(waiting, key=lambda one: _known_share(one, result))  # the first of equals
        if not _known_share(family, result):
            break
        result |= match(family, result)
        waiting.remove(family)
    return result


def _known_share(family: Family, indices: dict[str, Tensor]) -> float:
    """Return the share of a family's weights whose other groups have been matched."""
    members = family.members()
    sizes = [(pair.target.numel(), {group for group in pair.groups if group} - set(members)) for pair in family.pairs]
    known = sum(size for size, others in sizes if others <= indices.keys())
    return known / sum(size for size, _ in sizes)
