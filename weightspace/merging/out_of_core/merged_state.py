"""The merged network of a plan in memory, made from mapped files; tensors that did not change are not made again."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.checkpoints.dtypes import DTYPES
from weightspace.merging.out_of_core.elements import check_masks, elements_of
from weightspace.merging.out_of_core.executor import global_pass
from weightspace.merging.out_of_core.sources import Sources
from weightspace.merging.plan.plan import Job, Plan

#: Kinds of jobs whose tensors depend on no other job.
_BY_JOB = ("merge", "agree", "copy", "largest")


@dataclass
class MergedTensors:
    """The tensors of the latest merge, for further merges of the same models.

    Attributes:
        made: name -> everything that the tensor was determined by, and the tensor.
    """

    made: dict[str, tuple[Hashable, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def state(self, plan: Plan) -> StateDict:
        """Return the merged network, bit for bit as ``merge_files`` writes it.

        The tensors must not be modified: those that the next plan determines in the same way are returned again.

        Args:
            plan: a plan without quantised outputs.

        Raises:
            CheckpointError: as ``merge_files``.
            WeightspaceError: as ``merge_files``.
        """
        sources = Sources(plan)
        check_masks(plan.jobs, sources)
        is_global = any(plan.method.needs_global_pass(job.arguments) for job in plan.jobs)
        further = global_pass(plan) if is_global else {}
        made: dict[str, tuple[Hashable, Tensor]] = {}
        for job in plan.jobs:
            key = _determined(job, plan, further.get(job.name))
            known = self.made.pop(job.name, None)
            made[job.name] = known if known is not None and key == known[0] else (key, _made(job, sources, further))
        self.made = made
        return {name: made[plan.made(name).name][1] for name in (*made, *plan.tied)}


def _made(job: Job, sources: Sources, further: Any) -> Tensor:
    tensor = torch.empty(job.info.shape, dtype=DTYPES[job.info.dtype])
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).view(-1)
    for start, elements in elements_of(job, sources, further):
        flat[start : start + len(elements)] = elements
    return tensor


def _determined(job: Job, plan: Plan, further: Any) -> Hashable:
    """Return everything that determines a tensor; if that is more than its job and the files, a new object."""
    if job.kind not in _BY_JOB or plan.vocabulary is not None or any(member.evidence for member in plan.members):
        return object()
    models = [(plan.members[index].source, plan.members[index].label, name) for index, name in job.refs]
    own = (job.kind, job.base is None, job.weights, job.info, job.layer, dict(job.arguments))
    return repr((plan.method.name, plan.finite, sorted(plan.stamps.items()), models, own, further))
