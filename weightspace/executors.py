"""Where independent pieces of work run: in processes of this machine, or on a Ray cluster.

A piece of work is a function of a module and one argument, both of which travel; what it makes, it returns or leaves
on a file system that all machines see. Results come back in the order in which they are finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Name on the command line -> what it is.
EXECUTORS = {
    "threads": "threads of this process",
    "processes": "processes of this machine",
    "ray": "a Ray cluster over a shared file system",
}


def run_pieces(
    executor: str, function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Iterator[Result]:
    """Yield ``function(item)`` for every item, as they are finished.

    Args:
        executor: ``processes`` or ``ray``. A Ray cluster that is running is used (``RAY_ADDRESS``, ``ray start``),
            otherwise one is started on this machine.
        function: defined at the top of a module.
        items: its arguments.
        workers: how many run at a time, on this machine or at most on the cluster.

    Raises:
        WeightspaceError: there is no such executor, or Ray is not installed.
        Exception: whatever a piece of work raised; pieces that have not begun are not begun any more.
    """
    if executor == "processes":
        return _processes(function, items, workers)
    if executor == "ray":
        return _ray(function, items, workers)
    raise unknown("executor", executor, EXECUTORS)


def _processes(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Run the items in new processes, which inherit no locks and no threads."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_die_with_parent) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _die_with_parent() -> None:
    """End this process as soon as the one that started it is gone, killed too: nobody waits for its work any more."""
    import os
    import threading
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _ray(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Run the items on Ray, ``workers`` at a time."""
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=None if _is_running() else workers, log_to_driver=False, include_dashboard=False)
    remote = ray.remote(max_retries=3)(function)
    waiting = list(items)[::-1]
    running: list[Any] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(remote.remote(waiting.pop()))
            finished, running = ray.wait(running)
            try:
                yield ray.get(finished[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if started:
            ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise WeightspaceError("The executor 'ray' needs Ray: pip install 'weightspace[ray]'.") from error
    return ray


def _is_running() -> bool:
    """Return whether the environment names a cluster."""
    import os

    return bool(os.environ.get("RAY_ADDRESS"))
