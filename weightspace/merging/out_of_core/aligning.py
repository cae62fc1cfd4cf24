"""Networks that were trained apart, brought into one basin before they are merged: permuted copies of the sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.checkpoints.metadata import read_contents
from weightspace.errors import WeightspaceError
from weightspace.matching.registry import MATCHINGS, check_task
from weightspace.merging.plan.plan import Plan
from weightspace.suggestions import unknown

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.symmetry import PermutationSpec
    from weightspace.tasks.protocol import Task


@dataclass(frozen=True)
class Alignment:
    """How networks are aligned.

    Attributes:
        spec: what may be permuted, verified for their architecture.
        method: a name in ``weightspace.matching.MATCHINGS``: a method that matches two networks.
        seed: of the matching.
        task: that the networks were trained for; some methods need it.
        on_matched: is told of every network that was matched: the target's source and weights, then its own, permuted.

    Raises:
        WeightspaceError: no such method, or no task for a method that needs one.

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

    spec: PermutationSpec
    method: str = "weight-matching"
    seed: int = 0
    task: Task | None = None
    on_matched: Callable[[str, StateDict, str, StateDict], None] | None = None

    def __post_init__(self) -> None:
        if self.method not in MATCHINGS:
            raise unknown("alignment", self.method, MATCHINGS)
        check_task(MATCHINGS[self.method], self.task)

    def described(self) -> dict[str, Any]:
        """Return what the metadata says of it."""
        said = {"align": self.method, "seed": self.seed, "spec": self.spec.digest}
        if self.task is not None and MATCHINGS[self.method].needs_task:
            said["align_task"] = self.task.name
        return said


def aligned(plan: Plan, alignment: Alignment, folder: Path) -> Plan:
    """Return the plan with permuted copies in the place of its checkpoints; the first one, or the base, stays.

    Args:
        plan: of models that are merged whole.
        alignment: how.
        folder: where the copies are written, those of an interrupted run over again.

    Raises:
        CheckpointError: a checkpoint cannot be read or does not fit the spec, or the disk refuses.
        WeightspaceError: a model has an adapter, or evidence that was collected before it was permuted.
    """
    from weightspace.checkpoints import save_checkpoint
    from weightspace.checkpoints.reader import CheckpointReader
    from weightspace.matching import match
    from weightspace.symmetry import permute

    first = next(job.base or job.inputs[0] for job in plan.jobs if job.merges)[0]
    target = CheckpointReader(plan.members[first].contents).state()
    members = list(plan.members)
    for index, member in enumerate(members):
        if member.adapter is not None:
            raise WeightspaceError(f"{member.source}: a model with an adapter cannot be aligned. Merge the two first.")
        if member.evidence is not None:
            raise WeightspaceError(
                f"{member.source} has evidence, which belongs to its units in their order, and would be aligned. "
                "Match and permute it first (weightspace match, permute), and collect the evidence of that."
            )
        if index != first:
            source = CheckpointReader(member.contents).state()
            found = match(alignment.spec, target, source, alignment.method, task=alignment.task, seed=alignment.seed)
            copy, moved = folder / f"{index}.safetensors", permute(alignment.spec, found.permutation, source)
            save_checkpoint(moved, copy)
            if alignment.on_matched is not None:
                alignment.on_matched(members[first].source, target, member.source, moved)
            members[index] = replace(member, contents=replace(read_contents(copy), tied=member.contents.tied))
    return replace(plan, members=tuple(members))
