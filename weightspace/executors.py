"""Where independent pieces of work run: here, in processes of this machine, or on a Ray cluster.

A piece of work is a function of a module and its arguments, all of which travel; what it makes, it returns or leaves
on a file system that all machines see. Results come back in the order in which the pieces were given, and are the same
wherever they were made: workers compute with as many threads as this process does.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, TypeVar

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown
from weightspace.user_code import find_modules, loaded_files

Result = TypeVar("Result")
#: Takes the number of a piece, from 0, and what it returned.
OnDone = Callable[[int, Any], None]

#: Name on the command line -> what it is.
EXECUTORS = {
    "serial": "this process, one piece after the other",
    "processes": "processes of this machine",
    "ray": "a Ray cluster over a shared file system",
}
#: How often a piece is tried again whose worker died.
RETRIES = 3


def run_pieces(
    executor: str,
    function: Callable[..., Result],
    pieces: Sequence[tuple[Any, ...]],
    *,
    workers: int = 1,
    gpus: float = 0.0,
    ray_address: str | None = None,
    on_done: OnDone | None = None,
) -> Iterator[Result]:
    """Yield ``function(*piece)`` for every piece, in their order.

    A piece whose worker died (killed, out of memory) is tried again, three times; one that raised is not.

    Args:
        executor: ``serial``, ``processes`` or ``ray``.
        function: defined at the top of a module, or of a user's ``file.py``.
        pieces: its arguments. On Ray, an argument that several pieces share (the same object) is sent once.
        workers: how many run at a time, on this machine or at most on the cluster.
        gpus: that each piece needs; shares of one are possible. Workers see their own devices only.
        ray_address: of a cluster that is running. By default that of ``$RAY_ADDRESS``, otherwise one is started on this
            machine.
        on_done: called in this process as soon as a piece is done, in whatever order that happens.

    Raises:
        WeightspaceError: there is no such executor; Ray is not installed, or does not answer; there are not as many
            GPUs; a piece or its result cannot travel; the workers of a piece keep dying.
        Exception: whatever a piece raised; pieces that have not begun are not begun any more.
    """
    if executor not in EXECUTORS:
        raise unknown("executor", executor, EXECUTORS)
    if workers < 1 or gpus < 0:
        raise WeightspaceError(f"Expected one worker at least and no negative share of GPUs; found {workers}, {gpus}.")
    if ray_address is not None and executor != "ray":
        raise WeightspaceError(f"The address of a Ray cluster was given, but the executor is {executor!r}, not 'ray'.")
    report = on_done or (lambda number, result: None)
    if executor == "serial":
        return _serial(function, pieces, gpus, report)
    if executor == "processes":
        return _in_order(_processes(function, pieces, workers, gpus, report))
    return _in_order(_ray(function, pieces, workers, gpus, ray_address, report))


def here_or(executor: str, workers: int) -> str:
    """Return the executor, and for one process of this machine this process, which saves starting one."""
    return "serial" if executor == "processes" and workers == 1 else executor


def _serial(
    function: Callable[..., Result], pieces: Sequence[tuple[Any, ...]], gpus: float, report: OnDone
) -> Iterator[Result]:
    if gpus:
        _gpu_slots(gpus)
    for number, piece in enumerate(pieces):
        result = function(*piece)
        report(number, result)
        yield result


def _in_order(finished: Iterator[tuple[int, Result]]) -> Iterator[Result]:
    """Yield results by their numbers, 0 first, as soon as all before are there."""
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


def _processes(
    function: Callable[..., Result], pieces: Sequence[tuple[Any, ...]], workers: int, gpus: float, report: OnDone
) -> Iterator[tuple[int, Result]]:
    """Run pieces in new processes, which inherit no locks and no threads; after a death, the rest in a new pool."""
    from concurrent.futures.process import BrokenProcessPool

    left, deaths = set(range(len(pieces))), 0
    while left:
        before = len(left)
        try:
            for number, result in _pool(function, pieces, sorted(left), workers, gpus):
                left.discard(number)
                report(number, result)
                yield number, result
        except BrokenProcessPool:
            deaths = 1 if len(left) < before else deaths + 1
            if deaths > RETRIES:
                raise _died(min(left)) from None


def _pool(
    function: Callable[..., Result], pieces: Sequence[tuple[Any, ...]], numbers: list[int], workers: int, gpus: float
) -> Iterator[tuple[int, Result]]:
    """Run the pieces of these numbers in one pool of processes and yield them as they are done."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    spawn = multiprocessing.get_context("spawn")
    devices = None
    if gpus:
        slots = _gpu_slots(gpus)
        workers, devices = min(workers, len(slots)), spawn.SimpleQueue()
        for slot in slots[:workers]:
            devices.put(slot)
    threads, start = _threads(), (loaded_files(), devices)
    with ProcessPoolExecutor(min(workers, len(numbers)), spawn, _start_worker, start) as pool:
        running: dict[Future[Result], int] = {
            pool.submit(_do, threads, function, *pieces[number]): number for number in numbers
        }
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), _result_of(future)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _result_of(future: Future[Result]) -> Result:
    """Return what a process returned, and say of what cannot be pickled how it could."""
    try:
        return future.result()
    except Exception as error:
        if "pickle" in f"{type(error).__name__} {error}".lower():
            raise _cannot_travel(error) from error
        raise


