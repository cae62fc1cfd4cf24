"""Execution of a plan's jobs in parts, by processes of this machine or by the machines of a Ray cluster.

This module does not import torch: the workers do, in parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from weightspace.merging.out_of_core.staging import Staging
from weightspace.merging.plan.estimates import plan_memory
from weightspace.merging.plan.options import ExecutionOptions
from weightspace.merging.plan.plan import Job, Plan
from weightspace.parallel import run_jobs

if TYPE_CHECKING:
    from weightspace.merging.out_of_core.sources import Sources

#: Parts per worker, so that all end at about the same time; and maximum bytes of a part, which bounds the steps of the
#: progress and the loss in a crash.
_PARTS, _PART_BYTES = 12, 2**26

#: Fixed cost of a tensor, in bytes that take as long.
_OVERHEAD = 2**16


@dataclass(frozen=True)
class Part:
    """Tensors of one shard that one worker makes.

    Attributes:
        number: number in the name of the journal.
        shard: the file that they go to.
        jobs: their indices in ``Plan.jobs``.
    """

    number: int
    shard: int
    jobs: tuple[int, ...]


@dataclass(frozen=True)
class PartMaker:
    """Callable that makes parts, sent once to every worker."""

    plan: Plan
    staging: Staging
    execution: ExecutionOptions
    global_arguments: Mapping[str, Mapping[str, Any]]

    def __call__(self, part: Part) -> int:
        """Make the tensors of a part; return their number of bytes."""
        from weightspace.merging.out_of_core.executor import make_jobs

        jobs = [self.plan.jobs[index] for index in part.jobs]
        make_jobs(
            jobs,
            [part.shard],
            self.sources,
            self.staging,
            self.execution,
            self.global_arguments,
            lambda _: None,
            part.number,
        )
        return sum(job.nbytes for job in jobs)

    @cached_property
    def sources(self) -> Sources:
        """Checkpoints of the plan, opened once per worker."""
        from weightspace.merging.out_of_core.sources import Sources

        return Sources(self.plan)


def make_elsewhere(
    plan: Plan,
    jobs: Sequence[Job],
    staging: Staging,
    execution: ExecutionOptions,
    global_arguments: Mapping[str, Mapping[str, Any]],
    report: Callable[[int], None],
) -> None:
    """Make tensors of a plan in processes or on Ray.

    Args:
        plan: the plan.
        jobs: the jobs of the missing tensors.
        staging: the staging folder of the output.
        execution: executor, workers and memory.
        global_arguments: arguments from the method's pass over the whole model, by tensor name.
        report: called with the number of bytes written since the last call.

    Raises:
        WeightspaceError: as the method; a tensor holds NaN or infinity; there is no such executor.
        OSError: writing fails.
    """
    workers, each = _workers(plan, execution)
    maker = PartMaker(plan, staging, each, global_arguments)
    done = run_jobs(
        execution.executor,
        maker,
        [(part,) for part in parts(plan, jobs, workers)],
        workers=workers,
        ray_address=execution.ray_address,
        on_done=lambda _, written: report(written),
    )
    for _ in done:
        pass


def _workers(plan: Plan, execution: ExecutionOptions) -> tuple[int, ExecutionOptions]:
    """Return the number of workers, and the options of each: processes share the memory of this machine."""
    if execution.executor != "processes":
        return execution.workers or 2, execution
    workers = execution.workers or execution.concurrency
    while workers > 1 and plan_memory(plan, workers) > execution.memory:
        workers -= 1
    return workers, replace(execution, memory=execution.memory // workers, threads=1, executor="threads")


def parts(plan: Plan, jobs: Sequence[Job], workers: int) -> list[Part]:
    """Divide tensors among workers: neighbours together, the longest parts first, at least one per shard."""
    bound = min(_PART_BYTES, sum(map(_cost, jobs)) // (_PARTS * workers))
    wanted = {job.name for job in jobs}
    by_shard: list[list[int]] = [[] for _ in plan.shards]
    for index, job in enumerate(plan.jobs):
        if job.name in wanted:
            by_shard[job.shard].append(index)
    divided = [(shard, run) for shard, indices in enumerate(by_shard) for run in _runs(plan, indices, bound)]
    divided.sort(key=lambda one: -sum(_cost(plan.jobs[index]) for index in one[1]))
    return [Part(number, shard, tuple(run)) for number, (shard, run) in enumerate(divided)]


def _runs(plan: Plan, indices: Sequence[int], bound: int) -> list[list[int]]:
    """Divide the tensors of a shard into runs that cost at most ``bound`` or hold a single tensor."""
    runs: list[list[int]] = [[]]
    cost = 0
    for index in indices:
        own = _cost(plan.jobs[index])
        if runs[-1] and cost + own > bound:
            runs.append([])
            cost = 0
        runs[-1].append(index)
        cost += own
    return runs


def _cost(job: Job) -> int:
    return job.nbytes + _OVERHEAD
