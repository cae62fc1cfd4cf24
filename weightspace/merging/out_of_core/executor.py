"""The tensors of a plan made by the threads of this process."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import torch

from weightspace.checkpoints import StateDict, load_checkpoint
from weightspace.merging.methods._loading import load_global_pass
from weightspace.merging.out_of_core.elements import elements_of, is_merged
from weightspace.merging.out_of_core.output import ShardFile, open_shards
from weightspace.merging.out_of_core.sources import Sources
from weightspace.merging.out_of_core.staging import Staging
from weightspace.merging.plan.estimates import job_memory
from weightspace.merging.plan.options import ExecutionOptions
from weightspace.merging.plan.plan import Job, Plan
from weightspace.threads import torch_threads


def make_jobs(
    jobs: Sequence[Job],
    shards: Sequence[int],
    sources: Sources,
    staging: Staging,
    execution: ExecutionOptions,
    global_arguments: Mapping[str, Mapping[str, Any]],
    report: Callable[[int], None],
    part: int = 0,
) -> None:
    """Make tensors of a plan.

    Args:
        jobs: the tensors that are missing.
        shards: numbers of the files that they go to; these are made if there are none.
        sources: the plan's checkpoints.
        staging: where the output grows.
        execution: threads and memory.
        global_arguments: what the method's pass over the whole model adds to its arguments, by name.
        report: is told how many bytes were written since it was last called.
        part: names the journals.

    Raises:
        WeightspaceError: as the method; a tensor holds NaN or infinity.
        OSError: the disk refuses.
    """
    with open_shards(sources.plan, staging, shards, part=part, fsync=execution.fsync) as files:
        do_jobs(
            sources.plan,
            jobs,
            files,
            sources,
            global_arguments,
            threads=execution.concurrency,
            memory=execution.memory,
            progress=report,
        )


def global_pass(plan: Plan) -> Mapping[str, Mapping[str, Any]]:
    """Make the method's pass over the whole model, where it has one."""
    function = load_global_pass(plan.method)
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


#: Seconds between two entries in the journals.
_COMMIT = 0.25

#: Jobs above this share of all bytes go first: started last, one would keep the other threads waiting.
_LARGE = 1 / 32

#: Bytes of a block that glibc learns from how much freed memory to keep; it learns from no larger one than 32 MB.
_KEPT = 2**24

#: Jobs up to so many elements are the interpreter's work, at which threads only stand in each other's way.
_TINY = 2**14


def do_jobs(
    plan: Plan,
    jobs: Sequence[Job],
    files: Mapping[int, ShardFile],
    sources: Sources,
    global_arguments: Mapping[str, Mapping[str, Any]],
    *,
    threads: int,
    memory: int,
    progress: Callable[[int], None],
) -> None:
    """Make tensors and write them to their places; the journals say which ones are there.

    Args:
        plan: what they belong to.
        jobs: the tensors.
        files: open files of their shards, by number.
        sources: the plan's checkpoints.
        global_arguments: what the method's pass over the whole model adds to its arguments, by name.
        threads: how many are made at a time; the bytes don't depend on it.
        memory: bytes that they may take together.
        progress: is told, on this thread, how many bytes of the output were written since it was last called.

    Raises:
        WeightspaceError: as the method; a tensor holds NaN or infinity.
        OSError: the disk refuses.
    """
    _keep_freed_memory()
    with torch_threads(1), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        tiny = deque(job for job in jobs if _elements_read(plan, job) <= _TINY)
        others = deque(_ordered([job for job in jobs if _elements_read(plan, job) > _TINY]))
        workers = WorkerPool(plan, files, sources, global_arguments, _Budget(memory))
        queues = [[tiny, others], *[[others]] * (threads - 1)]
        pending: set[Future[None]] = {pool.submit(workers.run, several) for several in queues}
        try:
            while pending:
                finished, pending = wait(pending, _COMMIT, FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                for file in files.values():
                    file.journal.commit()
                progress(workers.take_written())
        finally:
            workers.stop.set()


class WorkerPool:
    """The threads of a merge: the queues that they take jobs from, the memory and the count that they share."""

    def __init__(
        self,
        plan: Plan,
        files: Mapping[int, ShardFile],
        sources: Sources,
        global_arguments: Mapping[str, Mapping[str, Any]],
        budget: _Budget,
    ) -> None:
        self.plan = plan
        self.files = files
        self.sources = sources
        self.global_arguments = global_arguments
        self.budget = budget
        self.stop = threading.Event()
        self.written = 0
        self.lock = threading.Lock()

    def run(self, queues: Sequence[deque[Job]]) -> None:
        """Take jobs until there are none, queue after queue."""
        with torch.no_grad():
            for queue in queues:
                while not self.stop.is_set() and (job := _next(queue)) is not None:
                    with self.budget.of(job_memory(self.plan, job)):
                        if self._do(job):
                            self.files[job.shard].journal.add(job.name)

    def take_written(self) -> int:
        """Return the bytes written since the last call."""
        with self.lock:
            written, self.written = self.written, 0
        return written

    def _do(self, job: Job) -> bool:
        """Make one tensor; return whether it is complete."""
        file = self.files[job.shard]
        for start, elements in elements_of(job, self.sources, self.global_arguments):
            if self.stop.is_set():
                return False
            file.write(job.offset + start * elements.itemsize, elements)
            with self.lock:
                self.written += elements.nbytes
        return True


class _Budget:
    """Bytes that the jobs under way may take together; a job that needs more than all of them runs alone."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self.changed = threading.Condition()

    @contextmanager
    def of(self, needed: int) -> Iterator[None]:
        """Wait for room, and hold it for the length of the block."""
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + needed <= self.total)
            self.used += needed
        try:
            yield
        finally:
            with self.changed:
                self.used -= needed
                self.changed.notify_all()


def _keep_freed_memory() -> None:
    """Free a large block: from then on glibc keeps up to twice as much of what is freed, for the next chunk.

    Otherwise it gives every chunk back to the system, which has to clear its pages for the next one.
    """
    torch.empty(_KEPT, dtype=torch.uint8)


def _elements_read(plan: Plan, job: Job) -> int:
    """Return how many elements of each model a job reads: those of a whole weight for what follows from it."""
    return plan.info(job.inputs[0]).numel


def _next(queue: deque[Job]) -> Job | None:
    """Take the first job of a queue that other threads take from, too."""
    try:
        return queue.popleft()
    except IndexError:
        return None


def _ordered(jobs: Sequence[Job]) -> list[Job]:
    """Return the large jobs first, then the others in the order of the files."""
    bound = _LARGE * sum(job.info.nbytes for job in jobs)
    large = sorted((job for job in jobs if job.info.nbytes > bound), key=lambda job: -job.info.nbytes)
    return [*large, *(job for job in jobs if job.info.nbytes <= bound)]
