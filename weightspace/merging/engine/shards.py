"""The shards of a plan made by the threads of this process, or each on its own by other processes and machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from weightspace.checkpoints import StateDict, load_checkpoint
from weightspace.executors import EXECUTORS, run_pieces
from weightspace.merging.engine.plan import Job, Plan, Running
from weightspace.merging.engine.sources import Sources
from weightspace.merging.engine.staging import Staging
from weightspace.merging.engine.work import do_jobs
from weightspace.merging.engine.writing import open_shards
from weightspace.merging.methods.loading import load_survey
from weightspace.suggestions import unknown
from weightspace.threads import torch_threads


@dataclass(frozen=True)
class ShardWork:
    """What another process needs to make a shard, or what is missing of it."""

    plan: Plan
    jobs: tuple[Job, ...]
    staging: Staging
    running: Running
    surveyed: Mapping[str, Mapping[str, Any]]


def make_shards(
    plan: Plan, jobs: Sequence[Job], staging: Staging, running: Running, report: Callable[[int], None]
) -> None:
    """Make tensors of a plan where ``running`` says.

    Args:
        plan: what they belong to.
        jobs: the tensors that are missing.
        staging: where the output grows.
        running: executor, threads and memory.
        report: is told how many bytes were written since it was last called.

    Raises:
        WeightspaceError: as the method; a tensor holds NaN or infinity; there is no such executor.
        OSError: the disk refuses.
    """
    surveyed = _survey(plan) if jobs else {}
    numbers = range(len(plan.shards))
    if running.executor == "threads":
        _make(ShardWork(plan, tuple(jobs), staging, running, surveyed), numbers, report)
        return
    if running.executor not in EXECUTORS:
        raise unknown("executor", running.executor, ("threads", *EXECUTORS))
    with open_shards(plan, staging, numbers, fsync=running.fsync):  # makes those that have no tensors, too
        pass
    by_shard = {number: tuple(job for job in jobs if job.shard == number) for number in numbers}
    pieces = [(ShardWork(plan, part, staging, running, surveyed),) for part in by_shard.values() if part]
    place = {"workers": running.workers, "ray_address": running.ray_address}
    for _ in run_pieces(running.executor, make_shard, pieces, on_done=lambda _, written: report(written), **place):
        pass


def make_shard(work: ShardWork) -> int:
    """Make the tensors of one shard; return how many bytes they have."""
    written = 0

    def count(more: int) -> None:
        nonlocal written
        written += more

    _make(work, [work.jobs[0].shard], count)
    return written


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


def _make(work: ShardWork, numbers: Sequence[int], report: Callable[[int], None]) -> None:
    """Make tensors with the threads of this process."""
    running = work.running
    with open_shards(work.plan, work.staging, numbers, fsync=running.fsync) as files:
        do_jobs(
            work.plan,
            work.jobs,
            files,
            Sources(work.plan),
            work.surveyed,
            threads=running.crew,
            memory=running.memory,
            progress=report,
        )


def _survey(plan: Plan) -> Mapping[str, Mapping[str, Any]]:
    """Make the method's pass over the whole model, where it has one."""
    survey = load_survey(plan.method)
    if survey is None:
        return {}
    sources = Sources(plan)
    jobs = sorted((job for job in plan.jobs if job.kind == "merge"), key=lambda job: job.name)
    with torch_threads(1):  # as the tensors are made: the sums of adapters have the same bits then
        return survey([sources.stack(job) for job in jobs], [job.arguments for job in jobs])
