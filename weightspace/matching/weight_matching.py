"""Weight matching: permute the units of one network to bring its weights close to another's.

By convention, the *source* is permuted towards the fixed *target*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.devices import check_device
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
    device: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Matching:
    """Permute a source towards a target by coordinate ascent on the inner product of their weights.

    One group at a time, with the others held, gets its optimal permutation (an assignment problem), unless that doesn't
    improve the objective. The start is the better of the identity and a matching propagated from inputs and outputs.

    For networks with attention, weight matching may raise the loss barrier: the midpoint loss of two small ViTs was
    1.44 unmatched, 1.48 with weight matching, and .47 with ``activation_matching``. ``ws.align`` uses more symmetries
    of such networks than permutations.

    Args:
        spec: the architecture's spec.
        target: the checkpoint to match; not modified.
        source: the checkpoint to permute; not modified.
        task: unused, part of the signature of all matching methods; this one uses only weights.
        seed: determines the order of the groups in each sweep, and the random restarts.
        start: initial permutation, for example the result of another matching.
        restarts: additional ascents from random permutations; the highest objective wins.
        max_sweeps: maximum passes over all groups in one ascent.
        threads: groups solved in parallel, by default as many as torch has threads; the result is the same.
        device: where products of weights are computed, by default on the CPU; assignments are solved on the CPU.
        on_progress: called after every ``"sweep"``, with the objective.

    Returns:
        The permutation, with the objective Σ⟨target, π(source)⟩ at the identity (or ``start``) and after every sweep.

    Raises:
        CheckpointError: a checkpoint doesn't fit the spec or has non-finite weights.
        WeightspaceError: a number or device is invalid, or ``start`` belongs to another spec (SpecError).

    Warns:
        WeightspaceWarning: the spec has attention weights.

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
    options: dict[str, Any] = {"restarts": restarts, "max_sweeps": max_sweeps, "threads": threads, "device": device}
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
    device: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Matching:
    """Return the result of ``weight_matching`` as a step of other methods, without its warning."""
    check_limits(max_sweeps=(max_sweeps, 1), restarts=(restarts, 0), threads=(threads, 1))
    place = device or "cpu"
    check_device(place)
    check_matchable(spec, target, source, start)
    generator, first = torch.Generator().manual_seed(seed), dict((start or Permutation.identity(spec)).indices)
    with Workers(threads or torch.get_num_threads()) as workers:
        pairs = pair_blocks(spec, target, source)
        climb = CoordinateAscent(spec, pairs, workers, max_sweeps=max_sweeps, device=place, on_progress=on_progress)
        best = _best_ascent(climb, first, start is None, restarts, generator)
        history = (climb.objective(first), *best.history)
    return matched(spec, target, source, Permutation(spec, best.indices), history, converged=best.converged)


def _best_ascent(
    climb: CoordinateAscent, first: dict[str, Tensor], is_free: bool, restarts: int, generator: Generator
) -> AscentResult:
    """Return the best of an ascent from the first permutations, or from a better start if allowed, and of restarts."""
    start = max(first, first | outward_start(climb.families), key=climb.objective) if is_free else first
    best = climb.ascend(start, generator)
    for _ in range(restarts):
        drawn = Permutation.random(climb.spec, seed=int(torch.randint(2**62, (), generator=generator)))
        best = max(best, climb.ascend(dict(drawn.indices), generator), key=lambda one: one.history[-1])
    return best


def check_limits(**limits: tuple[int | None, int]) -> None:
    """Raise a WeightspaceError if a number is below its minimum."""
    for name, (number, least) in limits.items():
        if number is not None and number < least:
            raise WeightspaceError(f"{name} must be at least {least}; found {number}.")


def outward_start(listed: list[Family], known: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return permutations of the groups that can be matched by working outward from known groups.

    Args:
        listed: the families.
        known: fixed permutations to work outward from.
    """
    result = dict(known or {})
    waiting = [family for family in listed if family.pairs and family.group not in result]
    while waiting:
        family = max(waiting, key=lambda one: _known_share(one, result))  # ties keep the first
        if not _known_share(family, result):
            break
        result |= match(family, result)
        waiting.remove(family)
    return result


def _known_share(family: Family, indices: dict[str, Tensor]) -> float:
    """Return the fraction of a family's weights whose other groups have been matched."""
    members = family.members()
    sizes = [(pair.target.numel(), {group for group in pair.groups if group} - set(members)) for pair in family.pairs]
    known = sum(size for size, others in sizes if others <= indices.keys())
    return known / sum(size for size, _ in sizes)