def _start_worker(files: dict[str, str], devices: Any) -> None:
    """Make a new process ready for pieces."""
    _die_with_parent()
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()
    find_modules(files)


def _do(threads: int | None, function: Callable[..., Result], *piece: Any) -> Result:
    """Do a piece of work with as many threads as the process that it is for; its modules are there by now."""
    torch = sys.modules.get("torch")
    if torch is not None and threads is not None:
        torch.set_num_threads(threads)
    return function(*piece)


def _threads() -> int | None:
    """Return the number of threads that torch computes with here, None if it isn't used."""
    torch = sys.modules.get("torch")
    return None if torch is None else torch.get_num_threads()


def _die_with_parent() -> None:
    """End this process as soon as the one that started it is gone, killed too: nobody waits for its work any more."""
    import threading
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _gpu_slots(gpus: float) -> list[str]:
    """Return ``CUDA_VISIBLE_DEVICES`` of every worker that the GPUs of this machine suffice for.

    Raises:
        WeightspaceError: they suffice for none.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        devices = [device.strip() for device in named.split(",") if device.strip()]
    else:
        import torch

        devices = [str(number) for number in range(torch.cuda.device_count())]
    size = max(1, round(gpus))
    groups = [",".join(devices[at : at + size]) for at in range(0, len(devices) - size + 1, size)]
    if not groups:
        raise _too_few_gpus(gpus, len(devices), "this machine has")
    return [group for group in groups for _ in range(int(1 / gpus) if gpus < 1 else 1)]


def _ray(
    function: Callable[..., Result],
    pieces: Sequence[tuple[Any, ...]],
    workers: int,
    gpus: float,
    address: str | None,
    report: OnDone,
) -> Iterator[tuple[int, Result]]:
    """Run pieces on Ray, ``workers`` at a time, and yield them as they are done."""
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        _connect(ray, address, workers)
    running: dict[Any, int] = {}
    try:
        if gpus > (found := ray.cluster_resources().get("GPU", 0)):
            raise _too_few_gpus(gpus, found, "the cluster has")
        remote = ray.remote(max_retries=RETRIES, num_gpus=gpus)(_work)
        common = (_threads(), loaded_files(), _packed(ray, function))
        sent = _sent(ray, pieces)
        waiting = list(enumerate(pieces))[::-1]
        while waiting or running:
            while waiting and len(running) < workers:
                number, piece = waiting.pop()
                arguments = [sent[id(one)] if id(one) in sent else _packed(ray, one) for one in piece]
                running[remote.remote(*common, *arguments)] = number
            (finished, *_), _ = ray.wait(list(running))
            number, result = running.pop(finished), _fetched(ray, finished)
            report(number, result)
            yield number, result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if started:
            ray.shutdown()


def _work(threads: int | None, files: dict[str, str], *packed: bytes) -> Any:
    """Do a piece of work on a worker of Ray: unpack it once the user's modules can be found, then call it."""
    from ray.cloudpickle import loads

    find_modules(files)
    function, *piece = map(loads, packed)
    return _do(threads, function, *piece)


def _connect(ray: Any, address: str | None, workers: int) -> None:
    """Join the cluster that is named, or start one on this machine."""
    named = address or os.environ.get("RAY_ADDRESS")
    try:
        if named:
            ray.init(address=named, log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(num_cpus=workers, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightspaceError(f"No Ray cluster answers at {named or 'this machine'}: {line}") from error


def _sent(ray: Any, pieces: Sequence[tuple[Any, ...]]) -> dict[int, Any]:
    """Return the arguments that several pieces share, by their identity, as objects in Ray's store."""
    large = {id(one): one for piece in pieces for one in piece if not isinstance(one, str | int | float | None)}
    times = Counter(number for piece in pieces for number in {id(one) for one in piece})
    return {number: ray.put(_packed(ray, one)) for number, one in large.items() if times[number] > 1}


def _packed(ray: Any, value: Any) -> bytes:
    """Return a value as it travels."""
    try:
        return ray.cloudpickle.dumps(value)
    except Exception as error:  # whatever an object raises that does not want to be pickled
        raise _cannot_travel(error) from error


def _fetched(ray: Any, reference: Any) -> Any:
    """Return the result of a piece, or raise what it raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightspaceError(f"Ray gave a piece of work up, tried {RETRIES + 1} times: {line}") from error


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise WeightspaceError("The executor 'ray' needs Ray: pip install 'weightspace[ray]'.") from error
    return ray


def _died(number: int) -> WeightspaceError:
    return WeightspaceError(
        f"The worker of piece {number + 1} died {RETRIES + 1} times. Was it killed, or is the memory too small? "
        "Fewer workers need less."
    )


def _cannot_travel(error: Exception) -> WeightspaceError:
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return WeightspaceError(
        f"A piece of work cannot travel to another process: {line}. Define what a task holds at the top of a file "
        "(no lambda, no open file), or use the executor 'serial'."
    )


def _too_few_gpus(gpus: float, found: float, owner: str) -> WeightspaceError:
    return WeightspaceError(f"Every piece asks for {gpus:g} GPUs, but {owner} {found:g}.")
