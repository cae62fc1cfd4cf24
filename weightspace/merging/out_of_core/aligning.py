"""Alignment of independently trained networks before a merge, by copies of the sources that are moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.checkpoints.read_metadata import read_contents
from weightspace.errors import WeightspaceError
from weightspace.matching.registry import MATCHINGS, check_task
from weightspace.merging.plan.plan import Member, Plan
from weightspace.progress import Progress
from weightspace.suggestions import unknown

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.symmetry import PermutationSpec, SymmetrySpec
    from weightspace.tasks.protocol import Task


@dataclass(frozen=True)
class Alignment:
    """Alignment of the networks of a merge.

    Attributes:
        spec: verified for their architecture; a ``SymmetrySpec`` for methods that use all symmetries.
        method: a name in ``weightspace.matching.MATCHINGS``: a method that matches two networks.
        seed: seed of the matching.
        task: the task that the networks were trained for; some methods need it.
        on_matched: called for every matched network with the target's source and weights, then its own, moved.
        on_progress: called as by ``match``, with the network that is matched as the event's ``name``.

    Raises:
        WeightspaceError: the method does not exist, or needs a task and has none.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> spec = ws.derive_spec(task.network(), task.example_args)
        >>> ws.save_checkpoint(a, "a.safetensors")
        >>> ws.save_checkpoint(b, "b.safetensors")
        >>> report = ws.merge_files(["a.safetensors", "b.safetensors"], "merged.safetensors", align=ws.Alignment(spec))
        >>> report.tensors
        8
    """

    spec: PermutationSpec | SymmetrySpec
    method: str = "weight-matching"
    seed: int = 0
    task: Task | None = None
    on_matched: Callable[[str, StateDict, str, StateDict], None] | None = None
    on_progress: Callable[[Progress], None] | None = None

    def __post_init__(self) -> None:
        if self.method not in MATCHINGS:
            raise unknown("alignment", self.method, MATCHINGS)
        check_task(MATCHINGS[self.method], self.task)

    def described(self) -> dict[str, Any]:
        """Return the alignment's entries in the metadata."""
        entries = {"align": self.method, "seed": self.seed, "spec": self.spec.digest}
        if self.task is not None and MATCHINGS[self.method].needs_task:
            entries["align_task"] = self.task.name
        return entries


def aligned(plan: Plan, alignment: Alignment, folder: Path) -> Plan:
    """Return the plan with moved copies of its checkpoints; the function of the base, or of the first model, stays.

    Args:
        plan: a plan of models that are merged whole.
        alignment: the alignment.
        folder: where the copies are written; those of an interrupted run are written again.

    Raises:
        CheckpointError: a checkpoint cannot be read or does not fit the spec, or writing fails.
        WeightspaceError: a model has an adapter, or evidence that was collected before it was permuted.
    """
    from weightspace.checkpoints.reader import CheckpointReader
    from weightspace.matching import match

    first = next(job.base or job.inputs[0] for job in plan.jobs if job.merges)[0]
    target = CheckpointReader(plan.members[first].contents).state()
    members = list(plan.members)
    for index, member in enumerate(members):
        if member.adapter is not None:
            raise WeightspaceError(f"{member.source}: a model with an adapter cannot be aligned. Merge the two first.")
        if member.evidence is not None:
            raise WeightspaceError(
                f"{member.source} has evidence, which alignment would invalidate, since it depends on the order of the "
                "units. Match and permute the model first (weightspace match, permute), then collect its evidence."
            )
        if index != first:
            source = CheckpointReader(member.contents).state()
            found = match(
                alignment.spec,
                target,
                source,
                alignment.method,
                task=alignment.task,
                seed=alignment.seed,
                on_progress=_named(alignment.on_progress, member.source),
            )
            canonical, moved = found.apply(target, source)
            members[index] = _copied(member, moved, folder / f"{index}.safetensors")
            if canonical is not target and members[first] is plan.members[first]:
                members[first] = _copied(members[first], canonical, folder / f"{first}.safetensors")
            if alignment.on_matched is not None:
                alignment.on_matched(members[first].source, canonical, member.source, moved)
    return replace(plan, members=tuple(members))


def _named(on_progress: Callable[[Progress], None] | None, name: str) -> Callable[[Progress], None] | None:
    """Return a callback whose events have a name."""
    return None if on_progress is None else lambda event: on_progress(replace(event, name=name))


def _copied(member: Member, state: StateDict, path: Path) -> Member:
    """Return a member that is read from a copy with other weights."""
    from weightspace.checkpoints import save_checkpoint

    save_checkpoint(state, path)
    return replace(member, contents=replace(read_contents(path), tied=member.contents.tied))
