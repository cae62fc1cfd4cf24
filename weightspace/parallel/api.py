"""Run independent jobs in this process, in local processes, or on a Ray cluster.

A job is a call of one function with pickled arguments. Results are yielded in the order of the jobs, and don't depend
on the executor: workers use as many threads as this process.
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
    """Yield ``function(*job)`` for every job, in order.

    If a worker dies (killed, out of memory), its job is restarted by another one, at most twice; a job that raises is
    not.

    Args:
        executor: ``serial``, ``processes`` or ``ray``.
        function: defined at the top level of a module or of a user's ``file.py``, or an instance of such a class; sent
            once per worker.
        jobs: the arguments of each call. On Ray, an object shared by several jobs is sent once.
        workers: maximum number of concurrent jobs.
        gpus: GPUs per job, may be fractional. A worker only sees its own devices.
        ray_address: address of a running cluster; by default ``$RAY_ADDRESS``, or a local one is started.
        on_done: called in this process as soon as a job is done, in the order of completion.

    Raises:
        WeightspaceError: unknown executor, Ray isn't installed, too few GPUs, a job that can't be pickled, or workers
            that keep dying.
        Exception: any exception raised by a job; jobs not yet started are dropped.
    """
    if executor not in EXECUTORS:
        raise unknown("executor", executor, EXECUTORS)
    if workers < 1 or gpus < 0:
        raise WeightspaceError(
            f"Expected at least one worker and a non-negative number of GPUs; found {workers}, {gpus}."
        )
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
    """Return ``serial`` instead of a single worker process, to avoid starting it."""
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
    """Yield results by index, each as soon as all previous ones are available."""
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
