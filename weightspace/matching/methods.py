"""The ways to match, by name: what each does, where it comes from, and how many networks it takes.

The table is read without torch, by the help of the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.matching.ascent import Sweep
    from weightspace.matching.descent import Trial
    from weightspace.matching.many import ManyMatching
    from weightspace.matching.universe import Step
    from weightspace.symmetry import PermutationSpec
    from weightspace.tasks import Task


@dataclass(frozen=True)
class MatchingMethod:
    """A row of the table.

    Attributes:
        name: on the command line.
        summary: what it does, in a line.
        source: paper and link.
        needs_task: whether it needs data and a loss.
        networks: how many it takes.
    """

    name: str
    summary: str
    source: str
    needs_task: bool
    networks: Literal["two", "two or more"]


_ROWS = (
    MatchingMethod(
        "weight-matching",
        "coordinate ascent on the inner product of the weights",
        "Ainsworth et al. 2023, https://arxiv.org/abs/2209.04836",
        needs_task=False,
        networks="two",
    ),
    MatchingMethod(
        "merge-many",
        "each network in turn to the mean of the others, by weight matching",
        "Ainsworth et al. 2023, https://arxiv.org/abs/2209.04836",
        needs_task=False,
        networks="two or more",
    ),
    MatchingMethod(
        "cycle-consistent",
        "Frank–Wolfe over soft permutations of all networks into one universe",
        "Crisostomi et al. 2024, https://arxiv.org/abs/2405.17897",
        needs_task=False,
        networks="two or more",
    ),
    MatchingMethod(
        "straight-through-many",
        "straight-through estimation by the loss of random mixtures",
        "Ito et al. 2025, https://proceedings.mlr.press/v267/ito25a.html",
        needs_task=True,
        networks="two or more",
    ),
)

#: Name -> method.
MATCHINGS: Mapping[str, MatchingMethod] = {row.name: row for row in _ROWS}


def run_many(
    method: str,
    spec: PermutationSpec,
    states: Sequence[StateDict],
    *,
    task: Task | None = None,
    seed: int = 0,
    on_fact: Callable[[Sweep | Step | Trial], None] | None = None,
) -> ManyMatching:
    """Match two networks or more by the name of a method that takes as many.

    Args:
        method: a name in ``MATCHINGS``.
        spec: the architecture's spec.
        states: not changed.
        task: for methods that need one.
        seed: of everything that the method draws.
        on_fact: told of everything that the method reports.

    Raises:
        WeightspaceError: there is no such method, it takes just two networks, or it needs a task.
    """
    from weightspace.matching.mixtures import straight_through_many
    from weightspace.matching.turns import merge_many
    from weightspace.matching.universe import cycle_consistent

    several = {name: row for name, row in MATCHINGS.items() if row.networks == "two or more"}
    if method not in several:
        raise unknown("matching of several networks", method, several)
    if method == "straight-through-many":
        if task is None:
            raise WeightspaceError(f"{method} goes by the loss: which task is it?")
        return straight_through_many(spec, task, states, seed=seed, on_trial=on_fact)
    if method == "cycle-consistent":
        return cycle_consistent(spec, states, seed=seed, on_step=on_fact, on_sweep=on_fact)
    return merge_many(spec, states, seed=seed, on_sweep=on_fact)
