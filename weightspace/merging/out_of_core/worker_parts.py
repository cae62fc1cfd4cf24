"""The tensors of a plan made in parts, by processes of this machine or by the machines of a Ray cluster.

It costs no torch: the workers import it at the same time, each for itself.
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

#: Parts for each worker, so that all end at about the same time; and bytes of a part at most, for the progress and
#: for what a crash may cost.
_PARTS, _PART_BYTES = 12, 2**26

#: What any tensor costs, in bytes of a tensor that take as long.
_EACH = 2**16


@dataclass(frozen=True)
class Part:
    """Some tensors of one shard, which one worker makes.

    Attributes:
        number: names the journal.
        shard: the file that they go to.
        jobs: their places in ``Plan.jobs``.
    """

    number: int
    shard: int
    jobs: tuple[int, ...]


@dataclass(frozen=True)
class PartMaker:
    """Makes parts; what it holds travels once to every worker."""

    plan: Plan
    staging: Staging
    execution: ExecutionOptions
    global_arguments: Mapping[str, Mapping[str, Any]]

    def __call__(self, part: Part) -> int:
        """Make the tensors of a part; return how many bytes they have."""
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
        return sum(job.info.nbytes for job in jobs)

    @cached_property
    def sources(self) -> Sources:
        """The checkpoints, opened once a worker."""
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
    """Make tensors of a plan by processes or on Ray.

    Args:
        plan: what they belong to.
        jobs: the tensors that are missing.
        staging: where the output grows.
        execution: executor, workers and memory.
        global_arguments: what the method's pass over the whole model adds to its arguments, by name.
        report: is told how many bytes were written since it was last called.

    Raises:
        WeightspaceError: as the method; a tensor holds NaN or infinity; there is no such executor.
        OSError: the disk refuses.
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
    """Return how many workers there are, and how each of them runs: processes share the memory of this machine."""
    if execution.executor != "processes":
        return execution.workers or 2, execution
    workers = execution.workers or execution.concurrency
    while workers > 1 and plan_memory(plan, workers) > execution.memory:
        workers -= 1
    return workers, replace(execution, memory=execution.memory // workers, threads=1, executor="threads")


def parts(plan: Plan, jobs: Sequence[Job], workers: int) -> list[Part]:
    """Divide tensors among workers: neighbours together, the longest parts first; every shard has one at least."""
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
    """Divide the tensors of a shard into runs that cost so much at most, or hold one."""
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
    return job.info.nbytes + _EACH
