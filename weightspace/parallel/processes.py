"""Jobs in local processes, each started once and given one job after another."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from weightspace.errors import WeightspaceError
from weightspace.parallel.worker import message_from, pickling_error, serve, unpacked
from weightspace.user_code import loaded_files

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

Result = TypeVar("Result")

#: Maximum number of starts of a job whose workers die.
TRIES = 3


@dataclass
class _Job:
    """A job: its index, its arguments, and the number of starts."""

    number: int
    arguments: tuple[Any, ...]
    tries: int = 0


class _Worker:
    """A process that runs one job after another; the function is sent to it once."""

    def __init__(self, function: Callable[..., Any], device: str | None) -> None:
        import multiprocessing

        spawn = multiprocessing.get_context("spawn")  # inherits no locks and no threads
        self.device, self.job = device, _Job(-1, ())
        self.connection, other = spawn.Pipe()
        start = (other, threads_here(), loaded_files(), device)
        self.process: BaseProcess = spawn.Process(target=serve, args=start, daemon=True)
        self.process.start()
        other.close()
        self._send(function)

    def begin(self, job: _Job) -> None:
        """Send a job."""
        job.tries += 1
        self.job = job
        self._send(job.arguments)

    def end(self) -> Any:
        """Return the result of the started job.

        Raises:
            _DeathError: the process is dead.
            Exception: any exception raised by the function.
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
        """End the process, even in the middle of a job."""
        self.connection.close()
        self.process.terminate()

    def _send(self, value: Any) -> None:
        try:
            self.connection.send(value)
        except ConnectionError:
            pass  # it died; `end` raises the error
        except Exception as error:  # pickling may raise anything
            self.stop()
            raise pickling_error(error) from error


class _DeathError(Exception):
    """A process died before it answered."""


class _RemoteError(Exception):
    """The traceback of an error in another process."""


def run_in_processes(
    function: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    gpus: float,
    report: Callable[[int, Any], None],
) -> Iterator[tuple[int, Result]]:
    """Run jobs in new processes; yield their indices and results as they finish."""
    from multiprocessing.connection import wait

    free: list[str | None] = [None] * workers
    if gpus:
        free[:] = gpu_slots(gpus)[:workers]
    waiting = deque(_Job(number, arguments) for number, arguments in enumerate(jobs))
    team: list[_Worker] = []
    try:
        while waiting or team:
            while waiting and free:
                team.append(_Worker(function, free.pop()))
                team[-1].begin(waiting.popleft())
            ready = wait([worker.connection for worker in team])
            for worker in [worker for worker in team if worker.connection in ready]:
                number = worker.job.number
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


def _after_death(worker: _Worker) -> _Job:
    """Return the job of a dead worker, to be restarted."""
    worker.stop()
    worker.process.join()
    if worker.job.tries < TRIES:
        return worker.job
    raise WeightspaceError(
        f"{TRIES} worker processes died one after the other on the same job, the last with exit code "
        f"{worker.process.exitcode}. Is memory running out? Run fewer jobs at a time (--workers 1, --memory)."
    )


def threads_here() -> int | None:
    """Return the number of torch threads in this process, or None if torch isn't imported."""
    return None if (torch := sys.modules.get("torch")) is None else torch.get_num_threads()


def gpu_slots(gpus: float) -> list[str]:
    """Return ``CUDA_VISIBLE_DEVICES`` for every worker that fits on this machine's GPUs."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        devices = [device.strip() for device in named.split(",") if device.strip()]
    else:
        import torch

        devices = [str(number) for number in range(torch.cuda.device_count())]
    size = max(1, round(gpus))
    groups = [",".join(devices[at : at + size]) for at in range(0, len(devices) - size + 1, size)]
    if not groups:
        raise too_few_gpus(gpus, len(devices), "this machine has")
    return [group for group in groups for _ in range(int(1 / gpus) if gpus < 1 else 1)]


def too_few_gpus(gpus: float, found: float, owner: str) -> WeightspaceError:
    """Return the error for more GPUs per job than available."""
    return WeightspaceError(f"Each job needs {gpus:g} GPUs; {owner} {found:g}.")
