"""Where independent pieces of work run: in processes of this machine, or on a Ray cluster.

A piece of work is a picklable function, which travels to every worker once, and one argument; what it makes, it returns
or leaves on a file system that all machines see. Results come back in the order in which they are finished.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Name on the command line -> what it is.
EXECUTORS = {
    "threads": "threads of this process",
    "processes": "processes of this machine",
    "ray": "a Ray cluster over a shared file system",
}

#: How often a piece of work is begun, where its worker dies.
_TRIES = 3


def run_pieces(
    executor: str, function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Iterator[Result]:
    """Yield ``function(item)`` for every item, as they are finished.

    A piece whose worker dies is begun again by another one, twice.

    Args:
        executor: ``processes`` or ``ray``. A Ray cluster that is running is used (``RAY_ADDRESS``, ``ray start``),
            otherwise one is started on this machine.
        function: defined at the top of a module, or an instance of a class that is.
        items: its arguments.
        workers: how many run at a time, on this machine or at most on the cluster.

    Raises:
        WeightspaceError: there is no such executor, Ray is not installed, or the workers of a piece keep dying.
        Exception: whatever a piece of work raised; pieces that have not begun are not begun any more.
    """
    if executor == "processes":
        return _processes(function, items, workers)
    if executor == "ray":
        return _ray(function, items, workers)
    raise unknown("executor", executor, EXECUTORS)


# --- Processes ---


@dataclass
class _Piece(Generic[Item]):
    """A piece of work, and how often it was begun."""

    item: Item
    tries: int = 0


class _Worker(Generic[Item, Result]):
    """A process that does one piece after the other."""

    def __init__(self, function: Callable[[Item], Result]) -> None:
        import multiprocessing

        spawn = multiprocessing.get_context("spawn")  # inherits no locks and no threads
        self.connection, other = spawn.Pipe()
        self.process: BaseProcess = spawn.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()
        other.close()
        self.connection.send(function)
        self.piece: _Piece[Item] | None = None

    def begin(self, piece: _Piece[Item]) -> None:
        """Send a piece of work."""
        piece.tries += 1
        self.piece = piece
        self.connection.send(piece.item)

    def end(self) -> Result:
        """Return the result of the piece that was begun.

        Raises:
            EOFError, ConnectionError: the process is dead.
            Exception: what the function raised.
        """
        good, result, trace = self.connection.recv()
        self.piece = None
        if good:
            return result
        raise result from _RemoteError(trace)

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self.process.terminate()


class _RemoteError(Exception):
    """The traceback of an error in another process."""


def _processes(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Run the items in new processes."""
    from multiprocessing.connection import wait

    waiting = deque(_Piece(item) for item in items)
    team: list[_Worker[Item, Result]] = []
    try:
        while waiting or team:
            while waiting and len(team) < workers:
                team.append(_Worker(function))
                team[-1].begin(waiting.popleft())
            ready = wait([worker.connection for worker in team])
            for worker in [worker for worker in team if worker.connection in ready]:
                try:
                    result = worker.end()
                except (EOFError, ConnectionError):
                    team.remove(worker)
                    waiting.appendleft(_after_death(worker))
                    continue
                if waiting:
                    worker.begin(waiting.popleft())
                else:
                    team.remove(worker)
                    worker.stop()
                yield result
    finally:
        for worker in team:
            worker.stop()


def _after_death(worker: _Worker[Item, Result]) -> _Piece[Item]:
    """Return the piece of a worker that died, to be begun again."""
    worker.stop()
    worker.process.join()
    piece = worker.piece
    assert piece is not None
    if piece.tries < _TRIES:
        return piece
    raise WeightspaceError(
        f"{_TRIES} worker processes died one after the other on the same piece of work, the last with exit code "
        f"{worker.process.exitcode}. Is the memory short? Expected less work at a time (--workers 1, --memory)."
    )


def _serve(connection: Connection) -> None:
    """Do pieces of work until there are no more, or the process that sends them is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the process that sends the work answers it
    _die_with_parent()
    function: Callable[[Any], Any] | None = None
    while True:
        try:
            if function is None:
                function = cast("Callable[[Any], Any]", _received(connection))
            answer = (True, function(_received(connection)), "")
        except Exception as error:
            answer = (False, error, traceback.format_exc())
        connection.send(answer)


def _received(connection: Connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        sys.stderr.flush()
        os._exit(0)  # all is written; taking libraries down in order takes longer than a small piece of work


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


# --- Ray ---


def _ray(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Run the items on Ray, ``workers`` at a time."""
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=None if _is_running() else workers, log_to_driver=False, include_dashboard=False)
    remote = ray.remote(max_retries=_TRIES)(_call)
    waiting = list(items)[::-1]
    running: list[Any] = []
    try:
        stored = ray.put(function)
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(remote.remote(stored, waiting.pop()))
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


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise WeightspaceError("The executor 'ray' needs Ray: pip install 'weightspace[ray]'.") from error
    return ray


def _is_running() -> bool:
    """Return whether the environment names a cluster."""
    return bool(os.environ.get("RAY_ADDRESS"))
