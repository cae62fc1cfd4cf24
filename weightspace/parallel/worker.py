"""The worker process: receive jobs, return results, and exit with the parent process."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from weightspace.errors import WeightspaceError
from weightspace.user_code import find_modules

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Result = TypeVar("Result")


def serve(connection: Connection, threads: int | None, files: dict[str, str], device: str | None) -> None:
    """Run jobs until there are no more, or the sending process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent handles it
    _die_with_parent()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    find_modules(files)
    function: Any = None
    while True:
        try:
            if function is None:
                function = _received(connection)
            answer = (True, do_job(threads, function, *_received(connection)), "")
        except Exception as error:
            answer = (False, error, traceback.format_exc())
        _answer(connection, answer)


def _received(connection: Connection) -> Any:
    try:
        message = message_from(connection)
    except EOFError:
        sys.stderr.flush()
        os._exit(0)  # all is written; an orderly exit takes longer than a small job
    return unpacked(message)


class Receiver(Protocol):
    """An end of a pipe."""

    def recv_bytes(self) -> bytes:
        """Return the next message."""
        ...


def message_from(connection: Receiver) -> bytes:
    """Return the next message.

    Raises:
        EOFError: the other process is gone, possibly in the middle of the message.
    """
    try:
        return connection.recv_bytes()
    except OSError as error:
        raise EOFError from error


def unpacked(message: bytes) -> Any:
    """Unpickle a message; unpickling may raise anything."""
    from multiprocessing.reduction import ForkingPickler

    return ForkingPickler.loads(message)  # pyright: ignore[reportAttributeAccessIssue]


def _answer(connection: Connection, answer: tuple[bool, Any, str]) -> None:
    """Send the result of a job or its error, unless the other process is gone."""
    try:
        connection.send(answer)
    except ConnectionError:
        os._exit(1)
    except Exception as error:  # an unpicklable result or error
        connection.send((False, pickling_error(error), traceback.format_exc()))


def do_job(threads: int | None, function: Callable[..., Result], *arguments: Any) -> Result:
    """Run a job with as many torch threads as the sending process; its modules are importable by now."""
    if threads is not None and (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    return function(*arguments)


def _die_with_parent() -> None:
    """Exit as soon as the parent process is gone, even if it was killed."""
    import threading
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def pickling_error(error: Exception) -> WeightspaceError:
    """Return the error for an object that can't be pickled."""
    return WeightspaceError(
        f"Could not pickle the task for a worker: {first_line(error)}. Define its parts at the top level of a file "
        "(no lambda, no open file), or use the executor 'serial'."
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error."""
    return next(iter(str(error).splitlines()), type(error).__name__)
