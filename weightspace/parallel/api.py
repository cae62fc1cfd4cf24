"""Run independent jobs in this process, in local processes, or on a Ray cluster.

A job is a call of one function; its arguments are pickled. Results are yielded in the order of the jobs, and are the
same wherever they were computed: workers use as many threads as this process does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from weightspace.errors import WeightspaceError
from weightspace.parallel.processes import gpu_slots, run_in_processes
from weightspace.suggestions import unknown

Result = TypeVar("Result")
#: Called with the index of a finished job, from 0, and its result.
OnDone = Callable[[int, Any], None]

#: Name on the command line -> its description.
EXECUTORS = {
    "serial": "this process, one job after the other",
    "processes": "processes of this machine",
    "ray": "a Ray cluster over a shared file system",
}


def run_jobs(
    executor: str,
    function: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    *,
    workers: int = 1,
    gpus: float = 0.0,
    ray_address: str | None = None,
    on_done: OnDone | None = None,
) -> Iterator[Result]:
    """Yield ``function(*job)`` for every job, in their order.

    A job whose worker died (killed, out of memory) is started again by another one, twice; a job that raised is not.

    Args:
        executor: ``serial``, ``processes`` or ``ray``.
        function: defined at the top of a module or of a user's ``file.py``, or an instance of a class that is; sent
            once per worker.
        jobs: the arguments of each call. On Ray, an object that several jobs share is sent once.
        workers: the number of jobs that run at a time, at most.
        gpus: GPUs per job, fractions included. A worker sees its own devices only.
        ray_address: of a running cluster. By default that of ``$RAY_ADDRESS``, else one is started on this machine.
        on_done: called in this process as soon as a job is done, in the order in which they finish.

    Raises:
        WeightspaceError: no such executor, no Ray, too few GPUs; a job cannot be pickled, or its workers keep dying.
        Exception: whatever a job raised; jobs not yet started are dropped.
    """
    if executor not in EXECUTORS:
        raise unknown("executor", executor, EXECUTORS)
    if workers < 1 or gpus < 0:
        raise WeightspaceError(f"Expected one worker at least and no negative share of GPUs; found {workers}, {gpus}.")
    if ray_address is not None and executor != "ray":
        raise WeightspaceError(f"The address of a Ray cluster was given, but the executor is {executor!r}, not 'ray'.")
    report = on_done or (lambda number, result: None)
    if executor == "serial":
        return _serial(function, jobs, gpus, report)
    if executor == "processes":
        return _in_order(run_in_processes(function, jobs, workers, gpus, report))
    from weightspace.parallel.ray import run_on_ray

    return _in_order(run_on_ray(function, jobs, workers, gpus, ray_address, report))


def here_or(executor: str, workers: int) -> str:
    """Return ``serial`` in place of a single worker process, which saves starting it."""
    return "serial" if executor == "processes" and workers == 1 else executor


def _serial(
    function: Callable[..., Result], jobs: Sequence[tuple[Any, ...]], gpus: float, report: OnDone
) -> Iterator[Result]:
    _ = gpus and gpu_slots(gpus)  # raises if there are too few
    for number, job in enumerate(jobs):
        result = function(*job)
        report(number, result)
        yield result


def _in_order(finished: Iterator[tuple[int, Result]]) -> Iterator[Result]:
    """Yield results by index, each as soon as all before it are there."""
    waiting: dict[int, Result] = {}
    at = 0
    try:
        for number, result in finished:
            waiting[number] = result
            while at in waiting:
                yield waiting.pop(at)
                at += 1
    finally:
        finished.close()  # type: ignore[attr-defined]  # a generator, whose pool ends with it
