"""Executors of independent tasks: in this process, in local processes, or on a Ray cluster.

A piece of work is a function of a module and its arguments, all of which travel; what it makes, it returns or leaves
on a file system that all machines see. Results come back in the order in which the pieces were given, and are the same
wherever they were made: workers compute with as many threads as this process does.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown
from weightspace.user_code import find_modules, loaded_files
from weightspace.worker import cannot_travel, do_piece, first_line, message_from, serve, unpacked

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

Result = TypeVar("Result")
#: Takes the number of a piece, from 0, and what it returned.
OnDone = Callable[[int, Any], None]

#: Name on the command line -> what it is.
EXECUTORS = {
    "serial": "this process, one piece after the other",
    "processes": "processes of this machine",
    "ray": "a Ray cluster over a shared file system",
}
#: How often a piece of work is begun, where its worker dies.
TRIES = 3


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

    A piece whose worker died (killed, out of memory) is begun again by another one, twice; one that raised is not.

    Args:
        executor: ``serial``, ``processes`` or ``ray``.
        function: of the top of a module or a user's ``file.py``, or an instance of a class that is; sent once a worker.
        pieces: its arguments. On Ray, an argument that several pieces share (the same object) is sent once.
        workers: how many run at a time, on this machine or at most on the cluster.
        gpus: that each piece needs; shares of one are possible. Workers see their own devices only.
        ray_address: of a running cluster. By default that of ``$RAY_ADDRESS``, else one is started on this machine.
        on_done: called in this process as soon as a piece is done, in whatever order that happens.

    Raises:
        WeightspaceError: no such executor, no Ray, too few GPUs; a task cannot be pickled, or its workers keep dying.
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
    _ = gpus and _gpu_slots(gpus)  # says if there are too few
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


@dataclass
class _Work:
    """A piece of work: its number, its arguments, and how often it was begun."""

    number: int
    arguments: tuple[Any, ...]
    tries: int = 0


class _Worker:
    """A process that does one piece after the other; the function is sent to it once."""

    def __init__(self, function: Callable[..., Any], device: str | None) -> None:
        import multiprocessing

        spawn = multiprocessing.get_context("spawn")  # inherits no locks and no threads
        self.device, self.work = device, _Work(-1, ())
        self.connection, other = spawn.Pipe()
        start = (other, _threads(), loaded_files(), device)
        self.process: BaseProcess = spawn.Process(target=serve, args=start, daemon=True)
        self.process.start()
        other.close()
        self._send(function)

    def begin(self, work: _Work) -> None:
        """Send a piece of work."""
        work.tries += 1
        self.work = work
        self._send(work.arguments)

    def end(self) -> Any:
        """Return the result of the piece that was begun.

        Raises:
            _DeathError: the process is dead.
            Exception: what the function raised.
        """
        try:
            message = message_from(self.connection)
        except EOFError as error:
            raise _DeathError from error
        good, result, trace = unpacked(message)
        if good:
            return result
        raise result from _RemoteError(trace)

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self.process.terminate()

    def _send(self, value: Any) -> None:
        try:
            self.connection.send(value)
        except ConnectionError:
            pass  # it died: its end says so
        except Exception as error:  # whatever an object raises that does not want to be pickled
            self.stop()
            raise cannot_travel(error) from error


class _DeathError(Exception):
    """A process that has died before it answered."""


class _RemoteError(Exception):
    """The traceback of an error in another process."""


def _processes(
    function: Callable[..., Result], pieces: Sequence[tuple[Any, ...]], workers: int, gpus: float, report: OnDone
) -> Iterator[tuple[int, Result]]:
    """Run pieces in new processes and yield them as they are done."""
    from multiprocessing.connection import wait

    free: list[str | None] = [None] * workers
    if gpus:
        free[:] = _gpu_slots(gpus)[:workers]
    waiting = deque(_Work(number, arguments) for number, arguments in enumerate(pieces))
    team: list[_Worker] = []
    try:
        while waiting or team:
            while waiting and free:
                team.append(_Worker(function, free.pop()))
                team[-1].begin(waiting.popleft())
            ready = wait([worker.connection for worker in team])
            for worker in [worker for worker in team if worker.connection in ready]:
                number = worker.work.number
                try:
                    result = worker.end()
                except _DeathError:
                    team.remove(worker)
                    free.append(worker.device)
                    waiting.appendleft(_after_death(worker))
                    continue
                if waiting:
                    worker.begin(waiting.popleft())
                else:
                    team.remove(worker)
                    worker.stop()
                report(number, result)
                yield number, result
    finally:
        for worker in team:
            worker.stop()


def _after_death(worker: _Worker) -> _Work:
    """Return the piece of a worker that died, to be begun again."""
    worker.stop()
    worker.process.join()
    if worker.work.tries < TRIES:
        return worker.work
    raise WeightspaceError(
        f"{TRIES} worker processes died one after the other on the same piece of work, the last with exit code "
        f"{worker.process.exitcode}. Is the memory short? Expected less work at a time (--workers 1, --memory)."
    )


def _threads() -> int | None:
    """Return the number of threads that torch computes with here, None if it isn't used."""
    return None if (torch := sys.modules.get("torch")) is None else torch.get_num_threads()


def _gpu_slots(gpus: float) -> list[str]:
    """Return ``CUDA_VISIBLE_DEVICES`` of every worker that this machine has GPUs for; an error if there is none."""
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
        remote = ray.remote(max_retries=TRIES - 1, num_gpus=gpus)(_work)
        common = (_threads(), loaded_files(), ray.put(_packed(ray, function)))
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
    return do_piece(threads, function, *piece)


def _connect(ray: Any, address: str | None, workers: int) -> None:
    """Join the cluster that is named, or start one on this machine."""
    named = address or os.environ.get("RAY_ADDRESS")
    try:
        if named:
            ray.init(address=named, log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(num_cpus=workers, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise WeightspaceError(f"No Ray cluster answers at {named or 'this machine'}: {first_line(error)}") from error


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
        raise cannot_travel(error) from error


def _fetched(ray: Any, reference: Any) -> Any:
    """Return the result of a piece, or raise what it raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise WeightspaceError(f"Ray gave a piece of work up, begun {TRIES} times: {first_line(error)}") from error


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise WeightspaceError("The executor 'ray' needs Ray: pip install 'weightspace[ray]'.") from error
    return ray


def _too_few_gpus(gpus: float, found: float, owner: str) -> WeightspaceError:
    return WeightspaceError(f"Every piece asks for {gpus:g} GPUs, but {owner} {found:g}.")
