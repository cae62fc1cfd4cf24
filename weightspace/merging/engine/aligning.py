"""Networks that were trained apart, brought into one basin before they are merged: permuted copies of the sources."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.checkpoints.contents import read_contents
from weightspace.errors import WeightspaceError
from weightspace.merging.engine.plan import Plan
from weightspace.suggestions import unknown

if TYPE_CHECKING:
    from weightspace.symmetry import PermutationSpec

#: Name on the command line -> what it is.
ALIGNMENTS = {
    "weight-matching": "Git Re-Basin's weight matching, Ainsworth et al. 2023, https://arxiv.org/abs/2209.04836"
}


@dataclass(frozen=True)
class Alignment:
    """How networks are aligned.

    Attributes:
        spec: what may be permuted, verified for their architecture.
        method: a name in ``ALIGNMENTS``.
        seed: of the matching.
    """

    spec: PermutationSpec
    method: str = "weight-matching"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ALIGNMENTS:
            raise unknown("alignment", self.method, ALIGNMENTS)

    def described(self) -> dict[str, Any]:
        """Return what the metadata says of it."""
        return {"align": self.method, "seed": self.seed, "spec": self.spec.digest}


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
    from weightspace.checkpoints import load_checkpoint, save_checkpoint
    from weightspace.matching import weight_matching
    from weightspace.symmetry import permute

    first = next(job.base or job.inputs[0] for job in plan.jobs if job.kind == "merge")[0]
    target = load_checkpoint(plan.members[first].contents.path)
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
            source = load_checkpoint(member.contents.path)
            found = weight_matching(alignment.spec, target, source, seed=alignment.seed)
            copy = folder / f"{index}.safetensors"
            save_checkpoint(permute(alignment.spec, found.permutation, source), copy)
            members[index] = replace(member, contents=replace(read_contents(copy), tied=member.contents.tied))
    return replace(plan, members=tuple(members))
