"""The tensors of a plan made by the threads of this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from weightspace.checkpoints import StateDict, load_checkpoint
from weightspace.merging.engine.elements import is_merged
from weightspace.merging.engine.plan import Job, Plan, Running
from weightspace.merging.engine.sources import Sources
from weightspace.merging.engine.staging import Staging
from weightspace.merging.engine.work import do_jobs
from weightspace.merging.engine.writing import open_shards
from weightspace.merging.methods.loading import load_survey
from weightspace.threads import torch_threads


def make_jobs(
    jobs: Sequence[Job],
    shards: Sequence[int],
    sources: Sources,
    staging: Staging,
    running: Running,
    surveyed: Mapping[str, Mapping[str, Any]],
    report: Callable[[int], None],
    part: int = 0,
) -> None:
    """Make tensors of a plan.

    Args:
        jobs: the tensors that are missing.
        shards: numbers of the files that they go to; these are made if there are none.
        sources: the plan's checkpoints.
        staging: where the output grows.
        running: threads and memory.
        surveyed: what the method's pass over the whole model adds to its arguments, by name.
        report: is told how many bytes were written since it was last called.
        part: names the journals.

    Raises:
        WeightspaceError: as the method; a tensor holds NaN or infinity.
        OSError: the disk refuses.
    """
    with open_shards(sources.plan, staging, shards, part=part, fsync=running.fsync) as files:
        do_jobs(
            sources.plan,
            jobs,
            files,
            sources,
            surveyed,
            threads=running.crew,
            memory=running.memory,
            progress=report,
        )


def survey(plan: Plan) -> Mapping[str, Mapping[str, Any]]:
    """Make the method's pass over the whole model, where it has one."""
    function = load_survey(plan.method)
    if function is None:
        return {}
    sources = Sources(plan)
    jobs = sorted((job for job in plan.jobs if is_merged(job, sources)), key=lambda job: job.name)
    with torch_threads(1):  # as the tensors are made: the sums of adapters have the same bits then
        return function([sources.stack(job) for job in jobs], [job.arguments for job in jobs])


def rewrite(plan: Plan, staging: Staging, finish: Callable[[StateDict], StateDict], *, fsync: bool) -> None:
    """Put what ``finish`` makes of the merged tensors into their places, in the dtypes that they have there.

    Raises:
        OSError: the disk refuses.
    """
    state: StateDict = {}
    for shard in plan.shards:
        state |= load_checkpoint(staging.parts / shard.name)
    finished = finish(state)
    with open_shards(plan, staging, range(len(plan.shards)), fsync=fsync) as files:
        for job in plan.jobs:
            tensor = finished[job.name].to(state[job.name].dtype)
            if not torch.equal(tensor, state[job.name]):
                files[job.shard].write(job.offset, tensor.contiguous().view(-1))
