"""Execution of a plan's jobs by the threads of this process."""

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
from weightspace.merging.out_of_core.elements import is_merged, written_elements
from weightspace.merging.out_of_core.output import ShardFile, open_shards
from weightspace.merging.out_of_core.sources import Sources
from weightspace.merging.out_of_core.staging import Staging
from weightspace.merging.plan.estimates import job_memory
from weightspace.merging.plan.options import ExecutionOptions
from weightspace.merging.plan.plan import Job, Plan
from weightspace.threads import torch_threads

#: Seconds between two commits of the journals.
_COMMIT = 0.25

#: Jobs above this share of all bytes go first: started last, one would keep the other threads waiting.
_LARGE = 1 / 32

#: Bytes of a block from which glibc learns how much freed memory to keep; it ignores blocks above 32 MB.
_KEPT = 2**25 - 2**16

#: Jobs of at most this many elements are bound by the interpreter, where threads only block each other.
_TINY = 2**14


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
    """Run jobs of a plan in threads, write their tensors and record the complete ones in the journals.

    Args:
        jobs: the jobs of the missing tensors.
        shards: numbers of the files that they go to, which are created if missing.
        sources: the plan's checkpoints.
        staging: the staging folder of the output.
        execution: number of jobs at a time, on which the bytes don't depend, and the memory that they use together.
        global_arguments: arguments from the method's pass over the whole model, by tensor name.
        report: called on this thread with the number of bytes written since the last call.
        part: number in the names of the journals.

    Raises:
        WeightspaceError: as the method; a tensor holds NaN or infinity.
        OSError: writing fails.
    """
    plan, threads = sources.plan, execution.concurrency
    tiny = deque(job for job in jobs if _elements_read(plan, job) <= _TINY)
    others = deque(_ordered([job for job in jobs if _elements_read(plan, job) > _TINY]))
    queues = [[tiny, others], *[[others]] * (threads - 1)]
    _keep_freed_memory()
    with (
        open_shards(plan, staging, shards, part=part, fsync=execution.fsync) as files,
        torch_threads(1),
        ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        workers = WorkerPool(files, sources, global_arguments, _Budget(execution.memory))
        pending: set[Future[None]] = {pool.submit(workers.run, of_thread) for of_thread in queues}
        try:
            while pending:
                finished, pending = wait(pending, _COMMIT, FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                for file in files.values():
                    file.journal.commit()
                report(workers.take_written())
        finally:
            workers.stop.set()


def global_pass(plan: Plan) -> Mapping[str, Mapping[str, Any]]:
    """Run the method's pass over the whole model, if it has one."""
    function = load_global_pass(plan.method)
    if function is None:
        return {}
    sources = Sources(plan)
    jobs = sorted((job for job in plan.jobs if is_merged(job, sources)), key=lambda job: job.name)
    with torch_threads(1):  # as in the jobs, so that the sums of adapters have the same bits
        return function([sources.stack(job) for job in jobs], [job.arguments for job in jobs])


def rewrite(plan: Plan, staging: Staging, finish: Callable[[StateDict], StateDict], *, fsync: bool) -> None:
    """Overwrite the merged tensors with what ``finish`` returns for them, in the same dtypes.

    Raises:
        OSError: writing fails.
    """
    state: StateDict = {}
    for shard in plan.shards:
        stored = load_checkpoint(staging.parts / shard.name)
        state |= {shard.prefix + name: tensor for name, tensor in stored.items()}
    finished = finish(state)
    with open_shards(plan, staging, range(len(plan.shards)), fsync=fsync) as files:
        for job in plan.jobs:
            tensor = finished[job.name].to(state[job.name].dtype)
            if not torch.equal(tensor, state[job.name]):
                files[job.shard].write(job.offset, tensor.contiguous().view(-1))


class WorkerPool:
    """State that the threads of a merge share: sources, files, memory budget, and the bytes written so far."""

    def __init__(
        self,
        files: Mapping[int, ShardFile],
        sources: Sources,
        global_arguments: Mapping[str, Mapping[str, Any]],
        budget: _Budget,
    ) -> None:
        self.files = files
        self.sources = sources
        self.global_arguments = global_arguments
        self.budget = budget
        self.stop = threading.Event()
        self.written = 0
        self.lock = threading.Lock()

    def run(self, queues: Sequence[deque[Job]]) -> None:
        """Run jobs until all queues are empty, one queue after the other."""
        with torch.no_grad():
            for queue in queues:
                while not self.stop.is_set() and (job := _next(queue)) is not None:
                    with self.budget.of(job_memory(self.sources.plan, job)):
                        if self._do(job):
                            self.files[job.shard].journal.add(job.name)

    def take_written(self) -> int:
        """Return the bytes written since the last call."""
        with self.lock:
            written, self.written = self.written, 0
        return written

    def _do(self, job: Job) -> bool:
        """Run one job; return whether its tensor is complete."""
        file = self.files[job.shard]
        for offset, elements in written_elements(job, self.sources, self.global_arguments):
            if self.stop.is_set():
                return False
            file.write(offset, elements)
            with self.lock:
                self.written += elements.nbytes
        return True


class _Budget:
    """Bytes that running jobs may use together; a job that needs more than the total runs alone."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self.changed = threading.Condition()

    @contextmanager
    def of(self, needed: int) -> Iterator[None]:
        """Wait until the bytes are free, and hold them for the duration of the block."""
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
    """Free a large block, so that glibc keeps freed memory of up to twice its size for the next chunks.

    Otherwise it returns every chunk to the system, which has to clear its pages for the next one.
    """
    torch.empty(_KEPT, dtype=torch.uint8)


def _elements_read(plan: Plan, job: Job) -> int:
    """Return the number of elements that a job reads of each model: all of a weight for tensors derived from it."""
    return plan.info(job.inputs[0]).numel


def _next(queue: deque[Job]) -> Job | None:
    """Pop the first job of a queue shared with other threads; None if it is empty."""
    try:
        return queue.popleft()
    except IndexError:
        return None


def _ordered(jobs: Sequence[Job]) -> list[Job]:
    """Return the large jobs first, then the others in the order of the files."""
    bound = _LARGE * sum(job.info.nbytes for job in jobs)
    large = sorted((job for job in jobs if job.info.nbytes > bound), key=lambda job: -job.info.nbytes)
    return [*large, *(job for job in jobs if job.info.nbytes <= bound)]
