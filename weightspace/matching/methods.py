"""The table of matching methods, a row each. Reading it costs no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.matching.ascent import Sweep
    from weightspace.matching.descent import Trial
    from weightspace.matching.matching import Matching
    from weightspace.symmetry import PermutationSpec
    from weightspace.tasks.protocol import Task

_GIT_REBASIN = "Ainsworth et al. 2023, https://arxiv.org/abs/2209.04836"
_PENA = "Peña et al. 2023, https://arxiv.org/abs/2212.12042"


@dataclass(frozen=True)
class MatchingMethod:
    """A row of the table.

    Attributes:
        name: on the command line.
        summary: what it does, in a line.
        source: the paper that it is from, with a link.
        objective: what ``Matching.objective`` is.
        needs_task: whether it needs data, and a network to run them through.
        function: ``file:function`` in this package. ``function(spec, task, target, source, *, seed, on_trial, …)``.
        preset: keywords of the function that make it this method.
        options: keywords of the function that are the user's.
    """

    name: str
    summary: str
    source: str
    objective: str
    needs_task: bool
    function: str
    preset: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ("steps", "learning_rate", "start")


_ROWS = (
    MatchingMethod(
        "weight-matching",
        "maximise the inner product of the weights, group by group",
        f"{_GIT_REBASIN}, section 3.2",
        "inner product of the weights",
        needs_task=False,
        function="running:by_weights",
        options=("restarts", "max_sweeps"),
    ),
    MatchingMethod(
        "activation-matching",
        "pair the units whose activations are correlated",
        f"Li et al. 2016, https://arxiv.org/abs/1511.07543; {_GIT_REBASIN}, section 3.1",
        "sum of the correlations",
        needs_task=True,
        function="running:by_activations",
        options=(),
    ),
    MatchingMethod(
        "activation-then-weights",
        "weight matching that starts where activation matching ends",
        f"{_GIT_REBASIN}, sections 3.1 and 3.2",
        "inner product of the weights",
        needs_task=True,
        function="running:by_activations_then_weights",
        options=("restarts", "max_sweeps"),
    ),
    MatchingMethod(
        "straight-through",
        "learn weights whose matching to the source has the lowest loss at the midpoint",
        f"{_GIT_REBASIN}, section 3.3",
        "validation loss at the midpoint, in nats",
        needs_task=True,
        function="straight:straight_through",
        preset={"projection": "weight-matching"},
        options=("steps", "learning_rate"),
    ),
    MatchingMethod(
        "straight-through-sinkhorn",
        "learn scores of all pairs; the forward pass sees their best assignment",
        _PENA,
        "validation loss at the midpoint, in nats",
        needs_task=True,
        function="straight:straight_through",
        preset={"projection": "sinkhorn"},
    ),
    MatchingMethod(
        "sinkhorn-midpoint",
        "learn soft permutations by the loss at the midpoint",
        _PENA,
        "validation loss at the midpoint, in nats",
        needs_task=True,
        function="rebasin:sinkhorn_rebasin",
        preset={"loss": "midpoint"},
    ),
    MatchingMethod(
        "sinkhorn-random",
        "learn soft permutations by the loss at random positions",
        _PENA,
        "validation loss at the midpoint, in nats",
        needs_task=True,
        function="rebasin:sinkhorn_rebasin",
        preset={"loss": "random"},
    ),
    MatchingMethod(
        "sinkhorn-l2",
        "learn soft permutations by the distance of the weights",
        _PENA,
        "squared distance of the weights",
        needs_task=False,
        function="rebasin:sinkhorn_rebasin",
        preset={"loss": "l2"},
    ),
)

#: Name on the command line -> method. tests/matching/test_every_method.py checks every row.
MATCHINGS: Mapping[str, MatchingMethod] = {row.name: row for row in _ROWS}


def run_matching(
    method: str,
    spec: PermutationSpec,
    target: StateDict,
    source: StateDict,
    *,
    task: Task | None = None,
    seed: int = 0,
    on_fact: Callable[[Sweep | Trial], None] | None = None,
    **options: Any,
) -> Matching:
    """Permute a source towards a target by a method of the table.

    Args:
        method: a name in ``MATCHINGS``.
        spec: the architecture's spec.
        target: stays as it is.
        source: the checkpoint to permute; not changed.
        task: that both were trained for; some methods need it (``needs_task``).
        seed: of whatever the method draws.
        on_fact: told of every sweep or trial, where the method has them.
        options: those that the method has (``options``); None is as good as not given.

    Raises:
        CheckpointError: a checkpoint does not fit the spec or the task, or holds non-finite weights.
        WeightspaceError: no such method or option, or no task for a method that needs one.
    """
    if method not in MATCHINGS:
        raise unknown("matching method", method, MATCHINGS)
    row = MATCHINGS[method]
    given = {name: value for name, value in options.items() if value is not None}
    if odd := [name for name in given if name not in row.options]:
        has = f"its options are {', '.join(row.options)}" if row.options else "it has none"
        raise WeightspaceError(f"The method {method!r} has no option {odd[0]!r}; {has}.")
    if row.needs_task and task is None:
        raise WeightspaceError(f"The method {method!r} looks at data: give it the task of the networks (--task).")
    file, _, function = row.function.partition(":")
    call = getattr(importlib.import_module(f"weightspace.matching.{file}"), function)
    return call(spec, task, target, source, seed=seed, on_trial=on_fact, **row.preset, **given)
